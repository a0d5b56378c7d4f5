import http.server
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
import zmq
from rich.console import Console
from tally_samples import empty, later, tally

from adclick_edge.commands import shift as shift_command
from adclick_edge.commands import top as top_command
from adclick_edge.errors import AdclickError, ConfigError, LineError, UsageError
from adclick_edge.line.monitor import CameraVerdict, HttpSource, MonitorSource
from adclick_edge.line.protocol import VerdictMessage
from adclick_edge.line.shift import ShiftBook
from adclick_edge.line.shift_figures import ShiftSummary
from adclick_edge.line.tally import LineTally
from adclick_edge.line.top import TopState, render, watch


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def state(clock: Clock | None = None) -> TopState:
    return TopState("ipc:///m", clock=clock or Clock(), wall=lambda: datetime(2026, 11, 2, 6, 7, 8))


def screen(state: TopState, width: int = 150) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(render(state))
    return out.getvalue()


def verdict(seq: int = 1, said: str = "ok", total_ms: float = 20.0, **fields: object) -> CameraVerdict:
    values = {"seq": seq, "verdict": said, "stage_ms": {"total": total_ms}, **fields}
    return CameraVerdict("left", VerdictMessage(**values))  # type: ignore[arg-type]


def json_of(message: CameraVerdict) -> bytes:
    return msgspec.json.encode({"camera": message.camera, **msgspec.to_builtins(message.message)})


# The screen


def test_no_daemon_is_said() -> None:
    shown = state()
    assert "no daemon at ipc:///m; trying on" in screen(shown)
    shown.trouble = "connection refused"
    assert "(connection refused)" in screen(shown)


def test_the_screen_shows_the_tally() -> None:
    shown = state()
    shown.feed(tally())
    text = screen(shown)
    for part in ("press 3", "READY", "up 1h00m", "4.2 frames/s", "p99 30.0 ms", "● left", "○ right", "flange", "3-abc"):
        assert part in text
    left = next(line for line in text.splitlines() if "left" in line).split()
    assert left == ["●", "left", "flange", "100", "80", "7", "5", "7", "1", "1", "2", "1", "-", "-"]
    assert "4-def: 3 of 50 differ" in text
    assert "5 queued of 12 offered" in text
    assert "DO NOT ADD UP" not in text


@pytest.mark.parametrize(
    ("fields", "badge"),
    [({"ready": False}, "NOT READY"), ({"stopping": True}, "STOPPING"), ({}, " READY ")],
)
def test_the_badge(fields: dict[str, object], badge: str) -> None:
    shown = state()
    shown.feed(tally(**fields))
    assert badge in screen(shown)


def test_a_daemon_that_falls_silent_is_seen() -> None:
    clock = Clock()
    shown = state(clock)
    shown.feed(tally())
    clock.now_s += 2
    assert "NO DAEMON" not in screen(shown)
    clock.now_s += 5
    assert "NO DAEMON for 7 s" in screen(shown)
    shown.feed(tally())
    assert "NO DAEMON" not in screen(shown)


def test_unbalanced_counts_are_seen() -> None:
    shown, taken = state(), tally()
    taken.cameras["left"].ok += 1
    shown.feed(taken)
    assert "THE COUNTS DO NOT ADD UP" in screen(shown)


def test_times_per_camera_come_from_verdicts() -> None:
    shown = state()
    shown.feed(tally())
    for ms in range(1, 101):
        shown.feed(verdict(total_ms=float(ms)))
    assert shown.percentiles("left") == (50.0, 99.0)
    assert shown.percentiles("right") is None
    assert next(line for line in screen(shown).splitlines() if "left" in line).split()[-2:] == ["50.0", "99.0"]


def test_events_tell_what_changed() -> None:
    shown = state()
    before = tally()
    shown.feed(before)
    after = later(before, not_inspected={"overload": 3})
    after.ready = False
    after.cameras["right"].connected = True
    after.cameras["left"].missed += 2
    flange = after.products["flange"]
    flange.version, flange.alarms, flange.failed_swaps, flange.last_failure = "4-def", ("focus",), 1, "too old"
    shown.feed(after)
    assert [text for _, _, text in shown.events] == [
        "not ready",
        "camera left: 3 not inspected",
        "camera left: 2 triggers missed",
        "camera right connected",
        "flange: 3-abc -> 4-def",
        "flange: swap refused: too old",
        "flange: focus drifts",
        "flange: light is back",
    ]
    shown.feed(tally(daemon=8))
    shown.feed(verdict(9, "ng", score=2.75, lower=1.0, upper=2.0, part="A7"))
    shown.feed(verdict(10, "ok"))
    assert [text for _, _, text in shown.events][-2:] == [
        "the daemon was restarted",
        "left/9: ng, score 2.75, part A7",
    ]
    assert "06:07:08  the daemon was restarted" in screen(shown)
    for _ in range(100):
        shown.feed(verdict(11, "ng"))
    assert len(shown.events) == 10


