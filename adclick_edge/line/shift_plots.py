"""The drawings of a shift's report as inline SVG: small, sharp in print, in the page's colours, drawn in milliseconds.

No plotting library is loaded, since the daemon draws them while the line runs.
"""

import html
import math
from collections.abc import Callable, Sequence
from typing import Final

from adclick_edge.line.shift_figures import AlarmLine, Column, Counts, Gap, ScoreBins, SwapLine
from adclick_edge.line.shift_record import SLOT_S

__all__ = ["VERDICTS", "draw_scores", "draw_timeline"]

VERDICTS: Final = ("ok", "ng", "uncertain", "not_inspected")
_DOUBTS: Final = VERDICTS[1:]

_WIDTH: Final = 1100
_LEFT: Final = 66
_RIGHT: Final = 20
_LANES: Final = 130
"""Where the timeline begins: names of alarms stand before it."""
_NICE: Final = (1, 2, 2.5, 5, 10)


def draw_timeline(
    columns: Sequence[Column],
    *,
    start_s: float,
    end_s: float,
    hours: Sequence[tuple[float, str]],
    alarms: Sequence[AlarmLine],
    swaps: Sequence[SwapLine],
    gaps: Sequence[Gap],
) -> str:
    """Answers per 10 minutes above, the shares that were not ok below, alarms and swaps under them.

    ``hours`` are (Unix seconds, label) of the ticks. Times not observed are hatched.
    """
    lanes = sorted({(alarm.product, alarm.kind) for alarm in alarms})
    shown = lanes[:12]
    top, upper, gap, lower = 26, 120, 40, 150
    below = top + upper + gap + lower
    height = below + 30 + (22 * (len(shown) + bool(swaps)) + 14 if shown or swaps else 0)

    def x(at_s: float) -> float:
        share = (min(max(at_s, start_s), end_s) - start_s) / (end_s - start_s)
        return _LANES + share * (_WIDTH - _LANES - _RIGHT)

    parts = [_open(height, "Answers over the shift")]
    parts.append(
        '<defs><pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="7" height="7" class="gap-ground"/><line y2="7" class="gap-line"/></pattern></defs>'
    )
    for at_s, label in hours:
        parts.append(_line(x(at_s), top, x(at_s), below, "grid"))
        parts.append(_text(x(at_s), below + 18, label, "tick mid"))
    most = max((column.counts.answered for column in columns), default=0)
    parts += _panel(columns, x, top, upper, _nice_limit(most), "answers per 10 min", ("all",))
    shares = [_doubts(column.counts) for column in columns]
    limit = _nice_limit(100 * max(shares, default=0.0))
    parts += _panel(columns, x, top + upper + gap, lower, limit, "of them not ok, %", _DOUBTS)
    for span in gaps:
        left, right = x(span.from_s), x(span.to_s)
        title = f"not observed for {span.seconds:.0f} s: {span.why}"
        parts.append(_rect(left, top, max(right - left, 2.5), below - top, "gap", title))
    at = below + 30
    for product, kind in shown:
        parts.append(_text(_LANES - 8, at + 14, _short(f"{product} {kind}"), "tick end"))
        for alarm in alarms:
            if (alarm.product, alarm.kind) == (product, kind):
                left, right = x(alarm.on_s), x(end_s if alarm.off_s is None else alarm.off_s)
                parts.append(_rect(left, at + 3, max(right - left, 3), 14, "alarm", f"{product}: {kind} drifted"))
        at += 22
    if swaps:
        parts.append(_text(_LANES - 8, at + 14, "swaps", "tick end"))
        for swap in swaps:
            centre = x(swap.at_s)
            look = "swap" if swap.failure is None else "swap failed"
            title = f"{swap.product}: {swap.before} to {swap.after}" + (f"; {swap.failure}" if swap.failure else "")
            parts.append(
                f'<path d="M{centre:.1f} {at + 2}l6 8l-6 8l-6 -8z" class="{look}">'
                f"<title>{html.escape(title)}</title></path>"
            )
    parts.append("</svg>")
    return "".join(parts)


