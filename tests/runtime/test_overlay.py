import cv2
import numpy as np
import pytest

from adclick_edge.errors import UsageError
from adclick_edge.runtime.overlay import CONTOUR_RGB, TRUTH_RGB, draw_overlay


@pytest.fixture
def frame() -> np.ndarray:
    return np.random.default_rng(0).integers(60, 120, (80, 100, 3)).astype(np.uint8)


def has_colour(image: np.ndarray, rgb: tuple[int, int, int]) -> bool:
    return bool(np.any(np.all(image == rgb, axis=-1)))


def test_frame_shows_untouched_up_to_low(frame: np.ndarray) -> None:
    drawn = draw_overlay(frame, np.full((80, 100), -4.0, dtype=np.float32), low=-4.0, high=-2.0)
    np.testing.assert_array_equal(drawn, frame)
    assert not np.shares_memory(drawn, frame)


def test_heat_lies_where_the_map_exceeds_low_and_nowhere_else(frame: np.ndarray) -> None:
    anomaly_map = np.zeros((80, 100), dtype=np.float32)
    anomaly_map[20:40, 30:60] = 1.0
    drawn = draw_overlay(frame, anomaly_map, low=0.5, high=2.0)
    changed = np.any(drawn != frame, axis=-1)
    np.testing.assert_array_equal(changed, anomaly_map > 0.5)
    assert not has_colour(drawn, CONTOUR_RGB)


def test_contour_at_high_and_truth_in_its_own_colour(frame: np.ndarray) -> None:
    anomaly_map = np.zeros((80, 100), dtype=np.float32)
    anomaly_map[20:40, 30:60] = 2.0
    mask = np.zeros((80, 100), dtype=np.bool_)
    mask[55:70, 70:90] = True
    without, with_truth = (draw_overlay(frame, anomaly_map, low=0.5, high=2.0, mask=m) for m in (None, mask))
    assert has_colour(without, CONTOUR_RGB)
    assert not has_colour(without, TRUTH_RGB)
    assert has_colour(with_truth, TRUTH_RGB)
    ys, xs = np.nonzero(np.all(with_truth == TRUTH_RGB, axis=-1))
    assert ys.min() >= 52
    assert xs.min() >= 67


def test_hotter_is_brighter(frame: np.ndarray) -> None:
    grey = np.full_like(frame, 90)
    ramp = np.tile(np.linspace(0, 1, 100, dtype=np.float32), (80, 1))
    drawn = draw_overlay(grey, ramp, low=-0.01, high=5.0)
    lightness = cv2.cvtColor(drawn, cv2.COLOR_RGB2LAB)[40, :, 0].astype(int)
    assert np.all(np.diff(lightness) >= -1)
    assert drawn.shape == frame.shape


def test_coarse_map_is_stretched_over_the_frame(frame: np.ndarray) -> None:
    anomaly_map = np.zeros((8, 10), dtype=np.float32)
    anomaly_map[2, 3] = 4.0
    changed = np.any(draw_overlay(frame, anomaly_map, low=1.0, high=9.0) != frame, axis=-1)
    ys, xs = np.nonzero(changed)
    assert abs(ys.mean() - 24.5) < 1
    assert abs(xs.mean() - 34.5) < 1


@pytest.mark.filterwarnings("error")
def test_what_is_not_inspected_may_be_infinite_or_nan(frame: np.ndarray) -> None:
    anomaly_map = np.zeros((80, 100), dtype=np.float32)
    anomaly_map[:5] = -np.inf
    anomaly_map[5:10] = np.nan
    anomaly_map[60:, 60:] = np.finfo(np.float32).max
    drawn = draw_overlay(frame, anomaly_map, low=1.0, high=2.0)
    np.testing.assert_array_equal(drawn[:55], frame[:55])


def test_outside_the_regions_nothing_but_the_dimmed_frame_is_drawn(frame: np.ndarray) -> None:
    anomaly_map = np.zeros((8, 10), dtype=np.float32)
    anomaly_map[:, 5:] = 9.0
    anomaly_map[0, 9] = np.nan
    valid = np.zeros((8, 10), dtype=np.bool_)
    valid[:, :5] = True
    drawn = draw_overlay(frame, anomaly_map, low=0.5, high=2.0, valid=valid)
    np.testing.assert_array_equal(drawn[:, :50], frame[:, :50])  # nor does heat leak in over the border
    np.testing.assert_array_equal(drawn[:, 50:], np.rint(frame[:, 50:] * 0.6).astype(np.uint8))
    anomaly_map[4, 2] = 4.0
    assert has_colour(draw_overlay(frame, anomaly_map, low=0.5, high=2.0, valid=valid)[:, :50], CONTOUR_RGB)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (np.nan, 1.0), (0.0, np.inf)])
def test_wrong_range_is_refused(frame: np.ndarray, low: float, high: float) -> None:
    with pytest.raises(UsageError, match="low < high"):
        draw_overlay(frame, np.zeros((8, 8), dtype=np.float32), low=low, high=high)


def test_wrong_arrays_are_refused(frame: np.ndarray) -> None:
    anomaly_map = np.zeros((80, 100), dtype=np.float32)
    with pytest.raises(UsageError, match="the frame is uint8"):
        draw_overlay(frame[..., 0], anomaly_map, low=0.0, high=1.0)
    with pytest.raises(UsageError, match="the map is float64"):
        draw_overlay(frame, anomaly_map.astype(np.float64), low=0.0, high=1.0)
    with pytest.raises(UsageError, match="the mask is bool"):
        draw_overlay(frame, anomaly_map, low=0.0, high=1.0, mask=np.zeros((8, 8), dtype=np.bool_))
    with pytest.raises(UsageError, match="valid is bool"):
        draw_overlay(frame, anomaly_map, low=0.0, high=1.0, valid=np.zeros((8, 8), dtype=np.bool_))
