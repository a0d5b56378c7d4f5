"""A candidate that judges the same frames as the bundle that serves, after it, and never instead of it."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from adclick_edge.errors import EngineError
from adclick_edge.line.model import Model
from adclick_edge.runtime.decision import FrameVerdict

__all__ = ["MOST_FAILURES_IN_A_ROW", "Shadow"]

U8 = npt.NDArray[np.uint8]

MOST_FAILURES_IN_A_ROW = 5


class Shadow:
    """Counts what a candidate says otherwise. Not thread-safe but for reading: the engine's thread judges."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.frames = 0
        self.changed: Counter[str] = Counter()
        self.failures = 0
        self.last_failure = ""
        self._in_a_row = 0

    @property
    def failed(self) -> bool:
        """It failed so often in a row that asking it again is of no use."""
        return self._in_a_row >= MOST_FAILURES_IN_A_ROW

    def judge(
        self,
        frames: Sequence[U8],
        names: Sequence[str],
        shapes: Sequence[tuple[int, int]],
        served: Sequence[FrameVerdict],
    ) -> None:
        """Judge a batch that was answered with ``served``. Whatever the candidate raises is counted, not raised."""
        try:
            found = [inspection.verdict for inspection in self.model.judge(frames, names, shapes)]
            if wrong := [verdict.frame for verdict in found if verdict.verdict == "not_inspected"]:
                raise EngineError(f"its map of {wrong[0]} holds values that are not finite")
        except Exception as error:  # a back end may raise anything; the line goes on
            self.failures += 1
            self._in_a_row += 1
            self.last_failure = f"{type(error).__name__}: {error}"
            return
        self._in_a_row = 0
        changed = Counter(
            f"{ours.verdict}->{its.verdict}"
            for ours, its in zip(served, found, strict=True)
            if ours.verdict != its.verdict
        )
        self.changed = self.changed + changed
        self.frames += len(found)
