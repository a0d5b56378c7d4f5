"""What a back end offers: frames in, maps out. One back end a file; GPU libraries are imported inside theirs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from adclick_edge.features.bank import Bank

__all__ = ["STAGES", "BankHandle", "ClickEngine", "Engine", "Features", "Maps"]

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


@runtime_checkable
class ClickEngine(Engine, Protocol):
    """A back end that also runs the two graphs of clicks, for bundles that have them."""

    def residuals(self, frames: npt.NDArray[np.uint8], bank: BankHandle) -> Features:
        """The features of frames (uint8 [N, H, W, 3]) and, against ``bank``, ``relative`` [N, D, h, w] and
        ``relative_distance`` [N, 1, h, w].
        """
        ...

    def click_encode(self, feed: Mapping[str, npt.NDArray[Any]]) -> Features:
        """Once per view; inputs beyond those of the graph are ignored."""
        ...

    def click_decode(self, feed: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """Logits float32 [N, H/2, W/2] of what ``click_encode`` gave, with clicks, previous probability and prompt."""
        ...
