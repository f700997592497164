"""The training loop: seeded step by step, so that a run that was stopped goes on as if it never had been.

Batches on their way to the training, prepared by processes beside it.

One pass of training: a clip through the VAE, or encoder and decoder each taught the same code.
"""

import logging
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from wan_vae.errors import UserError
from wan_vae.evaluation.lpips import LPIPS
from wan_vae.io.atomic_output import written_beside
from wan_vae.model.halo import Halo
from wan_vae.posterior import Posterior
from wan_vae.training.checkpoint import NonFiniteError, check_numbers, keep_batch, load_state, save_state
from wan_vae.training.data import TrainingBatch, TrainingBatches, store_sources, whole_clips
from wan_vae.training.initialization import PrincipalComponents, in_training_mode, starting_point
from wan_vae.training.losses import Adversary, Objective
from wan_vae.training.optim import EMA, learning_rate, make_optimizer
from wan_vae.training.recipe import Recipe
from wan_vae.training.validation import FRAMES_PER_CLIP, validate, with_measured_statistics
from wan_vae.vae import WanVAE


def loaded(batches: TrainingBatches, numbers: range, workers: int) -> Iterator[tuple[int, TrainingBatch]]:
    """Yield the batches of these numbers, each with its number.

    Args:
        batches: What to take them from.
        numbers: Which, in order.
        workers: Processes that prepare them; 0 for this one, when it is asked.
    """
    loader = DataLoader(
        batches, batch_size=None, sampler=numbers, num_workers=workers, worker_init_fn=_leave_signals_to_the_trainer
    )
    return zip(numbers, loader, strict=True)


def _leave_signals_to_the_trainer(worker: int) -> None:
    # Ctrl-C, a terminal that closes, and many a job scheduler signal all processes of a run. The trainer needs its
    # workers until the step under way is done; they end with it, or, should it be killed, by themselves.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class Lesson(nn.Module):
    """What a training step runs: one module, so that it can be compiled and spread over processes as a whole."""

    def __init__(self, vae: WanVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, video: Tensor, code: Tensor | None = None) -> tuple[Tensor, Posterior]:
        """Reconstruct a clip.

        Args:
            video: (B, 3, T, H, W) in [-1, 1].
            code: Raw latents (B, z, t, h, w) to decode, blurred by the posterior's own noise, instead of a sample of
                the posterior.

        Returns:
            The reconstruction (B, 3, T, H, W), not clamped, and the posterior of the raw latents.
        """
        if code is None:
            return self.vae(video, sample=True)
        posterior = Posterior.from_moments(self.vae.moments(video, Halo()))
        noise = posterior.sample() - posterior.mean
        return self.vae.pixels(code + noise, Halo()), posterior


CLIPS_FOR_STATISTICS = 64
WEIGHTS_NAME = "vae.safetensors"
BATCHES_FOR_COMPONENTS = 32


