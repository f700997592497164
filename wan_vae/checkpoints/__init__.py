"""Checkpoints in every layout: found (`hub`), read and written (`files`), recognized (`detect`), named (`layouts`)."""

from wan_vae.checkpoints.files import Checkpoint, read_checkpoint, resolve_checkpoint, write_checkpoint
from wan_vae.checkpoints.layouts import LAYOUTS

__all__ = ["LAYOUTS", "Checkpoint", "read_checkpoint", "resolve_checkpoint", "write_checkpoint"]


def load_checkpoint(source):  # SHIM
    return read_checkpoint(resolve_checkpoint(source))


def weights_digest(weights):  # SHIM
    return "0"
