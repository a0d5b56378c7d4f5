"""Faults injected into a real line: `adclick serve` in its own process, cameras over real sockets."""

import contextlib
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from line_bundles import LineBundles, bad_frame, good_frame, make_line_bundles, with_a_graph_byte_changed
from line_rig import ServedLine

from adclick_edge.line.camera_client import CameraClient
from adclick_edge.line.camera_verdict import CameraVerdict
from adclick_edge.line.control import Rollback, Swap, ask
from adclick_edge.line.protocol import FrameHeader, Hello, VerdictMessage, decode_daemon_message, encode

RESUMES_WITHIN_S = 2.0


@pytest.fixture(scope="module")
def bundles(make_once: Callable[[str, Callable[[Path], object]], Path]) -> LineBundles:
    return make_line_bundles(make_once("line_bundles_root", lambda path: path.mkdir()) / "bundles")


def tables(bundle: Path, *cameras: str, line: dict[str, Any] | None = None, **more: dict[str, Any]) -> dict[str, Any]:
    return {
        "line": {"heartbeat_ms": 100, "threads": 1, **(line or {})},
        "products": {"nut": {"bundle": bundle}},
        "cameras": {name: {"product": "nut", "deadline_ms": 1000.0, "queue": 8} for name in cameras or ("cam",)},
        **more,
    }


class Trigger(threading.Thread):
    """A camera under load: triggers at a steady rate until told to stop, and keeps every verdict."""

    def __init__(self, endpoint: str, name: str = "cam", *, per_s: float = 40.0, transport: Any = "auto") -> None:
        super().__init__(name=f"trigger-{name}", daemon=True)
        self.verdicts: list[tuple[float, CameraVerdict]] = []
        self.client = CameraClient(endpoint, name, deadline_ms=1000, on_verdict=self._note, transport=transport)
        self._per_s, self._stop_now = per_s, threading.Event()

    def _note(self, verdict: CameraVerdict) -> None:
        self.verdicts.append((time.monotonic(), verdict))

    def run(self) -> None:
        number = 0
        while not self._stop_now.wait(1 / self._per_s):
            self.client.trigger(good_frame(number % 5) if number % 7 else bad_frame(number))
            number += 1

    def __enter__(self) -> "Trigger":
        assert self.client.wait_connected(20), self.client.last_error
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_now.set()
        self.join(10)
        self.client.drain(10)
        self.client.close()

    def judged_since(self, since: float) -> list[float]:
        return [at for at, v in list(self.verdicts) if at > since and not v.local and v.verdict != "not_inspected"]

    def until_judged(self, since: float, timeout_s: float = 30.0) -> float:
        """Seconds from ``since`` to the first judged verdict after it."""
        until(lambda: bool(self.judged_since(since)), timeout_s)
        return self.judged_since(since)[0] - since

    def check(self) -> None:
        """Every trigger had exactly one verdict."""
        counts = self.client.counts
        assert counts.balanced
        assert counts.pending == 0
        seqs = sorted(v.seq for _, v in self.verdicts)
        assert seqs == list(range(counts.triggers))


def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def balanced(camera: dict[str, Any]) -> bool:
    answered = camera["ok"] + camera["ng"] + camera["uncertain"] + sum(camera["not_inspected"].values())
    return bool(camera["received"] == answered + camera["pending"])


def test_the_daemon_is_killed_and_restarted_under_load(bundles: LineBundles, tmp_path: Path) -> None:
    with ServedLine(tmp_path / "line", tables(bundles.nut, "cam", "other")) as line:
        with Trigger(line.endpoint) as trigger, Trigger(line.endpoint, "other", transport="message") as other:
            trigger.until_judged(0)
            other.until_judged(0)
            line.kill()
            time.sleep(0.3)
            line.start()
            ready = time.monotonic()
            for each in (trigger, other):
                assert each.until_judged(ready) < RESUMES_WITHIN_S
            time.sleep(0.5)
        for each in (trigger, other):
            each.check()
            assert each.client.counts.reconnects == 1
            lost = [v for _, v in each.verdicts if v.local]
            assert lost  # and each of them is known by its number
            assert {v.reason for v in lost} <= {"no_connection", "no_answer"}
        # The daemon says good-bye to a session it judged from then on; what it missed it learnt from the hello.
        status = line.status()["cameras"]
        for name, each in (("cam", trigger), ("other", other)):
            assert balanced(status[name])
            assert status[name]["received"] + status[name]["missed"] <= each.client.counts.triggers
            assert status[name]["missed"] > 0


