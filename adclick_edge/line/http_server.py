"""Health, readiness, metrics and the status page over HTTP, from a thread of its own.

Everything is read-only. A connection serves one request and lives a few seconds, and when there are too many the oldest
is dropped for the newest: clients that send or read slowly hold nobody up.
"""

import asyncio
import math
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import msgspec
import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from adclick_edge.errors import LineError
from adclick_edge.line.metrics import LineMetrics
from adclick_edge.line.tally import LineTally

__all__ = ["HEALTHY_WITHIN_S", "HttpServer"]

HEALTHY_WITHIN_S: Final = 2.0
CONNECTION_S: Final = 5.0
MAX_CONNECTIONS: Final = 32
ANSWER_WITHIN_S: Final = 2.0
START_WITHIN_S: Final = 10.0
STOP_WITHIN_S: Final = 2.0
MAX_HEAD_BYTES: Final = 16 * 1024

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Connection": "close",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
}

T = TypeVar("T")


class _Droppable(Protocol):
    def drop(self) -> None: ...


class HttpServer:
    """Serves ``/healthz``, ``/readyz``, ``/metrics``, ``/status`` and a page at ``/``.

    Args:
        address: host:port or [IPv6]:port; port 0 takes a free one, see `address`.
        status: A snapshot of the books. May take a while: it runs in a thread beside the others.
        ready: None when frames of all products are judged, else why not. Must not block.
        alive: Seconds since the daemon's loop last beat. Must not block.
        metrics: What ``/metrics`` renders.

    Raises:
        LineError: The address cannot be read.
    """

    def __init__(
        self,
        address: str,
        status: Callable[[], LineTally],
        *,
        ready: Callable[[], str | None],
        alive: Callable[[], float],
        metrics: LineMetrics,
    ) -> None:
        self._host, self._port = _split(address)
        self._asked = address
        self._status = status
        self._ready = ready
        self._alive = alive
        self._metrics = metrics
        self._page = Path(__file__).with_name("status_page.html").read_bytes()
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._workers: ThreadPoolExecutor | None = None
        self._open: dict[_Droppable, asyncio.TimerHandle] = {}
        """Connections, the oldest first."""

    @property
    def address(self) -> str:
        """host:port where it listens; what was asked for while it does not."""
        if self._socket is None:
            return self._asked
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self) -> None:
        """Listen. LineError when the address is taken, cannot be reached, or the server does not come up."""
        if self._thread is not None:
            raise LineError(f"the HTTP server on {self.address} is running already; stop it first")
        self._socket = _listen(self._host, self._port, self._asked)
        self._workers = ThreadPoolExecutor(2, thread_name_prefix="adclick-http-worker")
        config = uvicorn.Config(
            self._app(),
            http=_protocol(self._open),
            loop="asyncio",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            # Behind the protocol's own bound, which drops the oldest instead of refusing the newest.
            limit_concurrency=2 * MAX_CONNECTIONS,
            backlog=2 * MAX_CONNECTIONS,
            timeout_keep_alive=1,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._run, args=(self._server, self._socket), name="adclick-http", daemon=True
        )
        self._thread.start()
        end = time.monotonic() + START_WITHIN_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > end:
                self.stop()
                raise LineError(f"the HTTP server on {self._asked} did not start; its log line says why")
            time.sleep(0.005)

    def stop(self) -> None:
        """Close every connection and end the thread, within 2 s; does nothing when it is not running."""
        thread, server = self._thread, self._server
        if thread is None or server is None:
            return
        server.force_exit = True  # the connections left are of clients that do not read
        server.should_exit = True
        thread.join(STOP_WITHIN_S)
        if thread.is_alive():
            structlog.get_logger().error("the HTTP thread did not end", address=self._asked, within_s=STOP_WITHIN_S)
        if self._workers is not None:
            self._workers.shutdown(wait=False, cancel_futures=True)
        if self._socket is not None:
            self._socket.close()
        self._thread = self._server = self._workers = self._socket = None

    def _run(self, server: uvicorn.Server, listener: socket.socket) -> None:
        try:
            asyncio.run(self._serve(server, listener))
        except Exception:
            structlog.get_logger().exception("the HTTP server ended", address=self._asked)

    async def _serve(self, server: uvicorn.Server, listener: socket.socket) -> None:
        try:
            await server.serve(sockets=[listener])
        finally:
            for connection in list(self._open):
                connection.drop()
            await asyncio.sleep(0)  # lets the loop close what was dropped

    def _app(self) -> Starlette:
        routes = {
            "/": self._get_page,
            "/healthz": self._get_health,
            "/readyz": self._get_ready,
            "/metrics": self._get_metrics,
            "/status": self._get_status,
        }
        return Starlette(
            routes=[Route(path, endpoint, methods=["GET"]) for path, endpoint in routes.items()],
            exception_handlers={404: _not_found, 405: _not_allowed},
        )

    async def _get_page(self, request: Request) -> Response:
        return Response(self._page, media_type="text/html; charset=utf-8", headers=_HEADERS)

    async def _get_health(self, request: Request) -> Response:
        age_s = self._alive()
        healthy = math.isfinite(age_s) and age_s <= HEALTHY_WITHIN_S
        said = "ok" if healthy else f"the daemon's loop last beat {age_s:.1f} s ago"
        return PlainTextResponse(said + "\n", 200 if healthy else 503, headers=_HEADERS)

    async def _get_ready(self, request: Request) -> Response:
        why = self._ready()
        return PlainTextResponse((why or "ready") + "\n", 200 if why is None else 503, headers=_HEADERS)

    async def _get_metrics(self, request: Request) -> Response:
        accept = request.headers.get("accept", "")

        def answer(rendered: tuple[bytes, str]) -> Response:
            body, content_type = rendered
            return Response(body, headers={**_HEADERS, "Content-Type": content_type})

        return await self._beside(lambda: self._metrics.render(accept), answer)

    async def _get_status(self, request: Request) -> Response:
        return await self._beside(
            lambda: msgspec.json.encode(self._status()),
            lambda body: Response(body, media_type="application/json", headers=_HEADERS),
        )

    async def _beside(self, work: Callable[[], T], answer: Callable[[T], Response]) -> Response:
        """Run ``work`` outside the event loop, so that health is answered while the books' lock is held."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                return answer(await asyncio.get_running_loop().run_in_executor(self._workers, work))
        except TimeoutError:
            return _error(503, f"the daemon gave no answer within {ANSWER_WITHIN_S:g} s")
        except Exception:
            structlog.get_logger().exception("a status request failed")
            return _error(500, "the daemon could not answer; its log says why")


def _error(code: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": message}, code, headers={**(headers or {}), **_HEADERS})


async def _not_found(request: Request, error: Exception) -> Response:
    return _error(404, "there is /, /healthz, /readyz, /metrics and /status")


async def _not_allowed(request: Request, error: Exception) -> Response:
    return _error(405, "everything here is read with GET", {"Allow": "GET, HEAD"})


def _protocol(open_now: "dict[_Droppable, asyncio.TimerHandle]") -> type[asyncio.Protocol]:
    """uvicorn's HTTP/1.1 with a bound on a connection's life, and on their number."""

    class BoundedProtocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            if len(open_now) >= MAX_CONNECTIONS:
                next(iter(open_now)).drop()
            super().connection_made(transport)
            open_now[self] = self.loop.call_later(CONNECTION_S, self.drop)

        def connection_lost(self, exc: Exception | None) -> None:
            timer = open_now.pop(self, None)
            if timer is not None:
                timer.cancel()
            super().connection_lost(exc)

        def drop(self) -> None:
            timer = open_now.pop(self, None)
            if timer is not None:
                timer.cancel()
            self.transport.abort()

    return BoundedProtocol


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise LineError(f"http address {address!r}: expected host:port, such as 127.0.0.1:8600 or [::1]:8600")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _listen(host: str, port: int, asked: str) -> socket.socket:
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise LineError(f"http address {asked}: no such host ({error}); correct line.http in line.toml") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(2 * MAX_CONNECTIONS)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise LineError(
            f"http address {asked}: cannot listen there ({error.strerror or error}); "
            "stop what uses the port or set another in line.http of line.toml"
        ) from error
    return listener
