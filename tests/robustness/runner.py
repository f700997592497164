"""Run commands, each in a process of its own, and judge how they ended.

Starting Python and PyTorch takes seconds, so a server process imports both once and forks for every command. It
computes nothing itself: OpenMP's threads do not survive a fork.
"""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NoReturn

ROOT = Path(__file__).parents[2]
LONGEST = 30.0  # seconds
LARGEST_GROWTH = 500 << 20  # bytes; libraries, a model and its first pass take up to 300 MiB
_PROGRESS = re.compile(r"wan-vae: .*( left(, .*)?|\[[\d:]+\])")  # what long work says every few seconds


@dataclass(frozen=True)
class Case:
    """A command line, and how it may end.

    Attributes:
        arguments: Of `wan-vae`.
        frames: Frames in the input: where the command succeeds, it must have seen all of them, or have said otherwise.
            None where the attack may change their number without a trace.
        output: What the command writes.
        forbidden: A file that appears only if the attack runs its own code.
        refused: Nothing but a refusal will do.
    """

    arguments: list[str]
    frames: int | None = None
    output: Path | None = None
    forbidden: Path | None = None
    refused: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a command ended; a negative code is the signal that ended it, and None stands for a hang."""

    code: int | None
    out: str
    err: str
    growth: int  # bytes of memory beyond those of a process that does nothing
    seconds: float


def fault(case: Case, ended: Outcome) -> str | None:
    """Return what is wrong with an outcome in a few words; None where nothing is."""
    lines = [line for line in ended.err.splitlines() if _PROGRESS.fullmatch(line) is None]
    if ended.code is None:
        return f"hangs for {LONGEST:.0f} s"
    if "Traceback" in ended.err or "Exception ignored" in ended.err:
        return "traceback"
    if ended.code not in (0, 2):
        return f"exit code {ended.code}"
    if any(not line.isprintable() for line in lines):
        return "control characters in a message"
    if ended.code == 2 and (not lines or not lines[-1].startswith("wan-vae: ") or not lines[-1].endswith(".")):
        return "no sentence"
    if len(lines) > 4:
        return f"{len(lines)} lines on standard error"
    if ended.growth > LARGEST_GROWTH:
        return f"takes {ended.growth >> 20} MiB"
    if case.forbidden is not None and case.forbidden.exists():
        return "ran code from the file"
    if case.refused and ended.code == 0:
        return "is accepted"
    if case.output is not None:
        if ended.code == 2 and case.output.exists():
            return "an output in spite of a refusal"
        if ended.code == 0 and not case.output.exists():
            return "no output"
        if case.output.parent.is_dir() and any(".partial" in path.name for path in case.output.parent.iterdir()):
            return "leftovers"
    if ended.code == 0 and case.frames is not None:
        seen = json.loads(ended.out).get("frames")
        if seen < case.frames and not lines:
            return f"{seen} of {case.frames} frames without a word"
    return None


class Runner:
    """Runs cases in a server process. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> "Runner":
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WAN_VAE_BUILD_KERNELS": "0"}
        environment["HF_HUB_OFFLINE"] = "1"
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.robustness.runner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()

    def run(self, case: Case) -> Outcome:
        """Run a case's command in the runner's folder."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        out, err = self._folder / "stdout", self._folder / "stderr"
        request = {"arguments": case.arguments, "out": str(out), "err": str(err), "folder": str(self._folder)}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        code, growth, seconds = json.loads(self._server.stdout.readline())
        texts = (path.read_text(errors="surrogateescape") for path in (out, err))
        return Outcome(code, *texts, growth=growth, seconds=seconds)


def _serve() -> None:
    import torch

    import wan_vae.cli.app
    import wan_vae.files  # noqa: F401

    torch.set_num_threads(1)
    idle = os.fork()
    if idle == 0:
        os._exit(0)
    _, least = _wait(idle, time.monotonic() + LONGEST)
    for line in sys.stdin:
        request = json.loads(line)
        begun = time.monotonic()
        child = os.fork()
        if child == 0:
            _run(request)
        code, peak = _wait(child, begun + LONGEST)
        print(json.dumps([code, max(0, peak - least), time.monotonic() - begun]), flush=True)


def _run(request: dict[str, str]) -> NoReturn:
    from wan_vae.cli import main

    for number, path in ((1, request["out"]), (2, request["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["folder"])
    # An attack that succeeds must not take the machine with it.
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (6 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    code: object = 1
    try:
        main(request["arguments"])
    except SystemExit as error:
        code = error.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _wait(child: int, deadline: float) -> tuple[int | None, int]:
    hung = False
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return None if hung else os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
        if not hung and time.monotonic() > deadline:
            hung = True
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


if __name__ == "__main__":
    _serve()
