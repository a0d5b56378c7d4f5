import json

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from adclick_edge.errors import UsageError
from adclick_edge.runtime.regions import (
    Regions,
    check_covered,
    load_regions,
    masked_score,
    parse_regions,
    read_regions,
    regions_sha256,
    store_regions,
    valid_mask,
)

WHOLE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))
LEFT = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
RIGHT = ((0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.5, 1.0))
FRACTION = st.integers(0, 997).map(lambda i: i / 997)
POLYGON = st.lists(st.tuples(FRACTION, FRACTION), min_size=3, max_size=3).map(tuple)
SIZE = st.integers(1, 40)


class FakeBundle:
    location = "box"
    regions = None

    def set_regions(self, body):
        self.regions = msgspec.json.decode(msgspec.json.encode(body))


@given(height=SIZE, width=SIZE)
@settings(deadline=None, max_examples=40)
def test_no_regions_and_the_whole_frame_are_the_same(height, width):
    assert valid_mask(Regions(), height, width).all()
    assert valid_mask(Regions(roi=(WHOLE,)), height, width).all()
    assert not valid_mask(Regions(ignore=(WHOLE,)), height, width).any()
    assert valid_mask(Regions(), height, width).shape == (height, width)


def test_a_cell_counts_if_its_centre_does():
    half = valid_mask(Regions(roi=(LEFT,)), 2, 4)
    np.testing.assert_array_equal(half, [[True, True, False, False]] * 2)
    edge = ((0.0, 0.0), (0.37, 0.0), (0.37, 0.63), (0.0, 0.63))  # centres 0.125, 0.375, 0.625, 0.875
    np.testing.assert_array_equal(np.argwhere(valid_mask(Regions(roi=(edge,)), 4, 4)), [[0, 0], [1, 0], [2, 0]])
    speck = ((0.51, 0.51), (0.6, 0.51), (0.6, 0.6))
    assert not valid_mask(Regions(roi=(speck,)), 2, 2).any()
    assert valid_mask(Regions(roi=(speck,)), 200, 200).any()


def test_ignore_wins_and_polygons_add_up():
    both = Regions(roi=(LEFT, RIGHT), ignore=(((0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (0.0, 0.5)),))
    mask = valid_mask(both, 10, 6)
    assert not mask[:5].any()
    assert mask[5:].all()


@given(height=SIZE, width=SIZE, points=st.tuples(FRACTION, FRACTION))
@settings(deadline=None, max_examples=60)
def test_neighbours_share_no_cell_and_leave_none_out(height, width, points):
    """A frame cut in four triangles at any point: each cell is in exactly one, even with its centre on an edge."""
    count = np.zeros((height, width), int)
    for i in range(4):
        count += valid_mask(Regions(roi=((WHOLE[i], WHOLE[(i + 1) % 4], points),)), height, width)
    assert (count == 1).all()


@given(polygon=POLYGON, height=SIZE, width=SIZE)
@settings(deadline=None, max_examples=80)
def test_triangles_agree_with_another_implementation(polygon, height, width):
    outline = np.array(polygon)
    area = np.linalg.det(np.c_[outline, np.ones(3)]) / 2
    assume(abs(area) > 1e-3)
    y, x = np.mgrid[:height, :width]
    centres = np.c_[((x + 0.5) / width).ravel(), ((y + 0.5) / height).ravel()]
    closed = np.vstack([outline, outline[:1]])
    radius = 1e-9 if area > 0 else -1e-9
    grown = Outline(closed, closed=True).contains_points(centres, radius=radius)
    shrunk = Outline(closed, closed=True).contains_points(centres, radius=-radius)
    mask = valid_mask(Regions(roi=(polygon,)), height, width).ravel()
    sure = grown == shrunk  # on an edge the other implementation promises nothing
    np.testing.assert_array_equal(mask[sure], grown[sure])
    turned = valid_mask(Regions(roi=(polygon[::-1],)), height, width).ravel()
    np.testing.assert_array_equal(turned, mask)


def test_crossing_polygons_follow_the_even_odd_rule():
    bow = ((0.0, 0.0), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0))
    mask = valid_mask(Regions(roi=(bow,)), 9, 9)
    assert mask[4, 0]
    assert mask[4, 8]
    assert not mask[0, 4]
    assert not mask[8, 4]
    twice = WHOLE + WHOLE
    assert not valid_mask(Regions(roi=(twice,)), 5, 5).any()


def test_regions_keep_their_place_at_any_resolution():
    disk = tuple((0.5 + 0.3 * np.cos(a), 0.4 + 0.3 * np.sin(a)) for a in np.linspace(0, 2 * np.pi, 40)[:-1])
    regions = Regions(roi=(disk,))
    for size in (32, 100, 512):
        mask = valid_mask(regions, size, 2 * size)
        assert mask.mean() == pytest.approx(np.pi * 0.09, rel=0.03)
        rows, columns = np.nonzero(mask)
        assert np.mean(rows + 0.5) / size == pytest.approx(0.4, abs=0.01)
        assert np.mean(columns + 0.5) / (2 * size) == pytest.approx(0.5, abs=0.01)


