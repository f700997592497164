"""Folding as Wan2.2's own words for it say, whatever the widths; frame 0 is checked by hand."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from hypothesis import assume, given
from hypothesis import strategies as st

from wan_vae.model.halo import CachedHalo, Halo
from wan_vae.model.level_shortcuts import AverageShortcut, FoldGroup, RepeatShortcut, fold_group

CELLS = st.tuples(st.sampled_from([1, 2]), st.sampled_from([1, 2]))


def clip(frames: int) -> torch.Tensor:
    return torch.arange(1.0, frames + 1).view(1, 1, frames, 1, 1).expand(1, 1, frames, 2, 2).to(torch.float64)


def zeros(frames: int, side: int) -> torch.Tensor:
    return torch.zeros(1, 1, frames, side, side, dtype=torch.float64)


def test_averaging_puts_zeros_before_an_odd_clip() -> None:
    averaged = AverageShortcut(1, 1, time=2, space=2)(clip(3), zeros(2, 1), Halo())
    assert averaged[0, 0, :, 0, 0].tolist() == [0.5, 2.5]


@pytest.mark.parametrize("plain_ops", [True, False])
def test_repeating_keeps_one_copy_of_frame_0(plain_ops: bool) -> None:
    up, halo = RepeatShortcut(1, 1, time=2, space=2), CachedHalo()
    with torch.set_grad_enabled(plain_ops):
        assert up(clip(2), zeros(3, 4), halo)[0, 0, :, 0, 0].tolist() == [1.0, 2.0, 2.0]
        halo.advance()
        assert up(clip(2), zeros(4, 4), halo)[0, 0, :, 0, 0].tolist() == [1.0, 1.0, 2.0, 2.0]


@given(CELLS, st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.booleans())
def test_averages_of_any_widths(cell: tuple[int, int], narrow: int, wide: int, frames: int, plain_ops: bool) -> None:
    time, space = cell
    assume(narrow * time * space**2 % wide == 0)
    x = torch.randn(2, narrow, frames, 2 * space, 3 * space, dtype=torch.float64)
    main = torch.randn(2, wide, -(-frames // time), 2, 3, dtype=torch.float64)
    padded = F.pad(x, (0, 0, 0, 0, -frames % time, 0))
    places = rearrange(padded, "b c (t p) (h q) (w r) -> b (c p q r) t h w", p=time, q=space, r=space)
    expected = main + places.unflatten(1, (wide, -1)).mean(dim=2)
    with torch.set_grad_enabled(plain_ops):
        torch.testing.assert_close(AverageShortcut(narrow, wide, time=time, space=space)(x, main, Halo()), expected)


@given(CELLS, st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.booleans())
def test_repeats_of_any_widths(cell: tuple[int, int], wide: int, narrow: int, frames: int, plain_ops: bool) -> None:
    time, space = cell
    assume(narrow * time * space**2 % wide == 0)
    x = torch.randn(2, wide, frames, 2, 3, dtype=torch.float64)
    main = torch.randn(2, narrow, time * frames - (time - 1), 2 * space, 3 * space, dtype=torch.float64)
    repeated = x.repeat_interleave(narrow * time * space**2 // wide, dim=1)
    spread = rearrange(repeated, "b (c p q r) t h w -> b c (t p) (h q) (w r)", p=time, q=space, r=space)
    expected = main + spread[:, :, time - 1 :]
    with torch.set_grad_enabled(plain_ops):
        torch.testing.assert_close(RepeatShortcut(wide, narrow, time=time, space=space)(x, main, Halo()), expected)


def test_what_a_group_covers() -> None:
    assert fold_group(1, (2, 2, 2)) == FoldGroup((False, False, False), 1)
    assert fold_group(2, (2, 2, 2)) == FoldGroup((False, False, True), 1)
    assert fold_group(4, (1, 2, 2)) == FoldGroup((True, True, True), 1)
    assert fold_group(24, (2, 2, 2)) == FoldGroup((True, True, True), 3)
    assert fold_group(6, (2, 2, 2)) is None
