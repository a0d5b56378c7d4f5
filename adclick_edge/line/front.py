"""The daemon's front: the one thread that talks to cameras and keeps the books.

It receives frames, answers each exactly once, and answers by itself what the others cannot: overload at once, frames
that wait too long just before their deadline, everything else at the stop. Results come from other threads by `post`.
"""

import heapq
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import zmq
from structlog.typing import FilteringBoundLogger

from adclick_edge.errors import ProtocolError
from adclick_edge.line.books import Books
from adclick_edge.line.config import LineConfig
from adclick_edge.line.job import Job
from adclick_edge.line.line_sockets import credits_of
from adclick_edge.line.protocol import (
    MAX_HEADER_BYTES,
    MAX_REGIONS,
    Bye,
    CameraMessage,
    ErrorCode,
    ErrorMessage,
    FrameHeader,
    Heartbeat,
    Hello,
    Region,
    VerdictMessage,
    Welcome,
    decode_camera_message,
    encode,
)
from adclick_edge.line.scheduler import Scheduler
from adclick_edge.line.sessions import Session, Sessions
from adclick_edge.runtime.decision import FrameVerdict, not_inspected

__all__ = ["Answered", "Front", "boot_id"]

NS_PER_MS = 1_000_000
MESSAGES_PER_TURN = 32
"""Read before deadlines are looked at again."""
MESSAGES_AT_LEAVING = 4096
TALLY_NS = 1_000_000_000
LEAVING_MS = 500
"""How long the last messages may take to leave."""
ANSWERED_AT_MOST = 64
"""Answered frames that may still stand among those to expire, beyond as many as are under way."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that was entered in the books, for those who count and report."""

    job: Job
    verdict: FrameVerdict
    total_ms: float
    in_time: bool


@dataclass(order=True, slots=True)
class _Due:
    deadline_ns: int
    number: int
    job: Job = field(compare=False)


