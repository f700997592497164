import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers import small_config
from wan_vae import WanVAE
from wan_vae.training.optim import make_optimizer, orthogonalized


@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 99))
def test_orthogonalized_keeps_singular_vectors_and_brings_values_near_one(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, values, right = torch.linalg.svd(
        torch.randn(rows, columns, generator=generator, dtype=torch.float64), full_matrices=False
    )
    matrix = left @ torch.diag(values.clamp(min=0.1)) @ right
    found = left.T @ orthogonalized(matrix) @ right.T
    assert torch.allclose(found, torch.diag(found.diagonal()), atol=1e-6)
    assert found.diagonal().min() > 0.5
    assert found.diagonal().max() < 1.3


def test_every_weight_is_trained_once_and_the_ends_by_adamw() -> None:
    vae = WanVAE(small_config())
    adamw, muon = make_optimizer(vae, "muon", (0.9, 0.95), 0.0).param_groups
    names = {id(weight): name for name, weight in vae.named_parameters()}
    by_muon = {names[id(weight)] for weight in muon["params"]}
    by_adamw = {names[id(weight)] for weight in adamw["params"]}
    assert by_muon | by_adamw == set(names.values())
    assert not by_muon & by_adamw
    assert all(name.endswith("weight") for name in by_muon)
    assert {"encoder.conv_in.weight", "decoder.head.conv.weight", "quant_conv.weight"} <= by_adamw


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_weights_without_gradients_stay_and_the_others_descend(kind: str) -> None:
    torch.manual_seed(0)
    vae = WanVAE(small_config())
    vae.encoder.requires_grad_(False)
    frozen = {name: weight.clone() for name, weight in vae.encoder.named_parameters()}
    optimizer = make_optimizer(vae, kind, (0.9, 0.95), 0.01)
    video = torch.rand(1, 3, 3, 16, 16) * 2 - 1
    errors = []
    for _ in range(30):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3
        reconstruction, _ = vae(video)
        error = (reconstruction - video).abs().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.9 * errors[0]
    assert all(torch.equal(weight, frozen[name]) for name, weight in vae.encoder.named_parameters())


def test_the_state_goes_on_in_another_optimizer() -> None:
    results = []
    for interrupted in (False, True):
        torch.manual_seed(0)
        layer = torch.nn.Conv3d(4, 6, 3)
        optimizer = make_optimizer(layer, "muon", (0.9, 0.95), 0.0)
        for step in range(6):
            if interrupted and step == 3:
                state = optimizer.state_dict()
                optimizer = make_optimizer(layer, "muon", (0.9, 0.95), 0.0)
                optimizer.load_state_dict(state)
            for group in optimizer.param_groups:
                group["lr"] = 1e-2
            optimizer.zero_grad()
            layer(torch.full((1, 4, 3, 5, 5), 1.0 + step)).square().mean().backward()
            optimizer.step()
        results.append(layer.weight.detach().clone())
    assert torch.equal(*results)
