import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.data.procedural.fields import FAMILIES, Grid, standardised, value_noise
from adclick_edge.data.procedural.textures import material_family, material_piece, random_texture
from adclick_edge.errors import UsageError


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32), height=st.integers(1, 90), width=st.integers(1, 90))
def test_any_size_gives_a_picture_in_range(seed: int, height: int, width: int) -> None:
    texture = random_texture(np.random.default_rng(seed), height, width)
    assert texture.shape == (height, width, 3)
    assert texture.dtype == np.float32
    assert texture.min() >= 0
    assert texture.max() <= 1


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0), (-1, 5)])
def test_an_empty_size_is_refused(height: int, width: int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        random_texture(np.random.default_rng(0), height, width)


def test_one_seed_one_texture() -> None:
    a, b, c = (random_texture(np.random.default_rng(seed), 40, 50) for seed in (7, 7, 8))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_the_global_random_state_is_neither_used_nor_moved() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    random_texture(np.random.default_rng(0), 32, 32)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_textures_differ_in_brightness_colour_and_contrast() -> None:
    rng = np.random.default_rng(3)
    textures = [random_texture(rng, 48, 48) for _ in range(120)]
    brightness = np.array([t.mean() for t in textures])
    contrast = np.array([t.mean(-1).std() for t in textures])
    colour = np.array([np.ptp(t.mean((0, 1))) for t in textures])
    assert brightness.std() > 0.12
    assert contrast.max() > 5 * np.median(contrast[contrast < np.median(contrast)])
    assert 0.3 < np.mean(colour < 0.07) < 0.8  # about half are near grey


def test_every_family_is_drawn() -> None:
    assert {material_family(m) for m in range(300)} == set(range(len(FAMILIES)))
    assert material_family(5) == material_piece(5, np.random.default_rng(0), 8, 8).family


@pytest.mark.parametrize("name", FAMILIES)
def test_style_is_drawn_alike_whatever_the_detail(name: str) -> None:
    states = []
    for seed in (1, 2):
        style, detail = np.random.default_rng(9), np.random.default_rng(seed)
        field = FAMILIES[name](style, detail, Grid(40, 56, 0.4, 3.0, 8.0))
        assert field.shape == (40, 56)
        assert field.dtype == np.float32
        assert np.isfinite(field).all()
        states.append(style.bit_generator.state)
    assert states[0] == states[1]


def test_pieces_of_one_material_are_nearer_than_those_of_two() -> None:
    def summary(material: int, seed: int) -> np.ndarray:
        rgb = material_piece(material, np.random.default_rng(seed), 64, 64).rgb
        return np.concatenate([rgb.mean((0, 1)), [rgb.std(), np.abs(np.diff(rgb, axis=1)).mean()]])

    first = np.stack([summary(m, 1) for m in range(40)])
    second = np.stack([summary(m, 2) for m in range(40)])
    distance = np.linalg.norm(first[:, None] - second[None], axis=-1)
    assert np.mean(distance.argmin(1) == np.arange(40)) > 0.7
    assert not np.array_equal(first, second)


def test_standardised() -> None:
    field = standardised(np.random.default_rng(0).uniform(3, 9, (50, 50)).astype(np.float32))
    assert field.mean() == pytest.approx(0, abs=1e-5)
    assert field.std() == pytest.approx(1, abs=1e-5)
    assert not standardised(np.full((4, 4), 3, np.float32)).any()


def test_noise_varies_slowly_over_large_cells() -> None:
    coarse, fine = (value_noise(np.random.default_rng(0), 64, 64, cell) for cell in (32.0, 2.0))
    assert np.abs(np.diff(coarse)).mean() < 0.3 * np.abs(np.diff(fine)).mean()
    assert np.abs(coarse).max() < 1.6
