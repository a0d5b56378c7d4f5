import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from adclick_edge.errors import UsageError
from adclick_edge.runtime.calibration import calibrate
from adclick_edge.runtime.decision import MAX_BLOBS, FrameVerdict, decide, find_regions, judge, not_inspected

CALIBRATION = calibrate(np.arange(99.0), false_alarms=0.01, defect_scores=np.arange(50.0, 80.0), source="held_out")
MAPS = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.floats(-5, 5, width=32)
)


def a_map(*spots, shape=(10, 12), base=0.0):
    found = np.full(shape, base, np.float32)
    for row, column, value in spots:
        found[row, column] = value
    return found


def test_thresholds_are_half_open():
    assert (CALIBRATION.lower, CALIBRATION.upper) == (50.0, math.nextafter(98.0, math.inf))
    assert decide(math.nextafter(50.0, -math.inf), CALIBRATION) == "ok"
    assert decide(50.0, CALIBRATION) == "uncertain"
    assert decide(98.0, CALIBRATION) == "uncertain"
    assert decide(CALIBRATION.upper, CALIBRATION) == "ng"
    assert decide(-1e30, CALIBRATION) == "ok"


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_none_is_never_ok(score):
    assert decide(score, CALIBRATION) == "not_inspected"
    assert decide(score, None) == "not_inspected"


@given(st.floats(allow_nan=True, allow_infinity=True))
@settings(deadline=None)
def test_only_a_finite_score_below_a_calibrated_threshold_is_ok(score):
    assert decide(score, None) != "ok"
    assert (decide(score, CALIBRATION) == "ok") == (math.isfinite(score) and score < CALIBRATION.lower)


def test_judge_states_all():
    found = judge(
        a_map((2, 3, 120.0), (7, 7, 60.0)), CALIBRATION, frame="f1", bundle_version="v1", stage_ms={"features": 3.5}
    )
    assert (found.verdict, found.reason, found.score) == ("ng", None, 120.0)
    assert (found.lower, found.upper, found.bundle_version) == (50.0, CALIBRATION.upper, "v1")
    assert found.stage_ms == {"features": 3.5}
    assert [(b.top, b.left, b.peak) for b in found.regions] == [(2, 3, 120.0), (7, 7, 60.0)]
    assert msgspec.json.decode(msgspec.json.encode(found), type=FrameVerdict) == found


def test_judge_uncertain_ok_and_uncalibrated():
    band = judge(a_map((2, 3, 60.0)), CALIBRATION, frame="f", bundle_version="v")
    assert (band.verdict, band.reason, band.regions_found) == ("uncertain", None, 1)
    fine = judge(a_map(), CALIBRATION, frame="f", bundle_version="v")
    assert (fine.verdict, fine.regions, fine.regions_found) == ("ok", (), 0)
    fresh = judge(a_map(), None, frame="f", bundle_version="v")
    assert (fresh.verdict, fresh.reason, fresh.score, fresh.lower) == ("uncertain", "uncalibrated", 0.0, None)


def test_only_the_inspected_part_counts():
    found = a_map((2, 3, math.nan), (5, 5, 200.0), (8, 8, 60.0))
    valid = np.ones(found.shape, bool)
    assert judge(found, CALIBRATION, frame="f", bundle_version="v", valid=valid).reason == "engine_error"
    valid[2, 3] = valid[5, 5] = False
    judged = judge(found, CALIBRATION, frame="f", bundle_version="v", valid=valid)
    assert (judged.verdict, judged.score, judged.regions_found) == ("uncertain", 60.0, 1)
    with pytest.raises(UsageError, match="valid mask"):
        judge(found, CALIBRATION, frame="f", bundle_version="v", valid=valid[:2])
    with pytest.raises(UsageError, match="no cell"):
        judge(found, CALIBRATION, frame="f", bundle_version="v", valid=valid & False)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_map_is_not_inspected(value):
    found = judge(a_map((1, 1, value)), CALIBRATION, frame="f", bundle_version="v", stage_ms={"segment": 1.0})
    assert (found.verdict, found.reason, found.score, found.stage_ms) == (
        "not_inspected",
        "engine_error",
        None,
        {"segment": 1.0},
    )


