from collections.abc import Mapping

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from adclick_edge.data.clicks import Click
from adclick_edge.errors import UsageError
from adclick_edge.evaluation.click_baselines import FeatureClicks, GrabCut, RefinedFeatureClicks
from adclick_edge.evaluation.click_baselines.discs import label_discs, scaled, scaled_clicks
from adclick_edge.evaluation.click_baselines.grabcut import cut
from adclick_edge.evaluation.click_baselines.logistic import fit_logistic
from adclick_edge.evaluation.click_metrics import intersection_over_union
from adclick_edge.evaluation.click_robot import next_click


def pooled(frames: np.ndarray) -> Mapping[str, np.ndarray]:
    """Stands in for a backbone: mean colour of each cell."""
    maps = {}
    for stride in (4, 8, 16):
        size = (frames.shape[2] // stride, frames.shape[1] // stride)
        small = cv2.resize(frames[0], size, interpolation=cv2.INTER_AREA).astype(np.float32)
        maps[f"map{stride}"] = small.transpose(2, 0, 1)[None]
    return maps


def picture(height: int = 160, width: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """A red and a blue blot on noisy ground, and a shadow that is no defect."""
    rng = np.random.default_rng(0)
    truth = np.zeros((height, width), np.uint8)
    cv2.ellipse(truth, (60, 60), (30, 18), 20, 0, 360, 1, -1)
    cv2.circle(truth, (150, 110), 14, 1, -1)
    frame = np.full((height, width, 3), (150, 150, 140), np.float32)
    cv2.circle(frame, (50, 125), 20, (120, 120, 115), -1)
    frame[truth > 0] = (150, 90, 70)
    frame[:, 120:][truth[:, 120:] > 0] = (70, 90, 150)
    return np.clip(frame + rng.normal(0, 6, frame.shape), 0, 255).astype(np.uint8), truth > 0


def overlaps(model: object, frame: np.ndarray, truth: np.ndarray, clicks: int) -> list[float]:
    model.set_image(frame)
    probability, given_clicks, found = np.zeros(truth.shape, np.float32), [], []
    for _ in range(clicks):
        click = next_click(probability, truth, given_clicks)
        if click is None:
            break
        given_clicks.append(click)
        probability = model.click(click.y, click.x, click.positive)
        assert probability.shape == truth.shape
        assert probability.dtype == np.float32
        assert 0 <= probability.min() <= probability.max() <= 1
        found.append(intersection_over_union(probability, truth))
    return found


@pytest.mark.parametrize(
    "model", [GrabCut(), FeatureClicks(pooled), RefinedFeatureClicks(pooled)], ids=lambda m: m.name
)
def test_clicks_make_the_mask_better(model: object) -> None:
    frame, truth = picture()
    found = overlaps(model, frame, truth, 5)
    assert found[-1] > 0.85
    assert found[-1] > found[0] + 0.05
    assert overlaps(model, frame, truth, 5) == found  # a new image starts anew, and nothing is left to chance


@pytest.mark.parametrize(
    "model", [GrabCut(), FeatureClicks(pooled), RefinedFeatureClicks(pooled)], ids=lambda m: m.name
)
def test_a_click_has_its_say(model: object) -> None:
    frame, _ = picture()
    model.set_image(frame)
    assert model.click(60, 60, True)[60, 60] > 0.49
    assert model.click(110, 150, False)[110, 150] < 0.49
    model.set_image(frame[:40, :50])
    assert model.click(20, 20, False).max() < 0.49


def test_refined_ranks_by_the_regression_within_the_cut() -> None:
    frame, truth = picture()
    model = RefinedFeatureClicks(pooled)
    model.set_image(frame)
    probability = model.click(60, 60, True)
    inside = probability[truth & (probability > 0.49)]
    assert inside.size > 100
    assert len(np.unique(inside)) > 50


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(0.05, 20))
def test_logistic_regression_agrees_with_scikit_learn(seed: int, features: int, ridge: float) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(60, features))
    labels = points @ rng.normal(size=features) + rng.normal(size=60) > 0.3
    labels[:2] = True, False
    weights = rng.uniform(0.1, 3, 60)
    found = fit_logistic(points, labels, weights, ridge)
    expected = LogisticRegression(C=1 / ridge, tol=1e-10, max_iter=5000).fit(points, labels, sample_weight=weights)
    np.testing.assert_allclose(found[:-1], expected.coef_[0], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(found[-1], expected.intercept_[0], rtol=2e-3, atol=2e-3)


def test_separable_points_end() -> None:
    found = fit_logistic(np.array([[-1.0], [1.0]]), np.array([False, True]), np.ones(2), 1e-3)
    assert np.isfinite(found).all()
    assert found[0] > 3
    assert abs(found[1]) < 1e-6


def test_logistic_regression_refuses_what_has_no_answer() -> None:
    with pytest.raises(UsageError, match="both labels"):
        fit_logistic(np.ones((3, 1)), np.ones(3, np.bool_), np.ones(3), 1.0)
    with pytest.raises(UsageError, match="ridge"):
        fit_logistic(np.ones((2, 1)), np.array([True, False]), np.ones(2), 0.0)


def test_discs_belong_to_the_nearest_click() -> None:
    labels = label_discs((9, 12), [Click(4, 3, True), Click(4, 7, False)], 3.0)
    rows, columns = np.indices(labels.shape)
    to_first, to_second = np.hypot(rows - 4, columns - 3), np.hypot(rows - 4, columns - 7)
    expected = np.where(np.minimum(to_first, to_second) > 3, 0, np.where(to_first <= to_second, 1, -1))
    np.testing.assert_array_equal(labels, expected)
    assert label_discs((5, 5), [Click(2.4, 2.4, True)], 0.1).sum() == 1


def test_scaling_keeps_places() -> None:
    frame = np.zeros((100, 60, 3), np.uint8)
    assert scaled(frame, 50).shape == (50, 30, 3)
    assert scaled(frame, 512) is frame
    (click,) = scaled_clicks([Click(0, 59, True)], (100, 60), (50, 30))
    assert (click.y, click.x) == (-0.25, 29.25)


def test_a_cut_of_nothing_or_everything() -> None:
    frame, _ = picture(20, 20)
    none = np.zeros((20, 20), np.int8)
    assert not cut(frame, none > 0, none, 1).any()
    assert cut(frame, none == 0, none, 1).all()
