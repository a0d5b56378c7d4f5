"""Payloads to RGB: raw pixels of a camera, JPEG and PNG; what they claim is checked before a pixel is touched.

Raw payloads are read where they lie, row padding and all: the only pass over a full-size frame is the resize itself
(for Bayer mosaics and mono16 also the one that makes 8-bit pixels of them).
"""

from collections.abc import Callable, Iterable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from adclick_edge.data.images import decode_image
from adclick_edge.data.resize import fit, halved_first
from adclick_edge.errors import ImageError
from adclick_edge.line.config import Limits
from adclick_edge.line.protocol import BITS_PER_PIXEL, ENCODED, FrameHeader

__all__ = ["MIN_BAYER_SIDE", "check_claims", "halving_part_bytes", "to_input", "to_input_from_parts", "to_rgb"]

MIN_BAYER_SIDE = 3
"""Smaller mosaics lack the neighbours that the missing colours are interpolated from; OpenCV makes them black."""

MAX_SCANS = 64
"""Scans of a progressive JPEG. Encoders write about ten; thousands of a few bytes each would decode for minutes."""

SIGNATURES = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}

# GenICam names a mosaic by the first two pixels of its first row. OpenCV's BayerXX names go by the second row and
# column instead; its four-letter ones spell the first two rows out.
BAYER = {
    "bayer_rg8": cv2.COLOR_BayerRGGB2RGB,
    "bayer_gr8": cv2.COLOR_BayerGRBG2RGB,
    "bayer_gb8": cv2.COLOR_BayerGBRG2RGB,
    "bayer_bg8": cv2.COLOR_BayerBGGR2RGB,
}

PART_BYTES = 640 << 10
"""Of a frame read piece by piece: 120 rows of 1080p RGB were the quickest of 12 to 216."""

Buffer = bytes | bytearray | memoryview
Pixels = NDArray[np.uint8]


def check_claims(header: FrameHeader, payload_bytes: int, limits: Limits) -> None:
    """Refuse what a frame's header claims, in microseconds and without its pixels.

    ``payload_bytes`` is the size of the payload, in a message part or a ring's slot. Checked are the size of picture
    and payload against ``limits``, and for raw formats that one fits the other: rows of ``stride_bytes`` (0: packed),
    of which the last may lack its padding. What a JPEG or PNG says about itself is checked where it is decoded, before
    it is: it must be of the header's size, so that these limits hold for it too. Raises ImageError.
    """
    name, width, height = _name(header), header.width, header.height
    if width > limits.max_width or height > limits.max_height or width * height > limits.max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} pixels, over the limit of {limits.max_width} x {limits.max_height} and "
            f"{limits.max_pixels} in all; set a region of interest in the camera, or raise [limits] in line.toml"
        )
    if payload_bytes > limits.max_payload_bytes:
        raise ImageError(
            f"{name}: {payload_bytes} bytes, over the limit of {limits.max_payload_bytes}; "
            "raise limits.max_payload_bytes in line.toml"
        )
    if header.format in ENCODED:
        if payload_bytes == 0:
            raise ImageError(f"{name}: an empty {header.format} payload; send the file's bytes after the header")
        return
    if header.format in BAYER and min(width, height) < MIN_BAYER_SIDE:
        raise ImageError(
            f"{name}: a {header.format} mosaic of {width} x {height} pixels has too few neighbours to make colours of; "
            f"send at least {MIN_BAYER_SIDE} x {MIN_BAYER_SIDE}"
        )
    row, stride = _row_and_stride(header)
    if stride < row:
        raise ImageError(
            f"{name}: rows of {stride} bytes do not hold {width} pixels of {header.format}, which take {row}; "
            "state the distance of two rows in bytes, or 0 for packed rows"
        )
    least, most = stride * (height - 1) + row, stride * height
    if not least <= payload_bytes <= most:
        expected = f"{most}" if least == most else f"{least} to {most}"
        raise ImageError(
            f"{name}: {payload_bytes} bytes for {width} x {height} pixels of {header.format} in rows of {stride} bytes, "
            f"which take {expected}; check width, height, format and stride_bytes against the camera's settings"
        )


def to_rgb(header: FrameHeader, payload: Buffer) -> NDArray[np.uint8]:
    """The whole picture, uint8 [H, W, 3] RGB, in memory of its own: the payload's may be reused afterwards.

    ``header`` must have passed `check_claims` with this payload. mono16 is shifted right by ``bit_depth - 8``, as the
    16-bit PNGs are that a camera wrote. Raises ImageError: values above ``bit_depth``, and JPEG and PNG that are damaged
    or not of the header's size.
    """
    pixels, finish = _pixels(header, payload)
    return _own(finish(pixels), payload)