def boot_id() -> str | None:
    """Of this host; processes that share it share the monotonic clock."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


class Front(threading.Thread):
    """Owns the sockets from `start` on. ``products`` says which product a camera and a code mean (None: unknown)."""

    def __init__(
        self,
        config: LineConfig,
        sockets: tuple["zmq.Socket[bytes]", "zmq.Socket[bytes] | None"],
        books: Books,
        scheduler: Scheduler,
        *,
        daemon: int,
        product_for: Callable[[str, str | None], str | None],
        answered: Callable[[Answered], None],
        each_second: Callable[[], Mapping[str, bytes]],
        log: FilteringBoundLogger,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """``answered`` is called for each answer, ``each_second`` gives messages to publish by topic; both must be quick."""
        super().__init__(name="front", daemon=True)
        self._config, self._books, self._scheduler = config, books, scheduler
        self._router, self._monitor = sockets
        self._daemon, self._product_for = daemon, product_for
        self._answered, self._each_second, self._log, self._clock = answered, each_second, log, clock
        self._curve = config.security.curve
        self._boot_id = boot_id()
        self._sessions = Sessions()
        self._pending: dict[int, Job] = {}
        self._due: list[_Due] = []
        self._count = 0
        self._margin_ns = int(config.line.answer_margin_ms * NS_PER_MS)
        self._heartbeat_ns = config.line.heartbeat_ms * NS_PER_MS
        self._posted: deque[tuple[Job, FrameVerdict, str | None]] = deque()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._wake_lock = threading.Lock()
        self._left = False
        self._draining = threading.Event()
        self._stopping = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self.beat_ns = clock()
        """When the loop last came round."""

    def post(self, job: Job, verdict: FrameVerdict, message: str | None = None) -> None:
        """Answer a job, from any thread. ``message`` goes to the camera and the log beside the verdict."""
        self._posted.append((job, verdict, message))
        self._nudge()

    def _nudge(self) -> None:
        with self._wake_lock:
            if not self._left:  # its number may be another file's by then
                os.eventfd_write(self._wake, 1)

    def drain(self, timeout_s: float) -> bool:
        """Turn new frames away with ``shutdown`` and wait until those taken are answered; False after the timeout."""
        self._draining.set()
        self._nudge()
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._idle.wait(0.02) and not self._posted:
                return True
        return self._idle.is_set()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Answer what is left with not_inspected(shutdown), say bye, close the sockets."""
        self._draining.set()
        self._stopping.set()
        if self.is_alive():
            self._nudge()
            self.join(timeout_s)

    # The loop

    def run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        next_tally = next_beat = self._clock()
        try:
            while not self._stopping.is_set():
                now = self._clock()
                if (gap := now - self.beat_ns) > self._heartbeat_ns:
                    self._sessions.forgive(gap)  # the process was suspended, or the host had no time
                self.beat_ns = now
                if now >= next_beat:
                    self._beat(now)
                    next_beat = now + self._heartbeat_ns // 2
                if now >= next_tally:
                    self._publish_all()
                    next_tally = now + TALLY_NS
                due = self._due[0].deadline_ns - self._margin_ns if self._due else next_beat
                wait_ms = max(0, min(due, next_beat, next_tally) - now) // NS_PER_MS
                events = dict(poller.poll(wait_ms))
                if self._wake in events:
                    os.eventfd_read(self._wake)
                self._take_posted()
                self._expire()
                if self._router in events:
                    for _ in range(MESSAGES_PER_TURN):
                        if not self._receive():
                            break
        finally:
            self._leave()

    def _leave(self) -> None:
        self._draining.set()  # also when a fault ended the loop: nobody would answer what came in now
        self._take_posted()
        for job in list(self._pending.values()):
            self._scheduler.drop(job)
            self._answer(job, not_inspected("shutdown", frame=job.name))
        for _ in range(MESSAGES_AT_LEAVING):  # what arrived meanwhile is answered with shutdown too
            if not self._receive():
                break
        for session in self._sessions.all():
            self._send(session, Bye(reason="the daemon stops"))
        self._publish_all()
        # Answers already queued in the socket leave first; its context is terminated by the daemon.
        self._router.close(LEAVING_MS)
        if self._monitor is not None:
            self._monitor.close(LEAVING_MS)
        with self._wake_lock:
            self._left = True
            os.close(self._wake)

    def _take_posted(self) -> None:
        while self._posted:
            job, verdict, message = self._posted.popleft()
            if message is not None and not job.answered:
                self._complain(job, verdict, message)
            self._answer(job, verdict)

    def _expire(self) -> None:
        now = self._clock()
        while self._due and (self._due[0].job.answered or self._due[0].deadline_ns - self._margin_ns <= now):
            job = heapq.heappop(self._due).job
            if not job.answered:
                self._scheduler.drop(job)
                self._answer(job, not_inspected("deadline", frame=job.name))
        if len(self._due) > 2 * len(self._pending) + ANSWERED_AT_MOST:  # behind one that waits, with later deadlines
            self._due = [due for due in self._due if not due.job.answered]
            heapq.heapify(self._due)

    def _beat(self, now: int) -> None:
        for session in self._sessions.silent(now, self._heartbeat_ns):
            self._log.warning("camera silent", camera=session.camera)
            self._close(session)
        for session in self._sessions.all():
            if now - session.last_sent_ns >= self._heartbeat_ns:
                self._send(session, Heartbeat(sent_ns=now))

    # From cameras

    def _receive(self) -> bool:
        """Handle one message; False when none is there."""
        try:
            parts = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        route = bytes(parts[0].buffer)
        session = self._sessions.of_route(route)
        message: CameraMessage | None = None
        try:
            if len(parts) < 2 or len(parts) > 3:
                raise ProtocolError(
                    "bad_message", f"a message of {len(parts) - 1} parts; send a header, or header and payload"
                )
            header = parts[1].buffer
            if len(header) > MAX_HEADER_BYTES:
                raise ProtocolError(
                    "bad_message", f"a header of {len(header)} bytes; at most {MAX_HEADER_BYTES} are allowed"
                )
            message = decode_camera_message(header)
            if isinstance(message, Hello):
                self._hello(route, message, parts[1])
            elif session is None:
                raise ProtocolError("unknown_session", "say hello first")
            else:
                session.last_heard_ns = self._clock()
                if isinstance(message, FrameHeader):
                    self._frame(session, message, parts[2] if len(parts) == 3 else None)
                elif not isinstance(message, Heartbeat):
                    self._log.info("camera left", camera=session.camera, reason=message.reason)
                    self._close(session)
        except ProtocolError as error:
            self._refuse(route, session, error, message.seq if isinstance(message, FrameHeader) else None)
        return True

    def _hello(self, route: bytes, hello: Hello, part: zmq.Frame) -> None:
        if hello.camera not in self._config.cameras:
            raise ProtocolError(
                "unknown_camera", f"line.toml names no camera {hello.camera!r}; add [cameras.{hello.camera}]"
            )
        if self._curve and _user_of(part) != hello.camera:
            raise ProtocolError("not_allowed", f"this key does not belong to the camera {hello.camera!r}")
        if self._draining.is_set():
            raise ProtocolError("unknown_session", "the daemon stops")
        now = self._clock()
        same_clock = self._boot_id is not None and hello.boot_id == self._boot_id
        session = Session(hello.camera, route, hello.session, same_clock, now, now)
        session.under_way = sum(_is_of(job, session) for job in self._pending.values())
        replaced, other = self._sessions.open(session)
        if other is not None:
            self._books.gone(other.camera)
        if replaced is not None:
            self._send(replaced, ErrorMessage(code="replaced", message="another connection said hello under this name"))
        self._books.hello(hello.camera, hello.session, hello.next_seq, hello.unanswered)
        camera = self._config.cameras[hello.camera]
        self._log.info("camera connected", camera=hello.camera, session=hello.session, next_seq=hello.next_seq)
        self._send(
            session,
            Welcome(
                daemon=self._daemon,
                credits=credits_of(camera.queue, camera.overload),
                deadline_ms=camera.deadline_ms,
                heartbeat_ms=self._config.line.heartbeat_ms,
                max_payload_bytes=self._config.limits.max_payload_bytes,
                local=same_clock,
            ),
        )

    def _frame(self, session: Session, header: FrameHeader, payload: zmq.Frame | None) -> None:
        if not self._books.is_new(session.camera, session.session, header.seq):
            raise ProtocolError("bad_sequence", f"trigger {header.seq} was sent before, or after a later one")
        now = self._clock()
        camera = self._config.cameras[session.camera]
        deadline_ms = camera.deadline_ms if header.deadline_ms is None else header.deadline_ms
        born = now
        if session.shares_clock and header.sent_ns is not None:
            born = min(now, header.sent_ns)
        product = self._product_for(session.camera, header.code)
        job = Job(
            camera=session.camera,
            route=session.route,
            session=session.session,
            header=header,
            payload=None if payload is None else payload.buffer,
            product=product or camera.product,
            received_ns=now,
            born_ns=born,
            deadline_ns=born + int(deadline_ms * NS_PER_MS),
        )
        self._books.receive(job)
        self._pending[id(job)] = job
        self._idle.clear()
        session.under_way += 1
        if self._draining.is_set():
            self._answer(job, not_inspected("shutdown", frame=job.name))
        elif problem := self._problem(session, header, payload, product):
            self._complain(job, not_inspected("bad_frame", frame=job.name), problem)
            self._answer(job, not_inspected("bad_frame", frame=job.name))
        elif session.under_way > credits_of(camera.queue, camera.overload):
            self._error(session, "no_credit", f"{session.under_way} frames under way", header.seq)
            self._answer(job, not_inspected("overload", frame=job.name))
        else:
            self._count += 1
            heapq.heappush(self._due, _Due(job.deadline_ns, self._count, job))
            displaced = self._scheduler.add(job)
            if displaced is not None:
                self._answer(displaced, not_inspected("overload", frame=displaced.name))

    def _problem(
        self, session: Session, header: FrameHeader, payload: zmq.Frame | None, product: str | None
    ) -> str | None:
        """Why the frame cannot be judged, as far as its header says."""
        if product is None:
            return f"line.toml has no product with the code {header.code!r}"
        if header.ring is None:
            return "the frame has neither a payload nor a slot in shared memory" if payload is None else None
        if payload is not None:
            return "the frame has both a payload and a slot in shared memory; send one of them"
        if not session.shares_clock:
            return (
                "frames in shared memory come from this host only, and the camera's hello does not say that it is on it"
            )
        return None

    def _refuse(self, route: bytes, session: Session | None, error: ProtocolError, seq: int | None) -> None:
        self._books.bad_message(None if session is None else session.camera, error.code)
        camera = None if session is None else session.camera
        self._log.warning("message refused", camera=camera, code=error.code, why=str(error)[:200])
        if session is not None:
            session.last_heard_ns = self._clock()
        self._send_to(route, ErrorMessage(code=error.code, message=str(error)[:1000], seq=seq))  # type: ignore[arg-type]

    def _close(self, session: Session) -> None:
        self._sessions.close(session)
        self._books.gone(session.camera)

    # To cameras

    def _complain(self, job: Job, verdict: FrameVerdict, message: str) -> None:
        self._log.warning(
            "frame not inspected", camera=job.camera, seq=job.seq, reason=verdict.reason, why=message[:300]
        )
        if verdict.reason == "bad_frame" and (session := self._session_of(job)) is not None:
            self._error(session, "bad_frame", message, job.seq)

    def _error(self, session: Session, code: ErrorCode, message: str, seq: int | None) -> None:
        self._send(session, ErrorMessage(code=code, message=message[:1000], seq=seq))

    def _session_of(self, job: Job) -> Session | None:
        session = self._sessions.of_route(job.route)
        return session if session is not None and _is_of(job, session) else None

    def _answer(self, job: Job, verdict: FrameVerdict) -> None:
        now = self._clock()
        if not self._books.answer(job, verdict.verdict, verdict.reason, now):
            return
        self._pending.pop(id(job), None)
        if not self._pending:
            self._idle.set()
        job.payload = job.prepared = None
        total_ms = (now - job.born_ns) / NS_PER_MS
        stage_ms = dict(job.stage_ms)
        for stage, ms in verdict.stage_ms.items():
            stage_ms[stage] = stage_ms.get(stage, 0.0) + ms
        stage_ms["waiting"] = max(0.0, (now - job.received_ns) / NS_PER_MS - sum(stage_ms.values()))
        stage_ms["total"] = total_ms
        message = VerdictMessage(
            seq=job.seq,
            verdict=verdict.verdict,
            reason=verdict.reason,
            score=verdict.score,
            lower=verdict.lower,
            upper=verdict.upper,
            product=job.product,
            bundle_version=verdict.bundle_version,
            part=job.header.part,
            stage_ms={name: round(ms, 3) for name, ms in stage_ms.items()},
            regions=tuple(
                Region(left=b.left, top=b.top, width=b.width, height=b.height, peak=b.peak)
                for b in verdict.regions[:MAX_REGIONS]
            ),
            regions_found=verdict.regions_found,
        )
        session = self._session_of(job)
        if session is not None:
            session.under_way -= 1
        if session is None or not self._send(session, message):
            self._books.undelivered(job.camera)
        self._publish(
            f"verdict.{job.camera}", msgspec.json.encode({"camera": job.camera, **msgspec.to_builtins(message)})
        )
        answered = Answered(job, msgspec.structs.replace(verdict, stage_ms=stage_ms), total_ms, now <= job.deadline_ns)
        try:
            self._answered(answered)
        except Exception as error:  # who counts must not stop who answers
            self._log.error("an answer was not counted", why=f"{type(error).__name__}: {error}")

    def _send(self, session: Session, message: VerdictMessage | Heartbeat | ErrorMessage | Welcome | Bye) -> bool:
        session.last_sent_ns = self._clock()
        return self._send_to(session.route, message)

    def _send_to(self, route: bytes, message: VerdictMessage | Heartbeat | ErrorMessage | Welcome | Bye) -> bool:
        """False where the peer is gone or reads nothing; nobody waits for it."""
        try:
            self._router.send_multipart((route, encode(message)), zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def _publish(self, topic: str, data: bytes) -> None:
        if self._monitor is not None:
            try:
                self._monitor.send_multipart((topic.encode(), data), zmq.NOBLOCK)
            except zmq.ZMQError as error:
                # PUB drops for slow readers and does not block; whatever else happens is not the line's concern.
                self._log.warning("monitor", why=str(error))

    def _publish_all(self) -> None:
        try:
            for topic, data in self._each_second().items():
                self._publish(topic, data)
        except Exception as error:  # who reports must not stop who answers
            self._log.error("the tally was not published", why=f"{type(error).__name__}: {error}")


def _is_of(job: Job, session: Session) -> bool:
    return (job.route, job.session, job.camera) == (session.route, session.session, session.camera)


def _user_of(part: zmq.Frame) -> str | None:
    """The camera that the connection's key belongs to."""
    try:
        return str(part.get("User-Id"))
    except zmq.ZMQError:
        return None
