"""A camera's books and its connection under one lock, and the one thread that owns the connection."""

import logging
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

from adclick_edge.errors import LineError
from adclick_edge.line.camera_books import CameraBooks, Settled
from adclick_edge.line.camera_carrier import Carried, Carrier, Uncarried
from adclick_edge.line.camera_link import CameraLink, Lost
from adclick_edge.line.camera_picture import Picture
from adclick_edge.line.camera_verdict import CameraCounts, CameraVerdict, LocalReason
from adclick_edge.line.camera_wake import Wake
from adclick_edge.line.curve import CameraKeys
from adclick_edge.line.protocol import (
    Credit,
    DaemonMessage,
    ErrorMessage,
    FrameHeader,
    Hello,
    VerdictMessage,
    Welcome,
    encode,
)

__all__ = ["CameraSession", "Request"]

STALL_NS = 1_000_000_000
"""A daemon that has all credits and answered none of their frames so long after grace is said hello to anew."""
JOIN_S = 5.0
HAND_OVER_S = 0.002
"""How long a trigger waits at most until its frame is with ZeroMQ."""
NOT_TAKEN = frozenset({"unknown_session", "bad_sequence", "too_large"})
"""Errors about a frame that is in no daemon's books."""

log = logging.getLogger(__name__)


class Request:
    """One call of ``trigger``: what is sent, when it began and how long it may take (None: the daemon's deadline)."""

    __slots__ = ("code", "deadline_ms", "part", "picture", "started_ns")

    def __init__(
        self, picture: Picture, started_ns: int, *, deadline_ms: float | None, part: str | None, code: str | None
    ) -> None:
        self.picture = picture
        self.started_ns = started_ns
        self.deadline_ms = deadline_ms
        self.part = part
        self.code = code


