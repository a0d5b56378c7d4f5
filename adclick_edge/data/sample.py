"""One picture of a data set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["DEFECT", "GOOD", "Sample", "Split"]

Split = Literal["train", "test"]

GOOD = "good"  # the kind of every normal picture, whatever its data set calls it
DEFECT = "defect"  # the kind of defects in data sets that tell no kinds apart


@dataclass(frozen=True)
class Sample:
    """``mask_path`` is None for normal pictures and for defects that nobody outlined."""

    path: Path
    split: Split
    kind: str
    mask_path: Path | None = None

    @property
    def is_defect(self) -> bool:
        return self.kind != GOOD
