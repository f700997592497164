"""LPIPS (Zhang et al. 2018, https://arxiv.org/abs/1801.03924): perceptual distance by a classifier's features."""

import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from wan_vae.checkpoints.tensor_files import read_tensors
from wan_vae.errors import CheckpointError, UserError
from wan_vae.io.color import over_black
from wan_vae.io.frames import Frames

_TORCHVISION_NAMES = {"alex": "alexnet", "vgg": "vgg16"}
# In pixels; with smaller pictures the last feature maps would be empty.
SMALLEST_SIDES = {"alex": 31, "vgg": 16}


class LPIPS(nn.Module):
    """The LPIPS distance, version 0.1. Frozen, always in eval mode, and differentiable with respect to the pictures.

    Args:
        network: "alex" for AlexNet, the usual one to report, or "vgg" for VGG16, the usual one to train with.
        backbone: The convolutions of that network, trained on ImageNet, under torchvision's names
            (`features.0.weight` etc.; other tensors are ignored). The package `lpips` contains the other weights.

    Raises:
        CheckpointError: `backbone` is missing, damaged, or of another network.
        UserError: The package `lpips` is not installed.
    """

    def __init__(self, network: Literal["alex", "vgg"], backbone: Path) -> None:
        super().__init__()
        if not backbone.is_file():
            raise CheckpointError(
                f"{backbone} does not exist; name a safetensors file with torchvision's {_TORCHVISION_NAMES[network]}."
            )
        self._smallest_side = SMALLEST_SIDES[network]
        self._distance = _random_lpips(network)
        _fill(self._distance.net, backbone, _TORCHVISION_NAMES[network])
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances (N,) between pictures (N, 3, H, W) in [-1, 1]; 0 for equal ones.

        Raises:
            UserError: The pictures are too small for the network.
        """
        height, width = a.shape[2:]
        if min(height, width) < self._smallest_side:
            raise UserError(
                f"{width}x{height} is too small for LPIPS; each side must have {self._smallest_side} pixels or more."
            )
        return self._distance(a, b).flatten()

    @torch.no_grad()
    def distance(self, a: Frames, b: Frames) -> float:
        """Return the distance between two frames (height, width, 3 or 4), full-range; those with alpha over black."""
        if a.shape[2] == 4:
            a, b = over_black(a), over_black(b)
        device = next(self.parameters()).device
        values = (torch.from_numpy(x.astype(np.float32)).to(device) * (2 / np.iinfo(x.dtype).max) - 1 for x in (a, b))
        return self(*(picture.permute(2, 0, 1)[None] for picture in values)).item()

    def train(self, mode: bool = True) -> "LPIPS":
        # `module.train()` on a parent must not enable the dropout in here.
        return super().train(False)


def _random_lpips(network: str) -> Any:
    try:
        import lpips
    except ImportError as error:
        raise UserError(
            f"LPIPS needs the package lpips ({error}); install it with pip install 'wan-vae[train]'."
        ) from error
    with warnings.catch_warnings():
        # lpips calls torchvision and torch with deprecated arguments.
        warnings.filterwarnings("ignore", "The parameter 'pretrained' is deprecated", UserWarning)
        warnings.filterwarnings("ignore", "Arguments other than a weight enum", UserWarning)
        warnings.filterwarnings("ignore", "You are using `torch.load`", FutureWarning)
        return lpips.LPIPS(net=network, pnet_rand=True, verbose=False)


@torch.no_grad()
def _fill(net: nn.Module, backbone: Path, name: str) -> None:
    tensors, _ = read_tensors(backbone)
    for place, parameter in net.named_parameters():
        # "slice2.3.weight" here is "features.3.weight" there.
        wanted = f"features.{place.partition('.')[2]}"
        found = tensors.get(wanted)
        if found is None or found.shape != parameter.shape:
            fault = "missing" if found is None else f"{tuple(found.shape)} where {tuple(parameter.shape)} belongs"
            raise CheckpointError(f"{backbone} does not hold torchvision's {name}: {wanted} is {fault}.")
        parameter.copy_(found)
