"""Checkpoints as a whole: a source is resolved to a path, its tensors are read, recognized and checked.

Formats are told apart by their content, never by the file's name.
"""

import hashlib
import json
import math
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from wan_vae.checkpoints.detect import CONFIG_KEY, Detected, config_to_diffusers, detect
from wan_vae.checkpoints.layouts import LAYOUTS, stored_names
from wan_vae.config import VAEConfig, preset_names, read_preset
from wan_vae.errors import CheckpointError, UserError
from wan_vae.io.atomic_output import check_output, written_beside
from wan_vae.model.autoencoder import Autoencoder
from wan_vae.validation import DTYPES

WRAPPERS = ("model_state", "model", "state_dict")
"""Keys under which training checkpoints keep the model's weights."""

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
PACKAGED_WEIGHTS = Path(__file__).parents[1] / "weights"

# owner/name, owner/name@revision, either followed by /path/of/a/file. Among revisions only refs hold a slash.
_HUB_ID = re.compile(
    r"(?P<repository>(?P<owner>\w[\w.-]*)/\w[\w.-]*)"
    r"(@(?P<revision>refs/(pr|convert)/[\w.-]+|[\w.-]+))?"
    r"(/(?P<file>.*[^/]))?"
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory, mapped from its file where the format allows."""

    path: Path  # file that holds the weights
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


def load_checkpoint(source: str | Path) -> Checkpoint:
    """Locate a checkpoint as `resolve_checkpoint` does, read it and check every tensor.

    Raises:
        CheckpointError: It is missing, damaged, incomplete, of another model, or holds NaN or infinite weights.
    """
    origin = resolve_checkpoint(source)
    path, diffusers_config = _open_folder(origin) if origin.is_dir() else (origin, None)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file.")
    tensors, metadata = read_tensors(path)
    try:
        found = detect({name: tuple(tensor.shape) for name, tensor in tensors.items()}, metadata, diffusers_config)
    except UserError as error:
        raise CheckpointError(f"{origin} cannot be used: {error}") from error
    except (ArithmeticError, IndexError, RecursionError, TypeError, ValueError) as error:
        # Numbers in the file contradict each other in a way that `detect` does not check.
        raise CheckpointError(f"{origin} cannot be used: its shapes or its config make no sense ({error}).") from error
    weights = _select_weights(tensors, found, origin)
    _check_finite(weights, origin)
    return Checkpoint(path, found.layout, found.config, weights)


def resolve_checkpoint(source: str | Path) -> Path:
    """Return the path of a checkpoint on disk, fetched from the Hugging Face hub if it is not in its cache.

    Args:
        source: The first of these that fits: an existing file; a diffusers folder, or a pipeline's folder with `vae`
            in it; the name of a trained preset, such as "wan2.1"; a repository on the hub, "owner/name" for its
            diffusers folder `vae` or "owner/name/path/of/file", where the name may end in "@revision".

    Raises:
        CheckpointError: There is no such path or name, or the hub cannot be reached and its cache has no copy.
    """
    name = str(source)
    if name and Path(source).exists():
        return Path(source)
    presets = {preset: read_preset(preset) for preset in preset_names()}
    trained = {preset: values for preset, values in presets.items() if {"hub", "file"} & values.keys()}
    if name in trained:
        preset = trained[name]
        if "file" in preset:
            return PACKAGED_WEIGHTS / preset["file"]
        return _fetch(name, preset["hub"]["repository"], preset["hub"]["file"])
    hub = _HUB_ID.fullmatch(name)
    # "weights/vae.safetensors" and everything below an existing folder is a mistyped path, not a repository.
    if hub is None or Path(hub["owner"]).exists() or (hub["file"] is None and name.endswith(SUFFIXES)):
        raise CheckpointError(
            f"{source} is neither a file, a folder, a trained model ({', '.join(trained)}) nor a repository on the"
            " Hugging Face hub (owner/name)."
        )
    if hub["file"] is not None:
        return _fetch(name, hub["repository"], hub["file"], hub["revision"])
    _fetch(name, hub["repository"], "vae/config.json", hub["revision"])
    return _fetch(name, hub["repository"], f"vae/{DIFFUSERS_FILE}", hub["revision"]).parent


def write_checkpoint(
    path: Path, config: VAEConfig, weights: Mapping[str, Tensor], *, layout: str, overwrite: bool = True
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
    stored = {names[name]: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    metadata = {"format": "pt", CONFIG_KEY: json.dumps(config.to_dict())}
    with written_beside(path, overwrite=overwrite) as beside:
        if is_folder:
            beside.mkdir()
            (beside / "config.json").write_text(json.dumps(diffusers_config, indent=2) + "\n", encoding="utf-8")
        try:
            save_file(stored, beside / DIFFUSERS_FILE if is_folder else beside, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from error


def tensor_format(path: Path) -> Literal["archive", "pickle", "safetensors"] | None:
    """Return the format of a file that starts like torch's (archives or, before 1.6, pickles) or safetensors."""
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"PK\x03\x04"):
        return "archive"
    # Eight bytes of header length, of which the first may be a pickle's, and the header's brace.
    if start.endswith(b"{"):
        return "safetensors"
    return "pickle" if start.startswith(b"\x80") else None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors by name and its metadata.

    Tensors are mapped into memory, except those of torch's legacy format, which are read.

    Raises:
        CheckpointError: The file is damaged, holds no named tensors, or cannot be loaded without running code.
    """
    if tensor_format(path) in ("archive", "pickle"):
        content = _load_torch(path)
        for wrapper in WRAPPERS:
            if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
                content = content[wrapper]
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors.")
        return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}, {}
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        size = path.stat().st_size
        raise CheckpointError(f"{path} is not a readable checkpoint ({size} bytes): {error}.") from error


def _fetch(source: str, repository: str, file: str, revision: str | None = None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:
        # Errors range from sockets to HTTP, none of them with a file; their messages span many lines.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{source} could not be fetched from huggingface.co/{repository} ({reason}); with no network, fetch {file}"
            " elsewhere and give its path."
        ) from error


def _load_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # torch maps archives only, and takes a path that ends in .safetensors for another format.
            if tensor_format(path) == "archive" and not path.name.endswith(".safetensors"):
                return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged file can make the unpickler raise anything.
        if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
            raise CheckpointError(f"{path} holds more than weights and is not loaded: it could run code.") from error
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise CheckpointError(f"{path} is damaged: {reason}.") from error


def _open_folder(folder: Path) -> tuple[Path, dict[str, Any]]:
    for place in (folder, folder / "vae"):
        if (place / "config.json").is_file() and (place / DIFFUSERS_FILE).is_file():
            try:
                values = json.loads((place / "config.json").read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise CheckpointError(f"{place / 'config.json'} is not JSON: {error}.") from error
            if not isinstance(values, dict):
                raise CheckpointError(f"{place / 'config.json'} does not hold a JSON object.")
            return place / DIFFUSERS_FILE, values
    raise CheckpointError(f"{folder} is no diffusers folder: config.json and {DIFFUSERS_FILE} are not both in it.")


def _select_weights(tensors: Mapping[str, Tensor], found: Detected, origin: Path) -> dict[str, Tensor]:
    with torch.device("meta"):
        expected = Autoencoder(found.config).state_dict()
    names = stored_names(list(expected), found.config, found.layout)
    wanted = {found.prefix + stored: name for name, stored in names.items()}
    pairs = [(stored, tensors[stored], expected[name]) for stored, name in wanted.items() if stored in tensors]
    faults = {
        "missing": [name for name in wanted if name not in tensors],
        "unexpected": [name for name in tensors if name.startswith(found.prefix) and name not in wanted],
        "misshapen": [
            f"{name} is {tuple(tensor.shape)} where {tuple(like.shape)} belongs"
            for name, tensor, like in pairs
            if tensor.shape != like.shape
        ],
        # Batch-norm counters are integers; every other weight may have any floating-point dtype.
        "of a wrong type": [
            f"{name} is {tensor.dtype}"
            for name, tensor, like in pairs
            if tensor.dtype not in (DTYPES.values() if like.is_floating_point() else [like.dtype])
        ],
    }
    found_faults = [f"{len(names)} {kind}, the first {names[0]}" for kind, names in faults.items() if names]
    if found_faults:
        raise CheckpointError(
            f"{origin} does not fit the layout {found.layout!r} that its names suggest: {'; '.join(found_faults)}."
        )
    return {name: tensors[stored] for stored, name in wanted.items()}


def _check_finite(weights: Mapping[str, Tensor], origin: Path) -> None:
    for name, weight in weights.items():
        # A sum is 6 times faster than isfinite, and finite only if every value is; large values can overflow it.
        if weight.is_floating_point() and not math.isfinite(weight.sum().item()):
            count = int((~torch.isfinite(weight)).sum())
            if count > 0:
                raise CheckpointError(
                    f"{origin} is damaged: {count} of {weight.numel()} values of {name} are NaN or infinite."
                )
