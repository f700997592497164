"""The nodes, on ComfyUI's V3 schema."""

from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, InputImpl, Types, io, ui

from wan_vae.config import preset_names, read_preset
from wan_vae.errors import UserError
from wan_vae.inference.budget import parse_bytes
from wan_vae.integrations.comfyui import (
    clip_facts,
    decode_images,
    encode_images,
    frame_rate,
    load_latent,
    save_latent,
    warn_of_alpha,
)

from .vae import FastVAE

_CATEGORY = "latent/Wan VAE"
_TRAINED = [name for name in preset_names() if {"hub", "file"} & read_preset(name).keys()]
_MEMORY_HELP = (
    "Memory for the network in addition to its weights, such as 4GiB; auto is four fifths of what is free. Where whole"
    " pictures take more, exact tiles do not: the result stays the same."
)
_FPS_HELP = "Frames a second; 0 is the rate of the encoded clip, or 16 where the latents say nothing of one."


def _memory_input() -> Any:
    return io.String.Input("memory", default="auto", tooltip=_MEMORY_HELP)


def _fps_input() -> Any:
    return io.Float.Input("fps", default=0.0, min=0.0, max=1000.0, step=0.01, tooltip=_FPS_HELP)


def _checked_memory(memory: str | None) -> bool | str:
    try:
        if memory not in (None, "auto"):  # None is the output of another node
            parse_bytes(memory, torch.device("cpu"))
    except UserError as error:
        return str(error)
    return True


class Accelerate(io.ComfyNode):
    """VAE -> VAE, on the same weights."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node."""
        return io.Schema(
            node_id="WanVAEAccelerate",
            display_name="Wan VAE: accelerate",
            category=_CATEGORY,
            description="The same VAE of Wan2.1, Wan2.2 or Qwen-Image, faster and in less memory."
            " Latents and pictures stay the same; tiled nodes get exact tiles instead of blended ones.",
            inputs=[io.Vae.Input("vae")],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, vae: Any) -> Any:
        """Return the accelerated VAE."""
        return io.NodeOutput(FastVAE.of(vae))


class Load(io.ComfyNode):
    """A checkpoint -> VAE."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node."""
        return io.Schema(
            node_id="WanVAELoad",
            display_name="Wan VAE: load",
            category=_CATEGORY,
            description="Load a VAE of Wan2.1, Wan2.2, Qwen-Image or LightVAE, or one that was trained with wan_vae:"
            " from models/vae, by name (fetched from the Hugging Face hub), or from a path.",
            inputs=[
                io.Combo.Input("checkpoint", options=[*folder_paths.get_filename_list("vae"), *_TRAINED]),
                io.Combo.Input(
                    "dtype",
                    options=["auto", "fp32", "bf16", "fp16"],
                    default="auto",
                    tooltip="What to compute in; auto is what ComfyUI chooses for its own VAEs.",
                ),
                io.String.Input(
                    "path",
                    default="",
                    optional=True,
                    tooltip="Instead of the checkpoint above: a file, a folder, or owner/name on the Hugging Face hub.",
                ),
            ],
            outputs=[io.Vae.Output()],
        )

    @classmethod
    def execute(cls, checkpoint: str, dtype: str, path: str = "") -> Any:
        """Return the VAE."""
        return io.NodeOutput(FastVAE.load(cls._source(checkpoint, path), dtype))

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None, dtype: str | None, path: str | None = "") -> Any:
        """Load a file again where it was changed; ComfyUI gives None for what another node computes."""
        if checkpoint is None or path is None:
            return ""
        source = Path(cls._source(checkpoint, path))
        return (source.stat().st_mtime_ns, source.stat().st_size) if source.is_file() else str(source)

    @staticmethod
    def _source(checkpoint: str, path: str) -> str | Path:
        if path.strip():
            return path.strip()
        full = folder_paths.get_full_path("vae", checkpoint)
        return checkpoint if full is None else Path(full)


