"""Checkpoints in every layout: located, read, checked and written."""

from wan_vae.checkpoints.files import (
    Checkpoint,
    load_checkpoint,
    weights_digest,
    write_checkpoint,
)
from wan_vae.checkpoints.layouts import LAYOUTS
from wan_vae.checkpoints.sources import resolve_checkpoint

__all__ = ["LAYOUTS", "Checkpoint", "load_checkpoint", "resolve_checkpoint", "weights_digest", "write_checkpoint"]
