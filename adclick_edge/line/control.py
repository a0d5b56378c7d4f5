"""How people and scripts talk to the daemon that runs: one request, one reply, over a socket in its state folder.

Whoever may use the socket (mode 0600) may tell the daemon anything, so it is the file system that asks who they are.
"""

import contextlib
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import msgspec
import zmq

from adclick_edge.errors import AdclickError, LineError
from adclick_edge.line.control_messages import (
    MAX_REPLY_BYTES,
    MAX_REQUEST_BYTES,
    Envelope,
    Reload,
    Reply,
    Request,
    Rollback,
    Shadow,
    Status,
    Stop,
    Swap,
    encode_reply,
)
from adclick_edge.line.control_socket import CONTROL_SOCKET, bind_privately, find_daemon, only_daemon, open_state

__all__ = [
    "CONTROL_SOCKET",
    "ControlServer",
    "Reload",
    "Reply",
    "Request",
    "Rollback",
    "Shadow",
    "Status",
    "Stop",
    "Swap",
    "ask",
]

MAX_WAITING = 16
"""Requests that wait for their turn; who comes on top is told so at once."""
LINGER_MS = 500
"""What a last reply, such as to `Stop`, may take to leave."""

STOPPING = "the daemon is stopping; nothing was changed"

_log = logging.getLogger(__name__)
_envelopes = msgspec.msgpack.Decoder(Envelope)
_replies = msgspec.msgpack.Decoder(Reply)


class ControlServer:
    """Answers requests at ``path`` by ``handler``, which is called from two threads.

    `Status` and `Stop` are answered at once in the first thread, even while a swap runs, so their handling must be
    quick; all others one after another in the second. AdclickErrors of the handler become replies that are not ok.
    ``path`` is `CONTROL_SOCKET` in the state folder; one daemon per state folder.
    """

    def __init__(self, path: Path, handler: Callable[[Request], Reply]) -> None:
        if path.name != CONTROL_SOCKET:
            raise LineError(f"{path}: the control socket must be called {CONTROL_SOCKET}, or nobody would find it")
        self._state = path.parent
        self._handler = handler
        self._waiting: queue.Queue[tuple[bytes, float, Request] | None] = queue.Queue(MAX_WAITING)
        self._done: deque[tuple[bytes, Reply]] = deque()
        self._stopping = threading.Event()
        self._finished = threading.Event()
        self._threads: tuple[threading.Thread, threading.Thread] | None = None
        self._held = contextlib.ExitStack()
        self._wake = -1

    def start(self) -> None:
        """LineError if another daemon runs on this state folder, or others may write to it."""
        with contextlib.ExitStack() as held:
            folder = held.enter_context(open_state(self._state))
            held.enter_context(only_daemon(folder, self._state))
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            held.callback(os.close, self._wake)
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            held.callback(context.term)
            router = context.socket(zmq.ROUTER)
            held.callback(router.close, LINGER_MS)
            router.maxmsgsize = MAX_REQUEST_BYTES
            held.enter_context(bind_privately(router, folder))
            self._held = held.pop_all()
        self._stopping.clear()
        self._finished.clear()
        self._threads = (
            threading.Thread(target=self._talk, args=(router,), name="control", daemon=True),
            threading.Thread(target=self._work, name="control-work", daemon=True),
        )
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Tell those who wait that the daemon stops, and end both threads; harmless when they do not run.

        A request that runs is waited for, at most so long. Not to be called by the handler.
        """
        if self._threads is None:
            return
        talker, worker = self._threads
        self._threads = None
        until = time.monotonic() + timeout_s
        self._stopping.set()
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=timeout_s)
        worker.join(max(0.0, until - time.monotonic()))
        self._finished.set()
        os.eventfd_write(self._wake, 1)
        talker.join(max(1.0, until - time.monotonic()))
        if worker.is_alive() or talker.is_alive():
            _log.error("control: a request still runs after %.1f s; its socket ends with the process", timeout_s)
            return
        self._held.close()

    def __enter__(self) -> "ControlServer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _talk(self, router: "zmq.Socket[bytes]") -> None:
        """The only thread that touches the socket."""
        poller = zmq.Poller()
        poller.register(router, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            finished = self._finished.is_set()
            if self._wake in ready:
                os.eventfd_read(self._wake)
            while self._done:
                _send(router, *self._done.popleft())
            if router in ready:
                self._take(router)
            if finished:
                return

    def _take(self, router: "zmq.Socket[bytes]") -> None:
        route, *parts = router.recv_multipart()
        try:
            (body,) = parts
            envelope = _envelopes.decode(body)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            _send(router, route, Reply(False, f"no request this daemon knows: {error}; use the adclick it came with"))
            return
        if isinstance(envelope.request, Status | Stop):
            _send(router, route, self._answer(envelope.request))
            return
        if self._stopping.is_set():
            _send(router, route, Reply(False, STOPPING))
            return
        try:
            self._waiting.put_nowait((route, time.monotonic() + envelope.patience_s, envelope.request))
        except queue.Full:
            _send(router, route, Reply(False, f"{MAX_WAITING} requests wait already; try again later"))

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            route, until, request = item
            if self._stopping.is_set():
                reply = Reply(False, STOPPING)
            elif time.monotonic() > until:
                reply = Reply(False, "waited too long behind other requests; nothing was changed")
            else:
                reply = self._answer(request)
            self._done.append((route, reply))
            os.eventfd_write(self._wake, 1)

    def _answer(self, request: Request) -> Reply:
        try:
            return self._handler(request)
        except AdclickError as error:
            return Reply(False, str(error))
        except Exception as error:
            _log.exception("control: %s failed", type(request).__name__)
            return Reply(False, f"{type(error).__name__}: {error}; a fault of the program, see the daemon's log")


def ask(state: Path, request: Request, timeout_s: float = 10.0) -> Reply:
    """Ask the daemon that runs on this state folder. A request refused is a reply that is not ok.

    LineError if no daemon runs there, it ends meanwhile, or does not reply in time. After the time-out a request
    that still waits is dropped; one that runs is carried out all the same.
    """
    with find_daemon(state) as endpoint, contextlib.ExitStack() as stack:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stack.callback(context.term)
        dealer = context.socket(zmq.DEALER)
        stack.callback(dealer.close, 0)
        dealer.maxmsgsize = MAX_REPLY_BYTES
        gone = dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED)
        stack.callback(gone.close, 0)
        stack.callback(dealer.disable_monitor)
        dealer.connect(endpoint)
        dealer.send(msgspec.msgpack.encode(Envelope(timeout_s, request)))
        poller = zmq.Poller()
        poller.register(dealer, zmq.POLLIN)
        poller.register(gone, zmq.POLLIN)
        ready = dict(poller.poll(round(timeout_s * 1000)))
        if dealer not in ready and not dealer.poll(0):
            what = type(request).__name__.lower()
            if gone in ready:
                raise LineError(f"{state}: the daemon ended before it replied to {what}; look at its log")
            raise LineError(
                f"{state}: no reply to {what} within {timeout_s:g} s; see `adclick status` and the daemon's log"
            )
        try:
            return _replies.decode(dealer.recv())
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise LineError(f"{state}: a reply that is none: {error}; use the adclick the daemon came with") from error


def _send(router: "zmq.Socket[bytes]", route: bytes, reply: Reply) -> None:
    # A ROUTER drops what is for a client that is gone or does not read; it never waits for one.
    with contextlib.suppress(zmq.Again):
        router.send_multipart([route, encode_reply(reply)], zmq.NOBLOCK)
