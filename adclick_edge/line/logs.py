"""Logs of the line: structured lines on stderr, JSON where no person looks; the same event is not repeated for ever.

Events are constant texts and what varies is in their fields, so that repetitions are told by event and camera.
"""

import logging
import math
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, TextIO

import structlog

__all__ = ["RateLimit", "configure_logs", "report_suppressed"]

WINDOW_S: Final = 60.0
MAX_KEYS: Final = 512
MAX_TEXT: Final = 2000
"""Characters of one value: a peer's message is not to fill the disk."""
HIDDEN: Final = "***"
SECRET_WORDS: Final = ("secret", "password", "passwd", "token", "private", "credential")

Event = MutableMapping[str, Any]


@dataclass
class _Seen:
    since_s: float
    passed: int = 0
    suppressed: int = 0


class RateLimit:
    """A structlog processor: at most ``per_minute`` lines of the same event of the same camera within a minute.

    The first line after that minute carries ``suppressed``, the number left out; `expired` gives the numbers of events
    that did not come again. Memory is bounded: of more than 512 kinds of events the one quiet for longest is forgotten,
    its number kept under ``other events``.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[str, str], _Seen] = OrderedDict()
        self._forgotten = 0

    def __call__(self, logger: object, method: str, event: Event) -> Event:
        key = (str(event.pop("limit_key", event.get("event", ""))), str(event.get("camera", "")))
        with self._lock:
            now = self._clock()
            seen = self._seen.setdefault(key, _Seen(now))
            self._seen.move_to_end(key)
            if now - seen.since_s >= WINDOW_S:
                if seen.suppressed:
                    event["suppressed"] = seen.suppressed
                seen.since_s, seen.passed, seen.suppressed = now, 0, 0
            if seen.passed >= self._per_minute:
                seen.suppressed += 1
                raise structlog.DropEvent
            seen.passed += 1
            while len(self._seen) > MAX_KEYS:
                self._forgotten += self._seen.popitem(last=False)[1].suppressed
        return event

    def expired(self) -> list[tuple[str, str, int]]:
        """(event, camera, lines left out) of minutes that are over; each is given once."""
        with self._lock:
            now = self._clock()
            over = [(key, seen) for key, seen in self._seen.items() if now - seen.since_s >= WINDOW_S]
            counts = [(*key, seen.suppressed) for key, seen in over if seen.suppressed]
            for key, _ in over:
                del self._seen[key]
            if self._forgotten:
                counts.append(("other events", "", self._forgotten))
                self._forgotten = 0
        return counts


_limit: RateLimit | None = None


def configure_logs(
    json: bool | None = None,
    *,
    stream: TextIO | None = None,
    level: int = logging.INFO,
    per_minute: int = 10,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Set up structlog, and the standard library's loggers to go the same way (those of libraries from WARNING on).

    Args:
        json: One JSON object per line; default: exactly where ``stream`` is no terminal.
        stream: Default: stderr.
        level: Of the lowest lines shown.
        per_minute: Most lines of one event of one camera within a minute.
        clock: Seconds, monotonic.
    """
    global _limit
    out = sys.stderr if stream is None else stream
    as_json = not out.isatty() if json is None else json
    _limit = RateLimit(per_minute, clock)
    finish: tuple[Any, ...]
    if as_json:
        finish = (structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str))
    else:
        # Tracebacks stay plain: rich ones show local variables, and a key may be among them.
        plain = structlog.dev.plain_traceback
        finish = (structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=plain, timestamp_key="time"),)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _limit,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            _milliseconds,
            _clean,
            *finish,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Writer(out),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, _Forward)]:
        root.removeHandler(handler)
    root.addHandler(_Forward(max(level, logging.WARNING)))


def report_suppressed() -> None:
    """Log how many lines were left out; called about once a second by whoever keeps the daemon's house."""
    if _limit is None:
        return
    for event, camera, count in _limit.expired():
        fields = {"camera": camera} if camera else {}
        # A key of its own each, so that the report cannot be suppressed by its own limit.
        structlog.get_logger().warning(
            "lines left out", of=event, suppressed=count, limit_key=f"left out: {event}", **fields
        )


class _Writer:
    """Writes lines and never raises: a full disk or a closed terminal must not stop the line."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, message: str) -> None:
        try:
            self._stream.write(message + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            pass

    log = debug = info = warn = warning = error = critical = fatal = exception = failure = err = msg


class _Forward(logging.Handler):
    """Lines of the standard library's loggers, into structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = str(record.msg)
        structlog.get_logger().log(
            record.levelno,
            message,
            logger=record.name,
            limit_key=f"{record.name}: {record.msg}",
            exc_info=record.exc_info,
        )


def _milliseconds(logger: object, method: str, event: Event) -> Event:
    """2026-01-31T10:00:00.123456Z -> 2026-01-31T10:00:00.123Z"""
    stamp = str(event["time"]).removesuffix("Z")
    seconds, _, fraction = stamp.partition(".")
    event["time"] = f"{seconds}.{fraction[:3]:0<3}Z"
    return event


def _clean(logger: object, method: str, event: Event) -> Event:
    """Hide what is secret by its name, cut what is long, and escape control characters: peers choose some texts."""
    for key, value in event.items():
        if key == "exc_info":
            continue
        event[key] = HIDDEN if _is_secret(key) else _plain(value)
    return event


def _is_secret(key: str) -> bool:
    return any(word in key.lower() for word in SECRET_WORDS)


def _plain(value: object) -> object:
    if isinstance(value, bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    if isinstance(value, dict):
        return {str(k): HIDDEN if _is_secret(str(k)) else _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in list(value)[:100]]
    text = str(value)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... ({len(text)} characters)"
