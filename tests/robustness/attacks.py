"""Attacks by class: each writes a damaged or hostile input, chosen by a seed, and returns the command to run on it."""

import io
import json
import os
import pickle
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

from tests.robustness.runner import Case
from tests.robustness.samples import Sample

Samples: TypeAlias = dict[str, list[Sample]]
Attack: TypeAlias = Callable[[Random, Samples, Path], Case]

NUMBERS = [0, 1, -1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63, 10**12, 10**30, 1e308, -0.5, 0.1]
TEXTS = [
    "", "1/0", "0", "-1", "1e999999999", "1e-999999999", "nan", "inf", "9" * 5000, "1/" + "9" * 40, "3/-7", "٣٠", "1_0",
    "0x10", "30\nwan-vae: all is well", "\x1b[2J", "[" * 20000, "{}", "null", "x" * 100_000, "\u202e", "2147483648/1",
]  # fmt: skip
VALUES: list[Any] = [*NUMBERS, *TEXTS, None, True, [], {}, [[]], [1] * 1000, {"a": {"b": []}}, [2**40] * 3]
WORDS = [
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x80\0\0\0",
    b"\0\0\0\1",
    b"\xff\xff\xff\x7f",
    b"\1\0\0\0",
]


def command(sample: Sample, path: Path, small: Path, random: Random) -> Case:
    """Return a command that reads a file made from a sample."""
    if not sample.frames:
        output = path.parent / "converted.safetensors"
        return random.choice(
            [Case(["info", str(path)]), Case(["convert", str(path), str(output), "--layout", "wan"], output=output)]
        )
    if "latents" in sample.path.name:
        output = path.parent / "decoded.mkv"
        arguments = ["decode", str(path), str(output), "--checkpoint", str(small), "--lossless", "--json"]
        return Case(arguments, frames=sample.frames, output=output)
    if random.random() < 0.3:
        return Case(["info", str(path), "--json"], frames=sample.frames)
    output = path.parent / "encoded.safetensors"
    arguments = ["encode", str(path), str(output), "--checkpoint", str(small), "--json"]
    return Case(arguments, frames=sample.frames, output=output)


def damage(kinds: tuple[str, ...], change: Callable[[Random, bytearray], bytearray], *, exact: bool = True) -> Attack:
    """Return an attack that changes the bytes of a sample; not `exact` where frames may go without a trace."""

    def attack(random: Random, samples: Samples, folder: Path) -> Case:
        sample = random.choice([sample for kind in kinds for sample in samples[kind]])
        path = folder / sample.path.name
        path.write_bytes(change(random, bytearray(sample.path.read_bytes())))
        case = command(sample, path, samples["safetensors"][0].path, random)
        # A transport stream has no length, so that where it ends is its end.
        return case if exact and path.suffix != ".ts" else Case(case.arguments, output=case.output)

    return attack


def flip(random: Random, data: bytearray) -> bytearray:
    """Flip one to three bits, mostly where headers are."""
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        data[_place(random, len(data))] ^= 1 << random.randrange(8)
    return data


def cut(random: Random, data: bytearray) -> bytearray:
    """Keep a part from the start, or from anywhere."""
    start = 0 if random.random() < 0.8 else random.randrange(len(data))
    return data[start : random.randrange(start, len(data))]


def patch(random: Random, data: bytearray) -> bytearray:
    """Write extreme numbers over four bytes, mostly of the headers."""
    for _ in range(random.choice([1, 1, 2])):
        place = max(0, _place(random, len(data)) - 4)
        data[place : place + 4] = random.choice(WORDS)
    return data


def _place(random: Random, length: int) -> int:
    """Return an index: near the start, near the end (where MP4 has its tables), or anywhere."""
    near = min(length, 1000)
    return random.choice([random.randrange(near), length - 1 - random.randrange(near), random.randrange(length)])


