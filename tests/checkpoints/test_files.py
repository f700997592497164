"""Checkpoints in every layout, read and written bit for bit, and the messages for files in none of them."""

import hashlib
import json
import struct
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from safetensors.torch import load_file, save_file

from tests.checkpoints.variants import SINGLE_PICTURES, STANDARD, assert_same_weights, native, standard_vae
from tests.helpers import diffusers_vae, random_vae, random_video, small_config, small_configs, stored_config
from wan_vae import CheckpointError, UserError, VAEConfig, WanVAE
from wan_vae.checkpoints import load_checkpoint, resolve_checkpoint, weights_digest
from wan_vae.checkpoints.files import DIFFUSERS_FILE
from wan_vae.config import BLOCK_KINDS, load_config


@pytest.mark.parametrize("level_shortcuts", [False, True])
def test_save_of_a_diffusers_folder_as_wan_and_back_is_exact(level_shortcuts: bool, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    config = small_config(**STANDARD, level_shortcuts=level_shortcuts, patch_size=1 + level_shortcuts)
    diffusers_vae(config).save_pretrained(tmp_path / "theirs")
    WanVAE.from_pretrained(tmp_path / "theirs").save(tmp_path / "wan.safetensors", layout="wan")
    WanVAE.from_pretrained(tmp_path / "wan.safetensors").save(tmp_path / "again", layout="diffusers")
    before = load_file(tmp_path / "theirs" / "diffusion_pytorch_model.safetensors")
    after = load_file(tmp_path / "again" / "diffusion_pytorch_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    marked = ("decoder.middle.0.residual.0.gamma", "decoder.upsamples.0.upsamples.0.residual.2.weight")
    assert marked[level_shortcuts] in load_file(tmp_path / "wan.safetensors")


def test_save_as_diffusers_builds_the_same_model_there(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    vae = random_vae(small_config(**STANDARD, level_shortcuts=True, patch_size=2))
    vae.save(tmp_path / "vae", layout="diffusers")
    theirs = diffusers.AutoencoderKLWan.from_pretrained(tmp_path / "vae").to(torch.float64)
    video = random_video(5, 16, 32)
    torch.testing.assert_close(theirs.encode(video).latent_dist.mean, vae.posterior(video).mean)
    assert stored_config(tmp_path / "vae")["latents_mean"] == list(vae.config.latent_mean)


@settings(max_examples=20)
@given(config=small_configs())
def test_save_keeps_the_config(config: VAEConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("saved") / "vae.safetensors"
    vae = random_vae(config, torch.float32)
    vae.save(path)
    loaded = WanVAE.from_pretrained(path)
    assert loaded.config == config
    assert_same_weights(loaded, vae)


@pytest.mark.parametrize("layout", ["wan", "diffusers"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"level_shortcuts": True, "patch_size": 2},
        {"output_upscale": 2},
        {"image_channels": 4, "level_shortcuts": True, "patch_size": 2},
        SINGLE_PICTURES,
    ],
)
def test_load_checkpoint_without_metadata_recognizes_the_tensors(
    changes: dict[str, object], layout: str, tmp_path: Path
) -> None:
    vae = standard_vae(**changes)
    path = tmp_path / "misleading name.bin"
    save_file(native(vae, layout), path)
    checkpoint = load_checkpoint(path)
    assert checkpoint.layout == layout
    assert {**checkpoint.config.to_dict(), "latent_mean": 0, "latent_std": 0} == {
        **small_config(**STANDARD | changes, encoder_width=2, decoder_width=2).to_dict(),
        "bottleneck_ratio": 4,
        "dense_growth": 32,
        "dense_layers": 4,
        "latent_mean": 0,
        "latent_std": 0,
    }
    assert_same_weights(WanVAE.from_pretrained(path), vae)


@pytest.mark.parametrize(
    ("channels", "mean", "std"), [(16, -0.7571, 2.8184), (48, -0.2289, 0.4765), (64, 0.5126, 3.2001)]
)
def test_load_checkpoint_of_a_published_structure_has_its_statistics(
    channels: int, mean: float, std: float, tmp_path: Path
) -> None:
    changes = {16: {}, 48: {"level_shortcuts": True, "patch_size": 2}, 64: SINGLE_PICTURES}[channels]
    vae = standard_vae(latent_channels=channels, **changes)
    save_file(native(vae), tmp_path / "vae.safetensors")
    config = load_checkpoint(tmp_path / "vae.safetensors").config
    assert (config.latent_mean[0], config.latent_std[0]) == (mean, std)


def test_load_checkpoint_of_an_unknown_latent_space_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file(native(standard_vae(latent_channels=5)), tmp_path / "vae.safetensors")
    assert load_checkpoint(tmp_path / "vae.safetensors").config.latent_std == (1.0,) * 5
    assert "normalized latents will be the raw ones" in caplog.text


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"state_dict": w}, lambda w: {"model_state": w, "step": 7}])
@pytest.mark.parametrize("zipped", [True, False])
def test_load_checkpoint_of_torch_files_unwraps_them(wrap: object, zipped: bool, tmp_path: Path) -> None:
    vae, path = standard_vae(), tmp_path / "Wan2.1_VAE.pth"
    torch.save(wrap(native(vae)), path, _use_new_zipfile_serialization=zipped)
    assert_same_weights(WanVAE.from_pretrained(path), vae)


