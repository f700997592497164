"""Where the outputs of a cache are: below its folder, or at URLs of any storage that fsspec knows, such as s3://."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from wan_vae.errors import UserError


class StorageError(UserError):
    """A storage cannot be used, whatever clip it is for."""


def check_store(url: object) -> None:
    """Raise a UserError unless `url` names a storage; whether it can be reached is not asked."""
    protocol, separator, rest = url.partition("://") if isinstance(url, str) else ("", "", "")
    if not (separator and protocol.isalnum() and rest):
        raise UserError(f"store is {url!r}; write it as a URL, such as s3://bucket/latents.")


class Store:
    """A folder of a storage.

    An output is uploaded under its name when it is complete. Where a storage shows half an upload, as disks do, the
    manifest does not name it, and the next run replaces it.
    """

    def __init__(self, url: str) -> None:
        """Connect, with what fsspec's configuration and the environment say of credentials.

        Raises:
            UserError: The package for this kind of storage is missing, or it cannot be reached.
        """
        from fsspec.core import url_to_fs

        check_store(url)
        self._url = url
        self._made: set[str] = set()
        with self._reported("cannot be used"):
            self._files, self._root = url_to_fs(url)

    @contextmanager
    def _reported(self, fault: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # each storage has its own
            raise StorageError(f"{self._url} {fault} ({str(error) or type(error).__name__}).") from error

    def create(self) -> None:
        """Make the folder, so that a run that cannot write to it ends before it computes.

        Raises:
            UserError: It cannot be made.
        """
        with self._reported("cannot be created"):
            self._files.makedirs(self._root, exist_ok=True)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of all files by their URLs.

        Raises:
            UserError: The storage cannot be reached.
        """
        with self._reported("cannot be listed"):
            self._files.invalidate_cache()
            found: dict[str, dict[str, Any]] = {}
            with suppress(FileNotFoundError):  # before the first run
                found = self._files.find(self._root, detail=True)
            return {self._files.unstrip_protocol(name): facts["size"] for name, facts in found.items()}

    def put(self, path: Path, below: Path) -> str:
        """Upload a file, and return its URL.

        Raises:
            StorageError: It cannot be.
        """
        name = f"{self._root.rstrip('/')}/{below.as_posix()}"
        with self._reported("takes no files"):
            if (folder := name.rpartition("/")[0]) not in self._made:
                self._files.makedirs(folder, exist_ok=True)
                self._made.add(folder)
            self._files.put_file(str(path), name)
            url: str = self._files.unstrip_protocol(name)
        return url

    def fetch(self, url: str, path: Path) -> None:
        """Download the file at a URL of this storage.

        Raises:
            StorageError: It cannot be.
        """
        with self._reported("cannot be read"):
            self._files.get_file(self._name(url), str(path))

    def remove(self, url: str) -> None:
        """Remove the file at a URL of this storage, if it is there.

        Raises:
            StorageError: It cannot be.
        """
        with self._reported("cannot be removed"), suppress(FileNotFoundError):
            self._files.rm_file(self._name(url))

    @staticmethod
    def _name(url: str) -> str:
        from fsspec.core import url_to_fs

        name: str = url_to_fs(url)[1]
        return name


def is_below(output: object) -> bool:
    """Whether an output is a path that stays in its folder."""
    return isinstance(output, str) and not Path(output).is_absolute() and ".." not in Path(output).parts


def is_url(output: str) -> bool:
    """Whether the `output` of a record is a URL rather than a file below the cache's folder."""
    return "://" in output


def remove_output(folder: Path, output: str) -> None:
    """Remove the `output` of a record of the cache in `folder`, if it is there.

    Raises:
        UserError: It is at a URL, and cannot be removed.
    """
    if is_url(output):
        Store(output).remove(output)
    else:
        (folder / output).unlink(missing_ok=True)


class Outputs:
    """The outputs of a cache as files. One that is at a URL is downloaded, until the next is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._copy: tuple[str, tempfile.TemporaryDirectory[str]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_folder": self._folder, "_copy": None}  # another process has copies of its own

    def shown(self, output: str) -> str:
        """Return what messages call the `output` of a record: its path or URL."""
        return output if is_url(output) else str(self._folder / output)

    def path(self, output: str) -> Path:
        """Return the file of the `output` of a record, which may be missing below the folder.

        Raises:
            UserError: It cannot be downloaded.
        """
        if not is_url(output):
            return self._folder / output
        if self._copy is None or self._copy[0] != output:
            self._copy = None
            place = tempfile.TemporaryDirectory(prefix="wan_vae_")
            Store(output).fetch(output, Path(place.name) / output.rpartition("/")[2])
            self._copy = output, place
        return Path(self._copy[1].name) / output.rpartition("/")[2]
