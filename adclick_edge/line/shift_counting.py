"""From one tally to the next: what is added to the running shift."""

from collections.abc import Mapping
from typing import Final

from adclick_edge.line.shift_record import (
    SLOT_S,
    AlarmSpan,
    CameraShift,
    ProductShift,
    ShiftRecord,
    SwapEvent,
)
from adclick_edge.line.tally import CameraTally, LineTally, ProductTally

__all__ = ["MAX_EVENTS", "add_tally", "carry_over"]

MAX_EVENTS: Final = 300
"""Alarms, and swaps, that a shift lists; what comes on top is counted."""
MAX_VERSIONS: Final = 50

_CAMERA_COUNTS: Final = (
    *("received", "ok", "ng", "uncertain", "missed", "undelivered"),
    *("late", "late_results", "bad_messages", "sessions"),
)
_ROUTING_COUNTS: Final = ("offered", "queued", "duplicate", "over_budget", "failed")


def add_tally(record: ShiftRecord, before: LineTally | None, after: LineTally, now_s: float) -> None:
    """Add what happened since ``before``, the tally that ``record`` reaches up to.

    A tally of another daemon counts from zero; frames that the daemon before still had are abandoned then.
    """
    same = before is not None and before.daemon == after.daemon
    if not same:
        for camera in record.cameras.values():
            camera.abandoned += camera.pending
            camera.pending = 0
    slot = max(int((min(now_s, record.end_s - 1) - record.start_s) // SLOT_S), 0)
    for name, tally in after.cameras.items():
        then = before.cameras.get(name) if before is not None and same else None
        shift = record.cameras.setdefault(name, CameraShift())
        _add_camera(shift, then or CameraTally(product=tally.product), tally, slot)
    for name, product in after.products.items():
        _add_product(record, name, None if before is None else before.products.get(name), product, now_s, same)
    _add_alarms(record, set() if before is None else _on(before), _on(after), now_s)
    for field in _ROUTING_COUNTS:
        then_count = getattr(before.routing, field) if before is not None and same else 0
        risen = _rise(then_count, getattr(after.routing, field))
        setattr(record.routing, field, getattr(record.routing, field) + risen)
    record.routing.spool_bytes = after.routing.spool_bytes
    _add_counts(record.strangers, before.strangers if before is not None and same else {}, after.strangers)
    record.last_s = now_s


def carry_over(record: ShiftRecord, ended: ShiftRecord, last: LineTally) -> None:
    """Begin ``record`` where ``ended`` stopped: frames under way, alarms that are on, versions that serve."""
    for name, camera in last.cameras.items():
        record.cameras[name] = CameraShift(product=camera.product, carried=camera.pending, pending=camera.pending)
    for name, product in last.products.items():
        shift = record.products[name] = ProductShift()
        _describe(shift, product)
    record.alarms = [AlarmSpan(product=a.product, kind=a.kind, on_s=a.on_s) for a in ended.alarms if a.off_s is None]
    record.routing.spool_bytes = last.routing.spool_bytes


def _add_camera(shift: CameraShift, then: CameraTally, now: CameraTally, slot: int) -> None:
    shift.product = now.product
    shift.pending = now.pending
    for field in _CAMERA_COUNTS:
        setattr(shift, field, getattr(shift, field) + _rise(getattr(then, field), getattr(now, field)))
    not_inspected = _add_counts(shift.not_inspected, then.not_inspected, now.not_inspected)
    answers = [_rise(getattr(then, verdict), getattr(now, verdict)) for verdict in ("ok", "ng", "uncertain")]
    if any(answers) or not_inspected:
        column = shift.slots.setdefault(slot, [0, 0, 0, 0])
        for place, count in enumerate((*answers, not_inspected)):
            column[place] += count


def _add_product(
    record: ShiftRecord, name: str, then: ProductTally | None, now: ProductTally, now_s: float, same: bool
) -> None:
    shift = record.products.setdefault(name, ProductShift())
    counted = then if same else None
    if then is not None:
        failed = _rise(counted.failed_swaps if counted else 0, now.failed_swaps)
        swapped = _rise(counted.swaps if counted else 0, now.swaps)
        if then.version != now.version or (same and swapped):
            _add_swap(record, SwapEvent(at_s=now_s, product=name, before=then.version, after=now.version))
        if failed:
            why = now.last_failure or "no reason given"
            _add_swap(record, SwapEvent(at_s=now_s, product=name, before=now.version, after=now.version, failure=why))
    _describe(shift, now)
    shift.shadow_frames += _rise(counted.shadow_frames if counted else 0, now.shadow_frames)
    shift.shadow_failures += _rise(counted.shadow_failures if counted else 0, now.shadow_failures)
    _add_counts(shift.shadow_changed, counted.shadow_changed if counted else {}, now.shadow_changed)


def _describe(shift: ProductShift, now: ProductTally) -> None:
    if now.version not in shift.versions[-1:]:
        shift.versions = [*shift.versions, now.version][-MAX_VERSIONS:]
    shift.lower, shift.upper, shift.notices = now.lower, now.upper, list(now.notices)
    shift.shadow = now.shadow or shift.shadow


def _add_swap(record: ShiftRecord, swap: SwapEvent) -> None:
    if len(record.swaps) < MAX_EVENTS:
        record.swaps.append(swap)
    else:
        record.left_out["swaps"] = record.left_out.get("swaps", 0) + 1


def _on(tally: LineTally) -> set[tuple[str, str]]:
    return {(name, kind) for name, product in tally.products.items() for kind in product.alarms}


def _add_alarms(record: ShiftRecord, were: set[tuple[str, str]], on: set[tuple[str, str]], now_s: float) -> None:
    for span in record.alarms:
        if span.off_s is None and (span.product, span.kind) not in on:
            span.off_s = now_s
    listed = {(span.product, span.kind) for span in record.alarms if span.off_s is None}
    for name, kind in sorted(on - listed):
        if len(record.alarms) < MAX_EVENTS:
            record.alarms.append(AlarmSpan(product=name, kind=kind, on_s=now_s))
        elif (name, kind) not in were:
            record.left_out["alarms"] = record.left_out.get("alarms", 0) + 1


def _add_counts(into: dict[str, int], then: Mapping[str, int], now: Mapping[str, int]) -> int:
    """Add the rises, and return their sum."""
    total = 0
    for name, count in now.items():
        risen = _rise(then.get(name, 0), count)
        if risen:
            into[name] = into.get(name, 0) + risen
            total += risen
    return total


def _rise(then: int, now: int) -> int:
    """A count that fell began anew (a shadow started again)."""
    return now - then if now >= then else now
