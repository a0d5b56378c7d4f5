"""One camera's connection to the daemon: hello, heartbeats, back-off. Used by a single thread, and never blocks it."""

import contextlib
import time
from collections.abc import Callable
from typing import NamedTuple

import zmq
from zmq.utils.monitor import parse_monitor_message

from adclick_edge.errors import LineError, ProtocolError
from adclick_edge.line.camera_wake import Wake
from adclick_edge.line.curve import CameraKeys, connect_with_curve
from adclick_edge.line.protocol import (
    Bye,
    DaemonMessage,
    ErrorMessage,
    Heartbeat,
    Hello,
    Welcome,
    decode_daemon_message,
    encode,
)

__all__ = ["CameraLink", "Lost"]

FIRST_BACK_OFF_NS = 50_000_000
LONGEST_BACK_OFF_NS = 500_000_000
ATTEMPT_NS = 2_000_000_000
"""How long a socket may take to a welcome before another is tried."""
SILENT_BEATS = 4
SHORTEST_HEARTBEAT_NS = 20_000_000
MESSAGES_PER_TURN = 64
ZERO_COPY_BYTES = 1 << 16
"""Below this, handing a buffer over to libzmq costs more than copying it."""
MAX_MESSAGE_BYTES = 1 << 16
"""A daemon sends headers only; a peer that sends more is disconnected."""
BYE_LINGER_MS = 200
GONE = frozenset({"version", "unknown_session", "unknown_camera", "not_allowed", "replaced"})
"""Errors after which the daemon does not know this connection."""
HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class Lost(NamedTuple):
    why: str


