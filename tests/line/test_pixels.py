import struct
import time
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from adclick_edge.data.images import decode_image
from adclick_edge.data.resize import fit
from adclick_edge.errors import ImageError
from adclick_edge.line.config import Limits
from adclick_edge.line.pixels import MIN_BAYER_SIDE, check_claims, to_input, to_rgb
from adclick_edge.line.protocol import BITS_PER_PIXEL, FrameHeader

RAW = sorted(BITS_PER_PIXEL)
BAYER_ROWS = {
    "bayer_rg8": ("rg", "gb"),
    "bayer_gr8": ("gr", "bg"),
    "bayer_gb8": ("gb", "rg"),
    "bayer_bg8": ("bg", "gr"),
}
LIMITS = Limits()


def header(format: str, width: int, height: int, **more: object) -> FrameHeader:
    return FrameHeader(seq=7, format=format, width=width, height=height, **more)


def random_rows(head: FrameHeader, rng: np.random.Generator, *, last_padding: bool = True) -> bytes:
    """Rows of noise of the header's size; padding holds noise too, so that reading it would show."""
    row = head.width * BITS_PER_PIXEL[head.format] // 8
    stride = head.stride_bytes or row
    data = rng.integers(0, 256, stride * head.height, np.uint8)
    if head.format == "mono16":
        for y in range(head.height):
            values = rng.integers(0, 1 << head.bit_depth, head.width).astype("<u2")
            data[y * stride : y * stride + row] = np.frombuffer(values.tobytes(), np.uint8)
    return data.tobytes()[: len(data) if last_padding else len(data) - stride + row]


def expected_rgb(head: FrameHeader, payload: bytes) -> NDArray[np.uint8]:
    """The picture, one row at a time and with nothing clever."""
    row = head.width * BITS_PER_PIXEL[head.format] // 8
    stride = head.stride_bytes or row
    rows = [payload[y * stride : y * stride + row] for y in range(head.height)]
    if head.format in ("rgb8", "bgr8"):
        picture = np.stack([np.frombuffer(r, np.uint8).reshape(-1, 3) for r in rows])
        return picture if head.format == "rgb8" else picture[:, :, ::-1]
    if head.format == "mono16":
        grey = np.stack([np.frombuffer(r, "<u2") for r in rows])
        grey = (grey >> (head.bit_depth - 8)).astype(np.uint8)
    else:
        grey = np.stack([np.frombuffer(r, np.uint8) for r in rows])
    return np.repeat(grey[:, :, None], 3, axis=2)


def mosaic_of(picture: NDArray[np.uint8], rows: tuple[str, str]) -> NDArray[np.uint8]:
    """What a camera with this colour filter would send of ``picture``."""
    mosaic = np.empty(picture.shape[:2], np.uint8)
    for y in range(2):
        for x in range(2):
            mosaic[y::2, x::2] = picture[y::2, x::2, "rgb".index(rows[y][x])]
    return mosaic


@pytest.mark.parametrize("format", ["mono8", "mono16", "rgb8", "bgr8"])
@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    padding=st.sampled_from([0, 1, 2, 7, 64]),
    depth=st.integers(8, 16),
    last_padding=st.booleans(),
    seed=st.integers(0, 1 << 32),
)
@settings(deadline=None, max_examples=40)
def test_raw_rows(
    format: str, width: int, height: int, padding: int, depth: int, last_padding: bool, seed: int
) -> None:
    row = width * BITS_PER_PIXEL[format] // 8
    head = header(format, width, height, stride_bytes=row + padding if padding else 0, bit_depth=depth)
    payload = random_rows(head, np.random.default_rng(seed), last_padding=last_padding)
    check_claims(head, len(payload), LIMITS)
    np.testing.assert_array_equal(to_rgb(head, memoryview(payload)), expected_rgb(head, payload))


@pytest.mark.parametrize("format", RAW)
@given(
    side=st.tuples(st.integers(MIN_BAYER_SIDE, 70), st.integers(MIN_BAYER_SIDE, 70)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    padding=st.sampled_from([0, 5]),
    seed=st.integers(0, 1 << 32),
)
@settings(deadline=None, max_examples=60)
def test_to_input_is_fit_of_to_rgb(
    format: str, side: tuple[int, int], size: tuple[int, int], padding: int, seed: int
) -> None:
    row = side[0] * BITS_PER_PIXEL[format] // 8
    head = header(format, *side, stride_bytes=row + padding, bit_depth=12)
    payload = random_rows(head, np.random.default_rng(seed))
    found = to_input(head, payload, size)
    assert found.shape == (*size, 3)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, fit(to_rgb(head, payload), size))


