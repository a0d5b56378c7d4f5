import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.line import logs
from adclick_edge.line.logs import MAX_KEYS, RateLimit, configure_logs, report_suppressed


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = list(logging.getLogger().handlers)
    yield
    logging.getLogger().handlers[:] = before
    logs._limit = None
    structlog.reset_defaults()


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_where_no_person_looks() -> None:
    stream = io.StringIO()
    configure_logs(stream=stream)
    structlog.get_logger().warning("camera silent", camera="left", seconds=1.5)
    [line] = lines(stream)
    assert line["event"] == "camera silent"
    assert (line["camera"], line["seconds"], line["level"]) == ("left", 1.5, "warning")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(line["time"]))


def test_text_on_a_terminal_and_as_asked() -> None:
    terminal, file = Terminal(), io.StringIO()
    configure_logs(stream=terminal)
    structlog.get_logger().info("ready", line="press 3")
    assert "ready" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")
    configure_logs(False, stream=file)
    structlog.get_logger().info("ready", line="press 3")
    assert re.fullmatch(r"20\S+Z \[info +\] ready +line='press 3'\n", file.getvalue())
    assert "\x1b" not in file.getvalue()


def test_a_stuck_camera_does_not_fill_the_disk() -> None:
    stream, clock = io.StringIO(), Clock()
    configure_logs(True, stream=stream, per_minute=3, clock=clock)
    log = structlog.get_logger()
    for _ in range(100):
        log.warning("message refused", camera="left")
    log.warning("message refused", camera="right")
    log.warning("camera silent", camera="left")
    assert len(lines(stream)) == 5
    clock.now_s += 60
    log.warning("message refused", camera="left")
    assert lines(stream)[-1]["suppressed"] == 97
    log.warning("message refused", camera="left")
    assert "suppressed" not in lines(stream)[-1]


def test_what_was_left_out_is_reported_when_it_does_not_come_again() -> None:
    stream, clock = io.StringIO(), Clock()
    configure_logs(True, stream=stream, per_minute=1, clock=clock)
    for camera in ("left", "right"):
        for _ in range(5):
            structlog.get_logger().warning("message refused", camera=camera)
    report_suppressed()
    assert len(lines(stream)) == 2
    clock.now_s += 61
    report_suppressed()
    report_suppressed()
    told = [(line["of"], line["camera"], line["suppressed"]) for line in lines(stream)[2:]]
    assert told == [("message refused", "left", 4), ("message refused", "right", 4)]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), max_size=120), st.integers(1, 4))
def test_every_line_is_shown_or_counted(calls: list[tuple[str, int]], per_minute: int) -> None:
    clock = Clock()
    limit = RateLimit(per_minute, clock)
    shown = counted = 0
    for event, pause in calls:
        clock.now_s += pause
        try:
            passed = limit(None, "info", {"event": event})
        except structlog.DropEvent:
            continue
        shown += 1
        counted += passed.get("suppressed", 0)
    clock.now_s += 61
    counted += sum(count for *_, count in limit.expired())
    assert shown + counted == len(calls)
    assert limit.expired() == []


def test_memory_is_bounded() -> None:
    clock = Clock()
    limit = RateLimit(1, clock)
    for i in range(3 * MAX_KEYS):
        for _ in range(2):
            with suppress(structlog.DropEvent):
                limit(None, "info", {"event": f"event {i}"})
    assert len(limit._seen) <= MAX_KEYS + 1
    clock.now_s += 61
    left_out = limit.expired()
    assert sum(count for *_, count in left_out) == 3 * MAX_KEYS
    assert ("other events", "", 2 * MAX_KEYS - 1) in left_out or ("other events", "", 2 * MAX_KEYS) in left_out


def test_no_secret_is_written() -> None:
    stream = io.StringIO()
    configure_logs(True, stream=stream)
    structlog.get_logger().info(
        "keys", secret_key="rq:rM>}U", nested={"Password": "rq:rM>}U"}, key=b"rq:rM>}U", allowed=["left"]
    )
    assert "rq:rM" not in stream.getvalue()
    [line] = lines(stream)
    assert (line["secret_key"], line["nested"], line["key"]) == ("***", {"Password": "***"}, "8 bytes")
    assert line["allowed"] == ["left"]


@pytest.mark.parametrize("as_json", [True, False])
def test_texts_of_peers_stay_one_short_line(as_json: bool) -> None:
    stream = io.StringIO()
    configure_logs(as_json, stream=stream)
    structlog.get_logger().info("hello", software="a\nb\x1b[31m" + "x" * 10_000, score=float("nan"))
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()
    assert len(stream.getvalue()) < 2500


def test_tracebacks_show_no_values() -> None:
    stream = io.StringIO()
    for as_json in (True, False):
        configure_logs(as_json, stream=stream)
        try:
            token = "rq:rM" + str(1)
            raise RuntimeError("boom") from ValueError(len(token))
        except RuntimeError:
            structlog.get_logger().exception("failed")
    assert stream.getvalue().count("RuntimeError: boom") == 2
    assert "rq:rM1" not in stream.getvalue()


def test_libraries_log_the_same_way() -> None:
    stream = io.StringIO()
    configure_logs(True, stream=stream, per_minute=2)
    configure_logs(True, stream=stream, per_minute=2)  # again, as a second daemon of a test would
    for number in range(9):
        logging.getLogger("uvicorn.error").warning("request %d failed", number)
    logging.getLogger("uvicorn.error").info("not shown")
    assert [line["event"] for line in lines(stream)] == ["request 0 failed", "request 1 failed"]
    assert lines(stream)[0]["logger"] == "uvicorn.error"


@pytest.mark.parametrize("fail", [OSError("disk full"), ValueError("closed file")])
def test_a_log_that_cannot_be_written_stops_nothing(fail: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_: str) -> int:
        raise fail

    stream = io.StringIO()
    monkeypatch.setattr(stream, "write", write)
    configure_logs(True, stream=stream)
    structlog.get_logger().error("still here")


def test_levels_below_are_not_shown() -> None:
    stream = io.StringIO()
    configure_logs(True, stream=stream, level=logging.WARNING)
    log: Callable[[str], None] = structlog.get_logger().info
    log("quiet")
    assert stream.getvalue() == ""
