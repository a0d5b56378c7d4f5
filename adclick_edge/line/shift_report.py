"""A shift's report: JSON for programs, and one HTML page without outside files, to read on a screen or on paper."""

import html
from collections.abc import Mapping, Sequence
from datetime import tzinfo
from pathlib import Path
from string import Template
from typing import Final

import msgspec

from adclick_edge.files import write_text
from adclick_edge.line.shift_calendar import local_time
from adclick_edge.line.shift_figures import CameraLine, Check, Counts, ProductLine, ShiftSummary
from adclick_edge.line.shift_plots import VERDICTS, draw_scores, draw_timeline
from adclick_edge.line.shift_record import ShiftRecord
from adclick_edge.line.shift_summary import summarise

__all__ = ["render_page", "write_report"]

_LABELS: Final = {"ok": "ok", "ng": "ng", "uncertain": "uncertain", "not_inspected": "not inspected"}
_NOTHING: Final = '<p class="none">None.</p>'

Cell = str | tuple[str, str]
"""A text, or a text and its class."""


def write_report(folder: Path, record: ShiftRecord, now_s: float, *, zone: tzinfo | None = None, closed: bool) -> Path:
    """Write ``YYYY-mm-dd_HHMM.json`` and ``.html`` (local time of the start), each whole or not at all.

    A running shift's are named ``..._running``; they go when it is closed. The report of another shift that began at the
    same local time is not replaced: this one gets a number then. Returns the page's path. OSError when it cannot be
    written.
    """
    summary = summarise(record, now_s, zone=zone, closed=closed)
    stem = f"{local_time(record.start_s, zone):%Y-%m-%d_%H%M}"
    running = f"{stem}_running"
    if not closed:
        stem = running
    else:
        number = 1
        while _is_of_another(folder / f"{_numbered(stem, number)}.json", record.shift):
            number += 1
        stem = _numbered(stem, number)
    page = render_page(summary, zone=zone)
    document = msgspec.json.format(msgspec.json.encode(summary), indent=1).decode()
    write_text(folder / f"{stem}.html", page)
    write_text(folder / f"{stem}.json", document + "\n")
    if closed:
        for kind in ("json", "html"):
            (folder / f"{running}.{kind}").unlink(missing_ok=True)
    return folder / f"{stem}.html"


def render_page(summary: ShiftSummary, *, zone: tzinfo | None = None) -> str:
    """The HTML page of a shift."""
    title = f"{summary.line}: shift of {_day(summary.start_local)}, {_clock(summary.start_local)}"
    return Template(Path(__file__).with_name("shift_report.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        summary=html.escape(_span(summary)),
        check=_check_line(summary.checks),
        warnings=_warnings(summary),
        tiles=_tiles(summary),
        timeline=_timeline(summary, zone),
        cameras=_cameras(summary.cameras, summary.counts),
        checks=_checks(summary.checks),
        hours=_hours(summary),
        products=_products(summary.products),
        scores=_scores(summary.products),
        latency=_latency(summary.latency_ms),
        reasons=_reasons(summary),
        alarms=_alarms(summary),
        swaps=_swaps(summary),
        gaps=_gaps(summary),
        routing=_routing(summary),
        written=html.escape(summary.written_utc),
    )


def _numbered(stem: str, number: int) -> str:
    return stem if number == 1 else f"{stem}_{number}"


class _WhichShift(msgspec.Struct):
    shift: int


def _is_of_another(path: Path, shift: int) -> bool:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_WhichShift).shift != shift
    except FileNotFoundError:
        return False
    except msgspec.DecodeError:
        return True  # somebody's file: leave it


def _span(summary: ShiftSummary) -> str:
    state = "" if summary.closed else " The shift is still running."
    seen = f"Observed for {_duration(summary.observed_s)}"
    if summary.unobserved_s:
        seen += f", not observed for {_duration(summary.unobserved_s)}"
    return f"{_stamp(summary.start_local)} to {_stamp(summary.end_local)} local time. {seen}.{state}"


def _check_line(checks: Sequence[Check]) -> str:
    line = checks[0]
    broken = [check for check in checks if not check.holds]
    if broken:
        names = ", ".join(f"{check.what} ({check.left:,} and {check.right:,})" for check in broken)
        return f'<p class="check broken">The counts do not add up: {html.escape(names)}</p>'
    return (
        f'<p class="check holds">The counts add up: {line.left:,} frames taken = '
        f"{line.right:,} answered, under way or abandoned, for each camera and over time.</p>"
    )


def _warnings(summary: ShiftSummary) -> str:
    said = []
    if summary.missed:
        said.append(f"{summary.missed:,} triggers never arrived as frames")
    if summary.abandoned:
        said.append(f"{summary.abandoned:,} frames were under way when a daemon ended; their answers are not known")
    if summary.late:
        said.append(f"{summary.late:,} answers were sent after their deadline")
    said += [f"{product.product} has no thresholds" for product in summary.products if product.upper is None]
    said += [*(notice for product in summary.products for notice in product.notices), *summary.notes]
    return "".join(f"<li>{html.escape(text)}</li>" for text in said)


