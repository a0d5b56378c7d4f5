import io
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from bundle_samples import FIELDS, FILES, GOLDEN, SETTINGS, entries_of, make, repack
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adclick_edge.bundle import FileEntry, GoldenFrame, golden_files, read_bundle, version_of, write_bundle
from adclick_edge.bundle.manifest import seal
from adclick_edge.errors import BundleError


@pytest.fixture(params=["nut", "nut.zip"])
def bundle_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make(tmp_path / "out" / request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "out" / "nut")


def test_what_is_written_is_read(bundle_path):
    with read_bundle(bundle_path) as bundle:
        assert {name: bundle.read(name) for name in bundle.manifest.files} == FILES
        assert bundle.path("segment.onnx").read_bytes() == FILES["segment.onnx"]
        assert bundle.manifest.product == "nut"
        assert bundle.manifest.input_size == (256, 256)
        assert bundle.manifest.segment_outputs[0].shape == [-1, 64, 64]
        assert (bundle.calibration, bundle.regions) == (SETTINGS["calibration"], SETTINGS["regions"])
        assert bundle.unlisted == ()
        found = bundle.golden()
        assert [g.name for g in found] == ["crack_001", "good_000"]
        for got, put in zip(found, GOLDEN[::-1], strict=True):
            np.testing.assert_array_equal(got.frame, put.frame)
            np.testing.assert_array_equal(got.map, put.map)
            assert got.score == put.score


def test_nothing_is_left_aside(bundle_path):
    assert [p.name for p in bundle_path.parent.iterdir()] == [bundle_path.name]


def test_zip_leaves_no_unpacked_files(tmp_path):
    path = make(tmp_path / "nut.zip")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with read_bundle(path, unpack_to=scratch) as bundle:
        assert scratch in bundle.path("features.onnx").parents
        assert list(scratch.iterdir())
    assert not list(scratch.iterdir())
    with pytest.raises(BundleError, match="closed"):
        bundle.read("features.onnx")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(BundleError):
        read_bundle(path, unpack_to=scratch)
    assert not list(scratch.iterdir())


@given(
    files=st.dictionaries(
        st.from_regex(r"[a-z0-9_][a-z0-9._-]{0,8}\.bin(/x)?", fullmatch=True), st.binary(max_size=300), max_size=4
    ),
    metrics=st.dictionaries(
        st.text(max_size=5),
        st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**63 - 1) | st.none() | st.text(),
    ),
    as_zip=st.booleans(),
)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip_property(tmp_path_factory, files, metrics, as_zip):
    files = {name: data for name, data in files.items() if not any(o.startswith(name + "/") for o in files)}
    path = tmp_path_factory.mktemp("b") / ("b.zip" if as_zip else "b")
    write_bundle(path, {**FIELDS, "metrics": metrics}, {**FILES, **files}, calibration=metrics)
    with read_bundle(path) as bundle:
        assert {name: bundle.read(name) for name in bundle.manifest.files} == {**FILES, **files}
        assert bundle.manifest.metrics == metrics
        assert bundle.calibration == metrics


def test_the_same_content_gives_the_same_bytes_and_version(tmp_path):
    one, two = make(tmp_path / "a.zip"), make(tmp_path / "b.zip")
    assert one.read_bytes() == two.read_bytes()
    source = tmp_path / "segment"
    source.write_bytes(FILES["segment.onnx"])
    three = write_bundle(
        tmp_path / "c",
        {**FIELDS, "parent": "x", "created_utc": "2026-01-01T00:00:00Z"},
        {**FILES, "segment.onnx": source},
    )
    four = write_bundle(tmp_path / "d", FIELDS, {**FILES, "segment.onnx": b"other"})
    five = make(tmp_path / "e.zip", tiling={"scale": 1, "overlap": 32})
    assert five.read_bytes() != one.read_bytes()
    versions = []
    for path in (one, three, four, five):
        with read_bundle(path) as bundle:
            versions.append(bundle.manifest.version)
    assert versions[0] == versions[1] == versions[3] != versions[2]


def test_version_depends_on_names_and_hashes():
    entry, other = FileEntry("0" * 64, 1), FileEntry("1" * 64, 1)
    assert version_of({"a": entry, "b": other}) == version_of({"b": other, "a": entry})
    assert version_of({"a": entry, "b": other}) != version_of({"a": other, "b": entry})


def test_weights_bundle_has_no_bank(tmp_path):
    files = {name: data for name, data in FILES.items() if not name.startswith(("bank", "golden"))}
    fields = {**FIELDS, "kind": "weights", "product": None, "search_dims": None}
    with read_bundle(write_bundle(tmp_path / "w", fields, files)) as bundle:
        assert bundle.golden() == []
        assert bundle.calibration is None
        assert bundle.regions is None
        with pytest.raises(BundleError, match=r"no 'bank.safetensors'; it has features.onnx"):
            bundle.read("bank.safetensors")
    with pytest.raises(BundleError, match="a weights bundle has none"):
        write_bundle(tmp_path / "x", fields, FILES)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"product": None}, "only a product bundle names one"),
        ({"search_dims": None}, "search_dims is null"),
        ({"search_dims": 513}, "exceeds embedding_dims"),
        ({"segmenter": "magic"}, "segmenter"),
        ({"input_size": [0, 4]}, "input_size"),
        ({"created_utc": "yesterday"}, "yesterday"),
        ({"created_utc": "2025-01-31T12:00:00"}, "time zone"),
        ({"metrics": {"ap": float("nan")}}, "not JSON"),
        ({"metrics": {"ap": object()}}, "not JSON"),
        ({"metrics": {"ap": "\ud800"}}, "cannot be read"),
        ({"tiling": {"scale": 1, "overlap": -1}}, "overlap"),
        ({"features_outputs": [{"name": "e", "dtype": "float32", "shape": [0]}]}, "at least 1"),
        ({"features_outputs": [{"name": "e", "dtype": "float32", "shape": [1]}] * 2}, "twice"),
        ({"features_outputs": [{"name": "e", "dtype": "complex", "shape": [1]}]}, "features_outputs"),
        ({"colour": "red"}, "colour"),
        ({"version": "abc"}, "version is computed"),
    ],
)
def test_wrong_fields_write_nothing(tmp_path, changes, says):
    with pytest.raises(BundleError, match=says):
        make(tmp_path / "b", **changes)
    assert list(tmp_path.iterdir()) == []