class Trainer:
    """A training run in a folder, which holds its state, its log, its frames and in the end its weights.

    Where the folder holds a run already, this is that run, and goes on.

    Args:
        recipe: What to do.
        folder: Created if it is missing.

    Attributes:
        step: Optimizer steps done so far.
        stopped: Whether `run` ended because it was requested to.
        is_main: Whether this is the one of the run's processes that writes and prints.

    Raises:
        UserError: The data cannot be read, the recipe does not fit the model, or the folder holds another run.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.stopped = False
        self._recipe = recipe
        self._folder = folder
        self._accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision,
            gradient_accumulation_steps=recipe.gradient_accumulation,
            kwargs_handlers=[
                # A frozen encoder, and the temporal convolutions of a single frame, get no gradients.
                DistributedDataParallelKwargs(find_unused_parameters=True),
                # The others wait while the first process decodes clips and validates.
                InitProcessGroupKwargs(timeout=timedelta(days=1)),
            ],
        )
        if self._accelerator.mixed_precision not in ("no", "bf16"):  # which accelerate's launcher may ask for
            raise UserError(
                f"accelerate's launcher set mixed_precision to {self._accelerator.mixed_precision}, in which gradients"
                " would have to be scaled; set it to bf16 or no."
            )
        self.is_main: bool = self._accelerator.is_main_process
        folder.mkdir(parents=True, exist_ok=True)
        state = load_state(folder, recipe)
        self.step = 0 if state is None else int(state["step"])
        self._at_start: dict[str, float] = {} if state is None else state.get("at_start", {})
        device = self._accelerator.device

        torch.manual_seed(recipe.seed)
        self._vae = starting_point(recipe, state, device)
        self._average = EMA(self._vae, recipe.ema_decay)
        optimizer = make_optimizer(self._vae, recipe.optimizer, recipe.betas, recipe.weight_decay)
        lesson = Lesson(self._vae)
        if recipe.model.compile:
            lesson.compile()
        self._lesson, self._optimizer = self._accelerator.prepare(lesson, optimizer)
        has_adversary = any(stage.loss.adversarial for stage in recipe.stages)
        self._adversary = Adversary(self._accelerator, recipe.gradient_clip) if has_adversary else None
        lpips = recipe.lpips
        self._perceptual = None if lpips is None else LPIPS(lpips.network, lpips.backbone).to(device)
        self._objective = Objective(self._perceptual, self._adversary)
        with self._accelerator.main_process_first():
            self._sources = store_sources(recipe.data, folder / "frames")
        fit = state is None or "principal" not in state
        self._principal = self._fitted_components(fit=fit) if any(s.taught for s in recipe.stages) else None
        if state is not None:
            self._restore(state)

    def run(self, max_steps: int | None = None) -> dict[str, float]:
        """Train to the end of the recipe, or until `max_steps` steps are done in all, and write the weights.

        Returns:
            The last validation's figures and, where trained weights were gone on from, theirs as `psnr_at_start` and so
            on; or the last logged losses where nothing is held out.

        Raises:
            UserError: A loss was not a number; its batch was written to the folder.
        """
        last = self._recipe.steps if max_steps is None else min(max_steps, self._recipe.steps)
        if self.step >= last and self.is_main:
            logging.getLogger("wan_vae").warning(
                f"{self._folder} holds a run that has done {self.step} steps already; name another --out for a new one."
            )
        if not self._sources.held_out and self.is_main:
            logging.getLogger("wan_vae").warning(
                "nothing is held out, so the losses on what is trained on are all that is measured; list file names as"
                " held_out in the recipe's section data to see how well clips come back that training never sees."
            )
        log = SummaryWriter(str(self._folder / "log"), purge_step=self.step + 1) if self.is_main else None
        progress = tqdm(total=last, initial=self.step, unit="step", disable=None if self.is_main else True)
        figures: dict[str, float] = {}
        try:
            if self.step == 0 and self._recipe.model.checkpoint is not None:
                self._at_start = {f"{name}_at_start": value for name, value in self._validate(log).items()}
            for number, batch in self._batches(last):
                try:
                    losses = self._train(number, batch)
                except NonFiniteError as error:
                    raise self._stopped_by(batch, error) from error
                if not self._accelerator.sync_gradients:
                    continue
                self._average.follow(self._vae, self.step)
                self.step += 1
                progress.update()
                if self.step % self._recipe.log_every == 0:
                    figures = {name: loss.item() for name, loss in losses.items()}
                    progress.set_postfix({name: f"{value:.4f}" for name, value in figures.items()})
                    _log(log, "train", figures, self.step)
                if self.step % self._recipe.validate_every == 0 or self.step == last:
                    figures = self._validate(log) or figures
                if self._accelerator.check_trigger():  # in any of the processes
                    self.stopped = True
                    break
                if self.step % self._recipe.checkpoint_every == 0 and self.step < last:
                    self._save()
        finally:
            progress.close()
            if log is not None:
                log.close()
        self._save()
        if not self.stopped:
            self._write_weights()
        return {**self._at_start, **figures}

    def request_stop(self) -> None:
        """Let `run` end after the step it is in, with the run's state kept; may be called from a signal handler."""
        self._accelerator.set_trigger()

    def _batches(self, last: int) -> Iterator[tuple[int, TrainingBatch]]:
        parts, processes = self._accelerator.gradient_accumulation_steps, self._accelerator.num_processes
        per_step = parts * processes
        mine = range(self.step * per_step + self._accelerator.process_index, last * per_step, processes)
        return loaded(TrainingBatches(self._sources, self._recipe, per_step), mine, self._recipe.data.workers)

    def _train(self, number: int, batch: TrainingBatch) -> dict[str, Tensor]:
        # All that is random in a step, dropout included, follows from its number: nothing else needs to be kept.
        torch.manual_seed(int(np.random.SeedSequence((self._recipe.seed, 2, number)).generate_state(1)[0]))
        index, step_of_stage = self._recipe.stage_at(self.step)
        stage, rate = self._recipe.stages[index], learning_rate(self._recipe, self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        in_training_mode(self._vae, self._recipe)
        video = batch.video.to(self._accelerator.device, memory_format=torch.channels_last_3d, non_blocking=True)
        code = self._principal(video) if stage.taught and self._principal is not None else None
        adversary = self._adversary if stage.loss.adversarial else None
        models = [self._lesson] if adversary is None else [self._lesson, adversary.model]
        with self._accelerator.accumulate(*models):
            with self._accelerator.autocast(), self._unsplit_graphs():
                reconstruction, posterior = self._lesson(video, code)
            reconstruction = reconstruction.float()
            losses = self._objective(stage, step_of_stage, video, reconstruction, posterior, code)
            check_numbers(losses)
            self._accelerator.backward(losses["total"])
            if self._accelerator.sync_gradients:
                norm = self._accelerator.clip_grad_norm_(self._vae.parameters(), self._recipe.gradient_clip)
                losses["gradient_norm"] = cast(Tensor, norm)
                check_numbers({"gradient_norm": losses["gradient_norm"]})
            self._optimizer.step()
            self._optimizer.zero_grad()
            if adversary is not None:
                losses["discriminator"] = adversary.learn(video, reconstruction, rate)
        losses["learning_rate"] = torch.tensor(rate)
        return {name: loss.detach() for name, loss in losses.items()}

    def _unsplit_graphs(self) -> AbstractContextManager[object]:
        # By default Dynamo splits the compiled graph of a DistributedDataParallel module to overlap communication, but
        # it cannot split one with activation checkpoints (https://github.com/pytorch/pytorch/issues/104674).
        if not (self._recipe.model.compile and self._recipe.model.gradient_checkpointing):
            return nullcontext()
        return torch._dynamo.config.patch(optimize_ddp=False)

    def _stopped_by(self, batch: TrainingBatch, error: NonFiniteError) -> UserError:
        # Each process has a batch of its own, and several may stop at once.
        process = f"_process_{self._accelerator.process_index}" if self._accelerator.num_processes > 1 else ""
        path = self._folder / f"bad_batch_step_{self.step}{process}.safetensors"
        keep_batch(path, batch)
        return UserError(
            f"step {self.step}: the loss or its gradient is not a number ({error}); the batch is in {path} and came"
            f" from {'; '.join(batch.origins)}. A lower learning rate may help."
        )

    def _validate(self, log: SummaryWriter | None) -> dict[str, float]:
        if log is None or not self._sources.held_out:
            return {}
        clips = whole_clips(
            self._sources.held_out[: self._recipe.validation_clips], self._recipe.validation_frames, self._vae.config
        )
        found = validate(self._average.model, clips, self._perceptual)
        _log(log, "validation", found.scalars, self.step)
        for name, strip in found.strips.items():
            log.add_image(f"validation/{name}", strip, self.step, dataformats="HWC")
        return found.scalars

    def _fitted_components(self, *, fit: bool) -> PrincipalComponents:
        principal = PrincipalComponents(self._vae.config)
        if fit:
            batches = TrainingBatches(self._sources, self._recipe, 1)
            numbers = np.linspace(0, len(batches) - 1, BATCHES_FOR_COMPONENTS, dtype=int)
            principal.fit(batches[int(number)].video for number in numbers)
        return principal.to(self._accelerator.device)

    def _save(self) -> None:
        if self.is_main:
            parts = {name: part.state_dict() for name, part in self._parts().items()}
            about = {
                "step": self.step,
                "at_start": self._at_start,
                "config": self._vae.config.to_dict(),
                "sources": self._sources.names(),
            }
            save_state(self._folder, self._recipe, {**about, **parts})

    def _restore(self, state: dict[str, Any]) -> None:
        if state["sources"] != self._sources.names():
            raise UserError(f"{self._folder} holds a run on other clips and photos; name another --out.")
        for name, part in self._parts().items():
            if name in state:  # a stage to come may have been changed to need what no stage before it did
                part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        parts = {
            "weights": self._vae,
            "average": self._average.model,
            "optimizer": self._optimizer,
            "principal": self._principal,
            "adversary": self._adversary,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def _write_weights(self) -> None:
        if not self.is_main:
            return
        vae: WanVAE = self._average.model
        if self._recipe.model.trainable == "all":
            sources = self._sources.videos or self._sources.photos
            chosen = sources[:: -(-len(sources) // CLIPS_FOR_STATISTICS)]
            clips = whole_clips(chosen, FRAMES_PER_CLIP, vae.config)
            vae = with_measured_statistics(vae, (frames for _, frames in clips))
        with written_beside(self._folder / WEIGHTS_NAME) as beside:
            vae.save(beside)


def _log(log: SummaryWriter | None, prefix: str, figures: dict[str, float], step: int) -> None:
    if log is not None:
        for name, value in figures.items():
            log.add_scalar(f"{prefix}/{name}", value, step)
