"""What an image file says about itself, read from its first bytes and its structure, without decoding a pixel.

Two reasons not to leave this to the decoder: a file of a few hundred bytes can claim 60 000 x 60 000 pixels, and
decoders fill what a truncated file does not hold with grey, which an inspection must never take for the part.
"""

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Literal

from adclick_edge.errors import ImageError

__all__ = ["ImageHeader", "read_header"]

Format = Literal["png", "jpeg", "bmp", "tiff"]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0..SOF15 without DHT, JPG, DAC
JPEG_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # not a stuffed byte, a fill byte or a restart


@dataclass(frozen=True)
class ImageHeader:
    """Size and sample depth of one image file.

    ``bits`` is the number of bits per sample as stored. ``orientation_at`` is where a TIFF keeps its orientation value
    and how to pack it there (byte offset, struct format), None where there is nothing to neutralise.
    """

    format: Format
    width: int
    height: int
    bits: int
    orientation_at: tuple[int, str] | None = None


def read_header(data: bytes, name: str) -> ImageHeader:
    """Header of the PNG, JPEG, BMP or TIFF file held in ``data``, whose structure is checked to be complete.

    Checks: PNG chunks to IEND with their CRCs; JPEG segments to the end-of-image marker; the bytes that BMP and TIFF
    headers promise. JPEG has no checksums: bytes altered inside its entropy-coded data cannot be told from a picture.
    ``name`` is what errors call the file. Raises ImageError.
    """
    if not data:
        raise _error(name, "the file is empty", "copy it again from the camera")
    try:
        if data.startswith(PNG_SIGNATURE):
            return _png(data, name)
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data, name)
        if data.startswith(b"BM"):
            return _bmp(data, name)
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _tiff(data, name)
    except (struct.error, IndexError, OverflowError):
        raise _truncated(name) from None
    raise _error(name, "not a PNG, JPEG, BMP or TIFF image", "convert it to PNG or remove it from the folder")


def _error(name: str, what: str, remedy: str) -> ImageError:
    return ImageError(f"{name}: {what}; {remedy}")


def _truncated(name: str) -> ImageError:
    return _error(name, "the file is truncated or damaged", "copy it again from the camera, or remove it")


def _png(data: bytes, name: str) -> ImageHeader:
    header: ImageHeader | None = None
    at = len(PNG_SIGNATURE)
    view = memoryview(data)
    has_pixels = False
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        (crc,) = struct.unpack_from(">I", data, end - 4)
        if zlib.crc32(view[at + 4 : end - 4]) != crc:
            raise _truncated(name)
        if header is None:
            if kind != b"IHDR" or length != 13:
                raise _truncated(name)
            width, height, bits = struct.unpack_from(">IIB", data, at + 8)
            header = ImageHeader("png", width, height, bits)
        has_pixels |= kind == b"IDAT"
        if kind == b"IEND":
            if not has_pixels:
                raise _truncated(name)
            return header
        at = end


def _jpeg(data: bytes, name: str) -> ImageHeader:
    header: ImageHeader | None = None
    at = 2
    while True:
        if data[at] != 0xFF:
            raise _truncated(name)
        while data[at + 1] == 0xFF:  # fill bytes may precede any marker
            at += 1
        marker = data[at + 1]
        if marker == 0xD9:
            if header is None:
                raise _truncated(name)
            return header
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker in JPEG_FRAMES:
            bits, height, width = struct.unpack_from(">BHH", data, at + 4)
            header = ImageHeader("jpeg", width, height, bits)
        at += 2 + length
        if marker == 0xDA:
            if header is None:
                raise _truncated(name)
            found = JPEG_MARKER_IN_SCAN.search(data, at)
            if found is None:
                raise _truncated(name)
            at = found.start()


def _bmp(data: bytes, name: str) -> ImageHeader:
    (pixels_at, header_size) = struct.unpack_from("<II", data, 10)
    if header_size == 12:  # OS/2
        width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    if width <= 0:
        raise _truncated(name)
    rows = abs(height)  # negative: stored top-down
    row_bytes = (width * bits + 31) // 32 * 4
    if compression in (0, 3) and pixels_at + rows * row_bytes > len(data):
        raise _truncated(name)
    return ImageHeader("bmp", width, rows, 8)


# Size and struct code of the TIFF field types that hold whole numbers.
TIFF_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS, TIFF_ORIENTATION, TIFF_SAMPLE_FORMAT = 256, 257, 258, 274, 339
TIFF_STRIPS, TIFF_TILES = (273, 279), (324, 325)  # offsets and byte counts


def _tiff(data: bytes, name: str) -> ImageHeader:
    """The first picture of the file; further pages are not looked at."""
    order = "<" if data.startswith(b"II") else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    word, count_code, entry_bytes, inline_bytes = ("Q", "Q", 20, 8) if big else ("I", "H", 12, 4)
    (directory_at,) = struct.unpack_from(order + word, data, 8 if big else 4)
    (n_entries,) = struct.unpack_from(order + count_code, data, directory_at)
    first = directory_at + struct.calcsize(order + count_code)
    if first + n_entries * entry_bytes > len(data):
        raise _truncated(name)

    fields: dict[int, tuple[int, ...]] = {}
    orientation_at = None
    for entry in range(first, first + n_entries * entry_bytes, entry_bytes):
        tag, kind, count = struct.unpack_from(order + "HH" + word, data, entry)
        code = TIFF_NUMBERS.get(kind)
        if code is None:
            continue
        value_at = entry + entry_bytes - inline_bytes
        if count * struct.calcsize(code) > inline_bytes:
            (value_at,) = struct.unpack_from(order + word, data, value_at)
        if count * struct.calcsize(code) > len(data):
            raise _truncated(name)
        fields[tag] = struct.unpack_from(f"{order}{count}{code}", data, value_at)
        if tag == TIFF_ORIENTATION and fields[tag] != (1,):
            orientation_at = (value_at, order + code)

    if any(set(fields.get(TIFF_SAMPLE_FORMAT, (1,))) - {1}):
        raise _error(name, "signed or floating-point TIFF samples", "save it with 8 or 16 unsigned bits per sample")
    for offsets_tag, counts_tag in (TIFF_STRIPS, TIFF_TILES):
        pieces = zip(fields.get(offsets_tag, ()), fields.get(counts_tag, ()), strict=False)
        if any(offset + count > len(data) for offset, count in pieces):
            raise _truncated(name)
    if not all(fields.get(tag) for tag in (TIFF_WIDTH, TIFF_HEIGHT)) or not (
        TIFF_STRIPS[0] in fields or TIFF_TILES[0] in fields
    ):
        raise _truncated(name)
    bits = max(fields.get(TIFF_BITS, (1,)))
    return ImageHeader("tiff", fields[TIFF_WIDTH][0], fields[TIFF_HEIGHT][0], bits, orientation_at)
