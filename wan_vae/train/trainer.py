"""The training loop: seeded step by step, so that a run that was stopped goes on as if it never had been."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from wan_vae.config import VAEConfig
from wan_vae.errors import UserError
from wan_vae.files import written_beside
from wan_vae.perceptual import Perceptual
from wan_vae.train.averaging import MovingAverage
from wan_vae.train.data import TrainingBatch, TrainingBatches, store_sources, whole_clips
from wan_vae.train.discriminator import PatchDiscriminator
from wan_vae.train.initialization import ease_start
from wan_vae.train.lesson import Lesson
from wan_vae.train.losses import discriminator_loss, generator_loss, kl_per_pixel, random_frames
from wan_vae.train.principal import PrincipalComponents
from wan_vae.train.recipe import Recipe, architecture
from wan_vae.train.schedule import learning_rate
from wan_vae.train.state import load_state, save_state
from wan_vae.train.statistics import FRAMES_PER_CLIP, with_measured_statistics
from wan_vae.train.validation import validate
from wan_vae.vae import WanVAE

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

    Raises:
        UserError: The data cannot be read, the recipe does not fit the model, or the folder holds another run.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self._recipe = recipe
        self._folder = folder
        self.stopped = False
        self._accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision,
            gradient_accumulation_steps=recipe.gradient_accumulation,
            # A frozen encoder, and an image's unused temporal convolutions, have no gradients.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        folder.mkdir(parents=True, exist_ok=True)
        state = load_state(folder, recipe)
        self.step = 0 if state is None else int(state["step"])

        torch.manual_seed(recipe.seed)
        vae = _starting_point(recipe, state)
        recipe.check_fits(vae.config)
        self._vae = _channels_last(vae.to(self._accelerator.device))
        self._average = MovingAverage(self._vae, recipe.ema_decay)
        trained = [weight for weight in vae.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.0, betas=recipe.betas, weight_decay=recipe.weight_decay)
        vae.set_gradient_checkpointing(recipe.model.gradient_checkpointing)
        lesson = Lesson(self._vae)
        if recipe.model.compile:
            lesson.compile()
        self._lesson, self._optimizer = self._accelerator.prepare(lesson, optimizer)

        self._judge: nn.Module | None = None
        if any(stage.loss.adversarial for stage in recipe.stages):
            judge = PatchDiscriminator()
            optimizer = torch.optim.AdamW(judge.parameters(), lr=0.0, betas=(0.5, 0.9))
            self._judge, self._judge_optimizer = self._accelerator.prepare(judge, optimizer)
        self._perceptual = (
            None
            if recipe.lpips is None
            else Perceptual(recipe.lpips.network, recipe.lpips.backbone).to(self._accelerator.device)
        )
        self._sources = self._store_sources()
        self._principal: PrincipalComponents | None = None
        if any(stage.taught for stage in recipe.stages):
            self._principal = PrincipalComponents(vae.config)
            if state is None:
                batches = TrainingBatches(self._sources, recipe, 1)
                numbers = np.linspace(0, len(batches) - 1, BATCHES_FOR_COMPONENTS, dtype=int)
                self._principal.fit(batches[int(number)].video for number in numbers)
            self._principal.to(self._accelerator.device)
        if state is not None:
            self._restore(state)

    def run(self, max_steps: int | None = None) -> dict[str, float]:
        """Train to the end of the recipe, or until `max_steps` steps are done in all, and write the weights.

        Returns:
            The last validation's figures, or the last step's losses where nothing is held out.

        Raises:
            UserError: A loss was not a number; its batch was written to the folder.
        """
        last = self._recipe.steps if max_steps is None else min(max_steps, self._recipe.steps)
        main = self._accelerator.is_main_process
        log = SummaryWriter(str(self._folder / "log"), purge_step=self.step) if main else None
        progress = tqdm(total=last, initial=self.step, unit="step", disable=None if main else True)
        figures: dict[str, float] = {}
        try:
            for number, batch in self._batches(last):
                losses = self._train(number, batch)
                if not self._accelerator.sync_gradients:
                    continue
                self._average.follow(self._vae, self.step)
                self.step += 1
                progress.update()
                if self.step % self._recipe.log_every == 0:
                    figures = {name: float(value) for name, value in losses.items()}
                    progress.set_postfix({name: f"{value:.4f}" for name, value in figures.items()})
                    _log(log, "train", {**figures, "learning_rate": self._rate()}, self.step)
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
        return figures

    def request_stop(self) -> None:
        """Let `run` end after the step it is in, with the run's state kept; may be called from a signal handler."""
        self._accelerator.set_trigger()

    def _batches(self, last: int) -> Any:
        parts = self._accelerator.gradient_accumulation_steps
        per_step = parts * self._accelerator.num_processes
        mine = range(self.step * per_step + self._accelerator.process_index, last * per_step, per_step // parts)
        batches = TrainingBatches(self._sources, self._recipe, per_step)
        workers = self._recipe.data.workers
        loader = DataLoader(batches, batch_size=None, sampler=mine, num_workers=workers)
        return zip(mine, loader, strict=True)

    def _train(self, number: int, batch: TrainingBatch) -> dict[str, Tensor]:
        # All that is random in a step, dropout included, follows from its number: nothing else needs to be kept.
        torch.manual_seed(int(np.random.SeedSequence((self._recipe.seed, 2, number)).generate_state(1)[0]))
        index, step_of_stage = self._recipe.stage_at(self.step)
        stage = self._recipe.stages[index]
        weights = stage.loss
        self._set_rate(self._optimizer)
        video = batch.video.to(self._accelerator.device, memory_format=torch.channels_last_3d, non_blocking=True)
        _set_training(self._vae, self._recipe)
        code = self._principal(video) if stage.taught and self._principal is not None else None
        models = [self._lesson] if self._judge is None else [self._lesson, self._judge]
        with self._accelerator.accumulate(*models):
            with self._accelerator.autocast():
                reconstruction, posterior = self._lesson(video, code)
            reconstruction = reconstruction.float()
            losses = {"l1": (reconstruction - video).abs().mean(), "kl": kl_per_pixel(posterior, video)}
            if weights.lpips and self._perceptual is not None:
                frames = random_frames(reconstruction, video, weights.lpips_frames)
                losses["lpips"] = self._perceptual(*frames).mean()
            if weights.adversarial and self._judge is not None and step_of_stage >= weights.adversarial_warmup:
                self._judge.requires_grad_(False)
                losses["adversarial"] = generator_loss(self._judge(reconstruction))
                self._judge.requires_grad_(True)
            total = torch.stack([getattr(weights, name) * loss for name, loss in losses.items()]).sum()
            if code is not None:
                losses["code"] = (posterior.mean.float() - code).square().mean()
                total = total + losses["code"]
            if not torch.isfinite(total):
                self._stop_for(batch, losses)
            self._accelerator.backward(total)
            if self._accelerator.sync_gradients:
                norm = self._accelerator.clip_grad_norm_(self._vae.parameters(), self._recipe.gradient_clip)
                losses["gradient_norm"] = norm
            self._optimizer.step()
            self._optimizer.zero_grad()
            if weights.adversarial and self._judge is not None:
                losses["discriminator"] = self._train_judge(video, reconstruction.detach())
        return {name: value.detach() for name, value in {"total": total, **losses}.items()}

    def _train_judge(self, video: Tensor, reconstruction: Tensor) -> Tensor:
        assert self._judge is not None
        self._set_rate(self._judge_optimizer)
        loss = discriminator_loss(*self._judge(torch.cat([video, reconstruction])).chunk(2))
        self._accelerator.backward(loss)
        self._judge_optimizer.step()
        self._judge_optimizer.zero_grad()
        return loss

    def _stop_for(self, batch: TrainingBatch, losses: dict[str, Tensor]) -> None:
        path = self._folder / f"bad_batch_step_{self.step}.safetensors"
        with written_beside(path) as beside:
            save_file({"video": batch.video}, beside, {"origins": "\n".join(batch.origins)})
        bad = ", ".join(f"{name} is {value.item()}" for name, value in losses.items() if not torch.isfinite(value))
        raise UserError(
            f"step {self.step}: the loss is not a number ({bad or 'its sum is infinite'}); the batch is in {path} and"
            f" came from {'; '.join(batch.origins)}. A lower learning rate may help"
        )

    def _rate(self) -> float:
        return learning_rate(self._recipe, min(self.step, self._recipe.steps - 1))

    def _set_rate(self, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self._rate()

    def _validate(self, log: SummaryWriter | None) -> dict[str, float]:
        if log is None or not self._sources.held_out:
            return {}
        clips = whole_clips(
            self._sources.held_out[: self._recipe.validation_clips],
            self._recipe.validation_frames,
            self._vae.config.spatial_compression,
        )
        found = validate(self._average.model, clips, self._perceptual)  # type: ignore[arg-type]
        _log(log, "validation", found.scalars, self.step)
        for name, strip in found.strips.items():
            log.add_image(f"validation/{name}", strip, self.step, dataformats="HWC")
        return found.scalars

    def _store_sources(self) -> Any:
        with self._accelerator.main_process_first():
            return store_sources(self._recipe.data, self._folder / "frames")

    def _save(self) -> None:
        if not self._accelerator.is_main_process:
            return
        state = {
            "step": self.step,
            "config": self._vae.config.to_dict(),
            "weights": self._vae.state_dict(),
            "average": self._average.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        if self._principal is not None:
            state["principal"] = self._principal.state_dict()
        if self._judge is not None:
            state["discriminator"] = self._accelerator.unwrap_model(self._judge).state_dict()
            state["discriminator_optimizer"] = self._judge_optimizer.state_dict()
        if self._accelerator.scaler is not None:
            state["scaler"] = self._accelerator.scaler.state_dict()
        save_state(self._folder, self._recipe, state)

    def _restore(self, state: dict[str, Any]) -> None:
        self._average.model.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._principal is not None:
            self._principal.load_state_dict(state["principal"])
        if self._judge is not None:
            self._accelerator.unwrap_model(self._judge).load_state_dict(state["discriminator"])
            self._judge_optimizer.load_state_dict(state["discriminator_optimizer"])
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])

    def _write_weights(self) -> None:
        if not self._accelerator.is_main_process:
            return
        vae: WanVAE = self._average.model  # type: ignore[assignment]
        if self._recipe.model.trainable == "all":
            clips = whole_clips(self._sources.videos, FRAMES_PER_CLIP, vae.config.spatial_compression)
            videos = (torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1 for _, frames in clips)
            vae = with_measured_statistics(vae, list(videos))
        with written_beside(self._folder / WEIGHTS_NAME) as beside:
            vae.save(beside)


def _starting_point(recipe: Recipe, state: dict[str, Any] | None) -> WanVAE:
    if state is not None:
        vae = WanVAE(VAEConfig.from_dict(state["config"], origin="the run's state"))
        vae.load_state_dict(state["weights"])
    elif recipe.model.checkpoint is not None:
        vae = WanVAE.from_pretrained(recipe.model.checkpoint, dtype=torch.float32)
    else:
        config = architecture(recipe.model)
        assert config is not None
        vae = WanVAE(config)
        ease_start(vae)
    vae.requires_grad_(True)
    if recipe.model.trainable == "decoder":
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    return vae


def _channels_last(vae: WanVAE) -> WanVAE:
    # The layout in which convolutions are fastest, on a CPU as on a GPU.
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return vae


def _set_training(vae: WanVAE, recipe: Recipe) -> None:
    vae.train()
    if recipe.model.trainable == "decoder":
        # Batch norms in a frozen encoder must not go on measuring.
        vae.encoder.eval()


def _log(log: SummaryWriter | None, prefix: str, figures: dict[str, float], step: int) -> None:
    if log is not None:
        for name, value in figures.items():
            log.add_scalar(f"{prefix}/{name}", value, step)
