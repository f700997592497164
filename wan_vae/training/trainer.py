"""The training loop. Each step is seeded by its number, so that resuming a run changes no bit of its result."""

import logging
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from wan_vae.arguments import check_path
from wan_vae.errors import UserError, reason
from wan_vae.evaluation.lpips import LPIPS
from wan_vae.inference.budget import format_bytes
from wan_vae.io.atomic_output import written_beside
from wan_vae.posterior import Posterior
from wan_vae.training.checkpoint import NonFiniteError, check_finite, load_state, save_batch, save_state
from wan_vae.training.data import (
    TrainingBatch,
    TrainingBatches,
    center_crop,
    check_sources,
    clips_too_short,
    store_sources,
)
from wan_vae.training.initialization import fit_linear_skip, initial_vae, set_training_mode
from wan_vae.training.losses import DiscriminatorLoss, training_losses
from wan_vae.training.optim import EMA, learning_rate, make_optimizer
from wan_vae.training.recipe import Recipe
from wan_vae.training.validation import validate, with_latent_statistics
from wan_vae.vae import WanVAE

WEIGHTS_NAME = "vae.safetensors"
_BATCHES_FOR_LINEAR_SKIP = 256
# In which no process holds the whole weights, which the moving average and the run's state need.
_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
_LOGGER = logging.getLogger("wan_vae")

Progress: TypeAlias = Callable[[int, int, Mapping[str, float]], object]


def load_batches(batches: TrainingBatches, numbers: range, workers: int) -> Iterator[tuple[int, TrainingBatch]]:
    """Yield the batches of the given numbers with their numbers, prepared by worker processes if there are any."""
    loader = DataLoader(batches, batch_size=None, sampler=numbers, num_workers=workers, worker_init_fn=_ignore_signals)
    return zip(numbers, loader, strict=True)


def _ignore_signals(worker: int) -> None:
    # Terminals and job schedulers signal all processes of a run, but the trainer needs its workers until the current
    # step is done. Workers end when the trainer does, even if it is killed.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class TrainStep(nn.Module):
    """The forward pass of a training step, as one module for `torch.compile` and DistributedDataParallel."""

    def __init__(self, vae: WanVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, video: Tensor) -> tuple[Tensor, Posterior]:
        """Reconstruct (B, 3, T, H, W) in [-1, 1], not clamped, from a sample of the posterior, and return both."""
        return self.vae(video, sample=True)


