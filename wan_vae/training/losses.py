"""What a training step minimizes: the losses of its stage, each with its weight.

What a reconstruction is trained to be close in: pixels, latents, and perception.

The adversary: a discriminator of space-time patches, and its side of the training.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from wan_vae.evaluation.lpips import LPIPS
from wan_vae.posterior import Posterior
from wan_vae.training.checkpoint import check_numbers
from wan_vae.training.recipe import Stage


def kl_per_value(posterior: Posterior, video: Tensor) -> Tensor:
    """Divergence from a standard normal, summed over the latents, per value of the video (B, 3, T, H, W).

    In this unit a weight of 1e-6 beside a mean absolute error is that of Stable Diffusion's autoencoders (Rombach et
    al. 2022), which sum both.
    """
    return posterior.kl().mean() / video[0].numel()


def random_frames(reconstruction: Tensor, video: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Choose at most `count` frames of every clip, the same of both: two (B * count, 3, H, W)."""
    batch, _, length = video.shape[:3]
    count = min(count, length)
    chosen = torch.randint(length, (batch, count), device=video.device)
    rows = torch.arange(batch, device=video.device)[:, None]
    return (
        reconstruction.transpose(1, 2)[rows, chosen].flatten(0, 1),
        video.transpose(1, 2)[rows, chosen].flatten(0, 1),
    )


class PatchDiscriminator(nn.Module):
    """(B, 3, T, H, W) -> scores of overlapping patches (B, 1, t, h, w), high for real clips.

    The PatchGAN of pix2pix (Isola et al. 2017) with 3-D convolutions; the stride in time begins with the second
    layer, and group norm stands for batch norm, whose statistics would differ from process to process.
    """

    def __init__(self, width: int = 32, layers: int = 3) -> None:
        super().__init__()
        widths = [3] + [width * 2**layer for layer in range(layers)]
        self.convs = nn.ModuleList(
            nn.Conv3d(
                widths[layer],
                widths[layer + 1],
                kernel_size=(3, 4, 4),
                stride=(1 if layer == 0 else 2, 2, 2),
                padding=(1, 1, 1),
            )
            for layer in range(layers)
        )
        self.norms = nn.ModuleList(
            nn.Identity() if layer == 0 else nn.GroupNorm(8, widths[layer + 1]) for layer in range(layers)
        )
        self.score = nn.Conv3d(widths[-1], 1, kernel_size=3, padding=1)

    def forward(self, video: Tensor) -> Tensor:
        x = video
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.leaky_relu(norm(conv(x)), 0.2)
        # In float32 whatever the rest is in: of a convolution to a single channel, the gradient that oneDNN computes in
        # bfloat16 is not the same each time, and a run that goes on would not be the same run.
        with torch.autocast(x.device.type, enabled=False):
            return self.score(x.float())


class Adversary:
    """A discriminator that learns to tell reconstructions from clips, under the hinge loss (Lim and Ye 2017).

    Args:
        accelerator: Prepares the discriminator and takes its steps.
        gradient_clip: Longest gradient, by norm over all weights; longer ones are scaled down.

    Attributes:
        model: The discriminator as `accelerate` prepared it.
    """

    def __init__(self, accelerator: Accelerator, gradient_clip: float) -> None:
        discriminator = PatchDiscriminator()
        optimizer = torch.optim.AdamW(discriminator.parameters(), lr=0.0, betas=(0.5, 0.9))
        self.model, self._optimizer = accelerator.prepare(discriminator, optimizer)
        self._accelerator = accelerator
        self._gradient_clip = gradient_clip

    def loss_of(self, reconstruction: Tensor) -> Tensor:
        """How far a reconstruction is from being taken for real; its gradient leaves the discriminator alone."""
        discriminator = self._accelerator.unwrap_model(self.model).requires_grad_(False)
        loss = -discriminator(reconstruction).mean()
        discriminator.requires_grad_(True)
        return loss

    def learn(self, video: Tensor, reconstruction: Tensor, rate: float) -> Tensor:
        """Take a step towards scores above 1 for `video` and below -1 for `reconstruction`; returns the loss.

        Raises:
            NotANumberError: The loss or its gradient is not one; no weight was changed.
        """
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        real, fake = self.model(torch.cat([video, reconstruction.detach()])).chunk(2)
        loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        check_numbers({"discriminator": loss})
        self._accelerator.backward(loss)
        if self._accelerator.sync_gradients:
            norm = self._accelerator.clip_grad_norm_(self.model.parameters(), self._gradient_clip)
            check_numbers({"discriminator_gradient_norm": cast(Tensor, norm)})
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return weights and optimizer state."""
        weights = self._accelerator.unwrap_model(self.model).state_dict()
        return {"weights": weights, "optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self._accelerator.unwrap_model(self.model).load_state_dict(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])


@dataclass(frozen=True)
class Objective:
    """Measures the losses of a reconstruction, and sums them up.

    Attributes:
        perceptual: Measures LPIPS; None where no stage weighs it.
        adversary: Takes reconstructions for real or not; None where no stage weighs that.
    """

    perceptual: LPIPS | None
    adversary: Adversary | None

    def __call__(
        self,
        stage: Stage,
        step: int,
        video: Tensor,
        reconstruction: Tensor,
        posterior: Posterior,
        code: Tensor | None,
    ) -> dict[str, Tensor]:
        """Return the losses by name, without their weights, and their weighted sum as `total`.

        Args:
            stage: Its weights.
            step: Number of the step in the stage.
            video: (B, 3, T, H, W) in [-1, 1].
            reconstruction: Of the same shape, not clamped.
            posterior: Of the raw latents.
            code: What the encoder is taught to give, (B, z, t, h, w); None where it is not.
        """
        losses = {"l1": (reconstruction - video).abs().mean(), "kl": kl_per_value(posterior, video)}
        if stage.loss.lpips and self.perceptual is not None:
            frames = random_frames(reconstruction, video, stage.loss.lpips_frames)
            losses["lpips"] = self.perceptual(*frames).mean()
        if stage.loss.adversarial and self.adversary is not None and step >= stage.loss.adversarial_warmup:
            losses["adversarial"] = self.adversary.loss_of(reconstruction)
        total = torch.stack([getattr(stage.loss, name) * loss for name, loss in losses.items()]).sum()
        if code is not None:
            losses["code"] = (posterior.mean.float() - code).square().mean()
            total = total + losses["code"]
        return {**losses, "total": total}
