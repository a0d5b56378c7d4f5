"""The gate of the CURVE sockets: ZeroMQ asks it (ZAP, RFC 27) whether a client's key may be a camera, and which."""

import contextlib
import logging
import os
import threading
from pathlib import Path
from types import TracebackType

import zmq

from adclick_edge.errors import LineError
from adclick_edge.line.allow_list import AllowList

__all__ = ["ZAP_DOMAIN", "Authenticator"]

ZAP_DOMAIN = b"adclick"
"""Names the sockets that ask."""

ENDPOINT = "inproc://zeromq.zap.01"
VERSION = b"1.0"
MAX_FIELD_BYTES = 255
KEY_BYTES = 32

_log = logging.getLogger(__name__)


class Authenticator:
    """Lets in clients whose key the allow-list names, as the camera named there.

    A message from such a client carries the camera's name: ``frame.get("User-Id")`` on ``recv(copy=False)``. The list is
    looked at on every handshake: a change holds from the next connection on; connections that stand are not cut.
    Start it before the sockets bind, and stop it after they closed. One per context.
    """

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", folder: Path) -> None:
        """``folder`` holds the allow-list. LineError if it is malformed."""
        self._context = context
        self._list = AllowList(folder)
        self._accepted = 0
        self._refused: dict[str, int] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake = -1

    def start(self) -> None:
        """LineError if the context has a gate already."""
        gate = self._context.socket(zmq.ROUTER)
        gate.linger = 0
        try:
            gate.bind(ENDPOINT)
        except zmq.ZMQError as error:
            gate.close()
            raise LineError(f"{ENDPOINT}: {error}; a ZeroMQ context takes one authenticator") from error
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, args=(gate, self._wake), name="authenticator", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread; harmless when it does not run."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        os.eventfd_write(self._wake, 1)
        thread.join(timeout_s)
        if not thread.is_alive():
            os.close(self._wake)

    def __enter__(self) -> "Authenticator":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def accepted(self) -> int:
        """Handshakes of cameras let in."""
        with self._lock:
            return self._accepted

    def refused(self) -> dict[str, int]:
        """Handshakes refused, by why: ``unknown_key``, ``mechanism`` (not CURVE), ``malformed`` or ``failed``.

        Clients that do not speak CURVE at all are turned away by ZeroMQ itself and not counted.
        """
        with self._lock:
            return dict(self._refused)

    def problem(self) -> str | None:
        """Why the allow-list on disk is not the one in use, if so."""
        return self._list.problem

    def _run(self, gate: "zmq.Socket[bytes]", wake: int) -> None:
        with gate, contextlib.suppress(zmq.ContextTerminated):
            poller = zmq.Poller()
            poller.register(gate, zmq.POLLIN)
            poller.register(wake, zmq.POLLIN)
            while True:
                ready = dict(poller.poll())
                if wake in ready:
                    gate.unbind(ENDPOINT)  # closing alone would free the name some time later only
                    return
                reply = self._judge(gate.recv_multipart())
                if reply is not None:
                    with contextlib.suppress(zmq.Again):
                        gate.send_multipart(reply, zmq.NOBLOCK)

    def _judge(self, parts: list[bytes]) -> list[bytes] | None:
        """The answer to one request: [route, "", version, request id, status, text, user id, metadata]."""
        if len(parts) < 5 or parts[1] != b"" or any(len(part) > MAX_FIELD_BYTES for part in parts):
            self._refuse("malformed")
            return None
        head = [parts[0], b"", VERSION, parts[3]]
        if parts[2] != VERSION or len(parts) < 8:
            return [*head, *self._refuse("malformed", b"500", b"no request of ZAP 1.0")]
        if parts[7] != b"CURVE":
            return [*head, *self._refuse("mechanism", b"400", b"CURVE is needed")]
        if len(parts) != 9 or len(parts[8]) != KEY_BYTES:
            return [*head, *self._refuse("malformed", b"500", b"no CURVE key")]
        try:
            camera = self._list.camera_of(parts[8])
        except Exception:  # a gate that died would let nobody in, and nobody would know why
            _log.exception("the allow-list could not be asked")
            return [*head, *self._refuse("failed", b"500", b"the allow-list could not be asked")]
        if camera is None:
            return [*head, *self._refuse("unknown_key", b"400", b"this key is not on the allow-list")]
        with self._lock:
            self._accepted += 1
        return [*head, b"200", b"OK", camera.encode(), b""]

    def _refuse(self, why: str, status: bytes = b"500", text: bytes = b"") -> list[bytes]:
        with self._lock:
            self._refused[why] = self._refused.get(why, 0) + 1
        return [status, text, b"", b""]
