"""Splits by content: a partition of about the right sizes that near-copies never straddle."""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.data.dataset import open_product
from adclick_edge.data.images import read_image
from adclick_edge.data.near_copies import Fingerprint, fingerprint, near_copy_groups
from adclick_edge.data.sample import Sample
from adclick_edge.data.splits import split_by_content
from adclick_edge.errors import ImageError, UsageError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def part(seed: int) -> np.ndarray:
    """A picture of one more part of an aligned product: the same ring, its own surface."""
    rng = np.random.default_rng(seed)
    grain = cv2.GaussianBlur(rng.normal(0, 30, (120, 120, 3)).astype(np.float32), (0, 0), 1.5)
    ring = np.full((120, 120, 3), 90, np.float32)
    cv2.circle(ring, (60, 60), 45, (200, 190, 180), 12)
    return np.clip(ring + grain, 0, 255).astype(np.uint8)


def as_jpeg(image: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 80])[1], cv2.IMREAD_COLOR)


def with_noise(image: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).integers(-1, 2, image.shape)
    return np.clip(image.astype(int) + noise, 0, 255).astype(np.uint8)


def brighter(image: np.ndarray) -> np.ndarray:
    return np.clip(image * 1.03 + 2, 0, 255).astype(np.uint8)


COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "same": np.copy,
    "jpeg": as_jpeg,
    "noise": with_noise,
    "brighter": brighter,
}


@pytest.fixture(scope="module", autouse=True)
def read_once() -> Iterator[None]:
    """Each file is read once for all splits of this module."""
    patch = pytest.MonkeyPatch()
    patch.setattr("adclick_edge.data.splits.read_image", functools.cache(read_image))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """40 parts, of which the first eight have two to three near-copies each."""
    folder = tmp_path_factory.mktemp("parts")
    samples = []
    for i in range(40):
        copies = {"first": part(i)}
        if i < 8:
            copies |= {name: change(part(i)) for j, (name, change) in enumerate(COPIES.items()) if (i + j) % 3}
        for name, image in copies.items():
            path = folder / f"{i:02}_{name}.png"
            cv2.imwrite(str(path), image)
            samples.append(Sample(path, "test", "good"))
    return samples


def part_numbers(samples: tuple[Sample, ...]) -> set[str]:
    return {sample.path.name.split("_")[0] for sample in samples}


@given(seed=st.integers(-(2**63), 2**63), train=st.floats(0.1, 0.9))
@settings(deadline=None, max_examples=6)
def test_a_split_is_a_partition_that_no_copy_straddles(parts: list[Sample], seed: int, train: float) -> None:
    split = split_by_content(parts, {"train": train, "test": 1 - train}, seed=seed)
    assert list(split) == ["train", "test"]
    assert sorted(map(parts.index, split["train"] + split["test"])) == list(range(len(parts)))
    assert not part_numbers(split["train"]) & part_numbers(split["test"])
    assert abs(len(split["train"]) - train * len(parts)) <= 2.5  # half of the largest group, and rounding


def test_three_parts_come_near_their_fractions(parts: list[Sample]) -> None:
    split = split_by_content(parts, {"a": 0.5, "b": 0.3, "c": 0.2})
    for name, fraction in (("a", 0.5), ("b", 0.3), ("c", 0.2)):
        assert abs(len(split[name]) - fraction * len(parts)) <= 4


def test_a_split_hangs_on_content_alone(parts: list[Sample], tmp_path: Path) -> None:
    renamed = {}
    for i, sample in enumerate(reversed(parts)):
        path = tmp_path / f"x{i * 7919 % 1000:03}.png"
        os.symlink(sample.path, path)
        renamed[path] = sample
    fractions = {"train": 0.6, "test": 0.4}
    here = split_by_content(parts, fractions, seed=1)
    there = split_by_content([Sample(p, "test", "good") for p in renamed], fractions, seed=1)
    assert {renamed[s.path].path for s in there["train"]} == {s.path for s in here["train"]}
    assert [s for s in parts if s in here["train"]] == list(here["train"])
    assert split_by_content(parts, fractions, seed=2) != here


def test_added_pictures_move_few_others(parts: list[Sample]) -> None:
    fractions = {"train": 0.5, "test": 0.5}
    fewer = [s for s in parts if not s.path.name.startswith(("38", "39"))]
    before, after = split_by_content(fewer, fractions), split_by_content(parts, fractions)
    moved = sum((s in before["train"]) != (s in after["train"]) for s in fewer)
    assert moved <= 5


@pytest.mark.parametrize("name", COPIES)
def test_near_copies_are_found_among_parts_that_look_alike(name: str) -> None:
    prints = [fingerprint(part(i)) for i in range(12)] + [fingerprint(COPIES[name](part(i))) for i in range(12)]
    assert near_copy_groups(prints) == [[i, i + 12] for i in range(12)]


def test_chains_of_near_copies_are_one_group() -> None:
    details = np.random.default_rng(0).standard_normal((2, 4096)).astype(np.float32)
    steps = [np.cos(a) * details[0] + np.sin(a) * details[1] for a in (0.0, 0.2, 0.4, 0.6, 1.5)]
    prints = [Fingerprint(bytes([i]), (s / s.std()).astype(np.float32), 5.0) for i, s in enumerate(steps)]
    assert near_copy_groups([prints[0], prints[2]]) == [[0], [1]]
    assert near_copy_groups(prints) == [[0, 1, 2, 3], [4]]


def test_a_difference_in_one_place_is_enough() -> None:
    image = part(0)
    marked = image.copy()
    marked[20:24, 30:34] += 60
    assert near_copy_groups([fingerprint(image), fingerprint(marked)]) == [[0], [1]]


def test_flat_pictures_are_copies_only_if_equal() -> None:
    prints = [fingerprint(np.full((20, 20, 3), level, np.uint8)) for level in (10, 20, 10)]
    assert near_copy_groups(prints) == [[0, 2], [1]]
    assert near_copy_groups([]) == []


def test_nothing_to_split_gives_empty_parts() -> None:
    assert split_by_content([], {"train": 0.5, "test": 0.5}) == {"train": (), "test": ()}


@pytest.mark.parametrize(
    "fractions", [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 0.0, "b": 1.0}, {"a": float("nan")}]
)
def test_fractions_that_do_not_fit_are_a_usage_error(fractions: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="add up to 1"):
        split_by_content([], fractions)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(ImageError, match=r"a\.png: the file is empty"):
        split_by_content([Sample(tmp_path / "a.png", "test", "good")], {"train": 1.0})


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder shared/data beside the repository is not there")
@pytest.mark.parametrize(("name", "pairs"), [("bottle", 1), ("capsule", 0), ("cookie", 1), ("metal_nut", 0)])
def test_real_parts_that_look_alike_are_not_taken_for_copies(name: str, pairs: int) -> None:
    prints = [fingerprint(read_image(s.path)) for s in open_product(SHARED, name).normals()]
    sizes = [len(group) for group in near_copy_groups(prints)]
    assert sizes.count(2) == pairs
    assert sizes.count(1) == len(prints) - 2 * pairs
