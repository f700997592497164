"""YAML files that a user names."""

from pathlib import Path
from typing import Any

import yaml

from wan_vae.errors import UserError


def read_yaml(path: Path, *, missing: str) -> Any:
    """Return what a YAML file holds.

    Args:
        path: The file.
        missing: What to say where there is none.

    Raises:
        UserError: There is no such file, it cannot be read, or it is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(missing) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
