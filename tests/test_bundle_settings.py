import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from bundle_samples import FIELDS, FILES, SETTINGS, make

from adclick_edge.bundle import read_bundle, write_bundle
from adclick_edge.errors import BundleError


@pytest.fixture(params=["nut", "nut.zip"])
def bundle_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make(tmp_path / "out" / request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "out" / "nut")


@pytest.mark.parametrize("call", ["os.fsync", "rename", "shutil.copyfile", "adclick_edge.bundle.writer.seal"])
def test_a_failure_in_the_middle_of_writing_leaves_what_was_there(bundle_path, monkeypatch, call, tmp_path):
    source = tmp_path / "segment"
    source.write_bytes(b"new")

    def fail(*args: object) -> None:
        raise KeyboardInterrupt

    if call == "rename":  # a folder is exchanged, a zip replaced
        call = "os.replace" if bundle_path.suffix else "adclick_edge.files._exchange"
    with monkeypatch.context() as patch:
        patch.setattr(call, fail)
        with pytest.raises(KeyboardInterrupt):
            write_bundle(bundle_path, FIELDS, {**FILES, "segment.onnx": source})
    assert [p.name for p in bundle_path.parent.iterdir()] == [bundle_path.name]
    with read_bundle(bundle_path) as bundle:
        assert bundle.read("segment.onnx") == FILES["segment.onnx"]
        before = bundle.calibration
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", fail)
            with pytest.raises(KeyboardInterrupt):
                bundle.set_calibration({"lower": 9})
        assert bundle.calibration == before
    assert [p.name for p in bundle_path.parent.iterdir()] == [bundle_path.name]


def test_settings_are_replaced(bundle_path):
    with read_bundle(bundle_path) as bundle:
        version = bundle.manifest.version
        bundle.set_calibration({"lower": 1.0, "text": "ü", "none": None})
        assert bundle.calibration == {"lower": 1.0, "text": "ü", "none": None}
        assert bundle.regions == SETTINGS["regions"]
        bundle.set_regions({"roi": [[[0, 0]]], "ignore": []})
        assert bundle.read("features.onnx") == FILES["features.onnx"]
    with read_bundle(bundle_path) as again:
        assert again.manifest.version == version
        assert again.calibration["text"] == "ü"
        assert again.regions == {"roi": [[[0, 0]]], "ignore": []}


def test_a_rewritten_zip_is_the_zip_written_with_those_settings(tmp_path):
    one = write_bundle(tmp_path / "a.zip", FIELDS, FILES)
    with read_bundle(one) as bundle:
        bundle.set_regions(SETTINGS["regions"])
        bundle.set_calibration(SETTINGS["calibration"])
    assert one.read_bytes() == make(tmp_path / "b.zip").read_bytes()


@pytest.mark.parametrize("body", [{"a": float("nan")}, {1: 2, "a": 3}, [1], "x", {"a": object()}, {"a": "\ud800"}])
def test_settings_that_would_not_come_back_are_refused(folder, body):
    with read_bundle(folder) as bundle:
        with pytest.raises(BundleError, match=r"calibration\.json"):
            bundle.set_calibration(body)
        assert bundle.calibration == SETTINGS["calibration"]


def test_settings_of_another_bundle_are_not_read_or_overwritten(bundle_path):
    with read_bundle(bundle_path) as bundle:
        write_bundle(bundle_path, FIELDS, {**FILES, "segment.onnx": b"new"}, calibration={"lower": 7})
        with pytest.raises(BundleError, match="took its place"):
            _ = bundle.calibration
        with pytest.raises(BundleError, match="took its place"):
            bundle.set_calibration({"lower": 1})
    with read_bundle(bundle_path) as bundle:
        assert bundle.calibration == {"lower": 7}


def test_a_reader_sees_a_valid_calibration_while_others_set_it(bundle_path):
    """Two writers and two settings: readers never see half a file, and no change of one setting undoes the other."""
    rounds = 15
    stop = threading.Event()
    errors: list[BaseException] = []
    seen: set[int] = set()

    def guarded(work):
        def run():
            try:
                work()
            except BaseException as e:
                errors.append(e)

        return threading.Thread(target=run)

    def read():
        with read_bundle(bundle_path) as bundle:
            while not stop.is_set():
                body = bundle.calibration
                assert body["copy"] == [body["n"]] * 200
                seen.add(body["n"])

    def set_calibration():
        with read_bundle(bundle_path) as bundle:
            for n in range(1, rounds + 1):
                bundle.set_calibration({"n": n, "copy": [n] * 200})
                time.sleep(0.002)

    def set_regions():
        with read_bundle(bundle_path) as bundle:
            for n in range(1, rounds + 1):
                bundle.set_regions({"n": n})

    with read_bundle(bundle_path) as bundle:
        bundle.set_calibration({"n": 0, "copy": [0] * 200})
        reader = guarded(read)
        writers = [guarded(set_calibration), guarded(set_regions)]
        for thread in (reader, *writers):
            thread.start()
        for thread in writers:
            thread.join()
        stop.set()
        reader.join()
        assert errors == []
        assert len(seen) > 1
        assert (bundle.calibration["n"], bundle.regions["n"]) == (rounds, rounds)


def test_a_killed_writer_leaves_a_valid_calibration(bundle_path, tmp_path):
    scratch = tmp_path / "scratch"  # of a killed process nobody else takes away what it unpacked
    scratch.mkdir()
    code = (
        "import sys, itertools, pathlib\n"
        "from adclick_edge.bundle import read_bundle\n"
        "bundle = read_bundle(sys.argv[1], unpack_to=pathlib.Path(sys.argv[2]))\n"
        "for n in itertools.count():\n"
        "    bundle.set_calibration({'n': n, 'copy': [n] * 2000})\n"
        "    n or print('go', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(bundle_path), str(scratch)], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout.readline() == b"go\n"
        time.sleep(0.05)
        writer.send_signal(signal.SIGKILL)
    with read_bundle(bundle_path) as bundle:
        body = bundle.calibration
        assert body["copy"] == [body["n"]] * 2000
        bundle.set_calibration({"n": -1})
        assert bundle.calibration == {"n": -1}


@pytest.mark.parametrize("name", ["calibration", "regions"])
def test_a_damaged_setting_can_be_replaced(folder, name):
    verb = {"calibration": "adclick calibrate", "regions": "adclick regions --set"}[name]
    (folder / f"{name}.json").write_bytes(b'{"sha256": "0", "body": {}}')
    with pytest.raises(BundleError, match=rf"{name}\.json.*{verb}"):
        read_bundle(folder)
    with read_bundle(folder, unread=[f"{name}.json"]) as bundle:
        with pytest.raises(BundleError, match=verb):
            getattr(bundle, name)
        getattr(bundle, f"set_{name}")({"new": 1})
    with read_bundle(folder) as bundle:
        assert getattr(bundle, name) == {"new": 1}
