import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.sharding.grids import grids
from wan_vae import UserError
from wan_vae.sharding.grid import Grid, best_grid, even_grid


@given(grids(), st.integers(1, 3))
def test_parts_cover_the_picture_once(grid: Grid, scale: int) -> None:
    picture = torch.zeros(sum(grid.heights) * scale, sum(grid.widths) * scale)
    for part in range(grid.rows * grid.columns):
        grid.cut(picture, part, scale).add_(1)
        assert grid.part_at(*grid.place(part)) == part
    assert (picture == 1).all()


@given(st.integers(1, 5), st.integers(1, 5), st.integers(5, 20), st.integers(5, 20))
def test_parts_are_as_even_as_can_be(rows: int, columns: int, height: int, width: int) -> None:
    grid = even_grid(rows, columns, height, width)
    for sizes, count, total in ((grid.heights, rows, height), (grid.widths, columns, width)):
        assert (len(sizes), sum(sizes)) == (count, total)
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("devices", "height", "width", "shape"),
    [(8, 90, 160, (2, 4)), (4, 90, 160, (2, 2)), (2, 90, 160, (1, 2)), (2, 160, 90, (2, 1)), (3, 2, 9, (1, 3))],
)
def test_edges_within_the_picture_are_short(devices: int, height: int, width: int, shape: tuple[int, int]) -> None:
    grid = best_grid(devices, height, width)
    assert (grid.rows, grid.columns) == shape


def test_a_picture_too_small_is_refused_with_what_fits() -> None:
    with pytest.raises(UserError, match=r"^7 devices cannot share a picture of 3x5 latents; 6 could\.$"):
        best_grid(7, 3, 5)
    with pytest.raises(UserError, match=r"^4x2 devices cannot share a picture of 3x5 latents; 3x2 could\.$"):
        even_grid(4, 2, 3, 5)
