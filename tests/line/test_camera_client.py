import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_daemon import FakeDaemon, ok

from adclick_edge.errors import LineError, UsageError
from adclick_edge.line import camera_session
from adclick_edge.line.camera_client import CameraClient, CameraVerdict
from adclick_edge.line.curve import CameraKeys, allow, new_keys
from adclick_edge.line.protocol import Credit, ErrorMessage, FrameHeader, Region, VerdictMessage

SMALL = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
PATIENCE_S = 10.0


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    prefixes = ("camera-", "verdicts-", "ring-", "fake-daemon")
    until(lambda: not [t for t in threading.enumerate() if t.name.startswith(prefixes)])
    assert not [name for name in os.listdir("/dev/shm") if name.startswith("adclick-testcam")]


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/line.ipc"


@pytest.fixture
def daemon(endpoint: str) -> Iterator[FakeDaemon]:
    with FakeDaemon(endpoint) as daemon:
        yield daemon


@pytest.fixture
def connect(endpoint: str) -> Iterator[Callable[..., CameraClient]]:
    made: list[CameraClient] = []

    def make(*, connected: bool = True, **options: object) -> CameraClient:
        client = CameraClient(endpoint, "testcam", **options)  # type: ignore[arg-type]
        made.append(client)
        assert not connected or client.wait_connected(PATIENCE_S)
        return client

    yield make
    for client in made:
        client.close()
        assert client.counts.balanced
        assert client.counts.pending == 0


Connect = Callable[..., CameraClient]


def take(client: CameraClient, number: int = 1) -> list[CameraVerdict]:
    found = [client.verdict(PATIENCE_S) for _ in range(number)]
    assert None not in found
    assert client.verdict(0) is None
    return found  # type: ignore[return-value]


def test_a_frame_goes_there_and_its_verdict_comes_back(daemon: FakeDaemon, connect: Connect) -> None:
    def ng(header: FrameHeader, _: bytes) -> VerdictMessage:
        return VerdictMessage(
            seq=header.seq,
            verdict="ng",
            score=3.0,
            lower=1.0,
            upper=2.0,
            product="cap",
            bundle_version="7",
            part=header.part,
            stage_ms={"total": 4.0},
            regions=(Region(left=1, top=2, width=3, height=4, peak=3.0),),
            regions_found=5,
        )

    daemon.answer = ng
    camera = connect(deadline_ms=700)
    assert camera.connection == "connected"
    assert camera.trigger(SMALL, part="A-1", code="C") == 0
    (verdict,) = take(camera)
    assert (verdict.seq, verdict.part, verdict.verdict, verdict.reason, verdict.local) == (0, "A-1", "ng", None, False)
    assert (verdict.score, verdict.thresholds, verdict.product) == (3.0, (1.0, 2.0), "cap")
    assert (verdict.bundle_version, verdict.stage_ms, verdict.regions_found) == ("7", {"total": 4.0}, 5)
    assert verdict.regions[0].left == 1
    assert 0 < verdict.latency_ms < 750
    header = daemon.frames[0]
    assert (header.format, header.width, header.height, header.code) == ("rgb8", 4, 4, "C")
    assert header.deadline_ms == 700
    assert header.sent_ns is not None
    assert daemon.payloads == [SMALL.tobytes()]
    assert daemon.hellos[0].boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert camera.counts.answered == 1
    camera.close()
    assert camera.connection == "closed"
    until(lambda: daemon.byes == 1)


@pytest.mark.parametrize(
    ("format", "frame", "said"),
    [
        (None, np.zeros((3, 5), np.uint8), "mono8"),
        (None, np.zeros((3, 5), np.uint16), "mono16"),
        (None, np.zeros((3, 5, 3), np.uint8), "rgb8"),
        ("bgr8", np.zeros((3, 5, 3), np.uint8), "bgr8"),
        ("bayer_rg8", np.zeros((3, 5), np.uint8), "bayer_rg8"),
    ],
)
def test_formats(daemon: FakeDaemon, connect: Connect, format: str | None, frame: np.ndarray, said: str) -> None:
    camera = connect()
    camera.trigger(frame, format=format, bit_depth=12)  # type: ignore[arg-type]
    take(camera)
    header = daemon.frames[0]
    assert (header.format, header.width, header.height, header.bit_depth) == (said, 5, 3, 12)
    assert len(daemon.payloads[0]) == frame.nbytes