def _tiles(summary: ShiftSummary) -> str:
    answered = summary.counts.answered
    under_way = f"{summary.pending:,} under way" if summary.pending else "frames"
    tiles = [("received", "received", summary.received, under_way)]
    for verdict in VERDICTS:
        count = getattr(summary.counts, verdict)
        tiles.append((verdict, _LABELS[verdict], count, _share(count, answered)))
    return "\n".join(
        f'<div class="tile {look}"><div class="name">{name}</div><div class="value">{count:,}</div>'
        f'<div class="note">{note}</div></div>'
        for look, name, count, note in tiles
    )


def _timeline(summary: ShiftSummary, zone: tzinfo | None) -> str:
    hours = []
    at_s = summary.start_s
    step_s = 3600 if summary.end_s - summary.start_s <= 14 * 3600 else 7200
    while at_s <= summary.end_s:
        hours.append((at_s, f"{local_time(at_s, zone):%H:%M}"))
        at_s += step_s
    return draw_timeline(
        summary.columns,
        start_s=summary.start_s,
        end_s=summary.end_s,
        hours=hours,
        alarms=summary.alarms,
        swaps=summary.swaps,
        gaps=summary.gaps,
    )


def _cameras(cameras: Sequence[CameraLine], total: Counts) -> str:
    heads = [
        *("-camera", "-product", "carried in", "received", "ok", "ng", "uncertain", "not inspected", "under way"),
        *("abandoned", "missed", "late", "undelivered", "bad messages", "p50 ms", "p95 ms", "p99 ms"),
    ]
    rows: list[list[Cell]] = []
    for camera in cameras:
        times = ["–"] * 3 if camera.latency_ms is None else [f"{ms:g}" for ms in camera.latency_ms]
        rows.append(
            [
                *(camera.camera, camera.product, _count(camera.carried), _count(camera.received)),
                *_verdict_cells(camera.counts),
                *(_count(camera.pending), _bad(camera.abandoned), _bad(camera.missed), _bad(camera.late)),
                *(_bad(camera.undelivered), _bad(camera.bad_messages), *times),
            ]
        )
    if len(cameras) > 1:
        sums = [sum(getattr(c, field) for c in cameras) for field in ("carried", "received")]
        last = ("pending", "abandoned", "missed", "late", "undelivered", "bad_messages")
        rows.append(
            [
                *("all", "", *(_count(value) for value in sums), *_verdict_cells(total)),
                *(_count(sum(getattr(c, field) for c in cameras)) for field in last),
                *("", "", ""),
            ]
        )
    return _table(heads, rows, total=len(cameras) > 1)


def _checks(checks: Sequence[Check]) -> str:
    rows: list[list[Cell]] = [
        [
            check.what,
            f"{check.left:,}",
            f"{check.right:,}",
            ("adds up", "holds") if check.holds else ("DOES NOT ADD UP", "broken"),
        ]
        for check in checks
    ]
    return _table(["-of", "carried in + received", "answered + abandoned + under way", "-"], rows)


def _hours(summary: ShiftSummary) -> str:
    names = [camera.camera for camera in summary.cameras] if 1 < len(summary.cameras) <= 8 else []
    heads = ["-from", "answers", "ok", "ng", "uncertain", "not inspected", "not ok", *(f"{n}: not ok" for n in names)]
    rows: list[list[Cell]] = []
    for hour in summary.hours:
        by_camera = [hour.cameras.get(name, Counts()) for name in names]
        rows.append(
            [
                *(hour.local, _count(hour.counts.answered), *_verdict_cells(hour.counts)),
                _doubtful(hour.counts),
                *(f"{_doubtful(counts)} of {counts.answered:,}" if counts.answered else "–" for counts in by_camera),
            ]
        )
    return _table(heads, rows) if rows else _NOTHING


def _products(products: Sequence[ProductLine]) -> str:
    heads = ["-product", "-versions", "lower", "upper", "ok", "ng", "uncertain", "not inspected", "-shadow"]
    rows: list[list[Cell]] = []
    for product in products:
        shadow = "–"
        if product.shadow is not None:
            changed = ", ".join(f"{change} {count:,}" for change, count in product.shadow_changed.items())
            shadow = f"{product.shadow}: {changed or 'no difference'} in {product.shadow_frames:,} frames"
            shadow += f", {product.shadow_failures:,} failures" if product.shadow_failures else ""
        rows.append(
            [
                *(product.product, (" → ".join(product.versions), "wrap")),
                *("–" if bound is None else f"{bound:.4g}" for bound in (product.lower, product.upper)),
                *_verdict_cells(product.counts),
                (shadow, "wrap"),
            ]
        )
    return _table(heads, rows) if rows else _NOTHING