class EncodeVideo(io.ComfyNode):
    """VIDEO or IMAGE -> LATENT."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node."""
        return io.Schema(
            node_id="WanVAEEncodeVideo",
            display_name="Wan VAE: encode video",
            category=_CATEGORY,
            description="Encode a clip of any size and length, a few frames at a time. The latents remember size,"
            " length, rate and audio, for 'Wan VAE: decode video'.",
            inputs=[
                io.MultiType.Input("video", [io.Video, io.Image], tooltip="A video, or images as frames."),
                io.Vae.Input("vae"),
                _memory_input(),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def validate_inputs(cls, memory: str | None) -> bool | str:
        """Refuse a budget that is none, before anything runs."""
        return _checked_memory(memory)

    @classmethod
    def execute(cls, video: Any, vae: Any, memory: str) -> Any:
        """Return the latents."""
        images, fps, audio, alpha = video, None, None, None
        if hasattr(video, "get_components"):
            components = video.get_components()
            images, fps, audio = components.images, components.frame_rate, components.audio
            alpha = getattr(components, "alpha", None)
        network = FastVAE.of(vae).loaded("encode", images.shape[1], images.shape[2], memory)
        if alpha is not None and network.config.image_channels == 4:
            images = torch.cat([images, alpha.reshape(*images.shape[:3], 1).to(images)], dim=3)
        else:
            warn_of_alpha(alpha)
        progress = comfy.utils.ProgressBar(images.shape[0]).update_absolute
        latent = encode_images(network, images, fps=fps, audio=audio, memory=memory, progress=progress)
        return io.NodeOutput(latent)


class DecodeVideo(io.ComfyNode):
    """LATENT -> VIDEO and IMAGE."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node."""
        return io.Schema(
            node_id="WanVAEDecodeVideo",
            display_name="Wan VAE: decode video",
            category=_CATEGORY,
            description="Decode latents, a few frames at a time. Latents of 'Wan VAE: encode video' become a video of"
            " the clip's size, length and rate, with its audio, whatever a sampler did to them. With alpha, the images"
            " have it, but not the video.",
            inputs=[
                io.Latent.Input("samples"),
                io.Vae.Input("vae"),
                _memory_input(),
                _fps_input(),
                io.Audio.Input(
                    "audio", optional=True, tooltip="Audio of the video instead of that of the encoded clip."
                ),
            ],
            outputs=[io.Video.Output(), io.Image.Output()],
        )

    @classmethod
    def validate_inputs(cls, memory: str | None) -> bool | str:
        """Refuse a budget that is none, before anything runs."""
        return _checked_memory(memory)

    @classmethod
    def execute(cls, samples: Any, vae: Any, memory: str, fps: float, audio: Any = None) -> Any:
        """Return the clip, as a video and as images."""
        fast = FastVAE.of(vae)
        facts = clip_facts(fast.network, samples)
        network = fast.loaded("decode", facts.height, facts.width, memory)
        progress = comfy.utils.ProgressBar(facts.frames).update_absolute
        images = decode_images(network, samples, memory=memory, progress=progress)
        components = Types.VideoComponents(
            images=images[..., :3],
            audio=facts.audio if audio is None else audio,
            frame_rate=frame_rate(fps, facts),
        )
        return io.NodeOutput(InputImpl.VideoFromComponents(components), images)


class SaveLatents(io.ComfyNode):
    """LATENT -> latents files."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node."""
        return io.Schema(
            node_id="WanVAESaveLatents",
            display_name="Wan VAE: save latents",
            category=_CATEGORY,
            description="Write latents to files in the output folder that `wan-vae decode` and training programs read:"
            " normalized, with the VAE's architecture and digest.",
            inputs=[
                io.Latent.Input("samples"),
                io.Vae.Input("vae"),
                io.String.Input("filename_prefix", default="latents/wan_vae"),
                _fps_input(),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, samples: Any, vae: Any, filename_prefix: str, fps: float) -> Any:
        """Write one file for each clip of the batch."""
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            filename_prefix, folder_paths.get_output_directory()
        )
        names = [f"{name}_{counter + index:05}_.safetensors" for index in range(len(samples["samples"]))]
        save_latent(FastVAE.of(vae).network, samples, [Path(folder) / file for file in names], fps=fps)
        results = [ui.SavedResult(file, subfolder, io.FolderType.output) for file in names]
        return io.NodeOutput(ui={"latents": results})


class LoadLatents(io.ComfyNode):
    """A latents file -> LATENT."""

    @classmethod
    def define_schema(cls) -> Any:
        """Describe the node."""
        folder = Path(folder_paths.get_input_directory())
        return io.Schema(
            node_id="WanVAELoadLatents",
            display_name="Wan VAE: load latents",
            category=_CATEGORY,
            description="Read a file of `wan-vae encode` or 'Wan VAE: save latents' from the input folder.",
            inputs=[
                io.Combo.Input(
                    "file", options=sorted(path.name for path in folder.glob("*.safetensors") if path.is_file())
                )
            ],
            outputs=[io.Latent.Output(), io.Float.Output(display_name="fps")],
        )

    @classmethod
    def validate_inputs(cls, file: str | None) -> bool | str:
        """Refuse a file that is not there, before anything runs."""
        there = file is None or folder_paths.exists_annotated_filepath(file)
        return there or f"{file} is not in the input folder."

    @classmethod
    def fingerprint_inputs(cls, file: str | None) -> Any:
        """Read a file again where it was changed; ComfyUI gives None for what another node computes."""
        if file is None:
            return ""
        return Path(folder_paths.get_annotated_filepath(file)).stat().st_mtime_ns

    @classmethod
    def execute(cls, file: str) -> Any:
        """Return the latents and the rate of their clip."""
        latent, fps = load_latent(Path(folder_paths.get_annotated_filepath(file)))
        return io.NodeOutput(latent, float(fps))


class _Extension(ComfyExtension):
    async def get_node_list(self) -> list[Any]:
        return [Accelerate, Load, EncodeVideo, DecodeVideo, SaveLatents, LoadLatents]


async def comfy_entrypoint() -> ComfyExtension:
    """Return the nodes, as ComfyUI asks for them."""
    return _Extension()
