import torch

from experiments.residual_blocks.data import digest_of_pictures, photo, training_batches, validation_pictures
from experiments.residual_blocks.settings import Ablation, load_ablation
from experiments.residual_blocks.tests.conftest import ROOT
from experiments.residual_blocks.training import constant_psnr


def test_a_batch_depends_on_seed_and_step_alone(quick: Ablation) -> None:
    longer = quick.training.model_copy(update={"steps": 4})
    short = training_batches(quick.photos, quick.training, 0)
    long = training_batches(quick.photos, longer, 0)
    assert all(torch.equal(one, other) for one, other in zip(short, long[:2], strict=True))
    assert not torch.equal(long[0], long[1])
    assert not torch.equal(long[0], training_batches(quick.photos, quick.training, 1)[0])


def test_a_small_set_holds_the_asked_pictures_and_another_seed_others(quick: Ablation) -> None:
    training = quick.training.model_copy(update={"steps": 20, "batch": 2})

    def distinct(seed: int) -> set[bytes]:
        batches = training_batches(quick.photos, training, seed, 3)
        return {picture.numpy().tobytes() for batch in batches for picture in batch}

    assert len(distinct(0)) == 3
    assert not distinct(0) & distinct(1)


def test_pictures_have_the_asked_size_and_range(quick: Ablation) -> None:
    batch = training_batches(quick.photos, quick.training, 0)[0]
    held_out = validation_pictures(quick.photos, quick.training)
    assert batch.shape == (1, 3, 1, 8, 8)
    assert held_out.shape == (2, 3, 1, 8, 8)
    for pictures in (batch, held_out):
        assert pictures.dtype == torch.float32
        assert -1 <= pictures.min() < pictures.max() <= 1


def test_every_photo_comes_with_scikit_image(quick: Ablation) -> None:
    names = type(quick.photos).model_json_schema()["properties"]["training"]["items"]["enum"]
    for name in names:
        image = photo(name, 32)
        assert min(image.shape[:2]) == 32
        assert image.shape[2] == 3


def test_the_digest_of_pictures_tells_other_photos_and_sizes(quick: Ablation) -> None:
    photos, training = quick.photos, quick.training
    found = digest_of_pictures(photos, training)
    assert found == digest_of_pictures(photos, training)
    others = [
        digest_of_pictures(photos.model_copy(update={"training": ("camera",)}), training),
        digest_of_pictures(photos.model_copy(update={"held_out": ("rocket",)}), training),
        digest_of_pictures(photos, training.model_copy(update={"crop": 12})),
    ]
    assert len({found, *others}) == 4


def test_the_document_is_of_the_pictures_that_the_code_cuts_now() -> None:
    settings = load_ablation(ROOT / "experiments" / "residual_blocks" / "configs" / "default.yaml")
    found = constant_psnr(validation_pictures(settings.photos, settings.training))
    document = (ROOT / "docs" / "residual_blocks.md").read_text(encoding="utf-8")
    assert f"The mean color of all held-out pictures, everywhere, has a PSNR of {found:.2f} dB." in document