def rearrange(random: Random, data: bytearray) -> bytearray:
    """Zero, repeat or remove a range, or append what does not belong to the file."""
    start = random.randrange(len(data))
    stop = min(len(data), start + random.choice([1, 16, 300, 4000]))
    return random.choice(
        [
            data[:start] + bytes(stop - start) + data[stop:],
            data[:stop] + data[start:],
            data[:start] + data[stop:],
            data + random.randbytes(random.choice([1, 9, 5000])),
            data + bytes(700),
        ]
    )


def tensor_header(random: Random, samples: Samples, folder: Path) -> Case:
    """Change the JSON header of a safetensors file: numbers, names, the config, the metadata of a clip."""
    kind = random.choice(["safetensors", "latents", "latents"])
    sample = random.choice(samples[kind])
    data = sample.path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header["__metadata__"]
    for _ in range(random.choice([1, 1, 2])):
        target = random.choice(["metadata", "config", "tensor", "name", "length"])
        if target == "metadata":
            metadata[random.choice([*metadata, "wan_vae.config"])] = random.choice(TEXTS)
        elif target == "config":
            key = next(key for key in metadata if "config" in key)
            try:
                config = json.loads(metadata[key])
                config[random.choice(list(config))] = random.choice(VALUES)
                metadata[key] = json.dumps(config)
            except (ValueError, TypeError, IndexError):  # changed before
                metadata[key] = random.choice(TEXTS)
        elif target == "tensor":
            name = random.choice([name for name in header if name != "__metadata__"])
            if isinstance(header[name], dict) and header[name]:
                header[name][random.choice(list(header[name]))] = random.choice(VALUES)
        elif target == "name":
            name = random.choice([name for name in header if name != "__metadata__"])
            header[random.choice(TEXTS)] = header.pop(name)
        else:
            length = random.choice([0, 2**20, 2**32, 2**62, length + 1, length - 1])
            path = folder / sample.path.name
            path.write_bytes(length.to_bytes(8, "little") + data[8:])
            return command(sample, path, samples["safetensors"][0].path, random)
    text = json.dumps(header).encode()
    path = folder / sample.path.name
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    case = command(sample, path, samples["safetensors"][0].path, random)
    return Case(case.arguments, output=case.output)  # the metadata may say truthfully that there are fewer frames


class _Payload:
    def __init__(self, function: Any, arguments: tuple[Any, ...]) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def malicious_pickle(random: Random, samples: Samples, folder: Path) -> Case:
    """Write a checkpoint that runs code when a careless reader loads it, or that is much too large or too deep."""
    marker = folder / "ran"
    payload = random.choice(
        [
            _Payload(os.system, (f"touch {marker}",)),
            _Payload(eval, (f"open({str(marker)!r}, 'w')",)),
            _Payload(exec, (f"open({str(marker)!r}, 'w')",)),
            _Payload(os.mkdir, (str(marker),)),
            _Payload(bytearray, (10**10,)),
            _Payload(str.join, (", ", ["x"] * 10)),
        ]
    )
    nested: Any = payload
    for _ in range(random.choice([0, 0, 1, 3, 200])):
        nested = random.choice([[nested], {"state_dict": nested}, (nested,)])
    content = pickle.dumps(nested, protocol=random.choice([2, 4]))
    path = folder / random.choice(["model.pth", "model.safetensors", "model.bin"])
    if random.random() < 0.5:
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
            archive.writestr("archive/version", "3\n")
    return Case(["info", str(path)], forbidden=marker, refused=True)


