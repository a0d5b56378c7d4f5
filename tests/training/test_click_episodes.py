import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.errors import TrainingError
from adclick_edge.training.click_episodes import ClickEpisodes, _window, view_inputs
from adclick_edge.training.click_pictures import DefectPicture
from adclick_edge.training.click_store import ClickStore, _box, _start
from adclick_edge.words import shipped_prompts

SIDE = 64


def store(seed: int = 0, views: int = 3) -> ClickStore:
    """A crack above a stain in every view; they share a row."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((views, SIDE, SIDE), np.uint8)
    masks[:, 10:30, 8:40] = 1
    masks[:, 29:50, 20:60] |= 2
    arrays = {
        "frames": rng.integers(0, 256, (views, SIDE, SIDE, 3), dtype=np.uint8),
        "masks": masks,
        "map4": rng.random((views, 4, 16, 16)).astype(np.float16),
        "map8": rng.random((views, 5, 8, 8)).astype(np.float16),
        "map16": rng.random((views, 6, 4, 4)).astype(np.float16),
        "relative": rng.random((views, 3, 8, 8)).astype(np.float16),
    }
    return ClickStore("thing-0123", [["crack", "stain"]] * views, arrays)


def episodes(words_share: float = 0.5, **kwargs: object) -> ClickEpisodes:
    given = {"product_share": 0.5, "batch_pixels": 8 * SIDE**2, "seed": 3} | kwargs
    return ClickEpisodes([store()], [store(1)], shipped_prompts(), words_share=words_share, **given)  # type: ignore[arg-type]


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    one, again, other, seeded = episodes().batch(5), episodes().batch(5), episodes().batch(6), episodes(seed=4).batch(5)
    assert one.clicks == again.clicks
    for name, value in one.inputs.items():
        np.testing.assert_array_equal(value, again.inputs[name])
    assert one.clicks != other.clicks
    assert one.clicks != seeded.clicks
    assert len(one.masks) == 8


def test_words_mean_the_kind_they_name() -> None:
    table = shipped_prompts()
    crack, stain = (store().arrays["masks"][0] & bit > 0 for bit in (1, 2))
    batch = episodes(words_share=1.0).batch(0)
    seen = set()
    for mask, prompt in zip(batch.masks, batch.prompts, strict=True):
        nearest = max(("crack", "stain"), key=lambda kind: float((table.examples("thing", kind) @ prompt).max()))
        np.testing.assert_array_equal(mask, crack if nearest == "crack" else stain)
        seen.add(nearest)
    assert seen == {"crack", "stain"}


def test_without_words_either_kind_or_both_are_meant() -> None:
    sizes = {int(mask.sum()) for step in range(4) for mask in episodes(words_share=0.0).batch(step).masks}
    crack, stain = 20 * 32, 21 * 40
    assert sizes == {crack, stain, crack + stain - 20}
    assert not episodes(words_share=0.0).batch(0).prompts.any()


def test_first_clicks_lie_where_they_say() -> None:
    batch = episodes().batch(1)
    for mask, clicks in zip(batch.masks, batch.clicks, strict=True):
        assert clicks
        assert all(bool(mask[int(c.y), int(c.x)]) == c.positive for c in clicks)


def test_relative_residuals_are_stored_as_logarithms() -> None:
    inputs = view_inputs(store(), 1, 16, 32, 32)
    stored = store().arrays["relative"][1][:, 2:6, 4:8].astype(np.float32)
    np.testing.assert_allclose(inputs["relative"], np.expm1(stored[:-1]), rtol=1e-6)
    np.testing.assert_allclose(inputs["relative_distance"], np.expm1(stored[-1:]), rtol=1e-6)
    assert inputs["map16"].shape == (6, 2, 2)
    assert inputs["map4"].shape == (4, 8, 8)


def test_nothing_to_learn_from_is_an_error() -> None:
    with pytest.raises(TrainingError, match="give worlds or products"):
        ClickEpisodes([], [], shipped_prompts(), product_share=0.5, words_share=0.5, batch_pixels=100, seed=0)


def spot(height: int, width: int, top: int, left: int, rows: int, columns: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros((height, width), np.bool_)
    mask[min(top, height - 1) : top + rows, min(left, width - 1) : left + columns] = True
    return mask


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 511),
    st.integers(0, 511),
    st.integers(1, 200),
    st.integers(1, 200),
    st.sampled_from([256, 320, 512]),
    st.integers(0, 9),
)
def test_windows_show_some_of_the_defect(top: int, left: int, rows: int, columns: int, side: int, seed: int) -> None:
    mask = spot(512, 512, top, left, rows, columns)
    y, x = _window(mask, side, np.random.default_rng(seed))
    assert y % 16 == x % 16 == 0
    assert 0 <= y <= 512 - side
    assert 0 <= x <= 512 - side
    assert mask[y : y + side, x : x + side].any()


@settings(deadline=None, max_examples=80)
@given(
    st.integers(20, 90),
    st.integers(20, 90),
    st.integers(0, 80),
    st.integers(0, 80),
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(0, 9),
)
def test_views_hold_the_whole_defect(
    height: int, width: int, top: int, left: int, rows: int, columns: int, seed: int
) -> None:
    mask = spot(height, width, top, left, rows, columns)
    picture = DefectPicture(np.zeros((height, width, 3), np.uint8), (("crack", mask),), -1)
    up, west, down, east = _box(picture, np.random.default_rng(seed))
    assert 0 <= up < down <= height
    assert 0 <= west < east <= width
    assert mask[up:down, west:east].sum() == mask.sum()
    # A view has the frame's shape: a part of it is stretched like the whole.
    assert abs((down - up) / height - (east - west) / width) <= 1 / min(height, width)


@given(st.integers(0, 50), st.integers(1, 50), st.integers(1, 100), st.integers(0, 9))
def test_a_stretch_covers_what_it_can(first: int, length: int, stretch: int, seed: int) -> None:
    end, room = first + length, 100
    start = _start(first, end, stretch, room, np.random.default_rng(seed))
    assert start >= 0
    assert start + stretch <= room
    if stretch >= length:
        assert start <= first
        assert end <= start + stretch
