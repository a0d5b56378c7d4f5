import errno
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest
from candidate_samples import a_map, a_record

from adclick_edge import files
from adclick_edge.errors import LineError
from adclick_edge.line.spool import Spool

IMAGE = b"\x89PNG and so on" * 50


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "relabel", 1 << 20)


def test_a_frame_comes_back_as_it_was_put(spool):
    path = spool.put(a_record(3), IMAGE, ".png", a_map(3))
    assert path.name == "20260131T235959.126456-cam-3"
    assert sorted(p.name for p in path.iterdir()) == ["frame.png", "map.npy", "record.json"]
    frame = spool.take(path)
    assert (frame.image, frame.suffix) == (IMAGE, ".png")
    np.testing.assert_array_equal(frame.map, a_map(3))
    assert frame.map.dtype == np.float32
    expected = msgspec.structs.replace(a_record(3), files=frame.record.files)
    assert frame.record == expected
    assert spool.size_bytes == sum(p.stat().st_size for p in path.iterdir())


def test_the_camera_s_own_file_is_kept_untouched(spool):
    data = b"\xff\xd8\xff" + os.urandom(999)
    assert (spool.put(a_record(), data, ".jpg", a_map()) / "frame.jpg").read_bytes() == data


def test_frames_are_listed_by_age_and_removed_for_good(spool):
    paths = [spool.put(a_record(seq), IMAGE, ".png", a_map()) for seq in (3, 1, 2)]
    assert [record.seq for _, record in spool.records()] == [1, 2, 3]
    assert [record.seq for _, record in spool.records(newest_first=True)] == [3, 2, 1]
    for path in paths:
        spool.remove(path)
    spool.remove(paths[0])
    assert list(spool.folder.iterdir()) == []
    assert spool.size_bytes == 0


def test_two_frames_of_one_moment_do_not_take_each_other_s_place(spool):
    paths = {spool.put(a_record(), IMAGE + bytes([i]), ".png", a_map()) for i in range(3)}
    assert len(paths) == len(spool.paths()) == 3


def test_a_full_spool_refuses_the_newest_and_deletes_nothing(tmp_path):
    now = 0
    spool = Spool(tmp_path, 100_000, clock=lambda: now)
    stored = []
    with pytest.raises(LineError, match=r"the spool is full.*max_spool_bytes"):
        _fill(spool, IMAGE, stored)
    assert 1 < len(stored) < 10
    assert spool.paths() == stored
    assert spool.size_bytes <= 100_000

    Spool(tmp_path, 100_000).remove(stored[0])  # by another process, as far as this one can see
    with pytest.raises(LineError, match="full"):
        spool.put(a_record(77), IMAGE, ".png", a_map())
    now += 10_000_000_000
    spool.put(a_record(77), IMAGE, ".png", a_map())


@pytest.mark.parametrize("broken", ["write", "fsync", "rename"])
def test_a_full_disk_leaves_nothing_behind(spool, monkeypatch, broken):
    def no_space(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        if broken == "write":
            patched.setattr("builtins.open", no_space)
        else:
            patched.setattr(files.os, {"fsync": "fsync", "rename": "replace"}[broken], no_space)
        with pytest.raises(LineError, match=r"No space left.*make room"):
            spool.put(a_record(), IMAGE, ".png", a_map())
    assert list(spool.folder.iterdir()) == []
    assert spool.size_bytes == 0
    spool.put(a_record(), IMAGE, ".png", a_map())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        spool = Spool(disk / "relabel", 1 << 30)
        stored = []
        with pytest.raises(LineError, match="make room"):
            _fill(spool, os.urandom(30_000), stored)
        assert stored
        assert sorted(spool.folder.iterdir()) == stored
        spool.remove(stored.pop())
        spool.put(a_record(99), os.urandom(30_000), ".png", a_map())
        for path in spool.paths():
            spool.take(path)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _fill(spool: Spool, image: bytes, stored: list[Path]) -> None:
    while True:
        stored.append(spool.put(a_record(len(stored)), image, ".png", a_map()))


def _shorten(path: Path) -> None:
    os.truncate(path / "map.npy", 100)


def _same_length(path: Path) -> None:
    data = bytearray((path / "frame.png").read_bytes())
    data[-1] ^= 1
    (path / "frame.png").write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        _shorten,
        lambda path: (path / "frame.png").unlink(),
        lambda path: (path / "record.json").unlink(),
        lambda path: (path / "record.json").write_bytes(b"{"),
        lambda path: (path / "record.json").write_bytes(b"[" * 100_000),
        lambda path: _edit(path, b'"schema":1', b'"schema":9'),
        lambda path: _edit(path, b"frame.png", b"../frame.png"),
        lambda path: _edit(path, b'"seq":1', b'"seq":"x"'),
    ],
)
def test_damaged_frames_are_skipped_and_named(spool, damage):
    bad, good = (spool.put(a_record(seq), IMAGE, ".png", a_map()) for seq in (1, 2))
    damage(bad)
    assert [path for path, _ in spool.records()] == [good]
    assert spool.damaged == (bad,)
    with pytest.raises(LineError, match="damaged"):
        spool.take(bad)
    spool.remove(bad)
    list(spool.records())
    assert spool.damaged == ()


