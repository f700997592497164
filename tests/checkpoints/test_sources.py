"""Wan VAEs are found by their tensors, wherever they are nested, and whatever lies beside them."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.variants import assert_same_weights, native, standard_vae
from wan_vae import CheckpointError, UserError, WanVAE
from wan_vae.checkpoints import load_checkpoint, resolve_checkpoint, weights_digest
from wan_vae.checkpoints.sources import DIFFUSERS_FILE
from wan_vae.cli.info import describe
from wan_vae.dataset.plan import checkpoint_stamp

VAE = standard_vae()
WEIGHTS = native(VAE)
TRANSFORMER = {"blocks.0.self_attn.q.weight": torch.zeros(4, 4)}


@pytest.mark.parametrize(
    "keys",
    ["model", "module", "model_state_dict", "ema", "ema_state_dict", "params_ema", "vae", "generator", "net", "weights",
     "gen_model", "Any name at all", "state_dict/gen_model", "checkpoint/vae/state_dict"],
)  # fmt: skip
@pytest.mark.parametrize("zipped", [True, False])
def test_load_checkpoint_finds_nested_weights_by_their_tensors(
    keys: str, zipped: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content: object = WEIGHTS
    for key in reversed(keys.split("/")):
        content = {"step": 1, key: content, "rates": [0.1, 0.2]}
    torch.save(content, tmp_path / "vae.pt", _use_new_zipfile_serialization=zipped)
    assert_same_weights(WanVAE.from_pretrained(tmp_path / "vae.pt"), VAE)
    assert "left out" not in caplog.text


def test_load_checkpoint_finds_weights_in_lists_and_in_parts(tmp_path: Path) -> None:
    torch.save({"models": [{"head.weight": torch.ones(2, 2)}, WEIGHTS]}, tmp_path / "list.pt")
    assert_same_weights(WanVAE.from_pretrained(tmp_path / "list.pt"), VAE)
    parts = {part: {} for part in ("encoder", "decoder", "conv1", "conv2")}
    for name, weight in WEIGHTS.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = weight
    torch.save(parts, tmp_path / "parts.pt")
    assert_same_weights(WanVAE.from_pretrained(tmp_path / "parts.pt"), VAE)


def test_load_checkpoint_of_a_dictionary_in_itself_ends(tmp_path: Path) -> None:
    content: dict[str, object] = {"vae": WEIGHTS}
    content["self"] = content
    torch.save(content, tmp_path / "vae.pt")
    assert_same_weights(WanVAE.from_pretrained(tmp_path / "vae.pt"), VAE)


@pytest.mark.parametrize("prefix", ["vae.", "first_stage_model.", "model.first_stage_model.", "module."])
def test_load_checkpoint_of_a_pipelines_file_leaves_the_rest_out(
    prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = {prefix + name: weight for name, weight in WEIGHTS.items()} | TRANSFORMER
    tensors |= {"loss.logvar": torch.ones(()), "lpips.scale": torch.ones(3), "encoder.block.0.weight": torch.ones(2, 2)}
    save_file(tensors, tmp_path / "pipeline.safetensors")
    assert_same_weights(WanVAE.from_pretrained(tmp_path / "pipeline.safetensors"), VAE)
    assert "also holds 2 tensors that are no weights of the VAE and are left out, the first" in caplog.text


def test_load_checkpoint_ignores_extra_buffers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    buffers = {
        "latents_mean": torch.zeros(3), "latents_std": torch.ones(3), "num_updates": torch.tensor(7),
        "decoder.step": torch.tensor([3]), "encoder.teacache.previous": torch.zeros(2),
    }  # fmt: skip
    save_file(WEIGHTS | buffers, tmp_path / "vae.safetensors")
    assert_same_weights(WanVAE.from_pretrained(tmp_path / "vae.safetensors"), VAE)
    assert "left out" not in caplog.text
    save_file(WEIGHTS | {"decoder.conv1.scale_weight": torch.ones(1)}, tmp_path / "scaled.safetensors")
    with pytest.raises(CheckpointError, match=r"1 unexpected, the first decoder\.conv1\.scale_weight"):
        WanVAE.from_pretrained(tmp_path / "scaled.safetensors")


@pytest.mark.parametrize(
    ("loaded", "other"),
    [("model", "ema"), ("generator", "params_ema"), ("state_dict", "ema_state_dict"), ("gen", "averaged_model"),
     ("model", "teacher")],
)  # fmt: skip
def test_load_checkpoint_of_several_models_takes_the_trained_weights_and_says_so(
    loaded: str, other: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({other: native(standard_vae(1)), loaded: WEIGHTS}, tmp_path / "vae.pt")
    assert_same_weights(WanVAE.from_pretrained(tmp_path / "vae.pt"), VAE)
    assert f"holds 2 VAEs: '{loaded}.' is loaded, and '{other}.'" in caplog.text
    assert ("a moving average of the weights" in caplog.text) is (other != "teacher")


def test_load_checkpoint_prefers_a_whole_model_to_half_of_one(tmp_path: Path) -> None:
    half = {name: weight for name, weight in WEIGHTS.items() if not name.startswith("encoder")}
    torch.save({"model": half, "ema": WEIGHTS}, tmp_path / "vae.pt")
    assert_same_weights(WanVAE.from_pretrained(tmp_path / "vae.pt"), VAE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("name", ["vae.safetensors", "vae.pth"])
def test_load_checkpoint_in_a_narrow_dtype_keeps_every_value(
    dtype: torch.dtype, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored = {key: weight.to(dtype) for key, weight in WEIGHTS.items()}
    (save_file if name.endswith("safetensors") else torch.save)(stored, tmp_path / name)
    weights = load_checkpoint(tmp_path / name).weights
    assert torch.equal(weights["encoder.conv_in.weight"].float(), stored["encoder.conv1.weight"].float())
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16 if dtype.itemsize == 1 else dtype}
    assert ("loaded as bfloat16, which holds them exactly" in caplog.text) is (dtype.itemsize == 1)


@pytest.mark.parametrize("device", [b"cuda:3", b"xla:1", b"mps"])
def test_load_checkpoint_saved_on_another_device_is_read_to_the_cpu(device: bytes, tmp_path: Path) -> None:
    path = tmp_path / "vae.pth"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
    counted = b"X\x03\x00\x00\x00cpu"  # a pickled string with its length
    path.write_bytes(path.read_bytes().replace(counted, b"X" + len(device).to_bytes(4, "little") + device))
    assert_same_weights(WanVAE.from_pretrained(path), VAE)


def write_folder(folder: Path, kind: str) -> None:
    folder.mkdir(parents=True)
    diffusers = native(VAE, "diffusers")
    if kind != "official":
        VAE.save(folder, layout="diffusers")
        (folder / DIFFUSERS_FILE).unlink()
    if kind == "fp16 name":
        save_file(diffusers, folder / "diffusion_pytorch_model.fp16.safetensors")
    elif kind == "bin":
        torch.save(diffusers, folder / "diffusion_pytorch_model.bin")
    elif kind == "shards":
        names = sorted(diffusers)
        shards = {f"diffusion_pytorch_model-0000{part + 1}-of-00002.safetensors": names[part::2] for part in range(2)}
        for file, part in shards.items():
            save_file({name: diffusers[name] for name in part}, folder / file)
        index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
        (folder / f"{DIFFUSERS_FILE}.index.json").write_text(json.dumps(index), encoding="utf-8")
    elif kind == "official":
        (folder / "config.json").write_text(json.dumps({"_class_name": "WanModel", "dim": 1}), encoding="utf-8")
        save_file(TRANSFORMER, folder / DIFFUSERS_FILE)
        torch.save(WEIGHTS, folder / "Wan2.1_VAE.pth")


@pytest.mark.parametrize("place", [".", "vae"])
@pytest.mark.parametrize("kind", ["fp16 name", "bin", "shards", "official"])
def test_load_checkpoint_of_a_folder_finds_the_file_of_the_vae(kind: str, place: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "folder" / place, kind)
    loaded = WanVAE.from_pretrained(tmp_path / "folder")
    assert_same_weights(loaded, VAE)
    assert loaded.digest() == VAE.digest()  # reads the file again, without the folder
    assert describe(str(tmp_path / "folder"))["kind"] == "checkpoint"


def test_digest_of_a_checkpoint_in_several_files_tells_of_a_change_of_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "vae", "shards")
    index = tmp_path / "vae" / f"{DIFFUSERS_FILE}.index.json"
    loaded, stamp = WanVAE.from_pretrained(index), checkpoint_stamp(index)
    assert loaded.digest() == VAE.digest()
    first = min((tmp_path / "vae").glob("*-00001-of-00002.safetensors"))
    save_file({name: weight + 1 for name, weight in load_file(first).items()}, first)
    assert checkpoint_stamp(index) != stamp
    assert loaded.digest() == weights_digest(loaded.state_dict())  # of the weights in memory, not of the new file
    changed = WanVAE.from_pretrained(index)
    assert changed.digest() == load_checkpoint(index).digest() != loaded.digest()


def test_load_checkpoint_of_a_folder_with_several_names_them(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file(WEIGHTS, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"holds 2 checkpoints, a\.safetensors and b\.safetensors; name one"):
        load_checkpoint(tmp_path)


def test_load_checkpoint_of_a_folder_leaves_damaged_files_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file(WEIGHTS, tmp_path / "vae.safetensors")
    (tmp_path / "other.pth").write_bytes(b"\x80\x02")
    assert_same_weights(WanVAE.from_pretrained(tmp_path), VAE)
    assert "other.pth cannot be loaded" in caplog.text


@pytest.mark.parametrize("shard", ["../vae.safetensors", "/etc/passwd", 3, "missing.safetensors"])
def test_load_checkpoint_of_an_index_reads_only_files_beside_it(shard: object, tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "vae.safetensors")
    (tmp_path / "folder").mkdir()
    index = tmp_path / "folder" / f"{DIFFUSERS_FILE}.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(WEIGHTS, shard)}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"no index of files beside it|is not a file"):
        load_checkpoint(index)


def test_resolve_checkpoint_of_a_name_is_not_replaced_by_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    VAE.save(tmp_path / "nano", layout="diffusers")
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint("nano").name == "nano.safetensors"
    assert describe("nano")["latent_channels"] == 16
    assert "nano is the model of that name here; for the file or folder write ./nano" in caplog.text
    for path in ("./nano", Path("nano")):
        assert_same_weights(WanVAE.from_pretrained(path), VAE)
    assert describe("./nano")["latent_channels"] == 3


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_circle(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("make", [make_fifo, make_circle])
def test_load_checkpoint_of_no_regular_file_gets_a_sentence(make: object, tmp_path: Path) -> None:
    make(tmp_path / "vae.safetensors")
    for read in (load_checkpoint, describe):
        with pytest.raises(UserError, match=r"vae\.safetensors is (not a file|neither a file)"):
            read(str(tmp_path / "vae.safetensors"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "vae.safetensors").rename(tmp_path / "folder" / DIFFUSERS_FILE)
    with pytest.raises(CheckpointError, match="no diffusers folder"):
        load_checkpoint(tmp_path / "folder")
