"""What cameras get from the daemon's front, over real sockets, whatever they or the engine do."""

import random
import threading
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest
import zmq
from front_line import PIXELS, FrontLine, HandCamera, ok

from adclick_edge.line.config import Camera, Line
from adclick_edge.line.job import Job
from adclick_edge.line.protocol import (
    Bye,
    ErrorMessage,
    FrameHeader,
    Heartbeat,
    Hello,
    RingSlot,
    VerdictMessage,
    Welcome,
    decode_daemon_message,
    encode,
)
from adclick_edge.runtime.decision import FrameVerdict


def test_a_frame_is_answered_with_its_verdict(tmp_path: Path) -> None:
    with FrontLine(tmp_path) as line, HandCamera(line) as camera:
        welcome = camera.hello()
        assert (welcome.daemon, welcome.deadline_ms, welcome.heartbeat_ms) == (77, 500, 100)
        assert welcome.credits == 8
        camera.frame(0, part="A-1")
        verdict = camera.hear(VerdictMessage)
        assert (verdict.seq, verdict.verdict, verdict.part, verdict.bundle_version) == (0, "ok", "A-1", "v1")
        assert verdict.stage_ms["total"] >= verdict.stage_ms["waiting"] >= 0
        line.until(lambda: len(line.answers) == 1)
        assert line.answers[0].in_time
        assert line.books.cameras()["cam"].balanced()


def test_a_stuck_engine_is_answered_for_by_the_deadline(tmp_path: Path) -> None:
    release = threading.Event()

    def stuck(job: Job) -> FrameVerdict:
        release.wait(20)
        return ok(job)

    with FrontLine(tmp_path, engine=stuck) as line, HandCamera(line) as camera:
        camera.hello()
        began = time.monotonic()
        camera.frame(0, deadline_ms=150)
        camera.frame(1, deadline_ms=150)
        verdicts = camera.verdicts(2)
        assert time.monotonic() - began < 2
        assert {(v.verdict, v.reason) for v in verdicts.values()} == {("not_inspected", "deadline")}
        release.set()
        line.until(lambda: line.books.cameras()["cam"].late_results >= 1)
        tally = line.books.cameras()["cam"]
        assert tally.not_inspected == {"deadline": 2}
        assert tally.balanced()


@pytest.mark.parametrize(("policy", "credits"), [("reject_newest", 6), ("drop_oldest", 6), ("block", 2)])
def test_overload_by_policy(tmp_path: Path, policy: str, credits: int) -> None:
    go, held = threading.Event(), threading.Event()

    def gated(job: Job) -> FrameVerdict:
        held.set()
        go.wait(20)
        return ok(job)

    cameras = {"cam": Camera(product="p", queue=2, overload=policy, deadline_ms=60_000)}  # type: ignore[arg-type]
    with FrontLine(tmp_path, cameras, engine=gated) as line, HandCamera(line) as camera:
        assert camera.hello().credits == credits
        camera.frame(0)
        assert held.wait(10)
        if policy == "block":
            camera.frame(1)
            camera.frame(2)  # one more than the credits: an impolite camera
            error = camera.hear(ErrorMessage)
            assert (error.code, error.seq) == ("no_credit", 2)
            turned_away = {camera.hear(VerdictMessage).seq}
        else:
            for seq in range(1, 5):
                camera.frame(seq)
            turned_away = set(camera.verdicts(2))
        go.set()
        left = camera.verdicts(2 if policy == "block" else 3)
        if policy == "drop_oldest":  # which ones, depends on what was decoded by then
            assert turned_away <= {1, 2, 3}
        else:
            assert turned_away == {"reject_newest": {3, 4}, "block": {2}}[policy]
        assert {v.verdict for v in left.values()} == {"ok"}
        line.until(lambda: line.books.cameras()["cam"].pending == 0)
        tally = line.books.cameras()["cam"]
        assert tally.not_inspected == {"overload": len(turned_away)}
        assert tally.balanced()


def test_frames_before_a_hello_are_refused(tmp_path: Path) -> None:
    with FrontLine(tmp_path) as line, HandCamera(line) as camera:
        camera.frame(0)
        assert camera.hear(ErrorMessage).code == "unknown_session"
        camera.say(Heartbeat(sent_ns=1))
        assert camera.hear(ErrorMessage).code == "unknown_session"
        camera.hello()
        camera.frame(0)
        camera.hear(VerdictMessage)
        assert line.books.strangers() == {"unknown_session": 2}


def test_a_camera_that_line_toml_does_not_name(tmp_path: Path) -> None:
    with FrontLine(tmp_path) as line, HandCamera(line, "other") as camera:
        camera.say(Hello(camera="other", session=1, next_seq=0))
        error = camera.hear(ErrorMessage)
        assert error.code == "unknown_camera"
        assert "[cameras.other]" in error.message


