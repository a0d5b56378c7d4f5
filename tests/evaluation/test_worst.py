import tracemalloc

import numpy as np
import pytest

from adclick_edge.errors import DataError, UsageError
from adclick_edge.evaluation.worst import MAX_SIDE_PX, WorstCollector

FRAME = np.zeros((10, 12, 3), dtype=np.uint8)
FLAT = np.zeros((10, 12), dtype=np.float32)
MASK = np.zeros((10, 12), dtype=np.bool_)
MASK[2:5, 3:6] = True


def names(collector: WorstCollector, kind: str) -> list[str]:
    return [image.name for image in collector.images() if image.kind == kind]


def test_lists_hold_the_worst_first_and_no_more() -> None:
    collector = WorstCollector(per_list=3)
    rng = np.random.default_rng(0)
    for score in rng.permutation(20):
        collector.add(f"good {score}", FRAME, FLAT, None, float(score))
        collector.add(f"bad {score}", FRAME, FLAT, MASK, float(score))
    assert names(collector, "missed") == ["bad 0", "bad 1", "bad 2"]
    assert names(collector, "false_alarm") == ["good 19", "good 18", "good 17"]
    assert len(names(collector, "overlap")) == 3


def test_of_equals_the_first_stays() -> None:
    collector = WorstCollector(per_list=2)
    for index in range(5):
        collector.add(str(index), FRAME, FLAT, None, 1.0)
    assert names(collector, "false_alarm") == ["0", "1"]


def test_overlap_is_the_best_over_thresholds() -> None:
    collector = WorstCollector()
    exact = MASK * np.float32(3) - 7
    half = exact.copy()
    half[2:5, 6:9] = half.max()  # as many false pixels as true ones
    collector.add("exact", FRAME, exact, MASK, -4.0)
    collector.add("half", FRAME, half, MASK, -4.0)
    collector.add("flat", FRAME, FLAT, MASK, 0.0)
    overlaps = {image.name: image.overlap for image in collector.images() if image.kind == "overlap"}
    assert overlaps == pytest.approx({"flat": 9 / 120, "half": 0.5, "exact": 1.0})
    assert list(overlaps) == ["flat", "half", "exact"]


def test_defect_without_mask_is_only_listed_as_missed() -> None:
    collector = WorstCollector()
    collector.add("unmasked", FRAME, FLAT, None, 0.0, defective=True)
    assert [(image.kind, image.overlap) for image in collector.images()] == [("missed", None)]


def test_large_images_are_reduced_and_their_peaks_stay() -> None:
    frame = np.zeros((1000, 2000, 3), dtype=np.uint8)
    anomaly_map = np.zeros((1000, 2000), dtype=np.float32)
    mask = np.zeros((1000, 2000), dtype=np.bool_)
    anomaly_map[501, 1203] = 9.0
    mask[77, 1999] = True
    collector = WorstCollector()
    collector.add("large", frame, anomaly_map, mask, 9.0)
    image = collector.images()[0]
    assert image.frame.shape == (MAX_SIDE_PX // 2, MAX_SIDE_PX, 3)
    assert image.anomaly_map.shape == image.mask.shape == image.frame.shape[:2]
    y, x = np.unravel_index(np.argmax(image.anomaly_map), image.anomaly_map.shape)
    assert image.anomaly_map.max() == 9.0
    assert abs(y - 100) <= 1
    assert abs(x - 240) <= 1
    assert image.mask.any()


def test_ignored_pixels_do_not_glow() -> None:
    anomaly_map = FLAT.copy()
    anomaly_map[0, 0] = np.inf
    valid = np.ones_like(MASK)
    valid[0, 0] = False
    collector = WorstCollector()
    collector.add("frame", FRAME, anomaly_map, MASK, 0.0, valid=valid)
    assert collector.images()[0].anomaly_map.max() == 0.0


def test_memory_is_bounded() -> None:
    collector = WorstCollector(per_list=2)
    frame = np.zeros((600, 600, 3), dtype=np.uint8)
    anomaly_map = np.zeros((600, 600), dtype=np.float32)
    tracemalloc.start()
    try:
        for index in range(40):
            collector.add(str(index), frame, anomaly_map, None, float(index))
        held_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held_bytes < 2 * 1.3e6 + 1e5


def test_wrong_input_is_refused() -> None:
    with pytest.raises(UsageError, match="per_list"):
        WorstCollector(per_list=0)
    with pytest.raises(UsageError, match="crack: the frame is"):
        WorstCollector().add("crack", FRAME[..., 0], FLAT, None, 0.0)
    with pytest.raises(DataError, match="crack: the score is nan"):
        WorstCollector().add("crack", FRAME, FLAT, None, float("nan"))