def _scores(products: Sequence[ProductLine]) -> str:
    cards = [
        f'<div class="card"><h3>Scores of {html.escape(product.product)}</h3>'
        f"{draw_scores(product.scores, lower=product.lower, upper=product.upper)}</div>"
        for product in products
        if product.scores is not None
    ]
    return "\n".join(cards) or _NOTHING


def _latency(latency_ms: Mapping[str, Sequence[float]]) -> str:
    stages = sorted(latency_ms, key=lambda stage: (stage != "total", -latency_ms[stage][0]))
    rows: list[list[Cell]] = [[stage, *(f"{ms:g}" for ms in latency_ms[stage])] for stage in stages]
    return _table(["-stage", "p50 ms", "p95 ms", "p99 ms"], rows) if rows else _NOTHING


def _reasons(summary: ShiftSummary) -> str:
    total = summary.counts.answered
    rows: list[list[Cell]] = [
        [reason, _count(count), _share(count, total)]
        for reason, count in sorted(summary.not_inspected.items(), key=lambda item: -item[1])
    ]
    return _table(["-reason", "frames", "of all answers"], rows) if rows else _NOTHING


def _alarms(summary: ShiftSummary) -> str:
    rows: list[list[Cell]] = []
    for alarm in summary.alarms:
        off = "still on" if alarm.off_local is None else _clock(alarm.off_local, seconds=True)
        lasted = "" if alarm.off_s is None else _duration(alarm.off_s - alarm.on_s)
        rows.append([alarm.product, (alarm.kind, "ng"), _clock(alarm.on_local, seconds=True), off, lasted])
    return _table(["-product", "-what drifted", "on", "off", "lasted"], rows) if rows else _NOTHING


def _swaps(summary: ShiftSummary) -> str:
    rows: list[list[Cell]] = [
        [
            _clock(swap.at_local, seconds=True),
            swap.product,
            swap.before,
            swap.after,
            ("done", "holds") if swap.failure is None else (f"refused: {swap.failure}", "broken wrap"),
        ]
        for swap in summary.swaps
    ]
    return _table(["-at", "-product", "-before", "-after", "-"], rows) if rows else _NOTHING


def _gaps(summary: ShiftSummary) -> str:
    if not summary.gaps:
        return _NOTHING
    rows: list[list[Cell]] = [
        [
            _clock(gap.from_local, seconds=True),
            _clock(gap.to_local, seconds=True),
            _duration(gap.seconds),
            (gap.why, "wrap"),
        ]
        for gap in summary.gaps
    ]
    note = "<p>Triggers of these times are in no count of this page.</p>"
    return note + _table(["-from", "-to", "for", "-"], rows)


def _routing(summary: ShiftSummary) -> str:
    routing = summary.routing
    strangers = ", ".join(f"{code} {count:,}" for code, count in summary.strangers.items())
    rows: list[list[Cell]] = [
        ["offered", _count(routing.offered)],
        ["handed over to operators", _count(routing.queued)],
        ["left out as near-copies", _count(routing.duplicate)],
        ["left out beyond the budget", _count(routing.over_budget)],
        ["could not be stored", _bad(routing.failed)],
        ["in the spool at the end", f"{routing.spool_bytes / 1e6:,.1f} MB"],
        ["messages of strangers", (strangers or "0", "wrap")],
    ]
    return _table(["-", "frames"], rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[Cell]], *, total: bool = False) -> str:
    """``heads`` that begin with a dash are of columns of text."""
    texts = [head.startswith("-") for head in heads]
    head = "".join(
        f'<th class="text">{html.escape(name[1:])}</th>' if is_text else f"<th>{html.escape(name)}</th>"
        for name, is_text in zip(heads, texts, strict=True)
    )
    body = []
    for number, row in enumerate(rows):
        cells = []
        for cell, is_text in zip(row, texts, strict=True):
            text, look = (cell, "") if isinstance(cell, str) else cell
            looks = " ".join(filter(None, ("text" if is_text else "", look)))
            cells.append(f'<td class="{looks}">{html.escape(text)}</td>' if looks else f"<td>{html.escape(text)}</td>")
        look = ' class="total"' if total and number == len(rows) - 1 else ""
        body.append(f"<tr{look}>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _verdict_cells(counts: Counts) -> list[Cell]:
    return [_count(getattr(counts, verdict), verdict) for verdict in VERDICTS]


def _count(value: int, look: str = "") -> Cell:
    return (f"{value:,}", look) if value else ("0", "zero")


def _bad(value: int) -> Cell:
    return _count(value, "ng")


def _doubtful(counts: Counts) -> str:
    return _share(counts.answered - counts.ok, counts.answered)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "–"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"


def _day(local: str) -> str:
    return local[:10]


def _clock(local: str, *, seconds: bool = False) -> str:
    return local[11:19] if seconds else local[11:16]


def _stamp(local: str) -> str:
    return f"{_day(local)} {_clock(local)}"
