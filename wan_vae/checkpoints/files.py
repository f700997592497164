"""Checkpoints as a whole: a source is resolved to a file, its tensors are recognized, checked and read; and written."""

import hashlib
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from wan_vae.arguments import check_path
from wan_vae.checkpoints.detect import CONFIG_KEY, Model, config_of, config_to_diffusers, is_average
from wan_vae.checkpoints.layouts import LAYOUTS, stored_names, stored_shape
from wan_vae.checkpoints.sources import DIFFUSERS_FILE, config_beside, open_checkpoint, resolve_checkpoint
from wan_vae.checkpoints.tensor_files import StoredTensor, TensorFile
from wan_vae.config import VAEConfig
from wan_vae.errors import CheckpointError, UserError
from wan_vae.io.atomic_output import check_output, written_beside
from wan_vae.io.safetensors_file import Version
from wan_vae.model.autoencoder import Autoencoder
from wan_vae.validation import DTYPES

_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_LOGGER = logging.getLogger("wan_vae")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory."""

    origin: Path  # the file or the folder that was named
    path: Path  # file that holds the weights, or the index of several
    versions: Mapping[Path, Version]  # of all files that were read
    layout: str  # how the file names them: one of `LAYOUTS`, or "wan_vae" for the names of `WanVAE.state_dict()`
    config: VAEConfig
    weights: dict[str, Tensor]  # every weight, named as in `WanVAE.state_dict()`, in its stored dtype

    def digest(self) -> str:
        """Return `weights_digest` of the weights: the same in every layout and file format."""
        return weights_digest(self.weights)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the weights' names, dtypes, shapes and values as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        weight = weights[name].detach().contiguous()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_checkpoint(source: str | Path, *, notices: bool = True) -> Checkpoint:
    """Locate a checkpoint as `resolve_checkpoint` does, read it and check every tensor.

    Args:
        source: The checkpoint.
        notices: Whether to log what is left out, and which of several models is loaded.

    Raises:
        CheckpointError: It is missing, damaged, incomplete, of another model, or holds NaN or infinite weights.
    """
    origin = resolve_checkpoint(source)
    path, listed, models, diffusers_config = open_checkpoint(origin)
    model = models[0]
    # A file of a folder that is named itself has no config.json of its own: the one beside it may be of another file.
    if diffusers_config is None and CONFIG_KEY not in listed.metadata and model.layout == "diffusers":
        diffusers_config = config_beside(path)
    try:
        config, statistics_known = config_of(model, listed.shapes(), listed.metadata, diffusers_config)
        with torch.device("meta"):
            expected = Autoencoder(config).state_dict()
        names = _names(listed, model, config, expected)
        read = listed.read(names.values())
    except UserError as error:
        raise CheckpointError(f"{origin} cannot be used: {error}") from error
    except (ArithmeticError, IndexError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        # Numbers in the file contradict each other in a way that `config_of` does not check.
        raise CheckpointError(f"{origin} cannot be used: its shapes or its config make no sense ({error}).") from error
    weights = {name: read[stored].reshape(expected[name].shape) for name, stored in names.items()}
    narrow = [name for name, weight in weights.items() if weight.dtype in _FLOAT8]
    weights |= {name: weights[name].to(torch.bfloat16) for name in narrow}
    check_finite(weights, origin)
    if notices:
        if not statistics_known:
            _LOGGER.warning(
                f"Nothing says what the mean and standard deviation of these {config.latent_channels} latent channels"
                " are: normalized latents will be the raw ones."
            )
        if narrow:
            _LOGGER.warning(
                f"{origin}: {len(narrow)} weights in float8 are loaded as bfloat16, which holds them exactly."
            )
        _log_left_out(origin, listed, models, set(names.values()))
    return Checkpoint(origin, path, listed.versions, model.layout, config, weights)


def write_checkpoint(
    path: str | Path, config: VAEConfig, weights: Mapping[str, Tensor], *, layout: str, overwrite: bool = True
) -> None:
    """Write weights named as in `WanVAE.state_dict()`; missing parent folders are created.

    Args:
        path: A .safetensors file, or a folder for the layout "diffusers".
        config: The architecture, which is stored in the file's metadata.
        weights: Every weight; written in its own dtype.
        layout: One of `LAYOUTS`.
        overwrite: Replace an existing file.

    Raises:
        UserError: There is no such layout, it cannot hold this config, or `path` names no safetensors file.
    """
    path = check_path("path", path)
    if layout not in LAYOUTS:
        raise UserError(f"There is no layout {layout!r}; the layouts are {' and '.join(LAYOUTS)}.")
    diffusers_config = config_to_diffusers(config) if layout == "diffusers" else None
    is_folder = path.is_dir() or not path.suffix
    if is_folder and layout != "diffusers":
        raise UserError(f"{path} is not a file name for layout {layout!r}; name a file that ends in .safetensors.")
    if not is_folder and path.suffix != ".safetensors":
        raise UserError(f"{path} would be a safetensors file; name one that ends in .safetensors.")
    check_output(path, overwrite=overwrite, may_be_folder=is_folder, must_be_utf8=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {path.parent} cannot be created ({error.strerror}).") from error
    names = stored_names(list(weights), config, layout)
    stored = {
        names[name]: weight.detach().cpu().contiguous().reshape(stored_shape(tuple(weight.shape), config, layout))
        for name, weight in weights.items()
    }
    metadata = {"format": "pt", CONFIG_KEY: json.dumps(config.to_dict())}
    with written_beside(path, overwrite=overwrite) as beside:
        if is_folder:
            beside.mkdir()
            (beside / "config.json").write_text(json.dumps(diffusers_config, indent=2) + "\n", encoding="utf-8")
        try:
            save_file(stored, beside / DIFFUSERS_FILE if is_folder else beside, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from error


def _names(listed: TensorFile, model: Model, config: VAEConfig, expected: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the name in the file of every weight, by its name in `WanVAE.state_dict()`, which is like `expected`.

    Raises:
        CheckpointError: Weights are missing, misshapen or of a wrong type, or there are some that the network lacks.
    """
    stored_as = stored_names(list(expected), config, model.layout)
    names = {name: model.prefix + stored for name, stored in stored_as.items()}
    tensors = {stored: entry.like for stored, entry in listed.tensors.items()}
    pairs = [
        (
            stored,
            tensors[stored],
            expected[name].reshape(stored_shape(tuple(expected[name].shape), config, model.layout)),
        )
        for name, stored in names.items()
        if stored in tensors
    ]
    wanted, parts = set(names.values()), {f"{model.prefix}{stored.split('.')[0]}." for stored in stored_as.values()}
    faults = {
        "missing": [stored for stored in names.values() if stored not in tensors],
        "unexpected": [
            stored
            for stored, tensor in tensors.items()
            if stored.startswith(tuple(parts)) and stored not in wanted and not _is_state(stored, tensor)
        ],
        "misshapen": [
            f"{stored} is {tuple(tensor.shape)} where {tuple(like.shape)} belongs"
            for stored, tensor, like in pairs
            if tensor.shape != like.shape
        ],
        # Batch-norm counters are integers; every other weight may have any floating-point dtype.
        "of a wrong type": [
            f"{stored} is {_type_name(listed.tensors[stored])}"
            for stored, tensor, like in pairs
            if tensor.dtype not in ((*DTYPES.values(), *_FLOAT8) if like.is_floating_point() else (like.dtype,))
            or not listed.tensors[stored].has_values()
        ],
    }
    found_faults = [f"{len(names)} {kind}, the first {names[0]}" for kind, names in faults.items() if names]
    if found_faults:
        # In this layout the number of blocks changes the names of all that follow.
        untold = model.layout == "wan" and CONFIG_KEY not in listed.metadata and not config.images_only
        advice = (
            " If its levels are not those of Wan, store it with WanVAE.save, which keeps the config." if untold else ""
        )
        raise CheckpointError(
            f"it does not fit the layout {model.layout!r} that its names suggest: {'; '.join(found_faults)}.{advice}"
        )
    return names


