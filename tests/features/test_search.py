import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from adclick_edge.features.search import augment_queries, augment_rows, nearest_rows, nearest_rows_in_blocks

sizes = st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 20))
seeds = st.integers(0, 2**32 - 1)


def whole_numbers(rng, *shape):
    """Coordinates on which float32 is exact, few enough that many distances are equal."""
    return rng.integers(-3, 4, shape).astype(np.float32)


def squared_distances(queries, rows):
    return cdist(queries.astype(np.float64), rows.astype(np.float64), "sqeuclidean")


@given(sizes, seeds, st.sampled_from([1, 100, 1000, 16 << 20]))
@settings(max_examples=60, deadline=None)
def test_nearest_is_brute_force_and_ties_go_to_the_lowest_row(size, seed, tile_bytes):
    count, bank_rows, dims = size
    rng = np.random.default_rng(seed)
    queries, rows = whole_numbers(rng, count, dims), whole_numbers(rng, bank_rows, dims)
    index = nearest_rows(augment_queries(queries), augment_rows(rows), tile_bytes=tile_bytes)
    assert index.dtype == np.int64
    np.testing.assert_array_equal(index, squared_distances(queries, rows).argmin(axis=1))


@given(sizes, seeds)
@settings(max_examples=40, deadline=None)
def test_rows_left_out_are_never_matched(size, seed):
    count, bank_rows, dims = size
    rng = np.random.default_rng(seed)
    queries, rows = whole_numbers(rng, count, dims), whole_numbers(rng, bank_rows, dims)
    allowed = rng.random(bank_rows) < 0.5
    allowed[rng.integers(bank_rows)] = True
    distances = squared_distances(queries, rows)
    distances[:, ~allowed] = np.inf
    index = nearest_rows(augment_queries(queries), augment_rows(rows), allowed=allowed, tile_bytes=200)
    np.testing.assert_array_equal(index, distances.argmin(axis=1))


@given(sizes, seeds)
@settings(max_examples=40, deadline=None)
def test_real_coordinates_lose_no_more_than_rounding(size, seed):
    count, bank_rows, dims = size
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(count, dims)).astype(np.float32)
    rows = rng.normal(size=(bank_rows, dims)).astype(np.float32)
    distances = squared_distances(queries, rows)
    index = nearest_rows(augment_queries(queries), augment_rows(rows))
    lengths = (rows.astype(np.float64) ** 2).sum(axis=1).max() + (queries.astype(np.float64) ** 2).sum(axis=1)
    assert (distances[np.arange(count), index] - distances.min(axis=1) <= 1e-6 * lengths).all()


def test_a_copy_of_a_row_is_found():
    rows = np.random.default_rng(0).normal(size=(300, 17)).astype(np.float32)
    np.testing.assert_array_equal(nearest_rows(augment_queries(rows), augment_rows(rows)), np.arange(300))


def test_no_row_left_is_an_error():
    rows = np.ones((3, 2), np.float32)
    with pytest.raises(ValueError, match="no row"):
        nearest_rows(augment_queries(rows), augment_rows(rows), allowed=np.zeros(3, bool))


def test_products_stay_under_the_tile_size():
    rng = np.random.default_rng(0)
    queries = augment_queries(rng.normal(size=(4000, 4)).astype(np.float32))
    search = augment_rows(rng.normal(size=(1000, 4)).astype(np.float32))
    tracemalloc.start()
    nearest_rows(queries, search, tile_bytes=200_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The whole product would be 16 MB; beside the tile there are the indices.
    assert peak < 200_000 + 8 * len(queries) + 50_000


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 12), seeds)
@settings(max_examples=40, deadline=None)
def test_blocks_match_only_their_candidates(blocks, cells, candidate_count, seed):
    rng = np.random.default_rng(seed)
    count, bank_rows, dims = blocks * cells, 30, 5
    queries, rows = whole_numbers(rng, count, dims), whole_numbers(rng, bank_rows, dims)
    order = rng.permutation(count).reshape(blocks, cells).astype(np.int32)
    candidates = rng.integers(0, bank_rows, (blocks, candidate_count)).astype(np.int32)
    index = nearest_rows_in_blocks(augment_queries(queries), augment_rows(rows), order, candidates)
    distances = squared_distances(queries, rows)
    for block in range(blocks):
        for cell in order[block]:
            # The first listed of equally near candidates.
            best = min(range(candidate_count), key=lambda c: (distances[cell, candidates[block, c]], c))
            assert index[cell] == candidates[block, best]
