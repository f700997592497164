import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from safetensors import safe_open

from tests.helpers import random_video
from tests.training.runs import stage_values
from wan_vae.errors import UserError
from wan_vae.training import Recipe
from wan_vae.training.checkpoint import FILE_NAME, NonFiniteError, check_finite, load_state, save_batch, save_state
from wan_vae.training.data import TrainingBatch

STATE = {"step": 3, "weights": {"a": torch.arange(4.0)}}


def recipe_of(**changes: Any) -> Recipe:
    defaults: dict[str, Any] = {
        "model": {"preset": "nano"},
        "data": {"videos": "clips", "photos": "photos", "held_out": ["a.mp4"]},
        "stages": [stage_values()],
        "lpips": {"backbone": "alex.safetensors"},
    }
    return Recipe.model_validate(defaults | changes)


def test_save_state_then_load_state_returns_the_same_values(tmp_path: Path) -> None:
    assert load_state(tmp_path, recipe_of()) is None
    save_state(tmp_path, recipe_of(), STATE)
    found = load_state(tmp_path, recipe_of())
    assert found is not None
    assert found["step"] == 3
    assert torch.equal(found["weights"]["a"], STATE["weights"]["a"])
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_save_state_failing_keeps_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, recipe_of(), STATE)
    before = (tmp_path / FILE_NAME).read_bytes()

    def full_disk(content: object, file: BinaryIO) -> None:
        file.write(b"half a state")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        with pytest.raises(OSError, match="No space"):
            save_state(tmp_path, recipe_of(), STATE | {"step": 4})
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    save_state(tmp_path, recipe_of(), STATE | {"step": 4})
    assert (load_state(tmp_path, recipe_of()) or {})["step"] == 4


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-200]),
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no state", encoding="utf-8"),
        lambda path: torch.save(["a", "list"], path),
        lambda path: torch.save({"step": 3}, path),
        lambda path: torch.save({"recipe": Path("code")}, path),
    ],
)
def test_load_state_damaged_file_raises(spoil: Any, tmp_path: Path) -> None:
    save_state(tmp_path, recipe_of(), STATE)
    spoil(tmp_path / FILE_NAME)
    with pytest.raises(UserError, match=r"state\.pt is not the state of a training run, or is damaged; name another"):
        load_state(tmp_path, recipe_of())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed = 0, not 1"),
        ({"model": {"checkpoint": "nano"}}, r"model\.checkpoint = None, not 'nano'"),
        ({"stages": [stage_values(warmup=2)]}, r"stages\.0\.warmup = 0, not 2"),
        ({"stages": [stage_values(lengths={3: 0.5, 5: 0.4})]}, r"stages\.0\.lengths\.5 = 0\.5, not 0\.4"),
        ({"data": {"videos": "clips", "photos": "photos"}}, r"data\.held_out\.0 = 'a\.mp4', not None"),
        ({"lpips": {"network": "vgg", "backbone": "vgg.safetensors"}}, r"lpips\.network = 'alex', not 'vgg'"),
        ({"mixed_precision": "bf16"}, "mixed_precision = None, not 'bf16'"),
    ],
)
def test_load_state_other_recipe_raises_and_names_the_entry(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_state(tmp_path, recipe_of(), STATE)
    with pytest.raises(UserError, match=message) as error:
        load_state(tmp_path, recipe_of(**changes))
    assert "another --out" in str(error.value)
    assert "\n" not in str(error.value)


def test_load_state_accepts_changes_of_stages_not_begun(tmp_path: Path) -> None:
    first, second = stage_values(steps=3), stage_values(steps=5)
    save_state(tmp_path, recipe_of(stages=[first, second]), STATE)
    assert load_state(tmp_path, recipe_of(stages=[first, stage_values(steps=9), second])) is not None
    save_state(tmp_path, recipe_of(stages=[first, second]), STATE | {"step": 4})
    with pytest.raises(UserError, match=r"stages\.1\.steps = 5, not 9"):
        load_state(tmp_path, recipe_of(stages=[first, stage_values(steps=9)]))


def test_load_state_accepts_other_paths_and_intervals(tmp_path: Path) -> None:
    save_state(tmp_path, recipe_of(), STATE)
    elsewhere = recipe_of(
        data={"videos": "x/clips", "photos": "x/photos", "held_out": ["a.mp4"], "workers": 3},
        lpips={"backbone": "x/alex.safetensors"},
        log_every=7,
        validate_every=7,
        checkpoint_every=7,
        validation_clips=7,
        validation_frames=9,
    )
    assert (load_state(tmp_path, elsewhere) or {})["step"] == 3


def test_load_state_accepts_other_rates_and_clipping_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_state(tmp_path, recipe_of(), STATE)
    recipe = recipe_of(stages=[stage_values(learning_rate=0.5)], gradient_clip=0.1)
    assert (load_state(tmp_path, recipe) or {})["step"] == 3
    assert [message.partition(" goes on with ")[2] for message in caplog.messages] == [
        "gradient_clip = 0.1, which was 1.0 before.",
        "stages.0.learning_rate = 0.5, which was 0.002 before.",
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of a file's size")
@pytest.mark.parametrize(
    "write", ["save_state(folder, recipe_of(), state)", "save_batch(folder / 'a.safetensors', batch)"]
)
def test_writing_to_a_full_disk_raises_an_oserror_and_leaves_nothing(write: str, tmp_path: Path) -> None:
    # A limit of the process stands for a disk; it is in a process of its own, since it cannot be lifted.
    script = f"""
import resource, signal, sys
from pathlib import Path
import torch
from tests.training.test_checkpoint import recipe_of
from wan_vae.training.checkpoint import save_batch, save_state
from wan_vae.training.data import TrainingBatch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
zeros = torch.zeros(10**6)
folder, state, batch = Path(sys.argv[1]), {{"step": 3, "weights": zeros}}, TrainingBatch(zeros, ())
try:
    {write}
except OSError as error:
    print(error.strerror)
"""
    found = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == os.strerror(errno.EFBIG)
    assert not list(tmp_path.iterdir())


def test_check_finite_names_the_nonfinite_value() -> None:
    values = {"l1": torch.tensor(0.5), "kl": torch.tensor(2.0, dtype=torch.bfloat16)}
    check_finite(values)
    for bad in ("nan", "inf", "-inf"):
        with pytest.raises(NonFiniteError, match=f"^kl is {bad}$"):
            check_finite(values | {"kl": torch.tensor(float(bad))})


def test_save_batch_writes_video_and_origins(tmp_path: Path) -> None:
    video = random_video(3, 4, 6, batch=2, dtype=torch.float32)
    save_batch(tmp_path / "bad.safetensors", TrainingBatch(video, ("a.mkv frame 1", "b.mkv frame 2")))
    with safe_open(tmp_path / "bad.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("video"), video)
        assert file.metadata()["origins"] == "a.mkv frame 1\nb.mkv frame 2"
