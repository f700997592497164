import logging
import math
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import random_vae, random_video, small_config
from tests.training.runs import (
    HELD_OUT,
    Material,
    assert_same,
    read_state,
    recipe_values,
    small_recipe,
    stage_values,
    train,
    write_preset,
)
from wan_vae import WanVAE
from wan_vae.errors import UserError
from wan_vae.inference.budget import format_bytes
from wan_vae.training import WEIGHTS_NAME, Recipe, Trainer
from wan_vae.training.data import TrainingBatches, center_crop, store_sources
from wan_vae.training.trainer import TrainStep, load_batches
from wan_vae.training.validation import validate

pytestmark = pytest.mark.usefixtures("own_accelerate")

RECONSTRUCTING = stage_values(name="reconstructing", steps=2, batch=1, warmup=1)


def adversarial(*, lpips: float = 0.1, **changes: Any) -> dict[str, Any]:
    loss = {"l1": 1.0, "kl": 1e-4, "lpips": lpips, "adversarial": 0.1, "adversarial_warmup": 1, "lpips_frames": 2}
    return stage_values(name="adversarial", batch=1, crop=32, loss=loss, **changes)


def full_recipe(material: Material, tmp_path: Path, *, block: str = "wan", **changes: Any) -> Recipe:
    preset = write_preset(tmp_path / f"{block}.yaml", block=block, dropout=0.2)
    fixed = {"model": {"preset": str(preset)}, "lpips": {"backbone": str(material.backbone)}}
    return small_recipe(material, RECONSTRUCTING, adversarial(), **(fixed | changes))