def test_what_lies_outside_never_scores():
    found = np.zeros((4, 4), np.float32)
    found[0, 0], found[3, 3] = 9.0, 2.0
    assert masked_score(found) == 9.0
    mask = valid_mask(Regions(ignore=(LEFT,)), 4, 4)
    assert masked_score(found, mask) == 2.0
    found[0, 0] = np.nan
    assert masked_score(found, mask) == 2.0
    assert np.isnan(masked_score(found))
    for bad in (np.zeros((4, 4), bool), mask[:2]):
        with pytest.raises(UsageError):
            masked_score(found, bad)
    with pytest.raises(UsageError, match=r"expected \[h,w\]"):
        masked_score(found[0])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ([], "expected an object"),
        ({"rio": []}, "unknown key 'rio'"),
        ({"roi": 3}, "roi is 3"),
        ({"roi": None}, "roi is None"),
        ({"ignore": [[[0, 0], [1, 1]]]}, r"ignore\[0\] is \[\[0, 0\], \[1, 1\]\]; expected a list of at least 3"),
        ({"roi": [[[0, 0], [1, 1], [1]]]}, r"roi\[0\]\[2\] is \[1\]; expected \[x, y\]"),
        ({"roi": [[[0, 0], [1, 1], [1, 1.01]]]}, r"roi\[0\]\[2\]: y is 1.01"),
        ({"roi": [[[0, 0], [1, 1], [-0.1, 1]]]}, r"roi\[0\]\[2\]: x is -0.1"),
        ({"roi": [[[0, 0], [1, "a"], [1, 1]]]}, r"roi\[0\]\[1\]: y is 'a'"),
        ({"roi": [[[0, 0], [1, True], [1, 1]]]}, "y is True"),
        ({"roi": [[[0, 0], [float("nan"), 1], [1, 1]]]}, "x is nan"),
        ({"roi": [[[0, 0], [float("inf"), 1], [1, 1]]]}, "x is inf"),
        ({"roi": [[[0, 0]] * 10_001]}, "10001 points"),
    ],
)
def test_wrong_regions_name_file_key_and_value(body, says):
    with pytest.raises(UsageError, match=rf"box/regions\.json.*{says}"):
        parse_regions(body, "box/regions.json")


def test_regions_made_in_code_are_checked_too():
    with pytest.raises(UsageError, match="at least 3"):
        Regions(roi=(((0.0, 0.0), (1.0, 1.0)),))
    assert Regions(roi=[[[0, 0], [1, 0], [1, 1]]]) == Regions(roi=(((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)),))


def test_regions_from_a_file(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"ignore": [LEFT]}))
    assert read_regions(path) == Regions(ignore=(LEFT,))
    path.write_text("{")
    with pytest.raises(UsageError, match=r"r\.json: not JSON"):
        read_regions(path)
    path.write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(UsageError, match="larger than"):
        read_regions(path)
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read_regions(tmp_path / "none.json")


@given(roi=st.lists(POLYGON, max_size=3), ignore=st.lists(POLYGON, max_size=3))
@settings(deadline=None, max_examples=40)
def test_regions_survive_json(roi, ignore):
    regions = Regions(tuple(roi), tuple(ignore))
    assert parse_regions(msgspec.json.decode(msgspec.json.encode(regions)), "x") == regions


def test_regions_that_leave_nothing_are_refused_when_set():
    bundle = FakeBundle()
    assert load_regions(bundle) == Regions()
    store_regions(bundle, Regions(roi=(LEFT,)), (8, 8))
    for empty in (
        Regions(ignore=(WHOLE,)),
        Regions(roi=(LEFT,), ignore=(LEFT,)),
        Regions(roi=(((0.1, 0.1), (0.5, 0.5), (0.9, 0.9)),)),
    ):
        with pytest.raises(UsageError, match="leave no cell of a 8 x 8 map"):
            store_regions(bundle, empty, (8, 8))
    assert load_regions(bundle) == Regions(roi=(LEFT,))
    bundle.regions = {"roi": "x"}
    with pytest.raises(UsageError, match=r"box: regions\.json: roi is 'x'"):
        load_regions(bundle)


def test_damaged_regions_say_what_to_do():
    bundle = FakeBundle()
    bundle.regions = {"roi": "x"}
    with pytest.raises(UsageError, match="adclick regions --set"):
        load_regions(bundle)


def test_the_hash_is_of_the_regions_and_nothing_else():
    assert regions_sha256(Regions()) == regions_sha256(Regions(roi=[], ignore=[]))
    assert len({regions_sha256(r) for r in (Regions(), Regions(roi=(LEFT,)), Regions(ignore=(LEFT,)))}) == 3
    assert regions_sha256(Regions(roi=(((0, 0), (1, 0), (1, 1)),))) == regions_sha256(Regions(roi=(WHOLE[:3],)))


def cells(grid, columns, copies=4):
    y, x = np.mgrid[: grid[0], :columns]
    return np.repeat(np.c_[y.ravel(), x.ravel()], copies, axis=0)


@pytest.mark.parametrize("grid", [(16, 16), (32, 32), (30, 46)])
@pytest.mark.parametrize("present", [Regions(roi=(LEFT,)), None])
def test_regions_wider_than_the_bank_are_refused(grid, present):
    half = cells(grid, grid[1] // 2)
    with pytest.raises(UsageError, match="adclick bank` again with these regions"):
        check_covered(Regions(), present, half, grid)
    check_covered(Regions(roi=(LEFT,)), present, half, grid)
    check_covered(Regions(), present, cells(grid, grid[1]), grid)


def test_a_normal_bank_is_not_refused():
    grid = (32, 32)
    few = np.array([[4, 4], [20, 8]])
    check_covered(Regions(), Regions(roi=(LEFT,)), few, grid)  # too few rows to tell anything
    half = cells(grid, 16)
    check_covered(Regions(roi=(RIGHT,)), Regions(), half, grid)  # nothing that was not inspected before
    hole = cells(grid, 32)
    hole = hole[~((hole >= 8) & (hole < 16)).all(axis=1)]  # a part of the frame without a texture
    check_covered(Regions(), Regions(roi=(RIGHT,)), hole, grid)
