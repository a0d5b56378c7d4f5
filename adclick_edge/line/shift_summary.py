"""A shift's record as figures that people and programs read: sums, hours, percentiles, and whether they add up."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, tzinfo
from typing import Final

from adclick_edge.line.shift_bins import ms_percentiles, score_edge
from adclick_edge.line.shift_calendar import local_time
from adclick_edge.line.shift_figures import (
    AlarmLine,
    CameraLine,
    Check,
    Column,
    Counts,
    Gap,
    ProductLine,
    ScoreBins,
    ShiftSummary,
    SwapLine,
)
from adclick_edge.line.shift_record import SLOT_S, CameraShift, ProductShift, ShiftRecord

__all__ = ["summarise"]

LATENCY_SHARES: Final = (0.50, 0.95, 0.99)
GAP_S: Final = 5.0
"""A shift that was first or last seen so far from its limits was not observed there."""
HOUR_SLOTS: Final = 3600 // SLOT_S


def summarise(record: ShiftRecord, now_s: float, *, zone: tzinfo | None = None, closed: bool) -> ShiftSummary:
    """Figures of a shift; ``now_s`` (Unix seconds) is when the report is made."""

    def local(at_s: float) -> str:
        return local_time(at_s, zone).isoformat(timespec="seconds")

    cameras = tuple(_camera_line(name, record.cameras[name]) for name in sorted(record.cameras))
    counts = _sum(camera.counts for camera in cameras)
    not_inspected = _merged(camera.not_inspected for camera in cameras)
    until_s = record.end_s if closed else min(max(now_s, record.last_s), record.end_s)
    gaps = _gaps(record, until_s, closed, local)
    unobserved_s = min(sum(gap.seconds for gap in gaps), max(until_s - record.start_s, 0.0))
    columns = _columns(record, 1, zone)
    products = tuple(_product_line(name, record.products[name]) for name in sorted(record.products))
    left_out = [f"{count} more {what} than this report lists" for what, count in sorted(record.left_out.items())]
    by_product = _sum(product.counts for product in products).answered
    notes = [*record.notes, *left_out]
    if by_product != counts.answered:
        # Counted as answers are sent, not with the books: a kill may lose some of one and not of the other.
        notes.append(f"figures by product are of {by_product} answers, those by camera of {counts.answered}")
    return ShiftSummary(
        shift=record.shift,
        line=record.line,
        closed=closed,
        start_s=record.start_s,
        end_s=record.end_s,
        start_local=local(record.start_s),
        end_local=local(record.end_s),
        start_utc=_utc(record.start_s),
        written_utc=_utc(now_s),
        observed_s=max(until_s - record.start_s - unobserved_s, 0.0),
        unobserved_s=unobserved_s,
        received=sum(camera.received for camera in cameras),
        carried=sum(camera.carried for camera in cameras),
        pending=sum(camera.pending for camera in cameras),
        abandoned=sum(camera.abandoned for camera in cameras),
        missed=sum(camera.missed for camera in cameras),
        late=sum(camera.late for camera in cameras),
        counts=counts,
        not_inspected=not_inspected,
        checks=_checks(cameras, counts, columns),
        cameras=cameras,
        products=products,
        hours=_columns(record, HOUR_SLOTS, zone),
        columns=columns,
        latency_ms={
            stage: _rounded(found)
            for stage, bins in sorted(record.stage_ms.items())
            if (found := ms_percentiles(bins, LATENCY_SHARES)) is not None
        },
        alarms=tuple(
            AlarmLine(
                product=alarm.product,
                kind=alarm.kind,
                on_s=alarm.on_s,
                off_s=alarm.off_s,
                on_local=local(alarm.on_s),
                off_local=None if alarm.off_s is None else local(alarm.off_s),
            )
            for alarm in record.alarms
        ),
        swaps=tuple(
            SwapLine(
                at_s=swap.at_s,
                at_local=local(swap.at_s),
                product=swap.product,
                before=swap.before,
                after=swap.after,
                failure=swap.failure,
            )
            for swap in record.swaps
        ),
        gaps=gaps,
        restarts=len(record.restarts) + record.left_out.get("restarts", 0),
        routing=record.routing,
        strangers=dict(sorted(record.strangers.items())),
        notes=tuple(notes),
    )


def _camera_line(name: str, shift: CameraShift) -> CameraLine:
    found = ms_percentiles(shift.total_ms, LATENCY_SHARES)
    return CameraLine(
        camera=name,
        product=shift.product,
        carried=shift.carried,
        received=shift.received,
        counts=Counts(
            ok=shift.ok, ng=shift.ng, uncertain=shift.uncertain, not_inspected=sum(shift.not_inspected.values())
        ),
        not_inspected=dict(sorted(shift.not_inspected.items())),
        abandoned=shift.abandoned,
        pending=shift.pending,
        missed=shift.missed,
        undelivered=shift.undelivered,
        late=shift.late,
        late_results=shift.late_results,
        bad_messages=shift.bad_messages,
        sessions=shift.sessions,
        latency_ms=None if found is None else _rounded(found),
        balanced=shift.balanced(),
    )


def _product_line(name: str, shift: ProductShift) -> ProductLine:
    reasons = {
        outcome.partition(":")[2]: count
        for outcome, count in sorted(shift.verdicts.items())
        if outcome.startswith("not_inspected:")
    }
    judged = {verdict: shift.verdicts.get(verdict, 0) for verdict in ("ok", "ng", "uncertain")}
    return ProductLine(
        product=name,
        versions=tuple(shift.versions),
        lower=shift.lower,
        upper=shift.upper,
        counts=Counts(**judged, not_inspected=sum(reasons.values())),
        not_inspected=reasons,
        scores=_score_bins(shift.scores),
        shadow=shift.shadow,
        shadow_frames=shift.shadow_frames,
        shadow_changed=dict(sorted(shift.shadow_changed.items())),
        shadow_failures=shift.shadow_failures,
        notices=tuple(shift.notices),
    )


def _score_bins(scores: Mapping[str, Mapping[int, int]]) -> ScoreBins | None:
    places = [place for bins in scores.values() for place in bins]
    if not places:
        return None
    first, last = min(places), max(places)
    return ScoreBins(
        edges=tuple(round(score_edge(place), 6) for place in range(first, last + 2)),
        frames={
            verdict: tuple(bins.get(place, 0) for place in range(first, last + 1))
            for verdict, bins in sorted(scores.items())
        },
    )


def _columns(record: ShiftRecord, slots: int, zone: tzinfo | None) -> tuple[Column, ...]:
    """All columns up to the last with an answer, of so many slots each."""
    last = max((slot for camera in record.cameras.values() for slot in camera.slots), default=-1)
    columns = []
    for first in range(0, last + 1, slots):
        cameras = {
            name: _sum(
                Counts(ok=ok, ng=ng, uncertain=uncertain, not_inspected=not_inspected)
                for slot in range(first, first + slots)
                for ok, ng, uncertain, not_inspected in [camera.slots.get(slot, [0, 0, 0, 0])]
            )
            for name, camera in sorted(record.cameras.items())
        }
        from_s = record.start_s + first * SLOT_S
        columns.append(
            Column(
                from_s=from_s,
                local=f"{local_time(from_s, zone):%H:%M}",
                counts=_sum(cameras.values()),
                cameras=cameras,
            )
        )
    return tuple(columns)


def _gaps(record: ShiftRecord, until_s: float, closed: bool, local: Callable[[float], str]) -> tuple[Gap, ...]:
    spans = []
    first_s = min([record.opened_s, *(restart.last_s for restart in record.restarts)])
    if first_s - record.start_s > GAP_S:
        spans.append((record.start_s, first_s, "before the first observation"))
    for restart in record.restarts:
        why = "the daemon was stopped" if restart.clean else "the daemon ended without a stop"
        spans.append((restart.last_s, max(restart.at_s, restart.last_s), why))
    # The last restart of a closed shift may be the one that found it over.
    end_s = max([record.last_s, *(restart.at_s for restart in record.restarts)])
    if closed and until_s - end_s > GAP_S:
        spans.append((end_s, until_s, "after the last observation"))
    return tuple(
        Gap(
            from_s=from_s,
            to_s=to_s,
            from_local=local(from_s),
            to_local=local(to_s),
            seconds=round(to_s - from_s, 1),
            why=why,
        )
        for from_s, to_s, why in spans
    )


def _checks(cameras: tuple[CameraLine, ...], counts: Counts, columns: tuple[Column, ...]) -> tuple[Check, ...]:
    checks = []
    for camera in cameras:
        left = camera.carried + camera.received
        right = camera.counts.answered + camera.abandoned + camera.pending
        checks.append(Check(what=f"camera {camera.camera}", left=left, right=right, holds=left == right))
    left, right = sum(check.left for check in checks), sum(check.right for check in checks)
    checks.insert(0, Check(what="line", left=left, right=right, holds=left == right))
    drawn = _sum(column.counts for column in columns).answered
    checks.append(Check(what="answers over time", left=counts.answered, right=drawn, holds=counts.answered == drawn))
    return tuple(checks)


def _sum(many: Iterable[Counts]) -> Counts:
    ok = ng = uncertain = not_inspected = 0
    for counts in many:
        ok, ng = ok + counts.ok, ng + counts.ng
        uncertain, not_inspected = uncertain + counts.uncertain, not_inspected + counts.not_inspected
    return Counts(ok=ok, ng=ng, uncertain=uncertain, not_inspected=not_inspected)


def _merged(many: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counts in many:
        total.update(counts)
    return dict(sorted(total.items()))


def _rounded(times_ms: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(f"{ms:.3g}") for ms in times_ms)


def _utc(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
