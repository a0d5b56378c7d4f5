import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adclick_edge.commands import control as command
from adclick_edge.errors import BundleError, LineError, UsageError
from adclick_edge.line import control as module
from adclick_edge.line import systemd
from adclick_edge.line.control import (
    ControlServer,
    Reload,
    Reply,
    Request,
    Rollback,
    Shadow,
    Status,
    Stop,
    Swap,
    ask,
)
from adclick_edge.line.control_messages import MAX_REPLY_BYTES, MAX_REQUEST_BYTES, Envelope, encode_reply
from adclick_edge.line.tally import CameraTally, LineTally, ProductTally

EVERY: list[Request] = [
    Swap("flange", "/b"),
    Swap("flange", "/b", True),
    Rollback("flange"),
    Shadow("flange", "/c"),
    Shadow("flange", None),
    Status(),
    Reload(),
    Stop(),
]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    threads, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    yield
    assert set(threading.enumerate()) <= threads
    assert len(os.listdir("/proc/self/fd")) <= descriptors


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def serving(state: Path, handler: Callable[[Request], Reply]) -> ControlServer:
    return ControlServer(state / "control.ipc", handler)


def echo(request: Request) -> Reply:
    return Reply(True, "done", {"request": msgspec.to_builtins(request)})


@contextmanager
def asking(state: Path, *requests: Request) -> Iterator[list[Reply | LineError]]:
    """Each in a thread of its own; the list fills."""
    replies: list[Reply | LineError] = []

    def one(request: Request) -> None:
        try:
            replies.append(ask(state, request, 30))
        except LineError as error:
            replies.append(error)

    threads = [threading.Thread(target=one, args=(request,)) for request in requests]
    for thread in threads:
        thread.start()
    yield replies
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_requests_and_replies_keep_their_types(state: Path) -> None:
    with serving(state, echo):
        for request in EVERY:
            reply = ask(state, request)
            assert (reply.ok, reply.text) == (True, "done")
            assert msgspec.convert(reply.details["request"], Request) == request  # type: ignore[call-overload]


def test_the_socket_is_its_users_alone_and_goes_with_the_daemon(state: Path) -> None:
    old = os.umask(0)
    try:
        with serving(state, echo):
            assert stat.S_IMODE(state.stat().st_mode) == 0o700
            assert stat.S_IMODE((state / "control.ipc").stat().st_mode) == 0o600
            assert sorted(os.listdir(state)) == ["control.ipc", "control.lock"]
    finally:
        os.umask(old)
    assert os.listdir(state) == ["control.lock"]
    with pytest.raises(LineError, match="no daemon runs here; start it"):
        ask(state, Status())


def test_folders_that_others_may_write_to_are_refused(state: Path) -> None:
    state.mkdir()
    state.chmod(0o777)
    with pytest.raises(LineError, match=r"others may write here .*`chmod go-w"):
        serving(state, echo).start()
    state.chmod(0o755)
    with serving(state, echo):
        assert ask(state, Status()).ok


def test_where_no_daemon_runs(state: Path, tmp_path: Path) -> None:
    with pytest.raises(LineError, match=r"no daemon runs here \(No such file"):
        ask(state, Status())
    state.mkdir()
    with pytest.raises(LineError, match="no daemon runs here; start it"):
        ask(state, Status())
    (tmp_path / "file").write_text("")
    with pytest.raises(LineError, match="Not a directory"):
        ask(tmp_path / "file", Status())
    with pytest.raises(LineError, match="a state folder it may write to"):
        serving(tmp_path / "file", echo).start()


