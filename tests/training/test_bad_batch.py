from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.helpers import random_video
from wan_vae.training.checkpoint import NonFiniteError, check_numbers, keep_batch
from wan_vae.training.data import TrainingBatch


def test_the_one_at_fault_is_named() -> None:
    values = {"l1": torch.tensor(0.5), "kl": torch.tensor(2.0, dtype=torch.bfloat16)}
    check_numbers(values)
    for bad in ("nan", "inf", "-inf"):
        with pytest.raises(NonFiniteError, match=f"^kl is {bad}$"):
            check_numbers(values | {"kl": torch.tensor(float(bad))})


def test_a_batch_is_kept_with_where_it_came_from(tmp_path: Path) -> None:
    video = random_video(3, 4, 6, batch=2, dtype=torch.float32)
    keep_batch(tmp_path / "bad.safetensors", TrainingBatch(video, ("a.mkv frame 1", "b.mkv frame 2")))
    with safe_open(tmp_path / "bad.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("video"), video)
        assert file.metadata()["origins"] == "a.mkv frame 1\nb.mkv frame 2"
