"""What the click protocol asks of anything that turns clicks into a mask."""

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

__all__ = ["ClickModel", "PromptedModel"]

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


class ClickModel(Protocol):
    """Clicks on one image at a time; `set_image` starts anew. Not thread-safe."""

    name: str

    def set_image(self, frame: U8) -> None:
        """Take ``frame`` (uint8 RGB ``[H, W, 3]``, any size) and forget all clicks."""
        ...

    def click(self, y: float, x: float, positive: bool) -> F32:
        """Add a click at row ``y``, column ``x`` (pixels of the frame, the integer i = centre of pixel i).

        Returns the probability of a defect after all clicks so far, float32 ``[H, W]`` in 0..1.
        """
        ...


@runtime_checkable
class PromptedModel(Protocol):
    """A click model that also takes words."""

    def prompt(self, words: str | None, /) -> object:
        """Say what kind of defect is looked for; None takes the words back."""
        ...
