import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.errors import BundleError, CalibrationError
from adclick_edge.runtime.calibration import (
    Calibration,
    calibrate,
    check_held_out,
    load_calibration,
    made_under,
    parse_calibration,
    store_calibration,
)
from adclick_edge.runtime.regions import Regions, regions_sha256

SCORES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60)
RATES = st.sampled_from([0.001, 0.01, 0.05, 0.07, 0.1, 0.29, 0.5])


def rates(normals, defects, false_alarms, missed_defects, draws, seed, discrete=False):
    """Over many draws of calibration frames and one new frame each: P(ng | normal) and P(ok | defect)."""
    rng = np.random.default_rng(seed)
    alarms = missed = 0
    for _ in range(draws):
        n, d = rng.normal(size=normals + 1), rng.normal(1.0, size=defects + 1)
        if discrete:
            n, d = np.round(n), np.round(d)
        found = calibrate(
            n[1:], false_alarms=false_alarms, defect_scores=d[1:], missed_defects=missed_defects, source="held_out"
        )
        alarms += n[0] >= found.t_ng
        missed += d[0] < found.t_defect
    return alarms / draws, missed / draws, found


@pytest.mark.parametrize(
    ("normals", "false_alarms", "defects", "missed_defects"),
    [(19, 0.1, 9, 0.2), (9, 0.1, 19, 0.05), (12, 0.25, 7, 0.3), (4, 0.01, 3, 0.01)],
)
def test_monte_carlo_rates_are_the_stated_ones(normals, false_alarms, defects, missed_defects):
    """The rates of continuous scores equal k/(n+1); an index off by one moves them by 1/(n+1), here 6 sigma or more."""
    draws = 4000
    alarms, missed, found = rates(normals, defects, false_alarms, missed_defects, draws, seed=normals)
    for measured, stated, count in (
        (alarms, found.guaranteed_false_alarms, normals),
        (missed, found.missed_defects_bound, defects),
    ):
        sigma = math.sqrt(stated * (1 - stated) / draws)
        assert abs(measured - stated) < 3.5 * sigma
        assert 1 / (count + 1) > 6 * sigma


def test_monte_carlo_bounds_hold_with_ties():
    alarms, missed, found = rates(19, 19, 0.1, 0.1, 4000, seed=5, discrete=True)
    assert alarms <= found.guaranteed_false_alarms + 0.01
    assert missed <= found.missed_defects_bound + 0.01


def test_equal_scores_are_not_all_alarms():
    found = calibrate([1.0] * 99, false_alarms=0.01, source="held_out")
    assert found.t_ng > 1.0
    assert found.t_ng == pytest.approx(1.0, abs=1e-12)
    assert any("all 99 normal scores are equal" in note for note in found.notes)


@pytest.mark.parametrize(
    ("n", "false_alarms", "rank"),
    # (n+1)*0.07, (n+1)*0.29 and (n+1)*(1-0.1) miss their integer in doubles
    [(99, 0.01, 99), (98, 0.02, 98), (19, 0.05, 19), (99, 0.07, 93), (99, 0.29, 71), (9, 0.1, 9), (999, 0.001, 999)],
)
def test_rank_of_the_threshold(n, false_alarms, rank):
    found = calibrate(np.arange(1, n + 1), false_alarms=false_alarms, source="held_out")
    assert found.t_ng == math.nextafter(rank, math.inf)
    assert found.guaranteed_false_alarms == pytest.approx((n + 1 - rank) / (n + 1))
    assert found.guaranteed_false_alarms <= false_alarms
    assert not any("cannot support" in note for note in found.notes)


@pytest.mark.parametrize(
    ("n", "false_alarms", "needed"), [(98, 0.01, 99), (1, 0.5, 1), (10, 0.03, 33), (1, 0.001, 999)]
)
def test_too_few_normals_are_said(n, false_alarms, needed):
    found = calibrate(np.arange(n), false_alarms=false_alarms, source="held_out")
    assert found.t_ng == math.nextafter(n - 1, math.inf)
    assert found.guaranteed_false_alarms == pytest.approx(1 / (n + 1))
    said = [note for note in found.notes if "cannot support" in note]
    if n >= needed:
        assert not said
    else:
        assert f"at least {needed} normals ({needed - n} more)" in said[0]
        enough = calibrate(np.arange(needed), false_alarms=false_alarms, source="held_out")
        assert not any("cannot support" in note for note in enough.notes)
        almost = calibrate(np.arange(needed - 1), false_alarms=false_alarms, source="held_out")
        assert any("cannot support" in note for note in almost.notes)


