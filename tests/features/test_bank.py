import dataclasses
import json
import tracemalloc

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.errors import BundleError, DataError
from adclick_edge.features.bank import Bank, BankOptions
from adclick_edge.features.bank_builder import BankBuilder

GRID = (5, 7)
CELLS = GRID[0] * GRID[1]


def embeddings(images, dims=12, grid=GRID, seed=0):
    rng = np.random.default_rng(seed)
    spread = np.linspace(2.0, 0.1, dims)[:, None, None]
    return (rng.normal(size=(images, dims, *grid)) * spread + rng.normal(size=(dims, 1, 1))).astype(np.float32)


def bank_of(frames, maps=None, seed=0, **options):
    builder = BankBuilder(BankOptions(**{"rows": 60, **options}), seed=seed)
    for number, frame in enumerate(frames):
        builder.add(frame, image_hash=f"hash{number}", retrieval_map=None if maps is None else maps[number])
    return builder.build()


def slow_residual_scale(bank, frames, left_out):
    """Float64, cell by cell: ``left_out(image, y, x)`` says which rows may not be matched, bool [M]."""
    rows, coordinates = bank.rows.astype(np.float64), bank.coordinates.astype(np.float64)
    residuals = []
    for image, frame in enumerate(frames.astype(np.float64)):
        for y, x in np.ndindex(bank.grid):
            components = (frame[:, y, x] - bank.centre) @ bank.projection
            query = np.concatenate([components, bank.cell_code[y * bank.grid[1] + x]])
            distance = ((coordinates - query) ** 2).sum(axis=1)
            distance[left_out(image, y, x)] = np.inf
            if np.isfinite(distance).any():
                residuals.append((rows[distance.argmin()] - frame[:, y, x]) ** 2)
    mean = np.mean(residuals, axis=0)
    return np.maximum(mean, 0.01 * mean.mean())


# -- building


def test_rows_are_cells_of_their_images_in_order():
    frames = embeddings(6)
    bank = bank_of(frames)
    assert bank.rows.shape == (60, 12)
    where = np.concatenate([bank.row_image[:, None], bank.row_cell], axis=1).tolist()
    assert where == sorted(where)
    assert len({tuple(w) for w in where}) == 60
    for row, (image, y, x) in zip(bank.rows, where, strict=True):
        np.testing.assert_array_equal(row, frames[image, :, y, x])
    assert bank.image_hashes == tuple(f"hash{i}" for i in range(6))
    assert (bank.rows.dtype, bank.coordinates.dtype) == (np.float32, np.float32)
    assert (bank.row_image.dtype, bank.row_cell.dtype) == (np.int32, np.int32)


@pytest.mark.parametrize("variance", [0.5, 0.9, 0.95, 1.0])
def test_components_keep_the_share_of_variance_asked_for(variance):
    bank = bank_of(embeddings(6), variance=variance)
    np.testing.assert_allclose(bank.projection.T @ bank.projection, np.eye(bank.projection.shape[1]), atol=1e-5)
    rows = bank.rows.astype(np.float64)
    centred = rows - rows.mean(axis=0)
    kept = ((centred @ bank.projection) ** 2).sum(axis=0)
    share = np.cumsum(kept) / (centred**2).sum()
    assert share[-1] >= variance - 1e-6
    assert variance == 1.0 or share[-2] < variance
    np.testing.assert_allclose(bank.centre, rows.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bank.coordinates, (rows - bank.centre) @ bank.projection, atol=1e-5)


def test_components_are_capped():
    assert bank_of(embeddings(6), variance=1.0, search_dims=3).projection.shape == (12, 3)
    assert bank_of(embeddings(6), variance=1.0, search_dims=999).projection.shape == (12, 12)


def test_a_bank_of_one_constant_feature_can_be_built_and_searched():
    frame = np.full((4, 3, 3), 2.0, np.float32)
    bank = bank_of([frame, frame])
    assert bank.rows.shape == (1, 4)
    assert bank.residual(frame[None]).distance.max() == 0.0
    assert (bank.residual_scale > 0).all()


@pytest.mark.parametrize("options", [{}, {"position_weight": 0.3, "position_dims": 8}, {"search_dims": 2}])
def test_residual_scale_is_the_leave_one_out_mean(options):
    frames = embeddings(5)
    frames[:, 3] = 1.5  # a constant channel has no residual: the floor holds
    bank = bank_of(frames, **options)
    expected = slow_residual_scale(bank, frames, lambda image, y, x: bank.row_image == image)
    np.testing.assert_allclose(bank.residual_scale, expected, rtol=1e-4)
    assert bank.residual_scale[3] == pytest.approx(0.01 * np.delete(expected, 3).sum() / 12, rel=1e-4)


def test_residual_scale_is_tiled_without_a_difference(monkeypatch):
    frames = embeddings(5)
    whole = bank_of(frames).residual_scale
    monkeypatch.setattr("adclick_edge.features.bank_builder.TILE_BYTES", 1)
    np.testing.assert_allclose(bank_of(frames).residual_scale, whole, rtol=1e-5)