def _is_state(name: str, tensor: Tensor) -> bool:
    """Whether a tensor inside the network is no weight: a counter, or the cache of a program that runs it."""
    return not tensor.is_floating_point() or "cache" in name.lower()


def _type_name(stored: StoredTensor) -> str:
    if stored.has_values():
        return str(stored.like.dtype)
    return "on the meta device, without values" if stored.like.is_meta else f"{stored.like.layout}, {stored.like.dtype}"


def _log_left_out(origin: Path, listed: TensorFile, models: list[Model], loaded: set[str]) -> None:
    """Log which other models, and which other tensors than buffers, are not loaded."""
    first, others = models[0], models[1:]
    if others:
        names = ", ".join(repr(model.prefix) for model in others)
        averages = ", a moving average of the weights" if all(map(is_average, others)) else ""
        _LOGGER.warning(
            f"{origin} holds {len(models)} VAEs: {first.prefix!r} is loaded, and {names}{averages}, is left out; save"
            " it alone to load it."
        )
    left_out = [
        name
        for name, stored in listed.tensors.items()
        if name not in loaded
        and stored.like.ndim > 1
        and not (others and any(model.prefix and name.startswith(model.prefix) for model in others))
    ]
    if left_out:
        _LOGGER.warning(
            f"{origin} also holds {len(left_out)} tensors that are no weights of the VAE and are left out, the first"
            f" {left_out[0]!r}."
        )


def check_finite(weights: Mapping[str, Tensor], origin: Path) -> None:
    """Raise a CheckpointError if a weight is NaN or infinite."""
    for name, weight in weights.items():
        # A sum is 6 times faster than isfinite, and finite only if every value is; large values can overflow it.
        if weight.is_floating_point() and not math.isfinite(weight.sum().item()):
            count = int((~torch.isfinite(weight)).sum())
            if count > 0:
                raise CheckpointError(
                    f"{origin} is damaged: {count} of {weight.numel()} values of {name} are NaN or infinite."
                )
