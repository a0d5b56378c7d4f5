import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from adclick_edge.features.coreset import StreamingCoreset, greedy_k_centre

seeds = st.integers(0, 2**32 - 1)


def squared_distances(a, b):
    return cdist(a.astype(np.float64), b.astype(np.float64), "sqeuclidean")


def cover(points, chosen):
    """Squared cover radius in float64."""
    return squared_distances(points, chosen).min(axis=1).max()


def clustered(seed, images, rows, dims=16, clusters=40):
    rng = np.random.default_rng(seed)
    centres = 3 * rng.normal(size=(clusters, dims))
    return [
        (centres[rng.integers(0, clusters, rows)] + 0.5 * rng.normal(size=(rows, dims))).astype(np.float32)
        for _ in range(images)
    ]


@given(st.integers(1, 60), st.integers(1, 70), st.integers(1, 12), seeds, st.sampled_from([0.0, 1000.0]))
@settings(max_examples=60, deadline=None)
def test_each_choice_is_the_farthest_point(n, k, dims, seed, offset):
    rng = np.random.default_rng(seed)
    points = (rng.normal(size=(n, dims)) + offset).astype(np.float32)
    first = int(rng.integers(n))
    chosen, radius = greedy_k_centre(points, k, first=first)
    distances = squared_distances(points, points)
    rounding = 4e-6 * distances.max()
    assert chosen[0] == first
    assert len(set(chosen.tolist())) == len(chosen)
    for i in range(1, len(chosen)):
        nearest = distances[:, chosen[:i]].min(axis=1)
        assert nearest[chosen[i]] >= nearest.max() - rounding
    left = distances[:, chosen].min(axis=1).max()
    assert radius == pytest.approx(left, abs=rounding)
    assert len(chosen) == min(k, n) or left <= rounding


def test_choice_equals_the_plain_quadratic_one():
    points = np.random.default_rng(3).normal(size=(200, 10)).astype(np.float32)
    distances = squared_distances(points, points)
    plain = [0]
    while len(plain) < 50:
        plain.append(int(distances[:, plain].min(axis=1).argmax()))
    chosen, radius = greedy_k_centre(points, 50)
    assert chosen.tolist() == plain
    assert radius == pytest.approx(distances[:, plain].min(axis=1).max(), rel=1e-5)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_copies_are_not_chosen(offset):
    distinct = np.random.default_rng(0).normal(size=(20, 128)).astype(np.float32) + np.float32(offset)
    points = np.concatenate([distinct] * 5)
    chosen, radius = greedy_k_centre(points, 100)
    assert sorted(i % 20 for i in chosen) == list(range(20))
    assert radius == 0.0


def test_all_points_are_chosen_when_asked_for_more():
    points = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    for k in (30, 31, 1000):
        chosen, radius = greedy_k_centre(points, k)
        assert sorted(chosen) == list(range(30))
        assert radius == 0.0


class Counting(StreamingCoreset):
    """Knows how many rows it held at most, between calls and while it chose."""

    most_held = most_chosen_from = 0

    def _held(self):
        return (len(self._kept[0]) if self._kept else 0) + sum(len(w[0]) for w in self._waiting)

    def add(self, coordinates, *payload):
        super().add(coordinates, *payload)
        self.most_held = max(self.most_held, self._held())

    def _choose(self):
        self.most_chosen_from = max(self.most_chosen_from, self._held())
        super()._choose()


@pytest.mark.parametrize(
    ("rows", "buffer_rows", "image_rows"), [(50, 200, 64), (50, 64, 200), (1, 1, 7), (300, 100, 90)]
)
def test_rows_held_stay_within_the_stated_number(rows, buffer_rows, image_rows):
    coreset = Counting(rows, buffer_rows=buffer_rows)
    for image in clustered(0, 30, image_rows, dims=6):
        coreset.add(image)
    (kept,) = coreset.result()
    assert len(kept) == min(rows, 30 * image_rows)
    assert coreset.seen == 30 * image_rows
    assert coreset.most_held <= rows + buffer_rows
    assert coreset.most_chosen_from <= rows + buffer_rows + image_rows


def test_memory_does_not_grow_with_the_number_of_images():
    def peak(images):
        coreset = StreamingCoreset(50, buffer_rows=500)
        rng = np.random.default_rng(0)
        tracemalloc.start()
        for _ in range(images):
            coreset.add(rng.normal(size=(200, 16)).astype(np.float32))
        coreset.result()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(2)
    assert peak(200) < 1.2 * peak(20)


@pytest.mark.parametrize(("clusters", "spread", "most"), [(40, 0.5, 1.4), (400, 0.2, 1.15)])
@pytest.mark.parametrize("seed", range(3))
def test_streamed_cover_radius_is_near_the_batch_one(seed, clusters, spread, most):
    """Also where new clusters turn up until the last image."""
    rng = np.random.default_rng(seed)
    centres = 3 * rng.normal(size=(clusters, 16))
    images = []
    for number in range(60):
        known = max(2, clusters * (number + 1) // 60)
        cells = centres[rng.integers(0, known, 200)] + spread * rng.normal(size=(200, 16))
        images.append(cells.astype(np.float32))
    coreset = StreamingCoreset(150, buffer_rows=1000)
    for image in images:
        coreset.add(image)
    (kept,) = coreset.result()
    points = np.concatenate(images)
    chosen, batch = greedy_k_centre(points, 150)
    random = cover(points, points[rng.choice(len(points), 150, replace=False)])
    assert cover(points, points[chosen]) == pytest.approx(batch, rel=1e-4)
    assert cover(points, kept) <= most**2 * batch  # squared radii
    assert cover(points, kept) < random


def test_payload_travels_with_its_row_and_the_choice_is_repeatable():
    images = clustered(5, 20, 100)
    points = np.concatenate(images)

    def run():
        coreset = StreamingCoreset(60, buffer_rows=300)
        for number, image in enumerate(images):
            coreset.add(image, np.arange(100 * number, 100 * (number + 1)), image[:, :2].astype(np.float16))
        return coreset.result()

    coordinates, number, half = run()
    np.testing.assert_array_equal(coordinates, points[number])
    np.testing.assert_array_equal(half, points[number, :2].astype(np.float16))
    assert len(set(number.tolist())) == 60
    for again, before in zip(run(), (coordinates, number, half), strict=True):
        np.testing.assert_array_equal(again, before)


def test_rows_handed_in_may_be_overwritten():
    coreset = StreamingCoreset(5)
    buffer = np.eye(3, dtype=np.float32)
    coreset.add(buffer)
    buffer[:] = 99
    (kept,) = coreset.result()
    assert kept.max() == 1.0


def test_rows_may_be_added_after_a_result():
    coreset = StreamingCoreset(4)
    coreset.add(np.zeros((3, 2), np.float32))
    assert len(coreset.result()[0]) == 1
    coreset.add(np.ones((3, 2), np.float32))
    assert sorted(coreset.result()[0][:, 0]) == [0.0, 1.0]


def test_wrong_use():
    with pytest.raises(ValueError, match="at least 1 row"):
        StreamingCoreset(0)
    with pytest.raises(ValueError, match="no rows"):
        StreamingCoreset(3).result()