def test_missing_field_is_named(tmp_path):
    with pytest.raises(BundleError, match="preset"):
        write_bundle(tmp_path / "b", {k: v for k, v in FIELDS.items() if k != "preset"}, FILES)


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/x", "a/../x", "a//b", "./a", ".hidden", "a\\b", "C:x", "a\x00b", "a\nb", "", "a/", "x" * 201, "é"],
)
def test_traversal_names_are_refused_when_writing(tmp_path, name):
    with pytest.raises(BundleError, match="name"):
        write_bundle(tmp_path / "b", FIELDS, {**FILES, name: b""})


@pytest.mark.parametrize("name", ["manifest.json", "calibration.json", "regions.json"])
def test_files_the_writer_makes_are_refused(tmp_path, name):
    with pytest.raises(BundleError, match=name):
        write_bundle(tmp_path / "b", FIELDS, {**FILES, name: b"{}"})


def test_unlisted_files_are_ignored_but_reported(tmp_path):
    folder, path = make(tmp_path / "f"), make(tmp_path / "b.zip")
    (folder / "golden" / "note.txt").write_text("hello")
    (folder / ".calibration.json.tmp").write_text("half")
    repack(path, [*entries_of(path), ("golden/note.txt", b"hello")])
    for where in (folder, path):
        with read_bundle(where) as bundle:
            assert bundle.unlisted == ("golden/note.txt",)
            with pytest.raises(BundleError, match="has no"):
                bundle.path("golden/note.txt")


def test_only_a_bundle_is_replaced(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    with pytest.raises(BundleError, match="not a bundle"):
        make(tmp_path / "photos")
    assert (tmp_path / "photos" / "cat.png").read_bytes() == b"cat"
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(BundleError, match="not a folder"):
        make(tmp_path / "file")
    (tmp_path / "d.zip").mkdir()
    with pytest.raises(BundleError, match="is a folder"):
        make(tmp_path / "d.zip")
    make(tmp_path / "b")
    make(tmp_path / "b", preset="large")
    with read_bundle(tmp_path / "b") as bundle:
        assert bundle.manifest.preset == "large"


def with_golden(tmp_path: Path, golden: dict[str, bytes]) -> Path:
    files = {name: data for name, data in FILES.items() if not name.startswith("golden/")}
    return write_bundle(tmp_path / "g", FIELDS, {**files, **golden})


def test_golden_frames_that_do_not_fit(tmp_path):
    good = golden_files(GOLDEN[:1])
    expected = safetensors.numpy.load(good["golden/expected.safetensors"])
    score, found = expected["good_000.score"], expected["good_000.map"]

    def save(**tensors: np.ndarray) -> bytes:
        return safetensors.numpy.save({key.replace("__", "."): value for key, value in tensors.items()})

    for changes, says in (
        ({"golden/expected.safetensors": b"rubbish"}, "cannot be read"),
        ({"golden/good_000.png": b"rubbish"}, "not an image"),
        ({"golden/good_000.png": b""}, "not an image"),
        ({"golden/more.png": good["golden/good_000.png"]}, "'more.map' is missing"),
        ({"golden/expected.safetensors": save(good_000__map=found)}, "'good_000.score' is missing"),
        ({"golden/expected.safetensors": save(good_000__map=found, good_000__score=score, x__map=found)}, "'x.map'"),
        (
            {"golden/expected.safetensors": save(good_000__map=found.astype(np.float64), good_000__score=score)},
            "expected float32",
        ),
        ({"golden/expected.safetensors": save(good_000__map=found * np.nan, good_000__score=score)}, "NaN"),
    ):
        with read_bundle(with_golden(tmp_path, {**good, **changes})) as bundle, pytest.raises(BundleError, match=says):
            bundle.golden()
    del good["golden/expected.safetensors"]
    with read_bundle(with_golden(tmp_path, good)) as bundle, pytest.raises(BundleError, match="is missing"):
        bundle.golden()


def test_golden_frames_that_cannot_be_written():
    g = GOLDEN[0]
    assert golden_files([]) == {}
    for frames, says in (
        ([g, g], "twice"),
        ([GoldenFrame("a/b", g.frame, g.map, 0.0)], "slash"),
        ([GoldenFrame("..", g.frame, g.map, 0.0)], "not allowed"),
        ([GoldenFrame("a", g.frame[..., 0], g.map, 0.0)], "uint8"),
        ([GoldenFrame("a", g.frame, g.map.astype(np.float64), 0.0)], "float32"),
        ([GoldenFrame("a", g.frame, g.map, float("nan"))], "NaN"),
    ):
        with pytest.raises(BundleError, match=says):
            golden_files(frames)


def test_manifest_is_typed_json(folder):
    raw = msgspec.json.decode((folder / "manifest.json").read_bytes())
    stated = raw.pop("manifest_sha256")
    assert seal(raw, "x").manifest_sha256 == stated
    assert raw["schema_version"] == 1
    assert raw["files"]["features.onnx"]["size_bytes"] == len(FILES["features.onnx"])
    assert io.BytesIO(FILES["golden/good_000.png"]).read(4) == b"\x89PNG"
