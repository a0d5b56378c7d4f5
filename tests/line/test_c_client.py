"""What docs/protocol.md says is enough: a client in C written by it meets a daemon."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq
from c_client import CClient, build_c_client, why_no_c_client
from fake_daemon import FakeDaemon
from front_line import FrontLine

from adclick_edge.line.config import Camera
from adclick_edge.line.protocol import (
    Bye,
    Credit,
    ErrorMessage,
    FrameHeader,
    Region,
    VerdictMessage,
    Welcome,
    encode,
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> CClient:
    if reason := why_no_c_client():
        pytest.skip(reason)
    return build_c_client(tmp_path_factory.mktemp("client"))


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/line.ipc"


def until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def ng(header: FrameHeader, payload: bytes) -> VerdictMessage:
    return VerdictMessage(
        seq=header.seq, verdict="ng", score=2.5, lower=1.0, upper=2.0, product="flange", bundle_version="v1",
        stage_ms={"decode": 1.5, "total": 12.25}, regions=(Region(left=1, top=2, width=3, height=4, peak=2.5),),
        regions_found=1,
    )  # fmt: skip


@pytest.mark.parametrize(("format", "channels"), [("mono8", 1), ("rgb8", 3)])
def test_frames_and_verdicts(client: CClient, endpoint: str, format: str, channels: int) -> None:
    with FakeDaemon(endpoint, ng) as daemon:
        ran = client.run(endpoint, "cam-1", "--frames", 20, "--format", format, "--size", 30, 20, "--code", "A7")
        until(lambda: daemon.byes)
    assert ran.code == 0, ran.errors
    (hello,) = daemon.hellos
    assert (hello.camera, hello.next_seq, hello.unanswered, hello.software) == ("cam-1", 0, 0, "client.c")
    assert [f.seq for f in daemon.frames] == list(range(20))
    assert {(f.format, f.width, f.height, f.code, f.deadline_ms) for f in daemon.frames} == {
        (format, 30, 20, "A7", 1000.0)
    }
    assert daemon.payloads == [bytes([seq]) * (30 * 20 * channels) for seq in range(20)]
    assert [t["seq"] for t in ran.triggers] == [str(seq) for seq in range(20)]
    assert ran.triggers[0] | {"seq": "0"} == {
        "seq": "0", "verdict": "ng", "reason": "-", "score": "2.5", "lower": "1", "upper": "2", "product": "flange",
        "regions": "1", "total_ms": "12.25", "local": "0",
    }  # fmt: skip


def test_pixels_of_a_file(client: CClient, endpoint: str, tmp_path: Path) -> None:
    pixels = random.Random(0).randbytes(6 * 4)
    (tmp_path / "pixels").write_bytes(pixels)
    with FakeDaemon(endpoint) as daemon:
        assert client.run(endpoint, "cam", "--size", 6, 4, "--pixels", tmp_path / "pixels").code == 0
    assert daemon.payloads == [pixels]


def test_never_more_under_way_than_credits(client: CClient, endpoint: str) -> None:
    def verdict(seq: int) -> VerdictMessage:
        return VerdictMessage(seq=seq, verdict="ok", score=0.0, lower=1.0, upper=2.0)

    with FakeDaemon(endpoint, lambda header, payload: None, credits=3, deadline_ms=60_000.0) as daemon:
        process = client.start(endpoint, "cam", "--frames", 8)

        def sends_up_to(count: int) -> None:
            until(lambda: len(daemon.frames) >= count)
            time.sleep(0.05)
            assert len(daemon.frames) == count

        sends_up_to(3)
        daemon.say(verdict(1))  # gives one back
        sends_up_to(4)
        daemon.say(Credit(credits=2))
        sends_up_to(6)
        for seq in (0, 2, 3, 4, 5):
            daemon.say(verdict(seq))
        sends_up_to(8)
        for seq in (6, 7):
            daemon.say(verdict(seq))
        ran = client.finish(process)
    assert ran.code == 0, ran.errors
    assert [t["seq"] for t in ran.triggers] == ["1", "0", "2", "3", "4", "5", "6", "7"]


def test_a_silent_daemon_and_one_that_comes_back(client: CClient, endpoint: str) -> None:
    """Triggers under way when it goes are answered locally and counted; the rest goes to the next daemon."""
    daemon = FakeDaemon(endpoint, lambda header, payload: None, credits=2, heartbeat_ms=50.0)
    daemon.start()
    process = client.start(endpoint, "cam", "--frames", 6, "--deadline-ms", 60_000)
    until(lambda: len(daemon.frames) == 2)
    daemon.kill()
    with FakeDaemon(endpoint, credits=2, heartbeat_ms=50.0) as second:
        ran = client.finish(process)
        hello = second.hellos[0]
    assert ran.code == 3, ran.errors
    assert [(t["seq"], t["verdict"], t["local"]) for t in ran.triggers] == [
        *((str(seq), "not_inspected", "1") for seq in (0, 1)),
        *((str(seq), "ok", "0") for seq in (2, 3, 4, 5)),
    ]
    assert (hello.next_seq, hello.unanswered, hello.session) == (2, 2, daemon.hellos[0].session)


def test_heartbeats_keep_a_quiet_connection(client: CClient, endpoint: str) -> None:
    with FakeDaemon(endpoint, lambda header, payload: 0.6, credits=1, heartbeat_ms=40.0) as daemon:
        ran = client.run(endpoint, "cam", "--frames", 1)
        assert daemon.camera_beats >= 5
    assert ran.code == 0, ran.errors


def test_a_trigger_without_verdict_is_answered_locally(client: CClient, endpoint: str) -> None:
    def answer(header: FrameHeader, payload: bytes) -> VerdictMessage | float:
        return 0.3 if header.seq == 1 else ng(header, payload)

    with FakeDaemon(endpoint, answer, credits=2) as daemon:
        ran = client.run(endpoint, "cam", "--frames", 3, "--deadline-ms", 50, "--grace-ms", 50)
        assert len(daemon.frames) == 3
    assert ran.code == 3
    by_seq = {t["seq"]: t for t in ran.triggers}
    assert by_seq["1"] == {"seq": "1", "verdict": "not_inspected", "reason": "no_verdict", "local": "1"}
    assert by_seq["0"]["verdict"] == by_seq["2"]["verdict"] == "ng"


def test_a_daemon_that_forgot_the_session_is_told_again(client: CClient, endpoint: str) -> None:
    with FakeDaemon(endpoint, lambda header, payload: 0.02, credits=1, heartbeat_ms=50.0) as daemon:
        process = client.start(endpoint, "cam", "--frames", 30)
        until(lambda: len(daemon.frames) > 3)
        daemon.forget()
        ran = client.finish(process)
        assert len(daemon.hellos) == 2
    assert "lost: the daemon does not know this session" in ran.errors
    assert len(ran.triggers) == 30


@pytest.mark.parametrize("code", ["unknown_camera", "not_allowed", "replaced", "version"])
def test_refusals_end_the_client(client: CClient, endpoint: str, code: str) -> None:
    def refuse(header: FrameHeader, payload: bytes) -> ErrorMessage:
        return ErrorMessage(code=code, message="because")  # type: ignore[arg-type]

    with FakeDaemon(endpoint, refuse):
        ran = client.run(endpoint, "cam")
    assert ran.code == 1
    assert f"error: {code}: because" in ran.errors


def test_no_daemon(client: CClient, endpoint: str) -> None:
    ran = client.run(endpoint, "cam", "--give-up-ms", 300)
    assert ran.code == 1
    assert "no welcome within 300 ms" in ran.errors


@pytest.mark.parametrize(
    "arguments",
    [("--format", "jpeg"), ("--size", 0, 5), ("--size", 5), ("--frames",), ("--pixels", "/none"), ("--what",)],
)
def test_usage(client: CClient, endpoint: str, arguments: tuple[object, ...]) -> None:
    ran = client.run(endpoint, "cam", *arguments, timeout_s=10)
    assert ran.code == 2
    assert "see the top of client.c" in ran.errors


def test_hostile_bytes_from_a_daemon(tmp_path: Path, endpoint: str) -> None:
    """Under the address and undefined-behaviour sanitizers: what is no message is ignored."""
    if reason := why_no_c_client(sanitize=True):
        pytest.skip(reason)
    client = build_c_client(tmp_path, sanitize=True)
    draw = random.Random(7)
    frame = FrameHeader(seq=2**63 - 1, format="mono8", width=1, height=1)
    welcome = Welcome(daemon=1, credits=1, deadline_ms=1, heartbeat_ms=1, max_payload_bytes=1)
    error = ErrorMessage(code="bad_frame", message="x" * 200)
    valid = [encode(message) for message in (ng(frame, b""), welcome, error)]

    def hostile() -> bytes:
        seed = bytearray(draw.choice(valid))
        kind = draw.randrange(4)
        if kind == 0:
            return draw.randbytes(draw.randrange(100))
        if kind == 1:
            return bytes(seed[: draw.randrange(len(seed))])
        if kind == 2:
            return b"\x81\xa1x" + b"\x91" * draw.randrange(60_000)
        # The seq is left as it is, and so no frame of ours is answered by accident.
        at = draw.randrange(len(seed))
        seed[at] = draw.choice([0xDF, 0xDD, 0xDB, 0xC6, 0xC9, 0xD8, 0xC1, 0xFF, 0x80])
        return bytes(seed)

    with FakeDaemon(endpoint, lambda header, payload: 3.0, deadline_ms=60_000.0) as daemon:
        process = client.start(endpoint, "cam", "--frames", 1)
        until(lambda: daemon.frames)
        for _ in range(600):
            daemon.say(hostile())
        ran = client.finish(process, 60)
    assert "Sanitizer" not in ran.errors
    assert "runtime error" not in ran.errors
    assert ran.code in (0, 3), ran.errors


def test_a_message_cut_short_is_no_message(client: CClient, endpoint: str) -> None:
    """What lies behind it in memory belongs to another message."""
    cut = encode(ErrorMessage(code="bad_frame", message="x" * 200))[:-100]
    with FakeDaemon(endpoint, lambda header, payload: 0.2, deadline_ms=60_000.0) as daemon:
        process = client.start(endpoint, "cam")
        until(lambda: daemon.frames)
        for _ in range(3):
            daemon.say(cut)
        ran = client.finish(process)
    assert ran.code == 0
    assert "error" not in ran.errors


def test_curve(client: CClient, tmp_path: Path) -> None:
    """With keys, and only with them, over TCP as another host would."""
    if not zmq.has("curve"):
        pytest.skip("this libzmq has no CURVE")
    server, camera = zmq.curve_keypair(), zmq.curve_keypair()
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    try:
        router.linger = 0
        router.curve_server = True
        router.curve_secretkey = server[1]
        port = router.bind_to_random_port("tcp://127.0.0.1")
        arguments = (f"tcp://127.0.0.1:{port}", "cam", "--give-up-ms", 400)
        assert client.run(*arguments).code == 1
        keys = [key.decode() for key in (server[0], *camera)]
        process = client.start(*arguments[:2], "--keys", *keys)
        assert router.poll(20_000)
        route, hello = router.recv_multipart()
        assert b"hello" in hello
        router.send_multipart(
            [route, encode(Welcome(daemon=1, credits=1, deadline_ms=9e3, heartbeat_ms=9e3, max_payload_bytes=9999))]
        )
        assert router.poll(20_000)
        route, _, payload = router.recv_multipart()
        assert payload == bytes(64 * 48)
        router.send_multipart([route, encode(VerdictMessage(seq=0, verdict="ok", score=0.0, lower=1.0, upper=2.0))])
        assert client.finish(process).code == 0
    finally:
        context.destroy(0)


# --- the daemon's own front


def test_against_the_daemons_front(client: CClient, tmp_path: Path) -> None:
    """Two clients at once; the books of both sides agree on every trigger."""
    cameras = {name: Camera(product="p", queue=4, overload="block") for name in ("left", "right")}
    with FrontLine(tmp_path, cameras) as line:
        processes = {name: client.start(line.endpoint, name, "--frames", 60) for name in cameras}
        ran = {name: client.finish(process) for name, process in processes.items()}
        for name in cameras:
            line.until(lambda name=name: not line.books.cameras()[name].connected)  # type: ignore[misc]
        tallies = line.books.cameras()
    for name in cameras:
        assert ran[name].code == 0, ran[name].errors
        assert sorted(int(t["seq"]) for t in ran[name].triggers) == list(range(60))
        assert {t["verdict"] for t in ran[name].triggers} == {"ok"}
        assert (tallies[name].received, tallies[name].ok, tallies[name].missed) == (60, 60, 0)
        assert tallies[name].balanced()


def test_the_front_turns_strangers_away(client: CClient, tmp_path: Path) -> None:
    with FrontLine(tmp_path) as line:
        ran = client.run(line.endpoint, "stranger")
    assert ran.code == 1
    assert "error: unknown_camera" in ran.errors


def test_a_daemon_that_says_bye(client: CClient, endpoint: str) -> None:
    with FakeDaemon(endpoint, lambda header, payload: 0.05, credits=1) as daemon:
        process = client.start(endpoint, "cam", "--frames", 8)
        until(lambda: daemon.frames)
        daemon.say(Bye(reason="restart"))
        ran = client.finish(process)
        assert len(daemon.hellos) >= 2
    assert "lost: the daemon said bye" in ran.errors
    assert len(ran.triggers) == 8
