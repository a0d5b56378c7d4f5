import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.features.bank import BankOptions
from adclick_edge.features.bank_builder import BankBuilder
from adclick_edge.features.retrieval import ROW_STEP, nearest_images, retrieve_rows, window_means

IMAGES, CHANNELS, SIDE = 12, 24, 32


def random_maps(count, seed=0, shape=(SIDE, SIDE)):
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, CHANNELS, 4, 4))
    smooth = coarse.repeat(-(-shape[0] // 4), axis=2).repeat(-(-shape[1] // 4), axis=3)[:, :, : shape[0], : shape[1]]
    return (smooth + 0.3 * rng.normal(size=(count, CHANNELS, *shape))).astype(np.float32)


def build(maps, embeddings=None, rows=10_000):
    embeddings = np.random.default_rng(1).normal(size=(len(maps), 6, 16, 16)) if embeddings is None else embeddings
    builder = BankBuilder(BankOptions(rows=rows, retrieve_images=2))
    for number, feature_map in enumerate(maps):
        builder.add(embeddings[number].astype(np.float32), image_hash=str(number), retrieval_map=feature_map)
    return builder.build()


MAPS = random_maps(IMAGES)
BANK = build(MAPS)


def test_windows_are_means_of_a_four_by_four_grid():
    feature_map = np.random.default_rng(0).normal(size=(5, 16, 24)).astype(np.float32)
    blocks = feature_map.reshape(5, 4, 4, 4, 6).mean(axis=(2, 4))
    np.testing.assert_allclose(window_means(feature_map), blocks.reshape(5, 16).T, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(33, 50), (5, 7), (4, 4), (3, 2), (1, 1)])
def test_windows_of_odd_and_tiny_maps(shape):
    constant = np.full((2, *shape), 7.0, np.float32)
    np.testing.assert_allclose(window_means(constant), np.full((16, 2), 7.0))


@pytest.mark.parametrize("shape", [(32, 32), (33, 50), (5, 7)])
def test_a_copy_is_found(shape):
    maps = random_maps(IMAGES, shape=shape)
    bank = build(maps)
    assert [nearest_images(bank, m, 1)[0] for m in maps] == list(range(IMAGES))
    noisy = maps + 0.3 * np.random.default_rng(5).normal(size=maps.shape).astype(np.float32)
    assert [nearest_images(bank, m, 1)[0] for m in noisy] == list(range(IMAGES))


@given(
    st.integers(0, IMAGES - 1),
    st.sets(st.integers(0, 15), min_size=1, max_size=3),
    st.sampled_from([-100.0, 3.0, 1000.0]),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_up_to_three_spoiled_windows_do_not_change_the_image(image, windows, size, seed):
    spoiled = MAPS[image].copy()
    direction = np.random.default_rng(seed).normal(size=(CHANNELS, 1, 1)).astype(np.float32)
    for window in windows:
        y, x = 8 * (window // 4), 8 * (window % 4)
        spoiled[:, y : y + 8, x : x + 8] += np.float32(size) * direction
    assert nearest_images(BANK, spoiled, 1)[0] == image


def test_distance_is_the_mean_of_the_thirteen_best_windows():
    query = random_maps(1, seed=9)[0]
    windows = (window_means(query).astype(np.float64) - BANK.descriptor_centre) @ BANK.descriptor_projection
    distance = ((BANK.image_descriptors - windows) ** 2).sum(axis=2)
    mean = np.sort(distance, axis=1)[:, :13].mean(axis=1)
    np.testing.assert_array_equal(nearest_images(BANK, query, IMAGES), np.argsort(mean))
    np.testing.assert_array_equal(nearest_images(BANK, query, 3), np.argsort(mean)[:3])


def test_descriptors_keep_sixteen_components():
    assert BANK.image_descriptors.shape == (IMAGES, 16, 16)
    np.testing.assert_allclose(BANK.descriptor_projection.T @ BANK.descriptor_projection, np.eye(16), atol=1e-5)
    windows = np.stack([window_means(m) for m in MAPS])
    np.testing.assert_allclose(
        BANK.image_descriptors, (windows - BANK.descriptor_centre) @ BANK.descriptor_projection, atol=1e-5
    )


@pytest.mark.parametrize("rows", [10_000, 700, 100])
@pytest.mark.parametrize("count", [1, 3, IMAGES, IMAGES + 5])
def test_rows_are_those_of_the_nearest_images_padded(rows, count):
    bank = build(MAPS, rows=rows)
    query = random_maps(1, seed=9)[0]
    chosen = nearest_images(bank, query, count)
    found = retrieve_rows(bank, query, count)
    wanted = np.concatenate([np.flatnonzero(bank.row_image == image) for image in chosen])
    assert found.dtype == np.int32
    assert len(found) % ROW_STEP == 0
    assert len(found) - len(wanted) < ROW_STEP
    np.testing.assert_array_equal(found[: len(wanted)], wanted)
    assert (found[len(wanted) :] == found[0]).all()


def test_images_without_rows_are_passed_over():
    embeddings = np.random.default_rng(1).normal(size=(4, 6, 16, 16))
    embeddings[2] = embeddings[1]  # the coreset keeps nothing of a copy
    bank = build(MAPS[:4], embeddings)
    assert set(bank.row_image) == {0, 1, 3}
    ranked = [i for i in nearest_images(bank, MAPS[2], 4) if i != 2]
    assert nearest_images(bank, MAPS[2], 1)[0] == 2
    assert set(bank.row_image[retrieve_rows(bank, MAPS[2], 1)]) == set(ranked[:1])
    assert set(bank.row_image[retrieve_rows(bank, MAPS[2], 2)]) == set(ranked[:2])


def test_retrieval_survives_storage():
    again = type(BANK).from_bytes(BANK.to_bytes())
    query = random_maps(1, seed=9)[0]
    np.testing.assert_array_equal(retrieve_rows(again, query, 3), retrieve_rows(BANK, query, 3))


def test_a_spoiled_map_in_the_bank_hides_only_that_image():
    descriptors = BANK.image_descriptors.copy()
    descriptors[4] += 1000
    bank = dataclasses.replace(BANK, image_descriptors=descriptors)
    assert nearest_images(bank, MAPS[4], IMAGES)[-1] == 4
    assert nearest_images(bank, MAPS[5], 1)[0] == 5
