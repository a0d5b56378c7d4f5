"""Shots of one defect are found, whatever the light and crop; two parts of one design are not taken for one."""

import cv2
import numpy as np
import pytest

from adclick_edge.data.same_defect import same_defect_groups
from adclick_edge.data.sample_line import render_frame


def reshoot(image, mask, *, gain, crop, seed):
    """The same part in another light, cut a little differently, with its own noise."""
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    top, left, bottom, right = crop
    cut = image[top : height - bottom, left : width - right].astype(np.float32)
    ramp = np.linspace(gain, 1.0, cut.shape[1])[None, :, None]
    noisy = cut * ramp + rng.normal(0, 2, cut.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8), mask[top : height - bottom, left : width - right].copy()


@pytest.mark.parametrize(("product", "kind"), [("board", "scratch"), ("flange", "crack"), ("fabric", "hole")])
def test_another_shot_of_the_defect_joins_its_group_and_another_part_does_not(product, kind):
    image, mask = render_frame(product, seed=3, index=0, kind=kind, size=320)
    other_image, other_mask = render_frame(product, seed=3, index=1, kind=kind, size=320)
    again = reshoot(image, mask, gain=0.7, crop=(4, 0, 7, 3), seed=1)
    brighter = reshoot(image, mask, gain=1.3, crop=(0, 6, 2, 5), seed=2)
    assert same_defect_groups([(image, mask), (other_image, other_mask), again, brighter]) == [0, 1, 0, 0]


def test_the_same_picture_with_a_mask_elsewhere_is_another_defect():
    image, mask = render_frame("board", seed=5, index=2, kind="missing", size=320)
    elsewhere = np.zeros_like(mask)
    elsewhere[20:40, 20:60] = True
    assert not (mask & elsewhere).any()
    assert same_defect_groups([(image, mask), (image, elsewhere), (image, mask)]) == [0, 1, 0]


def test_featureless_pictures_stay_apart():
    flat = np.full((64, 64, 3), 128, np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[30:34, 30:34] = True
    assert same_defect_groups([(flat, mask), (flat, mask)]) == [0, 1]


def test_no_pictures():
    assert same_defect_groups([]) == []


def test_a_mask_of_one_pixel_survives_the_working_size():
    image, _ = render_frame("board", seed=1, index=0, size=640)
    mask = np.zeros(image.shape[:2], bool)
    mask[401, 203] = True
    turned = cv2.convertScaleAbs(image, alpha=0.8)
    assert same_defect_groups([(image, mask), (turned, mask)]) == [0, 0]
