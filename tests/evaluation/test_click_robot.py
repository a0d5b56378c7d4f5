import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import distance_transform_edt

from adclick_edge.data.clicks import Click
from adclick_edge.errors import UsageError
from adclick_edge.evaluation.click_robot import THRESHOLD, next_click

CASES = st.tuples(st.integers(1, 16), st.integers(1, 16)).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.bool_, shape), hnp.arrays(np.bool_, shape))
)


def depth(region: np.ndarray) -> np.ndarray:
    return np.asarray(distance_transform_edt(np.pad(region, 1)))[1:-1, 1:-1]


@settings(deadline=None, max_examples=200)
@given(CASES)
def test_the_click_is_the_deepest_place_of_the_larger_error(case: tuple[np.ndarray, np.ndarray]) -> None:
    found, truth = case
    probability = np.where(found, 0.9, 0.1).astype(np.float32)
    click = next_click(probability, truth, [])
    missed, false = depth(truth & ~found), depth(found & ~truth)
    if click is None:
        assert (found == truth).all()
        return
    place = int(click.y), int(click.x)
    own, other = (missed, false) if click.positive else (false, missed)
    assert own[place] == pytest.approx(own.max(), abs=1e-5)
    assert own.max() > 0
    assert own.max() >= other.max() - 1e-5
    assert click.positive == truth[place]
    assert next_click(probability.copy(), truth.copy(), []) == click


@settings(deadline=None, max_examples=60)
@given(CASES)
def test_every_error_is_clicked_once_at_most(case: tuple[np.ndarray, np.ndarray]) -> None:
    """A model that never answers is asked about each wrong pixel once, then there is nothing left."""
    found, truth = case
    given: list[Click] = []
    while (click := next_click(found.astype(np.float32), truth, given)) is not None:
        given.append(click)
    assert sorted((int(c.y), int(c.x)) for c in given) == [tuple(p) for p in np.argwhere(found != truth).tolist()]


def test_borders_of_the_picture_are_edges() -> None:
    truth = np.ones((9, 9), np.bool_)
    assert next_click(np.zeros((9, 9), np.float32), truth, []) == Click(4.0, 4.0, True)


def test_ties_go_to_missed_pixels_then_to_the_first_place() -> None:
    truth = np.zeros((1, 7), np.bool_)
    truth[0, [3, 5]] = True
    probability = np.zeros((1, 7), np.float32)
    probability[0, 0] = 1
    assert next_click(probability, truth, []) == Click(0.0, 3.0, True)
    assert next_click(probability, truth, [Click(0, 3, True)]) == Click(0.0, 5.0, True)
    assert next_click(probability, truth, [Click(0, 3, True), Click(0, 5, True)]) == Click(0.0, 0.0, False)


def test_depth_decides_and_not_area() -> None:
    """A long thin error is no larger than the disc that fits in it."""
    truth = np.zeros((20, 20), np.bool_)
    truth[0, :] = truth[3, :] = True  # 40 missed pixels
    probability = np.zeros((20, 20), np.float32)
    probability[10:15, 10:15] = 1  # 25 false ones
    assert next_click(probability, truth, []) == Click(12.0, 12.0, False)


def test_the_threshold_is_exclusive() -> None:
    truth = np.ones((1, 1), np.bool_)
    assert next_click(np.full((1, 1), THRESHOLD, np.float64), truth, []) is not None
    assert next_click(np.full((1, 1), 0.5, np.float32), truth, []) is None
    assert next_click(np.full((1, 1), 0.5, np.float32), truth, [], threshold=0.6) == Click(0.0, 0.0, True)


def test_refused() -> None:
    with pytest.raises(UsageError, match="one shape"):
        next_click(np.zeros((2, 3), np.float32), np.zeros((3, 2), np.bool_), [])
    with pytest.raises(UsageError, match="bool"):
        next_click(np.zeros((2, 2), np.float32), np.zeros((2, 2), np.uint8), [])  # type: ignore[arg-type]