def test_a_number_comes_once(tmp_path: Path) -> None:
    with FrontLine(tmp_path) as line, HandCamera(line) as camera:
        camera.hello()
        camera.frame(3)
        assert camera.hear(VerdictMessage).seq == 3
        for seq in (3, 2):
            camera.frame(seq)
            error = camera.hear(ErrorMessage)
            assert (error.code, error.seq) == ("bad_sequence", seq)
        tally = line.books.cameras()["cam"]
        assert (tally.received, tally.missed, tally.bad_messages) == (1, 3, 2)


def test_what_the_header_says_may_be_wrong(tmp_path: Path) -> None:
    slot = RingSlot(name="adclick-x", slot=0, generation=2, size_bytes=64)
    with FrontLine(tmp_path) as line, HandCamera(line) as camera:
        camera.hello()
        headers = [
            (FrameHeader(seq=0, format="mono8", width=8, height=8), None),
            (FrameHeader(seq=1, format="mono8", width=8, height=8, code="B12"), PIXELS),
            (FrameHeader(seq=2, format="mono8", width=8, height=8, ring=slot), PIXELS),
            (FrameHeader(seq=3, format="mono8", width=8, height=8, ring=slot), None),
        ]
        for header, payload in headers:
            camera.say(header, payload)
            assert camera.hear(ErrorMessage).code == "bad_frame"
            assert camera.hear(VerdictMessage).reason == "bad_frame"
        assert line.books.cameras()["cam"].not_inspected == {"bad_frame": 4}


def test_a_code_chooses_the_product(tmp_path: Path) -> None:
    with FrontLine(tmp_path, codes={"B12": "q"}) as line, HandCamera(line) as camera:
        camera.hello()
        camera.frame(0, code="B12")
        assert camera.hear(VerdictMessage).product == "q"


def test_a_second_connection_under_one_name_takes_over(tmp_path: Path) -> None:
    go = threading.Event()

    def gated(job: Job) -> FrameVerdict:
        go.wait(20)
        return ok(job)

    with FrontLine(tmp_path, engine=gated) as line, HandCamera(line) as old, HandCamera(line, session=6) as new:
        old.hello()
        old.frame(0)
        line.until(lambda: line.books.cameras()["cam"].pending == 1)
        new.hello()
        assert old.hear(ErrorMessage).code == "replaced"
        old.frame(1)
        assert old.hear(ErrorMessage).code == "unknown_session"
        new.frame(0)
        go.set()
        assert new.hear(VerdictMessage).seq == 0
        line.until(lambda: line.books.cameras()["cam"].pending == 0)
        tally = line.books.cameras()["cam"]
        # The old connection's frame was judged and counted; its answer reached nobody.
        assert (tally.received, tally.ok, tally.undelivered) == (2, 2, 1)


def test_a_silent_camera_is_gone_and_may_come_back(tmp_path: Path) -> None:
    with FrontLine(tmp_path, line=Line(heartbeat_ms=50)) as line, HandCamera(line) as camera:
        camera.hello()
        assert line.books.cameras()["cam"].connected
        line.until(lambda: not line.books.cameras()["cam"].connected)
        camera.frame(0)
        assert camera.hear(ErrorMessage).code == "unknown_session"
        camera.hello(next_seq=1, unanswered=1)
        assert line.books.cameras()["cam"].connected
        assert line.books.cameras()["cam"].missed == 1


def test_heartbeats_come_while_nothing_else_does(tmp_path: Path) -> None:
    with FrontLine(tmp_path, line=Line(heartbeat_ms=50)) as line, HandCamera(line) as camera:
        camera.hello()
        beats = 0
        end = time.monotonic() + 10
        while beats < 3 and time.monotonic() < end:
            camera.say(Heartbeat(sent_ns=0))
            beats += isinstance(decode_daemon_message(camera.socket.recv()), Heartbeat)
        assert beats == 3


def test_a_camera_that_says_bye(tmp_path: Path) -> None:
    with FrontLine(tmp_path) as line, HandCamera(line) as camera:
        camera.hello()
        camera.say(Bye(reason="end of shift"))
        line.until(lambda: not line.books.cameras()["cam"].connected)


def test_a_stop_answers_everything_then_says_bye(tmp_path: Path) -> None:
    go = threading.Event()

    def gated(job: Job) -> FrameVerdict:
        go.wait(20)
        return ok(job)

    cameras = {"cam": Camera(product="p", queue=8, deadline_ms=60_000)}
    with FrontLine(tmp_path, cameras, engine=gated) as line, HandCamera(line) as camera:
        camera.hello()
        for seq in range(4):
            camera.frame(seq)
        line.until(lambda: line.books.cameras()["cam"].received == 4)
        assert not line.front.drain(0.05)
        camera.frame(4)  # too late
        assert camera.verdicts(1)[4].reason == "shutdown"
        line.front.stop()
        go.set()
        rest = camera.verdicts(4)
        assert {(v.verdict, v.reason) for v in rest.values()} == {("not_inspected", "shutdown")}
        assert camera.hear(Bye).reason
        tally = line.books.cameras()["cam"]
        assert tally.not_inspected == {"shutdown": 5}
        assert tally.balanced()


