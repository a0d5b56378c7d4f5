import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.evaluation.binning import MIN_MAX_BINS, KeyHistogram, key_values, sortable_keys, sum_by_key

FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50)


@settings(deadline=None, max_examples=200)
@given(FLOATS)
def test_keys_sort_as_values_and_come_back(floats: list[float]) -> None:
    values = np.array(floats, dtype=np.float32)
    keys = sortable_keys(values)
    np.testing.assert_array_equal(key_values(keys), values)
    np.testing.assert_array_equal(keys[:, None] < keys, values[:, None] < values)
    np.testing.assert_array_equal(keys[:, None] == keys, values[:, None] == values)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 20), max_size=60), st.integers(0, 2**32 - 1))
def test_sums_by_key(keys: list[int], seed: int) -> None:
    weights = np.random.default_rng(seed).random(len(keys))
    for given_weights, each in ((None, np.ones(len(keys))), (weights, weights)):
        distinct, sums = sum_by_key(np.array(keys, dtype=np.uint32), given_weights)
        assert distinct.tolist() == sorted(set(keys))
        for key, total in zip(distinct, sums, strict=True):
            assert total == pytest.approx(sum(w for k, w in zip(keys, each, strict=True) if k == key))


def test_nothing_is_lost_while_bins_merge() -> None:
    rng = np.random.default_rng(0)
    histogram = KeyHistogram(channels=2, max_bins=MIN_MAX_BINS)
    for size in (10, 5000, 0, 300):
        histogram.add(0, sortable_keys(rng.standard_normal(size).astype(np.float32)))
        histogram.add(1, sortable_keys(rng.standard_normal(7).astype(np.float32)), np.full(7, 0.25))
    keys, sums = histogram.totals()
    assert keys.size <= MIN_MAX_BINS
    assert np.all(np.diff(keys.astype(np.int64)) > 0)
    np.testing.assert_allclose(sums.sum(axis=1), [5310, 4 * 7 * 0.25])


def test_fewest_bits_are_dropped() -> None:
    keys = np.random.default_rng(1).integers(0, 2**32, 4000, dtype=np.uint32)
    histogram = KeyHistogram(channels=1, max_bins=MIN_MAX_BINS)
    histogram.add(0, keys)
    histogram.totals()
    assert np.unique(keys >> np.uint32(histogram.shift)).size <= MIN_MAX_BINS
    assert np.unique(keys >> np.uint32(histogram.shift - 1)).size > MIN_MAX_BINS


def test_extreme_values_stay_finite_in_the_fewest_bins() -> None:
    exponents = np.arange(-149, 128)
    sizes = np.concatenate([np.ldexp(np.float32(1), exponents) * np.float32(f) for f in (1, 1.25, 1.5, 1.75)])
    values = np.concatenate([sizes, -sizes, [np.finfo(np.float32).max, np.finfo(np.float32).min]]).astype(np.float32)
    histogram = KeyHistogram(channels=1, max_bins=1)  # raised to the minimum
    histogram.add(0, sortable_keys(values))
    keys, sums = histogram.totals()
    assert histogram.max_bins == MIN_MAX_BINS
    assert np.all(np.isfinite(key_values(keys)))
    assert sums.sum() == values.size
