"""Train one network, and time several in alternation."""

import math
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.residual_blocks.data import training_batches, validation_clips
from experiments.residual_blocks.networks import Network
from experiments.residual_blocks.probes import BlockProbe, probe_blocks
from experiments.residual_blocks.settings import Frozen, PhotoSection, TrainingSection
from wan_vae.evaluation.metrics import psnr
from wan_vae.training.losses import kl_per_value
from wan_vae.vae import WanVAE

WARM_UP_ROUNDS = 2


class TrainingResult(Frozen):
    """How one network fared.

    Attributes:
        steps: After how many steps it was validated.
        psnr: PSNR of all held-out clips together then, in dB.
        start: Its blocks before the first step, in order.
        end: Its blocks after the last.
    """

    steps: tuple[int, ...]
    psnr: tuple[float, ...]
    start: tuple[BlockProbe, ...]
    end: tuple[BlockProbe, ...]


class TrainingJob(Frozen):
    """One network to train."""

    network: Network
    photos: PhotoSection
    training: TrainingSection
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """What a person would call it."""
        network = self.network
        return f"{network.kind}-{network.blocks_per_level}x{network.width}-{self.learning_rate:g}-seed{self.seed}"

    def run(self) -> TrainingResult:
        """Train; the result depends on this job's fields alone."""
        training = self.training
        batches = training_batches(self.photos, training, self.seed)
        held_out = validation_clips(self.photos, training)
        vae = _initialized(self.network, self.seed)
        optimizer = torch.optim.AdamW(vae.parameters(), fused=True)
        # All networks are probed with the same clips and the same noise.
        probed = partial(_loss, video=batches[0], kl=training.kl, noise_seed=self.seed)
        start = probe_blocks(vae, probed)
        steps, reached = [], []
        for step, video in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * warmed_cosine(step, training.steps, training.warmup)
            loss = partial(_loss, video=video, kl=training.kl, noise_seed=self.seed + step)
            _step(vae, optimizer, loss, training.gradient_clip)
            if (step + 1) % training.validate_every == 0:
                steps.append(step + 1)
                reached.append(validation_psnr(vae, held_out))
        return TrainingResult(steps=tuple(steps), psnr=tuple(reached), start=start, end=probe_blocks(vae, probed))


class TimingResult(Frozen):
    """Median seconds of a training step of each network, in the order of the job."""

    seconds: tuple[float, ...]


class TimingJob(Frozen):
    """Networks to time in alternation, so that other load on the machine affects all of them."""

    networks: tuple[Network, ...]
    photos: PhotoSection
    training: TrainingSection

    @property
    def name(self) -> str:
        """What a person would call it."""
        return f"step-time-of-{len(self.networks)}"

    def run(self) -> TimingResult:
        """Take the time of some steps of each, after some that are not counted."""
        one_step = self.training.model_copy(update={"steps": 1})
        video = training_batches(self.photos, one_step, 0)[0]
        loss = partial(_loss, video=video, kl=self.training.kl, noise_seed=0)
        vaes = [_initialized(network, 0) for network in self.networks]
        optimizers = [torch.optim.AdamW(vae.parameters(), lr=0.0, fused=True) for vae in vaes]
        taken: list[list[float]] = [[] for _ in vaes]
        for _ in range(WARM_UP_ROUNDS + self.training.timed_steps):
            for vae, optimizer, times in zip(vaes, optimizers, taken, strict=True):
                began = time.perf_counter()
                _step(vae, optimizer, loss, self.training.gradient_clip)
                times.append(time.perf_counter() - began)
        return TimingResult(seconds=tuple(statistics.median(times[WARM_UP_ROUNDS:]) for times in taken))


def warmed_cosine(step: int, steps: int, warmup: int) -> float:
    """Return the share of the highest learning rate: linear warm-up, then a cosine to 0 (Loshchilov and Hutter 2017).

    Args:
        step: From 0.
        steps: Of the whole training.
        warmup: Steps of them that rise.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.no_grad()
def validation_psnr(vae: WanVAE, clips: Tensor) -> float:
    """Return the PSNR in dB of the error over all clips (B, 3, T, H, W) in [-1, 1], in eval mode, without noise.

    A network whose weights are no longer numbers counts as one that paints gray.
    """
    vae.eval()
    reconstruction = vae(clips)[0].nan_to_num(0.0, 0.0, 0.0).clamp(-1, 1)
    vae.train()
    return psnr(reconstruction, clips, value_range=2)


def constant_psnr(clips: Tensor) -> float:
    """Return the PSNR in dB of the best guess that looks at nothing: the mean color of all clips, everywhere."""
    return psnr(clips.mean(dim=(0, 2, 3, 4), keepdim=True).expand_as(clips), clips, value_range=2)


def _initialized(network: Network, seed: int) -> WanVAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanVAE(network.config()).train()


def _loss(vae: WanVAE, video: Tensor, kl: float, noise_seed: int) -> Tensor:
    noise = torch.Generator().manual_seed(noise_seed)
    reconstruction, posterior = vae(video, sample=True, generator=noise)
    return F.l1_loss(reconstruction, video) + kl * kl_per_value(posterior, video)


def _step(
    vae: WanVAE, optimizer: torch.optim.Optimizer, loss: Callable[[WanVAE], Tensor], gradient_clip: float
) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(loss(vae))
    nn.utils.clip_grad_norm_(vae.parameters(), gradient_clip)
    optimizer.step()
