"""A daemon's front with a scripted engine behind it, and cameras that speak the protocol by hand."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

import msgspec
import structlog
import zmq

from adclick_edge.line.books import Books
from adclick_edge.line.config import Camera, Line, LineConfig, Product
from adclick_edge.line.front import Answered, Front
from adclick_edge.line.job import Job
from adclick_edge.line.line_sockets import bind_sockets
from adclick_edge.line.protocol import (
    CameraMessage,
    DaemonMessage,
    FrameHeader,
    Heartbeat,
    Hello,
    VerdictMessage,
    Welcome,
    decode_daemon_message,
    encode,
)
from adclick_edge.line.scheduler import Scheduler
from adclick_edge.runtime.decision import FrameVerdict

T = TypeVar("T")
PIXELS = bytes(64)


def ok(job: Job) -> FrameVerdict:
    return FrameVerdict(frame=job.name, verdict="ok", score=0.1, lower=1.0, upper=2.0, bundle_version="v1")


class FrontLine:
    """``engine`` makes a frame's verdict; it may sleep, block or raise as an engine would."""

    def __init__(
        self,
        folder: Path,
        cameras: dict[str, Camera] | None = None,
        *,
        engine: Callable[[Job], FrameVerdict] = ok,
        line: Line | None = None,
        codes: dict[str, str] | None = None,
    ) -> None:
        self.endpoint = f"ipc://{folder}/line.ipc"
        monitor = f"ipc://{folder}/monitor.ipc"
        base = line or Line(heartbeat_ms=100)
        self.config = LineConfig(
            line=msgspec.structs.replace(base, bind=(self.endpoint,), monitor=monitor),
            products={"p": Product(bundle=folder)},
            cameras=cameras or {"cam": Camera(product="p")},
        )
        self.monitor = monitor
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.books = Books({name: c.product for name, c in self.config.cameras.items()})
        self.scheduler = Scheduler(
            {name: (c.queue, c.overload) for name, c in self.config.cameras.items()},
            max_batch=1,
            margin_ms=self.config.line.answer_margin_ms,
        )
        self.answers: list[Answered] = []
        self.front = Front(
            self.config,
            bind_sockets(self.context, self.config, None),
            self.books,
            self.scheduler,
            daemon=77,
            product_for=lambda camera, code: "p" if code is None else (codes or {}).get(code),
            answered=self.answers.append,
            each_second=lambda: {"tally": b"{}"},
            log=structlog.get_logger(),
        )
        self._engine = engine
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._decode, name="decode"),
            threading.Thread(target=self._judge, name="judge"),
        ]

    def __enter__(self) -> Self:
        self.front.start()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.front.stop()
        self._stopping.set()
        self.scheduler.stop()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        assert not self.front.is_alive()
        self.context.destroy(0)

    def _decode(self) -> None:
        while not self._stopping.is_set():
            job = self.scheduler.next_raw(0.05)
            if job is not None:
                self.scheduler.decoded(job)

    def _judge(self) -> None:
        while not self._stopping.is_set():
            batch = self.scheduler.next_batch(0.05)
            if batch is None:
                continue
            for job in batch.jobs:
                self.front.post(job, self._engine(job))

    def until(self, condition: Callable[[], bool], timeout_s: float = 10) -> None:
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, self.books.cameras()
            time.sleep(0.005)


class HandCamera:
    """One connection, written and read by hand."""

    def __init__(self, line: FrontLine, name: str = "cam", *, session: int = 5, linger_ms: int = 0) -> None:
        self.name, self.session = name, session
        self.socket: zmq.Socket[bytes] = line.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, linger_ms)
        self.socket.setsockopt(zmq.RCVTIMEO, 10_000)
        self.socket.setsockopt(zmq.SNDTIMEO, 10_000)
        self.socket.connect(line.endpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def say(self, message: CameraMessage, payload: bytes | None = None) -> None:
        self.socket.send_multipart([encode(message), *([] if payload is None else [payload])])

    def hello(self, *, next_seq: int = 0, unanswered: int = 0) -> Welcome:
        self.say(Hello(camera=self.name, session=self.session, next_seq=next_seq, unanswered=unanswered))
        return self.hear(Welcome)

    def frame(
        self, seq: int, *, deadline_ms: float | None = None, code: str | None = None, part: str | None = None
    ) -> None:
        header = FrameHeader(seq=seq, format="mono8", width=8, height=8, deadline_ms=deadline_ms, code=code, part=part)
        self.say(header, PIXELS)

    def next(self) -> DaemonMessage:
        """The next message that is no heartbeat."""
        while True:
            message = decode_daemon_message(self.socket.recv())
            if not isinstance(message, Heartbeat):
                return message

    def hear(self, kind: type[T]) -> T:
        message = self.next()
        assert isinstance(message, kind), message
        return message

    def verdicts(self, count: int) -> dict[int, VerdictMessage]:
        """So many verdicts by sequence number, with what else comes left out; each may come once only."""
        found: dict[int, VerdictMessage] = {}
        while len(found) < count:
            message = self.next()
            if isinstance(message, VerdictMessage):
                assert message.seq not in found
                found[message.seq] = message
        return found