@pytest.mark.parametrize("format", RAW)
@pytest.mark.parametrize("size", [(256, 256), (512, 512), (1080, 1920)])
def test_to_input_of_a_whole_frame(format: str, size: tuple[int, int]) -> None:
    head = header(format, 1920, 1080, bit_depth=12)
    payload = random_rows(head, np.random.default_rng(0))
    np.testing.assert_array_equal(to_input(head, payload, size), fit(to_rgb(head, payload), size))


@pytest.mark.parametrize("format", [*RAW, "png", "jpeg"])
@pytest.mark.parametrize("size", [(8, 6), (4, 4), (16, 16)])
def test_results_own_their_memory(format: str, size: tuple[int, int]) -> None:
    """A ring's slot is written again after the verdict; no result may change with it."""
    head = header(format, 6, 8, bit_depth=12)
    if format in BITS_PER_PIXEL:
        payload = bytearray(random_rows(head, np.random.default_rng(0)))
    else:
        payload = bytearray(
            cv2.imencode("." + format, np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8))[1]
        )
    results = [to_rgb(head, payload), to_input(head, payload, size)]
    before = [r.copy() for r in results]
    payload[:] = bytes(len(payload))
    for result, was in zip(results, before, strict=True):
        assert result.flags.writeable
        np.testing.assert_array_equal(result, was)


