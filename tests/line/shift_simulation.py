"""A simulated shift: two cameras, a kill and a restart, drift, swaps, and a camera that overloads."""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tally_samples import empty, later, outcome

from adclick_edge.line.shift import ShiftBook
from adclick_edge.line.tally import LineTally


@dataclass
class Clock:
    now_s: float

    def __call__(self) -> float:
        return self.now_s


def simulate(
    book: Callable[[], ShiftBook],
    clock: Clock,
    *,
    hours: float = 8.0,
    step_s: float = 20.0,
    seed: int = 3,
    pace: float = 1.0,
) -> tuple[ShiftBook, LineTally, dict[str, int]]:
    """Runs from ``clock`` on; returns the book, the last tally, and what was answered, by verdict."""
    rng = random.Random(seed)
    running, tally = book(), empty(daemon=1)
    began_s, said = clock.now_s, dict.fromkeys(("ok", "ng", "uncertain", "not_inspected"), 0)
    running.observe(tally)
    while (at_s := clock.now_s - began_s) < hours * 3600:
        clock.now_s += step_s
        if 3.0 <= at_s / 3600 < 3.2:
            continue  # killed; the daemon is down
        if tally.daemon == 1 and at_s / 3600 >= 3.2:
            running, tally = book(), empty(daemon=2)
        break_now = 4.0 <= at_s / 3600 < 4.5
        for camera, product, per_s in (("left", "flange", 2.0 * pace), ("right", "lid", 0.8 * pace)):
            if break_now:
                continue
            counts: dict[str, int] = {"ok": 0, "ng": 0, "uncertain": 0}
            reasons: dict[str, int] = {}
            for _ in range(round(per_s * step_s * rng.uniform(0.9, 1.1))):
                verdict, reason, score = outcome(rng)
                if camera == "right" and 6 <= at_s / 3600 < 6.4 and rng.random() < 0.15:
                    verdict, reason, score = "not_inspected", "overload", None
                drifting = 5 <= at_s / 3600 < 6
                if score is not None and drifting and camera == "left":
                    score += 0.35
                    verdict = "ok" if score < 1.5 else "ng" if score >= 2.5 else "uncertain"
                if reason is None:
                    counts[verdict] += 1
                else:
                    reasons[reason] = reasons.get(reason, 0) + 1
                said[verdict] += 1
                stages = {"decode": rng.gauss(3, 0.3), "features": rng.gauss(22, 2), "segment": rng.gauss(6, 0.5)}
                total = sum(stages.values()) + rng.expovariate(1 / 6)
                running.answered(camera, product, verdict, reason, stages if score else {}, total, score)
            tally = later(tally, camera=camera, **counts, not_inspected=reasons, pending=rng.randrange(3))
        flange = tally.products["flange"]
        flange.alarms = ("light", "score") if 5.1 <= at_s / 3600 < 6.1 else ()
        if at_s / 3600 >= 2.0 and tally.daemon == 1 and flange.swaps == 0:
            flange.swaps, flange.version = 1, "4-def"
        if tally.daemon == 2:
            flange.version = "4-def"
            if at_s / 3600 >= 7 and flange.failed_swaps == 0:
                flange.failed_swaps, flange.last_failure = 1, "golden frame 2 differs by 0.4"
            flange.shadow, flange.shadow_frames = "5-fed", flange.shadow_frames + 40
            flange.shadow_changed = {"ok->ng": flange.shadow_frames // 400, "ng->ok": flange.shadow_frames // 900}
        tally.cameras["left"].missed = int(at_s // 7200)
        tally.routing.offered += 3
        tally.routing.queued += 1
        tally.routing.duplicate += 2
        tally.routing.spool_bytes += 400_000
        running.observe(tally)
    return running, copy.deepcopy(tally), said


def make_book(folder: Path, clock: Clock, **options: object) -> ShiftBook:
    values: dict[str, object] = {"starts": ("06:00", "14:00", "22:00"), "save_s": 0.0, **options}
    return ShiftBook(folder / "state", folder / "reports", clock=clock, **values)  # type: ignore[arg-type]
