from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from adclick_edge.data.sample import Sample
from adclick_edge.errors import DataError, UsageError
from adclick_edge.evaluation.click_metrics import ClickMetrics, intersection_over_union, reported_clicks
from adclick_edge.evaluation.click_protocol import ClickedImage, evaluate_clicks


class Scripted:
    """Answers with the maps it was given, whatever is clicked; the last one stays."""

    name = "scripted"

    def __init__(self, *maps: np.ndarray) -> None:
        self.maps = [np.asarray(m, np.float32) for m in maps]
        self.given: list[tuple[float, float, bool]] = []
        self.images = 0
        self.words: list[str | None] = []

    def set_image(self, frame: np.ndarray) -> None:
        self.given = []
        self.images += 1

    def prompt(self, words: str | None) -> None:
        self.words.append(words)

    def click(self, y: float, x: float, positive: bool) -> np.ndarray:
        self.given.append((y, x, positive))
        return self.maps[min(len(self.given), len(self.maps)) - 1]


TRUTH = np.zeros((6, 8), np.bool_)
TRUTH[1:5, 1:5] = True
HALF = np.where(TRUTH & (np.arange(8) < 3), 0.9, 0.1)
NEARLY = np.where(TRUTH & ~((np.arange(6)[:, None] == 1) & (np.arange(8) == 1)), 0.8, 0.2)


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return write(tmp_path, "a", TRUTH)


def write(folder: Path, name: str, truth: np.ndarray, kind: str = "dent") -> Sample:
    frame = np.full((*truth.shape, 3), 90, np.uint8)
    cv2.imwrite(str(folder / f"{name}.png"), frame)
    cv2.imwrite(str(folder / f"{name}_mask.png"), truth.astype(np.uint8) * 255)
    return Sample(folder / f"{name}.png", "test", kind, folder / f"{name}_mask.png")


@pytest.mark.parametrize(
    ("clicks", "reported"), [(1, (1,)), (2, (1, 2)), (4, (1, 2, 3, 4)), (5, (1, 2, 3, 5)), (8, (1, 2, 3, 5, 8))]
)
def test_reported_clicks(clicks: int, reported: tuple[int, ...]) -> None:
    assert reported_clicks(clicks) == reported


def test_iou() -> None:
    assert intersection_over_union(np.float32([[0.5, 0.49, 0.0]]), np.array([[True, True, False]])) == 0.5
    assert intersection_over_union(np.float32([[0.5, 0.5]]), np.array([[False, True]])) == 0.5
    assert intersection_over_union(np.float32([[0.0]]), np.array([[False]])) == 1.0


def test_figures_are_those_of_the_maps(sample: Sample, tmp_path: Path) -> None:
    """Two pictures; each figure against scikit-learn on the pixels of both."""
    other = TRUTH[:, ::-1].copy()
    samples = [sample, write(tmp_path, "b", other)]
    result = evaluate_clicks(Scripted(HALF, NEARLY), samples, clicks=2, noc_clicks=None)
    pixels = np.concatenate([TRUTH.ravel(), other.ravel()])
    assert [scores.clicks for scores in result.per_click] == [1, 2]
    for scores, answer in zip(result.per_click, (HALF, NEARLY), strict=True):
        values = np.concatenate([answer.ravel()] * 2)
        assert scores.ap == pytest.approx(average_precision_score(pixels, values))
        assert scores.auroc == pytest.approx(roc_auc_score(pixels, values))
        found = answer > 0.49
        expected = [(found & t).sum() / (found | t).sum() for t in (TRUTH, other)]
        assert scores.mean_iou == pytest.approx(np.mean(expected))
    assert result.images == 2
    assert (result.noc80, result.noc85, result.noc90) == (None, None, None)


def test_pro_is_per_region_up_to_a_false_positive_rate() -> None:
    """One region found wholly before any false alarm, one never: the curve stays at 1/2 until the tie of the rest."""
    truth = np.zeros((10, 10), np.bool_)
    truth[0, 0:4] = truth[9, 9] = True
    answer = np.zeros((10, 10), np.float32)
    answer[0, 0:4] = 1
    metrics = ClickMetrics((1,), None)
    metrics.add({1: answer}, truth, [0.8], "picture")
    scores = metrics.compute("model", 0.0, 0.0, 0).per_click[0]
    # From (0, 1/2) the curve runs straight to (1, 1): over 0..0.3 it averages 1/2 + 0.3 / 4.
    assert scores.pro == pytest.approx(0.5 + 0.075)