@pytest.mark.parametrize("format", sorted(BAYER_ROWS))
def test_bayer_mosaics_have_genicams_names(format: str) -> None:
    """Of a smooth coloured picture the mosaic gives back each colour; under a wrong name two of them change places."""
    y, x = np.mgrid[0:60, 0:80]
    picture = np.stack([200 - y, 60 + 0 * x, 20 + x // 2], axis=2).astype(np.uint8)
    for name, rows in BAYER_ROWS.items():
        payload = mosaic_of(picture, rows).tobytes()
        difference = np.abs(to_rgb(header(format, 80, 60), payload).astype(int) - picture)[2:-2, 2:-2].max()
        assert difference <= 2 if name == format else difference > 50


def test_colours_keep_their_place() -> None:
    pixel = bytes([10, 100, 200])
    assert to_rgb(header("rgb8", 1, 1), pixel).tolist() == [[[10, 100, 200]]]
    assert to_rgb(header("bgr8", 1, 1), pixel).tolist() == [[[200, 100, 10]]]


def test_mono16_follows_the_rule_of_16_bit_files() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 12, (20, 30)).astype("<u2")
    head = header("mono16", 30, 20, bit_depth=12)
    as_file = cv2.imencode(".png", values)[1].tobytes()
    np.testing.assert_array_equal(to_rgb(head, values.tobytes()), decode_image(as_file, "file", bit_depth=12))
    np.testing.assert_array_equal(to_rgb(header("png", 30, 20, bit_depth=12), as_file), to_rgb(head, values.tobytes()))


@pytest.mark.parametrize("convert", [to_rgb, lambda h, p: to_input(h, p, (2, 2))])
def test_values_above_the_bit_depth(convert: Callable[[FrameHeader, bytes], object]) -> None:
    values = np.full((4, 4), 1023, "<u2")
    convert(header("mono16", 4, 4, bit_depth=10), values.tobytes())
    values[3, 3] = 1024
    with pytest.raises(ImageError, match=r"frame 7: holds the value 1024, .* 10 bits"):
        convert(header("mono16", 4, 4, bit_depth=10), values.tobytes())


@pytest.mark.parametrize("format", ["png", "jpeg"])
def test_files(format: str) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    data = cv2.imencode("." + format, picture)[1].tobytes()
    head = header(format, 32, 24)
    check_claims(head, len(data), LIMITS)
    rgb = to_rgb(head, memoryview(data))
    np.testing.assert_array_equal(rgb, decode_image(data, "file"))
    np.testing.assert_array_equal(to_input(head, data, (9, 50)), fit(rgb, (9, 50)))
    for width, height in ((24, 32), (32, 25), (31, 24), (1, 1), (1000, 1000)):
        with pytest.raises(ImageError):
            to_rgb(header(format, width, height), data)
    for damaged in (data[: len(data) // 2], data[:4], b"\0" * 40, b"x"):
        with pytest.raises(ImageError):
            to_rgb(head, damaged)


def test_files_of_another_format() -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    for suffix, stated in ((".png", "jpeg"), (".jpg", "png"), (".bmp", "png"), (".tif", "jpeg")):
        with pytest.raises(ImageError, match="state its real format"):
            to_rgb(header(stated, 4, 4), cv2.imencode(suffix, picture)[1].tobytes())


def test_a_jpeg_of_many_scans() -> None:
    data = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8), [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    to_rgb(header("jpeg", 8, 8), data)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match="scans"):
        to_rgb(header("jpeg", 8, 8), data[:-2] + scan * 100 + data[-2:])


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_a_small_file_that_claims_a_giant_picture_costs_nothing() -> None:
    data = png_that_claims(60_000, 60_000)
    assert len(data) < 250
    honest, lying = header("png", 60_000, 60_000), header("png", 640, 480)
    check_claims(lying, len(data), LIMITS)

    def refuse_both() -> None:
        with pytest.raises(ImageError, match="over the limit"):
            check_claims(honest, len(data), LIMITS)
        with pytest.raises(ImageError, match="over the limit"):
            to_rgb(lying, data)

    fastest_s = min(timed(refuse_both) for _ in range(50))
    assert fastest_s < 1e-3


def timed(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


@pytest.mark.parametrize(
    ("head", "payload_bytes", "message"),
    [
        (header("mono8", 101, 10), 1010, "over the limit of 100 x 200"),
        (header("mono8", 10, 201), 2010, "over the limit of 100 x 200"),
        (header("mono8", 100, 200), 20_000, "10000 in all"),
        (header("png", 100, 200), 500, "10000 in all"),
        (header("jpeg", 10, 10), 30_001, "over the limit of 30000"),
        (header("mono8", 10, 10, stride_bytes=4000), 40_000, "over the limit of 30000"),
        (header("jpeg", 10, 10), 0, "empty jpeg"),
        (header("png", 10, 10), 0, "empty png"),
        (header("mono8", 10, 10), 0, "which take 100"),
        (header("mono8", 10, 10), 99, "which take 100"),
        (header("mono8", 10, 10), 101, "which take 100"),
        (header("mono16", 10, 10), 100, "which take 200"),
        (header("rgb8", 10, 10), 100, "which take 300"),
        (header("rgb8", 10, 10, stride_bytes=29), 300, "rows of 29 bytes do not hold 10 pixels"),
        (header("mono16", 10, 10, stride_bytes=19), 200, "rows of 19 bytes do not hold 10 pixels"),
        (header("bgr8", 10, 10, stride_bytes=32), 317, "which take 318 to 320"),
        (header("bgr8", 10, 10, stride_bytes=32), 321, "which take 318 to 320"),
        (header("bayer_rg8", 2, 10), 20, "too few neighbours"),
        (header("bayer_bg8", 10, 2), 20, "too few neighbours"),
    ],
)
def test_claims_refused(head: FrameHeader, payload_bytes: int, message: str) -> None:
    limits = Limits(max_width=100, max_height=200, max_pixels=10_000, max_payload_bytes=30_000)
    with pytest.raises(ImageError, match=message) as error:
        check_claims(head, payload_bytes, limits)
    assert str(error.value).startswith("frame 7: ")
    assert ";" in str(error.value)


@pytest.mark.parametrize("format", RAW)
def test_a_payload_shorter_than_its_header_is_never_read_beyond(format: str) -> None:
    head = header(format, 10, 10)
    whole = 10 * 10 * BITS_PER_PIXEL[format] // 8
    for size_bytes in (0, 1, whole - 1):
        with pytest.raises(ImageError, match=f"frame 7: {size_bytes} bytes do not hold"):
            to_rgb(head, bytes(size_bytes))


def test_extreme_shapes() -> None:
    """The longest rows that limits allow go through the same resize."""
    for width, height in ((16384, 1), (1, 16384), (1 << 20, 1)):
        payload = bytes(range(256)) * (width * height // 256)
        for format in ("mono8", "bayer_gr8"):
            head = header(format, width, height)
            if format == "mono8":
                assert to_input(head, payload, (16, 16)).shape == (16, 16, 3)
            else:
                with pytest.raises(ImageError):
                    check_claims(head, len(payload), Limits(max_width=1 << 20, max_height=1 << 20))


@given(
    format=st.sampled_from([*RAW, "jpeg", "png"]),
    width=st.integers(1, 1 << 20),
    height=st.integers(1, 1 << 20),
    stride=st.integers(0, 1 << 24),
    data=st.binary(max_size=300),
)
@settings(deadline=None, max_examples=300)
def test_whatever_passes_the_claims_becomes_a_picture_or_an_error(
    format: str, width: int, height: int, stride: int, data: bytes
) -> None:
    head = header(format, width, height, stride_bytes=stride)
    try:
        check_claims(head, len(data), LIMITS)
        picture = to_input(head, data, (8, 8))
    except ImageError:
        return
    assert picture.shape == (8, 8, 3)
