"""What tests of caches read of them."""

from pathlib import Path


def outputs(folder: Path) -> dict[str, bytes]:
    """Return the content of all safetensors files by their names below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}