def _png(width: int, height: int, data: bytes, *, depth: int = 8, extra: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _zeros(size: int) -> bytes:
    packer, packed = zlib.compressobj(9), io.BytesIO()
    for start in range(0, size, 1 << 22):
        packed.write(packer.compress(bytes(min(1 << 22, size - start))))
    return packed.getvalue() + packer.flush()


def bomb(random: Random, samples: Samples, folder: Path) -> Case:
    """Write a small file that would take gigabytes, if what it says were believed."""
    side = random.choice([30_000, 65_500, 2**31 - 1])
    name, data = random.choice(
        [
            lambda: ("bomb.png", _png(side, side, _zeros(1 << 26))),
            lambda: ("bomb.png", _png(20_000, 20_000, _zeros(1 << 26), depth=16)),
            lambda: ("bomb.png", _png(8, 8, _zeros(1 << 28))),
            lambda: (
                "bomb.gif",
                b"GIF89a\xff\xff\xff\xff\xf0\0\0" + bytes(6) + b",\0\0\0\0\xff\xff\xff\xff\0\2\2\x44\1\0;",
            ),
            lambda: (
                "bomb.bmp",
                b"BM" + struct.pack("<IIIIiiHHIIiiII", 2**31, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0),
            ),
            lambda: (
                "bomb.tif",
                b"II*\0\x08\0\0\0"
                + struct.pack("<H", 4)
                + b"".join(
                    struct.pack("<HHII", tag, 4, 1, value)
                    for tag, value in ((256, side), (257, side), (262, 1), (273, 8))
                )
                + bytes(4),
            ),
            lambda: ("bomb.safetensors", (2**40).to_bytes(8, "little") + b"{" + bytes(100)),
            lambda: ("bomb.safetensors", _claiming_tensor()),
            lambda: ("bomb.pth", _packed_archive(1 << 30)),
            lambda: ("bomb.pth", pickle.dumps([bytes(1000)] * 10_000)),
            lambda: (
                "bomb.webp",
                b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\xff\xff\xff\xff\xff\xff" + b"ANIM\0\0\0\0",
            ),
        ]
    )()
    path = folder / name
    path.write_bytes(data)
    verb = random.choice(["info", "encode"])
    output = folder / "out.safetensors"
    if verb == "info" or path.suffix in (".pth", ".safetensors"):
        # Reading no more than a header, `info` may describe what `encode` refuses.
        return Case(["info", str(path), "--json"], refused=path.suffix in (".pth", ".safetensors"))
    arguments = ["encode", str(path), str(output), "--checkpoint", str(samples["safetensors"][0].path), "--json"]
    return Case(arguments, output=output, refused=side > 16_384 and "8, 8" not in name and path.suffix == ".bmp")


def _claiming_tensor() -> bytes:
    header = {"decoder.conv1.weight": {"dtype": "F32", "shape": [2**40, 2**10], "data_offsets": [0, 2**52]}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def _packed_archive(size: int) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": 1}, protocol=2))
        with archive.open("archive/data/0", "w") as file:
            for _ in range(size >> 22):
                file.write(bytes(1 << 22))
    return data.getvalue()


def config_file(random: Random, samples: Samples, folder: Path) -> Case:
    """Write a recipe whose values make no sense, or that unfolds to gigabytes."""
    path = folder / "recipe.yaml"
    aliases = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]\n" for n in range(1, 12)
    )
    key = random.choice(["vae", "data", "steps", "clips", "batch", "model", "output", "x", "learning_rate", "preset"])
    content = random.choice(
        [
            aliases,
            f"{key}: *missing\n",
            f"{key}: !!python/object/apply:os.system ['touch {folder / 'ran'}']\n",
            f"{key}: {'[' * 3000}\n",
            f"{key}: {json.dumps(random.choice(VALUES))}\n",
            f"? {key}\n: {{{key}: {random.choice(NUMBERS)}}}\n",
            "\0\0",
            "- " * 2000,
            "&a [*a]\n",
            "\ud800".encode("utf-16", "surrogatepass").decode("latin-1"),
        ]
    )
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    output = folder / "run"
    return Case(["train", str(path), "--out", str(output)], forbidden=folder / "ran", refused=True)


ODD = (
    *("fifo", "socket", "zero", "null", "full", "loop", "dangling", "folder", "missing", "empty"),
    *("dash", "long", "dots", "inside", "bytes", "line"),
)


