"""Reading pictures: every format and depth to the same pixels, and nothing but an ImageError for what is damaged."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.data.image_header import read_header
from adclick_edge.data.images import decode_image, list_images, read_image, read_mask
from adclick_edge.errors import DataError, ImageError, UsageError

RNG = np.random.default_rng(5)
SMOOTH = cv2.resize(RNG.integers(0, 256, (5, 6, 3), np.uint8), (61, 43), interpolation=cv2.INTER_CUBIC)  # RGB


def encoded(image: np.ndarray, suffix: str, params: tuple[int, ...] = ()) -> bytes:
    channels_swapped = image if image.ndim == 2 else image[..., [2, 1, 0, 3][: image.shape[2]]]
    ok, data = cv2.imencode(suffix, np.ascontiguousarray(channels_swapped), list(params))
    assert ok
    return data.tobytes()


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes, extra: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff_with_tag(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with one SHORT field added or replaced, its directory written anew at the end."""
    (at,) = struct.unpack_from("<I", data, 4)
    (n,) = struct.unpack_from("<H", data, at)
    entries = [data[at + 2 + 12 * i : at + 14 + 12 * i] for i in range(n)]
    kept = [e for e in entries if struct.unpack_from("<H", e)[0] != tag]
    entries = sorted([*kept, struct.pack("<HHII", tag, 3, 1, value)], key=lambda e: struct.unpack_from("<H", e)[0])
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return data[:4] + struct.pack("<I", len(data)) + data[8:] + directory


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_lossless_colour_is_read_back_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encoded(SMOOTH, suffix))
    image = read_image(path)
    assert image.dtype == np.uint8
    assert np.array_equal(image, SMOOTH)


def test_jpeg_is_read_nearly_and_in_rgb_order() -> None:
    image = decode_image(encoded(SMOOTH, ".jpg", (cv2.IMWRITE_JPEG_QUALITY, 98)), "a.jpg")
    assert np.abs(image.astype(int) - SMOOTH).mean() < 3


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_grey_is_spread_to_three_channels(suffix: str) -> None:
    image = decode_image(encoded(SMOOTH[..., 0], suffix), "grey")
    assert np.array_equal(image, np.repeat(SMOOTH[..., :1], 3, axis=2))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_alpha_is_dropped_not_blended(suffix: str) -> None:
    with_alpha = np.dstack([SMOOTH, RNG.integers(0, 256, SMOOTH.shape[:2], np.uint8)])
    assert np.array_equal(decode_image(encoded(with_alpha, suffix), "a"), SMOOTH)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_lose_their_low_byte_and_are_not_stretched(suffix: str, channels: int) -> None:
    deep = RNG.integers(1000, 20000, (9, 11, channels), np.uint16)
    image = decode_image(encoded(deep if channels > 1 else deep[..., 0], suffix), "deep")
    expected = np.repeat(deep, 3, axis=2) if channels == 1 else deep[..., :3]
    assert np.array_equal(image, (expected >> 8).astype(np.uint8))


@given(bit_depth=st.integers(8, 16))
@settings(deadline=None, max_examples=9)
def test_bit_depth_keeps_the_top_eight_bits_of_the_camera(bit_depth: int) -> None:
    deep = RNG.integers(0, 2**bit_depth, (6, 7), np.uint16)
    image = decode_image(encoded(deep, ".png"), "deep", bit_depth=bit_depth)
    assert np.array_equal(image[..., 1], (deep >> (bit_depth - 8)).astype(np.uint8))


def test_more_bits_than_stated_are_refused_not_clipped() -> None:
    data = encoded(np.full((4, 4), 5000, np.uint16), ".png")
    with pytest.raises(ImageError, match=r"line\.png: holds the value 5000, which needs more than the 12 bits"):
        decode_image(data, "line.png", bit_depth=12)


