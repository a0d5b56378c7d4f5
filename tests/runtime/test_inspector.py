import shutil
from pathlib import Path

import numpy as np
import pytest
from bundle_samples import reseal

from adclick_edge.bundle import GoldenFrame, golden_files, read_bundle, write_bundle
from adclick_edge.data.dataset import open_product
from adclick_edge.data.images import read_image
from adclick_edge.data.resize import fit
from adclick_edge.errors import BundleError, CalibrationError, EngineError
from adclick_edge.runtime.calibration import calibrate, store_calibration
from adclick_edge.runtime.inspector import Inspector, read_bank
from adclick_edge.runtime.regions import Regions, store_regions

FRACTIONS_OF_SPOT = (0.55, 0.25)
"""Where tests put a defect: (x, y)."""


@pytest.fixture
def bundle_copy(product_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(product_bundle, tmp_path / "copy.bundle")
    return tmp_path / "copy.bundle"


@pytest.fixture(scope="module")
def normal(line: Path) -> np.ndarray:
    return read_image(open_product(line, "flange").normals("test")[0].path)


def damaged(frame: np.ndarray) -> np.ndarray:
    """A frame with a defect that random features cannot miss, a sixth of its side."""
    out = frame.copy()
    height, width = frame.shape[:2]
    y, x = round(FRACTIONS_OF_SPOT[1] * height), round(FRACTIONS_OF_SPOT[0] * width)
    out[y - height // 12 : y + height // 12, x - width // 12 : x + width // 12] = (255, 0, 255)
    return out


def peak(anomaly_map: np.ndarray) -> tuple[float, float]:
    y, x = np.unravel_index(anomaly_map.argmax(), anomaly_map.shape)
    return (x + 0.5) / anomaly_map.shape[1], (y + 0.5) / anomaly_map.shape[0]


def near_spot(anomaly_map: np.ndarray, within: float = 0.1) -> bool:
    x, y = peak(anomaly_map)
    return abs(x - FRACTIONS_OF_SPOT[0]) < within and abs(y - FRACTIONS_OF_SPOT[1]) < within


def set_thresholds(path: Path, normal_scores: list[float]) -> None:
    with read_bundle(path) as bundle:
        store_calibration(bundle, calibrate(normal_scores, false_alarms=0.1, source="held_out"))


def test_a_defect_is_ng_where_it_is_and_a_normal_part_is_not(product_bundle: Path, normal: np.ndarray) -> None:
    with Inspector.open(product_bundle, threads=1) as inspector:
        good, bad = inspector.inspect([normal, damaged(normal)], ["good", "bad"])
        version = inspector.bundle.manifest.version
    assert bad.verdict.verdict == "ng"
    assert bad.verdict.frame == "bad"
    assert bad.verdict.score == float(bad.map.max())
    assert good.verdict.score is not None
    assert good.verdict.score < 0.7 * float(bad.map.max())
    assert near_spot(bad.map)
    strongest = bad.verdict.regions[0]
    assert strongest.left <= FRACTIONS_OF_SPOT[0] * 128 <= strongest.left + strongest.width
    assert strongest.top <= FRACTIONS_OF_SPOT[1] * 128 <= strongest.top + strongest.height
    assert bad.verdict.bundle_version == version
    assert set(bad.verdict.stage_ms) == {"resize", "features", "residual", "segment"}


def test_boxes_are_in_pixels_of_the_frame_as_it_was_before_it_was_resized(
    product_bundle: Path, normal: np.ndarray
) -> None:
    big = damaged(normal.repeat(2, axis=0).repeat(3, axis=1))
    with Inspector.open(product_bundle, threads=1) as inspector:
        (expected,) = inspector.inspect([big], ["a"])
        fitted = fit(big, inspector.bundle.manifest.input_size)
        (found,) = inspector.inspect([fitted], ["a"], shapes=[big.shape[:2]])
        assert found.verdict.regions == expected.verdict.regions
        (small,) = inspector.inspect([fitted], ["a"])
        assert small.verdict.regions != expected.verdict.regions
        with pytest.raises(ValueError, match="zip"):
            inspector.inspect([fitted], ["a"], shapes=[])


def test_settings_are_read_before_any_of_them_is_taken_over(bundle_copy: Path) -> None:
    with Inspector.open(bundle_copy, threads=1) as inspector:
        before = inspector.settings
        (bundle_copy / "regions.json").write_bytes(b"{")
        with pytest.raises(BundleError, match=r"regions\.json"):
            inspector.reload_settings()
        assert inspector.settings is before


def test_two_products_may_share_an_engine(product_bundle: Path, normal: np.ndarray) -> None:
    with Inspector.open(product_bundle, threads=1) as first, read_bundle(product_bundle) as bundle:
        second = Inspector(bundle, first.engine, bank=read_bank(bundle))
        second.warm_up(3)
        np.testing.assert_array_equal(second.maps([normal])[0][0], first.maps([normal])[0][0])


def test_no_frames_give_no_verdicts(product_bundle: Path) -> None:
    with Inspector.open(product_bundle, threads=1) as inspector:
        assert inspector.inspect([], []) == []


def test_frames_of_any_size_are_brought_to_the_input_size(product_bundle: Path, normal: np.ndarray) -> None:
    big = normal.repeat(2, axis=0).repeat(3, axis=1)
    with Inspector.open(product_bundle, threads=1) as inspector:
        maps, _ = inspector.maps([normal, big])
        (found,) = inspector.inspect([damaged(big)], ["big"])
    np.testing.assert_allclose(maps[0], maps[1], atol=0.05 * float(np.ptp(maps[0])))
    assert near_spot(found.map)
    blob = found.verdict.regions[0]
    assert blob.left + blob.width <= big.shape[1]
    assert blob.left + blob.width > 128 * 1.5  # in pixels of the frame, not of the network's input


def test_without_thresholds_every_frame_is_uncertain(bundle_copy: Path, normal: np.ndarray) -> None:
    (bundle_copy / "calibration.json").unlink()
    with Inspector.open(bundle_copy, threads=1) as inspector:
        found = inspector.inspect([normal, damaged(normal)], ["a", "b"])
    assert [f.verdict.verdict for f in found] == ["uncertain", "uncertain"]
    assert {f.verdict.reason for f in found} == {"uncalibrated"}


def test_thresholds_change_while_the_inspector_runs(bundle_copy: Path, normal: np.ndarray) -> None:
    with Inspector.open(bundle_copy, threads=1) as inspector:
        (first,) = inspector.inspect([normal], ["a"])
        assert first.verdict.score is not None
        set_thresholds(bundle_copy, [first.verdict.score * s for s in (0.2, 0.3, 0.4)])
        (before,) = inspector.inspect([normal], ["a"])
        assert before.verdict.upper == first.verdict.upper
        inspector.reload_settings()
        (after,) = inspector.inspect([normal], ["a"])
    assert after.verdict.verdict == "ng"
    assert after.verdict.score == first.verdict.score


def test_thresholds_of_another_bundle_are_refused(bundle_copy: Path) -> None:
    with read_bundle(bundle_copy) as bundle:
        body = dict(bundle.calibration or {})
        bundle.set_calibration({**body, "bundle_version": "0" * 12})
    with pytest.raises(CalibrationError, match="calibrate again"):
        Inspector.open(bundle_copy, threads=1)


def test_a_defect_in_an_ignored_region_changes_nothing(bundle_copy: Path, normal: np.ndarray) -> None:
    with Inspector.open(bundle_copy, threads=1) as inspector:
        (plain,) = inspector.inspect([normal], ["a"])
    assert plain.verdict.score is not None
    set_thresholds(bundle_copy, [plain.verdict.score * s for s in (1.01, 1.02, 1.03, 1.04)])
    around = ((0.1, 0.0), (1.0, 0.0), (1.0, 0.8), (0.1, 0.8))  # features see far around a defect
    with Inspector.open(bundle_copy, threads=1) as inspector:
        good, bad = inspector.inspect([normal, damaged(normal)], ["good", "bad"])
        assert (good.verdict.verdict, bad.verdict.verdict) == ("ok", "ng")
        thresholds = calibrate(
            [plain.verdict.score * s for s in (1.01, 1.02, 1.03, 1.04)], false_alarms=0.1, source="held_out"
        )
        store_regions(inspector.bundle, Regions(ignore=(around,)), good.map.shape)
        store_calibration(inspector.bundle, thresholds)
        inspector.reload_settings()
        good, bad = inspector.inspect([normal, damaged(normal)], ["good", "bad"])
        assert (good.verdict.verdict, bad.verdict.verdict) == ("ok", "ok")
        assert near_spot(bad.map)  # the map shows it all the same
        store_regions(inspector.bundle, Regions(roi=(around,)), good.map.shape)
        store_calibration(inspector.bundle, thresholds)
        inspector.reload_settings()
        good, bad = inspector.inspect([normal, damaged(normal)], ["good", "bad"])
        assert (good.verdict.verdict, bad.verdict.verdict) == ("ok", "ng")


def test_thresholds_set_under_other_regions_are_not_used(bundle_copy: Path, normal: np.ndarray) -> None:
    corner = Regions(ignore=(((0.0, 0.0), (0.2, 0.0), (0.2, 0.2)),))
    with Inspector.open(bundle_copy, threads=1) as inspector:
        assert inspector.notices == ()
        assert inspector.calibration is not None
        store_regions(inspector.bundle, corner, (32, 32))
        inspector.reload_settings()
        (found,) = inspector.inspect([normal], ["a"])
        assert (found.verdict.verdict, found.verdict.reason) == ("uncertain", "uncalibrated")
        (notice,) = inspector.notices
        assert "regions changed" in notice
        assert "adclick calibrate" in notice
        set_thresholds(bundle_copy, [1.0, 2.0])
        inspector.reload_settings()
        assert inspector.notices == ()
        assert inspector.calibration is not None
        store_regions(inspector.bundle, Regions(), (32, 32))
        inspector.reload_settings()
        assert inspector.calibration is None


def test_an_inspector_without_thresholds_opens_whatever_they_are(bundle_copy: Path) -> None:
    (bundle_copy / "calibration.json").write_bytes(b"{")
    with pytest.raises(BundleError, match=r"calibration\.json.*adclick calibrate"):
        Inspector.open(bundle_copy, threads=1)
    with Inspector.open(bundle_copy, threads=1, thresholds=False) as inspector:
        inspector.reload_settings()
        assert inspector.calibration is None
        assert inspector.notices == ()


def with_golden(source: Path, out: Path, change: object) -> Path:
    """The bundle at ``source`` with its golden frames changed, hashes and all."""
    with read_bundle(source) as bundle:
        files = {n: bundle.read(n) for n in bundle.manifest.files if not n.startswith("golden/")}
        golden = [change(g) for g in bundle.golden()]  # type: ignore[operator]
        manifest = bundle.manifest
    import msgspec

    computed = {"schema_version", "version", "files", "adclick_edge_version", "manifest_sha256"}
    fields = {k: v for k, v in msgspec.to_builtins(manifest).items() if k not in computed}
    return write_bundle(out, fields, {**files, **golden_files(golden)})


def test_golden_frames_are_checked(product_bundle: Path, tmp_path: Path) -> None:
    same = with_golden(product_bundle, tmp_path / "same", lambda g: g)
    Inspector.open(same, threads=1).close()

    def shifted(g: GoldenFrame) -> GoldenFrame:
        return GoldenFrame(g.name, g.frame, np.roll(g.map, 3, axis=1), g.score)

    def inverted(g: GoldenFrame) -> GoldenFrame:
        return GoldenFrame(g.name, 255 - g.frame, g.map, g.score)

    def cut(g: GoldenFrame) -> GoldenFrame:
        return GoldenFrame(g.name, g.frame, g.map[:-1], g.score)

    for number, change in enumerate((shifted, inverted)):
        wrong = with_golden(product_bundle, tmp_path / str(number), change)
        with pytest.raises(BundleError, match="golden frame 000 differs by"):
            Inspector.open(wrong, threads=1)
        Inspector.open(wrong, threads=1, check_golden=False).close()
    with pytest.raises(BundleError, match=r"golden frame 000 gives a map of \(32, 32\)"):
        Inspector.open(with_golden(product_bundle, tmp_path / "cut", cut), threads=1)


def test_an_altered_file_is_refused(bundle_copy: Path) -> None:
    path = bundle_copy / "golden" / "000.png"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(BundleError, match=r"golden/000\.png was altered"):
        Inspector.open(bundle_copy)


def test_weights_alone_cannot_inspect(weights_bundle: Path) -> None:
    with pytest.raises(BundleError, match="adclick bank --weights"):
        Inspector.open(weights_bundle)


def test_a_bank_of_another_size_is_refused(bundle_copy: Path) -> None:
    reseal(bundle_copy, input_size=[64, 64])
    with pytest.raises(EngineError, match="adclick bank"):
        Inspector.open(bundle_copy, threads=1)


def test_zip_bundles_inspect_and_leave_nothing_behind(
    product_bundle: Path, tmp_path: Path, normal: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped = with_golden(product_bundle, tmp_path / "b.zip", lambda g: g)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    with Inspector.open(zipped, threads=1) as inspector, Inspector.open(product_bundle, threads=1) as plain:
        np.testing.assert_array_equal(inspector.maps([normal])[0][0], plain.maps([normal])[0][0])
        assert any((tmp_path / "scratch").iterdir())
        store_calibration(inspector.bundle, calibrate([1.0, 2.0], false_alarms=0.1, source="held_out"))
        inspector.reload_settings()
        assert inspector.calibration is not None
        assert inspector.calibration.normals == 2
    assert not any((tmp_path / "scratch").iterdir())


def test_a_refused_zip_leaves_nothing_behind(
    weights_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped = with_golden(weights_bundle, tmp_path / "w.zip", lambda g: g)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    with pytest.raises(BundleError):
        Inspector.open(zipped)
    assert not any((tmp_path / "scratch").iterdir())
