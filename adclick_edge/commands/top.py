"""``adclick top``"""

import time
from pathlib import Path

import msgspec
from rich.console import Console

from adclick_edge.errors import LineError, UsageError
from adclick_edge.line.monitor import CameraVerdict, HttpSource, MonitorSource, Source
from adclick_edge.line.tally import LineTally
from adclick_edge.line.top import TopState, render, watch

__all__ = ["run"]

ONCE_WIDTH = 150


def run(
    line_file: Path | None,
    monitor: str | None,
    http: str | None,
    once: bool,
    json_output: bool,
    timeout_s: float = 5.0,
    per_second: float = 4.0,
) -> None:
    """Show the line that ``line_file`` describes, or that a monitor endpoint or an HTTP address publishes.

    ``once`` prints one snapshot, ``json_output`` the tally itself; both wait up to ``timeout_s`` for the daemon and
    raise LineError when it is not there. UsageError unless exactly one place is named.
    """
    source = _source(line_file, monitor, http)
    try:
        if once or json_output:
            _print_once(source, timeout_s, json_output)
        else:
            watch(source, Console(), per_second=per_second)
    finally:
        source.close()


def _source(line_file: Path | None, monitor: str | None, http: str | None) -> Source:
    given = [place for place in (line_file, monitor, http) if place is not None]
    if len(given) != 1:
        raise UsageError("name one of LINE_TOML, --monitor ENDPOINT and --http URL")
    if monitor is not None:
        return MonitorSource(monitor)
    if http is not None:
        return HttpSource(http)
    from adclick_edge.line.line_file import read_line_file

    assert line_file is not None
    config = read_line_file(line_file)
    line = config.line
    # With CURVE the monitor wants a key; the HTTP address gives the same figures without one.
    if line.monitor is not None and not (config.security.curve and line.http):
        return MonitorSource(line.monitor.replace("//*:", "//127.0.0.1:"))
    if line.http is None:
        raise LineError(f"{line_file} sets neither line.monitor nor line.http: there is nothing to watch; set one")
    return HttpSource(line.http)


def _print_once(source: Source, timeout_s: float, json_output: bool) -> None:
    state = TopState(source.where)
    tally = _first_tally(source, state, timeout_s)
    if json_output:
        print(msgspec.json.encode(tally).decode())
    else:
        Console(width=ONCE_WIDTH, color_system=None, highlight=False).print(render(state))


def _first_tally(source: Source, state: TopState, timeout_s: float) -> LineTally:
    end = time.monotonic() + timeout_s
    while (left := end - time.monotonic()) > 0:
        for item in source.poll(min(left, 0.25)):
            state.feed(item)
            if not isinstance(item, CameraVerdict):
                return item
    why = f" ({source.trouble})" if source.trouble else ""
    hint = "; with curve = true read --http instead" if isinstance(source, MonitorSource) else ""
    raise LineError(
        f"no daemon at {source.where} within {timeout_s:g} s{why}; start it with: adclick serve LINE_TOML{hint}"
    )
