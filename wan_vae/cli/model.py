"""The model that a command line asks for."""

from pathlib import Path
from typing import NamedTuple

from wan_vae.checkpoints import Checkpoint, read_checkpoint, resolve_checkpoint
from wan_vae.cli.allocator import keep_freed_memory
from wan_vae.cli.kernels import build_kernels_once
from wan_vae.cli.options import Device, Dtypes, Precision, torch_device, torch_dtypes
from wan_vae.vae import WanVAE


class Model(NamedTuple):
    """A VAE on its device, and the checkpoint that it comes from."""

    vae: WanVAE
    checkpoint: Checkpoint

    @property
    def dtypes(self) -> Dtypes:
        """What the VAE's halves compute in."""
        return Dtypes(self.vae.dtype, self.vae.decoder_dtype)


def load_model(checkpoint: str | Path, device: Device, dtype: Precision) -> Model:
    """Load a checkpoint as `--checkpoint`, `--device` and `--dtype` ask."""
    keep_freed_memory()
    on = torch_device(device)
    if on.type == "cpu":
        build_kernels_once()
    found = read_checkpoint(resolve_checkpoint(checkpoint))
    dtypes = torch_dtypes(dtype, on)
    vae = WanVAE.from_weights(found.config, found.weights, device=on)
    return Model(vae.set_dtypes(encoder=dtypes.encoder, decoder=dtypes.decoder), found)
