import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.errors import UsageError
from adclick_edge.runtime.tiles import MapBlender, Tile, blend, cut_tile, plan_tiles


@st.composite
def plans(draw, min_overlap=0):
    scale = draw(st.sampled_from([1, 2, 4]))
    tile = tuple(scale * draw(st.integers(3, 12)) for _ in "hw")
    overlap = draw(st.integers(min_overlap, min(tile) - scale))
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    return height, width, tile, overlap, scale, plan_tiles(height, width, tile, overlap, scale=scale)


def grid(height, width, scale):
    return -(-height // scale), -(-width // scale)


def tile_maps(full, tiles, scale):
    """What a network that computes ``full`` everywhere, also beyond the border, gives for each tile."""
    return [
        full[t.top // scale : (t.top + t.height) // scale, t.left // scale : (t.left + t.width) // scale] for t in tiles
    ]


@given(plans())
@settings(deadline=None, max_examples=120)
def test_plans_cover_the_frame_and_stay_inside(plan):
    height, width, (tile_height, tile_width), overlap, scale, tiles = plan
    covered = np.zeros((height, width), bool)
    for t in tiles:
        assert (t.height, t.width) == (tile_height, tile_width)
        assert t.top % scale == t.left % scale == 0
        assert t.top + t.height < max(height, tile_height) + scale
        assert t.left + t.width < max(width, tile_width) + scale
        covered[t.top : t.top + t.height, t.left : t.left + t.width] = True
    assert covered.all()
    for size, ends in ((tile_height, sorted({t.top for t in tiles})), (tile_width, sorted({t.left for t in tiles}))):
        steps = np.diff(ends)
        assert (steps > 0).all()
        assert (size - steps >= overlap).all()


def test_plan_by_hand():
    assert [t.left for t in plan_tiles(64, 200, 64, 16)] == [0, 48, 96, 136]
    assert plan_tiles(64, 64, 64, 16) == [Tile(0, 0, 64, 64)]
    assert plan_tiles(30, 50, 64, 16) == [Tile(0, 0, 64, 64)]
    assert [t.left for t in plan_tiles(64, 201, 64, 16, scale=4)] == [0, 48, 96, 140]
    assert [t.left for t in plan_tiles(64, 201, 64, 15, scale=4)] == [0, 48, 96, 140]


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap", "scale", "says"),
    [
        (0, 5, 4, 0, 1, "at least 1"),
        (5, 5, (4, 0), 0, 1, "at least 1"),
        (5, 5, 4, -1, 1, "at least 0"),
        (5, 5, 4, 0, 0, "at least 1"),
        (5, 5, 4, 4, 1, "no step"),
        (5, 5, 8, 5, 4, "no step"),
        (5, 5, 6, 0, 4, "no multiple"),
    ],
)
def test_plans_that_cannot_be(height, width, tile, overlap, scale, says):
    with pytest.raises(UsageError, match=says):
        plan_tiles(height, width, tile, overlap, scale=scale)


@given(plans(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=80)
def test_cut_tiles_are_the_frame_mirrored_beyond_its_border(plan, seed):
    height, width, (tile_height, tile_width), _, _, tiles = plan
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    padded = np.pad(frame, ((0, tile_height), (0, tile_width), (0, 0)), mode="reflect")
    for t in tiles:
        cut = cut_tile(frame, t)
        assert cut.dtype == np.uint8
        np.testing.assert_array_equal(cut, padded[t.top : t.top + t.height, t.left : t.left + t.width])


def test_a_tile_mostly_outside_is_mirrored_from_beyond_its_own_part():
    frame = np.arange(10 * 9 * 3, dtype=np.uint8).reshape(10, 9, 3)
    padded = np.pad(frame, ((0, 8), (0, 8), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(cut_tile(frame, Tile(8, 5, 8, 8)), padded[8:16, 5:13])


def test_a_tile_inside_is_not_copied():
    frame = np.zeros((10, 10, 3), np.uint8)
    assert np.shares_memory(cut_tile(frame, Tile(2, 3, 4, 5)), frame)


@given(plans(), st.floats(-1e3, 1e3, width=32))
@settings(deadline=None, max_examples=80)
def test_constants_stay_constant(plan, value):
    height, width, tile, _, scale, tiles = plan
    maps = [np.full((tile[0] // scale, tile[1] // scale), value, np.float32)] * len(tiles)
    found = blend(tiles, maps, height, width, scale=scale)
    assert found.dtype == np.float32
    assert found.shape == grid(height, width, scale)
    np.testing.assert_allclose(found, value, rtol=1e-6, atol=1e-6)


@given(plans(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=80)
def test_ramps_and_any_map_all_tiles_agree_on_are_reproduced(plan, seed):
    height, width, tile, _, scale, tiles = plan
    rows, columns = grid(height + tile[0], width + tile[1], scale)
    ramp = np.add.outer(0.3 * np.arange(rows), 0.7 * np.arange(columns)).astype(np.float32)
    noise = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    h4, w4 = grid(height, width, scale)
    for full in (ramp, noise):
        found = blend(tiles, tile_maps(full, tiles, scale), height, width, scale=scale)
        np.testing.assert_allclose(found, full[:h4, :w4], rtol=1e-5, atol=1e-5)


@given(plans(), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_every_cell_has_weight_and_lies_between_its_tiles(plan, seed):
    height, width, tile, _, scale, tiles = plan
    rng = np.random.default_rng(seed)
    maps = [rng.normal(size=(tile[0] // scale, tile[1] // scale)).astype(np.float32) for _ in tiles]
    blender = MapBlender(height, width, scale=scale)
    low, high = np.full(grid(height, width, scale), np.inf), np.full(grid(height, width, scale), -np.inf)
    for i in rng.permutation(len(tiles)):
        t = tiles[i]
        blender.add(t, maps[i])
        cells = np.s_[t.top // scale :, t.left // scale :]
        part = low[cells][: maps[i].shape[0], : maps[i].shape[1]]
        seen = maps[i][: part.shape[0], : part.shape[1]]
        np.minimum(part, seen, out=part)
        other = high[cells][: maps[i].shape[0], : maps[i].shape[1]]
        np.maximum(other, seen, out=other)
    assert (blender._weight > 0).all()
    found = blender.result()
    assert (found >= low - 1e-5).all()
    assert (found <= high + 1e-5).all()
    np.testing.assert_allclose(found, blend(tiles, maps, height, width, scale=scale), atol=1e-5)


@pytest.mark.parametrize(("length", "tile", "overlap"), [(200, 64, 16), (161, 64, 32), (512, 128, 32), (130, 64, 48)])
def test_no_seam(length, tile, overlap):
    """Tiles that disagree as much as they can, 0 beside 1: the blend must spread the step over the overlap.

    The steepest slope of the blend of two windows, sin^2(a) / (sin^2(a) + sin^2(b)), is 2 / overlap in the limit of a
    small overlap; a hard cut has slope 1.
    """
    tiles = plan_tiles(length, length, tile, overlap)
    maps = [np.full((tile, tile), (t.top != 0) ^ (i % 2), np.float32) for i, t in enumerate(tiles)]
    found = blend(tiles, maps, length, length)
    assert found.max() - found.min() > 0.99
    for axis in (0, 1):
        assert np.abs(np.diff(found, axis=axis)).max() < 2.2 / overlap


def test_a_defect_in_one_tile_is_not_lost():
    tiles = plan_tiles(100, 100, 40, 8)
    full = np.zeros((140, 140), np.float32)
    full[37, 61] = 5.0
    found = blend(tiles, tile_maps(full, tiles, 1), 100, 100)
    assert found[37, 61] == pytest.approx(5.0)
    assert np.count_nonzero(found) == 1


def test_wrong_maps_and_missing_tiles_are_named():
    tiles = plan_tiles(64, 100, 64, 16, scale=4)
    blender = MapBlender(64, 100, scale=4)
    with pytest.raises(UsageError, match=r"must be \(16, 16\)"):
        blender.add(tiles[0], np.zeros((64, 64), np.float32))
    with pytest.raises(UsageError, match="grid of scale 4"):
        blender.add(Tile(2, 0, 64, 64), np.zeros((16, 16), np.float32))
    blender.add(tiles[0], np.zeros((16, 16), np.float32))
    with pytest.raises(UsageError, match="row 0, column 64"):
        blender.result()
    with pytest.raises(UsageError, match="at least 1"):
        MapBlender(0, 3)
    with pytest.raises(ValueError, match="shorter"):
        blend(tiles, [np.zeros((16, 16), np.float32)], 64, 100, scale=4)
