"""What a command says on standard error while it works: notices, and what is being done."""

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tqdm import tqdm

from wan_vae.cli.distributed import is_main
from wan_vae.errors import UserError

INTERVAL = 5.0
"""Seconds between two lines of a bar where standard error is no terminal."""

_LOGGER = logging.getLogger("wan_vae")
_bars: list["Bar"] = []
_quiet = False


class Bar(tqdm):  # type: ignore[type-arg]  # generic in the stubs only
    """A bar on a terminal, else a line every `INTERVAL` seconds, which a log can hold; nothing with --quiet.

    Until the total is known, it names what is being done: the last thing that the package has logged.
    """

    monitor_interval = 0  # no thread of tqdm's

    def __init__(self, *, unit: str, total: int | None = None, initial: int = 0) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._ended = threading.Event()
        self._counted = ""
        super().__init__(
            total=total,
            initial=initial,
            unit=unit,
            leave=False,
            miniters=1,
            smoothing=0,  # the mean speed: the first steps are the slowest
            file=sys.stderr if self._is_terminal else io.StringIO(),
            disable=_quiet or not is_main(),
            bar_format="{desc} [{elapsed}]" if total is None else self._format(),
            desc="starting" if total is None else None,
        )
        _bars.append(self)
        if not self._is_terminal and not self.disable:
            threading.Thread(target=self._print_lines, daemon=True).start()

    def begin(self, activity: str, total: int, initial: int = 0) -> None:
        """Count to a total from now on."""
        self.bar_format = self._format()
        self.desc = self._counted = f"{activity}: "
        self.reset(total)
        self.initial = self.n = self.last_print_n = initial

    def update(self, n: float | None = 1) -> bool | None:
        """Count on; what was described is done."""
        self.desc = self._counted
        return super().update(n)

    def describe(self, activity: str) -> None:
        """Name what is being done now, until the next update."""
        self.desc = activity if self.total is None else f"{activity}: "
        self.refresh()

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # type: ignore[override]  # as tqdm's does
        """Draw the bar, on a terminal."""
        return self._is_terminal and bool(super().display(msg, pos))

    def close(self) -> None:
        self._ended.set()
        if self in _bars:
            _bars.remove(self)
        super().close()

    def _format(self) -> str | None:
        return None if self._is_terminal else "{desc}{n_fmt} of {total_fmt} {unit}s, {remaining} left{postfix}"

    def _print_lines(self) -> None:
        while not self._ended.wait(INTERVAL):
            with suppress(OSError, ValueError):  # standard error is closed
                print(f"wan-vae: {self}", file=sys.stderr, flush=True)


class _Messages(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__()
        self._printed = level

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= self._printed:
            with suppress(OSError, ValueError):  # standard error is closed
                Bar.write(f"wan-vae: {text}", file=sys.stderr)
        if record.levelno == logging.INFO and _bars:
            _bars[-1].describe((text[0].lower() + text[1:]).rstrip("."))


@contextmanager
def shown(*, quiet: bool, verbose: bool) -> Iterator[None]:
    """Print notices, with `verbose` also what is being done; with `quiet` neither these nor bars."""
    global _quiet
    if quiet and verbose:
        raise UserError("--quiet and --verbose exclude each other; pass one of them.")
    handler = _Messages(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)
    before, _quiet = (_quiet, _LOGGER.level), quiet
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _quiet, level = before
        _LOGGER.setLevel(level)
