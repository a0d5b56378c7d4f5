"""What every source gives."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from adclick_edge.line.protocol import PixelFormat

__all__ = ["FrameSource", "SourceFrame"]


@dataclass(frozen=True, eq=False, slots=True)
class SourceFrame:
    """One frame: ``pixels`` as `CameraClient.trigger` takes them, or ``encoded``, the bytes of a JPEG or PNG file."""

    name: str
    captured_ns: int
    """time.monotonic_ns when the frame was taken, or was due in a replay."""
    format: PixelFormat
    width: int
    height: int
    pixels: NDArray[Any] | None = None
    encoded: bytes | None = None
    bit_depth: int = 16


class FrameSource(Protocol):
    """An iterator of frames that ends, if ever, with StopIteration; `close` from any thread ends it too."""

    @property
    def counts(self) -> dict[str, int]:
        """What went wrong so far, by name: ``missed_ticks`` and others of the source."""
        ...

    def __iter__(self) -> Iterator[SourceFrame]: ...

    def __next__(self) -> SourceFrame: ...

    def close(self) -> None: ...
