import numpy as np
import pytest

from adclick_edge.data.sample_line import overlap
from adclick_edge.data.sample_line.defects import FULL_DEFECTS
from adclick_edge.data.sample_line.frame import LEAST_AREA, MASK_LEVELS, PRODUCTS
from adclick_edge.data.sample_line.overlap import OVERLAPS, overlap_noise_free, render_overlap
from adclick_edge.errors import DataError, UsageError

SIZE = 96
PAIRS = [(product, pair) for product, pairs in OVERLAPS.items() for pair in pairs]
LOGICAL = ("missing", "swapped")


def difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(one - other).max(axis=0))


def test_every_product_has_pairs_and_they_exist() -> None:
    assert set(OVERLAPS) == set(PRODUCTS)
    for product, (under, over) in PAIRS:
        assert {under, over} <= set(PRODUCTS[product])
        assert over in FULL_DEFECTS
    assert any(under in LOGICAL for _, (under, _) in PAIRS)


@pytest.mark.parametrize(("product", "pair"), PAIRS)
@pytest.mark.parametrize("index", range(3))
def test_both_kinds_are_seen_and_share_a_place(product: str, pair: tuple[str, str], index: int) -> None:
    frame, masks = render_overlap(product, pair, seed=1, index=index, size=SIZE)
    assert frame.shape == (SIZE, SIZE, 3)
    assert frame.dtype == np.uint8
    assert frame.flags.c_contiguous
    assert tuple(masks) == pair
    one, other = masks.values()
    assert one.dtype == other.dtype == np.bool_
    assert one.shape == other.shape == (SIZE, SIZE)
    assert min(one.sum(), other.sum()) >= LEAST_AREA * SIZE * SIZE
    assert 0 < (one & other).sum() <= 0.6 * (one | other).sum()
    assert (one | other).mean() < 0.3


@pytest.mark.parametrize(("product", "pair"), PAIRS)
def test_each_mask_is_what_its_own_kind_changes(product: str, pair: tuple[str, str]) -> None:
    clean = overlap_noise_free(product, pair, seed=2, index=4, size=SIZE)
    union = clean.masks[pair[0]] | clean.masks[pair[1]]
    assert difference(clean.picture, clean.reference)[~union].max() <= MASK_LEVELS
    # Pixels that only both defects together change enough belong to one of them.
    together = difference(clean.picture, clean.reference) > MASK_LEVELS
    for kind in pair:
        by_kind = difference(clean.picture, clean.without[kind]) > MASK_LEVELS
        mask = clean.masks[kind]
        assert (mask | ~by_kind).all()
        assert (by_kind | together | clean.footprints[kind])[mask].all()
        assert clean.footprints[kind].any() == (kind in LOGICAL)
        assert (mask | ~clean.footprints[kind]).all()


@pytest.mark.parametrize("product", OVERLAPS)
def test_outside_the_masks_a_frame_is_the_undamaged_one_and_noise(product: str) -> None:
    pair = OVERLAPS[product][0]
    clean = overlap_noise_free(product, pair, seed=3, index=0, size=SIZE)
    frame, masks = render_overlap(product, pair, seed=3, index=0, size=SIZE)
    for kind, mask in masks.items():
        np.testing.assert_array_equal(mask, clean.masks[kind])
    noise = frame.astype(np.float32) - clean.reference.transpose(1, 2, 0)
    sound = noise[~(masks[pair[0]] | masks[pair[1]])]
    assert abs(float(sound.mean())) < 0.5
    assert 0.5 < float(sound.std()) < 5
    for mask in masks.values():
        assert float(np.abs(noise[mask]).mean()) > 2 * float(np.abs(sound).mean())


@pytest.mark.parametrize(("product", "pair"), PAIRS[::4])
def test_frames_depend_on_their_arguments_alone(product: str, pair: tuple[str, str]) -> None:
    frame, masks = render_overlap(product, pair, seed=4, index=7, size=64)
    again, same = render_overlap(product, pair, seed=4, index=7, size=64)
    np.testing.assert_array_equal(frame, again)
    for kind in pair:
        np.testing.assert_array_equal(masks[kind], same[kind])
    for other in ({"seed": 5, "index": 7}, {"seed": 4, "index": 8}):
        assert (render_overlap(product, pair, size=64, **other)[0] != frame).mean() > 0.3


def test_the_one_that_can_be_moved_lies_on_top() -> None:
    one = render_overlap("flange", ("stain", "missing"), seed=0, index=0, size=64)
    other = render_overlap("flange", ("missing", "stain"), seed=0, index=0, size=64)
    np.testing.assert_array_equal(one[0], other[0])
    pairs = (("dent", "stain"), ("stain", "dent"))
    below, above = (render_overlap("flange", pair, seed=0, index=0, size=64)[0] for pair in pairs)
    assert (below != above).any()


def test_large_frames() -> None:
    frame, masks = render_overlap("flange", ("crack", "stain"), seed=0, index=0, size=512)
    assert frame.shape == (512, 512, 3)
    assert (masks["crack"] & masks["stain"]).sum() >= 15


@pytest.mark.parametrize(
    ("product", "pair", "change", "match"),
    [
        ("teapot", ("dent", "stain"), {}, "no product 'teapot'"),
        ("flange", ("hole", "stain"), {}, "no kind 'hole'"),
        ("flange", ("stain", "stain"), {}, "cannot be told apart"),
        ("board", ("missing", "bent"), {}, "take one of contamination, scratch"),
        ("flange", ("dent", "stain"), {"size": 63}, "63"),
        ("flange", ("dent", "stain"), {"seed": -1}, "seed -1"),
        ("flange", ("dent", "stain"), {"index": -1}, "index -1"),
    ],
)
def test_wrong_arguments(product: str, pair: tuple[str, str], change: dict[str, int], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        render_overlap(product, pair, **{"seed": 0, "index": 0, "size": 64, **change})


def test_attempts_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "_ATTEMPTS", 2)
    monkeypatch.setattr(overlap, "_LEAST_SHARED", 1.0)
    with pytest.raises(DataError, match="in 2 attempts; take another index"):
        render_overlap("flange", ("dent", "stain"), seed=0, index=0, size=64)
