"""Kill commands at random moments, and check that nothing is lost: what has its final name is whole or the old file.

    python scripts/kill_commands.py --kills 100

After each kill, every output is absent, the old bytes, or whole; the command's last words are true; and the same
command then succeeds, leaves no temporary file, and gives the result of an undisturbed run (training: bit for bit).
Prints a table of the kills by command and signal, and exits with 1 if anything was lost.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from wan_vae.cli import main

ROOT = Path(__file__).resolve().parents[1]
FRAMES = 9
OLD = b"the user's old file"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RECIPE = """
model: {checkpoint: nano, trainable: decoder}
data: {videos: videos}
stages: [{name: all, steps: 4, batch: 1, lengths: {5: 1.0}, crop: 16, learning_rate: 1.0e-3}]
checkpoint_every: 1
"""


@dataclass
class Case:
    """A command to kill.

    Attributes:
        arguments: The command line.
        outputs: Its outputs, below the folder it runs in.
        seconds: Time that it takes undisturbed, once measured.
        expected: What its outputs hold then, as `content` reads them.
    """

    arguments: list[str]
    outputs: list[str]
    seconds: float = 0.0
    expected: dict[str, Any] = field(default_factory=dict)


CASES = {
    "encode": Case(["encode", "clip.mkv", "out/a.safetensors"], ["out/a.safetensors"]),
    "decode": Case(["decode", "latents.safetensors", "out/a.mp4"], ["out/a.mp4"]),
    "decode to a folder": Case(["decode", "latents.safetensors", "out/a"], ["out/a"]),
    "reconstruct": Case(
        ["reconstruct", "clip.mkv", "out/a.mkv", "--side-by-side", "out/b.mp4", "--contact-sheet", "out/c.png"],
        ["out/a.mkv", "out/b.mp4", "out/c.png"],
    ),
    "convert": Case(["convert", "nano", "out/a.safetensors", "--layout", "wan"], ["out/a.safetensors"]),
    "train": Case(["train", "recipe.yaml", "--out", "out/run"], ["out/run/vae.safetensors"]),
}


def start(case: Case, folder: Path, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "wan_vae", *case.arguments, *more]
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, **threads}, text=True, start_new_session=True, **pipes
    )


def content(path: Path) -> Any:
    """Return what an output holds as far as it is the same in each run; any error means that it is not whole."""
    from PIL import Image
    from safetensors import safe_open

    from wan_vae.io import open_clip

    if path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
            return {name: file.get_tensor(name).tobytes() for name in sorted(file.keys())}
    if path.suffix == ".png":
        with Image.open(path) as image:
            return image.convert("RGB").tobytes()
    with open_clip(path, fps=Fraction(25) if path.is_dir() else None) as clip:
        frames = sum(len(chunk) for chunk in clip.chunks(4))
        return frames, clip.info.width, clip.info.height


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*.partial-*")]


def prepare(folder: Path) -> None:
    """Write the inputs, run every command undisturbed, and remember its time and its outputs."""
    import numpy as np

    from wan_vae.io import Color, create_clip

    pixels = np.random.default_rng(0).integers(0, 256, (FRAMES, 32, 32, 3), dtype=np.uint8)
    for path in (folder / "clip.mkv", folder / "videos" / "clip.mkv"):
        with create_clip(path, width=32, height=32, fps=25, color=Color("rgb", True), lossless=True) as writer:
            writer.write(pixels)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    for name, case in CASES.items():
        begun = time.monotonic()
        out, err = (process := start(case, folder)).communicate()
        case.seconds = time.monotonic() - begun
        assert process.returncode == 0, f"{name}: {out}{err}"
        case.expected = {output: content(folder / output) for output in case.outputs}
        if name == "encode":
            shutil.copy(folder / case.outputs[0], folder / "latents.safetensors")
        shutil.rmtree(folder / "out")


def kill(case: Case, folder: Path, number: int, again: bool, after: float, has_old: bool) -> Iterator[str]:
    """Kill a command once, or twice in short succession; yield what was lost or wrong."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    resumes = case.arguments[0] == "train"
    has_old = has_old and not resumes and all(Path(output).suffix for output in case.outputs)
    for output in case.outputs if has_old else ():
        (folder / output).parent.mkdir(exist_ok=True)
        (folder / output).write_bytes(OLD)
    more = [] if resumes else ["--overwrite"]
    process = start(case, folder, *more)
    time.sleep(after)
    os.killpg(process.pid, number)  # as a terminal does
    if again:
        time.sleep(0.02)
        if process.poll() is None:
            os.killpg(process.pid, number)
    _, err = process.communicate()
    in_python = "Traceback" in err and "wan_vae" not in err  # its interpreter had not reached our first line
    if process.returncode not in (-number, 0) and not in_python:
        yield f"it ended with {process.returncode}"
    if ("Traceback" in err or "ignored" in err) and not in_python:
        yield f"it printed {err.strip().splitlines()[-1]}"
    for output in case.outputs:
        path = folder / output
        is_old = path.read_bytes() == OLD if path.is_file() else not path.exists() and not has_old
        if not is_old:
            try:
                if content(path) != case.expected[output]:
                    yield f"{output} is another"
            except Exception as error:
                yield f"{output} is not whole: {error}"
            if "no output was written" in err:
                yield f"{output} was written, and it said that it was not"
    if number != signal.SIGKILL and not again and leftovers(folder):
        yield f"{leftovers(folder)} were left"
    before = [path for path in case.outputs if (folder / path).is_dir()]
    _, err = (process := start(case, folder, *more)).communicate()
    if process.returncode != 0 and not before:  # a folder that is there is never replaced
        yield f"the next run failed: {err}"
    elif leftovers(folder):
        yield f"the next run left {leftovers(folder)}"
    elif {output: content(folder / output) for output in case.outputs} != case.expected:
        yield "the next run gave something else"


def kill_commands(
    kills: Annotated[int, typer.Option(min=1, help="How often to kill.")] = 100,
    seed: Annotated[int, typer.Option(help="Decides what is killed, when and how.")] = 0,
) -> None:
    """Kill commands at random moments, and check that nothing is lost."""
    choose = random.Random(seed)
    counts: Counter[tuple[str, str]] = Counter()
    lost = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        for index in range(kills):
            command = list(CASES)[index % len(CASES)]
            number = choose.choice(SIGNALS)
            again, has_old, moment = choose.random() < 0.25, choose.random() < 0.5, choose.uniform(0, 1.05)
            kind = signal.Signals(number).name
            for wrong in kill(CASES[command], folder, number, again, moment * CASES[command].seconds, has_old):
                lost += 1
                typer.echo(f"{command}, {kind}{' twice' * again} at {moment:.3f} of its time: {wrong}", err=True)
            counts[command, kind] += 1
    kinds = [signal.Signals(number).name for number in SIGNALS]
    typer.echo(f"{'':20}" + "".join(f"{kind:>9}" for kind in kinds))
    for command in CASES:
        typer.echo(f"{command:20}" + "".join(f"{counts[command, kind]:9}" for kind in kinds))
    typer.echo(f"{kills} kills, {lost} lost or wrong")
    if lost:
        raise typer.Exit(1)


if __name__ == "__main__":
    program = typer.Typer(name="kill_commands")
    program.command()(kill_commands)
    main(program=program)
