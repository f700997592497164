from pathlib import Path

import torch

from tests.training.runs import Material, small_recipe
from wan_vae.training.data import TrainingBatches, store_sources
from wan_vae.training.trainer import loaded


def test_workers_give_the_same_batches(material: Material, tmp_path: Path) -> None:
    recipe = small_recipe(material)
    batches = TrainingBatches(store_sources(recipe.data, tmp_path), recipe, 1)
    for workers in (0, 1):
        found = list(loaded(batches, range(1, 4), workers))
        assert [number for number, _ in found] == [1, 2, 3]
        for number, batch in found:
            assert torch.equal(batch.video, batches[number].video)
            assert batch.origins == batches[number].origins