OWN_CONFIGS = {
    "wan2.1": STANDARD,
    "wan2.2": STANDARD | {"level_shortcuts": True, "patch_size": 2},
    "upscaling": STANDARD | {"output_upscale": 2},
    "nano": {
        "width_multipliers": (1, 4, 4),
        "temporal_downsample": (True, True),
        "level_shortcuts": True,
        "blocks_per_level": (1, 1, 3),
        "middle_attention": False,
    },
    "qwen-image-layered": STANDARD | {"image_channels": 4},
    "qwen-image-2.1": SINGLE_PICTURES,
    "one level": {"width_multipliers": (1,), "temporal_downsample": ()},
}


@pytest.mark.parametrize("changes", OWN_CONFIGS.values(), ids=OWN_CONFIGS)
def test_load_checkpoint_of_a_state_dict_reads_the_config_from_its_shapes(
    changes: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vae = random_vae(small_config(**changes), torch.float32)
    torch.save(vae.state_dict(), tmp_path / "vae.pth")
    save_file(vae.state_dict(), tmp_path / "vae.safetensors")
    for name in ("vae.pth", "vae.safetensors"):
        checkpoint = load_checkpoint(tmp_path / name)
        assert checkpoint.layout == "wan_vae"
        unknown = {"latent_mean": 0, "latent_std": 0, "bottleneck_ratio": 0, "dense_growth": 0, "dense_layers": 0}
        assert checkpoint.config.to_dict() | unknown == vae.config.to_dict() | unknown
        assert_same_weights(WanVAE.from_pretrained(tmp_path / name), vae)
    assert "Nothing says what the mean and standard deviation of these 3 latent channels are" in caplog.text


@pytest.mark.parametrize(
    ("channels", "changes", "known"),
    [(16, {}, True), (48, {"level_shortcuts": True, "patch_size": 2}, True), (16, {"blocks_per_level": 1}, False)],
)
def test_load_checkpoint_of_a_state_dict_has_published_statistics_in_a_published_structure_only(
    channels: int, changes: dict[str, object], known: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(**STANDARD | changes, latent_channels=channels, encoder_width=2, decoder_width=2)
    torch.save(random_vae(config, torch.float32).state_dict(), tmp_path / "vae.pth")
    expected = load_config("wan2.1" if channels == 16 else "wan2.2").latent_std if known else (1.0,) * channels
    assert load_checkpoint(tmp_path / "vae.pth").config.latent_std == expected
    assert ("Nothing says" in caplog.text) is not known


@pytest.mark.parametrize("layout", ["wan_vae", "wan", "diffusers"])
@pytest.mark.parametrize("prefix", ["module.", "model.", "vae.", "_orig_mod.", "model.first_stage."])
def test_load_checkpoint_of_a_training_checkpoint_takes_the_names_with_the_prefix(
    prefix: str, layout: str, tmp_path: Path
) -> None:
    vae = standard_vae()
    weights = {f"{prefix}{name}": weight for name, weight in native(vae, layout).items()}
    weights |= {"discriminator.conv.weight": torch.ones(1), "loss.logvar": torch.ones(())}
    lightning = {
        "epoch": 3, "global_step": 7, "pytorch-lightning_version": "2.5.0", "state_dict": weights, "loops": {},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.ones(())}}, "optimizer_states": [{"state": {}}],
    }  # fmt: skip
    for content in (lightning, weights, {"model": weights, "step": 7}):
        torch.save(content, tmp_path / "last.ckpt")
        assert_same_weights(WanVAE.from_pretrained(tmp_path / "last.ckpt"), vae)


