"""From what a user names to a checkpoint on disk."""

from pathlib import Path

from wan_vae.config import preset_names, read_preset
from wan_vae.errors import CheckpointError


def resolve_checkpoint(source: str | Path) -> Path:
    """Return the path of a checkpoint: `source` itself if it exists, otherwise a preset's file from the hub's cache.

    Raises:
        CheckpointError: There is no such path or name, or the hub cannot be reached and the cache has no copy.
    """
    if str(source) and Path(source).exists():
        return Path(source)
    trained = [name for name in preset_names() if "hub" in read_preset(name)]
    if str(source) not in trained:
        raise CheckpointError(f"{source} is neither a file, a folder nor a trained model ({', '.join(trained)}).")
    return _download(str(source))


def _download(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    hub = read_preset(name)["hub"]
    try:
        return Path(hf_hub_download(hub["repository"], hub["file"]))
    except Exception as error:
        # Whatever goes wrong on the way, down to the sockets, there is no file; messages run over many lines.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{name} could not be fetched from huggingface.co/{hub['repository']} ({reason}); with no network, fetch"
            f" {hub['file']} elsewhere and give its path."
        ) from error
