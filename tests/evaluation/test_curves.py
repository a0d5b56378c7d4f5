import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from adclick_edge.evaluation.curves import MAX_POINTS, curves
from adclick_edge.evaluation.inspection import InspectionMetrics


@pytest.fixture(scope="module")
def metrics() -> InspectionMetrics:
    rng = np.random.default_rng(0)
    metrics = InspectionMetrics()
    for index in range(40):
        anomaly_map = rng.normal(-3, 1, (64, 64)).astype(np.float32)
        mask = np.zeros((64, 64), dtype=np.bool_)
        if index % 2:
            mask[10 : 12 + index, 20:30] = True
            anomaly_map[mask] += 2
        metrics.add(anomaly_map, mask, float(anomaly_map.mean() * 100))
    return metrics


def test_curves_are_short_and_keep_their_ends(metrics: InspectionMetrics) -> None:
    drawn = curves(metrics)
    for curve in (drawn.pixel_pr, drawn.pixel_roc, drawn.pro):
        assert 100 < len(curve.x) <= MAX_POINTS
        assert len(curve.x) == len(curve.y) == len(curve.threshold)
        assert curve.x[-1] == pytest.approx(1.0)
        assert np.all(np.diff(curve.x) >= 0)
        assert np.all(np.diff(curve.threshold) < 0)
    assert drawn.pixel_roc.y[-1] == 1.0
    assert len(drawn.image_roc.x) == 40


def test_areas_under_thinned_curves_are_the_metrics(metrics: InspectionMetrics) -> None:
    drawn, result = curves(metrics), metrics.compute()
    roc, pr = drawn.pixel_roc, drawn.pixel_pr
    assert np.trapezoid(roc.y, roc.x) == pytest.approx(result.pixel_auroc, abs=1e-3)
    assert np.sum(np.diff(pr.x, prepend=0) * pr.y) == pytest.approx(result.pixel_ap, abs=3e-3)
    image_pr = drawn.image_pr
    assert np.sum(np.diff(image_pr.x, prepend=0) * image_pr.y) == pytest.approx(result.image_ap, abs=1e-12)
    x = np.linspace(0, 0.3, 2000)
    area = np.trapezoid(np.interp(x, [0, *drawn.pro.x], [0, *drawn.pro.y]), x) / 0.3
    assert area == pytest.approx(result.pro, abs=2e-3)


def test_points_lie_on_the_curve(metrics: InspectionMetrics) -> None:
    ranking, _ = metrics.pixel_ranking()
    drawn = curves(metrics, max_points=20).pixel_roc
    assert len(drawn.x) <= 20
    where = np.searchsorted(-ranking.thresholds, -np.array(drawn.threshold))
    np.testing.assert_allclose(ranking.false_alarm_rate()[where], drawn.x)
    np.testing.assert_allclose(ranking.recall()[where], drawn.y)


def test_histogram_counts_every_frame(metrics: InspectionMetrics) -> None:
    scores = curves(metrics).scores
    assert (sum(scores.normal), sum(scores.defective)) == (20, 20)
    assert len(scores.edges) == len(scores.normal) + 1


def test_undefined_curves_are_none() -> None:
    metrics = InspectionMetrics()
    assert curves(metrics).scores is None
    metrics.add(np.ones((4, 4), dtype=np.float32), None, 2.5)
    drawn = curves(metrics)
    assert drawn.pixel_pr is drawn.pixel_roc is drawn.pro is drawn.image_pr is drawn.image_roc is None
    assert sum(drawn.scores.normal) == 1


def test_image_ap_is_of_the_scores_given(metrics: InspectionMetrics) -> None:
    normal, defective = metrics.frame_scores(defective=False), metrics.frame_scores(defective=True)
    labels = np.repeat([0, 1], [normal.size, defective.size])
    expected = average_precision_score(labels, np.concatenate([normal, defective]))
    assert metrics.compute().image_ap == pytest.approx(expected, abs=1e-12)