def test_a_camera_is_killed(bundles: LineBundles, tmp_path: Path) -> None:
    script = (
        "import sys,numpy as np,time\n"
        "from adclick_edge.line.camera_client import CameraClient\n"
        "c=CameraClient(sys.argv[1],'cam',transport='ring')\n"
        "assert c.wait_connected(20)\n"
        "print('up',flush=True)\n"
        "while True:\n c.trigger(np.zeros((480,640,3),np.uint8)); time.sleep(.01)\n"
    )
    before = rings()
    with ServedLine(tmp_path / "line", tables(bundles.nut)) as line:
        with subprocess.Popen([sys.executable, "-c", script, line.endpoint], stdout=subprocess.PIPE) as camera:
            try:
                assert camera.stdout is not None
                assert camera.stdout.readline() == b"up\n"
                until(lambda: line.status()["cameras"]["cam"]["received"] > 20)
                assert len(rings() - before) == 1
            finally:
                camera.send_signal(signal.SIGKILL)
        until(lambda: not line.status()["cameras"]["cam"]["connected"])
        status = line.status()["cameras"]["cam"]
        assert status["pending"] == 0
        assert balanced(status)
        with Trigger(line.endpoint, transport="ring") as trigger:
            trigger.until_judged(0)
            assert rings() - before
        trigger.check()
    assert rings() <= before


def rings() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if name.startswith("adclick-cam-")}


class Proxy:
    """A network between camera and daemon that can be cut: bytes vanish, no connection is closed, as with a pulled cable."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.1)
        self.port: int = self._listener.getsockname()[1]
        self.cut = threading.Event()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                for source, sink in ((near, far), (far, near)):
                    thread = threading.Thread(target=self._pump, args=(source, sink), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        source.settimeout(0.1)
        with source, sink, contextlib.suppress(OSError):
            while not self._stop.is_set():
                if self.cut.is_set():
                    time.sleep(0.02)
                    continue
                try:
                    data = source.recv(1 << 16)
                except TimeoutError:
                    continue
                if not data:
                    return
                while self.cut.is_set() and not self._stop.is_set():
                    time.sleep(0.02)
                sink.sendall(data)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_the_network_is_cut_and_heals(bundles: LineBundles, tmp_path: Path) -> None:
    port = free_port()
    line_table = {"bind": [f"tcp://127.0.0.1:{port}"]}
    with (
        ServedLine(tmp_path / "line", tables(bundles.nut, line=line_table)) as line,
        Proxy(port) as proxy,
        Trigger(f"tcp://127.0.0.1:{proxy.port}") as trigger,
    ):
        trigger.until_judged(0)
        proxy.cut.set()
        until(lambda: trigger.client.connection != "connected")
        until(lambda: not line.status()["cameras"]["cam"]["connected"])
        proxy.cut.clear()
        healed = time.monotonic()
        assert trigger.until_judged(healed) < RESUMES_WITHIN_S
        time.sleep(0.3)
        trigger.__exit__()
        trigger.check()
        assert trigger.client.counts.local
        until(lambda: line.status()["cameras"]["cam"]["pending"] == 0)
        status = line.status()["cameras"]["cam"]
        assert balanced(status)
        assert status["missed"] > 0


def test_frames_that_claim_too_much(bundles: LineBundles, tmp_path: Path) -> None:
    """60000 x 60000 pixels in a header, and in a PNG of a few hundred bytes: refused before any memory is taken."""
    with ServedLine(tmp_path / "line", tables(bundles.nut)) as line:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with context.socket(zmq.DEALER) as camera:
            camera.setsockopt(zmq.LINGER, 0)
            camera.setsockopt(zmq.RCVTIMEO, 20_000)
            camera.connect(line.endpoint)
            camera.send(encode(Hello(camera="cam", session=1, next_seq=0)))
            before = line.rss_bytes()
            claims = [
                (FrameHeader(seq=0, format="rgb8", width=60_000, height=60_000), bytes(100)),
                (FrameHeader(seq=1, format="png", width=60_000, height=60_000), huge_png(60_000)),
                (FrameHeader(seq=2, format="png", width=64, height=64), huge_png(60_000)),
                (FrameHeader(seq=3, format="rgb8", width=64, height=64, stride_bytes=1 << 24), bytes(64 * 64 * 3)),
            ]
            for header, payload in claims:
                camera.send_multipart([encode(header), payload])
            reasons = {}
            while len(reasons) < len(claims):
                message = decode_daemon_message(camera.recv())
                if isinstance(message, VerdictMessage):
                    reasons[message.seq] = (message.verdict, message.reason)
            assert set(reasons.values()) == {("not_inspected", "bad_frame")}
            camera.send_multipart(
                [encode(FrameHeader(seq=9, format="rgb8", width=64, height=64)), good_frame(1).tobytes()]
            )
            while not isinstance(message := decode_daemon_message(camera.recv()), VerdictMessage):
                pass
            assert message.verdict != "not_inspected"
            assert line.rss_bytes() - before < 64 << 20
        context.term()


def huge_png(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def test_ten_thousand_fuzzed_messages_at_a_line_that_works(bundles: LineBundles, tmp_path: Path) -> None:
    rng = random.Random(3)
    frame = encode(FrameHeader(seq=5, format="png", width=64, height=64))
    with ServedLine(tmp_path / "line", tables(bundles.nut, "cam", "fuzz")) as line, Trigger(line.endpoint) as trigger:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with context.socket(zmq.DEALER) as stranger:
            stranger.setsockopt(zmq.LINGER, 2000)
            stranger.setsockopt(zmq.SNDTIMEO, 20_000)
            stranger.connect(line.endpoint)
            for turn in range(10_000):
                if turn % 50 == 0:
                    stranger.send(encode(Hello(camera="fuzz", session=turn, next_seq=0)))
                data = bytearray(frame)
                for _ in range(rng.randrange(3)):
                    data[rng.randrange(len(data))] = rng.randrange(256)
                payload = rng.randbytes(rng.choice([0, 3, 80, 900]))
                stranger.send_multipart([bytes(data), payload][: rng.choice([1, 2, 2])])
                while stranger.poll(0):
                    stranger.recv()
        context.term()
        since = time.monotonic()
        trigger.until_judged(since)
        until(lambda: line.status()["cameras"]["fuzz"]["pending"] == 0)
        assert balanced(line.status()["cameras"]["fuzz"])
    trigger.check()
    assert all(not v.local for _, v in trigger.verdicts)


def test_the_disk_is_full_while_frames_are_queued(bundles: LineBundles, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    spool.mkdir()
    with (
        full_disk(spool),
        ServedLine(
            tmp_path / "line",
            tables(bundles.nut, routing={"spool": str(spool), "budget_per_hour": 100_000, "audit_share": 1.0}),
        ) as line,
    ):
        with Trigger(line.endpoint) as trigger:
            until(lambda: line.status()["routing"]["failed"] > 3)
            since = time.monotonic()
            trigger.until_judged(since)
            routing = line.status()["routing"]
            assert routing["last_failure"]
            parts = ("queued", "duplicate", "over_budget", "failed", "waiting")
            assert routing["offered"] == sum(routing[part] for part in parts)
        trigger.check()
        assert not [p for p in spool.iterdir() if p.name.startswith(".") and p.is_dir() and any(p.iterdir())]


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """A file system of 64 KiB at ``folder``; skips where that may not be mounted."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small file system to fill: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_fifty_hot_swaps_under_load(bundles: LineBundles, tmp_path: Path) -> None:
    with ServedLine(tmp_path / "line", tables(bundles.nut)) as line, Trigger(line.endpoint, per_s=30) as trigger:
        state = tmp_path / "line" / "state"
        trigger.until_judged(0)
        versions = set()
        memory, files = [], []
        for turn in range(50):
            bundle = bundles.nut_more_rows if turn % 2 == 0 else bundles.nut
            reply = ask(state, Swap("nut", str(bundle)), 60)
            assert reply.ok, reply.text
            versions.add(reply.details["version"])
            memory.append(line.rss_bytes())
            files.append(line.open_files())
        assert len(versions) == 2
        assert line.status()["products"]["nut"]["swaps"] == 50
        trigger.__exit__()
        trigger.check()
        # No frame was lost, none waited past its deadline, and each names the bundle that judged it.
        assert {v.verdict for _, v in trigger.verdicts} <= {"ok", "ng", "uncertain"}
        assert {v.bundle_version for _, v in trigger.verdicts} == versions
        assert line.status()["cameras"]["cam"]["late"] == 0
    settled, last = max(memory[10:20]), max(memory[40:])
    assert last - settled < 16 * resource.getpagesize() * 256, (settled, last)
    assert max(files[40:]) <= max(files[10:20]) + 2


