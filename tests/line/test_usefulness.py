import numpy as np
import pytest
from candidate_samples import a_verdict
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.line.usefulness import EDGE_CLOSENESS, UNKNOWN, closeness, region_size, usefulness

unit = st.floats(0, 1)


def test_the_middle_of_the_band_is_closest_and_the_edges_are_alike():
    assert closeness(a_verdict(1.5)) == 1
    assert closeness(a_verdict(1.0)) == pytest.approx(EDGE_CLOSENESS)
    assert closeness(a_verdict(2.0)) == pytest.approx(EDGE_CLOSENESS)
    assert closeness(a_verdict(0.0)) < EDGE_CLOSENESS
    assert closeness(a_verdict(1.5, calibrated=False)) == UNKNOWN


@settings(deadline=None, max_examples=100)
@given(st.floats(-10, 10), st.floats(-10, 10))
def test_a_score_nearer_to_the_middle_is_never_less_close(one, other):
    near, far = sorted((one, other), key=lambda score: abs(score - 1.5))
    assert 0 < closeness(a_verdict(far)) <= closeness(a_verdict(near)) <= 1


def test_a_band_without_width_does_not_divide_by_zero():
    verdict = a_verdict(3.0)
    narrow = type(verdict)(frame="f", verdict="ng", score=3.0, lower=3.0, upper=3.0)
    assert closeness(narrow) == 1
    assert closeness(type(verdict)(frame="f", verdict="ng", score=4.0, lower=3.0, upper=3.0)) == 0


def test_size_grows_with_the_region_and_saturates():
    values = np.zeros((20, 20), np.float32)
    sizes = []
    for cells in (0, 1, 4, 20, 200):
        values.flat[:cells] = 1.5
        sizes.append(region_size(values, 1.0))
    assert sizes == sorted(sizes)
    assert sizes[0] == 0
    assert sizes[1] > 0.1
    assert sizes[3] == sizes[4] == 1
    assert region_size(values, None) == UNKNOWN


def test_only_inspected_cells_count():
    values = np.zeros((10, 10), np.float32)
    values[0] = 2
    valid = np.ones((10, 10), bool)
    valid[0] = False
    assert region_size(values, 1.0, valid) == 0
    assert region_size(values, 1.0, ~valid) == 1


@settings(deadline=None, max_examples=100)
@given(unit, unit, unit, unit)
def test_usefulness_rises_with_size_and_novelty_and_closeness_bounds_it(close, size, alike, other):
    assert 0 <= usefulness(close, size, alike) <= close + 1e-12
    assert usefulness(close, size, min(alike, other)) >= usefulness(close, size, max(alike, other))
    assert usefulness(close, max(size, other), alike) >= usefulness(close, min(size, other), alike)
