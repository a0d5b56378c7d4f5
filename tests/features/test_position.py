import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.errors import UsageError
from adclick_edge.features.position import (
    cell_slots,
    position_code,
    query_order,
    window_candidates,
    window_counts,
)

sizes = st.integers(1, 21)
blocks = st.integers(1, 9)


@given(sizes, sizes, st.integers(4, 40))
@settings(max_examples=40, deadline=None)
def test_code_is_the_formula(height, width, dims):
    code = position_code(height, width, dims)
    assert code.shape == (height * width, dims)
    assert code.dtype == np.float32
    quarter = dims // 4
    for y, x in {(0, 0), (height - 1, width - 1), (height // 2, width // 3)}:
        for i in range(quarter):
            angle = 10000 ** (-i / quarter)
            got = code[y * width + x, [i, quarter + i, 2 * quarter + i, 3 * quarter + i]]
            want = [np.sin(y * angle), np.cos(y * angle), np.sin(x * angle), np.cos(x * angle)]
            np.testing.assert_allclose(got, want, atol=1e-6)
    assert (code[:, 4 * quarter :] == 0).all()


def test_code_of_a_cell_does_not_depend_on_the_grid():
    small = position_code(5, 7, 64).reshape(5, 7, 64)
    large = position_code(20, 30, 64).reshape(20, 30, 64)
    np.testing.assert_array_equal(small, large[:5, :7])


def test_code_rises_over_three_cells_then_flattens():
    code = position_code(1, 40, 512).astype(np.float64)
    distance = np.linalg.norm(code - code[0], axis=1)
    assert (np.diff(distance[:4]) > 0.5).all()
    assert distance[3] > 0.5 * distance.max()


def test_code_refuses_bad_sizes():
    with pytest.raises(UsageError, match="dims is 3"):
        position_code(2, 2, 3)
    with pytest.raises(UsageError, match="height is 0"):
        position_code(0, 2, 8)


@given(sizes, sizes, blocks)
@settings(max_examples=60, deadline=None)
def test_every_cell_is_in_exactly_one_block(height, width, block):
    order = query_order(height, width, block)
    assert order.dtype == np.int32
    assert order.shape[1] == min(block, height) * min(block, width)
    by_block = [set(line.tolist()) for line in order]
    assert sum(map(len, by_block)) == height * width
    assert set.union(*by_block) == set(range(height * width))
    blocks_across = -(-width // block)
    for number, cells in enumerate(by_block):
        for cell in cells:
            y, x = divmod(cell, width)
            assert (y // block) * blocks_across + x // block == number


@given(sizes, sizes, blocks)
@settings(max_examples=40, deadline=None)
def test_slots_put_values_back(height, width, block):
    order = query_order(height, width, block)
    slots = cell_slots(order)
    assert slots.dtype == np.int32
    np.testing.assert_array_equal(order.ravel()[slots], np.arange(height * width))


def brute_force(row_cell, height, width, block, radius):
    """Rows and window sizes of each block, cell by cell."""
    rows, counts = [], []
    for top in range(0, height, block):
        for left in range(0, width, block):
            cells = [
                (y, x) for y in range(top, min(top + block, height)) for x in range(left, min(left + block, width))
            ]
            distance = [min(max(abs(y - ry), abs(x - rx)) for y, x in cells) for ry, rx in row_cell.tolist()]
            inside = [i for i, d in enumerate(distance) if d <= radius]
            counts.append(len(inside))
            rows.append(inside or [i for i, d in enumerate(distance) if d == min(distance)])
    return rows, counts


@given(st.integers(1, 13), st.integers(1, 13), blocks, st.integers(0, 4), st.integers(1, 30), st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_candidates_equal_brute_force(height, width, block, radius, rows, seed):
    rng = np.random.default_rng(seed)
    row_cell = np.stack([rng.integers(0, height, rows), rng.integers(0, width, rows)], axis=1).astype(np.int32)
    candidates = window_candidates(row_cell, height, width, block, radius)
    want, counts = brute_force(row_cell, height, width, block, radius)
    assert candidates.dtype == np.int32
    assert candidates.shape == (len(query_order(height, width, block)), max(map(len, want)))
    for line, expected in zip(candidates.tolist(), want, strict=True):
        assert line == expected + [expected[0]] * (len(line) - len(expected))
    np.testing.assert_array_equal(window_counts(row_cell, height, width, block, radius), counts)


def test_block_without_rows_takes_the_nearest():
    row_cell = np.array([[0, 0], [0, 1], [7, 6]], np.int32)
    candidates = window_candidates(row_cell, 8, 24, block=8, radius=2)
    np.testing.assert_array_equal(window_counts(row_cell, 8, 24, block=8, radius=2), [3, 1, 0])
    assert set(candidates[2].tolist()) == {2}


def test_window_cuts_the_search():
    cells = np.stack(np.divmod(np.arange(64 * 64), 64), axis=1).astype(np.int32)
    counts = window_counts(np.tile(cells, (3, 1)), 64, 64, block=8, radius=3)
    assert counts.sum() / (64 * 3 * 64 * 64) < 1 / 18


@pytest.mark.parametrize(
    ("row_cell", "message"),
    [
        (np.zeros((0, 2), np.int32), "at least one row"),
        (np.zeros((3,), np.int32), r"\[M, 2\]"),
        (np.array([[0, 4]], np.int32), "outside the 4 x 4 grid"),
        (np.array([[-1, 0]], np.int32), "outside the 4 x 4 grid"),
    ],
)
def test_candidates_refuse_a_bad_bank(row_cell, message):
    with pytest.raises(UsageError, match=message):
        window_candidates(row_cell, 4, 4)


def test_candidates_refuse_bad_sizes():
    row_cell = np.zeros((1, 2), np.int32)
    with pytest.raises(UsageError, match="radius is -1"):
        window_candidates(row_cell, 4, 4, radius=-1)
    with pytest.raises(UsageError, match="block is 0"):
        window_candidates(row_cell, 4, 4, block=0)
