"""Timing variants side by side: each takes its turn in every round, so that a noisy moment falls on all of them."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Timings", "Variant", "paired_ratio", "take_turns"]

F64 = npt.NDArray[np.float64]
Variant = Callable[[], Mapping[str, float] | None]
"""Runs once; may return the milliseconds of its stages."""


@dataclass(frozen=True)
class Timings:
    wall_ms: F64
    """One per round."""
    cpu_ms: F64 | None
    """Processor time of all threads together: other processes disturb it less. None for a stage."""
    stages_ms: dict[str, F64]

    def stage(self, name: str) -> "Timings":
        return Timings(self.stages_ms[name], None, {})

    def summary(self, per: int = 1) -> dict[str, object]:
        """JSON in milliseconds, divided by ``per`` (frames of a turn)."""
        out: dict[str, object] = {
            "p10_ms": _ms(self.wall_ms, 10, per),
            "p50_ms": _ms(self.wall_ms, 50, per),
            "p99_ms": _ms(self.wall_ms, 99, per),
        }
        if self.cpu_ms is not None:
            out["cpu_p50_ms"] = _ms(self.cpu_ms, 50, per)
        if self.stages_ms:
            out["stages"] = {
                name: {f"p{p}_ms": _ms(spent, p, per) for p in (10, 50, 99)} for name, spent in self.stages_ms.items()
            }
        return out


def take_turns(variants: Mapping[str, Variant], *, rounds: int, warmup: int, seed: int = 0) -> dict[str, Timings]:
    """Time each variant once a round, in an order drawn anew each time, after ``warmup`` untimed rounds.

    A turn is two runs of which the second counts: what another variant pushed out of the caches is back by then, as on a
    line that runs one product.
    """
    rng = np.random.default_rng(seed)
    names = list(variants)
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    stages: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for number in range(-warmup, rounds):
        for place in rng.permutation(len(names)):
            name = names[place]
            run = variants[name]
            run()
            cpu_before, before = time.process_time(), time.perf_counter()
            found = run()
            spent, cpu_spent = time.perf_counter() - before, time.process_time() - cpu_before
            if number < 0:
                continue
            wall[name].append(1e3 * spent)
            cpu[name].append(1e3 * cpu_spent)
            for stage, stage_ms in (found or {}).items():
                stages[name].setdefault(stage, []).append(stage_ms)
    return {
        name: Timings(np.array(wall[name]), np.array(cpu[name]), {s: np.array(v) for s, v in stages[name].items()})
        for name in names
    }


def paired_ratio(ours: F64, theirs: F64) -> dict[str, float]:
    """The ratio of two variants in the same round, over the rounds: median and quartiles."""
    low, median, high = np.percentile(ours / theirs, (25, 50, 75))
    return {"p25": round(float(low), 3), "p50": round(float(median), 3), "p75": round(float(high), 3)}


def _ms(values: F64, percent: float, per: int) -> float:
    return round(float(np.percentile(values, percent)) / per, 3)
