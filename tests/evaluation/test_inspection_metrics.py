"""The metrics against scikit-learn, torchmetrics and a slow PRO written here, where both are exact: equal to 1e-12."""

import math
import tracemalloc
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from adclick_edge.errors import DataError, UsageError
from adclick_edge.evaluation.binning import MIN_MAX_BINS, key_values, sortable_keys
from adclick_edge.evaluation.inspection import InspectionMetrics, InspectionResult

EXACT = 1e-12


@dataclass
class Frame:
    map: np.ndarray
    mask: np.ndarray
    valid: np.ndarray | None
    score: float


def add_all(frames: list[Frame], **options: float) -> InspectionMetrics:
    metrics = InspectionMetrics(**options)
    for frame in frames:
        metrics.add(frame.map, frame.mask, frame.score, valid=frame.valid)
    return metrics


def counted(frame: Frame) -> np.ndarray:
    return np.ones_like(frame.mask) if frame.valid is None else frame.valid


def pixels(frames: list[Frame]) -> tuple[np.ndarray, np.ndarray]:
    values = np.concatenate([f.map[counted(f)] for f in frames]).astype(np.float64)
    return values, np.concatenate([f.mask[counted(f)] for f in frames])


def slow_pro(frames: list[Frame], limit: float = 0.3) -> float:
    """PRO by its definition: every threshold, every region, one after the other."""
    values, _ = pixels(frames)
    regions, normals = [], []
    for frame in frames:
        labels, count = ndimage.label(frame.mask, structure=np.ones((3, 3)))
        normals.append(frame.map[~frame.mask & counted(frame)])
        for index in range(1, count + 1):
            region = frame.map[(labels == index) & counted(frame)]
            if region.size:
                regions.append(region.astype(np.float64))
    normal = np.concatenate(normals).astype(np.float64)
    x, y, area = 0.0, 0.0, 0.0
    for threshold in sorted(set(values.tolist()), reverse=True):
        x_next = float(np.mean(normal >= threshold))
        y_next = float(np.mean([np.mean(region >= threshold) for region in regions]))
        if x_next > limit:
            y_next = y + (y_next - y) * (limit - x) / (x_next - x)
            x_next = limit
        area += (x_next - x) * (y + y_next) / 2
        x, y = x_next, y_next
        if x >= limit:
            break
    return area / limit


def sklearn_f1_max(labels: np.ndarray, values: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(labels, values)
    total = precision + recall
    return float(np.max(np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)))


def check_pixels(result: InspectionResult, frames: list[Frame], tolerance: float = EXACT) -> None:
    values, labels = pixels(frames)
    if labels.all() or not labels.any():
        assert result.pixel_ap is result.pixel_auroc is result.pro is result.pixel_f1_max is None
        assert set(result.undefined) >= {"pixel_ap", "pixel_auroc", "pro", "pixel_f1_max", "pixel_f1_max_threshold"}
        return
    assert result.pixel_ap == pytest.approx(average_precision_score(labels, values), abs=tolerance)
    assert result.pixel_auroc == pytest.approx(roc_auc_score(labels, values), abs=tolerance)
    assert result.pixel_f1_max == pytest.approx(sklearn_f1_max(labels, values), abs=tolerance)
    assert result.pro == pytest.approx(slow_pro(frames), abs=tolerance)


def check_images(result: InspectionResult, frames: list[Frame]) -> None:
    scores = np.array([f.score for f in frames])
    labels = np.array([bool(f.mask.any()) for f in frames])
    if labels.all() or not labels.any():
        assert result.image_ap is result.image_auroc is result.f1_max is result.f1_max_threshold is None
        assert set(result.undefined) >= {"image_ap", "image_auroc", "f1_max", "f1_max_threshold"}
        return
    assert result.image_ap == pytest.approx(average_precision_score(labels, scores), abs=EXACT)
    assert result.image_auroc == pytest.approx(roc_auc_score(labels, scores), abs=EXACT)
    assert result.f1_max == pytest.approx(sklearn_f1_max(labels, scores), abs=EXACT)
    accepted = scores >= result.f1_max_threshold
    hits = np.sum(accepted & labels)
    assert result.f1_max == pytest.approx(2 * hits / (np.sum(accepted) + np.sum(labels)), abs=EXACT)


