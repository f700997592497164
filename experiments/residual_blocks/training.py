"""Train one network."""

import math
import time
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.residual_blocks.data import training_batches, validation_pictures
from experiments.residual_blocks.networks import Autoencoder, Network
from experiments.residual_blocks.probes import BlockProbe, probe_blocks
from experiments.residual_blocks.settings import Frozen, PhotoSection, TrainingSection
from wan_vae.evaluation.metrics import psnr
from wan_vae.training.optim import warmed_cosine


class TrainingResult(Frozen):
    """How one network fared.

    Attributes:
        steps: After how many steps it was validated.
        psnr: PSNR of all held-out pictures together then, in dB.
        seconds: CPU time that the steps before had taken, validations left out.
        spike: Largest gradient norm after the warm-up, relative to the median one; infinite where one is not a number.
        start: Its blocks before the first step, in order.
        end: Its blocks after the last.
    """

    steps: tuple[int, ...]
    psnr: tuple[float, ...]
    seconds: tuple[float, ...]
    spike: float
    start: tuple[BlockProbe, ...]
    end: tuple[BlockProbe, ...]


class TrainingJob(Frozen):
    """One network to train, on a set of `set_size` pictures or, without one, on pictures that are always new.

    `pictures` is from `digest_of_pictures`, so that results with other pictures are not taken for this job's.
    """

    network: Network
    photos: PhotoSection
    training: TrainingSection
    pictures: str
    learning_rate: float
    seed: int
    set_size: int | None = None

    @property
    def name(self) -> str:
        """What a person would call it."""
        network, among = self.network, f"-of{self.set_size}" if self.set_size else ""
        return f"{network.kind}-{network.units}x{network.width}-{self.learning_rate:g}{among}-seed{self.seed}"

    def run(self) -> TrainingResult:
        """Train; the result, but for the seconds, depends on this job's fields alone."""
        training = self.training
        batches = training_batches(self.photos, training, self.seed, self.set_size)
        held_out = validation_pictures(self.photos, training)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = Autoencoder(self.network).train()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        probed = partial(_loss, pictures=batches[0])
        start = probe_blocks(model, probed)
        steps, reached, seconds, norms, spent = [], [], [], [], 0.0
        for step, pictures in enumerate(batches):
            began = time.process_time()
            for group in optimizer.param_groups:
                group["lr"] = self.learning_rate * warmed_cosine(step, training.steps, training.warmup)
            optimizer.zero_grad()
            torch.autograd.backward(_loss(model, pictures))
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), math.inf).item())
            optimizer.step()
            spent += time.process_time() - began
            if (step + 1) % training.validate_every == 0:
                steps.append(step + 1)
                reached.append(validation_psnr(model, held_out))
                seconds.append(spent)
        return TrainingResult(
            steps=tuple(steps),
            psnr=tuple(reached),
            seconds=tuple(seconds),
            spike=spike(norms[training.warmup :]),
            start=start,
            end=probe_blocks(model, probed),
        )


def spike(norms: list[float]) -> float:
    """Return the largest of some gradient norms relative to the median one; infinite where one is not a number."""
    if not all(map(math.isfinite, norms)) or median(norms) == 0:
        return math.inf
    return max(norms) / median(norms)


@torch.no_grad()
def validation_psnr(model: nn.Module, pictures: Tensor) -> float:
    """Return the PSNR in dB of the error over all pictures (B, 3, 1, H, W) in [-1, 1], in eval mode.

    A network whose weights are no longer numbers counts as one that paints gray.
    """
    model.eval()
    reconstruction = model(pictures).nan_to_num(0.0, 0.0, 0.0).clamp(-1, 1)
    model.train()
    return psnr(reconstruction, pictures, value_range=2)


def constant_psnr(pictures: Tensor) -> float:
    """Return the PSNR in dB of the best guess that looks at nothing: the mean color of all pictures, everywhere."""
    return psnr(pictures.mean(dim=(0, 2, 3, 4), keepdim=True).expand_as(pictures), pictures, value_range=2)


def _loss(model: nn.Module, pictures: Tensor) -> Tensor:
    return F.l1_loss(model(pictures), pictures)
