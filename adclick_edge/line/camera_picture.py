"""What a camera program hands to `trigger`, checked, with one way to copy it."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adclick_edge.errors import UsageError
from adclick_edge.line.protocol import BITS_PER_PIXEL, ENCODED, PixelFormat

__all__ = ["Picture", "encoded_picture", "raw_picture"]

MAX_SIDE = 1 << 20


class Picture(NamedTuple):
    """A view of the caller's memory; `tobytes` or `fill` copies it, in one pass also where its rows are not packed."""

    format: PixelFormat
    width: int
    height: int
    bit_depth: int
    pixels: NDArray[Any]

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes

    def tobytes(self) -> bytes:
        return self.pixels.tobytes()

    def fill(self, target: memoryview) -> None:
        """Copy into the first `nbytes` bytes of ``target``."""
        flat = np.frombuffer(target, self.pixels.dtype, self.pixels.size)
        np.copyto(flat.reshape(self.pixels.shape), self.pixels)


def raw_picture(frame: NDArray[Any], format: PixelFormat | None, bit_depth: int) -> Picture:
    """A frame uint8 [H,W,3] (rgb8, bgr8), uint8 [H,W] (mono8, bayer_*) or uint16 [H,W] (mono16).

    ``format`` None stands for rgb8, mono8 or mono16, as the shape says. Raises UsageError where they do not fit.
    """
    if not isinstance(frame, np.ndarray):
        raise UsageError(
            f"a frame of type {type(frame).__name__}; pass a numpy array, or use trigger_encoded for files"
        )
    if format is None:
        format = "rgb8" if frame.ndim == 3 else ("mono16" if frame.dtype == np.uint16 else "mono8")
    if format not in BITS_PER_PIXEL:
        allowed = ", ".join(sorted(BITS_PER_PIXEL))
        raise UsageError(f"the format {format!r} is none of raw pixels ({allowed}); trigger_encoded takes jpeg and png")
    bits = BITS_PER_PIXEL[format]
    shape = "[H,W,3]" if bits == 24 else "[H,W]"
    dtype = np.dtype("<u2") if bits == 16 else np.dtype(np.uint8)
    fits = frame.ndim == (3 if bits == 24 else 2) and frame.dtype == dtype and (bits != 24 or frame.shape[2] == 3)
    if not fits:
        raise UsageError(f"a frame {frame.dtype}{list(frame.shape)} is no {format}, which is {dtype}{shape}")
    if not 8 <= bit_depth <= 16:
        raise UsageError(f"a bit depth of {bit_depth}; mono16 cameras fill 8 to 16 bits")
    height, width = frame.shape[:2]
    _check_sides(width, height)
    return Picture(format, width, height, bit_depth, frame)


def encoded_picture(data: bytes | bytearray | memoryview, format: PixelFormat, width: int, height: int) -> Picture:
    """The bytes of a JPEG or PNG file of that size. Raises UsageError."""
    if format not in ENCODED:
        raise UsageError(f"the format {format!r} is no encoded one; use jpeg or png, or trigger for raw pixels")
    pixels = np.frombuffer(data, np.uint8)
    if pixels.size == 0:
        raise UsageError(f"an empty {format}; pass the bytes of the whole file")
    _check_sides(width, height)
    return Picture(format, width, height, 16, pixels)


def _check_sides(width: int, height: int) -> None:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise UsageError(f"a frame of {width} x {height} pixels; each side must be 1 to {MAX_SIDE}")
