import math
import threading

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.data.resize import fit
from adclick_edge.data.sample_line import render_frame
from adclick_edge.errors import LineError
from adclick_edge.line.config import Alarms
from adclick_edge.line.drift import SIGNALS, DriftMonitor
from adclick_edge.line.frame_stats import LARGEST_SHIFT, FrameStats, band, locate, measure

QUICK = Alarms(frames=10, reference_frames=20)


def a_picture(rng, *, shift=(0, 0), gain=1.0, blur=0.0, side=128):
    """A part with structure, always the same one, with noise of the sensor and a little play in its place."""
    scene = np.full((side, side, 3), 90, np.uint8)
    for x, y, radius, shade in ((30, 40, 12, 200), (90, 30, 8, 30), (60, 95, 18, 160), (100, 90, 6, 240)):
        cv2.circle(scene, (x, y), radius, (shade, shade, shade), -1)
    x, y = shift + rng.normal(0, 0.3, 2)
    frame = cv2.warpAffine(scene, np.float32([[1, 0, x], [0, 1, y]]), (side, side), borderMode=cv2.BORDER_REFLECT)
    frame = cv2.GaussianBlur(frame, (0, 0), 0.7 + blur)
    return np.clip(frame * (gain * rng.normal(1, 0.01)) + rng.normal(0, 2, frame.shape), 0, 255).astype(np.uint8)


def learned(rng, alarms=QUICK, score=1.0):
    monitor = DriftMonitor(alarms)
    for _ in range(alarms.reference_frames):
        assert monitor.add("cam", "part", measure(a_picture(rng)), rng.normal(score, 0.1), "ok") == ()
    return monitor


def feed(monitor, rng, frames=40, score=1.0, verdict="ok", **change):
    on = ()
    for _ in range(frames):
        on = monitor.add("cam", "part", measure(a_picture(rng, **change)), rng.normal(score, 0.1), verdict)
    return on


# ---- what is measured


def test_light_and_focus_of_known_pictures():
    grey = np.full((100, 80, 3), 77, np.uint8)
    assert measure(grey).light == pytest.approx(77)
    assert measure(grey).focus == 0
    rng = np.random.default_rng(0)
    sharp = [measure(a_picture(rng)).focus for _ in range(5)]
    soft = [measure(a_picture(rng, blur=1)).focus for _ in range(5)]
    dim = [measure(a_picture(rng, gain=0.7)).focus for _ in range(5)]
    assert max(soft) < 0.8 * min(sharp)
    assert np.mean(dim) == pytest.approx(np.mean(sharp), rel=0.15)


@settings(deadline=None, max_examples=25)
@given(st.floats(-12, 12), st.floats(-12, 12), st.integers(0, 99))
def test_a_part_is_found_where_it_is(x, y, seed):
    rng = np.random.default_rng(seed)
    reference = band(measure(a_picture(rng)).small)
    found_x, found_y, match = locate(reference, band(measure(a_picture(rng, shift=(x, y))).small))
    assert match > 0.8
    assert math.hypot(found_x - x / 128, found_y - y / 128) < 0.02


def test_pictures_of_every_size_are_measured_and_others_refused():
    rng = np.random.default_rng(0)
    for height, width in ((3, 3), (40, 700), (900, 600), (256, 256)):
        stats = measure(rng.integers(0, 255, (height, width, 3), np.uint8))
        assert 0 <= stats.light <= 255
        assert math.isfinite(stats.focus)
        assert stats.small.shape == (64, 64)
    for bad in (np.zeros((10, 10), np.uint8), np.zeros((10, 10, 3), np.float32), np.zeros((1, 9, 3), np.uint8)):
        with pytest.raises(LineError, match="expected uint8"):
            measure(bad)


# ---- alarms


@pytest.mark.parametrize(
    ("alarm", "change"),
    [
        ("light", {"gain": 0.8}),
        ("light", {"gain": 1.25}),
        ("focus", {"blur": 1.2}),
        ("position", {"shift": (5, 0)}),
        ("position", {"shift": (0, -6)}),
        ("position", {"shift": (60, 50)}),
        ("score", {"score": 3.0}),
    ],
)
def test_a_change_rings_its_alarm_and_its_end_stops_it(alarm, change):
    rng = np.random.default_rng(1)
    monitor = learned(rng)
    assert feed(monitor, rng, frames=5) == ()
    on = feed(monitor, rng, **change)
    assert alarm in on
    if alarm in ("light", "score"):
        assert on == (alarm,)
    state = monitor.states()["cam", "part"][alarm]
    assert state.alarm
    assert abs(state.deviation) > 6
    assert monitor.alarms("part") == on
    assert monitor.alarms("other") == ()
    assert feed(monitor, rng, frames=60) == ()