@pytest.mark.parametrize("block", [kind for kind in BLOCK_KINDS if kind != "wan"])
def test_load_checkpoint_of_a_state_dict_of_other_blocks_gets_a_sentence(block: str, tmp_path: Path) -> None:
    torch.save(random_vae(small_config(block=block), torch.float32).state_dict(), tmp_path / "vae.pth")
    with pytest.raises(CheckpointError, match=r"residual blocks are not Wan's|missing, the first .*shortcut"):
        load_checkpoint(tmp_path / "vae.pth")


def test_load_checkpoint_ignores_a_prefix(tmp_path: Path) -> None:
    vae = standard_vae()
    weights = {f"model.{name}": weight for name, weight in native(vae).items()}
    save_file(weights | {"optimizer.lr": torch.ones(1)}, tmp_path / "vae.safetensors")
    assert_same_weights(WanVAE.from_pretrained(tmp_path / "vae.safetensors"), vae)


def test_load_checkpoint_of_a_pipeline_folder_finds_its_vae(tmp_path: Path) -> None:
    vae = standard_vae()
    vae.save(tmp_path / "vae", layout="diffusers")
    assert_same_weights(WanVAE.from_pretrained(tmp_path), vae)


def test_from_pretrained_keeps_the_dtype_unless_told_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    standard_vae().to(torch.bfloat16).save(path)
    assert WanVAE.from_pretrained(path).dtype == torch.bfloat16
    assert WanVAE.from_pretrained(path, dtype=torch.float32).dtype == torch.float32


def test_digest_depends_on_the_weights_only(tmp_path: Path) -> None:
    vae = standard_vae()
    vae.save(tmp_path / "wan.safetensors")
    vae.save(tmp_path / "folder", layout="diffusers")
    torch.save(native(vae), tmp_path / "wan.pth")
    digests = {load_checkpoint(tmp_path / name).digest() for name in ("wan.safetensors", "folder", "wan.pth")}
    assert len(digests) == 1
    vae.quant_conv.bias[0] += 1
    vae.save(tmp_path / "changed.safetensors")
    assert load_checkpoint(tmp_path / "changed.safetensors").digest() not in digests


def test_from_weights_does_not_copy(tmp_path: Path) -> None:
    path = tmp_path / "vae.safetensors"
    standard_vae().save(path)
    weights = load_checkpoint(path).weights
    vae = WanVAE.from_weights(load_checkpoint(path).config, weights)
    assert all(weight.data_ptr() == weights[name].data_ptr() for name, weight in vae.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_load_checkpoint_refuses_infinite_but_not_large_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    weights = native(standard_vae().to(dtype))
    weights["decoder.conv1.weight"].fill_(torch.finfo(dtype).max)
    save_file(weights, tmp_path / "vae.safetensors")
    assert load_checkpoint(tmp_path / "vae.safetensors").weights["decoder.conv_in.weight"].isfinite().all()
    for value in (torch.inf, -torch.inf, torch.nan):
        weights["decoder.conv1.weight"].view(-1)[-1] = value
        save_file(weights, tmp_path / "vae.safetensors")
        with pytest.raises(CheckpointError, match=r"1 of .* values of decoder\.conv_in\.weight are NaN or infinite"):
            load_checkpoint(tmp_path / "vae.safetensors")


@pytest.mark.parametrize("block", [kind for kind in BLOCK_KINDS if kind != "wan"])
def test_save_as_diffusers_of_other_blocks_is_refused(block: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"no residual block of kind '{block}'"):
        random_vae(small_config(block=block)).save(tmp_path / "vae", layout="diffusers")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks_per_level": (1, 2)}, r"as many residual blocks in every level, and blocks_per_level is \[1, 2\]"),
        ({"middle_attention": False}, "always has attention at the lowest resolution"),
    ],
)
def test_save_as_diffusers_of_a_structure_that_it_lacks_is_refused(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        random_vae(small_config(**changes)).save(tmp_path / "vae", layout="diffusers")
    assert not any(tmp_path.iterdir())


def save_corrupt(path: Path) -> None:
    save_file(native(standard_vae()), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def save_half(path: Path) -> None:
    save_file({name: weight for name, weight in native(standard_vae()).items() if "encoder" not in name}, path)


def save_other_model(path: Path) -> None:
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2, 2)}, path)


