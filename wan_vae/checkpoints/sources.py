"""Where checkpoints come from: files, folders, names of presets, and the Hugging Face hub."""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from wan_vae.checkpoints.detect import Model, find_models
from wan_vae.checkpoints.tensor_files import TensorFile, list_tensors, read_json
from wan_vae.config import preset_names, read_preset
from wan_vae.errors import CheckpointError

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
DIFFUSERS_FILE = "diffusion_pytorch_model.safetensors"
PACKAGED_WEIGHTS = Path(__file__).parents[1] / "weights"
_INDEX_SUFFIX = ".index.json"
_MOST_FILES = 256  # of weights in a folder that is searched

# owner/name, owner/name@revision, either followed by /path/of/a/file. Among revisions only refs hold a slash.
_HUB_ID = re.compile(
    r"(?P<repository>(?P<owner>\w[\w.-]*)/\w[\w.-]*)"
    r"(@(?P<revision>refs/(pr|convert)/[\w.-]+|[\w.-]+))?"
    r"(/(?P<file>.*[^/]))?"
)
_LOGGER = logging.getLogger("wan_vae")


class CheckpointTensors(NamedTuple):
    """The tensors of a checkpoint, the VAEs among them, and the config.json that belongs to them, if there is one."""

    path: Path  # the file, or the index of several
    listed: TensorFile
    models: list[Model]
    diffusers_config: dict[str, Any] | None


def resolve_checkpoint(source: str | Path) -> Path:
    """Return the path of a checkpoint on disk, fetched from the Hugging Face hub if it is not in its cache.

    Args:
        source: The first of these that fits: the name of a trained preset, such as "wan2.1"; an existing file; a
            folder with weights, or a pipeline's folder with `vae` in it; a repository on the hub, "owner/name" for its
            diffusers folder `vae` or "owner/name/path/of/file", where the name may end in "@revision". A file or a
            folder that is called like a preset is meant with "./wan2.1" or a `Path`.

    Raises:
        CheckpointError: There is no such path or name, the hub cannot be reached and its cache has no copy, or its file
            is not the one that the preset names.
    """
    name = str(source)
    presets = {preset: read_preset(preset) for preset in preset_names()}
    trained = {preset: values for preset, values in presets.items() if {"hub", "file"} & values.keys()}
    exists = bool(name) and os.path.lexists(name)
    if name in trained and not (isinstance(source, Path) and exists):
        if exists:
            _LOGGER.warning(f"{name} is the model of that name here; for the file or folder write ./{name}.")
        return _preset_file(name, trained[name])
    if exists:
        return Path(source)
    hub = _HUB_ID.fullmatch(name)
    # "weights/vae.safetensors" and everything below an existing folder is a mistyped path, not a repository.
    if hub is None or os.path.lexists(hub["owner"]) or (hub["file"] is None and name.endswith(SUFFIXES)):
        raise CheckpointError(
            f"{source} is neither a file, a folder, a trained model ({', '.join(trained)}) nor a repository on the"
            " Hugging Face hub (owner/name)."
        )
    if hub["file"] is not None:
        return _fetch(name, hub["repository"], hub["file"], hub["revision"])
    for file in ("config.json", DIFFUSERS_FILE):
        path = _fetch(name, hub["repository"], f"vae/{file}", hub["revision"], wanted="the folder vae")
    return path.parent


def open_checkpoint(origin: Path) -> CheckpointTensors:
    """List the tensors of a file, or of the file in a folder that holds a Wan VAE.

    Raises:
        CheckpointError: A file cannot be read, or holds no Wan VAE; or a folder holds none, or several.
    """
    if not origin.is_dir():
        listed = list_tensors(origin)
        return CheckpointTensors(origin, listed, _models(listed, origin), None)
    for folder in (origin, origin / "vae"):
        config = _vae_config(folder)
        if (folder / DIFFUSERS_FILE).is_file():
            listed = list_tensors(folder / DIFFUSERS_FILE)
            # A transformer's file has the same name.
            if config is not None or _holds_model(listed):
                return CheckpointTensors(folder / DIFFUSERS_FILE, listed, _models(listed, origin), config)
        found = list(_search(folder))
        if len(found) > 1:  # in the folder of a training run one is the state that it resumes from
            found = [(path, listed) for path, listed in found if not _holds_optimizer(listed)] or found
        if len(found) > 1:
            names = [path.name for path, _ in found]
            listing = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) < 9 else f"{', '.join(names[:8])}, ..."
            raise CheckpointError(f"{folder} holds {len(names)} checkpoints, {listing}; name one of these files.")
        if found:
            path, listed = found[0]
            return CheckpointTensors(path, listed, _models(listed, origin), config)
    raise CheckpointError(
        f"{origin} is no diffusers folder, and no file ending in {', '.join(SUFFIXES)} in it or in its vae/ holds a Wan"
        " VAE."
    )


