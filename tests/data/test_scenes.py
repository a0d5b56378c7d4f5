import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.data.procedural.defects import DEFECTS, spoil
from adclick_edge.data.procedural.scenes import MAX_REGIONS, World


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**62), height=st.integers(16, 70), width=st.integers(16, 70))
def test_any_world_gives_pictures(seed: int, height: int, width: int) -> None:
    world = World(seed)
    picture = world.picture(np.random.default_rng(0), height, width)
    assert picture.rgb.shape == (height, width, 3)
    assert picture.rgb.dtype == np.float32
    assert 0 <= picture.rgb.min() <= picture.rgb.max() <= 1
    assert picture.relief.shape == picture.regions.shape == (height, width)
    assert picture.regions.max() < len(world.materials) == len(world.families) <= MAX_REGIONS


def test_worlds_of_all_kinds_occur_and_repeat_by_seed() -> None:
    assert {World(seed).kind for seed in range(30)} == {"material", "parts", "quilt"}
    a, b = (World(4).picture(np.random.default_rng(1), 48, 48) for _ in range(2))
    assert np.array_equal(a.rgb, b.rgb)
    assert not np.array_equal(a.rgb, World(4).picture(np.random.default_rng(2), 48, 48).rgb)


def test_parts_stay_where_they_are_within_their_jitter() -> None:
    seeds = (s for s in range(200) if World(s).kind == "parts")
    overlaps = []
    for seed in list(seeds)[:12]:
        world = World(seed)
        a, b = (world.picture(np.random.default_rng(d), 96, 96).regions > 0 for d in (1, 2))
        if a.sum() > 100:
            overlaps.append((a & b).sum() / (a | b).sum())
    assert np.median(overlaps) > 0.7


@pytest.mark.parametrize("kind", DEFECTS)
def test_each_defect_changes_the_picture_inside_its_mask_most(kind: str) -> None:
    rng = np.random.default_rng(5)
    found = 0
    for seed in range(12):
        rgb = World(seed).picture(rng, 96, 96).rgb
        before = rgb.copy()
        spoiled, mask = spoil(rgb, rng, (kind,))
        assert np.array_equal(rgb, before)
        assert spoiled.dtype == np.float32
        assert spoiled.shape == rgb.shape
        change = np.abs(spoiled - rgb).max(-1)
        if not mask.any():
            assert not change.any()
            continue
        found += 1
        assert 0 <= spoiled.min() <= spoiled.max() <= 1
        assert change[~mask].max(initial=0) < 0.12  # up to three defects, each below the visible step there
        assert change[mask].mean() > 3 * change[~mask].mean()
    assert found >= 6


def test_defects_are_repeatable_and_of_limited_size() -> None:
    rgb = World(3).picture(np.random.default_rng(0), 96, 96).rgb
    a, b = (spoil(rgb, np.random.default_rng(11)) for _ in range(2))
    assert np.array_equal(a[0], b[0])
    assert np.array_equal(a[1], b[1])
    assert all(spoil(rgb, np.random.default_rng(s))[1].mean() <= 0.75 for s in range(20))
