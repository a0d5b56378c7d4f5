import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import httpx
import msgspec
import pytest
from tally_samples import tally

from adclick_edge.errors import LineError
from adclick_edge.line import http_server
from adclick_edge.line.http_server import MAX_CONNECTIONS, HttpServer
from adclick_edge.line.metrics import LineMetrics
from adclick_edge.line.tally import LineTally


@dataclass
class Daemon:
    tally: LineTally = field(default_factory=tally)
    why: str | None = None
    beat_age_s: float = 0.0
    held: threading.Event = field(default_factory=threading.Event)
    """While it is not set, the books cannot be read."""

    def status(self) -> LineTally:
        assert self.held.wait(20)
        return self.tally


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    daemon = Daemon()
    daemon.held.set()
    yield daemon
    daemon.held.set()


def make_server(daemon: Daemon, address: str = "127.0.0.1:0") -> HttpServer:
    metrics = LineMetrics(daemon.status, cameras=("left", "right"), products=("flange", "lid"))
    return HttpServer(
        address, daemon.status, ready=lambda: daemon.why, alive=lambda: daemon.beat_age_s, metrics=metrics
    )


@pytest.fixture
def server(daemon: Daemon) -> Iterator[HttpServer]:
    before = set(threading.enumerate())
    server = make_server(daemon)
    server.start()
    yield server
    daemon.held.set()
    server.stop()
    end = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < end:
        time.sleep(0.01)
    assert set(threading.enumerate()) - before == set()


def get(server: HttpServer, path: str, **options: object) -> httpx.Response:
    with httpx.Client(trust_env=False, timeout=10) as client:
        return client.get(f"http://{server.address}{path}", **options)  # type: ignore[arg-type]


def connect(server: HttpServer) -> socket.socket:
    host, port = server.address.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=10)


def test_status_is_the_tally(server: HttpServer, daemon: Daemon) -> None:
    answer = get(server, "/status")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert msgspec.json.decode(answer.content, type=LineTally) == daemon.tally


def test_health_follows_the_beat(server: HttpServer, daemon: Daemon) -> None:
    assert get(server, "/healthz").status_code == 200
    daemon.beat_age_s = 2.5
    answer = get(server, "/healthz")
    assert answer.status_code == 503
    assert "2.5 s ago" in answer.text


def test_readiness_says_why_not(server: HttpServer, daemon: Daemon) -> None:
    assert get(server, "/readyz").status_code == 200
    daemon.why = "product lid is not loaded"
    answer = get(server, "/readyz")
    assert (answer.status_code, answer.text) == (503, "product lid is not loaded\n")


def test_metrics_in_the_format_asked_for(server: HttpServer) -> None:
    answer = get(server, "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'adclick_line_frames_received_total{camera="left"} 100.0' in answer.text
    answer = get(server, "/metrics", headers={"Accept": "application/openmetrics-text;version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_the_page_needs_nothing_from_outside(server: HttpServer) -> None:
    answer = get(server, "/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "http://" not in answer.text
    assert "https://" not in answer.text
    assert "innerHTML" not in answer.text  # names and failures are texts of others
    assert 'fetch("status"' in answer.text


def test_other_paths_and_methods_are_refused(server: HttpServer) -> None:
    assert get(server, "/secrets").status_code == 404
    assert get(server, "/../../etc/passwd").status_code == 404
    with httpx.Client(trust_env=False) as client:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            assert client.request(method, f"http://{server.address}/status").status_code == 405


def test_nothing_tells_what_software_serves(server: HttpServer) -> None:
    answer = get(server, "/healthz")
    assert "server" not in answer.headers
    assert answer.headers["cache-control"] == "no-store"


def test_health_is_answered_while_the_books_are_held(server: HttpServer, daemon: Daemon) -> None:
    daemon.held.clear()
    stuck = [connect(server) for _ in range(3)]
    for sock in stuck:
        sock.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
    assert get(server, "/healthz").status_code == 200
    assert b" 503 " in stuck[0].recv(100)
    daemon.held.set()
    for sock in stuck:
        sock.close()


def test_a_status_that_fails_is_an_answer(daemon: Daemon) -> None:
    def fail() -> LineTally:
        raise RuntimeError("boom")

    metrics = LineMetrics(fail, cameras=(), products=())
    server = HttpServer("127.0.0.1:0", fail, ready=lambda: None, alive=lambda: 0.0, metrics=metrics)
    server.start()
    try:
        for path in ("/status", "/metrics"):
            answer = get(server, path)
            assert answer.status_code == 500
            assert "boom" not in answer.text
    finally:
        server.stop()


def test_slow_clients_hold_nobody_up(server: HttpServer) -> None:
    slow = [connect(server) for _ in range(2 * MAX_CONNECTIONS)]
    try:
        for sock in slow:
            try:
                sock.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\nX-Slow: ")
            except OSError:
                continue  # dropped for a newer one already
        for _ in range(5):
            assert get(server, "/healthz").status_code == 200
    finally:
        for sock in slow:
            sock.close()


def test_a_silent_connection_is_dropped(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "CONNECTION_S", 0.05)
    server = make_server(daemon)
    server.start()
    try:
        with connect(server) as sock, suppress(ConnectionResetError):
            assert sock.recv(1) == b""
    finally:
        server.stop()


def test_a_head_without_end_is_refused(server: HttpServer) -> None:
    with connect(server) as sock, suppress(ConnectionError):
        sock.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000)
        assert b" 400 " in sock.recv(100)
    assert get(server, "/healthz").status_code == 200


def test_it_stops_quickly_with_connections_open(daemon: Daemon) -> None:
    server = make_server(daemon)
    server.start()
    idle = [connect(server) for _ in range(4)]
    idle[0].sendall(b"GET /status HTTP/1.1\r\n")
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 2
    assert "adclick-http" not in {thread.name for thread in threading.enumerate()}
    for sock in idle:
        sock.close()
    server.stop()
    server.start()
    assert get(server, "/healthz").status_code == 200
    server.stop()


def test_a_taken_port_is_named(server: HttpServer, daemon: Daemon) -> None:
    second = make_server(daemon, server.address)
    with pytest.raises(LineError, match=f"{server.address}: cannot listen there .*in use"):
        second.start()
    with pytest.raises(LineError, match="running already"):
        server.start()


@pytest.mark.parametrize("address", ["8600", ":8600", "localhost:", "localhost:http", "127.0.0.1:65536"])
def test_addresses_that_are_none(daemon: Daemon, address: str) -> None:
    with pytest.raises(LineError, match="expected host:port"):
        make_server(daemon, address)


def test_a_host_that_is_none(daemon: Daemon) -> None:
    with pytest.raises(LineError, match="no such host"):
        make_server(daemon, "256.256.256.256:0").start()


def test_ipv6(daemon: Daemon) -> None:
    server = make_server(daemon, "[::1]:0")
    try:
        server.start()
    except LineError:
        pytest.skip("this host has no IPv6")
    try:
        assert server.address.startswith("[::1]:")
        assert get(server, "/healthz").status_code == 200
    finally:
        server.stop()
