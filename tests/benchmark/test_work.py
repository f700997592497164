import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.helpers import random_latents, random_vae, random_video, small_config
from wan_vae.benchmark.implementations import OURS, without_weights
from wan_vae.benchmark.measure import Work, work_of
from wan_vae.model.halo import Halo
from wan_vae.model.layers import CausalConv3d


def test_one_convolution_by_hand() -> None:
    with torch.device("meta"):
        layer = CausalConv3d(5, 7).requires_grad_(False)
        x = torch.empty(1, 5, 4, 6, 8)
    # Two frames of zeros are put before the four, the pixels around them are left to the convolution.
    multiplied = 7 * (4 * 6 * 8) * (5 * 3 * 3 * 3)
    passed = 5 * (6 * 6 * 8) + 7 * (4 * 6 * 8) + 7 * 5 * 3 * 3 * 3 + 7
    assert work_of(lambda: layer(x, Halo())) == Work(flops=2 * multiplied, values=passed)


def test_one_matrix_product_by_hand() -> None:
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    assert work_of(lambda: F.silu(a @ b)) == Work(flops=2 * 3 * 4 * 5, values=12 + 20 + 15)


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_it_is_what_a_real_call_computes(direction: str) -> None:
    config = small_config()
    # In float64 the network takes convolutions that torch's counter knows; of attention on a CPU, not all releases know
    # the fused kernel.
    vae = random_vae(config)
    given = random_video(9, 16, 12) if direction == "encode" else random_latents(config, 5, 8, 6)
    with torch.inference_mode():
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            vae.posterior(given) if direction == "encode" else vae.decode(given)
        blank = without_weights(OURS, config, device=given.device, dtype=given.dtype)
        found = work_of(lambda: getattr(blank, direction)(given.to("meta")))
    assert found.flops == counter.get_total_flops() > 0
    assert found.values > sum(weight.numel() for weight in getattr(vae, f"{direction}r").parameters())
