import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from adclick_edge.data.clicks import MAX_CLICKS, Click
from adclick_edge.errors import UsageError
from adclick_edge.training.click_sampling import CORRECTIVE_CLICKS, click_array, corrective_click, first_clicks

MASKS = hnp.arrays(np.bool_, st.tuples(st.integers(1, 24), st.integers(1, 24)))
SEEDS = st.integers(0, 2**32 - 1)


def places(clicks: list[Click]) -> list[tuple[int, int]]:
    return [(int(click.y), int(click.x)) for click in clicks]


@settings(deadline=None, max_examples=150)
@given(MASKS, SEEDS)
def test_first_clicks_are_true_different_and_leave_room(mask: np.ndarray, seed: int) -> None:
    clicks = first_clicks(mask, np.random.default_rng(seed))
    assert len(clicks) <= MAX_CLICKS - CORRECTIVE_CLICKS
    assert len(set(places(clicks))) == len(clicks)
    assert all(click.positive == mask[place] for click, place in zip(clicks, places(clicks), strict=True))
    assert any(click.positive for click in clicks) == bool(mask.any())
    assert first_clicks(mask, np.random.default_rng(seed)) == clicks


def test_the_number_of_positives_decays() -> None:
    mask = np.zeros((64, 64), np.bool_)
    mask[16:48, 16:48] = True
    rng = np.random.default_rng(0)
    counts = [sum(click.positive for click in first_clicks(mask, rng)) for _ in range(4000)]
    ones, twos, threes = (counts.count(n) for n in (1, 2, 3))
    assert 0.7 < twos / ones < 0.9
    assert 0.7 < threes / twos < 0.9
    assert all(sum(click.positive for click in first_clicks(mask, rng, most=2)) <= 2 for _ in range(100))


def test_negatives_come_from_a_ring_and_from_afar_with_a_gap() -> None:
    mask = np.zeros((96, 96), np.bool_)
    mask[44:52, 44:52] = True
    rng = np.random.default_rng(1)
    negatives = [click for _ in range(500) for click in first_clicks(mask, rng) if not click.positive]
    distances = np.array([max(44 - c.y, c.y - 51, 44 - c.x, c.x - 51) for c in negatives])
    assert distances.min() >= 2
    assert 0.4 < np.mean(distances < 9) < 0.7


def test_the_first_positive_is_deep() -> None:
    mask = np.zeros((40, 40), np.bool_)
    mask[10:30, 10:30] = True
    rng = np.random.default_rng(2)
    for _ in range(50):
        first = first_clicks(mask, rng)[0]
        assert 14 <= first.y <= 25
        assert 14 <= first.x <= 25


@settings(deadline=None, max_examples=150)
@given(MASKS, SEEDS)
def test_a_corrective_click_lies_in_an_error(mask: np.ndarray, seed: int) -> None:
    probability = np.random.default_rng(seed).random(mask.shape, np.float32)
    rng = np.random.default_rng(seed)
    click = corrective_click(probability, mask, [], rng)
    wrong = (probability > 0.49) != mask
    assert (click is None) == (not wrong.any())
    if click is not None:
        place = int(click.y), int(click.x)
        assert wrong[place]
        assert click.positive == mask[place]
        again = corrective_click(probability, mask, [click], np.random.default_rng(seed))
        assert again is None or (again.y, again.x) != (click.y, click.x)
        assert corrective_click(probability, mask, [], np.random.default_rng(seed)) == click


def test_a_corrective_click_is_in_the_deep_part_of_the_larger_error() -> None:
    mask = np.zeros((40, 40), np.bool_)
    mask[2:7, 2:7] = True
    probability = np.zeros((40, 40), np.float32)
    probability[15:36, 15:36] = 1
    rng = np.random.default_rng(3)
    clicks = [corrective_click(probability, mask, [], rng) for _ in range(200)]
    assert all(c is not None and not c.positive and 20 <= c.y <= 30 and 20 <= c.x <= 30 for c in clicks)
    assert len({(c.y, c.x) for c in clicks if c is not None}) > 30


def test_click_array() -> None:
    rows = click_array([Click(3, 4, True), Click(5.5, 6.25, False)])
    assert rows.dtype == np.float32
    assert rows.shape == (MAX_CLICKS, 3)
    assert rows[:2].tolist() == [[3, 4, 1], [5.5, 6.25, -1]]
    assert not rows[2:].any()
    with pytest.raises(UsageError, match="at most 24"):
        click_array([Click(0, 0, True)] * 25)


def test_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match="bool"):
        first_clicks(np.zeros((3, 3), np.uint8), rng)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="most is 0"):
        first_clicks(np.ones((3, 3), np.bool_), rng, most=0)
    with pytest.raises(UsageError, match="one shape"):
        corrective_click(np.zeros((3, 3), np.float32), np.ones((3, 4), np.bool_), [], rng)
