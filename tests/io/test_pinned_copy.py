from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.lazy_device import LazyDevice, LazyTensor
from wan_vae.io.frames import one_behind, to_device, to_host

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_on_the_cpu_tensors_are_handed_on_as_they_come() -> None:
    asked = []

    def tensors() -> Iterator[Tensor]:
        for number in range(3):
            asked.append(number)
            yield torch.full((2, 3), number)

    for number, (tensor,) in enumerate(to_host(zip(to_device(tensors(), CPU)), CPU)):
        assert asked[-1] == number
        assert torch.equal(tensor, torch.full((2, 3), number))
    assert asked == [0, 1, 2]
    original = torch.zeros(2)
    assert next(to_device([original], CPU)) is original
    assert next(to_host([(original, original)], CPU))[1] is original


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_one_behind(count: int) -> None:
    order = []

    def items() -> Iterator[int]:
        for item in range(count):
            order.append(f"took {item}")
            yield item

    for item in one_behind(items()):
        order.append(f"gave {item}")
    taken, given = [f"took {item}" for item in range(count)], [f"gave {item}" for item in range(count)]
    interleaved = [step for pair in zip(taken[1:], given[:-1], strict=True) for step in pair]
    assert order == [*taken[:1], *interleaved, *given[-1:]]


def test_nothing_is_used_before_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    device = LazyDevice(monkeypatch)
    sent = [LazyTensor(device, number) for number in range(5)]
    moved: list[LazyTensor] = []
    computed: list[LazyTensor] = []

    def compute() -> Iterator[tuple[LazyTensor]]:
        for tensor in to_device(sent, CUDA):
            moved.append(tensor)
            computed.append(tensor.plus(100))
            yield (computed[-1],)

    for number, (received,) in enumerate(to_host(compute(), CUDA)):
        assert received.value == 100 + number
        assert len(computed) == min(number + 2, 5), "the device has the next to compute"
        assert all(tensor.value is None for tensor in computed[number + 1 :]), "nobody waits for that"
    assert number == 4
    for tensor in moved:  # memory must not go to others while another stream uses it
        assert tensor.made_on is not device.computing
        assert tensor.used_on == [device.computing]
    for tensor in computed:
        assert tensor.made_on is device.computing
        assert tensor.used_on[0] not in (device.computing, moved[0].made_on)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_cuda_there_and_back_while_the_device_computes() -> None:
    generator = torch.Generator().manual_seed(0)
    sent = [torch.randint(0, 256, (4, 300, 400, 3), generator=generator).to(torch.uint8) for _ in range(12)]

    def computed() -> Iterator[tuple[Tensor, Tensor]]:
        work = torch.rand(2048, 2048, device=CUDA)
        for tensor in to_device(sent, CUDA):
            for _ in range(20):  # so that a copy that did not wait would come too early
                work = (work @ work).clamp(0, 1)
            yield tensor + 1, tensor.amax()

    torch.cuda.set_sync_debug_mode("error")
    try:
        received = [(values.clone(), largest.clone()) for values, largest in to_host(computed(), CUDA)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for before, (values, largest) in zip(sent, received, strict=True):
        assert torch.equal(values, before + 1)
        assert torch.equal(largest, before.amax())
