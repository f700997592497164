"""Pipelines of diffusers, tiny and random: the same pictures with and without `accelerate`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers", reason="without transformers, diffusers has no pipelines")

import diffusers as d

from tests.integrations.test_diffusers import make
from wan_vae.integrations.diffusers import accelerate

Z = 4
SIZE = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "np"}


def flow() -> Any:
    return d.FlowMatchEulerDiscreteScheduler(shift=3.0)


def text(width: int = 16) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {"prompt_embeds": torch.randn(1, 6, width), "negative_prompt_embeds": torch.randn(1, 6, width)}


def transformer(kind: Any = None, **changes: object) -> Any:
    torch.manual_seed(1)
    values: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": Z,
        "out_channels": Z,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 16,
        "num_layers": 2,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 32,
    }
    return (kind or d.WanTransformer3DModel)(**values | changes).eval()


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8))


def text_to_video() -> tuple[Any, dict[str, Any]]:
    pipe = d.WanPipeline(tokenizer=None, text_encoder=None, vae=make(), scheduler=flow(), transformer=transformer())
    return pipe, {"num_frames": 9, **SIZE, **text()}


def image_to_video() -> tuple[Any, dict[str, Any]]:
    pipe = d.WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=make(),
        scheduler=flow(),
        transformer=transformer(in_channels=2 * Z + 4),
    )
    return pipe, {"image": picture(), "num_frames": 9, **SIZE, **text()}


def video_to_video() -> tuple[Any, dict[str, Any]]:
    pipe = d.WanVideoToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        transformer=transformer(),
        vae=make(),
        scheduler=d.UniPCMultistepScheduler(flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction"),
    )
    return pipe, {"video": [picture(n) for n in range(9)], **SIZE, **text()}


def control() -> tuple[Any, dict[str, Any]]:
    kind = d.WanVACETransformer3DModel
    pipe = d.WanVACEPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=make(),
        scheduler=flow(),
        transformer=transformer(kind, vace_layers=[0], vace_in_channels=2 * Z + 16),
    )
    return pipe, {"video": [picture(n) for n in range(9)], "num_frames": 9, **SIZE, **text()}


def sky_reels() -> tuple[Any, dict[str, Any]]:
    pipe = d.SkyReelsV2Pipeline(
        tokenizer=None,
        text_encoder=None,
        transformer=transformer(d.SkyReelsV2Transformer3DModel),
        vae=make(),
        scheduler=d.UniPCMultistepScheduler(flow_shift=8.0, use_flow_sigmas=True, prediction_type="flow_prediction"),
    )
    return pipe, {"num_frames": 9, **SIZE, **text()}


def qwen(kind: Any, **more: Any) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(2)
    network = d.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=4 * Z,
        out_channels=Z,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    ).eval()
    pipe = kind(
        scheduler=flow(),
        vae=make(d.AutoencoderKLQwenImage),
        text_encoder=None,
        tokenizer=None,
        transformer=network,
        **({"processor": None} if kind is d.QwenImageEditPipeline else {}),
    )
    embeds = {**text(), "prompt_embeds_mask": torch.ones(1, 6, dtype=torch.int64)}
    embeds["negative_prompt_embeds_mask"] = torch.ones(1, 6, dtype=torch.int64)
    return pipe, {**SIZE, **embeds, **more}


PIPELINES: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "wan": text_to_video,
    "wan_i2v": image_to_video,
    "wan_v2v": video_to_video,
    "wan_vace": control,
    "skyreels_v2": sky_reels,
    "qwen_image": lambda: qwen(d.QwenImagePipeline),
    "qwen_image_edit": lambda: qwen(d.QwenImageEditPipeline, image=picture()),
}
QUICK = ("wan", "qwen_image")


def result(pipe: Any, arguments: dict[str, Any]) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    output = pipe(**arguments, generator=torch.Generator().manual_seed(0))
    return np.asarray(output.frames if hasattr(output, "frames") else output.images)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PIPELINES]
)
def test_pipeline_accelerated_gives_the_same_frames(name: str, caplog: pytest.LogCaptureFixture) -> None:
    pipe, arguments = PIPELINES[name]()
    expected = result(pipe, arguments)
    handle = accelerate(pipe)
    found = result(pipe, arguments)
    assert expected.std() > 0.01
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert not [record for record in caplog.records if record.name == "wan_vae"]
    handle.restore()
    np.testing.assert_array_equal(result(pipe, arguments), expected)


def test_accelerated_pipeline_survives_offload_tiling_saving_and_from_pipe(tmp_path: Path) -> None:
    pipe, arguments = text_to_video()
    expected = result(pipe, arguments)
    accelerate(pipe)
    other = d.WanPipeline.from_pipe(pipe)
    assert other.vae is pipe.vae
    np.testing.assert_allclose(result(other, arguments), expected, rtol=0, atol=1e-5)
    pipe.vae.enable_tiling(16, 16, 8, 8)
    pipe.vae.enable_slicing()
    np.testing.assert_allclose(result(pipe, arguments), expected, rtol=0, atol=1e-5)
    pipe.enable_model_cpu_offload(device="cpu")
    np.testing.assert_allclose(result(pipe, arguments), expected, rtol=0, atol=1e-5)
    pipe.vae.save_pretrained(tmp_path)
    assert type(d.AutoencoderKLWan.from_pretrained(tmp_path)) is d.AutoencoderKLWan
