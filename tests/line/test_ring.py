import os
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adclick_edge.errors import LineError, ProtocolError, UsageError
from adclick_edge.line import ring_reader
from adclick_edge.line.pixels import halving_part_bytes, to_input, to_input_from_parts
from adclick_edge.line.protocol import FrameHeader, PixelFormat, RingSlot, decode_camera_message, encode
from adclick_edge.line.ring import RingReader, RingWriter, remove_leftovers
from adclick_edge.line.ring_layout import HEADER, MAGIC, RECORD, SHM_FOLDER, Geometry, is_ring_name, record_at

MINE = f"t{os.getpid()}"
"""In the names of this process's rings under /dev/shm, where other tests make theirs at the same time."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def reader(folder: Path) -> Iterator[RingReader]:
    found = RingReader(folder=folder)
    yield found
    found.close()


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    assert not [name for name in os.listdir(SHM_FOLDER) if is_ring_name(name) and MINE in name]
    assert len(os.listdir("/proc/self/fd")) <= descriptors


@contextmanager
def refused(code: str, match: str) -> Iterator[None]:
    with pytest.raises(ProtocolError, match=match) as error:
        yield
    assert error.value.code == code


def slot_of(name: str, **more: int) -> RingSlot:
    return RingSlot(name=name, **{"slot": 0, "generation": 2, "size_bytes": 4} | more)


# --- what is written is what is read


def test_a_frame_through_dev_shm() -> None:
    reader = RingReader()
    with RingWriter(MINE, 3, 10_000) as ring:
        path = SHM_FOLDER / ring.name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.stat().st_blocks * 512 >= path.stat().st_size  # taken whole, so that writing cannot fail later
        slot = ring.write(b"frame" * 1000)
        assert encode(FrameHeader(seq=0, format="mono8", width=5, height=1000, ring=slot))
        view = reader.view(slot)
        assert view.readonly
        assert bytes(view) == b"frame" * 1000
        assert reader.still(slot)
    assert not path.exists()
    reader.close()


def test_slots_pass_the_wire(folder: Path) -> None:
    with RingWriter("c" * 64, 2, 10, folder=folder) as ring:
        frame = FrameHeader(seq=1, format="mono8", width=2, height=1, ring=ring.write(b"ab"))
        assert decode_camera_message(encode(frame)) == frame


def test_a_slot_filled_in_place(folder: Path, reader: RingReader) -> None:
    with RingWriter("cam", 1, 24, folder=folder) as ring:
        target, token = ring.acquire()
        assert target.nbytes == ring.slot_bytes >= 24
        pixels = np.frombuffer(target, np.uint8)
        pixels[:24] = range(24)
        slot = ring.commit(token, 24)
        assert bytes(reader.view(slot)) == bytes(range(24))
        with pytest.raises(UsageError, match="not being filled"):
            ring.commit(token, 24)
        with pytest.raises(UsageError, match="not being filled"):
            ring.abandon(token)


def test_an_abandoned_slot_is_free_and_never_a_frame(folder: Path, reader: RingReader) -> None:
    with RingWriter("cam", 1, 4, folder=folder) as ring:
        _, token = ring.acquire()
        ring.abandon(token)
        with refused("bad_frame", "was reused"):
            reader.view(slot_of(ring.name, generation=token.generation))
        slot = ring.write(b"next")
        assert slot.generation > token.generation
        assert bytes(reader.view(slot)) == b"next"


def test_no_free_slot_is_an_error_and_changes_nothing(folder: Path, reader: RingReader) -> None:
    with RingWriter("cam", 2, 4, folder=folder) as ring:
        first, second = ring.write(b"1111"), ring.write(b"2222")
        with pytest.raises(LineError, match="all 2 slots hold frames"):
            ring.write(b"3333")
        assert bytes(reader.view(first)) + bytes(reader.view(second)) == b"11112222"
        ring.release(first)
        ring.release(first)
        assert ring.free_slots == 1
        third = ring.write(b"3333")
        ring.release(first)  # a late verdict of the slot's earlier frame
        assert ring.free_slots == 0
        assert third.slot == first.slot
        assert not reader.still(first)
        assert reader.still(third)


def test_the_slot_that_became_free_last_is_used_first(folder: Path) -> None:
    with RingWriter("cam", 3, 4, folder=folder) as ring:
        slots = [ring.write(b"x") for _ in range(3)]
        for place in (1, 2, 0):
            ring.release(slots[place])
        # Its memory is what the caches still hold; the generation tells whoever still reads it.
        assert [ring.write(b"y").slot for _ in range(3)] == [slots[i].slot for i in (0, 2, 1)]


def test_sizes(folder: Path, reader: RingReader) -> None:
    with RingWriter("cam", 1, 5000, folder=folder) as ring:
        assert ring.slot_bytes == 8192
        with pytest.raises(LineError, match="8193 bytes do not fit"):
            ring.write(bytes(8193))
        assert ring.free_slots == 1
        empty = ring.write(b"")
        assert reader.view(empty).nbytes == 0
        ring.release(empty)
        assert (
            bytes(reader.view(ring.write(np.arange(2048, dtype=np.float32).data)))
            == np.arange(2048, dtype=np.float32).tobytes()
        )
    for slots, size in ((0, 1), (4097, 1), (1, 0), (1, (1 << 31) + 1)):
        with pytest.raises(UsageError):
            RingWriter("cam", slots, size, folder=folder)
    for hint in ("../cam", "a b", "a/b", "x" * 90):
        with pytest.raises(UsageError, match="ring name"):
            RingWriter(hint, 1, 1, folder=folder)
    with pytest.raises(LineError, match="cannot be made"):
        RingWriter("cam", 1, 1, folder=folder / "none")


def test_a_full_disk_is_an_error_now(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(LineError, match="No space left"):
        RingWriter("cam", 1, 1, folder=folder)
    assert not os.listdir(folder)


def test_a_closed_ring(folder: Path) -> None:
    ring = RingWriter("cam", 2, 8, folder=folder)
    target, _ = ring.acquire()
    array = np.frombuffer(target, np.uint8)
    ring.close()
    ring.close()
    assert array[0] == 0  # still mapped: the camera's grabber may be about to write to it
    for use in (ring.acquire, lambda: ring.write(b"x")):
        with pytest.raises(LineError, match="is closed"):
            use()
    assert not os.listdir(folder)


class RingModel(RuleBasedStateMachine):
    """Any order of calls: a slot is read whole while it is its frame's, and refused from the next `acquire` on."""

    def __init__(self) -> None:
        super().__init__()
        # Not a fixture's folder: a state machine has none.
        self.ring = RingWriter(MINE, 3, 64)
        self.reader = RingReader()
        self.filling: dict[int, tuple[memoryview, object, bytes]] = {}
        self.sent: list[tuple[RingSlot, bytes]] = []
        self.over: list[tuple[RingSlot, bytes]] = []
        self.count = 0

    def teardown(self) -> None:
        self.filling.clear()
        self.ring.close()
        self.reader.close()

    @rule(size=st.integers(0, 64))
    def acquire(self, size: int) -> None:
        if len(self.filling) + len(self.sent) == 3:
            with pytest.raises(LineError):
                self.ring.acquire()
            return
        view, token = self.ring.acquire()
        self.count += 1
        data = self.count.to_bytes(8, "little") * 8
        view[:size] = data[:size]
        self.filling[token.slot] = (view, token, data[:size])

    @precondition(lambda self: self.filling)
    @rule(keep=st.booleans())
    def finish(self, keep: bool) -> None:
        slot, (_, token, data) = self.filling.popitem()
        if keep:
            committed = self.ring.commit(token, len(data))
            assert committed.slot == slot
            self.sent.append((committed, data))
        else:
            self.ring.abandon(token)

    @precondition(lambda self: self.sent)
    @rule(place=st.integers(0, 2))
    def release(self, place: int) -> None:
        done = self.sent.pop(place % len(self.sent))
        self.ring.release(done[0])
        self.over.append(done)

    @precondition(lambda self: self.over)
    @rule(place=st.integers(0, 100))
    def release_again(self, place: int) -> None:
        self.ring.release(self.over[place % len(self.over)][0])

    @invariant()
    def slots_hold_their_frames(self) -> None:
        assert self.ring.free_slots == 3 - len(self.filling) - len(self.sent)
        for slot, data in self.sent:
            assert self.reader.still(slot)
            assert bytes(self.reader.view(slot)) == data
        for slot, data in self.over:
            if self.reader.still(slot):
                assert bytes(self.reader.view(slot)) == data
            else:
                with refused("bad_frame", "was reused"):
                    self.reader.view(slot)


