"""Random grids."""

from hypothesis import strategies as st

from wan_vae.sharding.grid import Grid


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Draw a grid of one to four parts of one to three latents a side, in rows, columns or both."""
    rows, columns = draw(st.sampled_from([(2, 2), (1, 3), (3, 1), (1, 2), (2, 1), (1, 1)]))
    sizes = st.integers(1, 3)
    return Grid(tuple(draw(sizes) for _ in range(rows)), tuple(draw(sizes) for _ in range(columns)))
