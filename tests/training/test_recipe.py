import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import small_config
from tests.training.runs import stage_values
from wan_vae.config import config_folder, load_config, recipe_names
from wan_vae.errors import UserError
from wan_vae.training import Recipe, load_recipe

CONFIGS = Path(__file__).parents[2] / "configs" / "train"
SHIPPED = sorted(CONFIGS.glob("*.yaml"))


def minimal(**changes: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"model": {"preset": "nano"}, "data": {"videos": "clips"}, "stages": [stage_values()]}
    return defaults | changes


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def test_shipped_recipes_are_these_three() -> None:
    assert [path.stem for path in SHIPPED] == ["finetune_decoder", "full", "nano"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_load_and_fit_their_models(path: Path) -> None:
    recipe = load_recipe(path)
    recipe.check_fits(load_config(recipe.model.preset or recipe.model.checkpoint or ""))
    assert recipe.steps == sum(stage.steps for stage in recipe.stages)


def test_finetune_decoder_recipe_loads_with_its_commented_entries(tmp_path: Path) -> None:
    text = (CONFIGS / "finetune_decoder.yaml").read_text(encoding="utf-8")
    path = tmp_path / "taken_in.yaml"
    path.write_text(re.sub(r"^( *)# ((  )?\w+:)", r"\1\2", text, flags=re.MULTILINE), encoding="utf-8")
    recipe = load_recipe(path)
    assert recipe.data.held_out == ("one.mp4", "another.mp4")
    assert recipe.lpips is not None
    assert recipe.lpips.network == "vgg"
    assert recipe.stages[0].loss.lpips > 0


def test_recipe_round_trips_through_json(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path / "r.yaml", minimal(seed=7, lpips={"backbone": "some.safetensors"})))
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


def test_load_recipe_changes_override_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", minimal(data={"videos": "clips", "held_out": ["x.mp4"]}, lpips=None))
    changes = {
        "data": {"videos": "other", "photos": "photos"},
        "model": {"checkpoint": "wan2.1", "preset": None},
        "lpips": {"backbone": "alex.safetensors"},
    }
    recipe = load_recipe(path, changes)
    assert (recipe.data.videos, recipe.data.photos, recipe.data.held_out) == (Path("other"), Path("photos"), ("x.mp4",))
    assert (recipe.model.preset, recipe.model.checkpoint) == (None, "wan2.1")
    assert recipe.lpips is not None
    assert recipe.lpips.backbone == Path("alex.safetensors")
    assert load_recipe(path).data.videos == Path("clips")


BAD: dict[str, tuple[Any, str]] = {
    "unknown key": (minimal(sede=1), "sede is unknown, did you mean seed"),
    "unknown key in a section": (
        minimal(data={"videos": "a", "fps": 24}),
        r"data\.fps is unknown, the entries are videos",
    ),
    "unknown key in a stage": (minimal(stages=[stage_values(momentum=0.9)]), r"stages\.0\.momentum is unknown"),
    "unknown key in a loss": (
        minimal(stages=[stage_values(loss={"l2": 1})]),
        r"stages\.0\.loss\.l2 is unknown, the entries are l1",
    ),
    "wrong type": (minimal(stages=[stage_values(steps="many")]), r"stages\.0\.steps: .* integer.*'many'"),
    "no list": (minimal(data={"videos": "a", "held_out": "x.mp4"}), r"data\.held_out: .*'x\.mp4'"),
    "no section": (minimal(data="clips"), "data: .*'clips'"),
    "none of a thing": (minimal(stages=[stage_values(batch=0)]), r"stages\.0\.batch: .* 0"),
    "negative": (minimal(seed=-1), "seed: .*-1"),
    "huge": (minimal(seed=1e30), "seed: "),
    "infinite": (minimal(stages=[stage_values(learning_rate=float("inf"))]), r"stages\.0\.learning_rate: .*finite"),
    "not a share": (minimal(stages=[stage_values(photo_share=1.5)]), r"stages\.0\.photo_share: .*1\.5"),
    "beta of one": (minimal(betas=[0.9, 1.0]), r"betas\.1: .*less than 1.*1\.0"),
    "misspelled": (
        minimal(stages=[{{"lengths": "lenghts"}.get(name, name): value for name, value in stage_values().items()}]),
        r": stages\.0\.lenghts is unknown, did you mean lengths\.$",
    ),
    "several": (minimal(seed=-1, betas=[0.9, 1.0]), r"betas\.1: .*1\.0; seed: .*-1|seed: .*-1; betas\.1: .*1\.0"),
    "missing": (minimal(stages=[{"name": "a", "steps": 3}]), r"stages\.0\.batch is missing"),
    "no stages": (minimal(stages=[]), "stages: "),
    "no lengths": (minimal(stages=[stage_values(lengths={})]), r"stages\.0: .*lengths"),
    "a longer warm-up": (minimal(stages=[stage_values(warmup=5)]), r"stages\.0: warmup is 5, but there are 4 steps"),
    "nothing but KL": (
        minimal(stages=[stage_values(loss={"l1": 0})]),
        "l1, mse, psnr and lpips must be above 0",
    ),
    "a warm-up of nothing": (
        minimal(stages=[stage_values(loss={"adversarial_warmup": 3})]),
        r"stages\.0\.loss: adversarial_warmup has no effect while adversarial is 0",
    ),
    "an adversary that never comes": (
        minimal(stages=[stage_values(loss={"adversarial": 0.1, "adversarial_warmup": 5})]),
        r"stages\.0: adversarial_warmup is 5, but there are 4 steps; it must not be more",
    ),
    "lengths without shares": (minimal(stages=[stage_values(lengths={5: 0.0})]), r"stages\.0: .*lengths"),
    "a length that is none": (minimal(stages=[stage_values(lengths={"long": 1.0})]), r"stages\.0\.lengths\.long"),
    "both sources": (minimal(model={"preset": "nano", "checkpoint": "nano"}), "model: .*either a preset or a checkpo"),
    "neither source": (minimal(model={}), "model: name either a preset or a checkpoint"),
    "no data": (minimal(data={}), "data: name videos, photos, or both"),
    "LPIPS without its backbone": (minimal(stages=[stage_values(loss={"lpips": 1})]), "section lpips must name"),
    "LPIPS section without its backbone": (minimal(lpips={"network": "vgg"}), r"lpips\.backbone is missing"),
    "another precision": (minimal(mixed_precision="fp16"), "mixed_precision: .*'bf16'.*'fp16'"),
    "a list": (["model", "data"], "is no recipe: it is "),
    "nothing": ("", "is no recipe: it is None"),
    "not YAML": ("model: {preset: [", "is not a YAML file: "),
}