def place(random: Random, samples: Samples, folder: Path) -> Case:
    """Name files that are no files, or places where nothing can be written."""
    small = str(samples["safetensors"][0].path)
    clip = str(random.choice(samples["video"]).path)
    latents = str(samples["latents"][0].path)
    odd = random.choice(ODD)
    path = folder / "odd.mp4"
    if odd == "fifo":
        os.mkfifo(path)
    elif odd == "socket":
        path = folder / "s"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(path))  # names of sockets are short
    elif odd in ("zero", "null", "full"):
        path = Path("/dev") / odd
    elif odd == "loop":
        path.symlink_to(path)
    elif odd == "dangling":
        path.symlink_to(folder / "nowhere")
    elif odd == "folder":
        path.mkdir()
        (path / "notes.txt").write_text("no picture")
    elif odd == "empty":
        path.write_bytes(b"")
    elif odd == "dash":
        path = Path("-")
    elif odd == "long":
        path = folder / ("x" * 300 + ".mp4")
    elif odd == "dots":
        path = folder / "a.mp4."
    elif odd == "inside":
        path = Path(clip) / "x.mp4"
    elif odd == "bytes":
        path = folder / "f\udcff.mp4"
    elif odd == "line":
        path = folder / "a\nwan-vae: forged.mp4"
    encoded, decoded = folder / "out.safetensors", folder / "out.mkv"
    with_small = ["--checkpoint", small]
    cases = {
        "info": Case(["info", str(path)], refused=True),
        "encode in": Case(["encode", str(path), str(encoded), *with_small], output=encoded, refused=True),
        "encode out": Case(["encode", clip, str(path), *with_small]),
        "encode with": Case(["encode", clip, str(encoded), "--checkpoint", str(path)], output=encoded, refused=True),
        "decode in": Case(["decode", str(path), str(decoded), *with_small], output=decoded, refused=True),
        "decode out": Case(["decode", latents, str(path), *with_small]),
        "reconstruct out": Case(["reconstruct", clip, str(path), *with_small]),
        "convert in": Case(["convert", str(path), str(encoded), "--layout", "wan"], output=encoded, refused=True),
        "convert out": Case(["convert", small, str(path), "--layout", "wan"]),
        "train": Case(["train", str(path), "--out", str(folder / "run")], refused=True),
    }
    return random.choice(list(cases.values()))


def options(random: Random, samples: Samples, folder: Path) -> Case:
    """Give options values that make no sense."""
    small, clip = str(samples["safetensors"][0].path), str(random.choice(samples["video"]).path)
    output = folder / "out.safetensors"
    odd = [
        "", "-1", "0", "1e400", "nan", "inf", "9" * 50, "1/0", "x", "0x0", "1x", "99999999x99999999", "8x8", "3:1", ":",
        "-5:", "1:2:3", "4TiB", "1e30GiB", "auto", "1", "\u0663", "a\nb",
    ]  # fmt: skip
    chosen = []
    for name in random.sample(
        ["--size", "--frames", "--fps", "--memory", "--dtype", "--device"], random.choice([1, 1, 2])
    ):
        chosen += [name, random.choice(odd)]
    return Case(["encode", clip, str(output), "--checkpoint", small, *chosen], output=output)


TENSORS, PICTURES = ("safetensors", "pickle", "latents"), ("image",)
ATTACKS: dict[str, Attack] = {
    "tensors, bits flipped": damage(TENSORS, flip),
    "tensors, cut": damage(TENSORS, cut),
    "tensors, extreme numbers": damage(TENSORS, patch),
    "tensors, ranges moved": damage(TENSORS, rearrange),
    "foreign latents, bits flipped": damage(("foreign",), flip, exact=False),
    "foreign latents, cut": damage(("foreign",), cut, exact=False),
    "foreign latents, numbers": damage(("foreign",), patch, exact=False),
    "foreign latents, ranges moved": damage(("foreign",), rearrange, exact=False),
    "safetensors headers": tensor_header,
    "malicious pickles": malicious_pickle,
    "images, bits flipped": damage(PICTURES, flip),
    "images, cut": damage(PICTURES, cut),
    "images, extreme numbers": damage(PICTURES, patch),
    "images, ranges moved": damage(PICTURES, rearrange),
    "videos, bits flipped": damage(("video",), flip),
    "videos, cut": damage(("video",), cut),
    "videos, extreme numbers": damage(("video",), patch),
    "videos, ranges moved": damage(("video",), rearrange),
    "decompression bombs": bomb,
    "recipes": config_file,
    "odd files and places": place,
    "odd options": options,
}