def draw_scores(bins: ScoreBins, *, lower: float | None, upper: float | None) -> str:
    """Frames per score, by verdict; with the thresholds that held at the end."""
    edges, merge = bins.edges, max(1, math.ceil((len(bins.edges) - 1) / 110))
    width, top, tall = 540, 30, 190
    bottom = top + tall
    places = range(0, len(edges) - 1, merge)
    stacks = [{v: sum(frames[i : i + merge]) for v, frames in bins.frames.items()} for i in places]
    marks = [mark for mark in (lower, upper) if mark is not None]
    low, high = min([edges[0], *marks]), max([edges[-1], *marks])
    margin = 0.02 * (high - low)
    low, high = low - margin, high + margin
    # Square roots, so that the few frames far out are seen beside thousands of good ones.
    limit = _nice_limit(max(sum(stack.values()) for stack in stacks))

    def x(score: float) -> float:
        return _LEFT + (score - low) / (high - low) * (width - _LEFT - _RIGHT)

    def y(frames: float) -> float:
        return bottom - math.sqrt(frames / limit) * tall

    parts = [_open(bottom + 44, "Scores", width)]
    for frames in (limit / 100, limit / 10, limit / 2, limit):
        if frames >= 1:
            parts.append(_line(_LEFT, y(frames), width - _RIGHT, y(frames), "grid"))
            parts.append(_text(_LEFT - 8, y(frames) + 4, f"{frames:,.0f}", "tick end"))
    for mark in _ticks(low, high, 6):
        parts.append(_text(x(mark), bottom + 18, f"{mark:g}", "tick mid"))
    for place, stack in zip(places, stacks, strict=True):
        left, right = x(edges[place]), x(edges[min(place + merge, len(edges) - 1)])
        reached = 0
        for verdict in VERDICTS:
            if stack.get(verdict):
                title = f"{stack[verdict]:,} {verdict}, scores {edges[place]:.3g} and above"
                base, reached = y(reached), reached + stack[verdict]
                wide = max(right - left - 0.6, 0.8)
                parts.append(_rect(left, y(reached), wide, max(base - y(reached), 1.0), f"v-{verdict}", title))
    for name, value, anchor in (("lower", lower, "end"), ("upper", upper, "start")):
        if value is not None:
            parts.append(_line(x(value), top - 8, x(value), bottom, "mark"))
            shift = -5 if anchor == "end" else 5
            parts.append(_text(x(value) + shift, top - 10, f"{name} {value:.4g}", f"tick {anchor}"))
    parts.append(_line(_LEFT, bottom, width - _RIGHT, bottom, "axis"))
    parts.append(_text((_LEFT + width) / 2, bottom + 38, "score of a frame (heights by square root)", "tick mid"))
    parts.append("</svg>")
    return "".join(parts)


def _panel(
    columns: Sequence[Column],
    x: Callable[[float], float],
    top: float,
    tall: float,
    limit: float,
    title: str,
    stacked: Sequence[str],
) -> list[str]:
    """Bars over time: all answers as counts, or the stacked shares of verdicts in percent."""
    parts = [_text(_LANES, top - 9, title, "tick head")]
    for share in (0.5, 1.0):
        at = top + tall * (1 - share)
        parts.append(_line(_LANES, at, _WIDTH - _RIGHT, at, "grid"))
        parts.append(_text(_LANES - 8, at + 4, f"{limit * share:,g}", "tick end"))
    for column in columns:
        counts = column.counts
        if counts.answered == 0:
            continue
        left, right = x(column.from_s), x(column.from_s + SLOT_S)
        said = (
            f"{column.local}: {counts.answered:,} answers; ng {counts.ng:,}, uncertain {counts.uncertain:,}, "
            f"not inspected {counts.not_inspected:,}"
        )
        reached = 0.0
        for verdict in stacked:
            value = float(counts.answered) if verdict == "all" else 100 * getattr(counts, verdict) / counts.answered
            if value > 0:
                high = tall * value / limit
                bottom = top + tall - reached
                parts.append(_rect(left, bottom - high, max(right - left - 1, 1), high, f"v-{verdict}", said))
                reached += high
    parts.append(_line(_LANES, top + tall, _WIDTH - _RIGHT, top + tall, "axis"))
    return parts


def _doubts(counts: Counts) -> float:
    return 1 - counts.ok / counts.answered if counts.answered else 0.0


def _nice_limit(most: float) -> float:
    if most <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(most))
    return next(nice * power for nice in _NICE if most <= nice * power * (1 + 1e-9))


def _ticks(low: float, high: float, about: int) -> list[float]:
    step = _nice_limit((high - low) / about)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]


def _short(text: str) -> str:
    return text if len(text) <= 18 else text[:17] + "…"


def _open(height: float, label: str, width: float = _WIDTH) -> str:
    return f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{html.escape(label)}">'


def _line(x1: float, y1: float, x2: float, y2: float, look: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{look}"/>'


def _text(x: float, y: float, text: str, look: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{look}">{html.escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, look: str, title: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" class="{look}">'
        f"<title>{html.escape(title)}</title></rect>"
    )
