"""The camera's side of the line, for integrators: a frame in, exactly one verdict out, whatever happens in between.

::

    with CameraClient("ipc:///tmp/adclick/line.ipc", "cam1") as camera:
        camera.wait_connected(5)
        camera.trigger(frame, part="A-1042")
        verdict = camera.verdict(timeout_s=1)
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

from numpy.typing import NDArray

from adclick_edge import __version__
from adclick_edge.errors import UsageError
from adclick_edge.line.camera_carrier import Carrier, Transport
from adclick_edge.line.camera_inbox import VerdictInbox
from adclick_edge.line.camera_picture import Picture, encoded_picture, raw_picture
from adclick_edge.line.camera_session import CameraSession, Request
from adclick_edge.line.camera_verdict import CameraCounts, CameraVerdict
from adclick_edge.line.curve import CameraKeys
from adclick_edge.line.protocol import PixelFormat

__all__ = ["CameraClient", "CameraCounts", "CameraKeys", "CameraVerdict", "Connection", "Transport"]

Connection = Literal["connecting", "connected", "replaced", "closed"]
"""``replaced``: another program connected under this camera's name; this one does not take it back."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
LONGEST_TEXT = 64
LONGEST_MS = 3_600_000
JOIN_S = 5.0

log = logging.getLogger(__name__)