def test_too_few_defects_are_said():
    found = calibrate(np.arange(99), false_alarms=0.01, defect_scores=[50.0, 60.0], source="held_out")
    assert found.t_defect == 50.0
    assert found.missed_defects_bound == pytest.approx(1 / 3)
    assert any("at least 19 defect frames (17 more)" in note for note in found.notes)


def test_the_band_where_the_classes_are_apart_and_where_they_overlap():
    normals = np.arange(99.0)
    apart = calibrate(normals, false_alarms=0.01, defect_scores=np.arange(200.0, 219.0), source="held_out")
    assert (apart.lower, apart.upper) == (apart.t_ng, apart.t_defect) == (math.nextafter(98.0, math.inf), 200.0)
    overlap = calibrate(normals, false_alarms=0.01, defect_scores=np.arange(70.0, 89.0), source="held_out")
    assert (overlap.lower, overlap.upper) == (overlap.t_defect, overlap.t_ng) == (70.0, math.nextafter(98.0, math.inf))
    assert overlap.missed_defects_bound == pytest.approx(0.05)
    upside_down = calibrate(normals, false_alarms=0.01, defect_scores=np.arange(-19.0, 0.0), source="held_out")
    assert any("do not separate" in note for note in upside_down.notes)


def test_without_defects_nothing_is_promised_about_them():
    found = calibrate(np.arange(99.0), false_alarms=0.01, source="held_out")
    assert (found.t_defect, found.missed_defects_bound, found.defects) == (None, None, 0)
    assert found.upper == found.t_ng
    assert np.sum(np.arange(99.0) >= found.lower) == 4  # with the frame to come: 5 of 100
    assert any("heuristic" in note for note in found.notes)
    half = calibrate(np.arange(99.0), false_alarms=0.3, source="held_out")
    assert half.lower == math.nextafter(49.0, math.inf)


def test_leave_one_out_says_that_bounds_are_approximate():
    assert any("approximate" in n for n in calibrate([1, 2], false_alarms=0.1, source="leave_one_out").notes)
    assert not any("approximate" in n for n in calibrate([1, 2], false_alarms=0.1, source="held_out").notes)


@given(normals=SCORES, defects=st.none() | SCORES, false_alarms=RATES, missed_defects=RATES)
@settings(deadline=None, max_examples=150)
def test_what_always_holds(normals, defects, false_alarms, missed_defects):
    found = calibrate(
        normals, false_alarms=false_alarms, defect_scores=defects, missed_defects=missed_defects, source="held_out"
    )
    assert found.lower <= found.upper
    n = len(normals)
    assert sum(s >= found.upper for s in normals) <= found.guaranteed_false_alarms * (n + 1) - 1 + 1e-9
    if found.guaranteed_false_alarms > false_alarms:
        assert found.guaranteed_false_alarms == pytest.approx(1 / (n + 1))
        assert any("normal frames cannot support" in note for note in found.notes)
    if defects:
        assert sum(s < found.lower for s in defects) <= found.missed_defects_bound * (len(defects) + 1) - 1 + 1e-9
        if found.missed_defects_bound > missed_defects:
            assert any("labelled defects cannot support" in note for note in found.notes)
    shuffled = calibrate(
        normals[::-1],
        false_alarms=false_alarms,
        defect_scores=defects,
        missed_defects=missed_defects,
        source="held_out",
        created_utc=found.created_utc,
    )
    assert shuffled == found
    assert parse_calibration(msgspec.json.decode(msgspec.json.encode(found)), "x") == found


@pytest.mark.parametrize("bad", [[], [[1.0]], [1.0, math.nan], [math.inf], ["x"], None, 3.0])
def test_unusable_scores(bad):
    with pytest.raises(CalibrationError, match="normal scores"):
        calibrate(bad, false_alarms=0.1, source="held_out")
    if bad is not None:
        with pytest.raises(CalibrationError, match="defect scores"):
            calibrate([1.0], false_alarms=0.1, defect_scores=bad, source="held_out")


def test_the_place_of_a_nan_is_named():
    with pytest.raises(CalibrationError, match="2 NaN or infinite values, the first at index 1"):
        calibrate([1.0, math.nan, 2.0, -math.inf], false_alarms=0.1, source="held_out")