def test_names_are_not_taken_for_markup() -> None:
    shown = state()
    taken = tally(name="[bold]x[/]")
    taken.products["[red]p"] = msgspec.structs.replace(taken.products["lid"], version="[/nothing]")
    shown.feed(taken)
    text = screen(shown)
    for name in ("[bold]x[/]", "[red]p", "[/nothing]"):
        assert name in text


def test_a_narrow_terminal_is_no_error() -> None:
    shown = state()
    shown.feed(tally())
    for width in (20, 40, 80):
        assert max(len(line) for line in screen(shown, width).splitlines()) <= width


# Where it comes from


@contextmanager
def publisher(messages: list[list[bytes]]) -> Iterator[str]:
    """Publishes the messages over and over until it is left."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sock = context.socket(zmq.PUB)
    sock.setsockopt(zmq.LINGER, 0)
    port = sock.bind_to_random_port("tcp://127.0.0.1")
    over = threading.Event()

    def publish() -> None:
        while not over.wait(0.02):
            for parts in messages:
                sock.send_multipart(parts)

    thread = threading.Thread(target=publish, name="publisher")
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        over.set()
        thread.join(5)
        sock.close(0)
        context.term()


@contextmanager
def page(body: bytes, code: int = 200) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code if self.path == "/status" else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="page")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(5)
        server.server_close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def gather(source: MonitorSource | HttpSource, wanted: int) -> list[LineTally | CameraVerdict]:
    found: list[LineTally | CameraVerdict] = []
    end = time.monotonic() + 10
    while len(found) < wanted and time.monotonic() < end:
        found += source.poll(0.1)
    return found


def test_the_monitor_socket_is_read() -> None:
    said = verdict(9, "ng", score=2.75)
    messages = [[b"tally", msgspec.json.encode(tally())], [b"verdict.left", json_of(said)], [b"other", b"x"]]
    with publisher(messages) as endpoint:
        source = MonitorSource(endpoint)
        try:
            found = gather(source, 4)
        finally:
            source.close()
    assert tally() in found
    assert said in found
    assert all(item in (tally(), said) for item in found)


def test_messages_of_another_version_are_skipped() -> None:
    messages = [[b"tally", b"{}"], [b"tally"], [b"verdict.\xff", b"{}"], [b"verdict.left", json_of(verdict())]]
    with publisher(messages) as endpoint:
        source = MonitorSource(endpoint)
        try:
            found = gather(source, 2)
            assert source.trouble is not None
        finally:
            source.close()
    assert set(map(type, found)) == {CameraVerdict}


def test_a_monitor_without_daemon_gives_nothing(tmp_path: Path) -> None:
    source = MonitorSource(f"ipc://{tmp_path}/none")
    assert source.poll(0.05) == []
    source.close()
    with pytest.raises(LineError, match="expected ipc://PATH"):
        MonitorSource("nonsense")


def test_status_is_polled() -> None:
    with page(msgspec.json.encode(tally())) as url:
        assert gather(HttpSource(url), 1) == [tally()]
        assert gather(HttpSource(url.removeprefix("http://")), 1) == [tally()]


@pytest.mark.parametrize(("body", "code", "why"), [(b"{", 200, "truncated"), (b"{}", 503, "HTTP 503")])
def test_an_answer_that_is_none(body: bytes, code: int, why: str) -> None:
    with page(body, code) as url:
        source = HttpSource(url)
        assert source.poll(0.1) == []
        assert why in str(source.trouble)


def test_a_daemon_that_is_not_there_is_tried_again() -> None:
    source = HttpSource(f"http://127.0.0.1:{free_port()}")
    assert source.poll(0.1) == []
    assert "refused" in str(source.trouble)
    assert source.poll(0.01) == []


@pytest.mark.parametrize("url", ["https://host:1", "http://", "http://h:port", "ftp://x", ""])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(LineError, match="expected http://HOST:PORT"):
        HttpSource(url)


class Once:
    """Gives one tally, then presses Ctrl-C."""

    where = "here"
    trouble: str | None = None

    def __init__(self) -> None:
        self.polls = 0

    def poll(self, timeout_s: float) -> list[LineTally | CameraVerdict]:
        self.polls += 1
        if self.polls > 3:
            raise KeyboardInterrupt
        time.sleep(timeout_s)
        return [tally()]

    def close(self) -> None:
        pass


def test_watching_ends_with_ctrl_c() -> None:
    out = io.StringIO()
    watch(Once(), Console(file=out, width=120, force_terminal=True), per_second=50)
    assert "press 3" in out.getvalue()
    assert out.getvalue().count("\x1b[?1049h") == out.getvalue().count("\x1b[?1049l") == 1  # the terminal is given back


# The verbs


def top_once(**options: object) -> None:
    values: dict[str, object] = {"line_file": None, "monitor": None, "http": None, "once": True, "json_output": False}
    top_command.run(**{**values, **options})  # type: ignore[arg-type]


def test_one_snapshot_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    with page(msgspec.json.encode(tally())) as url:
        top_once(http=url)
        assert "● left" in capsys.readouterr().out
        top_once(http=url, json_output=True)
    assert json.loads(capsys.readouterr().out)["name"] == "press 3"


def test_a_snapshot_without_daemon_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LineError, match=r"no daemon at ipc.* within 0\.1 s"):
        top_once(monitor=f"ipc://{tmp_path}/none", timeout_s=0.1)
    with pytest.raises(LineError, match="refused"):
        top_once(http=f"127.0.0.1:{free_port()}", timeout_s=0.1)


@pytest.mark.parametrize("options", [{}, {"monitor": "ipc://x", "http": "h:1"}])
def test_one_place_must_be_named(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="name one of"):
        top_once(**options)


def line_file(folder: Path, *lines: str) -> Path:
    (folder / "flange.bundle").mkdir(exist_ok=True)
    (folder / "flange.bundle" / "manifest.json").touch()
    path = folder / "line.toml"
    text = ["[line]", f'bind = ["ipc://{folder}/line.ipc"]', *lines]
    text += ["[products.flange]", 'bundle = "flange.bundle"', "[cameras.left]", 'product = "flange"']
    path.write_text("\n".join(text) + "\n")
    return path


def test_the_line_file_names_the_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with publisher([[b"tally", msgspec.json.encode(tally())]]) as endpoint:
        top_once(line_file=line_file(tmp_path, f'monitor = "{endpoint}"'))
    assert "press 3" in capsys.readouterr().out
    with page(msgspec.json.encode(tally(name="by http"))) as url:
        top_once(line_file=line_file(tmp_path, f'http = "{url.removeprefix("http://")}"'))
    assert "by http" in capsys.readouterr().out


def test_the_running_shift_from_what_was_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = line_file(tmp_path)
    with pytest.raises(LineError, match="no daemon has run"):
        shift_command.run(path, None, False)
    book = ShiftBook(tmp_path / "state", tmp_path / "reports", ("06:00",))
    book.observe(empty())
    book.observe(later(empty(), ok=3, ng=1))
    book.close()
    shift_command.run(path, None, False)
    said = capsys.readouterr().out
    assert "4 received: 3 ok, 1 ng, 0 uncertain, 0 not inspected" in said
    assert "the counts add up" in said
    shift_command.run(path, tmp_path / "out" / "shift.json", True)
    printed = msgspec.json.decode(capsys.readouterr().out, type=ShiftSummary)
    assert printed.counts.ok == 3
    assert msgspec.json.decode((tmp_path / "out" / "shift.json").read_bytes(), type=ShiftSummary) == printed
    shift_command.run(path, tmp_path / "shift.html", False)
    assert "The counts add up" in (tmp_path / "shift.html").read_text()


def test_reports_that_cannot_be_written(tmp_path: Path) -> None:
    path = line_file(tmp_path)
    book = ShiftBook(tmp_path / "state", tmp_path / "reports", ("06:00",))
    book.observe(empty())
    with pytest.raises(UsageError, match=r"written as \.html or \.json"):
        shift_command.run(path, tmp_path / "shift.pdf", False)
    with pytest.raises(LineError, match="cannot be written"):
        shift_command.run(path, path / "shift.html", False)
    with pytest.raises(ConfigError):
        shift_command.run(tmp_path / "none.toml", None, False)
    assert issubclass(ConfigError, AdclickError)
