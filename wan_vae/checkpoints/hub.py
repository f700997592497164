"""From what a user names to a checkpoint on disk."""

from pathlib import Path

from wan_vae.config import preset_names, read_preset
from wan_vae.errors import CheckpointError

MODELS = Path(__file__).parents[1] / "models"


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
