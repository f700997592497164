import os
from pathlib import Path

import pytest
from hypothesis import given

from tests.helpers import small_config, small_configs
from wan_vae import UserError, VAEConfig
from wan_vae.config import config_folder, load_config, preset_names


@given(small_configs())
def test_config_from_its_dictionary_is_equal(config: VAEConfig) -> None:
    assert VAEConfig.from_dict(config.to_dict(), origin="test") == config


def test_config_of_equal_blocks_is_that_of_one_number() -> None:
    assert small_config(blocks_per_level=(2, 2)) == small_config(blocks_per_level=2)
    assert small_config(blocks_per_level=(2, 1)).level_blocks == (2, 1)


def test_qwen_image_shares_the_latent_space_of_wan21() -> None:
    assert load_config("qwen-image") == load_config("wan2.1")


def test_config_of_wan22_has_its_compression() -> None:
    config = load_config("wan2.2")
    assert (config.spatial_compression, config.temporal_compression) == (16, 4)
    assert (config.input_channels, config.output_channels) == (12, 12)
    assert (len(config.latent_mean), len(config.latent_std)) == (48, 48)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_channels": 0}, "latent_channels is 0"),
        ({"latent_channels": True, "latent_mean": (0,), "latent_std": (1,)}, "latent_channels is True"),
        ({"encoder_width": 10**9}, "encoder_width is 1000000000; it must be a whole number from 1 to"),
        ({"width_multipliers": (1, 2.5)}, r"width_multipliers is \(1, 2.5\)"),
        ({"width_multipliers": (1,) * 9}, "there can be 1 to 8 levels"),
        ({"temporal_downsample": (1,)}, r"temporal_downsample is \(1,\); it must be a list of true and false"),
        ({"latent_mean": ("1e-3", 0.0, 0.0)}, "latent_mean is .*finite numbers .in YAML, 0.001"),
        ({"latent_std": (1.0, float("nan"), 1.0)}, "latent_std is .*finite"),
        ({"level_shortcuts": 1}, "level_shortcuts is 1; it must be true or false"),
        ({"encoder_width": 1.5}, "encoder_width is 1.5"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"block": "vgg"}, "block is 'vgg'"),
        ({"blocks_per_level": 4096}, "blocks_per_level is 4096; it must be a whole number from 1 to 64, or a list"),
        ({"blocks_per_level": (1, 4096)}, r"blocks_per_level is \(1, 4096\); it must be a whole number from 1 to 64"),
        ({"blocks_per_level": (1, 2, 3)}, "blocks_per_level has 3 entries for 2 levels"),
        (
            {"dense_layers": 10**5000},
            "dense_layers is a int of thousands of digits; it must be a whole",
        ),
        ({"dropout": 10**5000}, "dropout is a int of thousands of digits; it must be a finite number"),
        ({"latent_mean": (0.0, 1e308, 0.0)}, "latent_mean is .*finite"),
        (
            {"latent_std": (1.0, 1e-310, 1.0)},
            "latent_std holds 1e-310; standard deviations are positive, 1e-30 or more",
        ),
        ({"width_multipliers": [[1], [2]]}, "width_multipliers is .*whole numbers from 1 to 4096"),
        ({"block": ["wan"]}, "block is .*a word"),
        ({"width_multipliers": ()}, r"width_multipliers is \[\]"),
        ({"temporal_downsample": (True, True)}, "temporal_downsample has 2 entries; 2 levels have 1"),
        ({"latent_mean": (0.0,)}, "latent_mean has 1 values for 3"),
        ({"latent_std": (1.0, 0.0, 1.0)}, "latent_std holds 0.0"),
        ({"decoder_width": 3, "width_multipliers": (2, 1)}, "3 channels wide; upsampling halves"),
        ({"level_shortcuts": True}, r"width_multipliers is \[1, 2\]; a level's shortcut"),
    ],
)
def test_config_with_bad_values_gets_a_sentence(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_config(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not a YAML file"),
        ("hub: {}", "no section `architecture`"),
        ("architecture: {latent_channels: 3}", "does not describe an architecture: missing 1[0-9] required"),
        ("architecture: {depth: 3}", "unexpected keyword argument 'depth'"),
        ("architecture: {1: 3}", "keywords must be strings"),
        ("a: 2001-99-99", "is not a YAML file"),
        ("a: " + "9" * 5000, "is not a YAML file"),
        ("a: " + "[" * 5000, "is not a YAML file"),
        ("architecture: {dense_layers: 0x" + "f" * 9000 + "}", "does not describe an architecture"),
        ("a: " + "x" * 2**17, "is larger than 131072 bytes"),
        ("a: &a [*a, *a]", "aliases stand for too many values"),
        (
            "a: &a [x]\n"
            + "".join(f"{b}: &{b} [*{a}{f', *{a}' * 9}]\n" for a, b in zip("abcdef", "bcdefg", strict=True)),
            "too many values",
        ),
    ],
)
def test_load_config_of_a_bad_file_gets_a_sentence(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load_config(tmp_path / "bad.yaml")
    assert "\n" not in str(caught.value)


def test_load_config_of_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"neither a preset .*wan2.1.* nor a YAML file"):
        load_config("wan9")


def test_load_config_of_a_users_file_reads_it_like_a_preset(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes((config_folder() / "tiny.yaml").read_bytes())
    assert load_config(tmp_path / "mine.yaml") == load_config("tiny")
    assert "mine" not in preset_names()


def test_load_config_with_aliases_reads_them(tmp_path: Path) -> None:
    text = (config_folder() / "tiny.yaml").read_text(encoding="utf-8")
    text = text.replace("encoder_width: 8", "encoder_width: &width 8").replace(
        "decoder_width: 8", "decoder_width: *width"
    )
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    assert load_config(tmp_path / "mine.yaml") == load_config("tiny")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_load_config_of_no_regular_file_gets_a_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to("circle")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero"), tmp_path / "circle", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r"is no regular file|neither a preset|is not a YAML file"):
            load_config(path)
