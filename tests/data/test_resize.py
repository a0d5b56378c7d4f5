import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.data.resize import HALVED_FROM, fit, fit_mask
from adclick_edge.errors import UsageError

sides = st.integers(1, 60)


@pytest.fixture(autouse=True)
def _one_thread():
    cv2.setNumThreads(1)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def area_weights(size, out):
    """Share of each source pixel in each output pixel of one axis that shrinks, float64 [out, size]."""
    edges = np.linspace(0, size, out + 1)
    left, right = np.maximum.outer(edges[:-1], np.arange(size)), np.minimum.outer(edges[1:], np.arange(size) + 1)
    return np.clip(right - left, 0, None) / (size / out)


def linear_weights(size, out):
    """The same for an axis that grows: between the centres of the two nearest pixels."""
    position = np.clip((np.arange(out) + 0.5) * size / out - 0.5, 0, size - 1)
    low = np.minimum(position.astype(int), max(size - 2, 0))
    weights = np.zeros((out, size))
    weights[np.arange(out), low] = 1 - (position - low)
    weights[np.arange(out), np.minimum(low + 1, size - 1)] += position - low
    return weights


def halved(image, size):
    """Means of 2 x 2 pixels, as often as the rule says, float64; and how often."""
    out, times = image.astype(np.float64), 0
    while all(axis >= HALVED_FROM * n and axis % 2 == 0 for axis, n in zip(out.shape[:2], size, strict=True)):
        out, times = (out[::2, ::2] + out[1::2, ::2] + out[::2, 1::2] + out[1::2, 1::2]) / 4, times + 1
    return out, times


def slow_fit(image, size):
    ys, xs = (
        (area_weights if out < axis else linear_weights)(axis, out)
        for axis, out in zip(image.shape[:2], size, strict=True)
    )
    return np.einsum("ay,bx,yx...->ab...", ys, xs, image.astype(np.float64), optimize=True)


@given(sides, sides, st.sampled_from([(), (1,), (3,), (4,)]))
@settings(max_examples=20, deadline=None)
def test_an_image_of_that_size_stays_as_it_is(height, width, channels):
    image = noise(height, width, *channels)
    np.testing.assert_array_equal(fit(image, (height, width)), image)


@pytest.mark.parametrize("factors", [(1, 2), (2, 1), (2, 2), (3, 3), (4, 2), (5, 7), (8, 8)])
@pytest.mark.parametrize("channels", [1, 3])
def test_whole_factors_give_the_mean_of_each_block(factors, channels):
    a, b = factors
    image = noise(6 * a, 5 * b, channels)
    mean = image.reshape(6, a, 5, b, channels).mean(axis=(1, 3))
    assert np.abs(fit(image, (6, 5)) - mean).max() <= 0.5 + 0.5 * halved(image, (6, 5))[1]


@given(sides, sides, sides, sides, st.sampled_from([(), (1,), (3,)]))
@settings(max_examples=120, deadline=None)
def test_each_axis_is_averaged_or_interpolated(height, width, out_height, out_width, channels):
    image = noise(height, width, *channels)
    result = fit(image, (out_height, out_width))
    assert result.shape == (out_height, out_width, *channels)
    assert result.dtype == np.uint8
    smaller, times = halved(image, (out_height, out_width))
    # Two roundings to grey levels when one axis shrinks and the other grows, and weights of 11 bits when it grows; one
    # more for each halving.
    assert np.abs(result - slow_fit(smaller, (out_height, out_width))).max() <= 1.6 + 0.5 * times


def test_halving_first_is_nearly_the_same_average():
    """A camera's picture (smooth, with edges), 1080p to 256: within a few grey levels at edges, a fraction elsewhere."""
    rows, columns = np.mgrid[0:1080, 0:1920]
    image = np.where((rows // 90 + columns // 110) % 2 == 0, 60, 190) + 30 * np.sin(columns / 37)
    image = np.clip(image[:, :, None] + np.array([0, 10, 20]), 0, 255).astype(np.uint8)
    away = np.abs(fit(image, (256, 256)) - slow_fit(image, (256, 256)))
    assert away.mean() < 0.6
    assert away.max() < 20
    assert halved(image, (256, 256))[1] == 1


def test_a_thin_line_is_not_skipped_when_the_other_axis_grows():
    image = np.zeros((1000, 10, 3), np.uint8)
    image[501] = 255
    shrunk = fit(image, (10, 40))
    assert shrunk[5].min() >= 2
    assert shrunk[:5].max() == 0


def test_a_constant_image_stays_constant():
    for size in [(7, 9), (100, 3), (3, 100), (90, 91)]:
        assert np.unique(fit(np.full((50, 40, 3), 173, np.uint8), size)).tolist() == [173]


def test_grey_equals_a_channel_of_colour():
    image = noise(37, 53, 3)
    for size in [(16, 16), (64, 20), (90, 90)]:
        np.testing.assert_array_equal(fit(image, size)[:, :, 1], fit(np.ascontiguousarray(image[:, :, 1]), size))
        np.testing.assert_array_equal(fit(image[:, :, 1:2], size)[:, :, 0], fit(image, size)[:, :, 1])


def test_views_are_taken_as_they_look():
    image = noise(41, 29, 3)
    for view in (image[::-1], image[:, :, ::-1], image[3:, 5:], image.transpose(1, 0, 2)):
        for size in [(20, 20), (41, 29), (77, 13)]:
            np.testing.assert_array_equal(fit(view, size), fit(view.copy(), size))


@given(st.integers(8, 60), st.integers(8, 60), st.integers(8, 90), st.integers(8, 90), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_mask_keeps_its_area(height, width, out_height, out_width, seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), bool)
    y, x = rng.integers(1, height - 3), rng.integers(1, width - 3)
    mask[y : rng.integers(y + 1, height - 1), x : rng.integers(x + 1, width - 1)] = True
    result = fit_mask(mask, (out_height, out_width))
    assert result.shape == (out_height, out_width)
    assert result.dtype == np.float32
    assert result.min() >= 0
    assert result.max() <= 1 + 1e-6
    np.testing.assert_allclose(result, slow_fit(mask, (out_height, out_width)), atol=1e-4)
    # Exact where axes shrink; an axis that grows by a fraction samples the slopes unevenly.
    grows = out_height > height or out_width > width
    assert result.mean() == pytest.approx(mask.mean(), rel=0.25 if grows else 1e-4)


def test_a_mask_of_a_whole_factor_keeps_its_area_exactly():
    mask = np.random.default_rng(0).random((24, 36)) < 0.3
    mask[[0, -1]] = mask[:, [0, -1]] = False
    for size in [(12, 12), (24, 36), (48, 72), (1, 1)]:
        assert fit_mask(mask, size).mean() == pytest.approx(mask.mean(), rel=1e-5)


def test_a_mask_of_shares():
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = mask[2:, 2:] = True
    np.testing.assert_array_equal(fit_mask(mask, (2, 2)), [[0.25, 0], [0, 1]])


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 5)])
def test_no_size_is_refused(size):
    with pytest.raises(UsageError, match="at least 1"):
        fit(noise(5, 5, 3), size)


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (0, 0)])
def test_an_empty_image_is_refused(shape):
    with pytest.raises(UsageError, match="no pixels"):
        fit(np.zeros(shape, np.uint8), (4, 4))
