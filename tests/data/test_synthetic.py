"""Synthetic and pasted defects: the mask says where the picture changed, and nothing else changed."""

import time
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adclick_edge.data.defect_families import FAMILIES
from adclick_edge.data.perlin import perlin_noise
from adclick_edge.data.synthetic import DefectMix, add_defect, cut_and_paste
from adclick_edge.errors import UsageError


def surface(seed: int, height: int = 96, width: int = 112, *, grey: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 200, (6, 7, 3), np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    image = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    return np.repeat(image[..., :1], 3, axis=2) if grey else image


def only(family: str) -> DefectMix:
    return DefectMix(**(dict.fromkeys(FAMILIES, 0.0) | {family: 1.0}))


FOREIGN = [surface(1000, 80, 50), surface(1001, 200, 210)]


def test_a_mix_names_every_family() -> None:
    assert set(DefectMix.__dataclass_fields__) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
@given(seed=st.integers(0, 2**32), procedural=st.booleans(), confined=st.booleans(), grey=st.booleans())
@example(seed=64, procedural=False, confined=False, grey=True)  # a blur of four pixels by 2.5 levels
@settings(deadline=None, max_examples=25)
def test_the_mask_is_what_changed(family: str, seed: int, procedural: bool, confined: bool, grey: bool) -> None:
    image = surface(seed % 100, grey=grey)
    before = image.copy()
    foreground = None
    if confined:
        foreground = np.zeros(image.shape[:2], np.bool_)
        foreground[20:70, 30:90] = True
    foreign = None if procedural else FOREIGN
    damaged, mask = add_defect(
        image, np.random.default_rng(seed), foreign=foreign, foreground=foreground, mix=only(family)
    )

    assert np.array_equal(image, before)
    assert (damaged.dtype, damaged.shape) == (np.uint8, image.shape)
    assert (mask.dtype, mask.shape) == (np.bool_, image.shape[:2])
    assert mask.any()
    change = np.abs(damaged.astype(int) - image).mean(axis=2)
    assert change[mask].mean() >= 4
    if foreground is not None:
        assert not mask[~foreground].any()
        assert not change[~foreground].any()
    if grey:
        assert (damaged == damaged[..., :1]).all()
    # Outside the mask only faint traces: pixels whose neighbourhood hardly changed.
    blurred = cv2.blur(change.astype(np.float32), (3, 3))
    assert (blurred[~mask & ~cv2.dilate(mask.view(np.uint8), np.ones((5, 5))).astype(bool)] < 25).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_equal_generators_give_equal_defects(family: str) -> None:
    image = surface(3)
    (a, a_mask), (b, b_mask) = (add_defect(image, np.random.default_rng(9), mix=only(family)) for _ in range(2))
    assert np.array_equal(a, b)
    assert np.array_equal(a_mask, b_mask)
    c, _ = add_defect(image, np.random.default_rng(10), mix=only(family))
    assert not np.array_equal(a, c)


@pytest.mark.parametrize("level", [0, 127, 255])
@pytest.mark.parametrize("family", ["blur", "warp"])
def test_where_a_family_changes_nothing_there_is_still_a_defect(level: int, family: str) -> None:
    image = np.full((40, 50, 3), level, np.uint8)
    damaged, mask = add_defect(image, np.random.default_rng(0), mix=only(family))
    assert mask.any()
    assert np.abs(damaged.astype(int) - image)[mask].min() >= 6
    assert np.array_equal(damaged[~mask], image[~mask])


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (9, 7), (33, 65)])
@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=10)
def test_any_size_and_any_foreground_will_do(size: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    foreground = np.zeros(size, np.bool_)
    foreground[rng.integers(size[0]), rng.integers(size[1])] = True
    for where in (None, foreground):
        _, mask = add_defect(image, rng, foreign=FOREIGN, foreground=where)
        assert mask.any()


def test_thin_and_small_families_stay_thin_and_small() -> None:
    image = surface(4, 256, 256)
    rng = np.random.default_rng(0)
    share = {name: np.mean([add_defect(image, rng, mix=only(name))[1].mean() for _ in range(30)]) for name in FAMILIES}
    assert share["blob"] < 0.01
    assert share["stroke"] < 0.03
    assert max(share.values()) < 0.25


def test_the_mix_decides_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def spied(name: str) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
        return lambda canvas, rng: (drawn.append(name), FAMILIES[name](canvas, rng))[1]

    monkeypatch.setattr("adclick_edge.data.synthetic.FAMILIES", {name: spied(name) for name in FAMILIES})
    rng, image = np.random.default_rng(0), surface(5)
    for _ in range(200):
        add_defect(image, rng, mix=DefectMix(texture=0, stroke=3, blob=1, stain=0, blur=0, warp=0))
    assert set(drawn) == {"stroke", "blob"}
    assert 0.65 < drawn.count("stroke") / len(drawn) < 0.85


@pytest.mark.parametrize("weights", [(0, 0, 0, 0, 0, 0), (1, -1, 1, 1, 1, 1), (np.inf, 0, 0, 0, 0, 0), (np.nan,) * 6])
def test_weights_that_are_none_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="defect mix"):
        DefectMix(*weights)


def test_wrong_pictures_and_foregrounds_are_refused() -> None:
    rng, image = np.random.default_rng(0), surface(0)
    for wrong in (image[..., 0], image.astype(np.float32), image[:0]):
        with pytest.raises(UsageError, match="give uint8"):
            add_defect(wrong, rng)
    for foreground in (np.zeros(image.shape[:2], np.bool_), np.ones((5, 5), np.bool_)):
        with pytest.raises(UsageError, match="foreground"):
            add_defect(image, rng, foreground=foreground)
        with pytest.raises(UsageError, match="foreground"):
            cut_and_paste(image, image, np.ones(image.shape[:2], np.bool_), rng, foreground=foreground)


