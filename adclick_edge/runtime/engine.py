"""What a back end offers: frames in, maps out. One back end a file; GPU libraries are imported inside theirs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from adclick_edge.features.bank import Bank

__all__ = ["STAGES", "BankHandle", "Engine", "Features", "Maps"]

STAGES = ("features", "residual", "segment")

Features = dict[str, npt.NDArray[np.float32]]
"""Named outputs of the features graph, each with the frames along its first axis."""


class BankHandle(Protocol):
    """A bank where its engine searches it (on a GPU: in device memory)."""

    @property
    def bank(self) -> Bank: ...


@dataclass(frozen=True)
class Maps:
    maps: npt.NDArray[np.float32]
    """Raw maps, float32 [N, h4, w4]."""
    stage_ms: dict[str, float]
    """Milliseconds spent in each of `STAGES`, for the whole batch."""


class Engine(Protocol):
    """Not thread-safe: one thread runs an engine."""

    name: str

    def features(self, frames: npt.NDArray[np.uint8]) -> Features:
        """uint8 [N, H, W, 3] at the input size, any N."""
        ...

    def load_bank(self, bank: Bank) -> BankHandle:
        """Make ``bank`` searchable; the weights stay as they are."""
        ...

    def run(
        self, frames: npt.NDArray[np.uint8], bank: BankHandle, *, exclude_images: Sequence[int] | None = None
    ) -> Maps:
        """Maps of frames (uint8 [N, H, W, 3]) against ``bank``. EngineError when the back end fails.

        ``exclude_images[n]`` is the bank image that frame n must not match (-1 = none): leave-one-out, for setting up.
        """
        ...