def save_nan(path: Path) -> None:
    weights = native(standard_vae())
    weights["decoder.conv1.weight"][0, 0, 0, 0, :2] = torch.nan
    save_file(weights, path)


def save_misshapen(path: Path) -> None:
    weights = native(standard_vae())
    weights["decoder.middle.2.residual.2.weight"] = torch.zeros(8, 8, 1, 3, 3)
    weights["decoder.extra"] = torch.zeros(1)
    save_file(weights, path)


def save_whole_numbers(path: Path) -> None:
    weights = native(standard_vae())
    weights["decoder.conv1.weight"] = weights["decoder.conv1.weight"].to(torch.int8)
    save_file(weights, path)


def save_no_dimensions(path: Path) -> None:
    save_file(native(standard_vae()) | {"conv2.weight": torch.tensor(1.0)}, path)


def save_two_models(path: Path) -> None:
    weights = native(standard_vae())
    save_file({f"{model}.{name}": weight.clone() for model in ("a", "b") for name, weight in weights.items()}, path)


def save_deep_metadata(path: Path) -> None:
    save_file(native(standard_vae()), path, metadata={"wan_vae.config": "[" * 5000})


def save_numbered(path: Path) -> None:
    torch.save({0: torch.zeros(1)}, path)


def save_code(path: Path) -> None:
    torch.save({"state_dict": native(standard_vae()), "trainer": pytest.raises}, path)