def test_clicks_needed(sample: Sample) -> None:
    """IoU 0.5 after one click, 15/16 after two."""
    result = evaluate_clicks(Scripted(HALF, NEARLY), [sample], clicks=1)
    assert (result.noc80, result.noc85, result.noc90, result.noc_clicks) == (2, 2, 2, 20)
    never = Scripted(HALF)
    result = evaluate_clicks(never, [sample], clicks=1)
    assert (result.noc80, result.noc90) == (20, 20)
    # The first click lies in the half that is found; then each of the 8 missed pixels was clicked, and none was left.
    assert len(never.given) == len(set(never.given)) == 9


def test_noc_stops_where_it_is_known_and_clicks_go_on(sample: Sample) -> None:
    model = Scripted(NEARLY)
    evaluate_clicks(model, [sample], clicks=1)
    assert len(model.given) == 1
    far = np.zeros((6, 8))
    model = Scripted(far)
    evaluate_clicks(model, [sample], clicks=3, noc_clicks=None)
    assert len(model.given) == 3
    result = evaluate_clicks(model, [sample], clicks=3, noc_clicks=2)
    assert len(model.given) == 3
    assert result.noc80 == 2


def test_the_last_mask_counts_when_no_error_is_left(sample: Sample) -> None:
    model = Scripted(HALF, TRUTH)
    images: list[ClickedImage] = []
    result = evaluate_clicks(model, [sample], clicks=5, each=images.append)
    assert len(model.given) == 2
    assert [scores.mean_iou for scores in result.per_click] == [0.5, 1.0, 1.0, 1.0]
    assert result.per_click[-1].ap == 1.0
    assert images[0].overlaps == (0.5, 1.0)
    assert len(images[0].clicks) == 2
    np.testing.assert_array_equal(images[0].probability, TRUTH.astype(np.float32))


def test_words_are_said_for_each_image(sample: Sample, tmp_path: Path) -> None:
    model = Scripted(TRUTH)
    samples = [sample, write(tmp_path, "b", TRUTH, kind="odd")]
    evaluate_clicks(model, samples, clicks=1, words=lambda s: s.kind if s.kind == "dent" else None)
    assert model.words == ["dent", None]
    assert model.images == 2

    class Wordless:
        name, set_image, click = "wordless", model.set_image, model.click

    evaluate_clicks(Wordless(), [sample], clicks=1)
    with pytest.raises(UsageError, match="takes no words"):
        evaluate_clicks(Wordless(), [sample], clicks=1, words=lambda s: s.kind)


def test_large_pictures_are_reduced_and_said_to_be(tmp_path: Path) -> None:
    truth = np.zeros((60, 80), np.bool_)
    truth[10:50, 10:50] = True
    truth[30, 70] = True
    seen: list[ClickedImage] = []
    result = evaluate_clicks(
        Scripted(np.zeros((30, 40))),
        [write(tmp_path, "a", truth)],
        1,
        noc_clicks=None,
        max_side_px=40,
        each=seen.append,
    )
    assert result.reduced_images == 1
    assert seen[0].frame.shape == (30, 40, 3)
    assert seen[0].truth.sum() == 400
    thin = np.zeros((60, 80), np.bool_)
    thin[:, 41] = True
    evaluate_clicks(
        Scripted(np.zeros((15, 20))), [write(tmp_path, "b", thin)], 1, noc_clicks=None, max_side_px=20, each=seen.append
    )
    assert seen[1].truth.sum() == 15


def test_refused(sample: Sample, tmp_path: Path) -> None:
    model = Scripted(TRUTH)
    with pytest.raises(UsageError, match="clicks is 25"):
        evaluate_clicks(model, [sample], clicks=25)
    with pytest.raises(UsageError, match="noc_clicks 30"):
        evaluate_clicks(model, [sample], noc_clicks=30)
    with pytest.raises(DataError, match="no mask"):
        evaluate_clicks(model, [Sample(sample.path, "test", "dent")])
    with pytest.raises(DataError, match="marks nothing"):
        evaluate_clicks(model, [write(tmp_path, "empty", np.zeros((6, 8), np.bool_))])
    with pytest.raises(DataError, match="no defect"):
        evaluate_clicks(model, [])
    with pytest.raises(UsageError, match="the size of its frame"):
        evaluate_clicks(Scripted(np.zeros((3, 4))), [sample])
