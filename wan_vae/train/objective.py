"""What a training step minimizes: the losses of its stage, each with its weight."""

from dataclasses import dataclass

import torch
from torch import Tensor

from wan_vae.perceptual import Perceptual
from wan_vae.posterior import Posterior
from wan_vae.train.adversary import Adversary
from wan_vae.train.losses import kl_per_value, random_frames
from wan_vae.train.recipe import Stage


@dataclass(frozen=True)
class Objective:
    """Measures the losses of a reconstruction, and sums them up.

    Attributes:
        perceptual: Measures LPIPS; None where no stage weighs it.
        adversary: Takes reconstructions for real or not; None where no stage weighs that.
    """

    perceptual: Perceptual | None
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