def save_text(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 507609880\n", encoding="utf-8")


def save_list(path: Path) -> None:
    torch.save([torch.zeros(1)], path)


def save_cut_zip(path: Path) -> None:
    torch.save(native(standard_vae()), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist|neither a file"),
        (lambda path: path.touch(), r"not a readable checkpoint \(0 bytes\)"),
        (lambda path: path.mkdir(), "no diffusers folder"),
        (save_corrupt, "not a readable checkpoint"),
        (save_half, "half a checkpoint: it lacks 'encoder.conv1.weight'"),
        (save_other_model, "no Wan VAE: it holds 'model.diffusion_model"),
        (save_nan, "2 of .* values of decoder.conv_in.weight are NaN"),
        (save_misshapen, r"layout 'wan'.*1 unexpected, the first decoder.extra; 1 misshapen, .*middle.2.*\(8, 8, 1"),
        (save_whole_numbers, "1 of a wrong type, the first decoder.conv1.weight is torch.int8"),
        (save_no_dimensions, "make no sense"),
        (save_two_models, "holds 2 models, 'a.' and 'b.'"),
        (save_deep_metadata, "make no sense"),
        (save_numbered, "no tensor at all"),
        (lambda path: path.write_bytes(b"\x80\x02"), "damaged"),
        (lambda path: path.write_bytes(b"\x80\x05garbage"), "damaged"),
        (save_code, "could run code"),
        (save_text, "not a readable checkpoint"),
        (save_list, "holds a list"),
        (save_cut_zip, "not a readable checkpoint|damaged"),
    ],
)
@pytest.mark.parametrize("name", ["vae.safetensors", "vae.pth"])
def test_from_pretrained_of_a_bad_file_gets_a_sentence(make: object, message: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        WanVAE.from_pretrained(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.parametrize("mark", ["middle.1.norm.gamma", "linear_skip.later.weight"])
def test_from_pretrained_of_a_file_that_lacks_one_tensor_names_it(half: str, mark: str, tmp_path: Path) -> None:
    weights = native(random_vae(small_config(**STANDARD, linear_skip=True), torch.float32))
    del weights[f"{half}.{mark}"]
    save_file(weights, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=rf"suggest: 1 missing, the first {half}.{mark}\."):
        WanVAE.from_pretrained(tmp_path / "vae.safetensors")


def test_from_pretrained_without_the_config_that_tells_the_levels_says_what_keeps_it(tmp_path: Path) -> None:
    save_file(
        native(random_vae(small_config(**STANDARD | {"blocks_per_level": 1}), torch.float32)),
        tmp_path / "vae.pt.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"levels are not those of Wan, store it with WanVAE\.save"):
        WanVAE.from_pretrained(tmp_path / "vae.pt.safetensors")


def test_save_of_a_model_with_another_part_names_its_weight(tmp_path: Path) -> None:
    vae = random_vae(small_config(), torch.float32)
    vae.extra = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"The weight extra\.weight is of no part of a Wan VAE"):
        vae.save(tmp_path / "vae.safetensors")
    assert not list(tmp_path.iterdir())


def test_from_pretrained_of_a_damaged_config_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    vae = standard_vae()
    save_file(native(vae, "diffusers"), tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "vae" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        WanVAE.from_pretrained(tmp_path / "vae")
    for values in (
        {"z_dim": 3},
        {"patch_size": "x"},
        {"patch_size": 0},
        {"out_channels": "12"},
        {"z_dim": 3, "dim_mult": 1},
    ):
        (tmp_path / "vae" / "config.json").write_text(json.dumps(values), encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"does not describe an architecture|make no sense"):
            WanVAE.from_pretrained(tmp_path / "vae")


def test_load_checkpoint_prefers_an_edited_config(tmp_path: Path) -> None:
    standard_vae().save(tmp_path / "vae", layout="diffusers")
    values = stored_config(tmp_path / "vae") | {"latents_mean": [1.0, 2.0, 3.0]}
    (tmp_path / "vae" / "config.json").write_text(json.dumps(values), encoding="utf-8")
    assert load_checkpoint(tmp_path / "vae").config.latent_mean == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("first_byte", [0x80, ord("P")])
def test_from_pretrained_of_a_header_that_starts_like_another_format(first_byte: int, tmp_path: Path) -> None:
    vae, path = standard_vae(), tmp_path / "vae"
    for padding in range(256):
        save_file(native(vae), path, metadata={"padding": "x" * padding})
        if path.read_bytes()[0] == first_byte:
            break
    else:
        pytest.fail("no padding makes such a header")
    assert_same_weights(WanVAE.from_pretrained(path), vae)


@pytest.mark.parametrize("name", ["vae.pth", "vae", "vae.safetensors/"])
def test_save_to_no_safetensors_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"safetensors|not a file name"):
        standard_vae().save(tmp_path / name.rstrip("/") if name != "vae.safetensors/" else tmp_path, layout="wan")


def test_save_in_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no layout 'comfy'; the layouts are wan and diffusers"):
        standard_vae().save(tmp_path / "vae.safetensors", layout="comfy")


def test_from_pretrained_of_a_preset_offline_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"wan2.1 could not be fetched from huggingface.co/Wan-AI") as caught:
        WanVAE.from_pretrained("wan2.1")
    assert "\n" not in str(caught.value)


def test_from_pretrained_of_a_preset_fetches_the_pinned_revision_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = standard_vae(latent_channels=16)
    save_file(native(vae, "diffusers"), tmp_path / "fetched.safetensors")
    asked = []

    def fetch(*where: str, revision: str | None) -> str:
        asked.append((*where, revision))
        return str(tmp_path / "fetched.safetensors")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url: SimpleNamespace(size=508 * 10**6))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    assert_same_weights(WanVAE.from_pretrained("qwen-image"), vae)
    file = "vae/diffusion_pytorch_model.safetensors"
    assert asked == [("Qwen/Qwen-Image", file, "75e0b4be04f60ec59a75f475837eced720f823b6")]
    with pytest.raises(
        CheckpointError, match=r"not the wan2.1 that was published: its SHA-256 is [0-9a-f]{64}, not d6e5"
    ):
        WanVAE.from_pretrained("wan2.1")


