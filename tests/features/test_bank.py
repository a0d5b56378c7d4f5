import dataclasses
import json

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from bank_samples import CELLS, GRID, bank_of, embeddings
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.errors import BundleError
from adclick_edge.features.bank import Bank

# -- matching


def brute_force(bank, frame, allowed):
    """Nearest row of each cell in float64; ``allowed`` bool [cells, M]."""
    cells = frame.reshape(bank.dims, -1).T.astype(np.float64)
    queries = np.concatenate([(cells - bank.centre) @ bank.projection, bank.cell_code], axis=1)
    distance = ((queries[:, None] - bank.coordinates[None].astype(np.float64)) ** 2).sum(axis=2)
    return np.where(allowed, distance, np.inf).argmin(axis=1).reshape(bank.grid)


def test_residual_is_the_squared_difference_to_the_row_matched():
    bank, frames = bank_of(embeddings(6)), embeddings(3, seed=9)
    result = bank.residual(frames)
    for n, frame in enumerate(frames):
        np.testing.assert_array_equal(result.index[n], brute_force(bank, frame, np.ones((CELLS, 60), bool)))
    matched = bank.rows.astype(np.float64)[result.index].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(result.residual, (matched - frames) ** 2, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(result.distance, result.residual.sum(axis=1, keepdims=True), rtol=1e-6)
    assert result.index.shape == (3, *GRID)
    assert result.distance.shape == (3, 1, *GRID)
    assert (result.index.dtype, result.distance.dtype, result.residual.dtype) == (np.int64, np.float32, np.float32)


def test_a_bank_image_matches_itself_unless_left_out():
    frames = embeddings(4)
    bank = bank_of(frames, rows=4 * CELLS, variance=1.0)
    assert bank.residual(frames).distance.max() == 0.0
    left_out = np.array([0, -1, 2, 1])
    result = bank.residual(frames, exclude_images=left_out)
    assert (result.distance[[0, 2]] > 0).all()
    assert result.distance[[1, 3]].max() == 0.0
    for n in range(4):
        assert left_out[n] not in bank.row_image[result.index[n]]
        allowed = np.broadcast_to(bank.row_image != left_out[n], (CELLS, 4 * CELLS))
        np.testing.assert_array_equal(result.index[n], brute_force(bank, frames[n], allowed))


def test_wrong_frames_are_refused():
    bank = bank_of(embeddings(1))
    for shape in [(1, 12, 7, 5), (1, 11, 5, 7), (12, 5, 7)]:
        with pytest.raises(ValueError, match="grid"):
            bank.residual(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="no row"):
        bank.residual(embeddings(1), exclude_images=np.array([0]))


def test_position_decides_between_equal_features():
    rng = np.random.default_rng(0)
    frames = (1 + 0.01 * rng.normal(size=(2, 12, *GRID))).astype(np.float32)
    aligned = bank_of(frames, rows=2 * CELLS, position_weight=20.0)
    spread = np.sqrt(frames[0].reshape(12, -1).var(axis=1).sum())
    assert aligned.position_scale == pytest.approx(20 * spread, rel=1e-5)
    np.testing.assert_allclose(np.linalg.norm(aligned.cell_code, axis=1), aligned.position_scale, rtol=1e-5)
    assert aligned.coordinates.shape[1] == aligned.projection.shape[1] + 16
    cell = np.stack(np.meshgrid(*map(np.arange, GRID), indexing="ij"), axis=-1)
    query = (1 + 0.01 * rng.normal(size=(1, 12, *GRID))).astype(np.float32)
    np.testing.assert_array_equal(aligned.row_cell[aligned.residual(query).index[0]], cell)

    anywhere = bank_of(frames, rows=2 * CELLS)
    assert anywhere.position_scale == 0.0
    assert anywhere.cell_code.shape == (CELLS, 0)
    assert (anywhere.row_cell[anywhere.residual(query).index[0]] != cell).any()


@pytest.mark.parametrize("grid", [(5, 7), (16, 8), (19, 21)])
def test_window_matches_only_nearby_rows(grid):
    frames = embeddings(3, grid=grid)
    bank = bank_of(frames, rows=3 * grid[0] * grid[1], window_radius=2)
    query = embeddings(2, grid=grid, seed=5)
    result = bank.residual(query)
    allowed = np.zeros((grid[0] * grid[1], len(bank.rows)), bool)
    for y, x in np.ndindex(grid):
        # The window reaches 2 cells beyond the 8 x 8 block that holds the cell.
        low = np.array([y // 8 * 8 - 2, x // 8 * 8 - 2])
        high = np.minimum((y // 8 * 8 + 7, x // 8 * 8 + 7), (grid[0] - 1, grid[1] - 1)) + 2
        allowed[y * grid[1] + x] = ((bank.row_cell >= low) & (bank.row_cell <= high)).all(axis=1)
    for n in range(2):
        np.testing.assert_array_equal(result.index[n], brute_force(bank, query[n], allowed))
    # Left out, a frame is matched to all other rows.
    free = bank.residual(query[:1], exclude_images=np.array([1]))
    everywhere = np.broadcast_to(bank.row_image != 1, allowed.shape)
    np.testing.assert_array_equal(free.index[0], brute_force(bank, query[0], everywhere))


def test_a_common_offset_costs_no_precision():
    """Features are centred first, and the distance comes from the residual (method section 1)."""
    frames = embeddings(4) + np.float32(1000)
    bank = bank_of(frames[:3], variance=1.0)
    result = bank.residual(frames[3:])
    matched = bank.rows.astype(np.float64)[result.index].transpose(0, 3, 1, 2)
    exact = ((matched - frames[3:]) ** 2).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(result.distance, exact, rtol=1e-5)
    cells = frames[3].reshape(12, -1).T.astype(np.float64)
    best = ((cells[:, None] - bank.rows[None].astype(np.float64)) ** 2).sum(axis=2).min(axis=1)
    np.testing.assert_allclose(result.distance.ravel(), best, rtol=1e-4)


# -- storage

STORED = {
    "plain": {},
    "position": {"position_weight": 0.15, "position_dims": 8},
    "window": {"window_radius": 1},
    "retrieval": {"retrieve_images": 2},
}


def stored(kind):
    maps = embeddings(4, dims=8, grid=(20, 28), seed=1) if kind == "retrieval" else None
    return bank_of(embeddings(4), maps, **STORED[kind])


@pytest.mark.parametrize("kind", STORED)
def test_round_trip_is_exact(kind):
    bank = stored(kind)
    data = bank.to_bytes()
    again = Bank.from_bytes(data)
    for field in dataclasses.fields(Bank):
        before, after = getattr(bank, field.name), getattr(again, field.name)
        if isinstance(before, np.ndarray):
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)
        else:
            assert before == after
            assert type(before) is type(after)
    assert again.to_bytes() == data
    query = embeddings(2, seed=7)
    np.testing.assert_array_equal(bank.residual(query).residual, again.residual(query).residual)


def test_bytes_do_not_depend_on_the_order_of_a_hash_table():
    bank = stored("plain")
    assert len({bank.to_bytes() for _ in range(20)}) == 1


def reseal(data, tensors=(), metadata=()):
    """The bytes of a bank with some tensors or metadata replaced (None: removed)."""
    size = int.from_bytes(data[:8], "little")
    about = {**json.loads(data[8 : 8 + size])["__metadata__"], **dict(metadata)}
    arrays = {**safetensors.numpy.load(data), **dict(tensors)}
    return safetensors.numpy.save(
        {k: np.ascontiguousarray(v) for k, v in arrays.items() if v is not None},
        metadata={k: v for k, v in about.items() if v is not None},
    )


def test_resealing_unchanged_is_accepted():
    bank = stored("retrieval")
    assert Bank.from_bytes(reseal(bank.to_bytes())).to_bytes() == bank.to_bytes()


WRONG_TENSORS = {
    "no rows tensor": lambda b: {"rows": None},
    "empty": lambda b: {
        "rows": b.rows[:0],
        "coordinates": b.coordinates[:0],
        "row_image": b.row_image[:0],
        "row_cell": b.row_cell[:0],
    },
    "no features": lambda b: {
        "rows": b.rows[:, :0],
        "centre": b.centre[:0],
        "projection": b.projection[:0],
        "residual_scale": b.residual_scale[:0],
    },
    "rows of one dimension": lambda b: {"rows": b.rows.ravel()},
    "rows in float64": lambda b: {"rows": b.rows.astype(np.float64)},
    "row_image in int64": lambda b: {"row_image": b.row_image.astype(np.int64)},
    "too few coordinates": lambda b: {"coordinates": b.coordinates[:-1]},
    "too few search dims": lambda b: {"coordinates": b.coordinates[:, :-1]},
    "projection of other dims": lambda b: {"projection": b.projection[:-1]},
    "projection without columns": lambda b: {"projection": b.projection[0]},
    "centre of other dims": lambda b: {"centre": b.centre[:-1]},
    "scale of other dims": lambda b: {"residual_scale": b.residual_scale[:-1]},
    "scale of zero": lambda b: {"residual_scale": 0 * b.residual_scale},
    "not a number": lambda b: {"rows": np.where(b.rows == b.rows[3, 2], np.float32(np.nan), b.rows)},
    "infinite centre": lambda b: {"centre": b.centre + np.float32(np.inf)},
    "unsorted": lambda b: {"row_image": b.row_image[::-1]},
    "image beyond the hashes": lambda b: {"row_image": b.row_image + 1},
    "negative image": lambda b: {"row_image": b.row_image - 1},
    "cell beyond the grid": lambda b: {"row_cell": b.row_cell + np.int32(3)},
    "negative cell": lambda b: {"row_cell": b.row_cell - np.int32(1)},
    "cells in three dimensions": lambda b: {"row_cell": np.concatenate([b.row_cell, b.row_cell], axis=1)},
    "too few descriptors": lambda b: {"image_descriptors": b.image_descriptors[:-1]},
    "descriptors of other dims": lambda b: {"image_descriptors": b.image_descriptors[:, :, :-1]},
    "descriptor centre of other dims": lambda b: {"descriptor_centre": b.descriptor_centre[:-1]},
}


@pytest.mark.parametrize("wrong", WRONG_TENSORS)
def test_inconsistent_tensors_are_refused(wrong):
    bank = stored("retrieval")
    with pytest.raises(BundleError, match="shelf: bank"):
        Bank.from_bytes(reseal(bank.to_bytes(), WRONG_TENSORS[wrong](bank)), name="shelf: bank")


@pytest.mark.parametrize(
    "metadata",
    [
        {"schema": "2"},
        {"schema": None},
        {"grid": None},
        {"grid": "[5]"},
        {"grid": "[5, 7, 1]"},
        {"grid": "[5.5, 7]"},
        {"grid": "[0, 7]"},
        {"grid": "[-5, -7]"},
        {"grid": "[1000000000, 1000000000]"},
        {"grid": "nonsense"},
        {"position_scale": "NaN"},
        {"position_scale": "1e999"},
        {"position_scale": "-1"},
        {"position_scale": "0.5"},
        {"position_scale": "{}"},
        {"options": "{"},
        {"options": '{"rows": "many"}'},
        {"options": '{"rwos": 7}'},
        {"options": '{"retrieve_images": 3}'},
        {"image_hashes": "[]"},
        {"image_hashes": "[1, 2, 3, 4]"},
        {"image_hashes": '{"a": 1}'},
    ],
    ids=str,
)
def test_wrong_metadata_is_refused(metadata):
    with pytest.raises(BundleError, match=r"bank\.safetensors"):
        Bank.from_bytes(reseal(stored("plain").to_bytes(), metadata=metadata))


def test_a_position_code_that_does_not_fit_is_refused():
    bank = stored("position")
    for dims in (0, 3, 12, -8):
        options = msgspec.json.encode(msgspec.structs.replace(bank.options, position_dims=dims)).decode()
        with pytest.raises(BundleError):
            Bank.from_bytes(reseal(bank.to_bytes(), metadata={"options": options}))


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"{}", b"\xff" * 100, b"PK\x03\x04" + bytes(60), (2).to_bytes(8, "little") + b"[]"]
)
def test_other_files_are_refused(data):
    with pytest.raises(BundleError):
        Bank.from_bytes(data)


def test_every_truncation_is_refused():
    data = stored("plain").to_bytes()
    for size in [*range(0, 1200, 13), len(data) // 2, len(data) - 4, len(data) - 1]:
        with pytest.raises(BundleError):
            Bank.from_bytes(data[:size])


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_altered_headers_are_refused_or_still_make_a_bank_that_works(data):
    raw = bytearray(stored_plain_bytes)
    header = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, header - 1))] = data.draw(st.sampled_from(list(b'0123456789{}[]",:.-e \xff')))
    try:
        bank = Bank.from_bytes(bytes(raw))
    except BundleError:
        return
    result = bank.residual(np.zeros((1, bank.dims, *bank.grid), np.float32))
    assert result.index.max() < len(bank.rows)


stored_plain_bytes = stored("plain").to_bytes()