def test_encoded_bytes_go_untouched(daemon: FakeDaemon, connect: Connect) -> None:
    camera = connect()
    camera.trigger_encoded(b"\xff\xd8 whatever", "jpeg", 640, 480)
    take(camera)
    assert daemon.payloads == [b"\xff\xd8 whatever"]
    assert (daemon.frames[0].format, daemon.frames[0].width, daemon.frames[0].height) == ("jpeg", 640, 480)


def test_what_cannot_be_sent_is_an_error_and_no_trigger(daemon: FakeDaemon, connect: Connect) -> None:
    camera = connect()
    for frame, options in [
        (np.zeros((3, 5, 4), np.uint8), {}),
        (np.zeros((3, 5), np.float32), {}),
        (np.zeros((3, 5), np.uint8), {"format": "rgb8"}),
        (np.zeros((3, 5), np.uint8), {"format": "jpeg"}),
        (np.zeros((0, 5), np.uint8), {}),
        ([[1, 2]], {}),
        (SMALL, {"part": "x" * 65}),
        (SMALL, {"code": "x" * 65}),
        (SMALL, {"deadline_ms": 0}),
        (SMALL.astype(np.uint16)[..., 0], {"bit_depth": 7}),
    ]:
        with pytest.raises(UsageError):
            camera.trigger(frame, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="trigger for raw"):
        camera.trigger_encoded(b"x", "rgb8", 1, 1)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="empty"):
        camera.trigger_encoded(b"", "png", 1, 1)
    assert camera.counts.triggers == 0
    camera.trigger(SMALL)
    assert take(camera)[0].verdict == "ok"


