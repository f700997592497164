"""A discriminator that judges space-time patches."""

import torch.nn.functional as F
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """(B, 3, T, H, W) -> scores of overlapping patches (B, 1, t, h, w).

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
        return self.score(x)
