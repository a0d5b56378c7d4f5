import tracemalloc

import numpy as np
import pytest
from bank_samples import CELLS, GRID, bank_of, embeddings

from adclick_edge.errors import DataError
from adclick_edge.features.bank import BankOptions
from adclick_edge.features.bank_builder import BankBuilder


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