TestRingModel = RingModel.TestCase
TestRingModel.settings = settings(deadline=None, max_examples=40, stateful_step_count=25)


def test_threads_share_a_ring(folder: Path, reader: RingReader) -> None:
    """Each of four threads finds its own bytes in what it wrote, though all use the same slots and reader."""
    problems: list[BaseException] = []

    def use(fill: int) -> None:
        try:
            for size in range(2000, 2060):
                slot = ring.write(bytes([fill]) * size)
                assert bytes(reader.view(slot)) == bytes([fill]) * size
                ring.release(slot)
        except BaseException as error:
            problems.append(error)

    with RingWriter("cam", 4, 4096, folder=folder) as ring:
        threads = [threading.Thread(target=use, args=(fill,)) for fill in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert ring.free_slots == 4
    assert not problems


# --- a slot that is reused is detected


@pytest.mark.parametrize("moment", ["before", "half-way", "after"])
def test_a_slot_reused_while_it_is_read(
    folder: Path, reader: RingReader, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    copy = os.preadv

    with RingWriter("cam", 1, 8, folder=folder) as ring:
        slot = ring.write(b"first...")

        def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
            (buffer,) = buffers
            if moment == "before":
                reuse()
                return copy(fd, buffers, offset)
            half = copy(fd, [buffer[:4]], offset)
            if moment == "half-way":
                reuse()
            half += copy(fd, [buffer[4:]], offset + 4)
            if moment == "after":
                reuse()
            return half

        def reuse() -> None:
            ring.release(slot)
            ring.acquire()

        monkeypatch.setattr(ring_reader.os, "preadv", preadv)
        with refused("bad_frame", r"slot 0 was reused \(generation 2, now 3\) while it was read"):
            reader.view(slot)
        assert not reader.still(slot)


OVERWRITER = """
import os, sys, time
from pathlib import Path
from adclick_edge.line.ring import RingWriter
size = int(sys.argv[2])
with RingWriter(sys.argv[3], 1, size, folder=Path(sys.argv[1])) as ring:
    print(ring.name, flush=True)
    count = 0
    while True:  # until it is killed
        target, token = ring.acquire()
        target[:] = bytes([token.generation // 2 % 251]) * size
        slot = ring.commit(token, size)
        count += 1
        time.sleep(0.002 * (count % 5))
        ring.release(slot)  # without waiting for any verdict
"""


@contextmanager
def overwriter(folder: Path, size: int) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    arguments = [sys.executable, "-c", OVERWRITER, str(folder), str(size), MINE]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, folder / process.stdout.readline().strip()
        finally:
            process.kill()
    remove_leftovers(folder)


def test_a_writer_that_overwrites_what_is_read() -> None:
    """A process that never waits for a verdict: each view is the frame asked for, whole, or refused as reused."""
    size = 4 << 20
    reader = RingReader()
    whole = torn = 0
    codes = set()
    with overwriter(SHM_FOLDER, size) as (_, path), open(path, "rb", buffering=0) as file:
        until = time.monotonic() + 60
        while (whole < 50 or torn < 20) and time.monotonic() < until:
            generation, _ = RECORD.unpack(os.pread(file.fileno(), RECORD.size, record_at(0)))
            slot = slot_of(path.name, generation=max(generation + generation % 2, 2), size_bytes=size)
            try:
                picture = np.frombuffer(reader.view(slot), np.uint8)
            except ProtocolError as error:
                codes.add(error.code)
                torn += "while it was read" in str(error)
                continue
            whole += 1
            assert picture[0] == slot.generation // 2 % 251
            assert picture.min() == picture.max()
    reader.close()
    assert whole >= 50
    assert torn >= 20
    assert codes == {"bad_frame"}


# --- leftovers


def test_what_a_killed_writer_left_is_removed_by_the_next(folder: Path) -> None:
    with overwriter(folder, 4096) as (writer, path):
        with RingWriter("cam", 1, 1, folder=folder):
            assert path.exists()  # its writer lives
        writer.kill()
        writer.wait(20)
        assert path.exists()
        with RingWriter("cam", 1, 1, folder=folder):
            assert not path.exists()


def test_only_leftovers_are_removed(folder: Path) -> None:
    def put(name: str, data: bytes) -> Path:
        path = folder / name
        path.write_bytes(data)
        return path

    dead = [put("adclick-dead-1", MAGIC + bytes(100)), put("adclick-dead-2", b"")]
    kept = [put("adclick-notes", b"of mine"), put("other", b"")]
    (folder / "adclick-link").symlink_to(kept[1])
    os.mkfifo(folder / "adclick-pipe")
    (folder / "adclick-folder").mkdir()
    with RingWriter("cam", 1, 1, folder=folder) as living:
        assert not any(path.exists() for path in dead)
        assert all(path.exists() for path in kept)
        assert {p.name for p in folder.iterdir()} == {
            "adclick-notes", "other", "adclick-link", "adclick-pipe", "adclick-folder", living.name
        }  # fmt: skip
        assert remove_leftovers(folder) == []
    assert remove_leftovers(folder / "none") == []


# --- files that are not what they should be


def ring_file(folder: Path, data: bytes, name: str = "adclick-hostile") -> str:
    path = folder / name
    path.write_bytes(data)
    path.chmod(0o600)
    return name


def valid_file(slots: int = 2, payload: bytes = b"data") -> bytes:
    geometry = Geometry.for_payloads(slots, len(payload), 1)
    data = bytearray(geometry.file_bytes)
    data[: HEADER.size] = geometry.header()
    RECORD.pack_into(data, record_at(0), 2, len(payload))
    data[geometry.data_at(0) : geometry.data_at(0) + len(payload)] = payload
    return bytes(data)


def test_the_valid_file_is_read(folder: Path, reader: RingReader) -> None:
    assert bytes(reader.view(slot_of(ring_file(folder, valid_file())))) == b"data"


@pytest.mark.parametrize("kept_bytes", [0, 1, 63, 64, 79, 80, 4095, 4096, 8192, 12287])
def test_truncated_files(folder: Path, reader: RingReader, kept_bytes: int) -> None:
    data = valid_file()
    assert len(data) == 12288
    with refused("bad_message", "ring adclick-hostile: "):
        reader.view(slot_of(ring_file(folder, data[:kept_bytes])))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("magic", b"ADCLRANG"),
        ("version", 2),
        ("slots", 0),
        ("slots", 3),
        ("slots", 4097),
        ("slots", (1 << 32) - 1),
        ("data_offset", 0),
        ("data_offset", 191),
        ("data_offset", 4097),
        ("data_offset", (1 << 64) - 1),
        ("slot_bytes", 0),
        ("slot_bytes", 4097),
        ("slot_bytes", (1 << 63) + 1),
        ("slot_bytes", (1 << 64) - 1),
    ],
)
def test_headers_that_cannot_be(folder: Path, reader: RingReader, field: str, value: int | bytes) -> None:
    names = ("magic", "version", "slots", "data_offset", "slot_bytes", "writer_pid")
    fields = dict(zip(names, HEADER.unpack(valid_file()[:64]), strict=True))
    packed = HEADER.pack(*(fields | {field: value}).values())
    with refused("bad_message", "ring adclick-hostile: "):
        reader.view(slot_of(ring_file(folder, packed + valid_file()[64:])))