class CameraClient:
    """A camera's connection to the daemon.

    Every trigger gets exactly one `CameraVerdict` by its deadline plus ``grace_ms``: the daemon's, or a local one with
    the verdict not_inspected and a `LocalReason`. Triggers are never sent twice: the part has moved on.

    ``endpoint`` is what the daemon binds, ``camera`` its name in line.toml. ``deadline_ms`` (None: the daemon's) is the
    default for each trigger. Without a connection or a credit, a trigger waits up to ``wait_ms`` for one (for the
    overload policy ``block``), then it is answered locally. ``queue`` bounds the verdicts that wait to be fetched; the
    oldest are dropped and counted. With ``on_verdict`` they are not to be fetched but passed to it, one after the
    other, in a thread of their own; what it raises is logged and counted.

    All methods may be called from any thread. Raises UsageError for arguments that cannot be, LineError for an endpoint
    that cannot be connected to. A daemon that is not there is no error: the client tries for ever.
    """

    def __init__(
        self,
        endpoint: str,
        camera: str,
        *,
        deadline_ms: float | None = None,
        transport: Transport = "auto",
        on_verdict: Callable[[CameraVerdict], object] | None = None,
        keys: CameraKeys | None = None,
        grace_ms: float = 50.0,
        wait_ms: float = 0.0,
        queue: int = 1024,
        software: str = f"adclick {__version__}",
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if not NAME.fullmatch(camera):
            raise UsageError(f"the camera name {camera!r}: letters, digits, _ . - are allowed, 64 at most")
        if transport not in ("auto", "message", "ring"):
            raise UsageError(f"the transport {transport!r}; use auto, message or ring")
        if queue < 1:
            raise UsageError(f"a queue of {queue} verdicts; at least 1 is needed")
        _check_ms("grace_ms", grace_ms, 0)
        _check_ms("wait_ms", wait_ms, 0)
        if deadline_ms is not None:
            _check_ms("deadline_ms", deadline_ms, 1)
        self.camera = camera
        self._deadline_ms = deadline_ms
        self._wait_s = wait_ms / 1e3
        self._clock = clock
        self._inbox = VerdictInbox(queue)
        self._on_verdict = on_verdict
        self._carrier = Carrier(camera, transport)
        self._session = CameraSession(
            endpoint,
            camera,
            self._carrier,
            self._inbox.put,
            grace_ms=grace_ms,
            software=software[:LONGEST_TEXT],
            keys=keys,
            clock=clock,
        )
        self._session.start()
        self._caller: threading.Thread | None = None
        if on_verdict is not None:
            self._caller = threading.Thread(target=self._call_back, args=(on_verdict,), name=f"verdicts-{camera}")
            self._caller.daemon = True
            self._caller.start()

    def __enter__(self) -> "CameraClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def connection(self) -> Connection:
        if self._session.closing:
            return "closed"
        if self._session.connected:
            return "connected"
        return "replaced" if self._session.replaced else "connecting"

    @property
    def last_error(self) -> str | None:
        """Why the connection was last lost or not made, a frame refused, or shared memory not used."""
        return self._session.last_error or self._carrier.ring_trouble

    @property
    def counts(self) -> CameraCounts:
        """A copy of all counts as they stood at one moment."""
        counts = self._session.counts()
        counts.overflow = self._inbox.overflow
        return counts

    def trigger(
        self,
        frame: NDArray[Any],
        *,
        format: PixelFormat | None = None,
        part: str | None = None,
        code: str | None = None,
        deadline_ms: float | None = None,
        bit_depth: int = 16,
    ) -> int:
        """One part: send its frame, return its sequence number (they count from 0).

        ``frame`` is uint8 [H,W,3] (rgb8, or ``format`` bgr8), uint8 [H,W] (mono8, or a bayer one) or uint16 [H,W] (mono16
        with ``bit_depth`` bits filled). It was copied when this returns, so its memory may be reused. ``part`` comes
        back in the verdict, ``code`` chooses the product (change-over). Blocks for the copy, ``wait_ms`` and at most 2 ms more.
        Raises UsageError for a frame or text that cannot be sent, LineError after `close`; such a call is no trigger.
        """
        return self._trigger(raw_picture(frame, format, bit_depth), part, code, deadline_ms)

    def trigger_encoded(
        self,
        data: bytes | bytearray | memoryview,
        format: Literal["jpeg", "png"],
        width: int,
        height: int,
        *,
        part: str | None = None,
        code: str | None = None,
        deadline_ms: float | None = None,
    ) -> int:
        """As `trigger`, for the bytes of a JPEG or PNG file of that many pixels; they are sent as they are."""
        return self._trigger(encoded_picture(data, format, width, height), part, code, deadline_ms)

    def verdict(self, timeout_s: float | None = None) -> CameraVerdict | None:
        """The next verdict, waited for up to ``timeout_s`` (None: until `close`); None if none came.

        They come in the order in which they were given, which need not be that of the triggers.
        """
        if self._on_verdict is not None:
            raise UsageError("this client passes its verdicts to on_verdict; they cannot be fetched as well")
        return self._inbox.take(timeout_s)

    def __iter__(self) -> Iterator[CameraVerdict]:
        """Verdicts until the client is closed and all were fetched."""
        while (verdict := self.verdict()) is not None:
            yield verdict

    def wait_connected(self, timeout_s: float) -> bool:
        return self._session.wait_connected(timeout_s)

    def drain(self, timeout_s: float) -> bool:
        """Wait until every trigger so far has its verdict; True if that was so in time."""
        return self._session.drain(timeout_s)

    def close(self) -> None:
        """Answer what is pending with not_inspected(closed), say bye and stop. Verdicts can be fetched afterwards."""
        self._session.close()
        self._carrier.close()
        self._inbox.close()
        if self._caller is not None and self._caller is not threading.current_thread():
            self._caller.join(JOIN_S)

    def _trigger(self, picture: Picture, part: str | None, code: str | None, deadline_ms: float | None) -> int:
        started_ns = self._clock()
        for name, text in (("part", part), ("code", code)):
            if text is not None and len(text) > LONGEST_TEXT:
                raise UsageError(f"{name} has {len(text)} characters; at most {LONGEST_TEXT} are allowed")
        if deadline_ms is not None:
            _check_ms("deadline_ms", deadline_ms, 1)
        request = Request(picture, started_ns, deadline_ms=deadline_ms or self._deadline_ms, part=part, code=code)
        return self._session.submit(request, self._wait_s)

    def _call_back(self, on_verdict: Callable[[CameraVerdict], object]) -> None:
        while (verdict := self._inbox.take()) is not None:
            try:
                on_verdict(verdict)
            except Exception:
                log.exception("camera %s: on_verdict failed on the verdict of trigger %d", self.camera, verdict.seq)
                self._session.count_callback_error()


def _check_ms(name: str, value: float, least: float) -> None:
    if not least <= value <= LONGEST_MS:
        raise UsageError(f"{name} is {value}; allowed are {least} to {LONGEST_MS} ms")