@pytest.mark.parametrize("rate", [0, -0.1, 0.51, 1, math.nan, "0.1"])
def test_unusable_rates_and_sources(rate):
    with pytest.raises(CalibrationError, match="false_alarms"):
        calibrate([1.0], false_alarms=rate, source="held_out")
    with pytest.raises(CalibrationError, match="missed_defects"):
        calibrate([1.0], false_alarms=0.1, missed_defects=rate, source="held_out")
    with pytest.raises(CalibrationError, match="source"):
        calibrate([1.0], false_alarms=0.1, source="guess")


def test_frames_of_the_bank_are_refused_by_name():
    check_held_out({"a", "b"}, {"x.png": "c", "y.png": "d"})
    check_held_out(set(), ["c"])
    with pytest.raises(CalibrationError, match=r"1 of 2 calibration frames are in the bank: y\.png;"):
        check_held_out(["a", "b"], {"x.png": "c", "y.png": "b"})
    with pytest.raises(CalibrationError, match=r"f0\.png, f1\.png, f2\.png, f3\.png, f4\.png and 2 more"):
        check_held_out(["a"], {f"f{i}.png": "a" for i in range(7)})
    with pytest.raises(CalibrationError, match="bank: b;"):
        check_held_out(["a", "b"], ["b"])


@pytest.mark.parametrize(
    "change",
    [
        {"lower": 1e9},
        {"upper": 60.0},
        {"upper": None},
        {"t_defect": None},
        {"defects": 0},
        {"false_alarms": 0},
        {"normals": 0},
        {"source": "manual"},
        {"extra": 1},
    ],
)
def test_a_calibration_altered_by_hand_is_refused(change):
    made = calibrate(np.arange(99), false_alarms=0.01, defect_scores=np.arange(50, 80), source="held_out", author="me")
    body = msgspec.to_builtins(made)
    assert parse_calibration(body, "x") == made
    with pytest.raises(CalibrationError, match=r"box/calibration\.json"):
        parse_calibration({**body, **change}, "box/calibration.json")


class FakeBundle:
    def __init__(self, version):
        self.location, self.calibration, self.regions = "box", None, None
        self.manifest = type("Manifest", (), {"version": version})()

    def set_calibration(self, body):
        self.calibration = msgspec.json.decode(msgspec.json.encode(body))


def test_a_calibration_stays_with_the_bundle_it_was_made_with():
    bundle = FakeBundle("v1")
    assert load_calibration(bundle) is None
    made = calibrate([1.0, 2.0], false_alarms=0.1, source="held_out")
    stored = store_calibration(bundle, made)
    assert isinstance(stored, Calibration)
    assert stored.bundle_version == "v1"
    assert load_calibration(bundle) == stored
    other = FakeBundle("v2")
    other.calibration = bundle.calibration
    with pytest.raises(CalibrationError, match="made with bundle version v1, this is v2"):
        load_calibration(other)
    with pytest.raises(BundleError, match="not with v2"):
        store_calibration(other, stored)


def test_a_calibration_is_marked_with_the_regions_it_was_made_under():
    bundle = FakeBundle("v1")
    corner = Regions(ignore=(((0.0, 0.0), (0.5, 0.0), (0.5, 0.5)),))
    made = calibrate([1.0, 2.0], false_alarms=0.1, source="held_out")
    assert made_under(made, Regions())  # unmarked: the whole frame
    assert not made_under(made, corner)
    whole = store_calibration(bundle, made)
    bundle.regions = {"roi": [], "ignore": []}
    assert store_calibration(bundle, made).regions_sha256 == whole.regions_sha256
    bundle.regions = msgspec.to_builtins(corner)
    stored = store_calibration(bundle, made)
    assert stored.regions_sha256 == regions_sha256(corner)
    assert made_under(load_calibration(bundle), corner)
    assert not made_under(stored, Regions())
    with pytest.raises(CalibrationError, match="the regions changed since the scores"):
        store_calibration(bundle, whole)


def test_frames_trained_on_are_refused_by_name():
    check_held_out(["a"], {"x.png": "c"}, ["d"])
    with pytest.raises(CalibrationError, match=r"1 of 2 calibration frames were trained on: y\.png;"):
        check_held_out(["a"], {"x.png": "c", "y.png": "d"}, ["d"])
