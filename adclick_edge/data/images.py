"""Image files and image bytes to RGB frames and defect masks.

The EXIF and TIFF orientation is not applied: line cameras do not turn, and masks are drawn in raw pixels, so a tag
written by some viewer must not turn the picture away from its mask.
"""

import re
import struct
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from adclick_edge.data.image_header import ImageHeader, read_header
from adclick_edge.errors import DataError, ImageError, UsageError

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "decode_image", "list_images", "natural_key", "read_image", "read_mask"]

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
MAX_PIXELS = 200_000_000

# Below this a mask's values are numbers of defect classes (VisA), not shades of grey.
MAX_CLASS_NUMBER = 63

# Alpha dropped, grey and palettes spread to three channels, 16 bits kept, orientation left alone.
DECODE_FLAGS = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION

# Every decoding failure is raised as an ImageError; OpenCV's own lines would only repeat it on stderr.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def read_image(path: Path, *, max_pixels: int = MAX_PIXELS, bit_depth: int = 16) -> NDArray[np.uint8]:
    """The picture in a PNG, JPEG, BMP or TIFF file as uint8 [H, W, 3] RGB.

    Files with 16 bits per sample are shifted right by ``bit_depth - 8``, the same for every picture, never stretched
    to its range: a dark part must stay darker than a bright one. ``bit_depth`` is how many of the 16 bits the camera
    fills (10 or 12 for many; 8-bit files ignore it). Alpha is dropped, of several TIFF pages the first is read.
    Raises ImageError (missing, empty, truncated, too large, not an image), UsageError for a ``bit_depth`` not in 8..16.
    """
    return decode_image(_read_bytes(path, max_pixels), str(path), max_pixels=max_pixels, bit_depth=bit_depth)


def decode_image(data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, bit_depth: int = 16) -> NDArray[np.uint8]:
    """As ``read_image``, from a file's bytes in memory; ``name`` is what errors call it."""
    if not 8 <= bit_depth <= 16:
        raise UsageError(f"bit_depth is {bit_depth}; give the number of bits the camera fills, 8 to 16")
    _, pixels = _decode(data, name, max_pixels)
    if pixels.dtype == np.uint16:
        highest = int(pixels.max())
        if highest >> bit_depth:
            raise ImageError(
                f"{name}: holds the value {highest}, which needs more than the {bit_depth} bits stated; "
                "state the camera's real bit depth"
            )
        pixels = (pixels >> (bit_depth - 8)).astype(np.uint8)
    rgb: NDArray[np.uint8] = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)  # type: ignore[assignment]
    return rgb


def read_mask(path: Path, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask in a file as bool [H, W], True where defective; ``shape`` is the (H, W) of its image.

    A mask of two values (0 and 1, 0 and 255) and one of class numbers up to 63 is defective wherever it is not 0. One
    with shades between (anti-aliased, or any JPEG) is defective above half of the full range.
    Raises ImageError, also when the size differs.
    """
    header, pixels = _decode(_read_bytes(path, MAX_PIXELS), str(path), MAX_PIXELS)
    if pixels.shape[:2] != tuple(shape):
        raise ImageError(
            f"{path}: the mask has {pixels.shape[1]} x {pixels.shape[0]} pixels, its image {shape[1]} x {shape[0]}; "
            "draw the mask in the image's own pixels"
        )
    highest = int(pixels.max())
    if highest == 0:
        return np.zeros(pixels.shape[:2], np.bool_)
    values: NDArray[np.uint8] | NDArray[np.uint16] = pixels.max(axis=2)
    exact = header.format != "jpeg" and (highest <= MAX_CLASS_NUMBER or not np.any((values > 0) & (values < highest)))
    return np.asarray(values > 0 if exact else values > np.iinfo(values.dtype).max // 2)


def list_images(folder: Path) -> list[Path]:
    """The image files directly in ``folder`` in natural order (2.png before 10.png), hidden files left out.

    Raises DataError when ``folder`` is not a folder.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; check the path of the data set")
    found = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return sorted((p for p in found if p.is_file()), key=natural_key)


def natural_key(path: Path) -> tuple[tuple[str | int, ...], str]:
    """Sort key under which numbers in a file's name count as numbers; the name itself breaks ties."""
    parts = re.split(r"([0-9]+)", path.name)  # text and numbers take turns, so keys always compare
    return tuple(int(p) if i % 2 else p.lower() for i, p in enumerate(parts)), path.name


def _read_bytes(path: Path, max_pixels: int) -> bytes:
    # Four 16-bit samples per pixel and room for metadata: no image within the limit is larger.
    max_bytes = 8 * max_pixels + (1 << 24)
    try:
        if not path.is_file():
            raise ImageError(f"{path}: no such file; check the path")
        size = path.stat().st_size
        if size > max_bytes:
            raise ImageError(f"{path}: {size} bytes, over the limit of {max_bytes}; crop or scale the image down")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror}); check the disk and the file's rights") from error


def _decode(data: bytes, name: str, max_pixels: int) -> tuple[ImageHeader, NDArray[np.uint8] | NDArray[np.uint16]]:
    header = read_header(data, name)
    if header.width * header.height > max_pixels:
        raise ImageError(
            f"{name}: {header.width} x {header.height} pixels, over the limit of {max_pixels}; crop or scale it down"
        )
    if header.width == 0 or header.height == 0:
        raise ImageError(f"{name}: {header.width} x {header.height} pixels, so there is no picture; remove the file")
    if header.bits not in (1, 2, 4, 8, 16):
        raise ImageError(f"{name}: {header.bits} bits per sample cannot be read; save it with 8 or 16")
    if header.orientation_at is not None:
        # OpenCV turns TIFFs whatever the flags say, so it is shown a copy that asks for no turn.
        offset, code = header.orientation_at
        data = data[:offset] + struct.pack(code, 1) + data[offset + struct.calcsize(code) :]
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), DECODE_FLAGS)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.shape[:2] != (header.height, header.width):
        raise ImageError(f"{name}: the {header.format.upper()} data cannot be decoded; save it again as PNG")
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{name}: samples of type {pixels.dtype} cannot be read; save it with 8 or 16 bits")
    return header, pixels  # type: ignore[return-value]