@pytest.mark.parametrize("bit_depth", [7, 17])
def test_impossible_bit_depth_is_a_usage_error(bit_depth: int) -> None:
    with pytest.raises(UsageError, match="8 to 16"):
        decode_image(encoded(SMOOTH, ".png"), "a", bit_depth=bit_depth)


def test_small_grey_depths_and_palettes() -> None:
    assert decode_image(png(4, 1, 2, 0, b"\0\x1b"), "2 bits")[0, :, 0].tolist() == [0, 85, 170, 255]
    palette = chunk(b"PLTE", bytes([1, 2, 3, 200, 100, 50]))
    assert decode_image(png(2, 1, 8, 3, b"\0\0\1", palette), "palette")[0].tolist() == [[1, 2, 3], [200, 100, 50]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_tags_turn_nothing(orientation: int) -> None:
    tiff = tiff_with_tag(encoded(SMOOTH, ".tif", (cv2.IMWRITE_TIFF_COMPRESSION, 1)), 274, orientation)
    assert np.array_equal(decode_image(tiff, "a.tif"), SMOOTH)

    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 274, 3, 1, orientation, 0)
    jpeg = encoded(SMOOTH, ".jpg")
    tagged = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    assert np.array_equal(decode_image(tagged, "a.jpg"), decode_image(jpeg, "a.jpg"))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
@given(share=st.floats(0, 0.999))
@settings(deadline=None, max_examples=40)
def test_every_truncation_is_told(suffix: str, share: float) -> None:
    data = encoded(SMOOTH, suffix, (cv2.IMWRITE_TIFF_COMPRESSION, 1) if suffix == ".tif" else ())
    with pytest.raises(ImageError, match=r"cut\.x: .*; "):
        decode_image(data[: int(share * len(data))], "cut.x")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_altered_bytes_give_a_picture_or_an_image_error(suffix: str, data: st.DataObject) -> None:
    content = bytearray(encoded(SMOOTH, suffix))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = decode_image(bytes(content), "altered", max_pixels=1_000_000)
    except ImageError:
        return
    assert image.dtype == np.uint8
    assert image.shape[2] == 3


def test_altered_png_pixels_are_told() -> None:
    content = bytearray(encoded(SMOOTH, ".png"))
    content[len(content) // 2] ^= 1
    with pytest.raises(ImageError, match="truncated or damaged"):
        decode_image(bytes(content), "altered.png")


@given(
    st.binary(max_size=300), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0+"])
)
@settings(deadline=None, max_examples=200)
def test_any_bytes_are_read_or_refused(junk: bytes, signature: bytes) -> None:
    with pytest.raises(ImageError):
        decode_image(signature + junk, "junk", max_pixels=1000)


BOMBS = {
    "png": png(60_000, 60_000, 8, 2, b"\0"),
    "jpeg": b"\xff\xd8\xff\xc0\0\x11\x08\xea\x60\xea\x60\x03" + bytes(9) + b"\xff\xd9",
    "bmp": b"BM" + bytes(8) + struct.pack("<IIiiHHI", 54, 40, 60_000, -60_000, 1, 24, 1) + bytes(24),
    "tiff": b"II*\0\x08\0\0\0\x04\0"
    + struct.pack("<HHII", 256, 4, 1, 60_000)
    + struct.pack("<HHII", 257, 4, 1, 60_000)
    + struct.pack("<HHII", 273, 4, 1, 0)
    + struct.pack("<HHII", 279, 4, 1, 8)
    + bytes(4),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_huge_pictures_are_refused_before_decoding(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="bomb: 60000 x 60000 pixels, over the limit of 200000000; crop"):
        decode_image(BOMBS[kind], "bomb")


def test_a_file_too_large_for_its_pixels_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.png"
    with open(path, "wb") as f:
        f.truncate(1 << 25)
    with pytest.raises(ImageError, match="33554432 bytes, over the limit"):
        read_image(path, max_pixels=1000)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "the file is empty"), (b"GIF89a....", "not a PNG, JPEG, BMP or TIFF"), (b"hello", "not a PNG")],
)
def test_unusable_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"bad\.png: {message}"):
        read_image(path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path)