@given(data=st.binary(max_size=400), keep=st.integers(0, 200), slot=st.integers(0, 4095), size=st.integers(0, 1 << 62))
@settings(deadline=None, max_examples=200)
def test_random_files(tmp_path_factory: pytest.TempPathFactory, data: bytes, keep: int, slot: int, size: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    reader = RingReader(folder=folder)
    try:
        name = ring_file(folder, valid_file()[:keep] + data)
        assert not reader.still(slot_of(name, slot=slot, size_bytes=size, generation=4))
        with pytest.raises(ProtocolError):
            reader.view(slot_of(name, slot=slot, size_bytes=size, generation=4))
    finally:
        reader.close()


@given(at=st.integers(0, 12287), bits=st.integers(1, 255))
@settings(deadline=None, max_examples=200)
def test_a_byte_changed_anywhere(tmp_path_factory: pytest.TempPathFactory, at: int, bits: int) -> None:
    folder = tmp_path_factory.getbasetemp()
    reader = RingReader(folder=folder, max_payload_bytes=1000)
    data = bytearray(valid_file())
    data[at] ^= bits
    slot = slot_of(ring_file(folder, bytes(data)))
    try:
        if at >= 80 or 32 <= at < 64:  # a pixel, the other slot's record, the writer's number, reserved
            assert len(reader.view(slot)) == 4
        elif 12 <= at < 32:  # other sizes, which may still fit the file
            with suppress(ProtocolError):
                assert len(reader.view(slot)) == 4
        else:
            with pytest.raises(ProtocolError):
                reader.view(slot)
    finally:
        reader.close()


def test_claims_of_giant_sizes_take_no_memory(folder: Path, reader: RingReader) -> None:
    name = ring_file(folder, valid_file())
    with refused("too_large", "over the limit of 160000000"):
        reader.view(slot_of(name, size_bytes=1 << 40))
    slots, slot_bytes = 4, 1 << 30
    sparse = Geometry.for_payloads(slots, slot_bytes, 1)
    name = ring_file(folder, sparse.header() + RECORD.pack(2, slot_bytes), "adclick-sparse")
    os.truncate(folder / name, sparse.file_bytes)
    with refused("too_large", "over the limit"):
        reader.view(slot_of(name, size_bytes=slot_bytes))
    with refused("bad_message", "holds 1073741824 bytes, 100 are asked for"):
        reader.view(slot_of(name, size_bytes=100))


@pytest.mark.parametrize(
    ("slot", "message"),
    [
        (slot_of("adclick-hostile", slot=2), "there are 2 slots"),
        (slot_of("adclick-hostile", size_bytes=4097), "of 4096 bytes"),
        (slot_of("adclick-hostile", size_bytes=5), "holds 4 bytes, 5 are asked for"),
        (slot_of("adclick-hostile", generation=0), "no whole frame"),
        (slot_of("adclick-hostile", generation=3), "no whole frame"),
        (slot_of("adclick-none"), "No such file"),
        (slot_of("../adclick-hostile"), "no ring's name"),
        (slot_of("adclick-hostile/../adclick-hostile"), "no ring's name"),
        (slot_of("adclick-hostile\n"), "no ring's name"),
        (slot_of("adclick-a\0b"), "no ring's name"),
    ],
)
def test_slots_that_cannot_be(folder: Path, reader: RingReader, slot: RingSlot, message: str) -> None:
    ring_file(folder, valid_file())
    with refused("bad_message", message):
        reader.view(slot)


def test_slots_of_another_generation_are_reused_ones(folder: Path, reader: RingReader) -> None:
    ring_file(folder, valid_file())
    with refused("bad_frame", r"was reused \(generation 4, now 2\) before it was read"):
        reader.view(slot_of("adclick-hostile", generation=4))


def make_link(path: Path) -> None:
    path.with_name("target").write_bytes(valid_file())
    path.symlink_to("target")


def make_open_to_all(path: Path) -> None:
    path.write_bytes(valid_file())
    path.chmod(0o666)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_link, "cannot be opened"),
        (os.mkfifo, "not a plain file"),
        (Path.mkdir, "not a plain file"),
        (make_open_to_all, "mode 666"),
    ],
)
def test_what_is_no_plain_file_of_ours(
    folder: Path, reader: RingReader, make: Callable[[Path], None], message: str
) -> None:
    make(folder / "adclick-odd")
    with refused("bad_message", message):
        reader.view(slot_of("adclick-odd"))
    assert not reader.still(slot_of("adclick-odd"))