def test_a_score_of_f32_is_compared_without_rounding():
    """The threshold just above a float32 score must not round down to it."""
    score = np.float32(0.1)
    made = calibrate([float(score)] * 99, false_alarms=0.01, source="held_out")
    found = np.full((2, 2), score)
    assert judge(found, made, frame="f", bundle_version="v").verdict == "ok"
    assert find_regions(found, made.lower) == ((), 0)
    above = np.full((2, 2), np.nextafter(score, np.float32(1)))
    assert judge(above, made, frame="f", bundle_version="v").verdict == "ng"


@pytest.mark.parametrize(
    ("verdict", "reason", "scores"),
    [
        ("ok", "overload", (1.0, 2.0, 3.0)),
        ("ok", None, (None, 2.0, 3.0)),
        ("ng", None, (1.0, None, None)),
        ("not_inspected", None, (None, None, None)),
        ("not_inspected", "uncalibrated", (None, None, None)),
        ("uncertain", "deadline", (1.0, 2.0, 3.0)),
    ],
)
def test_verdicts_that_do_not_explain_themselves_cannot_be_made(verdict, reason, scores):
    score, lower, upper = scores
    with pytest.raises(ValueError, match="frame 'f'"):
        FrameVerdict(frame="f", verdict=verdict, reason=reason, score=score, lower=lower, upper=upper)


@pytest.mark.parametrize("reason", ["bad_frame", "engine_error", "overload", "deadline", "shutdown"])
def test_not_inspected_has_a_reason(reason):
    found = not_inspected(reason, frame="f")
    assert (found.verdict, found.reason, found.score, found.bundle_version) == ("not_inspected", reason, None, None)


def test_blobs_are_capped_and_counted_and_the_strongest_come_first():
    found = np.zeros((20, 60), np.float32)
    found[::2, ::2] = np.arange(1, 301).reshape(10, 30)
    blobs, count = find_regions(found, 0.5)
    assert count == 300
    assert [b.peak for b in blobs] == list(range(300, 300 - MAX_BLOBS, -1))
    assert find_regions(found, 0.5, 1.5) == ((), 0)


def test_blob_boxes_areas_and_frame_pixels():
    found = a_map(shape=(4, 6))
    found[1:3, 2:5] = 1.0
    found[3, 5] = 2.0  # touches by a corner
    (blob,), count = find_regions(found, 1.0)
    assert count == 1
    assert (blob.left, blob.top, blob.width, blob.height, blob.area, blob.peak) == (2, 1, 4, 3, 7.0, 2.0)
    (blob,), _ = find_regions(found, 1.0, frame_shape=(16, 24))
    assert (blob.left, blob.top, blob.width, blob.height, blob.area) == (8, 4, 16, 12, 7.0 * 16)
    (blob,), _ = find_regions(found, 1.0, frame_shape=(10, 20))
    assert (blob.left, blob.top) == (6, 2)
    assert (blob.left + blob.width, blob.top + blob.height) == (20, 10)
    assert find_regions(found, 1.0, 7.5) == ((), 0)


@given(found=MAPS, threshold=st.floats(-5, 5), min_area=st.integers(1, 4))
@settings(deadline=None, max_examples=80)
def test_blobs_agree_with_scipy(found, threshold, min_area):
    labels, count = ndimage.label(found >= np.float64(threshold), structure=np.ones((3, 3)))
    expected = []
    for i, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels == i
        if inside.sum() >= min_area:
            box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
            expected.append((*box, float(inside.sum()), float(found[inside].max())))
    blobs, number = find_regions(found, threshold, min_area, max_blobs=1000)
    assert number == len(expected) <= count
    assert sorted(msgspec.structs.astuple(b) for b in blobs) == sorted(expected)
    assert [b.peak for b in blobs] == sorted((b.peak for b in blobs), reverse=True)


@pytest.mark.parametrize("shape", [(3,), (0, 3), (2, 3, 4)])
def test_maps_of_another_shape(shape):
    with pytest.raises(UsageError, match=r"expected \[h,w\]"):
        find_regions(np.zeros(shape, np.float32), 0.0)
    with pytest.raises(UsageError, match="valid mask"):
        find_regions(np.zeros((2, 2), np.float32), 0.0, valid=np.ones((3, 2), bool))