def test_float_tiff_is_refused() -> None:
    with pytest.raises(ImageError, match="floating-point"):
        decode_image(encoded(RNG.random((5, 5)).astype(np.float32), ".tif"), "f.tif")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_damaged_files_print_nothing(suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = encoded(SMOOTH, suffix)
    for share in (0.3, 0.7, 0.95):
        with pytest.raises(ImageError):
            decode_image(data[: int(share * len(data))], "cut")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif"])
def test_header_says_what_decoding_gives(suffix: str) -> None:
    header = read_header(encoded(SMOOTH, suffix), "a")
    assert (header.height, header.width) == SMOOTH.shape[:2]
    assert header.bits == 8


def write_mask(folder: Path, values: np.ndarray, suffix: str = ".png") -> Path:
    path = folder / f"m{suffix}"
    path.write_bytes(encoded(values, suffix))
    return path


@pytest.mark.parametrize("high", [1, 7, 128, 255])
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_two_valued_masks_mark_what_is_not_0(tmp_path: Path, high: int, suffix: str) -> None:
    truth = RNG.random((8, 9)) < 0.4
    mask = read_mask(write_mask(tmp_path, truth * np.uint8(high), suffix), (8, 9))
    assert mask.dtype == np.bool_
    assert np.array_equal(mask, truth)


def test_class_numbers_all_count_as_defect(tmp_path: Path) -> None:
    values = RNG.integers(0, 6, (8, 9), np.uint8)
    assert np.array_equal(read_mask(write_mask(tmp_path, values), (8, 9)), values > 0)


def test_shaded_masks_are_cut_at_half(tmp_path: Path) -> None:
    values = np.array([[0, 1, 100, 127], [128, 200, 254, 255]], np.uint8)
    expected = [[False] * 4, [True] * 4]
    assert read_mask(write_mask(tmp_path, values), (2, 4)).tolist() == expected
    deep = values.astype(np.uint16) * 257
    assert read_mask(write_mask(tmp_path, deep), (2, 4)).tolist() == expected


def test_jpeg_masks_do_not_mark_their_ringing(tmp_path: Path) -> None:
    truth = np.zeros((64, 64), np.bool_)
    truth[19:45, 21:54] = True
    path = write_mask(tmp_path, truth * np.uint8(255), ".jpg")
    assert not set(np.unique(decode_image(path.read_bytes(), "m"))) <= {0, 255}
    assert np.array_equal(read_mask(path, (64, 64)), truth)
    assert not read_mask(write_mask(tmp_path, np.full((64, 64), 3, np.uint8), ".jpg"), (64, 64)).any()


def test_coloured_masks_mark_every_colour(tmp_path: Path) -> None:
    values = np.zeros((4, 6, 3), np.uint8)
    values[0, 0, 0] = values[1, 2, 2] = 255
    assert np.argwhere(read_mask(write_mask(tmp_path, values), (4, 6))).tolist() == [[0, 0], [1, 2]]


def test_mask_of_another_size_is_an_image_error(tmp_path: Path) -> None:
    path = write_mask(tmp_path, np.zeros((4, 6), np.uint8))
    with pytest.raises(ImageError, match=r"m\.png: the mask has 6 x 4 pixels, its image 4 x 6"):
        read_mask(path, (6, 4))


def test_images_are_listed_in_natural_order(tmp_path: Path) -> None:
    names = ["2.png", "10.png", "a1.JPG", "a2.png", "a02.tiff"]
    for name in [*names, ".hidden.png", "notes.txt", "Thumbs.db"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in list_images(tmp_path)] == names
    with pytest.raises(DataError, match="no such folder"):
        list_images(tmp_path / "gone")
