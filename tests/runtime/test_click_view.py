import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.data.clicks import Click
from adclick_edge.runtime.click_view import (
    EXPANSION,
    LEAST_SIDE_PX,
    MOST_SIDE_SHARE,
    View,
    click_rows,
    crop_grid,
    marked_box,
    next_view,
    paste,
    resize_map,
    to_frame,
    to_probability,
    to_view,
    whole_view,
)

RNG = np.random.default_rng(0)
QUICK = settings(deadline=None, max_examples=60)
SIDES = st.integers(1, 5000)


@st.composite
def frames_and_boxes(draw: st.DrawFn) -> tuple[tuple[int, int], View]:
    frame = draw(st.integers(32, 4000)), draw(st.integers(32, 4000))
    top, left = draw(st.integers(0, frame[0] - 1)), draw(st.integers(0, frame[1] - 1))
    return frame, View(top, left, draw(st.integers(1, frame[0] - top)), draw(st.integers(1, frame[1] - left)))


def holds(outer: View, inner: View) -> bool:
    return (
        outer.top <= inner.top
        and outer.left <= inner.left
        and inner.top + inner.height <= outer.top + outer.height
        and inner.left + inner.width <= outer.left + outer.width
    )


@QUICK
@given(SIDES, SIDES, SIDES, SIDES, st.floats(-0.5, 5000), st.floats(-0.5, 5000))
def test_places_go_to_the_view_and_back(top: int, left: int, height: int, width: int, y: float, x: float) -> None:
    view, size = View(top, left, height, width), (512, 448)
    back = to_frame(*to_view(y, x, view, size), view, size)
    np.testing.assert_allclose(back, (y, x), atol=1e-3)


def test_a_view_spans_the_input_from_edge_to_edge() -> None:
    view = View(10, 20, 100, 50)
    assert to_view(9.5, 19.5, view, (512, 256)) == (-0.5, -0.5)
    assert to_view(109.5, 69.5, view, (512, 256)) == (511.5, 255.5)
    # The centre of a pixel shown at its own size is the centre of a pixel.
    assert to_view(12, 23, View(10, 20, 512, 256), (512, 256)) == (2, 3)


def test_places_are_where_resizing_puts_the_pixels() -> None:
    frame = np.zeros((90, 120), np.float32)
    frame[33, 71] = 1
    view = View(20, 50, 30, 40)
    shown = resize_map(frame[20:50, 50:90], (240, 320))
    found = np.unravel_index(shown.argmax(), shown.shape)
    expected = to_view(33, 71, view, (240, 320))
    np.testing.assert_allclose(found, expected, atol=0.51)


@QUICK
@given(frames_and_boxes())
def test_a_new_view_holds_the_box_inside_the_frame(case: tuple[tuple[int, int], View]) -> None:
    frame, box = case
    whole = whole_view(frame)
    view = next_view(box, frame, whole)
    assert holds(whole, view)
    assert holds(view, box)
    if view == whole:
        return
    for side, shown, marked in ((frame[0], view.height, box.height), (frame[1], view.width, box.width)):
        assert shown >= min(LEAST_SIDE_PX, side / 6)
        assert shown >= EXPANSION * marked
        assert shown < MOST_SIDE_SHARE * side + 1
    assert view.height / frame[0] == pytest.approx(view.width / frame[1], abs=1 / min(frame))
    assert next_view(box, frame, view) == view  # it stays where it is


def test_views_follow_what_is_marked() -> None:
    frame = (1000, 2000)
    whole = whole_view(frame)
    small = View(500, 1000, 50, 60)
    first = next_view(small, frame, whole)
    assert (first.height, first.width) == (167, 334)
    assert next_view(View(490, 990, 70, 80), frame, first) == first
    at_the_border = View(first.top + 1, 1000, 50, 60)
    assert next_view(at_the_border, frame, first) != first
    assert next_view(View(100, 100, 500, 600), frame, first) == whole
    assert next_view(None, frame, first) == whole
    large = next_view(View(400, 800, 300, 300), frame, whole)
    assert large.height == 540
    assert next_view(small, frame, large) == first  # fills too little of it
    assert next_view(View(0, 0, 50, 60), frame, whole) == View(0, 0, 167, 334)


def test_small_frames_are_not_enlarged() -> None:
    assert next_view(View(60, 60, 3, 3), (160, 300), whole_view((160, 300))) == whole_view((160, 300))
    assert next_view(View(60, 60, 3, 3), (200, 300), whole_view((200, 300))) != whole_view((200, 300))


def test_what_is_marked_is_mask_and_positive_clicks() -> None:
    probability = np.zeros((40, 50), np.float32)
    assert marked_box(probability, [Click(3, 4, False)]) is None
    assert marked_box(probability, [Click(3.4, 4.6, True), Click(39.5, 49.5, True)]) == View(3, 5, 37, 45)
    probability[10:12, 20:30] = 0.6
    assert marked_box(probability, []) == View(10, 20, 2, 10)
    assert marked_box(probability, [Click(5, 25, True), Click(0, 0, False)]) == View(5, 20, 7, 10)
    assert marked_box(probability, [], threshold=0.7) is None


@QUICK
@given(st.permutations([(5.0, 6.0, True), (7.0, 1.0, False), (30.0, 40.0, True), (8.0, 8.0, True)]))
def test_the_order_of_clicks_changes_nothing(clicks: list[tuple[float, float, bool]]) -> None:
    given_clicks = [Click(*c) for c in clicks]
    rows = click_rows(given_clicks, View(0, 0, 20, 20), (40, 80), 6)
    assert rows.dtype == np.float32
    expected = np.zeros((6, 3), np.float32)
    expected[:3] = (10.5, 25.5, 1), (14.5, 5.5, -1), (16.5, 33.5, 1)  # the one outside of the view is left out
    np.testing.assert_array_equal(rows, sorted(expected[:3].tolist()) + expected[3:].tolist())


def test_cropped_grids_are_bilinear() -> None:
    maps = RNG.random((7, 12, 16), np.float32)
    whole = crop_grid(maps, whole_view((96, 128)), (96, 128), (24, 40))
    for channel, found in zip(maps, whole, strict=True):
        np.testing.assert_allclose(found, cv2.resize(channel, (40, 24), interpolation=cv2.INTER_LINEAR), atol=1e-5)
    part = crop_grid(maps, View(24, 32, 48, 64), (96, 128), (6, 8))  # whole cells at their own scale
    np.testing.assert_allclose(part, maps[:, 3:9, 4:12], atol=1e-6)
    assert crop_grid(maps, whole_view((96, 128)), (96, 128), (12, 16)) is maps
    assert (
        crop_grid(np.ones((2, 1, 1), np.float32), View(1, 2, 3, 4), (9, 9), (3, 3)).tolist()
        == np.ones((2, 3, 3)).tolist()
    )


def test_pasting_changes_the_view_only() -> None:
    before = RNG.random((30, 40), np.float32)
    kept = before.copy()
    after = paste(before, np.full((10, 20), 0.25, np.float32), View(5, 6, 10, 20))
    np.testing.assert_array_equal(before, kept)
    assert (after[5:15, 6:26] == 0.25).all()
    outside = np.ones((30, 40), bool)
    outside[5:15, 6:26] = False
    np.testing.assert_array_equal(after[outside], before[outside])


def test_probabilities_of_extreme_logits() -> None:
    found = to_probability(np.array([-1e4, -1.0, 0.0, 1e4], np.float32))
    np.testing.assert_allclose(found, [0, 0.26894142, 0.5, 1], atol=1e-6)
    assert found.dtype == np.float32
