import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator

from adclick_edge.features.view import crop_cells


def random_maps(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, height, width)).astype(np.float32)


def test_the_whole_frame_is_itself() -> None:
    maps = random_maps(0, 7, 9)
    np.testing.assert_allclose(crop_cells(maps, (0, 0, 1, 1), (7, 9)), maps, atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 99),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(*[st.floats(0, 0.9)] * 2),
    st.tuples(*[st.floats(0.05, 1)] * 2),
)
def test_cells_are_interpolated_at_their_centres(
    seed: int, grid: tuple[int, int], cells: tuple[int, int], start: tuple[float, float], length: tuple[float, float]
) -> None:
    maps = random_maps(seed, *grid)
    end = [min(1.0, s + n) for s, n in zip(start, length, strict=True)]
    found = crop_cells(maps, (*start, *end), cells)
    axes = []
    for side in range(2):
        place = start[side] + (np.arange(cells[side]) + 0.5) / cells[side] * (end[side] - start[side])
        axes.append(np.clip(place * grid[side] - 0.5, 0, grid[side] - 1))
    # One cell has nothing to interpolate between: a second, equal one stands beside it.
    padded = np.pad(maps.astype(np.float64), ((0, 0), (0, 1), (0, 1)), mode="edge")
    reference = RegularGridInterpolator((np.arange(grid[0] + 1), np.arange(grid[1] + 1)), padded.transpose(1, 2, 0))
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    np.testing.assert_allclose(found, reference(points).transpose(2, 0, 1), atol=1e-4)
