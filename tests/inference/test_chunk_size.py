"""How much goes together by itself."""

import torch

from wan_vae import WanVAE
from wan_vae.config import load_config


def test_a_device_gets_as_many_latents_at_once_as_keep_it_busy() -> None:
    class OnGPU(WanVAE):
        device = torch.device("cuda")

    with torch.device("meta"):
        vae = OnGPU(load_config("wan2.1")).to(torch.bfloat16)
        on_cpu = WanVAE(load_config("wan2.1"))
    assert vae.default_chunk_size(64, 64) == 8
    assert vae.default_chunk_size(720, 1280) == 1
    assert [vae.default_chunk_size(side, side) for side in (256, 384, 512)] == [8, 4, 2]
    on_cpu = on_cpu.to_empty(device="cpu")
    assert [on_cpu.default_chunk_size(side, side) for side in (32, 64, 128, 256)] == [8, 5, 1, 1]
