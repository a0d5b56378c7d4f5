import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import threading

import pytest

from adclick_edge import files
from adclick_edge.files import atomic_folder, fsync_folder, sha256_file, write_bytes, write_text

NAMES = ("one", "two", "deep/three")


def fill(folder, text):
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def contents(folder):
    return [(folder / name).read_text() for name in NAMES]


def place(path, text):
    with atomic_folder(path) as folder:
        fill(folder, text)


@pytest.fixture
def exchange(tmp_path):
    """Skips where two names cannot change places in one step."""
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir()
    b.mkdir()
    can = files._exchange(a, b)
    a.rmdir()
    b.rmdir()
    if not can:
        pytest.skip("this file system cannot exchange two names")


@pytest.fixture(params=["exchange", "renames"])
def way(request, monkeypatch):
    """Both ways to replace a folder: in one step, and by renames where the system has no such step."""
    if request.param == "renames":
        monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    else:
        request.getfixturevalue("exchange")


def leftovers(tmp_path, *expected):
    return sorted(p.name for p in tmp_path.iterdir() if p.name not in expected)


# -- folders


def test_a_new_folder_appears_complete(tmp_path):
    target = tmp_path / "sub" / "bundle"
    with atomic_folder(target) as folder:
        fill(folder, "new")
        assert not target.exists()
        assert folder.parent == target.parent
    assert contents(target) == ["new"] * 3
    assert leftovers(target.parent, "bundle") == []
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


def test_a_folder_is_replaced(tmp_path, way):
    target = tmp_path / "bundle"
    place(target, "old")
    (target / "only in the old one").touch()
    with atomic_folder(target) as folder:
        assert list(folder.iterdir()) == []
        fill(folder, "new")
        assert contents(target) == ["old"] * 3
    assert contents(target) == ["new"] * 3
    assert not (target / "only in the old one").exists()
    assert leftovers(tmp_path, "bundle") == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("there", [True, False])
def test_a_failure_inside_leaves_what_was_there(tmp_path, way, error, there):
    target = tmp_path / "bundle"
    if there:
        place(target, "old")

    def fail():
        with atomic_folder(target) as folder:
            fill(folder, "new")
            raise error("inside")

    with pytest.raises(error, match="inside"):
        fail()
    assert leftovers(tmp_path, "bundle") == []
    assert target.exists() == there
    assert not there or contents(target) == ["old"] * 3


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_old_folder(tmp_path, monkeypatch, failing):
    target = tmp_path / "bundle"
    place(target, "old")
    monkeypatch.setattr(files, "_exchange", lambda a, b: False)
    replace, calls = os.replace, []

    def unreliable(source, destination):
        calls.append((source, destination))
        if len(calls) == failing:
            raise OSError(errno.EIO, "broken disk")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", unreliable)
    with pytest.raises(OSError, match="broken disk"):
        place(target, "new")
    assert len(calls) == (1 if failing == 1 else 3)  # the third puts the old folder back
    assert contents(target) == ["old"] * 3
    assert leftovers(tmp_path, "bundle") == []


def test_a_first_rename_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def broken(source, destination):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="broken disk"):
        place(tmp_path / "bundle", "new")
    assert leftovers(tmp_path) == []


def test_everything_is_synced_before_it_appears(tmp_path, monkeypatch):
    """Every file and folder of the new one, before the rename; the folder that holds the name, after it."""
    events = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(fd):
        events.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    def watched_replace(source, destination):
        events.append("rename")
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    with atomic_folder(tmp_path / "bundle") as folder:
        fill(folder, "new")
    at = events.index("rename")
    assert set(events[:at]) == {str(folder / name) for name in (*NAMES, "deep")} | {str(folder)}
    assert events[at + 1 :] == [str(tmp_path)]


