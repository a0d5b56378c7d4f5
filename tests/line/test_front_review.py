"""The front when cameras, callbacks or the machine misbehave: nothing of it may end the front or unbalance the books."""

import threading
import time
from pathlib import Path

import msgspec
import pytest
from front_line import FrontLine, HandCamera, ok

from adclick_edge.errors import LineError
from adclick_edge.line import front
from adclick_edge.line.books import MOST_MISSED, Books
from adclick_edge.line.config import Camera, Line
from adclick_edge.line.front import Answered
from adclick_edge.line.job import Job
from adclick_edge.line.line_sockets import bind_sockets
from adclick_edge.line.protocol import Bye, ErrorMessage, Heartbeat, Hello, VerdictMessage, Welcome
from adclick_edge.runtime.decision import FrameVerdict


def test_absurd_numbers_of_a_camera_leave_counts_that_can_be_sent(tmp_path: Path) -> None:
    most = (1 << 63) - 1
    books = Books({"cam": "p"})
    for session in range(3):
        books.hello("cam", session, most, most)
    assert books.cameras()["cam"].missed == MOST_MISSED
    with FrontLine(tmp_path) as line, HandCamera(line) as camera:
        camera.hello()
        camera.frame(most)
        assert camera.hear(VerdictMessage).seq == most
        assert line.books.cameras()["cam"].missed == MOST_MISSED


def test_a_connection_that_turns_into_another_camera_leaves_the_first(tmp_path: Path) -> None:
    cameras = {name: Camera(product="p") for name in ("cam", "other")}
    with FrontLine(tmp_path, cameras) as line, HandCamera(line) as camera:
        camera.hello()
        camera.say(Hello(camera="other", session=5, next_seq=0))
        camera.hear(Welcome)
        assert {name: t.connected for name, t in line.books.cameras().items()} == {"cam": False, "other": True}


@pytest.mark.parametrize("other", [("cam", 6), ("other", 5)])
def test_saying_hello_again_brings_no_credits(tmp_path: Path, other: tuple[str, int]) -> None:
    """Frames under way stay so when a camera says hello as somebody else and comes back."""
    go = threading.Event()

    def gated(job: Job) -> FrameVerdict:
        go.wait(20)
        return ok(job)

    cameras = {name: Camera(product="p", queue=2, overload="block", deadline_ms=60_000) for name in ("cam", "other")}
    with FrontLine(tmp_path, cameras, engine=gated) as line, HandCamera(line) as camera:
        camera.hello()
        camera.frame(0)
        camera.frame(1)
        camera.say(Hello(camera=other[0], session=other[1], next_seq=0))
        camera.hear(Welcome)
        camera.hello(next_seq=2)
        camera.frame(2)
        error = camera.hear(ErrorMessage)
        go.set()
        assert (error.code, error.seq) == ("no_credit", 2)
        assert set(camera.verdicts(3)) == {0, 1, 2}
        line.until(lambda: [s.under_way for s in line.front._sessions.all()] == [0])
        assert line.books.cameras()["cam"].balanced()


def test_a_pause_of_the_daemon_is_not_the_cameras_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A suspended process or a host without time for it: what came meanwhile lies in the socket."""
    monkeypatch.setattr(front, "MESSAGES_PER_TURN", 1)  # as if there were more cameras than are read in one turn
    cameras = {name: Camera(product="p") for name in ("cam", "other")}
    line = FrontLine(tmp_path, cameras, line=Line(heartbeat_ms=50))
    pause, paused = threading.Event(), threading.Event()

    def each_second() -> dict[str, bytes]:
        if pause.is_set() and not paused.is_set():
            time.sleep(0.5)
            paused.set()
        return {}

    line.front._each_second = each_second
    with line, HandCamera(line) as camera, HandCamera(line, "other") as other:
        camera.hello()
        other.hello()
        pause.set()
        for _ in range(500):
            camera.say(Heartbeat(sent_ns=0))
            other.say(Heartbeat(sent_ns=0))
            if paused.wait(0.01):
                break
        for each in (camera, other):
            each.frame(0)
            assert each.hear(VerdictMessage).verdict == "ok"
        assert line.books.strangers() == {}


def test_callbacks_that_raise_do_not_end_the_front(tmp_path: Path) -> None:
    line = FrontLine(tmp_path)

    def each_second() -> dict[str, bytes]:
        raise OverflowError("a number that is too large")

    def answered(_: Answered) -> None:
        raise RuntimeError("a fault of the counting")

    line.front._each_second, line.front._answered = each_second, answered
    with line, HandCamera(line) as camera:
        camera.hello()
        for seq in range(3):
            camera.frame(seq)
            assert camera.hear(VerdictMessage).verdict == "ok"
        assert line.front.is_alive()
        assert line.books.cameras()["cam"].balanced()


def test_answered_frames_with_far_deadlines_are_let_go_of(tmp_path: Path) -> None:
    go = threading.Event()

    def gated(job: Job) -> FrameVerdict:
        go.wait(20)
        return ok(job)

    cameras = {
        "near": Camera(product="p", deadline_ms=60_000),
        "far": Camera(product="p", deadline_ms=3_600_000, queue=2, overload="drop_oldest"),
    }
    with FrontLine(tmp_path, cameras, engine=gated) as line, HandCamera(line, "near") as near:
        near.hello()
        near.frame(0)
        with HandCamera(line, "far") as far:
            far.hello()
            for seq in range(500):
                far.frame(seq)
                if seq > 1:
                    far.hear(VerdictMessage)
            assert len(line.front._due) < 100
        go.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_front_that_ends_by_a_fault_answers_what_it_took(tmp_path: Path) -> None:
    go, fault, held = threading.Event(), threading.Event(), threading.Event()

    def gated(job: Job) -> FrameVerdict:
        go.wait(20)
        return ok(job)

    line = FrontLine(tmp_path, {"cam": Camera(product="p", queue=8, deadline_ms=60_000)}, engine=gated)
    expire = line.front._expire

    def faulty() -> None:
        expire()
        if fault.is_set():
            held.wait(20)
            raise RuntimeError("a fault")

    line.front._expire = faulty  # type: ignore[method-assign]
    with line, HandCamera(line) as camera:
        camera.hello()
        camera.frame(0)
        line.until(lambda: line.books.cameras()["cam"].received == 1)
        fault.set()
        for seq in range(1, 4):
            camera.frame(seq)
        time.sleep(0.1)  # they lie in the socket
        held.set()
        assert {v.reason for v in camera.verdicts(4).values()} == {"shutdown"}
        camera.hear(Bye)
        go.set()
        assert line.books.cameras()["cam"].pending == 0
        assert line.books.cameras()["cam"].balanced()


def test_an_endpoint_that_another_daemon_serves_is_not_taken_from_it(tmp_path: Path) -> None:
    """ZeroMQ would unlink the other one's socket and bind in its place, and nobody would notice."""
    with FrontLine(tmp_path) as line:
        with pytest.raises(LineError, match="another daemon"):
            bind_sockets(line.context, line.config, None)
        with HandCamera(line) as camera:
            camera.hello()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with FrontLine(tmp_path) as line:
        bind = (f"ipc://{tmp_path}/file/sub/line.ipc",)
        config = msgspec.structs.replace(line.config, line=msgspec.structs.replace(line.config.line, bind=bind))
        with pytest.raises(LineError, match=r"file/sub/line\.ipc"):
            bind_sockets(line.context, config, None)
