from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.errors import TrainingError
from adclick_edge.training.episodes import Batch, EpisodeMix, Episodes, ProductPictures

RNG = np.random.default_rng(0)
PLAIN = EpisodeMix(gain=0.0)


def picture(level: int) -> np.ndarray:
    """Noise about a level that tells which picture it is, whatever small defect is put on it."""
    return (level + RNG.integers(0, 8, (48, 40, 3))).astype(np.uint8)


def defect(level: int) -> tuple[np.ndarray, np.ndarray]:
    frame = picture(level)
    mask = np.zeros(frame.shape[:2], bool)
    mask[10:20, 12:20] = True
    frame[mask] = 250
    return frame, mask


NORMALS = [picture(level) for level in (20, 60, 100)]
DEFECTS = [defect(140), defect(180)]
WITH = ProductPictures("with", NORMALS, DEFECTS)
WITHOUT = ProductPictures("without", NORMALS[:2], [])


def joined(batches: list[Batch]) -> Batch:
    return Batch(
        np.concatenate([b.frames for b in batches]),
        np.concatenate([b.masks for b in batches]),
        tuple(p for b in batches for p in b.products),
        tuple(i for b in batches for i in b.exclude_images),
    )


def assert_same(a: Batch, b: Batch) -> None:
    np.testing.assert_array_equal(a.frames, b.frames)
    np.testing.assert_array_equal(a.masks, b.masks)
    assert (a.products, a.exclude_images) == (b.products, b.exclude_images)


def drawn(episodes: Episodes, count: int) -> Batch:
    return joined([episodes.batch(step, range(8)) for step in range(count // 8)])


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 1000), step=st.integers(0, 10_000), world=st.sampled_from([1, 2, 3, 6]))
def test_a_batch_depends_on_seed_step_and_place_alone(seed: int, step: int, world: int) -> None:
    whole = Episodes([WITH, WITHOUT], EpisodeMix(flip=True), seed=seed).batch(step, range(6))
    other = Episodes([WITH, WITHOUT], EpisodeMix(flip=True), seed=seed)
    other.batch(step + 1, range(3))  # what was drawn before does not matter
    share = 6 // world
    assert_same(whole, joined([other.batch(step, range(r * share, (r + 1) * share)) for r in range(world)]))


def test_steps_places_and_seeds_differ() -> None:
    episodes = Episodes([WITH], EpisodeMix(), seed=0)
    frames = [*episodes.batch(0, range(4)).frames, *episodes.batch(1, range(4)).frames]
    frames += [*Episodes([WITH], EpisodeMix(), seed=1).batch(0, range(4)).frames]
    assert len({frame.tobytes() for frame in frames}) == len(frames)


def test_shapes_and_types() -> None:
    batch = Episodes([WITH, WITHOUT], EpisodeMix(flip=True), seed=0).batch(3, range(5))
    assert batch.frames.shape == (5, 48, 40, 3)
    assert batch.frames.dtype == np.uint8
    assert batch.masks.shape == (5, 48, 40)
    assert batch.masks.dtype == np.bool_


def test_exclude_index_is_the_picture_the_frame_was_made_from() -> None:
    batch = drawn(Episodes([WITH], PLAIN, seed=2), 160)
    for frame, mask, exclude in zip(batch.frames, batch.masks, batch.exclude_images, strict=True):
        if exclude < 0:
            assert any(np.array_equal(frame, donor) and np.array_equal(mask, its) for donor, its in DEFECTS)
        else:
            unchanged = ~mask
            difference = np.abs(frame[unchanged].astype(int) - NORMALS[exclude][unchanged])
            assert np.median(difference) == 0
    assert {0, 1, 2, -1} == set(batch.exclude_images)


def kinds(batch: Batch) -> Counter[str]:
    found: Counter[str] = Counter()
    for mask, exclude in zip(batch.masks, batch.exclude_images, strict=True):
        found["real" if exclude < 0 else "made" if mask.any() else "clean"] += 1
    return found


def test_shares_follow_the_mix() -> None:
    found = kinds(drawn(Episodes([WITH], EpisodeMix(), seed=0), 400))
    assert 55 < found["clean"] < 110  # 0.2 of 400, within 3.5 standard deviations; a paste may fall outside
    assert 70 < found["real"] < 135  # 0.25


def test_without_labels_their_shares_fall_to_synthetic_defects() -> None:
    found = kinds(drawn(Episodes([WITHOUT], EpisodeMix(), seed=0), 400))
    assert found["real"] == 0
    assert 52 < found["clean"] < 108
    assert found["made"] == 400 - found["clean"]


def test_one_kind_only() -> None:
    clean = Episodes([WITH], EpisodeMix(clean=1, synthetic=0, pasted=0, real=0, gain=0), seed=0).batch(0, range(8))
    assert not clean.masks.any()
    for frame, image in zip(clean.frames, clean.exclude_images, strict=True):
        np.testing.assert_array_equal(frame, NORMALS[image])
    made = Episodes([WITH], EpisodeMix(clean=0, synthetic=1, pasted=0, real=0), seed=0).batch(0, range(8))
    assert made.masks.any(axis=(1, 2)).all()


def test_flips_move_frame_and_mask_together() -> None:
    mix = EpisodeMix(clean=0, synthetic=0, pasted=0, real=1, flip=True, gain=0)
    batch = Episodes([ProductPictures("one", NORMALS, DEFECTS[:1])], mix, seed=0).batch(0, range(16))
    donor, mask = DEFECTS[0]
    turned = [(donor[::a, ::b].tobytes(), mask[::a, ::b].tobytes()) for a in (1, -1) for b in (1, -1)]
    found = {(f.tobytes(), m.tobytes()) for f, m in zip(batch.frames, batch.masks, strict=True)}
    assert found <= set(turned)
    assert len(found) == 4


def test_gain_changes_brightness_within_bounds_and_does_not_wrap() -> None:
    white = ProductPictures("white", [np.full((16, 16, 3), 250, np.uint8)], [])
    batch = Episodes([white], EpisodeMix(clean=1, synthetic=0, pasted=0, real=0, gain=0.2), seed=0).batch(0, range(32))
    levels = batch.frames.reshape(32, -1)
    assert (levels == levels[:, :1]).all()
    assert levels.min() >= 200
    assert levels.max() == 255
    assert len(set(levels[:, 0].tolist())) > 8


def test_pictures_are_left_as_they_were() -> None:
    before = [n.copy() for n in NORMALS]
    drawn(Episodes([WITH], EpisodeMix(flip=True), seed=3), 40)
    for now, then in zip(NORMALS, before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_no_normal_picture_is_refused_by_name() -> None:
    with pytest.raises(TrainingError, match="empty one"):
        Episodes([WITH, ProductPictures("empty one", [], DEFECTS)], EpisodeMix(), seed=0)
    with pytest.raises(TrainingError, match="any product"):
        Episodes([], EpisodeMix(), seed=0)