def _edit(path: Path, old: bytes, new: bytes) -> None:
    data = (path / "record.json").read_bytes()
    assert old in data
    (path / "record.json").write_bytes(data.replace(old, new))


def test_altered_pixels_are_found_when_they_are_taken(spool):
    path = spool.put(a_record(), IMAGE, ".png", a_map())
    _same_length(path)
    with pytest.raises(LineError, match=r"frame\.png was altered"):
        spool.take(path)


def test_a_pickled_map_is_not_unpickled(spool):
    path = spool.put(a_record(), IMAGE, ".png", a_map())
    old = spool.take(path).record.files[1]
    np.save(path / "map.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    new = (path / "map.npy").read_bytes()
    _edit(path, old.sha256.encode(), files.sha256_file(path / "map.npy").encode())
    _edit(path, f'"size_bytes":{old.size_bytes}'.encode(), f'"size_bytes":{len(new)}'.encode())
    with pytest.raises(LineError, match="allow_pickle"):
        spool.take(path)


def test_what_a_crash_left_is_swept(spool):
    kept = spool.put(a_record(), IMAGE, ".png", a_map())
    left = spool.folder / ".20260131T235959.1-cam-9.new.abc"
    left.mkdir()
    (left / "frame.png").write_bytes(b"half")
    assert [path for path, _ in spool.records()] == [kept]
    assert spool.sweep() == 1
    assert list(spool.folder.iterdir()) == [kept]


@pytest.mark.parametrize("path", ["/etc", "relabel/../x", "x/.y"])
def test_only_frames_of_the_spool_are_removed(spool, path):
    with pytest.raises(LineError, match="no frame of the spool"):
        spool.remove(spool.folder / path)


@pytest.mark.parametrize(
    ("record", "image", "suffix"),
    [(a_record(camera="../x"), IMAGE, ".png"), (a_record(), IMAGE, ".exe"), (a_record(), b"", ".png")],
)
def test_what_makes_no_frame_is_refused(spool, record, image, suffix):
    with pytest.raises(LineError):
        spool.put(record, image, suffix, a_map())
    assert list(spool.folder.iterdir()) == []


def test_a_path_that_cannot_hold_a_spool(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LineError, match="cannot be used"):
        Spool(tmp_path / "file" / "relabel", 1000)


PUTTER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from candidate_samples import a_map, a_record
from adclick_edge.line.spool import Spool
spool = Spool(Path(sys.argv[1]), 1 << 30)
for seq in range(100_000):
    print(spool.put(a_record(seq), b"\\x89PNG" * 50_000, ".png", a_map(seq)).name, flush=True)
"""


@pytest.mark.parametrize("trial", range(2))
def test_every_frame_reported_as_put_survives_kill_9(tmp_path, trial):
    command = [sys.executable, "-c", PUTTER, str(tmp_path / "relabel"), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    first = process.stdout.readline()
    alarm = threading.Timer(random.Random(trial).uniform(0.01, 0.15), lambda: process.send_signal(signal.SIGKILL))
    alarm.start()
    reported = [first, *process.stdout]
    process.stdout.close()
    assert process.wait(timeout=20) == -signal.SIGKILL
    alarm.join()

    spool = Spool(tmp_path / "relabel", 1 << 30)
    spool.sweep()
    whole = {path.name: spool.take(path).record.seq for path, _ in spool.records()}
    assert spool.damaged == ()
    named = [line.rstrip("\n") for line in reported if line.endswith("\n")]
    assert set(named) <= set(whole)
    assert len(whole) <= len(named) + 1
    assert {path.name for path in spool.folder.iterdir()} == set(whole)
