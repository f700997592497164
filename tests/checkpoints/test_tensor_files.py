"""Hostile and damaged files: a sentence, quickly, and in little memory; and files that change while they are read."""

import contextlib
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from tests.checkpoints.variants import STANDARD, assert_same_weights, native, standard_vae
from tests.helpers import small_config
from wan_vae import CheckpointError, WanVAE
from wan_vae.checkpoints import load_checkpoint
from wan_vae.checkpoints.tensor_files import list_tensors

VAE = standard_vae()
WEIGHTS = native(VAE)
CONV = "decoder.conv1.weight"


def peak_memory_of(statement: str) -> tuple[float, str]:
    """MiB that a statement adds to a process that has loaded this package, and what it prints."""
    program = f"""
import resource
from wan_vae.checkpoints import load_checkpoint
from wan_vae import UserError, WanVAE
WanVAE.from_pretrained("nano")
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
try:
    {statement}
except UserError as error:
    print(error)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    *text, added = done.stdout.splitlines()
    return float(added), "\n".join(text)


ODD = {
    "negated": lambda weight: torch._neg_view(-weight),
    "imaginary": lambda weight: torch.complex(weight, -weight).conj().imag,
    "parameter": torch.nn.Parameter,
    "requires grad": lambda weight: weight.clone().requires_grad_(),
    "transposed": lambda weight: weight.transpose(0, 1).contiguous().transpose(0, 1),
    "part of a larger one": lambda weight: torch.cat([weight, weight])[len(weight) :],
    "every other": lambda weight: torch.stack([weight, weight], dim=-1)[..., 0],
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("zipped", [True, False])
def test_load_checkpoint_of_an_odd_tensor_reads_its_values(kind: str, zipped: bool, tmp_path: Path) -> None:
    torch.save(WEIGHTS | {CONV: ODD[kind](WEIGHTS[CONV])}, tmp_path / "vae.pth", _use_new_zipfile_serialization=zipped)
    vae = WanVAE.from_pretrained(tmp_path / "vae.pth")
    assert_same_weights(vae, VAE)
    assert vae.decoder.conv_in.weight.is_contiguous()
    assert not vae.decoder.conv_in.weight.requires_grad


def test_load_checkpoint_of_repeated_values_reads_them(tmp_path: Path) -> None:
    weight = WEIGHTS[CONV][:1].expand_as(WEIGHTS[CONV])
    torch.save(WEIGHTS | {CONV: weight}, tmp_path / "vae.pth")
    assert torch.equal(load_checkpoint(tmp_path / "vae.pth").weights["decoder.conv_in.weight"], weight)


NO_WEIGHTS = {
    "meta": lambda weight: weight.to("meta"),
    "sparse": lambda weight: weight.to_sparse(),
    "compressed sparse": lambda weight: weight.flatten(1).to_sparse_csr(),
    "nested": lambda weight: torch.nested.nested_tensor([weight, weight]),
    "quantized": lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
    "complex": lambda weight: torch.complex(weight, weight).conj(),
    "integers": lambda weight: weight.to(torch.int8),
    "empty": lambda weight: weight[:0],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NO_WEIGHTS)
@pytest.mark.parametrize("zipped", [True, False])
def test_load_checkpoint_of_a_tensor_that_is_no_weight_gets_a_sentence(kind: str, zipped: bool, tmp_path: Path) -> None:
    tensor = NO_WEIGHTS[kind](WEIGHTS[CONV])
    torch.save(WEIGHTS | {CONV: tensor}, tmp_path / "vae.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"vae\.pth (cannot be (used|loaded)|is damaged): .*"):
        load_checkpoint(tmp_path / "vae.pth")


def claim_by_strides(path: Path) -> None:
    huge = torch.zeros(1).expand(4000, 2, 3, 3, 3)
    torch.save(WEIGHTS | {"decoder.conv1.weight": huge, "conv2.weight": torch.zeros(1).expand(4, 10**12)}, path)


def write_compressed(path: Path) -> None:
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def write_other_byte_order(path: Path) -> None:
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, b"big" if name.endswith("byteorder") else content)


def write_many_entries(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(30000):
            archive.writestr(f"archive/data/{number}/{'x' * 60}", b"")


def write_program(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/constants.pkl", b"")


def write_many_tensors(path: Path) -> None:
    write_header(
        path, {f"a{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(20000)}
    )


def write_large_header(path: Path) -> None:
    path.write_bytes((2**23).to_bytes(8, "little") + b"{" + b" " * 2**23)


def write_deep_header(path: Path) -> None:
    text = b'{"a":' + b"[" * 100000
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def write_header(path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def write_entry(path: Path, shape: list[int], offsets: list[int]) -> None:
    write_header(path, {"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}})


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (claim_by_strides, "makes no sense|make no sense|does not describe an architecture|claim"),
        (write_compressed, "cannot be loaded: it is compressed"),
        (write_other_byte_order, "cannot be loaded: its numbers are 'big'-endian"),
        (write_many_entries, "directory is larger than"),
        (write_program, "cannot be loaded: it holds a program, TorchScript"),
        (write_many_tensors, "holds 20000 tensors, more than 16384; save the VAE alone"),
        (write_large_header, "its header of 8388608 bytes is larger than 4194304"),
        (write_deep_header, "header is no list of tensors"),
        (lambda path: write_entry(path, [2**60] * 9, [0, 4]), "shape"),
        (lambda path: write_entry(path, [True], [0, 4]), "describe 'a'"),
        (lambda path: write_entry(path, [1], [4, 8]), "do not follow"),
        (lambda path: write_entry(path, [1], [0, 4]), "describes"),
        (lambda path: write_header(path, {"a": 3}), "does not describe 'a'"),
        (lambda path: write_header(path, {"__metadata__": {"a": 3}}), "no list of tensors"),
        (lambda path: path.write_bytes(b"\xff" * 7 + b"\x7f{}"), "cut short"),
        (lambda path: path.write_bytes(pickle.dumps({"a": b"x" * 3_000_000})), "pickles are damaged, not torch's, or"),
        (lambda path: torch.save({"a": b"x" * 3_000_000}, path), r"data\.pkl' in it has 300.* bytes"),
        (lambda path: path.write_text('{"weight_map": 3}', encoding="utf-8"), "no index of files"),
    ],
)  # fmt: skip
def test_load_checkpoint_of_a_hostile_file_gets_a_sentence_at_once(write: object, message: str, tmp_path: Path) -> None:
    write(tmp_path / "vae")
    begun = time.process_time()
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "vae")
    assert time.process_time() - begun < 2


def large_file_of_nothing(path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump(b"", file)
        file.truncate(2**31)


def large_bytes(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"\x80\x04\x8e" + struct.pack("<Q", 2**31 - 100))
        file.truncate(2**31)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other units")
@pytest.mark.parametrize("write", [large_file_of_nothing, large_bytes])
def test_load_checkpoint_of_a_large_file_of_nothing_takes_no_memory(write: object, tmp_path: Path) -> None:
    write(tmp_path / "vae.pth")
    added, text = peak_memory_of(f"load_checkpoint({str(tmp_path / 'vae.pth')!r})")
    assert "pickles are damaged" in text
    assert added < 100


CONFIG_FIELDS = list(small_config().to_dict())
HOSTILE = st.one_of(
    st.integers(), st.sampled_from([2**63, 10**400, -1, 0, 4096, 64]), st.booleans(), st.floats(), st.text(max_size=5),
    st.none(), st.lists(st.integers(-5, 5000), max_size=9), st.lists(st.lists(st.booleans(), max_size=2), max_size=3),
    st.just([1] * 5000), st.just({"a": [{}]}), st.just([True] * 7), st.just([1] * 8), st.just("dense"),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(CONFIG_FIELDS), HOSTILE, min_size=1, max_size=4))
def test_load_checkpoint_of_a_hostile_config_gets_a_sentence_at_once(
    changes: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("config") / "vae.safetensors"
    config = VAE.config.to_dict() | changes
    try:
        path.write_bytes(save(WEIGHTS, {"wan_vae.config": json.dumps(config)}))
    except ValueError:
        return  # Python does not write such a number either
    begun = time.process_time()
    with contextlib.suppress(CheckpointError):
        assert load_checkpoint(path).config.blocks_per_level == STANDARD["blocks_per_level"]
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks_per_level": 4096},
        {"blocks_per_level": 64, "width_multipliers": [1] * 8, "temporal_downsample": [False] * 7},
        {"block": "dense", "dense_layers": 4096, "dense_growth": 4096},
        {"block": "dense", "dense_layers": 64, "blocks_per_level": 64},
    ],
)
def test_load_checkpoint_of_a_config_larger_than_the_file_is_refused_before_it_is_built(
    changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wan_vae.checkpoints.files.Autoencoder", lambda config: pytest.fail("it was built"))
    config = json.dumps(VAE.config.to_dict() | changes)
    save_file(WEIGHTS, tmp_path / "vae.safetensors", {"wan_vae.config": config})
    with pytest.raises(
        CheckpointError, match=r"whole number from 1 to 64|describes \d+ convolutions or more, and there"
    ):
        load_checkpoint(tmp_path / "vae.safetensors")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")
@pytest.mark.parametrize("name", ["vae.safetensors", "vae.pth"])
def test_from_pretrained_does_not_map_the_file(name: str, tmp_path: Path) -> None:
    (save_file if name.endswith("safetensors") else torch.save)(WEIGHTS, tmp_path / name)
    vae = WanVAE.from_pretrained(tmp_path / name)
    assert str(tmp_path / name) not in Path("/proc/self/maps").read_text(encoding="utf-8")
    os.truncate(tmp_path / name, 100)
    assert_same_weights(vae, VAE)


@pytest.mark.parametrize("name", ["vae.safetensors", "vae.pth"])
def test_read_of_a_file_that_changes_after_it_is_listed_gets_a_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for spoil in (
        lambda: os.truncate(path, path.stat().st_size // 2),
        lambda: path.write_bytes(bytes(path.stat().st_size)),
        lambda: (path.rename(tmp_path / "old"), path.write_bytes((tmp_path / "old").read_bytes())),
    ):
        (save_file if name.endswith("safetensors") else torch.save)(WEIGHTS, path)
        os.utime(path, (1, 1))
        listed = list_tensors(path)
        spoil()
        with pytest.raises(CheckpointError, match="was changed while it was read; start again"):
            listed.read(listed.tensors)


FORMATS = {
    "safetensors": lambda path: save_file(WEIGHTS, path),
    "archive": lambda path: torch.save(WEIGHTS, path),
    "pickle": lambda path: torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_load_checkpoint_of_flipped_bits_and_cuts_raises_nothing_else(kind: str, tmp_path: Path) -> None:
    path, chance = tmp_path / "vae", random.Random(kind)
    FORMATS[kind](path)
    whole = path.read_bytes()
    index = 20000 if kind != "archive" else len(whole)  # where names and sizes are, mostly
    for attempt in range(60):
        content = bytearray(whole)
        if attempt % 5 == 0:
            content = content[: chance.randrange(len(content))]
        else:
            place = (
                chance.randrange(min(index, len(content))) if attempt % 2 else len(content) - 1 - chance.randrange(3000)
            )
            content[place] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        with contextlib.suppress(CheckpointError):
            load_checkpoint(path, notices=False)
