import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from wan_vae.errors import UserError
from wan_vae.evaluation.lpips import LPIPS

ALEXNET = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_backbone(tmp_path_factory.mktemp("backbone") / "alexnet.safetensors")


def random_backbone(path: Path) -> Path:
    """Write AlexNet's convolutions, random, and one weight that belongs to its classifier."""
    pytest.importorskip("lpips")
    generator = torch.Generator().manual_seed(0)
    tensors = {"classifier.1.weight": torch.zeros(2, 2)}
    for index, (wide, narrow, side) in ALEXNET.items():
        weight = torch.randn(wide, narrow, side, side, generator=generator) * (2 / (narrow * side**2)) ** 0.5
        tensors[f"features.{index}.weight"] = weight
        tensors[f"features.{index}.bias"] = 0.1 * torch.randn(wide, generator=generator)
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def lpips(backbone: Path) -> LPIPS:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return LPIPS("alex", backbone)


@pytest.fixture
def pictures() -> torch.Tensor:
    return 2 * torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(1)) - 1


def test_lpips_grows_with_noise(lpips: LPIPS, pictures: torch.Tensor) -> None:
    assert lpips(pictures, pictures).tolist() == [0, 0]
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(2))
    distances = torch.stack([lpips(pictures, pictures + scale * noise) for scale in (0.02, 0.1, 0.5)])
    assert distances.shape == (3, 2)
    assert (distances.diff(dim=0) > 0).all()
    assert (distances > 0).all()


def test_lpips_distance_of_frames_is_that_of_pictures(lpips: LPIPS, pictures: torch.Tensor) -> None:
    frames = ((pictures + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    levels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    expected = lpips(levels[:1], levels[1:]).item()
    assert lpips.distance(frames[0], frames[1]) == pytest.approx(expected, rel=1e-4)
    assert lpips.distance(frames[0].astype("uint16") * 257, frames[1]) == pytest.approx(expected, rel=1e-4)


def test_lpips_takes_every_weight_from_the_file(lpips: LPIPS, backbone: Path) -> None:
    stored = {name: tensor for name, tensor in load_file(backbone).items() if name.startswith("features")}
    filled = {name.split("net.slice")[1][2:]: value for name, value in lpips.named_parameters() if ".net." in name}
    assert {f"features.{name}" for name in filled} == stored.keys()
    assert all(torch.equal(value, stored[f"features.{name}"]) for name, value in filled.items())


def test_lpips_stays_frozen_and_is_differentiable(lpips: LPIPS, pictures: torch.Tensor) -> None:
    lpips.train()
    assert not any(module.training for module in lpips.modules())
    assert not any(parameter.requires_grad for parameter in lpips.parameters())
    a, b = pictures.clone().requires_grad_(), pictures.flip(0).requires_grad_()
    lpips(a, b).sum().backward()
    for picture in (a, b):
        assert picture.grad is not None
        assert picture.grad.abs().sum() > 0


def test_lpips_of_too_small_pictures_is_refused(lpips: LPIPS) -> None:
    smallest = torch.zeros(1, 3, 31, 31)
    assert lpips(smallest, smallest).tolist() == [0]
    with pytest.raises(UserError, match="30x64 is too small"):
        lpips(torch.zeros(1, 3, 64, 30), torch.zeros(1, 3, 64, 30))


def test_lpips_of_a_bad_backbone_gets_a_sentence(backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.safetensors does not exist"):
        LPIPS("alex", tmp_path / "nowhere.safetensors")
    tensors = load_file(backbone)
    bad = tmp_path / "bad.safetensors"
    save_file({name: tensor for name, tensor in tensors.items() if name != "features.6.bias"}, bad)
    with pytest.raises(UserError, match=r"bad\.safetensors does not hold .*alexnet: features\.6\.bias is missing"):
        LPIPS("alex", bad)
    save_file(tensors | {"features.3.weight": torch.zeros(192, 64, 3, 3)}, bad)
    with pytest.raises(UserError, match=r"features\.3\.weight is \(192, 64, 3, 3\) where \(192, 64, 5, 5\) belongs"):
        LPIPS("alex", bad)
    bad.write_text("no tensors", encoding="utf-8")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        LPIPS("alex", bad)


def test_lpips_without_its_package_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    (tmp_path / "some.safetensors").touch()
    with pytest.raises(UserError, match=r"pip install 'wan-vae\[train\]'"):
        LPIPS("alex", tmp_path / "some.safetensors")