def test_files_of_other_users(folder: Path, reader: RingReader, monkeypatch: pytest.MonkeyPatch) -> None:
    name = ring_file(folder, valid_file())
    owner = os.stat(folder / name).st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:
        assert bytes(reader.view(slot_of(name))) == b"data"  # root's are taken by everybody
        os.chown(folder / name, 4242, -1)
        owner = 4242
        reader.close()
    with refused("bad_message", f"belongs to user {owner}"):
        reader.view(slot_of(name))


def test_truncated_under_the_reader(folder: Path, reader: RingReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mapping this would be a bus error."""
    with RingWriter("cam", 1, 1 << 20, folder=folder) as ring:
        slot = ring.write(b"x" * (1 << 20))
        copy = os.preadv

        def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
            count = copy(fd, [buffers[0][:1000]], offset)
            os.truncate(folder / ring.name, 1)
            return count

        monkeypatch.setattr(ring_reader.os, "preadv", preadv)
        with refused("bad_message", "truncated"):
            reader.view(slot)
        with refused("bad_message", "header ends after 1 bytes"):
            reader.view(slot)


# --- the reader's files


def test_a_name_that_comes_back_is_another_ring(folder: Path, reader: RingReader) -> None:
    """A client that uses fixed names, restarted: generation 2 of its new file must not give the old picture."""
    name = ring_file(folder, valid_file(payload=b"old."))
    assert bytes(reader.view(slot_of(name))) == b"old."
    (folder / name).unlink()
    with refused("bad_message", "No such file"):
        reader.view(slot_of(name))
    ring_file(folder, valid_file(payload=b"new."))
    assert bytes(reader.view(slot_of(name))) == b"new."
    aside = ring_file(folder, valid_file(payload=b"3rd."), "aside")
    (folder / aside).rename(folder / name)
    assert bytes(reader.view(slot_of(name))) == b"3rd."


def test_files_are_closed(folder: Path) -> None:
    reader = RingReader(max_open=3, folder=folder)
    names = [ring_file(folder, valid_file(), f"adclick-{i}") for i in range(5)]
    for name in names:
        reader.view(slot_of(name))
    assert reader.open_files == 3
    for name in names[2:]:
        (folder / name).unlink()
    reader.view(slot_of(names[0]))
    assert reader.open_files == 1
    reader.close()
    assert reader.open_files == 0


def test_a_file_in_use_is_closed_when_it_is_done_with(
    folder: Path, reader: RingReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = ring_file(folder, valid_file())
    copy = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        reader.close()  # as another thread may, at a stop
        return copy(fd, buffers, offset)

    monkeypatch.setattr(ring_reader.os, "preadv", preadv)
    assert bytes(reader.view(slot_of(name))) == b"data"


def test_the_layout_is_as_documented() -> None:
    """What a client in another language writes by docs/protocol.md."""
    assert struct.unpack("<8sIIQQQ24s", Geometry(3, 8192, 4096, 77).header()) == (
        b"ADCLRING", 1, 3, 4096, 8192, 77, bytes(24)
    )  # fmt: skip
    assert [record_at(slot) for slot in range(3)] == [64, 128, 192]
    assert Geometry(3, 8192, 4096, 77).data_at(2) == 4096 + 2 * 8192


@pytest.mark.parametrize("frame_format", ["rgb8", "bgr8", "mono8"])
def test_a_large_frame_read_piece_by_piece_is_the_same_picture(tmp_path: Path, frame_format: PixelFormat) -> None:
    channels = 1 if frame_format == "mono8" else 3
    pixels = np.random.default_rng(5).integers(0, 256, (1082, 800, channels), np.uint8)
    with RingWriter("cam", 2, pixels.nbytes, folder=tmp_path) as writer:
        slot = writer.write(pixels.tobytes())
        header = FrameHeader(seq=0, format=frame_format, width=800, height=1082, ring=slot)
        reader = RingReader(folder=tmp_path)
        part_bytes = halving_part_bytes(header, (64, 64))
        assert part_bytes is not None
        assert part_bytes < slot.size_bytes
        found = to_input_from_parts(header, reader.parts(slot, part_bytes), (64, 64))
        np.testing.assert_array_equal(found, to_input(header, reader.view(slot), (64, 64)))
        assert halving_part_bytes(header, (256, 256)) is None  # too near its size to be halved
        # Used again in the middle: said at the end, so that it is never judged.
        parts = reader.parts(slot, part_bytes)
        next(parts)
        writer.release(slot)
        while writer.write(pixels.tobytes()).slot != slot.slot:
            pass
        with pytest.raises(ProtocolError, match="while it was read") as raised:
            list(parts)
        assert raised.value.code == "bad_frame"
        reader.close()