class CameraSession:
    """``deliver`` gets every verdict exactly once, under the session's lock, from whichever thread gave it.

    User threads copy a frame, number it and wake the session's thread, which alone touches the socket.
    """

    def __init__(
        self,
        endpoint: str,
        camera: str,
        carrier: Carrier,
        deliver: Callable[[CameraVerdict], None],
        *,
        grace_ms: float,
        software: str,
        keys: CameraKeys | None,
        clock: Callable[[], int],
    ) -> None:
        self.camera = camera
        self.session = secrets.randbits(63)
        self.last_error: str | None = None
        self.closing = False
        self._carrier = carrier
        self._deliver_one = deliver
        self._grace_ns = round(grace_ms * 1e6)
        self._software = software
        self._clock = clock
        self._boot_id = _boot_id()
        self._books = CameraBooks()
        self._changed = threading.Condition(threading.Lock())
        """Guards the books, what a welcome said, and ``closing``."""
        self._welcome: Welcome | None = None
        self._wake = Wake()
        self._link = CameraLink(endpoint, self._hello, self._wake, keys=keys, clock=clock)
        self._thread = threading.Thread(target=self._run, name=f"camera-{camera}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def connected(self) -> bool:
        with self._changed:
            return self._books.connected

    @property
    def replaced(self) -> bool:
        return self._link.replaced

    def counts(self) -> CameraCounts:
        with self._changed:
            counts = self._books.snapshot()
        counts.bad_messages += self._link.bad_messages
        return counts

    def count_callback_error(self) -> None:
        with self._changed:
            self._books.counts.callback_errors += 1

    def submit(self, request: Request, wait_s: float) -> int:
        """Send a frame or answer for it at once, waiting up to ``wait_s`` for a connection and a credit."""
        reserved, welcome = self._reserve(wait_s)
        carried: Carried | None = None
        if isinstance(reserved, int) and welcome is not None:
            try:
                copied = self._carrier.carry(request.picture, welcome)
            except BaseException:
                self._give_back(reserved)
                raise
            if isinstance(copied, Uncarried):
                self._give_back(reserved)
                self.last_error = copied.why
                reserved = copied.reason
            else:
                carried = copied
        return self._open(reserved, carried, request, welcome)

    def wait_connected(self, timeout_s: float) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._books.connected or self.closing, timeout_s)
            return self._books.connected

    def drain(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._books.pending, timeout_s)

    def close(self) -> None:
        with self._changed:
            if not self.closing:
                self.closing = True
                self._deliver(self._books.close(self._clock()))
                self._wake.set()
            self._changed.notify_all()
        self._thread.join(JOIN_S)

    def _reserve(self, wait_s: float) -> tuple[int | LocalReason, Welcome | None]:
        reserved: int | LocalReason = "no_connection"

        def try_it() -> bool:
            nonlocal reserved
            reserved = self._books.reserve()
            return isinstance(reserved, int) or self.closing

        with self._changed:
            if self.closing:
                raise LineError(f"camera {self.camera!r}: the client is closed; make a new one to trigger")
            self._changed.wait_for(try_it, wait_s)
            return reserved, self._welcome

    def _give_back(self, reserved: int) -> None:
        with self._changed:
            self._books.give_back(reserved)
            self._changed.notify_all()

    def _open(
        self, reserved: int | LocalReason, carried: Carried | None, request: Request, welcome: Welcome | None
    ) -> int:
        deadline_ms = request.deadline_ms or (welcome.deadline_ms if welcome is not None else 0.0)
        picture = request.picture
        with self._changed:
            trigger = self._books.open(
                reserved,
                part=request.part,
                started_ns=request.started_ns,
                expires_ns=request.started_ns + round(deadline_ms * 1e6) + self._grace_ns,
                now_ns=self._clock(),
            )
            if isinstance(trigger, Settled):
                self._deliver([trigger._replace(slot=carried.slot if carried is not None else None)])
                return trigger.verdict.seq
            assert carried is not None
            trigger.slot, trigger.payload = carried
            header = FrameHeader(
                seq=trigger.seq,
                format=picture.format,
                width=picture.width,
                height=picture.height,
                bit_depth=picture.bit_depth,
                deadline_ms=deadline_ms,
                sent_ns=request.started_ns,
                code=request.code,
                part=request.part,
                ring=carried.slot,
            )
            trigger.header = encode(header)
            if carried.slot is None:
                self._books.counts.message_frames += 1
            else:
                self._books.counts.ring_frames += 1
        self._wake.set()
        # Waiting leaves the interpreter to the session's thread, which otherwise might get it only when the caller has
        # computed for a whole switch interval (5 ms).
        trigger.handed_over.acquire(timeout=HAND_OVER_S)
        return trigger.seq

    def _deliver(self, settled: list[Settled]) -> None:
        """Under the lock, so that a verdict never overtakes the count of its trigger."""
        for one in settled:
            if one.slot is not None:
                self._carrier.release(one.slot)
            self._deliver_one(one.verdict)
        if settled:
            self._changed.notify_all()

    # What follows runs in the session's own thread.

    def _run(self) -> None:
        try:
            while not self.closing:
                try:
                    self._turn()
                except Exception as error:
                    # Whatever goes wrong, triggers must go on to be answered.
                    log.exception("camera %s: begins anew after an error", self.camera)
                    self._lost(self._link.drop(f"{type(error).__name__}: {error}"))
                    with self._changed:
                        self._books.counts.faults += 1
        finally:
            self._link.close()

    def _turn(self) -> None:
        if not self._send_all():
            self._lost(self._link.drop("the connection takes no more frames"))
        with self._changed:
            now = self._clock()
            self._deliver(self._books.expire(now))
            until_ns = self._books.next_expiry_ns()
            stalled_ns = self._books.stalled_since_ns()
        if stalled_ns is not None:
            until_ns = stalled_ns + STALL_NS
            if now >= until_ns:
                self._lost(self._link.drop("the daemon gave no credit back"))
        for event in self._link.turn(until_ns):
            if isinstance(event, Lost):
                self._lost(event)
            else:
                self._handle(event)

    def _send_all(self) -> bool:
        while True:
            with self._changed:
                trigger = self._books.next_unsent()
            if trigger is None:
                return True
            if not self._link.send(trigger.header, trigger.payload):
                with self._changed:
                    self._books.not_sent(trigger)
                return False
            trigger.payload = None
            trigger.handed_over.release()

    def _handle(self, message: DaemonMessage) -> None:
        with self._changed:
            now = self._clock()
            match message:
                case VerdictMessage():
                    settled = self._books.verdict(message, now)
                    if settled is not None:
                        if settled.slot is not None:
                            self._carrier.ring_answered(settled.verdict.reason)
                        self._deliver([settled])
                case Welcome():
                    self._welcome = message
                    self._books.welcomed(message.credits)
                    self._carrier.welcomed()
                    self.last_error = None
                case Credit():
                    self._books.granted(message.credits)
                case ErrorMessage():
                    self._refused(message, now)
                case _:
                    return
            self._changed.notify_all()

    def _refused(self, message: ErrorMessage, now: int) -> None:
        """Under the lock."""
        self.last_error = f"{message.code}: {message.message}"
        log.warning("camera %s: the daemon says %s", self.camera, self.last_error)
        if message.seq is None or message.code not in NOT_TAKEN:
            return  # a verdict comes too
        reason: LocalReason = "no_connection" if message.code == "unknown_session" else "refused"
        settled = self._books.refuse(message.seq, reason, now)
        self._deliver([] if settled is None else [settled])

    def _lost(self, lost: Lost) -> None:
        with self._changed:
            news = self._books.connected or self.last_error != lost.why
            self.last_error = lost.why
            self._welcome = None
            self._deliver(self._books.lost(self._clock()))
        if news:
            log.warning("camera %s: not connected: %s", self.camera, lost.why)

    def _hello(self) -> Hello:
        with self._changed:
            return Hello(
                camera=self.camera,
                session=self.session,
                next_seq=self._books.next_seq,
                unanswered=self._books.unanswered,
                boot_id=self._boot_id,
                software=self._software,
            )


def _boot_id() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
