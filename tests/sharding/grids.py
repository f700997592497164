"""Random grids."""

from collections.abc import Sequence

from hypothesis import strategies as st

from wan_vae.sharding.grid import Grid

HALVES = ((1, 2), (2, 1))


@st.composite
def grids(
    draw: st.DrawFn, shapes: Sequence[tuple[int, int]] = ((2, 2), (1, 3), (3, 1), *HALVES, (1, 1)), largest: int = 3
) -> Grid:
    """Draw a grid of parts of one to `largest` latents a side, by default one to four in rows, columns or both."""
    rows, columns = draw(st.sampled_from(shapes))
    sizes = st.integers(1, largest)
    return Grid(tuple(draw(sizes) for _ in range(rows)), tuple(draw(sizes) for _ in range(columns)))