def test_a_drain_ends_when_everything_taken_is_answered(tmp_path: Path) -> None:
    def slow(job: Job) -> FrameVerdict:
        time.sleep(0.05)
        return ok(job)

    with FrontLine(tmp_path, engine=slow) as line, HandCamera(line) as camera:
        camera.hello()
        for seq in range(4):
            camera.frame(seq, deadline_ms=20_000)
        line.until(lambda: line.books.cameras()["cam"].received == 4)
        assert line.front.drain(10)
        assert {v.verdict for v in camera.verdicts(4).values()} == {"ok"}


def test_ten_thousand_fuzzed_messages(tmp_path: Path) -> None:
    """The daemon answers what it can, counts the rest, and judges the next frame as if nothing had been."""
    rng = random.Random(7)
    good = [
        encode(Hello(camera="fuzz", session=9, next_seq=0)),
        encode(FrameHeader(seq=5, format="rgb8", width=60_000, height=60_000)),
        encode(Heartbeat(sent_ns=3)),
        encode(Bye()),
    ]

    def fuzzed() -> list[bytes]:
        parts = []
        for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 5])):
            kind = rng.random()
            if kind < 0.4:
                data = bytearray(rng.choice(good))
                for _ in range(rng.randrange(4)):
                    data[rng.randrange(len(data))] = rng.randrange(256)
                parts.append(bytes(data))
            elif kind < 0.6:
                parts.append(bytes([rng.choice([0x91, 0x81, 0xDF, 0xDD, 0xC9])]) * rng.randrange(1, 5000))
            else:
                parts.append(rng.randbytes(rng.choice([0, 1, 7, 60, 5000])))
        return parts

    cameras = {name: Camera(product="p") for name in ("cam", "fuzz")}
    with FrontLine(tmp_path, cameras) as line, HandCamera(line) as camera:
        stranger: zmq.Socket[bytes] = line.context.socket(zmq.DEALER)
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.setsockopt(zmq.SNDTIMEO, 20_000)
        stranger.connect(line.endpoint)
        for _ in range(10_000):
            stranger.send_multipart(fuzzed())
            while stranger.poll(0):
                decode_daemon_message(stranger.recv())
        stranger.close()
        camera.session = 11
        camera.hello()
        camera.frame(0)
        assert camera.verdicts(1)[0].verdict == "ok"
        assert line.front.is_alive()
        line.until(lambda: line.books.cameras()["fuzz"].bad_messages + sum(line.books.strangers().values()) > 5000)
        line.until(lambda: all(tally.pending == 0 for tally in line.books.cameras().values()))
        assert all(tally.balanced() for tally in line.books.cameras().values())


def test_a_monitor_that_never_reads_costs_nothing(tmp_path: Path) -> None:
    with FrontLine(tmp_path) as line, HandCamera(line) as camera:
        deaf, reader = line.context.socket(zmq.SUB), line.context.socket(zmq.SUB)
        for socket in (deaf, reader):
            socket.setsockopt(zmq.LINGER, 0)
            socket.setsockopt(zmq.RCVHWM, 5)
            socket.setsockopt(zmq.RCVTIMEO, 10_000)
            socket.setsockopt(zmq.SUBSCRIBE, b"")
            socket.connect(line.monitor)
        reader.recv_multipart()  # it is heard
        camera.hello()
        seen: Counter[bytes] = Counter()
        for seq in range(3000):
            camera.frame(seq)
            assert camera.hear(VerdictMessage).seq == seq
            while reader.poll(0):
                topic, data = reader.recv_multipart()
                seen[topic] += 1
                if topic == b"verdict.cam":
                    assert msgspec.json.decode(data)["camera"] == "cam"
        assert seen[b"verdict.cam"] > 2000
        deaf.close()
        reader.close()


def test_a_camera_that_never_reads_its_verdicts_holds_nobody_up(tmp_path: Path) -> None:
    cameras = {name: Camera(product="p", queue=64, deadline_ms=60_000) for name in ("deaf", "cam")}
    with FrontLine(tmp_path, cameras) as line, HandCamera(line, "deaf") as deaf, HandCamera(line) as camera:
        deaf.socket.setsockopt(zmq.RCVHWM, 1)
        deaf.hello()
        camera.hello()
        for seq in range(2000):
            deaf.frame(seq)
            if seq % 100 == 0:
                camera.frame(seq)
                assert camera.verdicts(1)[seq].verdict == "ok"
        line.until(lambda: line.books.cameras()["deaf"].pending == 0, 30)
        assert line.books.cameras()["deaf"].balanced()


def test_the_welcome_says_whether_the_clock_is_shared(tmp_path: Path) -> None:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with FrontLine(tmp_path) as line, HandCamera(line) as camera:
        camera.say(Hello(camera="cam", session=5, next_seq=0, boot_id=boot))
        assert camera.hear(Welcome).local
        old = time.monotonic_ns() - 400_000_000
        camera.say(FrameHeader(seq=0, format="mono8", width=8, height=8, sent_ns=old, deadline_ms=300), PIXELS)
        verdict = camera.hear(VerdictMessage)
        assert verdict.reason == "deadline"
        assert verdict.stage_ms["total"] >= 400
