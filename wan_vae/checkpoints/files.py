"""Checkpoints read and written as a whole: files in any layout, and diffusers' folders.

The tensors in a file, whichever of the formats it is in; told from its content, never from its name.

From what a user names to a checkpoint on disk.
"""

import hashlib
import json
import math
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

WRAPPERS = ("model_state", "state_dict")
"""Keys under which training checkpoints keep the model's weights."""


def holds_tensors(path: Path) -> bool:
    """Whether a file starts like one of torch or of safetensors."""
    return _is_torch(path) or _start(path).endswith(b"{")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's tensors by name, mapped rather than read unless it is one of torch's old ones, and its metadata.

    Raises:
        CheckpointError: It is damaged, holds no named tensors, or more than can be loaded without running code.
    """
    if _is_torch(path):
        return _named_tensors(_load_torch(path), path), {}
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        size = path.stat().st_size
        raise CheckpointError(f"{path} is not a readable checkpoint ({size} bytes): {error}.") from error


def _is_torch(path: Path) -> bool:
    # torch's files are zip archives or, if old, pickles. A safetensors file starts with eight bytes of header length,
    # of which any may be the first, and the header's brace.
    start = _start(path)
    return _is_archive(path) or (start.startswith(b"\x80") and not start.endswith(b"{"))


def _is_archive(path: Path) -> bool:
    return _start(path).startswith(b"PK\x03\x04")


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(9)


def _load_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Only archives can be mapped, and only by their name, which torch believes rather than the content.
            if _is_archive(path) and not path.name.endswith(".safetensors"):
                return torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # What a damaged file makes the unpickler do is anybody's guess.
        if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
            raise CheckpointError(f"{path} holds more than weights and is not loaded: it could run code.") from error
        reason = (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        raise CheckpointError(f"{path} is damaged: {reason}.") from error


def _named_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not named tensors.")
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


MODELS = Path(__file__).parents[1] / "weights"


def resolve_checkpoint(source: str | Path) -> Path:
    """Return the path of a checkpoint: `source` itself if it exists, otherwise a trained preset's file.

    A preset's file is in this package, or in the hub's cache, where it is fetched to when it is not there yet.

    Raises:
        CheckpointError: There is no such path or name, or the hub cannot be reached and the cache has no copy.
    """
    if str(source) and Path(source).exists():
        return Path(source)
    presets = {name: read_preset(name) for name in preset_names()}
    trained = {name: preset for name, preset in presets.items() if {"hub", "file"} & preset.keys()}
    if str(source) not in trained:
        raise CheckpointError(f"{source} is neither a file, a folder nor a trained model ({', '.join(trained)}).")
    preset = trained[str(source)]
    return MODELS / preset["file"] if "file" in preset else _download(str(source), preset["hub"])


def _download(name: str, hub: dict[str, str]) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(hub["repository"], hub["file"]))
    except Exception as error:
        # Whatever goes wrong on the way, down to the sockets, there is no file; messages run over many lines.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{name} could not be fetched from huggingface.co/{hub['repository']} ({reason}); with no network, fetch"
            f" {hub['file']} elsewhere and give its path."
        ) from error


FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory, mapped from its file where the format allows.

    Attributes:
        path: The file that the weights come from.
        layout: How it names them, one of `LAYOUTS`.
        config: The architecture.
        weights: Every weight, named as in `WanVAE.state_dict()`, as stored.
    """

    path: Path
    layout: str
    config: VAEConfig
    weights: dict[str, Tensor]

    def digest(self) -> str:
        """Return the SHA-256 of the weights' names, types and values: the same in every layout and file format."""
        digest = hashlib.sha256()
        for name in sorted(self.weights):
            weight = self.weights[name].contiguous()
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
            digest.update(weight.cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file or a diffusers folder (or a pipeline's folder with `vae` in it), and check every tensor.

    Raises:
        CheckpointError: It is missing, damaged, incomplete, of another model, or holds NaN or infinite weights.
    """
    diffusers_config = None
    origin = path
    if path.is_dir():
        path, diffusers_config = _open_folder(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist.")
    tensors, metadata = read_tensors(path)
    try:
        found = detect({name: tuple(tensor.shape) for name, tensor in tensors.items()}, metadata, diffusers_config)
    except UserError as error:
        raise CheckpointError(f"{origin} cannot be used: {error}") from error
    except (ArithmeticError, IndexError, RecursionError, TypeError, ValueError) as error:
        # The numbers in the file contradict each other in a way that nobody thought of.
        raise CheckpointError(f"{origin} cannot be used: its shapes or its config make no sense ({error}).") from error
    weights = _pick(tensors, found, origin)
    _check_finite(weights, origin)
    return Checkpoint(path, found.layout, found.config, weights)


def write_checkpoint(path: Path, config: VAEConfig, weights: Mapping[str, Tensor], *, layout: str) -> None:
    """Write weights named as in `WanVAE.state_dict()` to a safetensors file, or to a folder as diffusers does.

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
    check_output(path, overwrite=True, may_be_folder=is_folder)
    names = stored_names(list(weights), config, layout)
    stored = {names[name]: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    metadata = {"format": "pt", CONFIG_KEY: json.dumps(config.to_dict())}
    with written_beside(path) as beside:
        if is_folder:
            beside.mkdir()
            (beside / "config.json").write_text(json.dumps(diffusers_config, indent=2) + "\n", encoding="utf-8")
        try:
            save_file(stored, beside / DIFFUSERS_FILE if is_folder else beside, metadata=metadata)
        except SafetensorError as error:
            raise OSError(f"{path} could not be written: {error}") from error


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


def _pick(tensors: Mapping[str, Tensor], found: Detected, origin: Path) -> dict[str, Tensor]:
    with torch.device("meta"):
        expected = Autoencoder(found.config).state_dict()
    names = stored_names(list(expected), found.config, found.layout)
    wanted = {found.prefix + stored: here for here, stored in names.items()}
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name.startswith(found.prefix) and name not in wanted]
    misshapen = [
        f"{name} is {tuple(tensors[name].shape)} where {tuple(expected[here].shape)} belongs"
        for name, here in wanted.items()
        if name in tensors and tensors[name].shape != expected[here].shape
    ]
    mistyped = [
        f"{name} is {tensors[name].dtype}"
        for name, here in wanted.items()
        if name in tensors and not _types_agree(tensors[name].dtype, expected[here].dtype)
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen, "of a wrong type": mistyped}
    faults = [f"{len(faulty)} {kind}, the first {faulty[0]}" for kind, faulty in kinds.items() if faulty]
    if faults:
        raise CheckpointError(
            f"{origin} does not fit the layout {found.layout!r} that its names suggest: {'; '.join(faults)}."
        )
    return {here: tensors[name] for name, here in wanted.items()}


def _types_agree(stored: torch.dtype, expected: torch.dtype) -> bool:
    # Counters of batch norms are whole numbers; all else is floating point of any usual width.
    return stored in FLOATING if expected.is_floating_point else stored == expected


def _check_finite(weights: Mapping[str, Tensor], origin: Path) -> None:
    for name, weight in weights.items():
        # A sum takes a sixth of the time, and is not finite if any value is not; very large ones need a second look.
        if weight.is_floating_point() and not math.isfinite(weight.sum().item()):
            count = int((~torch.isfinite(weight)).sum())
            if count > 0:
                raise CheckpointError(
                    f"{origin} is damaged: {count} of {weight.numel()} values of {name} are NaN or infinite."
                )