def holds_checkpoint(folder: Path) -> bool:
    """Whether a folder, or `vae` in it, has a config.json or a file that holds a Wan VAE."""
    return any((place / "config.json").is_file() or any(_search(place)) for place in (folder, folder / "vae"))


def config_beside(path: Path) -> dict[str, Any] | None:
    """Return the content of the config.json of a VAE in the folder of a file, None if there is none."""
    try:
        return _vae_config(path.parent)
    except CheckpointError:
        return None


def _models(listed: TensorFile, origin: Path) -> list[Model]:
    try:
        return find_models(listed.shapes())
    except CheckpointError as error:
        raise CheckpointError(f"{origin} cannot be used: {error}") from error


def _holds_model(listed: TensorFile) -> bool:
    try:
        return bool(find_models(listed.shapes()))
    except CheckpointError:
        return False


def _holds_optimizer(listed: TensorFile) -> bool:
    return any(name.startswith("optimizer") for name in listed.shapes())


def _search(folder: Path) -> Iterator[tuple[Path, TensorFile]]:
    """Yield the files of a folder that hold a Wan VAE; one in several files by its index."""
    paths = list(_weight_files(folder))
    if len(paths) > _MOST_FILES:
        raise CheckpointError(f"{folder} holds {len(paths)} files of weights; name one of them.")
    shards: set[Path] = set()
    for path in sorted(paths, key=lambda path: (not path.name.endswith(_INDEX_SUFFIX), path)):
        if path in shards:
            continue
        try:
            listed = list_tensors(path)
        except CheckpointError as error:
            _LOGGER.warning(f"{error} It is left out of the search for a checkpoint in {folder}.")
            continue
        shards |= set(listed.versions)
        if _holds_model(listed):
            yield path, listed


def _weight_files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        hidden = path.name.startswith(".")
        if path.name.endswith((*SUFFIXES, _INDEX_SUFFIX)) and not hidden and path.is_file():
            yield path


def _vae_config(folder: Path) -> dict[str, Any] | None:
    """Return the config.json in a folder, None if there is none, or one of another model, such as a transformer."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    values = read_json(path)
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.")
    return values if "AutoencoderKL" in str(values.get("_class_name", "AutoencoderKL")) else None


def _preset_file(name: str, preset: dict[str, Any]) -> Path:
    if "file" in preset:
        return PACKAGED_WEIGHTS / preset["file"]
    hub = preset["hub"]
    path = _fetch(name, hub["repository"], hub["file"], hub.get("revision"))
    if "sha256" in hub and (found := _sha256(path)) != hub["sha256"]:
        raise CheckpointError(
            f"{path} is not the {name} that was published: its SHA-256 is {found}, not {hub['sha256']}; delete it, and"
            " it is fetched again, or give its path to load it as it is."
        )
    return path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _fetch(source: str, repository: str, file: str, revision: str | None = None, wanted: str = "") -> Path:
    """Return a file of a repository in the hub's cache; messages name `wanted`, by default the file."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    try:
        if not isinstance(try_to_load_from_cache(repository, file, revision=revision), str):
            # This fails at once without a network; the download would try for half a minute.
            size = get_hf_file_metadata(hf_hub_url(repository, file, revision=revision)).size or 0
            _LOGGER.info(f"fetching {source} from huggingface.co/{repository} ({size / 1e6:.0f} MB)")
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:
        # Errors range from sockets to HTTP, none of them with a file; their messages span many lines.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{source} could not be fetched from huggingface.co/{repository} ({reason}); with no network, fetch"
            f" {wanted or file} elsewhere and give its path (--checkpoint PATH)."
        ) from error
