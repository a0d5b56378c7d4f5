import itertools

import pytest

from adclick_edge.training.schedule import warm_cosine


def test_rises_then_falls_to_one_percent() -> None:
    factors = [warm_cosine(step, 100, 10) for step in range(101)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert factors[100] == pytest.approx(0.01)
    assert factors[55] == pytest.approx(0.505)


@pytest.mark.parametrize(("steps", "warm"), [(1, 0), (1, 1), (5, 10), (3, 3)])
def test_short_runs_stay_within_bounds(steps: int, warm: int) -> None:
    assert all(0.0 < warm_cosine(step, steps, warm) <= 1.0 for step in range(steps))