class CameraLink:
    """Keeps one connection alive, and makes a new one for ever when it is gone.

    Frames may be sent (`send`) from a Welcome until a Lost came out of `turn`. Another thread interrupts a `turn` by setting
    ``wake``.

    After the error ``replaced`` no new attempt is made: two programs under one name would take the connection from each
    other for ever.

    Raises LineError for an endpoint or keys that ZeroMQ does not take.
    """

    def __init__(
        self,
        endpoint: str,
        hello: Callable[[], Hello],
        wake: Wake,
        *,
        keys: CameraKeys | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._endpoint = endpoint
        self._hello = hello
        self._wake = wake
        self._keys = keys
        self._clock = clock
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._welcomed = False
        self._heartbeat_ns = 0
        self._back_off_ns = FIRST_BACK_OFF_NS
        self._next_attempt_ns = 0
        self._attempt_ends_ns = 0
        self._next_hello_ns = 0
        self._hello_pause_ns = FIRST_BACK_OFF_NS
        self._last_sent_ns = 0
        self._last_heard_ns = 0
        self.replaced = False
        self.bad_messages = 0
        try:
            self._open(self._clock())
        except (zmq.ZMQError, ValueError) as error:
            self.close()
            raise LineError(f"{endpoint}: cannot connect ({error}); check the endpoint and the keys") from error

    def turn(self, until_ns: int | None) -> list[DaemonMessage | Lost]:
        """Wait for messages until ``until_ns`` (clock), a wake or a duty of the link, whichever is first."""
        now = self._clock()
        if self._socket is None and not self.replaced and now >= self._next_attempt_ns:
            self._open(now)
        if not self._beat(now):
            return [self.drop("the connection takes no more messages")]
        ready = self._wait(now, until_ns)
        events: list[DaemonMessage | Lost] = []
        why = None
        if self._socket is not None and self._socket in ready:
            why = self._read(self._socket, events)
        if why is None and self._monitor is not None and self._monitor in ready:
            why = self._read_monitor(self._monitor)
        if why is None:
            why = self._silence(self._clock())
        if why is not None:
            events.append(self.drop(why))
        return events

    def send(self, header: bytes, payload: bytes | None) -> bool:
        """Hand a message over to ZeroMQ; False if the connection takes none, and then it must be dropped."""
        if self._socket is None or not self._welcomed:
            return False
        try:
            if payload is None:
                self._socket.send(header, zmq.NOBLOCK)
            else:
                self._socket.send(header, zmq.NOBLOCK | zmq.SNDMORE)
                # bytes cannot change while libzmq reads them, so no tracker is needed.
                self._socket.send(payload, zmq.NOBLOCK, copy=len(payload) < ZERO_COPY_BYTES)
        except zmq.ZMQError:
            return False
        self._last_sent_ns = self._clock()
        return True

    def drop(self, why: str) -> Lost:
        """Give the connection up; `turn` begins anew after the back-off."""
        self._close_socket(0)
        self._next_attempt_ns = self._clock() + self._back_off_ns
        self._back_off_ns = min(2 * self._back_off_ns, LONGEST_BACK_OFF_NS)
        return Lost(why)

    def close(self) -> None:
        said_bye = self.send(encode(Bye()), None)
        self._close_socket(BYE_LINGER_MS if said_bye else 0)
        self._context.term()

    def _open(self, now: int) -> None:
        socket = self._context.socket(zmq.DEALER)
        self._socket = socket
        socket.linger = 0
        socket.setsockopt(zmq.SNDTIMEO, 0)
        socket.setsockopt(zmq.RCVTIMEO, 0)
        socket.setsockopt(zmq.SNDHWM, 8192)  # credits bound what is under way, not this
        socket.setsockopt(zmq.RCVHWM, 8192)
        socket.setsockopt(zmq.IMMEDIATE, 1)  # writable means connected
        socket.setsockopt(zmq.RECONNECT_IVL, FIRST_BACK_OFF_NS // 1_000_000)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, LONGEST_BACK_OFF_NS // 1_000_000)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        if self._keys is not None:
            connect_with_curve(socket, self._keys)
        self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED | HANDSHAKE_FAILED)
        socket.connect(self._endpoint)
        self._welcomed = False
        self._attempt_ends_ns = now + ATTEMPT_NS
        self._next_hello_ns = now
        self._hello_pause_ns = FIRST_BACK_OFF_NS

    def _beat(self, now: int) -> bool:
        if self._socket is None:
            return True
        if self._welcomed:
            due = now - self._last_sent_ns >= self._heartbeat_ns
            return not due or self.send(encode(Heartbeat(sent_ns=now)), None)
        if now >= self._next_hello_ns and self._socket.poll(0, zmq.POLLOUT):
            with contextlib.suppress(zmq.Again):  # disconnected just now; said again after the pause
                self._socket.send(encode(self._hello()), zmq.NOBLOCK)
            self._next_hello_ns = now + self._hello_pause_ns
            self._hello_pause_ns = min(2 * self._hello_pause_ns, LONGEST_BACK_OFF_NS)
        return True

    def _wait(self, now: int, until_ns: int | None) -> dict[object, int]:
        items: list[tuple[zmq.Socket[bytes] | int, int]] = [(self._wake.fd, zmq.POLLIN)]
        limits = [] if until_ns is None else [until_ns]
        if self._socket is None:
            if not self.replaced:
                limits.append(self._next_attempt_ns)
        else:
            wanted = zmq.POLLIN
            if self._welcomed:
                limits.append(self._last_sent_ns + self._heartbeat_ns)
                limits.append(self._last_heard_ns + SILENT_BEATS * self._heartbeat_ns)
            else:
                limits.append(self._attempt_ends_ns)
                if now < self._next_hello_ns:
                    limits.append(self._next_hello_ns)
                else:
                    wanted |= zmq.POLLOUT
            items.append((self._socket, wanted))
            if self._monitor is not None:
                items.append((self._monitor, zmq.POLLIN))
        # Rounded up: poll counts whole milliseconds, and a turn too early would spin.
        timeout_ms = max(0, -(-(min(limits) - now) // 1_000_000)) if limits else -1
        ready: dict[object, int] = dict(zmq.zmq_poll(items, timeout_ms))
        if self._wake.fd in ready:
            self._wake.clear()
        return ready

    def _read(self, socket: zmq.Socket[bytes], events: list[DaemonMessage | Lost]) -> str | None:
        """Append what the daemon said; returns why the connection is gone, if it is."""
        for _ in range(MESSAGES_PER_TURN):
            try:
                parts = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            self._last_heard_ns = self._clock()
            try:
                message = decode_daemon_message(parts[0])
            except ProtocolError as error:
                self.bad_messages += 1
                if error.code == "version":
                    return str(error)
                continue
            if isinstance(message, Welcome):
                if self._welcomed:
                    continue  # of a hello said twice; its credits were counted
                self._welcome(message)
            elif not self._welcomed and not isinstance(message, ErrorMessage):
                continue
            events.append(message)
            if isinstance(message, ErrorMessage) and message.code in GONE:
                self.replaced = message.code == "replaced"
                return f"{message.code}: {message.message}"
            if isinstance(message, Bye):
                return f"the daemon said bye {message.reason}".rstrip()
        return None

    def _welcome(self, message: Welcome) -> None:
        self._welcomed = True
        self._last_sent_ns = self._last_heard_ns
        self._heartbeat_ns = max(SHORTEST_HEARTBEAT_NS, round(message.heartbeat_ms * 1e6))
        self._back_off_ns = FIRST_BACK_OFF_NS

    def _read_monitor(self, monitor: zmq.Socket[bytes]) -> str | None:
        why = None
        while monitor.poll(0):
            event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))["event"]
            if event & HANDSHAKE_FAILED:
                why = "the daemon refused the handshake; check the keys and the daemon's list of cameras"
            elif self._welcomed:
                why = why or "the daemon closed the connection"
        return why

    def _silence(self, now: int) -> str | None:
        if self._socket is None:
            return None
        if self._welcomed:
            silent_ns = now - self._last_heard_ns
            return "the daemon is silent" if silent_ns >= SILENT_BEATS * self._heartbeat_ns else None
        return "no welcome from the daemon" if now >= self._attempt_ends_ns else None

    def _close_socket(self, linger_ms: int) -> None:
        socket, self._socket = self._socket, None
        monitor, self._monitor = self._monitor, None
        self._welcomed = False
        if socket is not None:
            if monitor is not None:
                socket.disable_monitor()
                monitor.close(0)
            socket.close(linger_ms)