def test_a_broken_bundle_is_offered(bundles: LineBundles, tmp_path: Path) -> None:
    broken = with_a_graph_byte_changed(bundles.nut_more_rows, tmp_path / "broken")
    with ServedLine(tmp_path / "line", tables(bundles.nut)) as line, Trigger(line.endpoint) as trigger:
        state = tmp_path / "line" / "state"
        trigger.until_judged(0)
        before = line.status()["products"]["nut"]
        reply = ask(state, Swap("nut", str(broken)), 60)
        assert not reply.ok
        assert "features.onnx" in reply.text
        after = line.status()["products"]["nut"]
        assert after["version"] == before["version"]
        assert (after["failed_swaps"], after["swaps"]) == (1, 0)
        assert "features.onnx" in after["last_failure"]
        assert ask(state, Swap("nut", str(bundles.nut_more_rows)), 60).ok
        since = time.monotonic()
        trigger.until_judged(since)
        back = ask(state, Rollback("nut"), 60)
        assert back.ok, back.text
        assert back.details["version"] == before["version"]
    trigger.check()
    assert {v.verdict for _, v in trigger.verdicts} <= {"ok", "ng", "uncertain"}


def test_a_clean_stop_answers_what_is_left(bundles: LineBundles, tmp_path: Path) -> None:
    with ServedLine(tmp_path / "line", tables(bundles.nut)) as line, Trigger(line.endpoint) as trigger:
        trigger.until_judged(0)
        assert line.stop() == 0
        stopped = [event for event in line.events if event.get("event") == "stopped"][-1]
        answered = stopped["ok"] + stopped["ng"] + stopped["uncertain"] + stopped["not_inspected"]
        assert stopped["received"] == answered
        assert stopped["pending"] == 0
    trigger.check()
