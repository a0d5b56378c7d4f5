"""A daemon without an engine, for tests of the camera's side: it answers as it is told, and breaks as it is told.

As a program, ``python fake_daemon.py ENDPOINT`` serves until it is killed.
"""

import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path

import zmq

from adclick_edge.line.curve import Authenticator, serve_with_curve
from adclick_edge.line.protocol import (
    Bye,
    CameraMessage,
    DaemonMessage,
    ErrorMessage,
    FrameHeader,
    Heartbeat,
    Hello,
    VerdictMessage,
    Welcome,
    decode_camera_message,
    encode,
)
from adclick_edge.line.ring import RingReader

Answer = Callable[[FrameHeader, bytes], "VerdictMessage | ErrorMessage | float | None"]
"""What to say to a frame and its pixels: a message, None for nothing, or the seconds after which to say ok."""


def ok(header: FrameHeader, payload: bytes = b"") -> VerdictMessage:
    return VerdictMessage(
        seq=header.seq, verdict="ok", score=0.1, lower=1.0, upper=2.0, product="p", bundle_version="v", part=header.part
    )


class FakeDaemon:
    """Serves ``endpoint`` in a thread from `start` to `stop` or `kill`. Attributes may be changed while it runs."""

    def __init__(self, endpoint: str, answer: Answer = ok, **welcome: object) -> None:
        self.endpoint = endpoint
        self.answer = answer
        self.welcome = {"credits": 4, "deadline_ms": 1000.0, "heartbeat_ms": 250.0, "max_payload_bytes": 1 << 28}
        self.welcome |= welcome
        self.keys: Path | None = None
        """Folder of CURVE keys and the list of cameras."""
        self.heartbeats = True
        self._deaf = False
        self.greets = True
        self.hellos: list[Hello] = []
        self.frames: list[FrameHeader] = []
        self.payloads: list[bytes] = []
        self.byes = 0
        self.camera_beats = 0
        self._known: set[bytes] = set()
        self._later: list[tuple[float, bytes, DaemonMessage]] = []
        self._to_say: list[DaemonMessage | bytes] = []
        self._stop: str | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "FakeDaemon":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        self._stop = None
        self._known.clear()
        self._later.clear()
        bound = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(bound,), name="fake-daemon", daemon=True)
        self._thread.start()
        assert bound.wait(5)

    def kill(self) -> None:
        """Gone without a word, as by SIGKILL."""
        self._end("kill")

    def stop(self) -> None:
        self._end("bye")

    def go_deaf(self) -> None:
        """Read nothing from now on."""
        self._deaf = True
        time.sleep(0.02)  # a poll may still be going on

    def say(self, message: DaemonMessage | bytes) -> None:
        """To every camera that said hello; bytes as they are."""
        self._to_say.append(message)

    def forget(self) -> None:
        """As a daemon that was restarted behind a connection that lived on."""
        self._known.clear()

    def _end(self, how: str) -> None:
        self._stop = how
        if self._thread is not None:
            self._thread.join(5)
            assert not self._thread.is_alive()
            self._thread = None

    def _run(self, bound: threading.Event) -> None:
        with (
            zmq.Context() as context,
            Authenticator(context, self.keys) if self.keys is not None else nullcontext(),
            context.socket(zmq.ROUTER) as router,
            closing(RingReader()) as rings,
        ):
            router.linger = 0
            if self.keys is not None:
                serve_with_curve(router, self.keys)
            router.bind(self.endpoint)
            bound.set()
            beat_s = time.monotonic()
            while self._stop is None:
                now = time.monotonic()
                for message in self._to_say[:]:
                    self._to_say.remove(message)
                    for route in self._known:
                        self._send(router, route, message)
                for entry in [e for e in self._later if e[0] <= now]:
                    self._later.remove(entry)
                    self._send(router, entry[1], entry[2])
                if self.heartbeats and now - beat_s >= float(self.welcome["heartbeat_ms"]) / 1e3:
                    beat_s = now
                    for route in self._known:
                        self._send(router, route, Heartbeat(sent_ns=time.monotonic_ns()))
                if self._deaf:
                    time.sleep(0.002)
                elif router.poll(2):
                    self._take(router, rings, router.recv_multipart())
            if self._stop == "bye":
                for route in self._known:
                    self._send(router, route, Bye(reason="stopped"))
                router.linger = 500

    def _take(self, router: "zmq.Socket[bytes]", rings: RingReader, parts: list[bytes]) -> None:
        route, header = parts[0], decode_camera_message(parts[1])
        if isinstance(header, Hello):
            self.hellos.append(header)
            if self.greets:
                self._known.add(route)
                self._send(router, route, Welcome(daemon=1, **self.welcome))  # type: ignore[arg-type]
        elif route not in self._known:
            seq = header.seq if isinstance(header, FrameHeader) else None
            self._send(router, route, ErrorMessage(code="unknown_session", message="say hello first", seq=seq))
        else:
            self._take_known(router, rings, route, header, parts[2:])

    def _take_known(
        self,
        router: "zmq.Socket[bytes]",
        rings: RingReader,
        route: bytes,
        message: CameraMessage,
        payload: list[bytes],
    ) -> None:
        match message:
            case FrameHeader(ring=slot):
                pixels = b"".join(payload) if slot is None else bytes(rings.view(slot))
                self.frames.append(message)
                self.payloads.append(pixels)
                said = self.answer(message, pixels)
                if isinstance(said, float):
                    self._later.append((time.monotonic() + said, route, ok(message)))
                elif said is not None:
                    self._send(router, route, said)
            case Heartbeat():
                self.camera_beats += 1
            case Bye():
                self.byes += 1
                self._known.discard(route)

    def _send(self, router: "zmq.Socket[bytes]", route: bytes, message: DaemonMessage | bytes) -> None:
        data = message if isinstance(message, bytes) else encode(message)
        router.send_multipart((route, data), zmq.NOBLOCK)


if __name__ == "__main__":
    daemon = FakeDaemon(sys.argv[1])
    daemon.start()
    print("ready", flush=True)
    threading.Event().wait()