def test_what_a_killed_daemon_left_is_replaced(state: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from adclick_edge.line.control import ControlServer, Reply
ControlServer(Path(sys.argv[1]), lambda request: Reply(True)).start()
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", code, str(state / "control.ipc")], check=False)
    assert done.returncode == -9
    assert (state / "control.ipc").is_socket()
    with pytest.raises(LineError, match="no daemon runs here; start it"):
        ask(state, Status())
    with serving(state, echo):
        assert ask(state, Status()).ok


def test_one_daemon_per_state_folder(state: Path) -> None:
    with serving(state, echo):
        with pytest.raises(LineError, match=rf"a daemon runs here already \(process {os.getpid()}\)"):
            serving(state, echo).start()
        assert ask(state, Status()).ok
    with serving(state, echo):
        assert ask(state, Status()).ok


def test_a_daemon_that_is_just_ending_is_waited_for(state: Path) -> None:
    first, second = serving(state, echo), serving(state, echo)
    first.start()
    ending = threading.Timer(0.1, first.stop)
    ending.start()
    with second:
        assert ask(state, Status()).ok
    ending.join()


@pytest.mark.parametrize("length", [100, 107, 108, 400, 3000])
def test_state_folders_with_long_paths(tmp_path: Path, length: int) -> None:
    state = tmp_path
    while len(str(state)) < length:
        state = state / ("d" * min(200, max(1, length - len(str(state)) - 1)))
    with serving(state, echo):
        assert ask(state, Status()).ok
    assert os.listdir(state) == ["control.lock"]


def test_a_relative_state_folder(state: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with serving(Path("state"), echo):
        assert ask(Path("state"), Status()).ok
        assert ask(state, Status()).ok


def test_another_name_for_the_socket_is_refused(state: Path) -> None:
    with pytest.raises(LineError, match=r"must be called control\.ipc"):
        ControlServer(state / "other.ipc", echo)


def test_errors_of_the_handler_are_replies(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fails(request: Request) -> Reply:
        raise BundleError("b: altered; copy it again") if isinstance(request, Swap) else KeyError("flange")

    with serving(state, fails):
        assert ask(state, Swap("flange", "/b")) == Reply(False, "b: altered; copy it again")
        for request in (Rollback("flange"), Status()):
            reply = ask(state, request)
            assert not reply.ok
            assert reply.text == "KeyError: 'flange'; a fault of the program, see the daemon's log"
    assert "Rollback failed" in caplog.text


def test_replies_that_cannot_be_sent_say_so() -> None:
    large = msgspec.msgpack.decode(encode_reply(Reply(True, "x" * MAX_REPLY_BYTES)), type=Reply)
    assert (large.ok, "at most" in large.text) == (False, True)
    strange = msgspec.msgpack.decode(encode_reply(Reply(True, "", {"a": object()})), type=Reply)
    assert (strange.ok, "cannot be sent" in strange.text) == (False, True)


class Slow:
    """A handler whose swaps take until they are told to end."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.end = threading.Event()
        self.seen: list[Request] = []

    def __call__(self, request: Request) -> Reply:
        self.seen.append(request)
        if isinstance(request, Swap):
            self.started.set()
            assert self.end.wait(30)
        return Reply(True, type(request).__name__)


def test_status_and_stop_do_not_wait_for_a_swap(state: Path) -> None:
    slow = Slow()
    with serving(state, slow), asking(state, Swap("flange", "/b")) as replies:
        assert slow.started.wait(20)
        assert ask(state, Status()).text == "Status"
        assert ask(state, Stop()).text == "Stop"
        assert replies == []
        slow.end.set()
        wait_for(lambda: replies == [Reply(True, "Swap")])


def test_requests_queue_up_to_a_bound(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 2)
    slow = Slow()
    with serving(state, slow), asking(state, Swap("flange", "/b")) as first:
        assert slow.started.wait(20)
        with asking(state, Reload(), Reload(), Reload()) as others:
            wait_for(lambda: len(others) == 1)
            assert others == [Reply(False, "2 requests wait already; try again later")]
            slow.end.set()
        assert others[1:] == [Reply(True, "Reload")] * 2
        wait_for(lambda: first == [Reply(True, "Swap")])
    assert len(slow.seen) == 3


def test_a_request_whose_sender_gave_up_is_not_carried_out(state: Path) -> None:
    slow = Slow()
    with serving(state, slow), asking(state, Swap("flange", "/b")):
        assert slow.started.wait(20)
        with pytest.raises(LineError, match=r"no reply to rollback within 0.05 s"):
            ask(state, Rollback("flange"), timeout_s=0.05)
        time.sleep(0.05)
        slow.end.set()
        assert ask(state, Reload()).ok
    assert slow.seen == [Swap("flange", "/b"), Reload()]


def test_those_who_wait_at_a_stop_are_told(state: Path) -> None:
    slow = Slow()
    server = serving(state, slow)
    server.start()
    with asking(state, Swap("flange", "/b")) as first:
        assert slow.started.wait(20)
        with asking(state, Rollback("flange")) as second:
            wait_for(lambda: server._waiting.qsize() == 1)
            ending = threading.Thread(target=server.stop)
            ending.start()
            wait_for(server._stopping.is_set)
            assert not ask(state, Reload()).ok
            slow.end.set()
    ending.join()
    server.stop()
    assert first == [Reply(True, "Swap")]
    assert second == [Reply(False, "the daemon is stopping; nothing was changed")]
    assert slow.seen == [Swap("flange", "/b")]


def test_a_server_can_start_again(state: Path) -> None:
    server = serving(state, echo)
    for _ in range(2):
        with server:
            assert ask(state, Reload()).ok


def test_a_daemon_killed_while_it_swaps(state: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from adclick_edge.line.control import ControlServer, Reply, Swap
def handler(request):
    if isinstance(request, Swap):
        print("swapping", flush=True)
        time.sleep(60)
    return Reply(True)
ControlServer(Path(sys.argv[1]), handler).start()
print("ready", flush=True)
time.sleep(60)
"""
    arguments = [sys.executable, "-c", code, str(state / "control.ipc")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "ready\n"
        with asking(state, Swap("flange", "/b")) as replies:
            assert daemon.stdout.readline() == "swapping\n"
            daemon.kill()
        (error,) = replies
        assert "the daemon ended before it replied to swap" in str(error)


BODIES = st.binary(max_size=40) | st.sampled_from(
    [
        msgspec.msgpack.encode({"patience_s": 1.0, "request": {"type": "format"}}),
        msgspec.msgpack.encode({"patience_s": -1.0, "request": {"type": "status"}}),
        msgspec.msgpack.encode({"patience_s": 1.0, "request": {"type": "status"}, "v": 2}),
        msgspec.msgpack.encode({"patience_s": 1.0, "request": {"type": "swap", "product": "", "bundle": "/b"}}),
        b"\x91" * 5000,
    ]
)


@given(messages=st.lists(st.lists(BODIES, min_size=1, max_size=3), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bytes_that_are_no_request_get_a_refusal(messages: list[list[bytes]], tmp_path: Path) -> None:
    seen: list[Request] = []
    with serving(tmp_path / "state", lambda request: seen.append(request) or Reply(True)), zmq.Context() as context:
        with context.socket(zmq.DEALER) as dealer:
            dealer.linger = 0
            fd = os.open(tmp_path / "state", os.O_RDONLY)
            dealer.connect(f"ipc:///proc/self/fd/{fd}/control.ipc")
            for parts in messages:
                dealer.send_multipart(parts)
            for _ in messages:
                assert dealer.poll(20_000)
                reply = msgspec.msgpack.decode(dealer.recv(), type=Reply)
                assert not reply.ok
        os.close(fd)
        assert seen == []
        assert ask(tmp_path / "state", Status()).ok


def test_a_message_that_is_too_large_ends_its_own_connection_only(state: Path) -> None:
    with serving(state, echo):
        with pytest.raises(LineError, match="ended before it replied to swap"):
            ask(state, Swap("flange", "x" * MAX_REQUEST_BYTES), 20)
        assert ask(state, Status()).ok


def test_a_client_that_never_reads_stops_nobody(state: Path) -> None:
    big = {"text": "x" * 1_000_000}
    with serving(state, lambda _request: Reply(True, "", big)), zmq.Context() as context:
        fd = os.open(state, os.O_RDONLY)
        with context.socket(zmq.DEALER) as deaf:
            deaf.linger, deaf.rcvhwm = 0, 1
            deaf.connect(f"ipc:///proc/self/fd/{fd}/control.ipc")
            for _ in range(40):
                deaf.send(msgspec.msgpack.encode(Envelope(10.0, Status())))
            assert ask(state, Status(), 20).details == big
        os.close(fd)


def test_a_reply_that_is_none(state: Path) -> None:
    with serving(state, lambda _request: 3), pytest.raises(LineError, match="a reply that is none"):  # type: ignore[arg-type, return-value]
        ask(state, Status())


def test_somebody_elses_daemon(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: socket.socket, _address: str) -> None:
        raise PermissionError(13, "Permission denied")

    with serving(state, echo):
        monkeypatch.setattr(socket.socket, "connect", refuse)
        with pytest.raises(LineError, match=r"control.ipc: Permission denied; run this as \S+: `sudo -u "):
            ask(state, Status())


TALLY = LineTally(
    name="line1",
    daemon=1,
    started_utc="",
    taken_utc="",
    uptime_s=7200,
    ready=True,
    cameras={"cam1": CameraTally(product="flange", received=3, ok=1, pending=1, not_inspected={"overload": 1}, missed=2)},
    products={
        "flange": ProductTally(
            bundle="/b", version="v2", previous="v1", shadow="v3", shadow_frames=9, shadow_changed={"ok->ng": 2},
            alarms=("light",), last_failure="no room", notices=("approximate thresholds",),
        )
    },
    strangers={"bad_message": 5},
    latency_ms={"total": [10.0, 20.0, 30.5]},
)  # fmt: skip


@pytest.fixture
def line_file(tmp_path: Path) -> Path:
    """Only [line] state is right in it."""
    path = tmp_path / "line.toml"
    path.write_text('[line]\nstate = "state"\n[products.gone]\nbundle = "gone.bundle"\n')
    return path


def test_the_verbs(state: Path, line_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    seen: list[Request] = []

    def handler(request: Request) -> Reply:
        if isinstance(request, Status):
            return Reply(True, "", msgspec.to_builtins(TALLY))
        seen.append(request)
        return (
            Reply(True, f"{type(request).__name__} done") if not isinstance(request, Rollback) else Reply(False, "none")
        )

    bundle = tmp_path / "new.bundle"
    bundle.mkdir()
    monkeypatch.chdir(tmp_path)
    with serving(state, handler):
        command.run_swap(line_file, "flange", Path("new.bundle"))
        command.run_shadow(line_file, "flange", Path("new.bundle"))
        command.run_shadow(line_file, "flange", None)
        command.run_reload(line_file)
        with pytest.raises(LineError, match=r"^none$"):
            command.run_rollback(line_file, "flange")
        with pytest.raises(UsageError, match=r"old\.bundle: no such bundle"):
            command.run_swap(line_file, "flange", Path("old.bundle"))
        assert capsys.readouterr().out.splitlines() == ["Swap done", "Shadow done", "Shadow done", "Reload done"]
        assert seen == [
            Swap("flange", str(bundle)), Shadow("flange", str(bundle)), Shadow("flange", None), Reload(), Rollback("flange")
        ]  # fmt: skip
        command.run_status(line_file, json_output=True)
        assert msgspec.convert(json.loads(capsys.readouterr().out), LineTally) == TALLY
        command.run_status(line_file, json_output=False)
        said = capsys.readouterr().out
    for part in (
        "  in /b",
        "line1: ready, up 2.0 h", "10.0 / 20.0 / 30.5", "product flange: v2, before v1, in its shadow v3", "2 ok->ng",
        "ALARM: light drifted", "last failure: no room", "notice: approximate thresholds", "5 x bad_message",
        "camera cam1 (flange, NOT CONNECTED): received 3, ok 1, ng 0, uncertain 0, not inspected 1 overload, pending 1,",
    ):  # fmt: skip
        assert part in said


def test_a_status_of_another_version(state: Path, line_file: Path) -> None:
    with serving(state, echo), pytest.raises(LineError, match="the daemon's status is none"):
        command.run_status(line_file, json_output=False)


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"@adclick-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address.replace("@", "\0"))
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert systemd.notify(systemd.READY, "STATUS=3 cameras")
        assert listener.recv(100) == b"READY=1\nSTATUS=3 cameras"


@pytest.mark.parametrize("address", [None, "", "relative", "/nowhere/at/all"])
def test_without_systemd_nothing_happens(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert not systemd.notify(systemd.WATCHDOG)


@pytest.mark.parametrize(
    ("interval", "process", "expected"),
    [("30000000", None, 30.0), ("30000000", "own", 30.0), ("30000000", "1", None), (None, None, None), ("x", None, None),
     ("0", None, None)],
)  # fmt: skip
def test_the_watchdogs_interval(
    interval: str | None, process: str | None, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WATCHDOG_USEC", interval), ("WATCHDOG_PID", process)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value.replace("own", str(os.getpid())))
    assert systemd.watchdog_s() == expected


def unit() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in (Path(module.__file__).parent / "adclick-line.service").read_text().splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found[key] = value
    return found


def test_the_service_gives_the_daemon_what_it_needs() -> None:
    from adclick_edge.line.config import Line

    found = unit()
    assert found["Type"] == "notify"
    assert found["Restart"] == "always"
    assert found["KillSignal"] == "SIGTERM"
    assert float(found["TimeoutStopSec"]) > Line().drain_s + 10
    assert found["StateDirectory"] == found["RuntimeDirectory"] == found["User"] == "adclick"
    assert found["StateDirectoryMode"] == "0700"
    assert "PrivateTmp" not in found
    assert "ProcSubset" not in found