@st.composite
def frame_lists(draw: st.DrawFn, min_values: int = 1) -> list[Frame]:
    """Frames with ties, negative values, tiny and huge scales, constant maps, single-pixel regions, ignored pixels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    scale = draw(st.sampled_from([1e-44, 1e-30, 1e-3, 1.0, 1e4, 1e30]))
    offset = draw(st.sampled_from([0.0, -3.0, 1000.0]))
    levels = draw(st.sampled_from([1, 2, 5, 40, None]))
    frames = []
    for _ in range(draw(st.integers(1, 6))):
        shape = (height, width)
        values = rng.standard_normal(shape) if levels is None else rng.integers(-levels, levels, shape).astype(float)
        if draw(st.booleans()):
            values[:] = values[0, 0]
        mask = rng.random(shape) < draw(st.sampled_from([0.0, 0.0, 0.05, 0.4, 1.0]))
        valid = rng.random(shape) < 0.7 if draw(st.booleans()) else None
        with np.errstate(under="ignore"):
            anomaly_map = ((values + mask * rng.integers(0, 3)) * scale + offset * scale).astype(np.float32)
        score = float(rng.integers(0, 4)) if draw(st.booleans()) else float(anomaly_map.max())
        frames.append(Frame(anomaly_map, mask, valid, score))
    return frames


@settings(deadline=None, max_examples=120)
@given(frame_lists())
def test_agrees_with_references(frames: list[Frame]) -> None:
    result = add_all(frames).compute()
    assert result.pixel_resolution == 0.0
    check_pixels(result, frames)
    check_images(result, frames)
    _, labels = pixels(frames)
    assert (result.normal_pixels, result.defect_pixels) == (np.sum(~labels), np.sum(labels))
    assert result.images == len(frames) == result.normal_images + result.defect_images


@settings(deadline=None, max_examples=60)
@given(frame_lists(), st.sampled_from([0.05, 0.3, 0.77, 1.0]))
def test_pro_at_any_limit(frames: list[Frame], limit: float) -> None:
    result = add_all(frames, fpr_limit=limit).compute()
    if result.pro is not None:
        assert result.pro == pytest.approx(slow_pro(frames, limit), abs=EXACT)


@settings(deadline=None, max_examples=60)
@given(frame_lists())
def test_pixel_threshold_reaches_the_f1_it_claims(frames: list[Frame]) -> None:
    result = add_all(frames).compute()
    if result.pixel_f1_max_threshold is not None:
        values, labels = pixels(frames)
        accepted = values >= result.pixel_f1_max_threshold
        assert result.pixel_f1_max == pytest.approx(
            2 * np.sum(accepted & labels) / (np.sum(accepted) + np.sum(labels)), abs=EXACT
        )


def random_logits(seed: int, count: int = 3, side: int = 40) -> list[Frame]:
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(count):
        anomaly_map = rng.normal(-4, 2.5, (side, side)).astype(np.float32)
        mask = np.zeros((side, side), dtype=np.bool_)
        if index:
            mask[5:12, 3 : 9 + index] = mask[20:21, 30:31] = True
            anomaly_map[mask] += 3
        frames.append(Frame(anomaly_map, mask, None, float(anomaly_map.max())))
    return frames


def rounded_down(frame: Frame, resolution: float) -> Frame:
    shift = np.uint32(round(math.log2(resolution)) + 23)
    return Frame(key_values(sortable_keys(frame.map) >> shift << shift), frame.mask, frame.valid, frame.score)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_binned_metrics_are_the_exact_ones_of_rounded_maps(seed: int) -> None:
    frames = random_logits(seed)
    metrics = add_all(frames, max_bins=MIN_MAX_BINS)
    result = metrics.compute()
    assert result.pixel_resolution > 0
    rounded = [rounded_down(frame, result.pixel_resolution) for frame in frames]
    check_pixels(result, rounded)
    for frame, coarse in zip(frames, rounded, strict=True):
        error = frame.map.astype(np.float64) - coarse.map
        assert np.all(error >= 0)
        assert np.all(error <= result.pixel_resolution * np.abs(coarse.map))


def test_binning_error_is_within_the_ties_it_makes() -> None:
    """A pair of pixels in one bin counts half instead of 0 or 1: AUROC is off by half their share at most."""
    frames = random_logits(7, count=8, side=60)
    result = add_all(frames, max_bins=MIN_MAX_BINS).compute()
    values, labels = pixels([rounded_down(frame, result.pixel_resolution) for frame in frames])
    _, where = np.unique(values, return_inverse=True)
    tied = np.sum(np.bincount(where[labels], minlength=where.max() + 1) * np.bincount(where[~labels], minlength=1))
    bound = 0.5 * tied / (np.sum(labels) * np.sum(~labels))
    exact_values, _ = pixels(frames)
    assert 0 < abs(result.pixel_auroc - roc_auc_score(labels, exact_values)) <= bound < 2e-3
    assert result.pixel_ap == pytest.approx(average_precision_score(labels, exact_values), abs=5e-3)


def test_default_resolution_on_megapixel_logits() -> None:
    """A million different values: finer than 2**-16 of a value, and AP and AUROC right to a few parts in a million."""
    frames = random_logits(3, count=4, side=600)
    result = add_all(frames).compute()
    values, labels = pixels(frames)
    assert 0 < result.pixel_resolution <= 2**-16
    assert result.pixel_auroc == pytest.approx(roc_auc_score(labels, values), abs=1e-6)
    assert result.pixel_ap == pytest.approx(average_precision_score(labels, values), abs=5e-6)


def test_narrow_range_far_from_zero_stays_exact() -> None:
    rng = np.random.default_rng(1)
    mask = np.zeros((200, 200), dtype=np.bool_)
    mask[50:60, 50:60] = True
    anomaly_map = (1000 + 0.5 * rng.random(mask.shape) + 0.1 * mask).astype(np.float32)
    frames = [Frame(anomaly_map, mask, None, 0.0)]
    result = add_all(frames, max_bins=1 << 13).compute()
    assert result.pixel_resolution == 0.0
    values, labels = pixels(frames)
    assert result.pixel_ap == pytest.approx(average_precision_score(labels, values), abs=EXACT)


def test_order_of_frames_does_not_matter() -> None:
    frames = random_logits(11, count=6)
    forward = add_all(frames, max_bins=MIN_MAX_BINS).compute()
    backward = add_all(frames[::-1], max_bins=MIN_MAX_BINS).compute()
    assert forward.pixel_resolution == backward.pixel_resolution
    assert forward.pixel_ap == pytest.approx(backward.pixel_ap, abs=EXACT)
    assert forward.pro == pytest.approx(backward.pro, abs=EXACT)


def test_agrees_with_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    classification = pytest.importorskip("torchmetrics.functional.classification")
    rng = np.random.default_rng(5)
    mask = rng.random((50, 50)) < 0.1
    # In 0..1, where torchmetrics takes values as they are, and on a grid, so that there are ties.
    anomaly_map = (np.round((0.3 * mask + 0.7 * rng.random((50, 50))) * 256) / 256).astype(np.float32)
    result = add_all([Frame(anomaly_map, mask, None, 0.0)]).compute()
    values, labels = torch.from_numpy(anomaly_map.ravel()), torch.from_numpy(mask.ravel().astype(np.int64))
    assert result.pixel_ap == pytest.approx(float(classification.binary_average_precision(values, labels)), abs=1e-5)
    assert result.pixel_auroc == pytest.approx(float(classification.binary_auroc(values, labels)), abs=1e-5)


def test_perfect_map_scores_one() -> None:
    mask = np.zeros((8, 8), dtype=np.bool_)
    mask[0, 0] = mask[4:6, 4:6] = True
    result = add_all(
        [
            Frame(mask.astype(np.float32), mask, None, 1.0),
            Frame(np.zeros((8, 8), dtype=np.float32), mask & False, None, 0.0),
        ]
    )
    computed = result.compute()
    for name in ("pixel_ap", "pixel_auroc", "pixel_f1_max", "image_auroc", "image_ap", "f1_max"):
        assert getattr(computed, name) == 1.0, name
    assert computed.pro == pytest.approx(1.0, abs=EXACT)
    assert (computed.regions, computed.pixel_f1_max_threshold, computed.f1_max_threshold) == (2, 1.0, 1.0)


def test_diagonal_pixels_are_one_region() -> None:
    metrics = InspectionMetrics()
    metrics.add(np.zeros((4, 4), "f4"), np.eye(4, dtype=np.bool_), 0.0)
    assert metrics.compute().regions == 1


def test_regions_weigh_the_same_whatever_their_size() -> None:
    mask = np.zeros((20, 20), dtype=np.bool_)
    mask[:10, :10] = mask[15, 15] = True
    anomaly_map = np.zeros((20, 20), dtype=np.float32)
    anomaly_map[15, 15] = 1.0  # one of two regions found at no false positive, the other only with everything
    metrics = InspectionMetrics(fpr_limit=1.0)
    metrics.add(anomaly_map, mask, 1.0)
    assert metrics.compute().pro == pytest.approx(0.75, abs=EXACT)


def test_normal_frames_count_for_ap_and_pro() -> None:
    """AP over all images is not AP over defect images: normal frames add false positives."""
    defect, normal = random_logits(2, count=2)[1], random_logits(2, count=2)[0]
    alone, together = add_all([defect]).compute(), add_all([defect, normal]).compute()
    assert together.pixel_ap < alone.pixel_ap
    assert (together.normal_images, alone.normal_images) == (1, 0)
    assert alone.image_ap is None
    assert together.image_ap is not None


def test_defect_without_mask_counts_for_images_only() -> None:
    frames = random_logits(4)
    metrics = add_all(frames)
    before = metrics.compute()
    metrics.add(np.full((9, 9), 50.0, dtype=np.float32), None, 50.0, defective=True)
    after = metrics.compute()
    assert (after.pixel_ap, after.pro, after.regions) == (before.pixel_ap, before.pro, before.regions)
    assert (after.defect_images, after.unmasked_defect_images) == (before.defect_images + 1, 1)
    assert after.image_auroc != before.image_auroc


def test_ignored_pixels_may_hold_anything_and_vanish_from_regions() -> None:
    mask = np.zeros((6, 6), dtype=np.bool_)
    mask[0, 0] = mask[3, 3:5] = True
    valid = np.ones_like(mask)
    valid[0, 0] = valid[3, 3] = False
    anomaly_map = mask.astype(np.float32)
    anomaly_map[0, 0] = np.nan
    metrics = InspectionMetrics()
    metrics.add(anomaly_map, mask, 1.0, valid=valid)
    result = metrics.compute()
    assert (result.regions, result.defect_pixels, result.normal_pixels) == (1, 1, 33)
    assert result.pro == pytest.approx(1.0, abs=EXACT)


def test_undefined_metrics_are_none_with_a_reason() -> None:
    metrics = InspectionMetrics()
    empty = metrics.compute()
    assert "no defective and no normal images" in empty.undefined["image_ap"]
    metrics.add(np.zeros((3, 3), dtype=np.float32), None, 0.0)
    result = metrics.compute()
    assert result.pixel_ap is result.pro is result.image_auroc is result.f1_max_threshold is None
    assert result.undefined["pro"] == "no defective evaluated pixels were added"
    assert result.undefined["image_auroc"] == "no defective images were added"
    values = {name: getattr(result, name) for name in result.__struct_fields__}
    assert {name for name, value in values.items() if value is None} == set(result.undefined)


def test_of_equal_f1_the_highest_threshold_is_named() -> None:
    metrics = InspectionMetrics()
    flat = np.zeros((2, 2), dtype=np.float32)
    for score, defects, normals in ((3.0, 1, 0), (2.0, 1, 3), (1.0, 1, 3)):  # 2/4, 4/8, 6/12
        for defective in [True] * defects + [False] * normals:
            metrics.add(flat, None, score, defective=defective)
    result = metrics.compute()
    assert (result.f1_max, result.f1_max_threshold) == (0.5, 3.0)


def test_both_zeros_are_equal() -> None:
    mask = np.array([[True, False]])
    metrics = InspectionMetrics()
    metrics.add(np.array([[-0.0, 0.0]], dtype=np.float32), mask, 0.0)
    assert metrics.compute().pixel_auroc == 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_refused_by_name_and_nothing_is_added(bad: float) -> None:
    metrics = InspectionMetrics()
    anomaly_map = np.zeros((3, 4), dtype=np.float32)
    with pytest.raises(DataError, match=r"crack/007: the score is"):
        metrics.add(anomaly_map, None, bad, name="crack/007")
    anomaly_map[2, 1] = bad
    with pytest.raises(DataError, match=r"frame 0: 1 values .* row 2, column 1"):
        metrics.add(anomaly_map, None, 0.0)
    assert metrics.compute().images == 0


@pytest.mark.parametrize(
    ("anomaly_map", "mask", "valid"),
    [
        (np.zeros((3, 3)), None, None),
        (np.zeros((1, 3, 3), dtype=np.float32), None, None),
        (np.zeros((0, 3), dtype=np.float32), None, None),
        (np.zeros((3, 3), dtype=np.float32), np.zeros((3, 4), dtype=np.bool_), None),
        (np.zeros((3, 3), dtype=np.float32), np.zeros((3, 3), dtype=np.uint8), None),
        (np.zeros((3, 3), dtype=np.float32), None, np.ones((2, 3), dtype=np.bool_)),
    ],
)
def test_wrong_arrays_are_refused(anomaly_map: np.ndarray, mask: np.ndarray, valid: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"frame 0: .* pass "):
        InspectionMetrics().add(anomaly_map, mask, 0.0, valid=valid)


def test_contradicting_label_is_refused() -> None:
    anomaly_map, mask = np.zeros((3, 3), dtype=np.float32), np.eye(3, dtype=np.bool_)
    with pytest.raises(DataError, match="said to be normal"):
        InspectionMetrics().add(anomaly_map, mask, 0.0, defective=False)
    with pytest.raises(DataError, match="pass mask=None"):
        InspectionMetrics().add(anomaly_map, mask & False, 0.0, defective=True)


@pytest.mark.parametrize("limit", [0.0, -0.1, 1.1, math.nan])
def test_wrong_limit_is_refused(limit: float) -> None:
    with pytest.raises(UsageError, match="fpr_limit"):
        InspectionMetrics(fpr_limit=limit)


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    base = rng.normal(-4, 2, (1024, 1024)).astype(np.float32)
    mask = np.zeros(base.shape, dtype=np.bool_)
    mask[100:130, 200:300] = True
    metrics = InspectionMetrics()
    peaks_mb = []
    tracemalloc.start()
    try:
        for index in range(60):
            anomaly_map = base * np.float32(1 + 0.01 * index)  # new values every time
            metrics.add(anomaly_map, mask if index % 2 else None, float(index))
            if index in (9, 59):
                peaks_mb.append(tracemalloc.get_traced_memory()[1] / 2**20)
        held_mb = tracemalloc.get_traced_memory()[0] / 2**20
    finally:
        tracemalloc.stop()
    assert metrics.compute().images == 60
    assert peaks_mb[-1] < 110
    assert peaks_mb[-1] < 1.05 * peaks_mb[0]
    assert held_mb < 40  # the base map, one map more, the table and what waits to be merged