@pytest.mark.parametrize(
    ("source", "repository", "revision", "files"),
    [
        ("Some-1/vae_2.x", "Some-1/vae_2.x", None, ["vae/config.json", f"vae/{DIFFUSERS_FILE}"]),
        ("some/vae@v1.0", "some/vae", "v1.0", ["vae/config.json", f"vae/{DIFFUSERS_FILE}"]),
        ("some/vae/sub/file.safetensors", "some/vae", None, ["sub/file.safetensors"]),
        ("some/vae@refs/pr/3/file.pth", "some/vae", "refs/pr/3", ["file.pth"]),
    ],
)
def test_resolve_checkpoint_of_a_hub_id_fetches_its_files(
    source: str,
    repository: str,
    revision: str | None,
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vae, asked = standard_vae(), []
    vae.save(tmp_path / "hub" / "vae", layout="diffusers")

    def fetch(repository: str, file: str, *, revision: str | None) -> str:
        asked.append((repository, file, revision))
        path = tmp_path / "hub" / file
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            save_file(native(vae), path)
        return str(path)

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url: SimpleNamespace(size=508 * 10**6))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    assert_same_weights(WanVAE.from_pretrained(source), vae)
    assert asked == [(repository, file, revision) for file in files]


@pytest.mark.parametrize(
    "source",
    ["here/vae", "runs/vae.pth", "a.safetensors", "./some/vae", "../some/vae", "/some/vae", "some/vae@", "a b/c"],
)
def test_resolve_checkpoint_of_a_path_does_not_ask_the_hub(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(CheckpointError, match=r"neither a file, .* nor a repository on the Hugging Face hub"):
        resolve_checkpoint(source)
    (tmp_path / "some" / "vae").mkdir(parents=True)
    assert resolve_checkpoint("some/vae") == Path("some/vae")


def test_from_pretrained_of_a_hub_id_offline_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"some/vae could not be fetched from huggingface.co/some/vae") as caught:
        WanVAE.from_pretrained("some/vae")
    assert "\n" not in str(caught.value)
    assert "with no network, fetch the folder vae elsewhere and give its path" in str(caught.value)


def test_weights_digest_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    vae = WanVAE(small_config())
    vae.save(tmp_path / "vae.safetensors")
    assert weights_digest(vae.state_dict()) == load_checkpoint(tmp_path / "vae.safetensors").digest()
    by_hand = hashlib.sha256(b"a torch.float32 (1,)\n" + struct.pack("<f", 1.0)).hexdigest()
    assert weights_digest({"a": torch.tensor([1.0])}) == by_hand


def test_save_to_a_folder_that_holds_files_or_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "precious.txt").touch()
    with pytest.raises(UserError, match="already holds files"):
        standard_vae().save(tmp_path / "vae", layout="diffusers")
    with pytest.raises(UserError, match=r"precious\.txt is not a folder"):
        standard_vae().save(tmp_path / "vae" / "precious.txt" / "vae.safetensors")


@pytest.mark.parametrize(("name", "layout"), [("vae.safetensors", "wan"), ("vae", "diffusers")])
def test_write_checkpoint_creates_missing_folders(name: str, layout: str, tmp_path: Path) -> None:
    vae = standard_vae()
    vae.save(tmp_path / "runs" / "first" / name, layout=layout)
    assert_same_weights(WanVAE.from_pretrained(tmp_path / "runs" / "first" / name), vae)


def test_from_pretrained_of_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(CheckpointError, match=r"lightvae, nano, qwen-image, qwen-image-2.1, qwen-image-layered"):
        WanVAE.from_pretrained("wan3")