def to_input(header: FrameHeader, payload: Buffer, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The picture at the network's input ``size`` (height, width): uint8 [h, w, 3] RGB in memory of its own.

    The same values as ``fit(to_rgb(header, payload), size)``, but channels are swapped and replicated at the smaller
    size: `data.resize.fit` treats each channel by itself. Errors as for `to_rgb`.
    """
    pixels, finish = _pixels(header, payload)
    if pixels.shape[0] * pixels.shape[1] > size[0] * size[1]:
        return finish(fit(pixels, size))
    return _own(fit(finish(pixels), size), payload)


def halving_part_bytes(header: FrameHeader, size: tuple[int, int]) -> int | None:
    """How many bytes at a time `to_input_from_parts` wants of this frame's payload: an even number of rows that stay in the
    processor's cache. None for a frame that must be had whole.
    """
    if header.format not in ("mono8", "rgb8", "bgr8") or not halved_first((header.height, header.width), size):
        return None
    row, stride = _row_and_stride(header)
    return None if row != stride else 2 * row * max(1, PART_BYTES // (2 * row))


def to_input_from_parts(header: FrameHeader, parts: Iterable[memoryview], size: tuple[int, int]) -> NDArray[np.uint8]:
    """`to_input` of a payload that comes in ``parts`` of `halving_part_bytes`, each needed only until the next.

    ``header`` must have passed `check_claims` with the size of the whole. The first halving of `fit` is done part by part.
    """
    channels = BITS_PER_PIXEL[header.format] // 8
    half = np.empty((header.height // 2, header.width // 2, channels), np.uint8)
    done = 0
    for part in parts:
        rows = np.frombuffer(part, np.uint8).reshape(-1, header.width, channels)
        end = done + len(rows) // 2
        cv2.resize(rows, (half.shape[1], end - done), dst=half[done:end], interpolation=cv2.INTER_AREA)
        done = end
    finish = {"mono8": _replicate, "bgr8": _swap}.get(header.format, _as_is)
    return finish(fit(half, size))


Finish = Callable[[Pixels], Pixels]


def _pixels(header: FrameHeader, payload: Buffer) -> tuple[Pixels, Finish]:
    """8-bit pixels [H, W, C], in the payload's memory where they are so already, and what makes RGB of them."""
    if header.format in ENCODED:
        return _decode(header, payload), _as_is
    if header.format == "mono16":
        return _eight_bits(header, _rows(header, payload, "<u2", 1)), _replicate
    if header.format == "mono8":
        return _rows(header, payload, "u1", 1), _replicate
    if header.format in BAYER:
        mosaic: Pixels = _rows(header, payload, "u1", 1)
        rgb = cv2.cvtColor(mosaic, BAYER[header.format])
        return rgb, _as_is  # type: ignore[return-value]
    colours: Pixels = _rows(header, payload, "u1", 3)
    return colours, _swap if header.format == "bgr8" else _as_is


def _rows(header: FrameHeader, payload: Buffer, dtype: str, channels: int) -> NDArray[Any]:
    """The payload as [H, W, channels], rows ``stride_bytes`` apart; no copy."""
    row, stride = _row_and_stride(header)
    size_bytes = memoryview(payload).nbytes
    # NumPy takes an empty buffer's size from the shape, and would read beyond it.
    if size_bytes < stride * (header.height - 1) + row:
        raise ImageError(
            f"{_name(header)}: {size_bytes} bytes do not hold {header.height} rows of {row} bytes, {stride} apart; "
            "check the frame's header"
        )
    sample = np.dtype(dtype).itemsize
    shape, strides = (header.height, header.width, channels), (stride, channels * sample, sample)
    return np.ndarray(shape, dtype, buffer=payload, strides=strides)


def _eight_bits(header: FrameHeader, samples: NDArray[Any]) -> Pixels:
    wide: NDArray[np.uint16] = samples.astype(np.uint16, copy=False)
    highest = int(wide.max())
    if highest >> header.bit_depth:
        raise ImageError(
            f"{_name(header)}: holds the value {highest}, which needs more than the {header.bit_depth} bits stated; "
            "state the camera's real bit depth"
        )
    return (wide >> (header.bit_depth - 8)).astype(np.uint8)


def _decode(header: FrameHeader, payload: Buffer) -> Pixels:
    name = _name(header)
    data = bytes(payload)
    if not data.startswith(SIGNATURES[header.format]):
        raise ImageError(f"{name}: the payload is no {header.format.upper()}; state its real format in the header")
    if header.format == "jpeg" and data.count(b"\xff\xda") > MAX_SCANS:
        raise ImageError(f"{name}: a JPEG of more than {MAX_SCANS} scans; save it as baseline JPEG")
    # A file that claims more pixels than its header is refused by its claim; one that claims fewer costs no more.
    pixels = decode_image(data, name, max_pixels=header.width * header.height, bit_depth=header.bit_depth)
    if pixels.shape[:2] != (header.height, header.width):
        raise ImageError(
            f"{name}: the {header.format.upper()} holds {pixels.shape[1]} x {pixels.shape[0]} pixels, its header says "
            f"{header.width} x {header.height}; state the picture's own size"
        )
    return pixels


def _row_and_stride(header: FrameHeader) -> tuple[int, int]:
    """Bytes of a row's pixels, and from one row to the next."""
    row = header.width * BITS_PER_PIXEL[header.format] // 8
    return row, header.stride_bytes or row


def _as_is(pixels: Pixels) -> Pixels:
    return pixels


def _replicate(pixels: Pixels) -> Pixels:
    return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)  # type: ignore[return-value]


def _swap(pixels: Pixels) -> Pixels:
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def _own(pixels: Pixels, payload: Buffer) -> Pixels:
    if np.may_share_memory(pixels, np.frombuffer(payload, np.uint8)):
        return pixels.copy()
    return pixels


def _name(header: FrameHeader) -> str:
    return f"frame {header.seq}"