def test_position_says_how_far_and_light_how_bright():
    rng = np.random.default_rng(2)
    monitor = learned(rng)
    feed(monitor, rng, frames=60, shift=(1.0, 0))
    states = monitor.states()["cam", "part"]
    assert states["position"].value == pytest.approx(1 / 128, abs=0.004)
    assert states["light"].value == pytest.approx(states["light"].reference, rel=0.02)
    assert 0 <= states["position"].value <= LARGEST_SHIFT


def test_ten_thousand_frames_of_noise_ring_nothing():
    rng = np.random.default_rng(3)
    monitor = DriftMonitor(Alarms())
    stats = [measure(a_picture(rng)) for _ in range(200)]
    rung = set()
    for _ in range(10_000):
        one = stats[rng.integers(len(stats))]
        noisy = FrameStats(one.light + rng.normal(0, 1), one.focus * rng.normal(1, 0.03), one.small)
        rung.update(monitor.add("cam", "part", noisy, rng.gamma(8, 0.1), "ok"))
    assert rung == set()
    assert all(state.state == "watching" for state in monitor.states()["cam", "part"].values())


def test_one_black_frame_or_a_few_defects_ring_nothing():
    rng = np.random.default_rng(4)
    monitor = learned(rng, Alarms(frames=50, reference_frames=30))
    black = measure(np.zeros((128, 128, 3), np.uint8))
    assert monitor.add("cam", "part", black, 1e6, "ng") == ()
    for frame in range(200):
        score = 50.0 if frame % 10 == 0 else rng.normal(1, 0.1)
        assert monitor.add("cam", "part", measure(a_picture(rng)), score, "ng" if score > 10 else "ok") == ()


def test_an_alarm_does_not_flicker_at_its_threshold():
    monitor = DriftMonitor(Alarms(frames=2, reference_frames=2, light=6))
    small = np.zeros((64, 64), np.uint8)

    def lit(light):
        return monitor.add("cam", "part", FrameStats(light, 1.0, small), 1.0, "ok")

    for _ in range(2):
        lit(100.0)  # a spread of 1 %
    for _ in range(50):
        on = lit(106.5)
    assert on == ("light",)
    for _ in range(50):
        on = lit(105.0)
    assert on == ("light",)
    for _ in range(50):
        on = lit(104.0)
    assert on == ()
    for _ in range(50):
        on = lit(105.9)
    assert on == ()


def test_only_good_frames_are_the_reference():
    rng = np.random.default_rng(5)
    monitor = DriftMonitor(QUICK)
    feed(monitor, rng, frames=50, verdict="ng")
    feed(monitor, rng, frames=50, verdict="uncertain")
    assert monitor.states()["cam", "part"]["light"].state == "learning"
    assert monitor.states()["cam", "part"]["light"].learned == 0
    for _ in range(20):
        monitor.add("cam", "part", measure(a_picture(rng)), 1.0, "uncertain", calibrated=False)
    assert monitor.states()["cam", "part"]["light"].state == "watching"


def test_cameras_and_products_have_references_of_their_own():
    rng = np.random.default_rng(6)
    monitor = learned(rng)
    for _ in range(60):
        assert monitor.add("other", "part", measure(a_picture(rng, gain=0.5)), 9.0, "ok") == ()
    assert set(monitor.states()) == {("cam", "part"), ("other", "part")}


def test_a_threshold_of_zero_turns_an_alarm_off():
    rng = np.random.default_rng(7)
    monitor = learned(rng, Alarms(frames=10, reference_frames=20, light=0))
    assert "light" not in feed(monitor, rng, gain=0.3)
    assert monitor.states()["cam", "part"]["light"].state == "off"
    assert abs(monitor.states()["cam", "part"]["light"].deviation) > 6


def test_values_that_are_no_numbers_change_nothing():
    rng = np.random.default_rng(8)
    monitor = learned(rng)
    before = monitor.states()["cam", "part"]["score"]
    stats = measure(a_picture(rng))
    for score in (math.nan, math.inf, None):
        monitor.add("cam", "part", stats, score, "ok")
    assert monitor.states()["cam", "part"]["score"] == before


