import torch

from wan_vae.benchmark.measure import time_by_operation


def test_every_operation_is_counted_and_the_longest_comes_first() -> None:
    matrix = torch.ones(64, 64)
    spent = time_by_operation(lambda: (matrix @ matrix @ matrix).tanh_(), torch.device("cpu"))
    calls = {each.name: each.calls for each in spent}
    assert (calls["aten::mm"], calls["aten::tanh_"]) == (2, 1)
    seconds = [each.seconds for each in spent]
    assert seconds == sorted(seconds, reverse=True)
    assert min(seconds) > 0