@pytest.mark.parametrize(
    "options",
    [{"transport": "pigeon"}, {"queue": 0}, {"deadline_ms": 0}, {"grace_ms": -1}, {"wait_ms": 4e6}],
)
def test_options_are_checked(endpoint: str, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        CameraClient(endpoint, "testcam", **options)  # type: ignore[arg-type]


def test_names_and_endpoints_are_checked(endpoint: str) -> None:
    with pytest.raises(UsageError, match="camera name"):
        CameraClient(endpoint, "no spaces")
    with pytest.raises(LineError, match="cannot connect"):
        CameraClient("carrier-pigeon://x", "testcam")


@pytest.mark.parametrize("transport", ["message", "ring"])
def test_the_callers_buffer_may_be_reused_at_once(daemon: FakeDaemon, connect: Connect, transport: str) -> None:
    daemon.welcome["local"] = True
    camera = connect(transport=transport)
    frame = np.empty((300, 400, 3), np.uint8)
    for shade in range(20):
        frame[:] = shade
        camera.trigger(frame)
        frame[:] = 255
        assert take(camera)[0].verdict == "ok"
    for shade, payload in enumerate(daemon.payloads):
        assert payload == bytes([shade]) * frame.nbytes
    counts = camera.counts
    assert (counts.ring_frames, counts.message_frames) == ((20, 0) if transport == "ring" else (0, 20))


@pytest.mark.parametrize("transport", ["message", "ring"])
def test_a_part_of_a_larger_picture(daemon: FakeDaemon, connect: Connect, transport: str) -> None:
    daemon.welcome["local"] = True
    camera = connect(transport=transport)
    picture = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    region = picture[10:190:2, 30:250]
    camera.trigger(region)
    take(camera)
    assert daemon.payloads[0] == region.tobytes()


def test_without_a_daemon_triggers_are_answered_at_once(connect: Connect) -> None:
    camera = connect(connected=False)
    began = time.monotonic()
    for part in "abc":
        camera.trigger(SMALL, part=part)
    verdicts = take(camera, 3)
    assert time.monotonic() - began < 1
    assert [(v.seq, v.part, v.verdict, v.reason, v.local) for v in verdicts] == [
        (n, part, "not_inspected", "no_connection", True) for n, part in enumerate("abc")
    ]
    assert camera.connection == "connecting"


def test_without_a_credit_too(daemon: FakeDaemon, connect: Connect) -> None:
    daemon.answer = lambda header, payload: None
    daemon.welcome["credits"] = 2
    camera = connect()
    for _ in range(3):
        camera.trigger(SMALL)
    (verdict,) = take(camera)
    assert (verdict.seq, verdict.reason, verdict.local) == (2, "no_credit", True)
    until(lambda: len(daemon.frames) == 2)
    daemon.say(Credit(credits=1))
    ends = time.monotonic() + PATIENCE_S
    while camera.counts.message_frames < 3:
        assert time.monotonic() < ends
        camera.trigger(SMALL)


def test_a_trigger_may_wait_for_a_credit(daemon: FakeDaemon, connect: Connect) -> None:
    daemon.welcome["credits"] = 1
    daemon.answer = lambda header, payload: 0.1
    camera = connect(wait_ms=5000)
    for _ in range(3):
        camera.trigger(SMALL)
    assert [v.verdict for v in take(camera, 3)] == ["ok"] * 3
    daemon.answer = lambda header, payload: None
    camera.trigger(SMALL)
    impatient = connect(connected=False, wait_ms=50)
    began = time.monotonic()
    daemon.greets = False
    until(lambda: len(daemon.hellos) > 1)
    impatient.trigger(SMALL)
    assert time.monotonic() - began >= 0.05


def test_no_answer_by_deadline_and_grace(daemon: FakeDaemon, connect: Connect) -> None:
    daemon.answer = lambda header, payload: None
    camera = connect(deadline_ms=60, grace_ms=40)
    camera.trigger(SMALL, part="x")
    (verdict,) = take(camera)
    assert (verdict.part, verdict.reason, verdict.local) == ("x", "no_answer", True)
    assert 100 <= verdict.latency_ms < 1000


def test_the_daemons_deadline_holds_where_none_is_stated(daemon: FakeDaemon, connect: Connect) -> None:
    daemon.welcome["deadline_ms"] = 30.0
    daemon.answer = lambda header, payload: None
    camera = connect(grace_ms=0)
    camera.trigger(SMALL)
    camera.trigger(SMALL, deadline_ms=90)
    first, second = take(camera, 2)
    assert (first.seq, second.seq) == (0, 1)
    assert 30 <= first.latency_ms < 90 <= second.latency_ms


def test_a_late_verdict_is_dropped_and_counted(daemon: FakeDaemon, connect: Connect) -> None:
    daemon.answer = lambda header, payload: 0.3
    daemon.welcome["credits"] = 1
    camera = connect(deadline_ms=20, grace_ms=20)
    camera.trigger(SMALL)
    assert take(camera)[0].reason == "no_answer"
    until(lambda: camera.counts.late == 1)
    assert camera.verdict(0) is None
    daemon.answer = ok
    camera.trigger(SMALL, deadline_ms=5000)
    assert take(camera)[0].verdict == "ok"  # its credit came back


def test_the_camera_goes_on_after_the_daemon_was_restarted(daemon: FakeDaemon, connect: Connect) -> None:
    camera = connect(deadline_ms=100)
    camera.trigger(SMALL)
    take(camera)
    daemon.answer = lambda header, payload: None
    camera.trigger(SMALL)
    until(lambda: len(daemon.frames) == 2)
    daemon.kill()
    until(lambda: camera.connection == "connecting")
    camera.trigger(SMALL)
    reasons = {v.seq: v.reason for v in take(camera, 2)}
    assert reasons == {1: "no_answer", 2: "no_connection"}
    daemon.answer = ok
    daemon.start()
    began = time.monotonic()
    assert camera.wait_connected(PATIENCE_S)
    assert time.monotonic() - began < 2
    assert camera.trigger(SMALL, deadline_ms=5000) == 3
    assert take(camera)[0].verdict == "ok"
    first, last = daemon.hellos[0], daemon.hellos[-1]
    assert (last.session, last.next_seq, last.unanswered) == (first.session, 3, 2)
    counts = camera.counts
    assert (counts.triggers, counts.answered, counts.reconnects) == (4, 2, 1)
    assert counts.local == {"no_answer": 1, "no_connection": 1}


def test_the_camera_goes_on_after_sigkill(endpoint: str, connect: Connect) -> None:
    command = [sys.executable, str(Path(__file__).with_name("fake_daemon.py")), endpoint]

    def start() -> "subprocess.Popen[str]":
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    camera = connect(connected=False, deadline_ms=200)
    process = start()
    try:
        assert camera.wait_connected(PATIENCE_S)
        killed = threading.Timer(0.3, process.send_signal, [signal.SIGKILL])
        killed.start()
        while camera.connection == "connected":
            camera.trigger(SMALL)
            time.sleep(0.005)
        killed.join()
        process.wait(PATIENCE_S)
        camera.trigger(SMALL)
        process.stdout.close()  # type: ignore[union-attr]
        process = start()
        began = time.monotonic()
        assert camera.wait_connected(PATIENCE_S)
        assert time.monotonic() - began < 2
        camera.trigger(SMALL, deadline_ms=5000)
        assert camera.drain(PATIENCE_S)
        counts = camera.counts
        verdicts = take(camera, counts.triggers)
        assert sorted(v.seq for v in verdicts) == list(range(counts.triggers))
        assert max(verdicts, key=lambda v: v.seq).verdict == "ok"
        assert counts.balanced
        assert counts.local["no_connection"] >= 1
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        process.stdout.close()  # type: ignore[union-attr]


def test_an_orderly_stop_is_noticed_at_once(daemon: FakeDaemon, connect: Connect) -> None:
    daemon.welcome["heartbeat_ms"] = 5000.0
    camera = connect()
    daemon.stop()
    until(lambda: camera.connection == "connecting")
    assert camera.last_error is not None
    daemon.start()
    assert camera.wait_connected(PATIENCE_S)


def test_a_silent_daemon_is_left(daemon: FakeDaemon, connect: Connect) -> None:
    daemon.welcome["heartbeat_ms"] = 30.0
    daemon.heartbeats = False
    camera = connect()
    until(lambda: camera.counts.reconnects >= 2)
    daemon.heartbeats = True
    assert daemon.camera_beats > 0


def test_heartbeats_keep_a_quiet_connection(daemon: FakeDaemon, connect: Connect) -> None:
    daemon.welcome["heartbeat_ms"] = 100.0
    camera = connect()
    until(lambda: daemon.camera_beats >= 6)
    assert camera.counts.reconnects == 0
    assert len(daemon.hellos) == 1


def test_a_daemon_that_does_not_read_delays_nobody(daemon: FakeDaemon, connect: Connect) -> None:
    camera = connect(deadline_ms=100)
    daemon.go_deaf()
    began = time.monotonic()
    for _ in range(6):
        camera.trigger(SMALL)
    assert time.monotonic() - began < 0.5
    reasons = sorted(str(v.reason) for v in take(camera, 6))
    assert reasons == ["no_answer"] * 4 + ["no_credit"] * 2


def test_a_daemon_that_forgot_the_session_hears_hello_again(daemon: FakeDaemon, connect: Connect) -> None:
    camera = connect()
    daemon.forget()
    camera.trigger(SMALL)
    assert take(camera)[0].reason == "no_connection"
    until(lambda: camera.counts.reconnects == 1)
    camera.trigger(SMALL)
    assert take(camera)[0].verdict == "ok"


def test_credits_that_never_come_back_end_the_connection(
    daemon: FakeDaemon, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera_session, "STALL_NS", 50_000_000)
    daemon.answer = lambda header, payload: None
    daemon.welcome["credits"] = 2
    camera = connect(deadline_ms=10, grace_ms=10)
    camera.trigger(SMALL)
    camera.trigger(SMALL)
    take(camera, 2)
    until(lambda: camera.counts.reconnects == 1)
    daemon.answer = ok
    camera.trigger(SMALL, deadline_ms=5000)
    assert take(camera)[0].verdict == "ok"


def test_another_program_under_the_same_name_is_not_fought(daemon: FakeDaemon, connect: Connect) -> None:
    camera = connect()
    daemon.say(ErrorMessage(code="replaced", message="another connection"))
    until(lambda: camera.connection == "replaced")
    time.sleep(0.2)
    assert len(daemon.hellos) == 1
    camera.trigger(SMALL)
    assert take(camera)[0].reason == "no_connection"
    assert "replaced" in str(camera.last_error)


def test_a_refused_camera_asks_on(daemon: FakeDaemon, connect: Connect) -> None:
    camera = connect()
    daemon.greets = False
    daemon.say(ErrorMessage(code="unknown_camera", message="add it"))
    until(lambda: camera.connection == "connecting")
    until(lambda: len(daemon.hellos) >= 3)
    daemon.greets = True
    assert camera.wait_connected(PATIENCE_S)
    assert camera.last_error is None


@pytest.mark.parametrize("code", ["too_large", "bad_sequence"])
def test_a_frame_that_was_not_taken_is_answered_at_once(daemon: FakeDaemon, connect: Connect, code: str) -> None:
    daemon.welcome["credits"] = 1
    daemon.answer = lambda header, payload: ErrorMessage(code=code, message="no", seq=header.seq)  # type: ignore[arg-type]
    camera = connect()
    for _ in range(2):
        camera.trigger(SMALL)
        (verdict,) = take(camera)
        assert (verdict.reason, verdict.local) == ("refused", True)
    assert code in str(camera.last_error)


def test_an_error_beside_a_verdict_changes_nothing(daemon: FakeDaemon, connect: Connect) -> None:
    def complain(header: FrameHeader, _: bytes) -> VerdictMessage:
        daemon.say(ErrorMessage(code="bad_frame", message="cannot be decoded", seq=header.seq))
        return VerdictMessage(seq=header.seq, verdict="not_inspected", reason="bad_frame")

    daemon.answer = complain
    camera = connect()
    camera.trigger(SMALL, part="p")
    (verdict,) = take(camera)
    assert (verdict.reason, verdict.local, verdict.part) == ("bad_frame", False, "p")
    until(lambda: camera.last_error == "bad_frame: cannot be decoded")


def test_a_frame_above_the_daemons_limit_is_refused_here(daemon: FakeDaemon, connect: Connect) -> None:
    daemon.welcome["max_payload_bytes"] = 47
    camera = connect()
    camera.trigger(SMALL)
    assert take(camera)[0].reason == "refused"
    assert "47" in str(camera.last_error)
    assert not daemon.frames


def test_nonsense_from_the_daemon_is_counted(daemon: FakeDaemon, connect: Connect) -> None:
    camera = connect()
    for nonsense in (b"", b"\xc1", b"x" * 5000, b"\x81\xa4type\xa7verdict"):
        daemon.say(nonsense)
    daemon.say(VerdictMessage(seq=99, verdict="ok"))
    until(lambda: camera.counts.bad_messages == 5)
    camera.trigger(SMALL)
    assert take(camera)[0].verdict == "ok"


def test_another_protocol_version_is_said(daemon: FakeDaemon, connect: Connect) -> None:
    camera = connect()
    daemon.say(b"\x82\xa4type\xa9heartbeat\xa1v\x09")
    until(lambda: camera.counts.reconnects == 1)


def test_closing_answers_what_is_pending(daemon: FakeDaemon, connect: Connect) -> None:
    daemon.answer = lambda header, payload: None
    camera = connect()
    camera.trigger(SMALL)
    camera.trigger(SMALL)
    camera.close()
    assert [(v.seq, v.reason) for v in camera] == [(0, "closed"), (1, "closed")]
    with pytest.raises(LineError, match="closed"):
        camera.trigger(SMALL)
    camera.close()


def test_closing_ends_a_wait(connect: Connect) -> None:
    camera = connect(connected=False, wait_ms=60_000)
    threading.Timer(0.05, camera.close).start()
    began = time.monotonic()
    camera.trigger(SMALL)
    assert time.monotonic() - began < PATIENCE_S
    assert [v.reason for v in camera] == ["closed"]


def test_verdicts_by_callback(daemon: FakeDaemon, connect: Connect) -> None:
    seen: list[CameraVerdict] = []

    def on_verdict(verdict: CameraVerdict) -> None:
        seen.append(verdict)
        if verdict.seq == 1:
            raise ValueError("the integrator's bug")

    camera = connect(on_verdict=on_verdict)
    for _ in range(3):
        camera.trigger(SMALL)
        until(lambda: camera.counts.pending == 0)
    until(lambda: len(seen) == 3)
    until(lambda: camera.counts.callback_errors == 1)
    assert [v.seq for v in seen] == [0, 1, 2]
    with pytest.raises(UsageError, match="on_verdict"):
        camera.verdict(0)


def test_a_callback_may_trigger_and_close(daemon: FakeDaemon, connect: Connect) -> None:
    done = threading.Event()

    def on_verdict(verdict: CameraVerdict) -> None:
        if verdict.seq < 3:
            camera.trigger(SMALL)
        else:
            camera.close()
            done.set()

    camera = connect(on_verdict=on_verdict)
    camera.trigger(SMALL)
    assert done.wait(PATIENCE_S)
    assert camera.counts.answered == 4


def test_verdicts_that_nobody_fetches_are_counted(connect: Connect) -> None:
    camera = connect(connected=False, queue=2)
    for _ in range(5):
        camera.trigger(SMALL)
    assert [v.seq for v in take(camera, 2)] == [3, 4]
    counts = camera.counts
    assert (counts.overflow, counts.triggers) == (3, 5)
    assert counts.balanced


def test_an_error_in_the_cameras_thread_is_survived(
    daemon: FakeDaemon, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = connect(deadline_ms=100)
    daemon.answer = lambda header, payload: None
    camera.trigger(SMALL)
    until(lambda: len(daemon.frames) == 1)
    link = camera._session._link
    turn = link.turn

    def broken(until_ns: int | None) -> object:
        monkeypatch.setattr(link, "turn", turn)
        raise RuntimeError("a bug")

    monkeypatch.setattr(link, "turn", broken)
    until(lambda: camera.counts.faults == 1)
    assert take(camera)[0].reason == "no_answer"
    daemon.answer = ok
    assert camera.wait_connected(PATIENCE_S)
    camera.trigger(SMALL, deadline_ms=5000)
    assert take(camera)[0].verdict == "ok"


def test_many_threads_trigger(daemon: FakeDaemon, connect: Connect) -> None:
    camera = connect(wait_ms=5000)
    numbers: list[int] = []

    def trigger() -> None:
        for _ in range(25):
            numbers.append(camera.trigger(SMALL))

    threads = [threading.Thread(target=trigger) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(100))
    assert sorted(v.seq for v in take(camera, 100)) == list(range(100))
    sent = [frame.seq for frame in daemon.frames]
    assert sent == sorted(sent)


def test_auto_uses_the_ring_where_it_pays(daemon: FakeDaemon, connect: Connect) -> None:
    daemon.welcome["local"] = True
    camera = connect()
    big = np.full((300, 300, 3), 7, np.uint8)
    ends = time.monotonic() + PATIENCE_S
    while not camera.counts.ring_frames:  # the ring is made meanwhile
        assert time.monotonic() < ends
        camera.trigger(big)
        assert take(camera)[0].verdict == "ok"
    for _ in range(30):  # more than there are slots
        camera.trigger(big)
        take(camera)
    messages = camera.counts.message_frames
    camera.trigger(SMALL)
    take(camera)
    assert camera.counts.ring_frames == 31
    assert camera.counts.message_frames == messages + 1
    assert set(daemon.payloads[:-1]) == {big.tobytes()}


def test_a_larger_frame_gets_a_larger_ring(daemon: FakeDaemon, connect: Connect) -> None:
    daemon.welcome["local"] = True
    camera = connect(transport="ring")
    for side in (100, 200, 50):
        frame = np.full((side, side, 3), side, np.uint8)
        camera.trigger(frame)
        assert take(camera)[0].verdict == "ok"
        assert daemon.payloads[-1] == frame.tobytes()
    first, second, third = (frame.ring.name for frame in daemon.frames if frame.ring is not None)
    assert first != second == third
    assert not Path("/dev/shm", first).exists()
    assert Path("/dev/shm", second).exists()


def test_slots_given_up_are_used_again(daemon: FakeDaemon, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_session, "STALL_NS", 20_000_000)
    daemon.welcome |= {"local": True, "credits": 1}
    daemon.answer = lambda header, payload: None
    camera = connect(transport="ring", deadline_ms=5, grace_ms=5)
    for _ in range(6):
        assert camera.wait_connected(PATIENCE_S)
        frames = camera.counts.ring_frames
        until(lambda: camera.trigger(SMALL) >= 0 and camera.counts.ring_frames > frames)  # noqa: B023
        assert camera.drain(PATIENCE_S)
    slots = [frame.ring.slot for frame in daemon.frames if frame.ring is not None]
    assert len(set(slots)) < len(slots)


def test_a_daemon_that_cannot_read_the_ring_gets_messages(daemon: FakeDaemon, connect: Connect) -> None:
    def blind(header: FrameHeader, payload: bytes) -> VerdictMessage:
        if header.ring is not None:
            return VerdictMessage(seq=header.seq, verdict="not_inspected", reason="bad_frame")
        return ok(header)

    daemon.welcome["local"] = True
    daemon.answer = blind
    camera = connect()
    big = np.zeros((300, 300, 3), np.uint8)
    ends = time.monotonic() + PATIENCE_S
    while not camera.counts.ring_frames:
        assert time.monotonic() < ends
        camera.trigger(big)
        take(camera)
    for _ in range(3):
        camera.trigger(big)
        assert take(camera)[0].verdict == "ok"
    assert camera.counts.ring_frames == 1
    assert "shared memory" in str(camera.last_error)


def test_a_ring_needs_a_local_daemon(daemon: FakeDaemon, connect: Connect) -> None:
    camera = connect(transport="ring")
    camera.trigger(SMALL)
    assert take(camera)[0].reason == "refused"
    assert "another host" in str(camera.last_error)


def test_without_shared_memory_frames_go_in_messages(
    daemon: FakeDaemon, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise LineError("no space left on /dev/shm")

    monkeypatch.setattr("adclick_edge.line.camera_ring.RingWriter", full)
    daemon.welcome["local"] = True
    camera = connect()
    big = np.zeros((300, 300, 3), np.uint8)
    ends = time.monotonic() + PATIENCE_S
    while camera.last_error is None:
        assert time.monotonic() < ends
        camera.trigger(big)
        assert take(camera)[0].verdict == "ok"
    assert "no space" in camera.last_error
    only = connect(transport="ring")
    only.trigger(big)
    assert take(only)[0].reason == "refused"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    new_keys(folder, "server")
    allow(folder, "testcam", new_keys(folder, "testcam"))
    new_keys(folder, "stranger")
    return folder


def test_curve(endpoint: str, connect: Connect, keys: Path) -> None:
    daemon = FakeDaemon(endpoint)
    daemon.keys = keys
    with daemon:
        mine = CameraKeys.load(keys, "testcam")
        camera = connect(keys=mine)
        camera.trigger(SMALL)
        assert take(camera)[0].verdict == "ok"
        wrong = connect(connected=False, keys=CameraKeys(public=mine.public, server=mine.public, secret=mine.secret))
        plain = connect(connected=False)
        stranger = connect(connected=False, keys=CameraKeys.load(keys, "stranger"))
        until(lambda: "keys" in str(plain.last_error) and "keys" in str(stranger.last_error))
        assert wrong.connection == plain.connection == stranger.connection == "connecting"
        assert len(daemon.hellos) == 1