def test_a_single_image_leaves_out_its_neighbours():
    frames = embeddings(1, grid=(9, 11))
    bank = bank_of(frames)

    def near(image, y, x):
        return np.abs(bank.row_cell - (y, x)).max(axis=1) <= 3

    np.testing.assert_allclose(bank.residual_scale, slow_residual_scale(bank, frames, near), rtol=1e-4)


def test_a_single_image_without_far_cells_has_scale_one():
    np.testing.assert_array_equal(bank_of(embeddings(1, grid=(3, 4))).residual_scale, np.ones(12))


def test_scale_is_measured_on_all_images_alike():
    """Later images are farther from the one row kept; a sample that favours early images would be far too low."""
    rng = np.random.default_rng(0)
    frames = (rng.normal(size=(60, 4, 16, 16)) + np.arange(60)[:, None, None, None]).astype(np.float32)
    bank = bank_of(frames, rows=1)
    assert bank.row_image.tolist() == [0]
    expected = ((frames[1:] - bank.rows[0][:, None, None]) ** 2).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(bank.residual_scale, expected, rtol=0.1)


def test_the_same_pictures_give_the_same_bytes():
    options = {"position_weight": 0.1, "coreset_dims": 6, "retrieve_images": 2}
    maps = embeddings(6, dims=8, grid=(20, 28), seed=1)
    several = {bank_of(embeddings(6), maps, **options).to_bytes() for _ in range(5)}
    assert len(several) == 1


def test_memory_does_not_grow_with_the_number_of_images():
    def peak(images):
        rng = np.random.default_rng(0)
        builder = BankBuilder(BankOptions(rows=50))
        tracemalloc.start()
        for number in range(images):
            builder.add(rng.normal(size=(6, 32, 32)).astype(np.float32), image_hash=str(number))
        builder.build()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1)
    assert peak(150) < 1.15 * peak(30)


# -- tiles, regions, wrong use


def test_tiles_belong_to_one_image():
    frames = embeddings(6)
    builder = BankBuilder(BankOptions(rows=6 * CELLS))
    for number, frame in enumerate(frames):
        builder.add(frame, image_hash=f"hash{number // 2}", new_image=number % 2 == 0)
    bank = builder.build()
    assert bank.image_hashes == ("hash0", "hash1", "hash2")
    assert bank.row_image.tolist() == sorted(bank.row_image.tolist())
    assert np.bincount(bank.row_image).tolist() == [2 * CELLS] * 3
    # Neither tile of an image matches the other.
    matched = bank.residual(frames, exclude_images=np.arange(6) // 2)
    assert (bank.row_image[matched.index] != (np.arange(6) // 2)[:, None, None]).all()
    expected = slow_residual_scale(bank, frames, lambda frame, y, x: bank.row_image == frame // 2)
    np.testing.assert_allclose(bank.residual_scale, expected, rtol=1e-4)


def test_a_tile_needs_its_image():
    with pytest.raises(ValueError, match="new_image"):
        BankBuilder(BankOptions()).add(embeddings(1)[0], image_hash="", new_image=False)


def test_cells_not_inspected_leave_no_trace():
    frames = embeddings(4)
    valid = np.random.default_rng(0).random(GRID) < 0.6
    spoiled = frames.copy()
    spoiled[:, :, ~valid] = 1e6
    banks = []
    for pictures in (frames, spoiled):
        builder = BankBuilder(BankOptions(rows=50))
        for picture in pictures:
            builder.add(picture, image_hash="", valid=valid)
        banks.append(builder.build())
    assert valid[banks[0].row_cell[:, 0], banks[0].row_cell[:, 1]].all()
    assert banks[0].to_bytes() == banks[1].to_bytes()


def test_the_position_scale_is_that_of_the_inspected_cells():
    frame = embeddings(1)[0]
    valid = np.ones(GRID, bool)
    valid[0, 0] = False
    frame[:, 0, 0] = 1e6
    builder = BankBuilder(BankOptions(position_weight=0.15))
    builder.add(frame, image_hash="", valid=valid)
    spread = np.sqrt(frame[:, valid].var(axis=1).sum())
    assert builder.build().position_scale == pytest.approx(0.15 * spread, rel=1e-5)


def test_without_cells_there_is_no_bank():
    with pytest.raises(DataError, match="at least one"):
        BankBuilder(BankOptions()).build()
    builder = BankBuilder(BankOptions(position_weight=0.1))
    builder.add(embeddings(1)[0], image_hash="", valid=np.zeros(GRID, bool))
    with pytest.raises(DataError, match="inspected"):
        builder.build()


def test_wrong_input_to_the_builder():
    builder = BankBuilder(BankOptions(retrieve_images=1))
    with pytest.raises(ValueError, match="stride-4"):
        builder.add(embeddings(1)[0], image_hash="")
    builder = BankBuilder(BankOptions())
    builder.add(embeddings(1)[0], image_hash="")
    with pytest.raises(ValueError, match="differs"):
        builder.add(embeddings(1, dims=5)[0], image_hash="")


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