@pytest.mark.parametrize("name", BAD)
def test_load_recipe_invalid_entry_raises_one_sentence(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    path = write(tmp_path / "bad.yaml", content)
    with pytest.raises(UserError, match=rf"bad\.yaml.*{message}") as error:
        load_recipe(path)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".") or name == "not YAML"


@pytest.mark.parametrize("name", recipe_names())
def test_load_recipe_takes_the_name_of_a_shipped_recipe(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {"lpips": {"backbone": "a.safetensors"}} if name == "full" else {}
    shipped = load_recipe(config_folder() / "train" / f"{name}.yaml", changes)
    assert load_recipe(Path(name), changes) == shipped
    write(tmp_path / name, minimal(seed=7))
    assert load_recipe(Path(name)).seed == 7


def test_load_recipe_missing_or_binary_file_raises(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no recipe .*nowhere\.yaml; name a YAML file, or one of finetune_decoder, full, nano"
    ):
        load_recipe(tmp_path / "nowhere.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x80")
    for path in (tmp_path / "bytes.yaml", tmp_path):
        with pytest.raises(UserError, match="is not a YAML file"):
            load_recipe(path)


def test_load_recipe_changes_to_an_invalid_section_raise(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data: .*'clips'"):
        load_recipe(write(tmp_path / "bad.yaml", minimal(data="clips")), {"data": {"videos": "other"}})


@pytest.mark.parametrize(
    ("stage", "changes", "config", "message"),
    [
        ({"crop": 17}, {}, {}, "clips: the crop 17 is not a multiple of 2"),
        ({"lengths": {5: 1.0, 4: 0.5}}, {}, {}, r"clips: 4 frames are not 1 \+ 2k"),
        ({}, {"validation_frames": 4}, {}, r"validation_frames: 4 frames are not 1 \+ 2k"),
        ({}, {}, {"output_upscale": 2}, "2 times the size"),
        ({}, {}, {"image_channels": 4}, "pictures with alpha"),
        ({"lengths": {1: 0.5, 5: 0.5}}, {}, {"images_only": True}, r"clips: this model takes single pictures, not 5"),
        ({"crop": 30, "loss": {"lpips": 1}}, {"lpips": {"backbone": "a"}}, {}, "clips: the crop 30 .* 32 or more"),
        ({"crop": 14, "loss": {"lpips": 1}}, {"lpips": {"network": "vgg", "backbone": "a"}}, {}, "14 .* 16 or more"),
    ],
)
def test_check_fits_sizes_that_do_not_fit_raise(
    stage: dict[str, Any], changes: dict[str, Any], config: dict[str, Any], message: str
) -> None:
    recipe = Recipe.model_validate(minimal(stages=[stage_values(**stage)], **changes))
    with pytest.raises(UserError, match=message):
        recipe.check_fits(small_config(**config))


@pytest.mark.parametrize(("network", "crop"), [("alex", 32), ("vgg", 16)])
def test_check_fits_accepts_the_smallest_crops_of_lpips(network: str, crop: int) -> None:
    lpips = {"network": network, "backbone": "a"}
    Recipe.model_validate(minimal(stages=[stage_values(crop=crop, loss={"lpips": 1})], lpips=lpips)).check_fits(
        small_config()
    )
    Recipe.model_validate(minimal(stages=[stage_values(crop=8)], lpips=lpips)).check_fits(small_config())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_stage_at_maps_every_step_to_one_stage(steps: list[int]) -> None:
    recipe = Recipe.model_validate(minimal(stages=[stage_values(steps=count) for count in steps]))
    found = [recipe.stage_at(step) for step in range(recipe.steps)]
    assert found == [(index, inner) for index, count in enumerate(steps) for inner in range(count)]
    with pytest.raises(IndexError):
        recipe.stage_at(recipe.steps)