def test_a_defect_takes_milliseconds() -> None:
    image, rng = surface(6, 256, 256), np.random.default_rng(0)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        times = []
        for _ in range(60):
            start = time.process_time()
            add_defect(image, rng)
            times.append(time.process_time() - start)
    finally:
        cv2.setNumThreads(threads)
    assert np.mean(sorted(times)[:50]) < 0.015  # three times what it takes on an idle core


@given(height=st.integers(1, 40), width=st.integers(1, 40), period=st.floats(1, 50), seed=st.integers(0, 100))
@settings(deadline=None, max_examples=30)
def test_perlin_noise_equals_its_definition(height: int, width: int, period: float, seed: int) -> None:
    noise = perlin_noise(np.random.default_rng(seed), height, width, period, 1.3 * period)
    assert noise.shape == (height, width)
    ys, xs = (np.arange(height) + 0.5) / period, (np.arange(width) + 0.5) / (1.3 * period)
    shape = (int(np.float32(ys[-1])) + 2, int(np.float32(xs[-1])) + 2)
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, shape)

    def fade(t: float) -> float:
        return t**3 * (t * (6 * t - 15) + 10)

    y, x = ys[height // 2], xs[width // 3]
    expected = 0.0
    for i in (int(y), int(y) + 1):
        for j in (int(x), int(x) + 1):
            weight = fade(1 - abs(y - i)) * fade(1 - abs(x - j))
            expected += weight * ((x - j) * np.cos(angle[i, j]) + (y - i) * np.sin(angle[i, j]))
    assert noise[height // 2, width // 3] == pytest.approx(expected, abs=1e-4)


def donor(height: int = 90, width: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """A green L on grey: no turn or mirror image of it is itself."""
    image, mask = np.full((height, width, 3), 100, np.uint8), np.zeros((height, width), np.bool_)
    mask[30:60, 30:38] = mask[52:60, 30:52] = True
    image[mask] = (60, 200, 60)
    return image, mask


@given(seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_pixels_and_mask_move_together(seed: int) -> None:
    """Where the pasted picture is green its mask is set, to within the feathered edge."""
    source, source_mask = donor()
    image = np.full((120, 140, 3), 100, np.uint8)
    pasted, mask = cut_and_paste(image, source, source_mask, np.random.default_rng(seed))
    green = pasted[..., 1].astype(int) - pasted[..., 0] > 70  # half of the donor's difference of 140
    assert (green & mask).sum() >= 0.9 * (green | mask).sum()
    grown = cv2.dilate(mask.view(np.uint8), np.ones((11, 11), np.uint8)).astype(bool)
    assert np.array_equal(pasted[~grown], image[~grown])
    assert 0.8**2 * 0.9 < mask.sum() / source_mask.sum() < 1.2**2 * 1.1


def test_the_defect_is_as_bright_against_its_new_surroundings() -> None:
    source, source_mask = donor()
    image = np.full((120, 140, 3), 40, np.uint8)
    pasted, mask = cut_and_paste(image, source, source_mask, np.random.default_rng(1))
    inner = cv2.erode(mask.view(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    assert np.median(pasted[inner], axis=0).tolist() == [0, 140, 0]  # 100 to 40 apart: everything 60 darker


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_pasted_defects_stay_on_the_part(seed: int) -> None:
    source, source_mask = donor()
    image = surface(seed % 7)
    foreground = np.zeros(image.shape[:2], np.bool_)
    foreground[10:60, 40:100] = True
    before = image.copy()
    pasted, mask = cut_and_paste(image, source, source_mask, np.random.default_rng(seed), foreground=foreground)
    assert mask.any()
    assert not mask[~foreground].any()
    assert np.array_equal(pasted[~foreground], image[~foreground])
    assert np.array_equal(image, before)


@pytest.mark.parametrize("size", [(4, 5), (30, 200), (300, 20)])
def test_a_defect_larger_than_the_picture_is_cut_off(size: tuple[int, int]) -> None:
    source, source_mask = donor()
    for seed in range(10):
        pasted, mask = cut_and_paste(
            np.full((*size, 3), 90, np.uint8), source, source_mask, np.random.default_rng(seed)
        )
        assert mask.any()
        assert pasted.shape == (*size, 3)


@pytest.mark.parametrize("marked", [[(5, 5)], [(0, 0)], [(3, 3), (3, 6)]])
def test_specks_of_a_pixel_are_not_lost(marked: list[tuple[int, int]]) -> None:
    source, source_mask = np.full((10, 11, 3), 200, np.uint8), np.zeros((10, 11), np.bool_)
    for at in marked:
        source_mask[at] = True
    for seed in range(20):
        _, mask = cut_and_paste(surface(0), source, source_mask, np.random.default_rng(seed))
        assert mask.any()


def test_a_wholly_defective_donor_will_do() -> None:
    source = surface(8, 20, 20)
    _, mask = cut_and_paste(surface(0), source, np.ones((20, 20), np.bool_), np.random.default_rng(0))
    assert mask.sum() > 200


def test_donors_that_do_not_fit_are_refused() -> None:
    source, source_mask = donor()
    with pytest.raises(UsageError, match="marks no pixel"):
        cut_and_paste(surface(0), source, np.zeros_like(source_mask), np.random.default_rng(0))
    with pytest.raises(UsageError, match="give equal sizes"):
        cut_and_paste(surface(0), source, source_mask[1:], np.random.default_rng(0))