def weights_of(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(folder / WEIGHTS_NAME, "pt") as file:
        return load_file(folder / WEIGHTS_NAME), file.metadata()


@pytest.mark.parametrize(
    ("precision", "block", "parts", "breaks"),
    [("bf16", "wan", 1, (1, 5, None)), ("no", "resnet", 2, (3, None))],
)
def test_trainer_resumed_equals_an_uninterrupted_run_to_the_bit(
    precision: str, block: str, parts: int, breaks: tuple[int | None, ...], material: Material, tmp_path: Path
) -> None:
    recipe = full_recipe(
        material, tmp_path, block=block, mixed_precision=precision, gradient_accumulation=parts, checkpoint_every=2
    )
    straight = train(recipe, tmp_path / "straight")
    parted = train(recipe, tmp_path / "parted", *breaks)
    assert straight["step"] == 6
    assert straight.keys() == {
        "recipe", "sources", "step", "at_start", "config", "weights", "average", "optimizer", "adversary",
        "metrics", "batches per step", "mixed_precision"
    }  # fmt: skip
    assert_same(parted, straight)
    assert weights_of(tmp_path / "parted")[1] == weights_of(tmp_path / "straight")[1]
    assert_same(weights_of(tmp_path / "parted")[0], weights_of(tmp_path / "straight")[0])


def test_trainer_changes_all_trained_parts_and_depends_on_the_seed(material: Material, tmp_path: Path) -> None:
    stages = (RECONSTRUCTING, adversarial(lpips=0, steps=1))
    begun = train(small_recipe(material, *stages), tmp_path / "a", 1)
    ended = train(small_recipe(material, *stages), tmp_path / "a")
    for weights, before in (
        (ended["weights"], begun["weights"]),
        (ended["average"], begun["average"]),
        (ended["adversary"]["weights"], begun["adversary"]["weights"]),
    ):
        changed = {name.split(".")[0] for name, weight in weights.items() if not torch.equal(weight, before[name])}
        assert changed == {name.split(".")[0] for name in weights}
    other = train(small_recipe(material, *stages, seed=1), tmp_path / "b", 1)
    with pytest.raises(AssertionError):
        assert_same(other["weights"], begun["weights"])


def test_trainer_intervals_do_not_change_the_weights(material: Material, tmp_path: Path) -> None:
    seldom = train(small_recipe(material), tmp_path / "seldom")
    often = train(
        small_recipe(material, validate_every=1, log_every=1, checkpoint_every=1), tmp_path / "often", 2, None
    )
    assert_same(often | {"recipe": None}, seldom | {"recipe": None})


def test_trainer_workers_do_not_change_the_state(material: Material, tmp_path: Path) -> None:
    values = recipe_values(material)
    alone = train(Recipe.model_validate(values), tmp_path / "alone", 2)
    values["data"]["workers"] = 1
    helped = train(Recipe.model_validate(values), tmp_path / "helped", 1, 2)
    assert_same(helped | {"recipe": None}, alone | {"recipe": None})


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def one_thread() -> Iterator[None]:
    """Sum in the order of a single-threaded process: AdamW amplifies rounding errors of gradients near zero."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_trainer_two_processes_equal_two_accumulated_batches(material: Material, tmp_path: Path) -> None:
    values = recipe_values(
        material,
        RECONSTRUCTING | {"steps": 1},
        adversarial(lpips=0, steps=2),
    )
    recipe = Recipe.model_validate(values | {"gradient_accumulation": 2})
    with one_thread():
        alone = train(recipe, tmp_path / "alone")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    command = [sys.executable, "-m", "wan_vae", "train", tmp_path / "recipe.yaml", "--out", tmp_path / "pair"]
    # As set by `torchrun` and accelerate's launcher.
    common = os.environ | {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [str(word) for word in command],
            env=common | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        printed = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], printed
    assert [out.count("steps") for out, _ in printed] == [1, 0]
    pair = read_state(tmp_path / "pair")
    for part in ("weights", "average", "optimizer", "adversary"):
        assert_same(pair[part], alone[part], relative=1e-3, absolute=2e-5)
    assert_same(weights_of(tmp_path / "pair")[0], weights_of(tmp_path / "alone")[0], relative=1e-3, absolute=2e-5)
    # The tolerances are smaller than the effect of a step.
    other = train(Recipe.model_validate(values), tmp_path / "single")
    with pytest.raises(AssertionError):
        assert_same(other["weights"], alone["weights"], relative=1e-3, absolute=2e-5)


@pytest.mark.parametrize("block", ["wan", "resnet"])
def test_trainer_trainable_decoder_keeps_the_encoder_to_the_bit(block: str, material: Material, tmp_path: Path) -> None:
    checkpoint = tmp_path / "vae.safetensors"
    random_vae(small_config(block=block, dropout=0.2), torch.float32).save(checkpoint)
    stored = checkpoint.read_bytes()
    model = {"checkpoint": str(checkpoint), "trainable": "decoder"}
    train(small_recipe(material, model=model), tmp_path / "run", 2, None)
    assert checkpoint.read_bytes() == stored
    before, after = (WanVAE.from_pretrained(path) for path in (checkpoint, tmp_path / "run" / WEIGHTS_NAME))
    assert after.config == before.config
    video = random_video(5, 16, 24, dtype=torch.float32)
    latents = before.encode(video)
    assert torch.equal(after.encode(video), latents)
    for name, value in after.state_dict().items():
        if not name.startswith(("decoder", "post_quant_conv")):
            assert torch.equal(value, before.state_dict()[name]), name
        elif name.endswith(("weight", "gamma", "running_mean")):
            assert not torch.equal(value, before.state_dict()[name]), name
    assert not torch.allclose(after.decode(latents), before.decode(latents), atol=1e-4)


def test_trainer_does_not_change_or_reread_its_checkpoint(material: Material, tmp_path: Path) -> None:
    checkpoint = tmp_path / "vae.safetensors"
    random_vae(small_config(), torch.float32).save(checkpoint)
    stored = checkpoint.read_bytes()
    train(small_recipe(material, model={"checkpoint": str(checkpoint)}), tmp_path / "run", 2)
    assert checkpoint.read_bytes() == stored
    checkpoint.unlink()
    train(small_recipe(material, model={"checkpoint": str(checkpoint)}), tmp_path / "run")


def test_trainer_nonfinite_loss_raises_and_saves_the_batch(material: Material, tmp_path: Path) -> None:
    recipe = small_recipe(material, stage_values(learning_rate=1e30), checkpoint_every=1)
    message = r"step (\d): the loss or its gradient is not a number \(.* is (nan|inf)"
    with pytest.raises(UserError, match=message) as error:
        train(recipe, tmp_path / "run")
    message = str(error.value)
    step = int(message.split(":")[0].removeprefix("step "))
    assert step > 0
    assert "\n" not in message
    batch = tmp_path / "run" / f"bad_batch_step_{step}.safetensors"
    assert str(batch) in message
    with safe_open(batch, "pt") as file:
        video, origins = file.get_tensor("video"), file.metadata()["origins"].split("\n")
    assert (video.shape[:2], video.shape[3:]) == ((2, 3), (16, 16))
    assert len(origins) == 2
    assert all(origin in message for origin in origins)
    # The state is that after the last finite step.
    assert read_state(tmp_path / "run")["step"] == step
    assert not (tmp_path / "run" / WEIGHTS_NAME).exists()


def test_trainer_clips_the_gradients_of_the_model(material: Material, tmp_path: Path) -> None:
    lengths = {}
    for clip in (1e-3, 1e3):
        run = Trainer(small_recipe(material, gradient_clip=clip, betas=[0.5, 0.95]), tmp_path / str(clip))
        run.run(1)
        momenta = [state["exp_avg"] for state in run._optimizer.state_dict()["state"].values()]
        lengths[clip] = 2 * torch.cat([momentum.flatten() for momentum in momenta]).norm().item()
    assert lengths[1e-3] == pytest.approx(1e-3, rel=1e-2)
    assert lengths[1e3] > 0.01


def test_trainer_nonfinite_discriminator_raises_and_saves_the_batch(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Trainer(small_recipe(material, adversarial(lpips=0)), tmp_path)
    assert run._discriminator is not None
    torch.nn.init.constant_(run._discriminator.model.score.bias, float("nan"))
    # Each of several processes saves its own batch.
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(Accelerator, "process_index", 1)
    with pytest.raises(UserError, match=r"step 0: .*\(discriminator is nan\).*bad_batch_step_0_process_1\.safetensors"):
        run.run()
    assert (tmp_path / "bad_batch_step_0_process_1.safetensors").exists()


def test_trainer_nonfinite_loss_is_told_though_the_batch_cannot_be_written(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(path: Path, batch: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wan_vae.training.trainer.save_batch", full_disk)
    recipe = small_recipe(material, stage_values(learning_rate=1e30), checkpoint_every=1)
    with pytest.raises(UserError, match=r"not a number .* could not be written to .*\(No space left on device\)"):
        train(recipe, tmp_path / "run")


def test_trainer_after_a_nonfinite_loss_goes_on_with_a_lower_rate(material: Material, tmp_path: Path) -> None:
    def recipe(rate: float) -> Recipe:
        return small_recipe(material, stage_values(learning_rate=rate), checkpoint_every=1)

    with pytest.raises(UserError, match="A lower learning_rate or gradient_clip in the recipe may help"):
        train(recipe(1e30), tmp_path)
    done = read_state(tmp_path)["step"]
    assert 0 < done < recipe(1e-3).steps
    # What was computed until then may be spoiled, so this checks that the run is taken up, not how well it ends.
    assert Trainer(recipe(1e-3), tmp_path).step == done


@pytest.mark.parametrize("trainable", ["all", "decoder"])
@pytest.mark.parametrize("block", ["wan", "resnet"])
def test_trainer_gradient_checkpointing_gives_the_same_weights(
    trainable: str, block: str, material: Material, tmp_path: Path
) -> None:
    preset = str(write_preset(tmp_path / "preset.yaml", block=block, dropout=0.2))
    states = []
    for checkpointing in (False, True):
        model = {"preset": preset, "trainable": trainable, "gradient_checkpointing": checkpointing}
        states.append(train(small_recipe(material, model=model), tmp_path / str(checkpointing), 3))
    assert_same(states[1]["weights"], states[0]["weights"], relative=1e-4, absolute=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trainer_compile_with_gradient_checkpointing_scopes_the_dynamo_setting(
    checkpointing: bool, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, seen = TrainStep.forward, []

    def recorded(*arguments: Any) -> Any:
        seen.append(torch._dynamo.config.optimize_ddp)
        return forward(*arguments)

    monkeypatch.setattr(TrainStep, "compile", lambda module: None)  # takes a minute
    monkeypatch.setattr(TrainStep, "forward", recorded)
    before = torch._dynamo.config.optimize_ddp
    assert before is True
    model = {"preset": str(material.preset), "compile": True, "gradient_checkpointing": checkpointing}
    run = Trainer(small_recipe(material, model=model), tmp_path)
    run.run(1)
    assert seen == [not checkpointing]
    assert torch._dynamo.config.optimize_ddp is before


def test_trainer_writes_averaged_weights_with_latent_statistics(material: Material, tmp_path: Path) -> None:
    recipe = small_recipe(material)
    run = Trainer(recipe, tmp_path)
    figures = run.run()
    assert (run.step, run.stopped) == (4, False)
    vae = WanVAE.from_pretrained(tmp_path / WEIGHTS_NAME)
    assert_same(dict(vae.state_dict()), dict(read_state(tmp_path)["average"]))
    sources = store_sources(recipe.data, tmp_path / "frames")
    means = []
    for _, frames in center_crop(sources.videos, 17, vae.config):
        final = vae.encode(torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1)
        means.append(torch.stack([final, final.square()]).mean(dim=(1, 3, 4, 5)))
    mean, square = torch.stack(means).mean(dim=0)
    torch.testing.assert_close(mean, torch.zeros(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(square, torch.ones(3), rtol=0, atol=1e-3)
    assert figures.keys() == {"psnr", "ssim"}
    assert all(math.isfinite(value) for value in figures.values())
    again = Trainer(recipe, tmp_path)
    again.run()
    assert_same(dict(WanVAE.from_pretrained(tmp_path / WEIGHTS_NAME).state_dict()), dict(vae.state_dict()))


def test_trainer_from_a_checkpoint_returns_metrics_before_and_after(material: Material, tmp_path: Path) -> None:
    checkpoint = tmp_path / "vae.safetensors"
    random_vae(small_config(), torch.float32).save(checkpoint)
    recipe = small_recipe(material, model={"checkpoint": str(checkpoint)})
    sources = store_sources(recipe.data, tmp_path / "run" / "frames")
    vae = WanVAE.from_pretrained(checkpoint)
    before = validate(vae, center_crop(sources.held_out, recipe.validation_frames, vae.config), None).scalars
    for last in (1, 2):  # the second resumes the first
        figures = Trainer(recipe, tmp_path / "run").run(last)
        assert figures.keys() == {"psnr_at_start", "ssim_at_start", "psnr", "ssim"}
        assert {name: figures[f"{name}_at_start"] for name in ("psnr", "ssim")} == pytest.approx(before)
        assert figures["psnr"] != figures["psnr_at_start"]
    log = EventAccumulator(str(tmp_path / "run" / "log")).Reload()
    assert [event.step for event in log.Scalars("validation/psnr")] == [0, 1, 2]


def test_folder_of_a_run_is_a_checkpoint_of_its_weights(material: Material, tmp_path: Path) -> None:
    Trainer(small_recipe(material), tmp_path).run(1)
    assert (tmp_path / "state.pt").exists()
    assert WanVAE.from_pretrained(tmp_path).digest() == WanVAE.from_pretrained(tmp_path / WEIGHTS_NAME).digest()


def test_trainer_warns_only_if_nothing_is_held_out(
    material: Material, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Trainer(small_recipe(material), tmp_path / "held_out").run(1)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    Trainer(
        small_recipe(material, data={"videos": str(material.videos), "video_short_side": 32}), tmp_path / "all"
    ).run(1)
    assert "held_out in the recipe's section data" in caplog.text


def test_trainer_logs_frame_store_size_and_held_out_psnr(
    material: Material, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    random_vae(small_config(), torch.float32).save(tmp_path / "vae.safetensors")
    recipe = small_recipe(material, model={"checkpoint": str(tmp_path / "vae.safetensors")})
    with caplog.at_level(logging.INFO, "wan_vae"):
        metrics = Trainer(recipe, tmp_path / "run").run(2)
    size = sum(path.stat().st_size for path in (tmp_path / "run" / "frames").iterdir())
    assert [record.getMessage() for record in caplog.records if record.name == "wan_vae"] == [
        f"the frame store {tmp_path / 'run' / 'frames'} takes {format_bytes(size)}: 3 clips, 2 photos, 1 held out.",
        "stage clips leaves out 1 of 3 clips, which have fewer frames than its longest, the first short.mkv.",
        f"step 0: held-out PSNR {metrics['psnr_at_start']:.2f} dB.",
        f"step 2: held-out PSNR {metrics['psnr']:.2f} dB.",
    ]


def test_trainer_without_held_out_clips_returns_the_losses_of_the_last_step(material: Material, tmp_path: Path) -> None:
    metrics = Trainer(
        small_recipe(material, data={"videos": str(material.videos), "video_short_side": 32}, log_every=1000), tmp_path
    ).run(2)
    assert {"train_l1", "train_kl", "train_total"} <= metrics.keys()
    log = EventAccumulator(str(tmp_path / "log")).Reload()
    assert [event.step for event in log.Scalars("train/l1")] == [2]


def test_trainer_with_photos_only_returns_losses(material: Material, tmp_path: Path) -> None:
    data = {"photos": str(material.photos), "photo_short_side": 48}
    run = Trainer(small_recipe(material, data=data, log_every=1), tmp_path)
    figures = run.run(2)
    assert {"train_l1", "train_total", "train_gradient_norm", "train_learning_rate"} <= figures.keys()
    vae = WanVAE.from_pretrained(tmp_path / WEIGHTS_NAME)
    assert vae.config.latent_std != small_config().latent_std


def test_trainer_writes_losses_and_validations_to_tensorboard(material: Material, tmp_path: Path) -> None:
    recipe = full_recipe(material, tmp_path, log_every=1, validate_every=2)
    train(recipe, tmp_path, 3, 6)
    log = EventAccumulator(str(tmp_path / "log"), size_guidance={"scalars": 0, "images": 0}).Reload()
    steps = {name: [event.step for event in log.Scalars(name)] for name in log.Tags()["scalars"]}
    assert steps["train/l1"] == steps["train/kl"] == steps["train/total"] == [1, 2, 3, 4, 5, 6]
    assert steps["train/lpips"] == steps["train/discriminator"] == [3, 4, 5, 6]
    assert steps["train/adversarial"] == [4, 5, 6]  # after its warm-up
    assert steps["validation/psnr"] == steps["validation/lpips"] == [2, 3, 4, 6]
    assert [event.step for event in log.Images(f"validation/{HELD_OUT}")] == [2, 3, 4, 6]
    rates = [event.value for event in log.Scalars("train/learning_rate")]
    assert rates[0] == rates[1] == pytest.approx(0.002)


def test_trainer_reduces_the_loss(material: Material, tmp_path: Path) -> None:
    preset = write_preset(tmp_path / "preset.yaml", encoder_width=8, decoder_width=8, latent_channels=4)
    data = {"photos": str(material.photos), "photo_short_side": 48}
    stage = stage_values(steps=40, batch=4, lengths={1: 1.0}, learning_rate=0.005, warmup=5)
    recipe = small_recipe(material, stage, data=data, log_every=1, model={"preset": str(preset)})
    first = Trainer(recipe, tmp_path / "run").run(1)
    last = Trainer(recipe, tmp_path / "run").run()
    assert last["train_l1"] < 0.85 * first["train_l1"]


def test_trainer_request_stop_ends_after_the_step(material: Material, tmp_path: Path) -> None:
    run = Trainer(small_recipe(material), tmp_path / "run")
    run.request_stop()
    run.run()
    assert (run.step, run.stopped) == (1, True)
    assert not (tmp_path / "run" / WEIGHTS_NAME).exists()
    assert_same(train(small_recipe(material), tmp_path / "run"), train(small_recipe(material), tmp_path / "straight"))


def test_trainer_stopped_at_its_last_step_returns_its_metrics_on_resume(
    material: Material, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = small_recipe(material, stage_values(steps=1))
    run = Trainer(recipe, tmp_path / "run")
    run.request_stop()
    stopped = run.run()
    assert run.stopped
    assert "psnr" in stopped
    assert Trainer(recipe, tmp_path / "run").run() == stopped
    assert (tmp_path / "run" / WEIGHTS_NAME).exists()
    assert not any("already" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2", "batches per step 1, .* makes 2"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", "mixed_precision no, .* makes bf16"),
    ],
)
def test_trainer_resumed_by_another_launch_raises(
    name: str, value: str, message: str, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small_recipe(material, mixed_precision=None)
    train(recipe, tmp_path, 1)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        Trainer(recipe, tmp_path)


def test_trainer_folder_of_another_recipe_raises(material: Material, tmp_path: Path) -> None:
    train(small_recipe(material), tmp_path, 1)
    with pytest.raises(UserError, match="seed = 0, not 1"):
        Trainer(small_recipe(material, seed=1), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": [stage_values(crop=15)]}, "the crop 15"),
        ({"stages": [stage_values(lengths={4: 1.0})]}, "4 frames are not"),
        ({"lpips": {"backbone": "nowhere.safetensors"}}, r"nowhere\.safetensors does not exist"),
        ({"data": {"videos": "nowhere"}}, "nowhere is neither a file nor a folder"),
    ],
)
def test_trainer_invalid_recipe_raises_and_writes_no_state(
    changes: dict[str, Any], message: str, material: Material, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        Trainer(small_recipe(material, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "state.pt").exists()
    if "lpips" in changes:
        assert not (tmp_path / "run" / "frames").exists()  # nothing was decoded before


def test_trainer_fp16_raises(material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UserError, match=r"set mixed_precision to fp16, .*bf16 or no\."):
        Trainer(small_recipe(material, mixed_precision=None), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_trainer_weights_split_over_processes_raises(
    kind: str, material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType(kind))
    with pytest.raises(UserError, match=rf"set distributed_type to {kind}, .*--multi_gpu"):
        Trainer(small_recipe(material), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_trainer_too_short_clips_raise_before_the_first_step(material: Material, tmp_path: Path) -> None:
    stages = (stage_values(), stage_values(name="last", lengths={17: 1.0}))
    recipe = small_recipe(material, *stages, data={"videos": str(material.videos), "workers": 1})
    with pytest.raises(UserError, match="no training clip has 17 frames, which stage last asks for") as error:
        train(recipe, tmp_path)
    assert "\n" not in str(error.value)


def test_load_batches_workers_give_the_same_batches(material: Material, tmp_path: Path) -> None:
    recipe = small_recipe(material)
    batches = TrainingBatches(store_sources(recipe.data, tmp_path), recipe, 1)
    for workers in (0, 1):
        found = list(load_batches(batches, range(1, 4), workers))
        assert [number for number, _ in found] == [1, 2, 3]
        for number, batch in found:
            assert torch.equal(batch.video, batches[number].video)
            assert batch.origins == batches[number].origins
