"""Files of tiny autoencoders (TAEHV): taew2_1, taew2_2, taew2_2_super, lighttaew2_1 and lighttaew2_2."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from wan_vae.checkpoints.detect import is_tiny
from wan_vae.checkpoints.files import check_finite
from wan_vae.checkpoints.tensor_files import list_tensors
from wan_vae.config import MODEL_OF_CHANNELS
from wan_vae.errors import CheckpointError, UserError
from wan_vae.model.tiny import TimeGrow, TinyConfig, tiny_decoder, tiny_encoder
from wan_vae.validation import check_weights

_LOGGER = logging.getLogger("wan_vae")


def holds_tiny(path: Path) -> bool:
    """Whether a path is that of a file that holds a tiny autoencoder; a CheckpointError if it cannot be read."""
    return path.is_file() and is_tiny(list_tensors(path).shapes())


def raw_by_name(path: Path) -> bool | None:
    """Return whether a published file takes raw latents, by its name, as nothing in it tells; None for other names."""
    name = path.name.lower()
    return True if name.startswith("lighttae") else False if name.startswith("taew") else None


def load_tiny(path: Path, *, raw: bool | None) -> tuple[TinyConfig, dict[str, Tensor]]:
    """Read a tiny autoencoder; its structure is told by the names and shapes of its tensors.

    Args:
        path: A file in a format of torch, or safetensors.
        raw: Whether it takes raw latents. None goes by the file's name, with a notice where that is no published file
            of normalized ones.

    Returns:
        The structure, and every weight by its name in the network, in its stored dtype.

    Raises:
        CheckpointError: It cannot be read, is of another structure or of other latents, or holds NaN.
    """
    listed = list_tensors(path)
    shapes = listed.shapes()
    if not is_tiny(shapes):
        raise CheckpointError(f"{path} is no tiny autoencoder: it lacks the names of TAEHV's weights.")
    is_super = "decoder.0.weight" in shapes
    latents_in = shapes.get("decoder.0.weight" if is_super else "decoder.1.weight", ())
    if len(latents_in) != 4 or latents_in[1] not in MODEL_OF_CHANNELS:
        raise CheckpointError(
            f"{path} is a tiny autoencoder (TAEHV), but not of Wan's latents, which have 16 or 48 channels: the first"
            f" convolution of its decoder is {latents_in}."
        )
    config = TinyConfig(latent_channels=latents_in[1], decoder="super" if is_super else "base")
    with torch.device("meta"):
        network = nn.ModuleDict({"encoder": tiny_encoder(config), "decoder": tiny_decoder(config)})
    try:
        if without := [name for name, stored in listed.tensors.items() if not stored.has_values()]:
            raise CheckpointError(f"{without[0]!r} has no values of its own.")
        weights = listed.read(listed.tensors)
        for name, module in network.named_modules():
            weight = weights.get(f"{name}.conv.weight")
            if isinstance(module, TimeGrow) and weight is not None and weight.ndim > 0:
                # A network that makes fewer frames keeps the weights of the last ones, as upstream does.
                weights[f"{name}.conv.weight"] = weight[-module.conv.out_channels :]
        check_weights(weights, network.state_dict())
    except UserError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error
    check_finite(weights, path)
    return replace(config, raw=_choose_raw(path, config) if raw is None else raw), weights


def _choose_raw(path: Path, config: TinyConfig) -> bool:
    by_name = raw_by_name(path)
    hint = "--checkpoint-values (in Python, raw) says otherwise."
    if by_name is True:
        _LOGGER.warning(f"{path} is taken to work on raw latents, as LightX2V's files of its name do; {hint}")
    elif by_name is None:
        model = MODEL_OF_CHANNELS[config.latent_channels]
        _LOGGER.warning(
            f"{path} does not tell which latents it works on, and its name is that of no published file; it is taken"
            f" to be for normalized latents of {model}, as taew2_1 and taew2_2 are; {hint}"
        )
    return by_name is True
