import warnings

import numpy as np
import pytest
import torch

from adclick_edge.features.bank import Bank, BankOptions
from adclick_edge.features.bank_builder import BankBuilder
from adclick_edge.features.residual_torch import TorchBank, nearest_residual

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def frames_of(count, grid, dims=11, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dims, *grid)).astype(np.float32)


def bank_of(frames, **options):
    builder = BankBuilder(BankOptions(**{"rows": 70, **options}))
    for number, frame in enumerate(frames):
        builder.add(frame, image_hash=str(number))
    return builder.build()


def assert_same(bank, frames, tile_bytes=1 << 20, exclude=None):
    index, distance, residual = nearest_residual(
        torch.from_numpy(frames), TorchBank.of(bank, CPU), exclude_images=exclude, tile_bytes=tile_bytes
    )
    reference = bank.residual(frames, exclude_images=None if exclude is None else np.array(exclude))
    np.testing.assert_array_equal(index.numpy(), reference.index)
    np.testing.assert_array_equal(residual.numpy(), reference.residual)
    np.testing.assert_allclose(distance.numpy(), reference.distance, rtol=1e-6)
    assert (index.dtype, distance.dtype, residual.dtype) == (torch.int64, torch.float32, torch.float32)


@pytest.mark.parametrize("options", [{}, {"position_weight": 0.5, "position_dims": 8}, {"rows": 1}, {"variance": 1.0}])
@pytest.mark.parametrize("grid", [(5, 7), (1, 1), (8, 8), (13, 2)])
@pytest.mark.parametrize("tile_bytes", [1, 4 * 70 * 3, 16 << 20])
def test_equals_the_numpy_definition(options, grid, tile_bytes):
    bank = bank_of(frames_of(6, grid), **options)
    assert_same(bank, frames_of(3, grid, seed=1), tile_bytes)


@pytest.mark.parametrize("tile_bytes", [1, 4 * 70 * 3, 16 << 20])
def test_images_left_out_as_in_the_numpy_definition(tile_bytes):
    training = frames_of(6, (5, 7))
    bank = bank_of(training, rows=6 * 35)
    assert_same(bank, training, tile_bytes, exclude=[0, -1, 2, 5, -1, 3])
    _, distance, _ = nearest_residual(
        torch.from_numpy(training), TorchBank.of(bank, CPU), exclude_images=[0, -1, 2, 3, 4, 5], tile_bytes=tile_bytes
    )
    assert (distance[[0, 2, 3, 4, 5]] > 0).all()
    assert float(distance[1].max()) == 0.0


def test_an_image_without_rows_leaves_nothing_out():
    training = frames_of(3, (5, 7))
    training[1] = training[0]  # a copy: the coreset keeps none of its rows
    bank = bank_of(training, rows=200)
    assert 1 not in bank.row_image
    assert_same(bank, training, exclude=[1, 1, 0])


@pytest.mark.parametrize("copies", [1, 2])
def test_where_all_rows_are_its_own_an_image_matches_them(copies):
    training = np.repeat(frames_of(1, (5, 7)), copies, axis=0)
    bank = bank_of(training)
    index, distance, _ = nearest_residual(torch.from_numpy(training[:1]), TorchBank.of(bank, CPU), exclude_images=[0])
    np.testing.assert_array_equal(index.numpy(), bank.residual(training[:1]).index)
    assert float(distance.max()) == 0.0


def test_a_stored_bank_is_taken_without_a_warning():
    bank = Bank.from_bytes(bank_of(frames_of(4, (5, 7))).to_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TorchBank.of(bank, CPU)
    assert_same(bank, frames_of(2, (5, 7), seed=3))


def test_nothing_is_differentiated():
    embedding = torch.from_numpy(frames_of(1, (5, 7))).requires_grad_()
    bank = TorchBank.of(bank_of(frames_of(2, (5, 7), seed=1)), CPU)
    assert not any(t.requires_grad for t in nearest_residual(embedding, bank))
