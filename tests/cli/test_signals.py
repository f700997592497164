"""Signals end a command cleanly, and the process dies of them, so that a shell loop around it ends too."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
APP = """
import os, signal, sys, time, typer, weakref
from wan_vae.cli import main
app = typer.Typer(name="x")
"""
LOST = """
@app.command()
def command() -> None:
    class Thing: ...
    thing = Thing()
    weakref.finalize(thing, lambda: signal.raise_signal(signal.SIGINT))
    del thing
    {after}
main([], app)
"""
INTERRUPTED = "wan-vae: interrupted; no output was written.\n"


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)


def test_signal_lost_in_a_finalizer_still_ends_the_command() -> None:
    ended = run_python(APP + LOST.format(after="print('done')"))
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "done\n", "")


def test_signal_lost_in_a_finalizer_is_raised_again_in_a_long_step() -> None:
    begun = time.monotonic()
    ended = run_python(APP + LOST.format(after="time.sleep(50)"))
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, INTERRUPTED)
    assert time.monotonic() - begun < 40


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_kills_the_process_after_its_cleanup(number: signal.Signals) -> None:
    command = f"""
@app.command()
def command() -> None:
    import atexit
    atexit.register(print, "cleaned up")
    signal.raise_signal({int(number)})
main([], app)
"""
    ended = run_python(APP + command)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-number, "cleaned up\n", INTERRUPTED)


def test_signal_while_importing_leaves_no_traceback() -> None:
    ended = run_python(
        """
import signal, sys
class Finder:
    def find_spec(self, name, *rest):
        if name == "typer":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
from wan_vae.cli import main
main(["--help"])
"""
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", INTERRUPTED)


def test_signal_while_importing_torch_leaves_no_traceback() -> None:
    command = """
class Finder:
    def find_spec(self, name, *rest):
        if name == "torch.func" and not hasattr(self, "raised"):
            self.raised = True
            signal.raise_signal(signal.SIGINT)
@app.command()
def command() -> None:
    sys.meta_path.insert(0, Finder())
    import torch
main([], app)
"""
    ended = run_python(APP + command)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", INTERRUPTED)


def test_signal_while_exiting_kills_the_process() -> None:
    command = """
@app.command()
def command() -> None:
    import atexit
    class Thing: ...
    thing = Thing()
    weakref.finalize(thing, lambda: signal.raise_signal(signal.SIGINT)).atexit = False
    atexit.register(setattr, sys, "thing", thing)
    atexit.register(signal.raise_signal, signal.SIGINT)
main([], app)
"""
    ended = run_python(APP + command)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


def test_ignored_signal_stays_ignored() -> None:
    command = """
@app.command()
def command() -> None:
    signal.raise_signal(signal.SIGHUP)
    print("went on")
main([], app)
"""
    ended = run_python("import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + APP + command)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "went on\n", "")


CHUNKS = """
from wan_vae.cli import common, signals
signals.GRACE = {grace}
@app.command()
def command() -> None:
    with common.Progress() as progress:
        progress(0, 3)
        for _ in range({times}):
            signal.raise_signal(signal.SIGTERM)
        time.sleep({seconds})
        print("the chunk ends")
        progress(1, 3)
        print("went on")
main([], app)
"""


@pytest.mark.parametrize(
    ("times", "grace", "seconds", "out"),
    [(1, 60, 0.1, "the chunk ends\n"), (2, 60, 0.1, ""), (1, 0.2, 50, "")],
    ids=["one waits for the chunk", "two do not", "a long chunk is not waited for"],
)
def test_signal_in_a_chunk_ends_the_command(times: int, grace: float, seconds: float, out: str) -> None:
    ended = run_python(APP + CHUNKS.format(times=times, grace=grace, seconds=seconds))
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGTERM, out, INTERRUPTED)


def test_third_signal_ends_the_process_at_once() -> None:
    command = """
@app.command()
def command() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            print("went on")
main([], app)
"""
    ended = run_python(APP + command)
    assert (ended.returncode, ended.stdout) == (-signal.SIGINT, "")


def test_shell_loop_ends_with_the_command(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(
        APP + "app.command()(lambda: (print('begun', flush=True), time.sleep(50)))\nmain([], app)\n", encoding="utf-8"
    )
    loop = f"for i in 1 2 3; do {sys.executable} {tmp_path / 'x.py'}; echo next; done"
    with subprocess.Popen(
        ["bash", "-c", loop],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (-signal.SIGINT, "", INTERRUPTED)


def test_signal_before_anything_is_imported_leaves_no_traceback() -> None:
    ended = run_python(
        """
import runpy, signal, sys
class Finder:
    def find_spec(self, name, *rest):
        if name == "wan_vae.cli":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
runpy.run_module("wan_vae", run_name="__main__")
"""
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_after_the_output_has_its_name_says_nothing_false(number: signal.Signals, tmp_path: Path) -> None:
    command = f"""
from wan_vae.io.atomic_output import written_beside
@app.command()
def command() -> None:
    with written_beside({str(tmp_path / "a.txt")!r}) as beside:
        beside.touch()
    signal.raise_signal({int(number)})
main([], app)
"""
    ended = run_python(APP + command)
    message = "wan-vae: interrupted; the outputs that are there are whole.\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (-number, "", message)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_the_message_is_printed_kills_the_process(number: signal.Signals) -> None:
    command = f"""
class Stream:
    def write(self, text):
        signal.raise_signal({int(number)})
    def flush(self):
        pass
@app.command()
def command() -> None:
    sys.stderr = Stream()
    signal.raise_signal({int(number)})
main([], app)
"""
    ended = run_python(APP + command)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-number, "", "")
