"""``adclick shift``"""

import time
from pathlib import Path

import msgspec

from adclick_edge.errors import LineError, UsageError
from adclick_edge.files import write_text
from adclick_edge.line.line_file import state_folder
from adclick_edge.line.shift_figures import ShiftSummary
from adclick_edge.line.shift_record import read_state
from adclick_edge.line.shift_report import render_page
from adclick_edge.line.shift_summary import summarise

__all__ = ["run"]


def run(line_file: Path, out: Path | None, json_output: bool) -> None:
    """Report on the running shift, from what the daemon wrote down last; the daemon need not run.

    ``out`` is the page (.html) or the figures (.json) to write. LineError when no daemon has run yet or the file cannot
    be written; UsageError for another ending of ``out``.
    """
    if out is not None and out.suffix not in (".html", ".json"):
        raise UsageError(f"{out}: a report is written as .html or .json; name one of these")
    record = read_state(state_folder(line_file)).running
    now_s = time.time()
    summary = summarise(record, now_s, closed=now_s >= record.end_s)
    figures = msgspec.json.format(msgspec.json.encode(summary), indent=1).decode()
    if out is not None:
        try:
            write_text(out, render_page(summary) if out.suffix == ".html" else figures + "\n")
        except OSError as error:
            raise LineError(f"{out} cannot be written: {error.strerror or error}") from error
    if json_output:
        print(figures)
    else:
        _print(summary)
        if out is not None:
            print(f"report in {out}")


def _print(summary: ShiftSummary) -> None:
    counts = summary.counts
    print(f"{summary.line}: shift from {summary.start_local} to {summary.end_local}")
    print(
        f"{summary.received} received: {counts.ok} ok, {counts.ng} ng, {counts.uncertain} uncertain, "
        f"{counts.not_inspected} not inspected; {summary.pending} pending, {summary.missed} missed, {summary.late} late"
    )
    for camera in summary.cameras:
        c = camera.counts
        times = (
            "" if camera.latency_ms is None else f"; p50 {camera.latency_ms[0]:g} ms, p99 {camera.latency_ms[2]:g} ms"
        )
        print(
            f"  {camera.camera}: {camera.received} received: {c.ok} ok, {c.ng} ng, {c.uncertain} uncertain, "
            f"{c.not_inspected} not inspected{times}"
        )
    if summary.unobserved_s:
        print(f"not observed for {summary.unobserved_s:.0f} s; the daemon was restarted {summary.restarts} times")
    broken = [check for check in summary.checks if not check.holds]
    for check in broken:
        print(f"DOES NOT ADD UP: {check.what}: {check.left} and {check.right}")
    if not broken:
        print("the counts add up")