@pytest.mark.parametrize(("product", "state"), [("board", "watching"), ("fabric", "off")])
def test_on_real_parts(product, state):
    """A texture has no position; an assembly has, and its light, blur and shift are told apart."""
    parts = [fit(render_frame(product, seed=4, index=i, split="train", size=256)[0], (256, 256)) for i in range(16)]
    monitor = DriftMonitor(Alarms(frames=8, reference_frames=32))

    def run(change, frames=32):
        on = ()
        for number in range(frames):
            on = monitor.add("cam", product, measure(change(parts[number % 16])), 1.0, "ok")
        return on

    assert run(lambda part: part, frames=96) == ()
    assert monitor.states()["cam", product]["position"].state == state
    assert "light" in run(lambda part: np.clip(part * 0.75, 0, 255).astype(np.uint8))
    assert run(lambda part: part, frames=64) == ()
    assert "focus" in run(lambda part: cv2.GaussianBlur(part, (0, 0), 1.6))
    assert run(lambda part: part, frames=64) == ()
    moved = run(lambda part: np.roll(part, 14, 1))
    assert ("position" in moved) == (state == "watching")


# ---- over a restart


def test_a_restart_keeps_references_and_alarms(tmp_path):
    rng = np.random.default_rng(9)
    monitor = learned(rng)
    assert monitor.changed
    feed(monitor, rng, gain=0.8)
    monitor.save(tmp_path / "drift.json")
    assert not monitor.changed
    again = DriftMonitor(QUICK)
    assert again.load(tmp_path / "drift.json")
    assert again.states() == monitor.states()
    assert feed(again, rng, frames=1, gain=0.8) == ("light",)


def test_a_restart_goes_on_learning_where_it_was(tmp_path):
    rng = np.random.default_rng(10)
    monitor = DriftMonitor(QUICK)
    feed(monitor, rng, frames=12)
    monitor.save(tmp_path / "drift.json")
    again = DriftMonitor(QUICK)
    again.load(tmp_path / "drift.json")
    feed(again, rng, frames=8)
    assert {state.state for state in again.states()["cam", "part"].values()} == {"watching"}


def test_without_a_file_there_is_nothing_to_load(tmp_path):
    assert not DriftMonitor(QUICK).load(tmp_path / "none.json")


def _without(key):
    return lambda saved: saved["watches"][0]["channels"].pop(key)


@pytest.mark.parametrize(
    "damage",
    [
        _without("light"),
        lambda saved: saved["watches"][0].update(template="AAAA"),
        lambda saved: saved["watches"][0]["channels"]["x"].update(spread=0),
        lambda saved: saved["watches"][0].update(unknown=1),
        lambda saved: saved.pop("watches"),
    ],
)
def test_a_damaged_file_is_refused_whole(tmp_path, damage):
    path = tmp_path / "drift.json"
    learned(np.random.default_rng(11)).save(path)
    saved = msgspec.json.decode(path.read_bytes())
    damage(saved)
    path.write_bytes(msgspec.json.encode(saved))
    monitor = DriftMonitor(QUICK)
    with pytest.raises(LineError, match=r"damaged.*remove the file"):
        monitor.load(path)
    assert monitor.states() == {}


def test_what_is_no_json_is_refused(tmp_path):
    (tmp_path / "drift.json").write_bytes(b"\xff{")
    with pytest.raises(LineError, match="damaged"):
        DriftMonitor(QUICK).load(tmp_path / "drift.json")


def test_a_reset_learns_anew_and_leaves_the_rest():
    rng = np.random.default_rng(12)
    monitor = learned(rng)
    assert feed(monitor, rng, score=3.0) == ("score",)
    monitor.reset(None, "part", ("score",))
    states = monitor.states()["cam", "part"]
    assert [states[signal].state for signal in SIGNALS] == ["watching", "watching", "watching", "learning"]
    assert feed(monitor, rng, score=3.0, frames=40) == ()
    monitor.reset("cam", "part")
    assert {state.state for state in monitor.states()["cam", "part"].values()} == {"learning"}
    monitor.reset("cam", "unknown")


def test_threads_may_add_and_look_at_once():
    rng = np.random.default_rng(13)
    monitor = DriftMonitor(QUICK)
    stats = [measure(a_picture(rng)) for _ in range(20)]
    errors = []

    def add(camera):
        try:
            for number in range(100):
                monitor.add(camera, "part", stats[number % 20], 1.0, "ok")
                monitor.states()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=add, args=(f"cam{i}",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(monitor.states()) == 3