def test_a_reader_never_finds_the_name_missing_or_two_versions_mixed(tmp_path, exchange):
    target = tmp_path / "bundle"
    place(target, "0")
    stop, seen, wrong = threading.Event(), set(), []

    def read(name, folder):
        fd = os.open(name, os.O_RDONLY, dir_fd=folder)
        try:
            return os.read(fd, 100).decode()
        finally:
            os.close(fd)

    def reader():
        while not stop.is_set():
            try:
                folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                wrong.append(error)
                return
            try:
                first = read("one", folder)
                second = read("two", folder)
                if first != second:
                    wrong.append((first, second))
                seen.add(first)
            except FileNotFoundError as error:
                # Allowed only where the folder that was opened is no longer the one at the path.
                if os.path.samestat(os.fstat(folder), os.stat(target)):
                    wrong.append(error)
            finally:
                os.close(folder)

    threads = [threading.Thread(target=reader) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(1, 60):
            place(target, str(number))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert len(seen) > 1
    assert contents(target) == ["59"] * 3


def test_a_link_is_followed(tmp_path, way):
    place(tmp_path / "v1", "old")
    (tmp_path / "current").symlink_to("v1")
    place(tmp_path / "current", "new")
    assert (tmp_path / "current").is_symlink()
    assert contents(tmp_path / "v1") == ["new"] * 3
    assert leftovers(tmp_path, "v1", "current") == []


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "bundle").write_text("precious")
    with pytest.raises(NotADirectoryError, match="another name"):
        place(tmp_path / "bundle", "new")
    assert (tmp_path / "bundle").read_text() == "precious"
    assert leftovers(tmp_path, "bundle") == []


# -- files


def test_bytes_and_text_are_written_and_replaced(tmp_path):
    path = tmp_path / "sub" / "file"
    write_bytes(path, b"\0old")
    assert path.read_bytes() == b"\0old"
    write_text(path, "Größe\n")
    assert path.read_bytes() == "Größe\n".encode()
    assert leftovers(path.parent, "file") == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
def test_a_failed_write_leaves_the_old_bytes(tmp_path, monkeypatch, call):
    write_bytes(tmp_path / "file", b"old")

    def broken(*args):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, call, broken)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert leftovers(tmp_path, "file") == []


def test_a_reader_of_a_file_sees_the_old_bytes_or_the_new(tmp_path):
    path = tmp_path / "file"
    write_bytes(path, b"0" * 100_000)
    stop, wrong, seen = threading.Event(), [], set()

    def reader():
        while not stop.is_set():
            data = path.read_bytes()
            seen.add(data[:1])
            if len(data) != 100_000 or len(set(data)) != 1:
                wrong.append(data[:20])

    thread = threading.Thread(target=reader)
    thread.start()
    try:
        for number in range(40):
            write_bytes(path, str(number % 10).encode() * 100_000)
    finally:
        stop.set()
        thread.join()
    assert wrong == []
    assert len(seen) > 1


def test_digest_and_folder_sync(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 1000)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(b"abc" * 1000).hexdigest()
    fsync_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        fsync_folder(tmp_path / "none")


# -- kill -9

STOP = "print('here', flush=True); time.sleep(60)"
HEAD = "import os, sys, time; from pathlib import Path; from adclick_edge import files; target = Path(sys.argv[1])\n"
WRITE_FOLDER = """
with files.atomic_folder(target) as folder:
    (folder / "deep").mkdir()
    for name in ("one", "two", "deep/three"):
        (folder / name).write_text("new")
        AFTER_EACH
"""
KILLED = {
    "inside the block": WRITE_FOLDER.replace("AFTER_EACH", f"if name == 'two': {STOP}"),
    "before it is synced": f"os.fsync = lambda fd: [{STOP.replace('; ', ', ')}]\n"
    + WRITE_FOLDER.replace("AFTER_EACH", "pass"),
    "before the exchange": f"files._exchange = lambda a, b: [{STOP.replace('; ', ', ')}]\n"
    + WRITE_FOLDER.replace("AFTER_EACH", "pass"),
}


def kill_in_the_middle(program, target):
    with subprocess.Popen(
        [sys.executable, "-c", HEAD + program, str(target)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        reached = process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        error = process.stderr.read()
    assert reached == b"here\n", error.decode()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("when", KILLED)
def test_a_killed_writer_leaves_the_old_folder(tmp_path, when):
    target = tmp_path / "bundle"
    place(target, "old")
    kill_in_the_middle(KILLED[when], target)
    assert contents(target) == ["old"] * 3
    # What it left behind does not stand in the way of the next.
    place(target, "next")
    assert contents(target) == ["next"] * 3


def test_killed_after_the_exchange_the_new_folder_is_complete(tmp_path, exchange):
    target = tmp_path / "bundle"
    place(target, "old")
    program = f"files.shutil.rmtree = lambda *a, **k: [{STOP.replace('; ', ', ')}]\n"
    kill_in_the_middle(program + WRITE_FOLDER.replace("AFTER_EACH", "pass"), target)
    assert contents(target) == ["new"] * 3


def test_a_killed_write_leaves_the_old_bytes(tmp_path):
    write_bytes(tmp_path / "file", b"old")
    stop = f"os.fsync = lambda fd: [{STOP.replace('; ', ', ')}]\n"
    kill_in_the_middle(stop + "files.write_bytes(target, b'new')", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"