class Trainer:
    """A training run in a folder, which holds its state, TensorBoard log, frame store and, at the end, its weights.

    A missing folder is created; one that already holds a run of the same recipe is resumed.

    Args:
        recipe: From `load_recipe`.
        folder: The run's folder.

    Attributes:
        step: Number of optimizer steps done.
        stopped: Whether `run` ended early because of `request_stop`.
        is_main: Whether this process writes files and prints, in a run of several processes.

    Raises:
        UserError: The data cannot be read, the recipe does not fit the model, or the folder holds another run.
    """

    def __init__(self, recipe: Recipe, folder: str | Path) -> None:
        folder = check_path("folder", folder)
        self.stopped = False
        self._recipe = recipe
        self._folder = folder
        self._accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision,
            gradient_accumulation_steps=recipe.gradient_accumulation,
            kwargs_handlers=[
                # A frozen encoder has no gradients, nor have temporal convolutions in batches of single frames.
                DistributedDataParallelKwargs(find_unused_parameters=True),
                # Other processes wait while the main process decodes sources and validates.
                InitProcessGroupKwargs(timeout=timedelta(days=1)),
            ],
        )
        if self._accelerator.mixed_precision not in ("no", "bf16"):  # set by accelerate's launcher
            raise UserError(
                f"accelerate's launcher set mixed_precision to {self._accelerator.mixed_precision}, in which gradients"
                " would have to be scaled; set it to bf16 or no."
            )
        if self._accelerator.distributed_type in _SHARDED:
            raise UserError(
                f"accelerate's launcher set distributed_type to {self._accelerator.distributed_type.value}, which"
                " splits the weights; start it with --multi_gpu, by which every process holds them."
            )
        self.is_main: bool = self._accelerator.is_main_process
        folder.mkdir(parents=True, exist_ok=True)
        state = load_state(folder, recipe)
        saved = state or {}
        self.step = int(saved.get("step", 0))
        self._at_start: dict[str, float] = saved.get("at_start", {})
        self._metrics: dict[str, float] = saved.get("metrics", {})  # the last ones
        device = self._accelerator.device

        for name, now in self._launched().items():
            if saved.get(name, now) != now:
                raise UserError(
                    f"{folder} holds a run with {name} {saved[name]}, which accelerate's launcher now makes {now};"
                    " start it as before, or name another --out."
                )
        torch.manual_seed(recipe.seed)
        self._vae = initial_vae(recipe, state, device)
        # Before sources are decoded, which can take hours.
        self._lpips = LPIPS(recipe.lpips.network, recipe.lpips.backbone).to(device) if recipe.lpips else None
        with self._accelerator.main_process_first():
            self._sources = store_sources(recipe.data, folder / "frames")
        check_sources(self._sources, recipe, self._vae.config)
        if state is None and recipe.model.preset is not None and self._vae.config.linear_skip:
            batches = TrainingBatches(self._sources, recipe, 1)
            count = min(len(batches), _BATCHES_FOR_LINEAR_SKIP)
            numbers = np.linspace(0, len(batches) - 1, num=count, dtype=int)
            fit_linear_skip(self._vae, (batches[int(number)].video for number in numbers))
        self._ema = EMA(self._vae, recipe.ema_decay)
        optimizer = make_optimizer(self._vae, recipe.optimizer, recipe.betas, recipe.weight_decay)
        train_step = TrainStep(self._vae)
        if recipe.model.compile:
            train_step.compile()
        self._train_step, self._optimizer = self._accelerator.prepare(train_step, optimizer)
        adversarial = any(stage.loss.adversarial for stage in recipe.stages)
        self._discriminator = DiscriminatorLoss(self._accelerator, recipe.gradient_clip) if adversarial else None
        parts = {
            "weights": self._vae,
            "average": self._ema.model,
            "optimizer": self._optimizer,
            "adversary": self._discriminator,
        }
        self._parts = {name: part for name, part in parts.items() if part is not None}
        if state is not None and state["sources"] != self._sources.names():
            raise UserError(f"{folder} holds a run on other clips and photos; name another --out.")
        for name, part in self._parts.items():
            if name in saved:  # missing if only stages that were added or changed later need it
                part.load_state_dict(saved[name])

    def run(self, max_steps: int | None = None, progress: Progress | None = None) -> dict[str, float]:
        """Train up to step `max_steps`, or to the end of the recipe, and write the weights.

        Args:
            max_steps: The last step, counted from the beginning of the run; None for that of the recipe.
            progress: Called in the main process before the first step and after every step with the steps done, those
                to be done in total, and the last losses that were logged.

        Returns:
            The metrics of the last validation, or the last losses as `train_l1` and so on if nothing is held out. If
            the recipe starts from a checkpoint, also the metrics before training, as `psnr_at_start` and so on.

        Raises:
            UserError: A loss or gradient was infinite or NaN; its batch was written to the folder.
        """
        last = self._recipe.steps if max_steps is None else min(max_steps, self._recipe.steps)
        if self.is_main:
            self._log_start(last)
        tensorboard = SummaryWriter(str(self._folder / "log"), purge_step=self.step + 1) if self.is_main else None
        metrics = dict(self._metrics)
        report = progress if progress is not None and self.is_main else _no_progress
        with tensorboard or nullcontext() as log:
            if self.step == 0 and self._recipe.model.checkpoint is not None:
                self._at_start = {f"{name}_at_start": value for name, value in self._validate(log).items()}
            report(self.step, last, metrics)
            for number, batch in self._batches(last):
                try:
                    losses = self._train(number, batch)
                except NonFiniteError as error:
                    raise self._nonfinite_error(batch, error) from error
                if not self._accelerator.sync_gradients:
                    continue
                self._ema.update(self._vae, self.step)
                self.step += 1
                if self.step % self._recipe.log_every == 0 or self.step == last:
                    values = {name: loss.item() for name, loss in losses.items()}
                    _add_scalars(log, "train", values, self.step)
                    metrics = {f"train_{name}": value for name, value in values.items()}
                report(self.step, last, metrics)
                if self.step % self._recipe.validate_every == 0 or self.step == last:
                    metrics = self._validate(log) or metrics
                self._metrics = metrics
                if self._accelerator.check_trigger():  # in any of the processes
                    self.stopped = True
                    break
                if self.step % self._recipe.checkpoint_every == 0 and self.step < last:
                    self._save()
        self._save()
        if self.is_main and not self.stopped:
            self._write_weights()
        return {**self._at_start, **metrics}

    def request_stop(self) -> None:
        """Let `run` end after the current step and save the run's state; safe in a signal handler."""
        self._accelerator.set_trigger()

    def _log_start(self, last: int) -> None:
        sources = self._sources
        _LOGGER.info(
            f"the frame store {self._folder / 'frames'} takes {format_bytes(sources.stored_bytes())}:"
            f" {len(sources.videos)} clips, {len(sources.photos)} photos, {len(sources.held_out)} held out."
        )
        for stage in self._recipe.stages:
            if short := clips_too_short(sources, stage):
                _LOGGER.info(
                    f"stage {stage.name} leaves out {len(short)} of {len(sources.videos)} clips, which have fewer"
                    f" frames than its longest, the first {short[0].name}."
                )
        if self.step >= last and (self._folder / WEIGHTS_NAME).exists():
            _LOGGER.warning(
                f"{self._folder} holds a run that has done {self.step} steps already; name another --out for a new one."
            )
        if not sources.held_out:
            _LOGGER.warning(
                "nothing is held out, so the losses on what is trained on are all that is measured; list file names as"
                " held_out in the recipe's section data to see how well clips come back that training never sees."
            )

    def _batches(self, last: int) -> Iterator[tuple[int, TrainingBatch]]:
        processes, per_step = self._accelerator.num_processes, self._batches_per_step()
        mine = range(self.step * per_step + self._accelerator.process_index, last * per_step, processes)
        return load_batches(TrainingBatches(self._sources, self._recipe, per_step), mine, self._recipe.data.workers)

    def _batches_per_step(self) -> int:
        return self._accelerator.gradient_accumulation_steps * self._accelerator.num_processes

    def _launched(self) -> dict[str, object]:
        """Return what the recipe does not decide alone, and a resumed run must keep."""
        return {"batches per step": self._batches_per_step(), "mixed_precision": self._accelerator.mixed_precision}

    def _train(self, number: int, batch: TrainingBatch) -> dict[str, Tensor]:
        # Seeds all random operations of the step, dropout included, so that no generator state needs to be saved.
        torch.manual_seed(int(np.random.SeedSequence((self._recipe.seed, 2, number)).generate_state(1)[0]))
        index, step_of_stage = self._recipe.stage_at(self.step)
        stage, rate = self._recipe.stages[index], learning_rate(self._recipe, self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        set_training_mode(self._vae, self._recipe)
        video = batch.video.to(self._accelerator.device, memory_format=torch.channels_last_3d, non_blocking=True)
        discriminator = self._discriminator if stage.loss.adversarial else None
        models = [self._train_step] if discriminator is None else [self._train_step, discriminator.model]
        unsplit_graphs: AbstractContextManager[object] = nullcontext()
        if self._recipe.model.compile and self._recipe.model.gradient_checkpointing:
            # By default Dynamo splits the compiled graph of a DistributedDataParallel module to overlap communication,
            # but it cannot split one with activation checkpoints (https://github.com/pytorch/pytorch/issues/104674).
            unsplit_graphs = torch._dynamo.config.patch(optimize_ddp=False)
        with self._accelerator.accumulate(*models):
            with self._accelerator.autocast(), unsplit_graphs:
                reconstruction, posterior = self._train_step(video)
            reconstruction = reconstruction.float()
            losses = training_losses(stage, step_of_stage, video, reconstruction, posterior, self._lpips, discriminator)
            check_finite(losses)
            self._accelerator.backward(losses["total"])
            if self._accelerator.sync_gradients:
                norm = self._accelerator.clip_grad_norm_(self._vae.parameters(), self._recipe.gradient_clip)
                losses["gradient_norm"] = cast(Tensor, norm)
                check_finite({"gradient_norm": losses["gradient_norm"]})
            self._optimizer.step()
            self._optimizer.zero_grad()
            if discriminator is not None:
                losses["discriminator"] = discriminator.update(video, reconstruction, rate)
        losses["learning_rate"] = torch.tensor(rate)
        return {name: loss.detach() for name, loss in losses.items()}

    def _nonfinite_error(self, batch: TrainingBatch, error: NonFiniteError) -> UserError:
        # Several processes may fail in the same step, each with another batch.
        process = f"_process_{self._accelerator.process_index}" if self._accelerator.num_processes > 1 else ""
        path = self._folder / f"bad_batch_step_{self.step}{process}.safetensors"
        try:
            save_batch(path, batch)
            where = f"is in {path}"
        except OSError as failure:  # which is not to hide what happened first
            where = f"could not be written to {path} ({reason(failure)})"
        return UserError(
            f"step {self.step}: the loss or its gradient is not a number ({error}); the batch {where} and came from"
            f" {'; '.join(batch.origins)}. A lower learning_rate or gradient_clip in the recipe may help; the run then"
            " goes on from its last saved step."
        )

    def _validate(self, log: SummaryWriter | None) -> dict[str, float]:
        if log is None or not self._sources.held_out:
            return {}
        clips = self._sources.held_out[: self._recipe.validation_clips]
        crops = center_crop(clips, self._recipe.validation_frames, self._vae.config)
        scalars, strips = validate(self._ema.model, crops, self._lpips)
        _LOGGER.info(f"step {self.step}: held-out PSNR {scalars['psnr']:.2f} dB.")
        _add_scalars(log, "validation", scalars, self.step)
        for name, strip in strips.items():
            log.add_image(f"validation/{name}", strip, self.step, dataformats="HWC")
        return scalars

    def _save(self) -> None:
        if self.is_main:
            state: dict[str, Any] = {"step": self.step, "at_start": self._at_start, "metrics": self._metrics}
            state |= self._launched()
            state |= {"config": self._vae.config.to_dict(), "sources": self._sources.names()}
            state |= {name: part.state_dict() for name, part in self._parts.items()}
            save_state(self._folder, self._recipe, state)

    def _write_weights(self) -> None:
        vae: WanVAE = self._ema.model
        if self._recipe.model.trainable == "all":
            sources = self._sources.videos or self._sources.photos
            clips = center_crop(sources[:: -(-len(sources) // 64)], 17, vae.config)  # up to 64 clips of 17 frames
            vae = with_latent_statistics(vae, (frames for _, frames in clips))
        with written_beside(self._folder / WEIGHTS_NAME) as beside:
            vae.save(beside)


def _no_progress(done: int, total: int, losses: Mapping[str, float]) -> None:
    """Report nothing."""


def _add_scalars(log: SummaryWriter | None, prefix: str, values: dict[str, float], step: int) -> None:
    if log is not None:
        for name, value in values.items():
            log.add_scalar(f"{prefix}/{name}", value, step)
