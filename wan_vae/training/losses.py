"""The losses of a training step and the discriminator behind the adversarial one."""

from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from wan_vae.evaluation.lpips import LPIPS
from wan_vae.posterior import Posterior
from wan_vae.training.checkpoint import check_finite
from wan_vae.training.recipe import Stage

ROUNDING_ERROR = (1 / 255) ** 2 / 12  # mean squared error of 8-bit values in [0, 1]; below it nothing is gained


def kl_per_value(posterior: Posterior, video: Tensor) -> Tensor:
    """KL divergence from a standard normal, summed over the latents and divided by the values of a clip.

    In this unit a weight of 1e-6 next to a mean absolute error equals the weighting of Stable Diffusion's autoencoders
    (Rombach et al. 2022), which sum both.
    """
    return posterior.kl().mean() / video[0].numel()


def mean_psnr(reconstruction: Tensor, video: Tensor) -> Tensor:
    """PSNR in dB, the mean over the frames of two videos (B, 3, T, H, W) in [-1, 1]; as a loss in Chen et al. 2021.

    By this logarithm all frames weigh the same, where the mean squared error is mostly that of a few with fine texture.
    """
    error = ((reconstruction - video) / 2).square().mean(dim=(1, 3, 4))
    return -10 * torch.log10(error + ROUNDING_ERROR).mean()


def random_frames(reconstruction: Tensor, video: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Draw the same frames of two videos (B, 3, T, H, W), at most `count` per clip: two (B * count, 3, H, W)."""
    batch, _, length = video.shape[:3]
    chosen = torch.randint(length, (batch, min(count, length)), device=video.device)
    rows = torch.arange(batch, device=video.device)[:, None]
    one, other = (clips.transpose(1, 2)[rows, chosen].flatten(0, 1) for clips in (reconstruction, video))
    return one, other


class PatchDiscriminator(nn.Module):
    """(B, 3, T, H, W) -> scores of overlapping patches (B, 1, t, h, w), high for real clips.

    PatchGAN (Isola et al. 2017) with 3-D convolutions. Temporal stride begins in the second layer. Group norm replaces
    batch norm, whose statistics would differ between processes.
    """

    def __init__(self, width: int = 32, layers: int = 3) -> None:
        super().__init__()
        widths = [3] + [width * 2**layer for layer in range(layers)]
        self.convs = nn.ModuleList(
            nn.Conv3d(before, after, kernel_size=(3, 4, 4), stride=(2 if layer else 1, 2, 2), padding=1)
            for layer, (before, after) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList([nn.Identity(), *(nn.GroupNorm(8, after) for after in widths[2:])])
        self.score = nn.Conv3d(widths[-1], 1, kernel_size=3, padding=1)

    def forward(self, video: Tensor) -> Tensor:
        x = video
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.leaky_relu(norm(conv(x)), 0.2)
        # In float32: oneDNN's bfloat16 gradient of a convolution to one channel is not deterministic, and a resumed run
        # would differ from an uninterrupted one.
        with torch.autocast(x.device.type, enabled=False):
            return self.score(x.float())


class DiscriminatorLoss:
    """A `PatchDiscriminator` under the hinge loss (Lim and Ye 2017), with its optimizer.

    `accelerator` prepares both and takes the steps; gradients above the norm `gradient_clip` are scaled down.
    """

    def __init__(self, accelerator: Accelerator, gradient_clip: float) -> None:
        discriminator = PatchDiscriminator()
        optimizer = torch.optim.AdamW(discriminator.parameters(), lr=0.0, betas=(0.5, 0.9))
        self.model, self._optimizer = accelerator.prepare(discriminator, optimizer)
        self._accelerator = accelerator
        self._gradient_clip = gradient_clip

    def generator_loss(self, reconstruction: Tensor) -> Tensor:
        """Return the negative mean score of a reconstruction; the discriminator gets no gradients."""
        discriminator = self._accelerator.unwrap_model(self.model).requires_grad_(False)
        loss = -discriminator(reconstruction).mean()
        discriminator.requires_grad_(True)
        return loss

    def update(self, video: Tensor, reconstruction: Tensor, rate: float) -> Tensor:
        """Train the discriminator towards scores above 1 for `video`, below -1 for `reconstruction`; return its loss.

        Raises:
            NonFiniteError: The loss or the gradient norm is infinite or NaN; no weight was changed.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        real, fake = self.model(torch.cat([video, reconstruction.detach()])).chunk(2)
        loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        check_finite({"discriminator": loss})
        self._accelerator.backward(loss)
        if self._accelerator.sync_gradients:
            norm = self._accelerator.clip_grad_norm_(self.model.parameters(), self._gradient_clip)
            check_finite({"discriminator_gradient_norm": cast(Tensor, norm)})
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the discriminator and its optimizer."""
        weights = self._accelerator.unwrap_model(self.model).state_dict()
        return {"weights": weights, "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self._accelerator.unwrap_model(self.model).load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])


def training_losses(
    stage: Stage,
    step: int,
    video: Tensor,
    reconstruction: Tensor,
    posterior: Posterior,
    lpips: LPIPS | None,
    discriminator: DiscriminatorLoss | None,
) -> dict[str, Tensor]:
    """Return the unweighted losses of a stage by name, and their sum with the stage's weights as `total`.

    Args:
        stage: The stage.
        step: Step number within the stage.
        video: (B, 3, T, H, W) in [-1, 1].
        reconstruction: (B, 3, T, H, W), not clamped.
        posterior: Distribution of the raw latents (B, z, t, h, w).
        lpips: Required if the stage uses LPIPS.
        discriminator: Required if the stage uses the adversarial loss.
    """
    losses = {"l1": (reconstruction - video).abs().mean(), "kl": kl_per_value(posterior, video)}
    if stage.loss.mse:
        losses["mse"] = (reconstruction - video).square().mean()
    if stage.loss.psnr:
        losses["psnr"] = mean_psnr(reconstruction, video)
    if stage.loss.lpips and lpips is not None:
        losses["lpips"] = lpips(*random_frames(reconstruction, video, stage.loss.lpips_frames)).mean()
    if stage.loss.adversarial and discriminator is not None and step >= stage.loss.adversarial_warmup:
        losses["adversarial"] = discriminator.generator_loss(reconstruction)
    signs = {"psnr": -1}  # the only one of which more is better
    terms = [signs.get(name, 1) * getattr(stage.loss, name) * loss for name, loss in losses.items()]
    total = torch.stack(terms).sum()
    return {**losses, "total": total}
