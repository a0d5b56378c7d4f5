"""Whether light, focus, position or scores move away from what the good frames of a product showed: alarms, not verdicts.

The first good frames of a camera and product are the reference: the median of each signal and its spread, from the median
absolute deviation. Every later frame is some standard deviations away from that; their exponential mean over
``Alarms.frames`` is the deviation. An alarm goes on where it exceeds its threshold, and off below ``RELEASE`` of it. One
frame counts as at most twice the threshold, so that a single black picture or a run of defects rings no alarm.
"""

import math
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from adclick_edge.errors import LineError
from adclick_edge.files import write_bytes
from adclick_edge.line.config import Alarms
from adclick_edge.line.frame_stats import LARGEST_SHIFT, SMALL_SIDE, FrameStats, band, locate, measure
from adclick_edge.runtime.decision import Verdict

__all__ = ["SIGNALS", "DriftMonitor", "Signal", "SignalState"]

F32 = npt.NDArray[np.float32]

Signal = Literal["light", "focus", "position", "score"]
SIGNALS: tuple[Signal, ...] = ("light", "focus", "position", "score")

RELEASE = 0.7
TEMPLATE_FRAMES = 16
"""Whose mean is the reference that positions are measured against."""
LEAST_MATCH = 0.6
"""Median correlation with the reference below which a product has no position: a texture, parts that lie anyhow."""
LARGEST_SPREAD = 2 / SMALL_SIDE
"""Spread of the positions of good frames above which position says nothing."""
LOST_MATCH = 0.5
"""A frame whose correlation is below this share of the usual one is out of place, further than can be measured."""
SCHEMA = 1

_CHANNELS: dict[Signal, tuple[str, ...]] = {
    "light": ("light",),
    "focus": ("focus",),
    "position": ("x", "y"),
    "score": ("score",),
}


class SignalState(msgspec.Struct, frozen=True, kw_only=True):
    """For metrics. ``value`` and ``reference`` in the signal's unit: grey levels, 1, fractions of the frame, raw score;
    ``deviation`` in standard deviations of the reference frames, of position along the axis that is further off."""

    state: Literal["learning", "watching", "off"]
    learned: int
    """Reference frames so far."""
    value: float | None = None
    reference: float | None = None
    deviation: float = 0.0
    alarm: bool = False


class _Channel(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    values: list[float] = []
    """Of the reference frames, until there are enough."""
    learned: int = 0
    centre: float | None = None
    spread: float = 1.0
    deviation: float = 0.0


class _Watch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One camera and product. The template is float32 [SMALL_SIDE, SMALL_SIDE]."""

    camera: str
    product: str
    channels: dict[str, _Channel]
    alarms: tuple[Signal, ...] = ()
    template: bytes | None = None
    waiting: list[bytes] = []
    matches: list[float] = []
    match: float = 0.0
    has_position: bool = True


class _Saved(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    schema: int = SCHEMA
    watches: list[_Watch]


class DriftMonitor:
    """Thread-safe."""

    def __init__(self, alarms: Alarms) -> None:
        self._alarms = alarms
        self._thresholds: dict[Signal, float] = {signal: getattr(alarms, signal) for signal in SIGNALS}
        self._lock = threading.Lock()
        self._watches: dict[tuple[str, str], _Watch] = {}
        self._changed = False

    @staticmethod
    def measure(frame_input: npt.NDArray[np.uint8]) -> FrameStats:
        """`frame_stats.measure`; needs no lock, so that whichever thread has the pixels can do it."""
        return measure(frame_input)

    @property
    def changed(self) -> bool:
        """Whether a reference was learned or dropped since the last `save`."""
        return self._changed

    def add(
        self,
        camera: str,
        product: str,
        stats: FrameStats,
        score: float | None,
        verdict: Verdict,
        *,
        calibrated: bool = True,
    ) -> tuple[Signal, ...]:
        """Count a frame; the alarms that are on now. Without thresholds (``calibrated``) every frame is a reference."""
        good = verdict == "ok" or (verdict == "uncertain" and not calibrated)
        with self._lock:
            watch = self._watch(camera, product)
            self._count(watch, "light", stats.light, good)
            self._count(watch, "focus", stats.focus, good)
            if score is not None:
                self._count(watch, "score", score, good)
            if watch.has_position:
                self._place(watch, stats, good)
            watch.alarms = tuple(signal for signal in SIGNALS if self._rings(watch, signal))
            return watch.alarms

    def alarms(self, product: str) -> tuple[Signal, ...]:
        """Alarms that are on for the product, at whichever camera."""
        with self._lock:
            on = {alarm for watch in self._watches.values() if watch.product == product for alarm in watch.alarms}
        return tuple(signal for signal in SIGNALS if signal in on)

    def states(self) -> dict[tuple[str, str], dict[Signal, SignalState]]:
        """Of every camera and product seen."""
        with self._lock:
            return {key: {s: self._state(watch, s) for s in SIGNALS} for key, watch in self._watches.items()}

    def reset(self, camera: str | None, product: str, signals: Collection[Signal] = SIGNALS) -> None:
        """Forget what was learned of a product's signals (all cameras for None), and learn it anew from now on.

        After a change of lamp, optics or fixture; ``("score",)`` after another bundle or other weights.
        """
        with self._lock:
            for watch in self._watches.values():
                if watch.product != product or camera not in (None, watch.camera):
                    continue
                for signal in signals:
                    watch.channels.update((name, _Channel()) for name in _CHANNELS[signal])
                if "position" in signals:
                    watch.template, watch.waiting, watch.matches, watch.has_position = None, [], [], True
                watch.alarms = tuple(alarm for alarm in watch.alarms if alarm not in signals)
                self._changed = True

    def save(self, path: Path) -> None:
        """References, deviations and alarms, as JSON, in one atomic step. OSError where the disk refuses."""
        with self._lock:
            data = msgspec.json.encode(_Saved(watches=list(self._watches.values())))
            self._changed = False
        try:
            write_bytes(path, data)
        except OSError:
            self._changed = True
            raise

    def load(self, path: Path) -> bool:
        """Go on from what `save` wrote, so that a restart does not learn drifted light as the reference.

        False where there is no such file. Raises LineError for one that is damaged; nothing is taken over then.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise LineError(f"{path}: the drift references cannot be read: {error}; check permissions") from error
        try:
            saved = msgspec.json.decode(data, type=_Saved)
            for watch in saved.watches:
                _check(watch)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise LineError(
                f"{path}: the drift references are damaged: {error}; remove the file, and they are learned anew"
            ) from error
        with self._lock:
            self._watches = {(watch.camera, watch.product): watch for watch in saved.watches}
            self._changed = False
        return True

    def _watch(self, camera: str, product: str) -> _Watch:
        key = camera, product
        if key not in self._watches:
            channels = {name: _Channel() for names in _CHANNELS.values() for name in names}
            self._watches[key] = _Watch(camera=camera, product=product, channels=channels)
        return self._watches[key]

    def _count(self, watch: _Watch, name: str, value: float, good: bool, *, lost: bool = False) -> None:
        if not math.isfinite(value):
            return
        channel = watch.channels[name]
        if channel.centre is None:
            if good:
                channel.values.append(value)
                channel.learned += 1
                if channel.learned >= self._alarms.reference_frames:
                    self._conclude(watch, name)
            return
        signal: Signal = next(signal for signal, names in _CHANNELS.items() if name in names)
        limit = 2 * (self._thresholds[signal] or 6.0)
        away = limit if lost else (value - channel.centre) / channel.spread
        share = 2 / (self._alarms.frames + 1)
        channel.deviation += share * (min(limit, max(-limit, away)) - channel.deviation)

    def _conclude(self, watch: _Watch, name: str) -> None:
        """The reference from its frames; `_least_spread` keeps a line as still as a photograph from ringing for nothing."""
        channel = watch.channels[name]
        values = np.array(channel.values)
        centre = float(np.median(values))
        spread = 1.4826 * float(np.median(np.abs(values - centre)))  # the standard deviation, were they normal
        channel.values = []
        channel.centre, channel.spread = centre, max(spread, _least_spread(name, centre))
        self._changed = True
        if name in _CHANNELS["position"]:
            watch.match = float(np.median(watch.matches))
            if watch.match < LEAST_MATCH or spread > LARGEST_SPREAD:
                watch.has_position = False
            if name == "y":
                watch.matches = []

    def _place(self, watch: _Watch, stats: FrameStats, good: bool) -> None:
        if watch.template is None:
            if good:
                watch.waiting.append(stats.small.tobytes())
                if len(watch.waiting) >= min(TEMPLATE_FRAMES, self._alarms.reference_frames):
                    self._make_template(watch)
            return
        if watch.has_position:
            self._find(watch, band(stats.small), good)

    def _make_template(self, watch: _Watch) -> None:
        shape = SMALL_SIDE, SMALL_SIDE
        bands = [band(np.frombuffer(small, np.uint8).reshape(shape)) for small in watch.waiting]
        watch.template, watch.waiting = np.mean(bands, axis=0, dtype=np.float32).tobytes(), []
        for seen in bands:
            self._find(watch, seen, True)

    def _find(self, watch: _Watch, seen: F32, good: bool) -> None:
        template = np.frombuffer(watch.template or b"", np.float32).reshape(SMALL_SIDE, SMALL_SIDE)
        x, y, match = locate(template, seen)
        if watch.channels["y"].centre is None and good:
            watch.matches.append(match)
        lost = match < LOST_MATCH * watch.match
        self._count(watch, "x", x, good, lost=lost)
        self._count(watch, "y", y, good, lost=lost)

    def _rings(self, watch: _Watch, signal: Signal) -> bool:
        threshold = self._thresholds[signal]
        if threshold == 0 or (signal == "position" and not watch.has_position):
            return False
        away = max(abs(watch.channels[name].deviation) for name in _CHANNELS[signal])
        return away > (RELEASE * threshold if signal in watch.alarms else threshold)

    def _state(self, watch: _Watch, signal: Signal) -> SignalState:
        channels = [watch.channels[name] for name in _CHANNELS[signal]]
        learned = channels[0].learned
        if signal == "position" and not watch.has_position:
            return SignalState(state="off", learned=learned)
        centres = [channel.centre for channel in channels if channel.centre is not None]
        if len(centres) < len(channels):
            return SignalState(state="learning", learned=learned)
        worst = max(channels, key=lambda channel: abs(channel.deviation))
        values = [centre + c.deviation * c.spread for centre, c in zip(centres, channels, strict=True)]
        position = signal == "position"
        return SignalState(
            state="watching" if self._thresholds[signal] else "off",
            learned=learned,
            value=min(math.hypot(*values), LARGEST_SHIFT) if position else values[0],
            reference=math.hypot(*centres) if position else centres[0],
            deviation=worst.deviation,
            alarm=signal in watch.alarms,
        )


def _least_spread(name: str, centre: float) -> float:
    """1 % and half a level of light, 2 % of focus, a tenth of a small pixel, 2 % and 0.01 of the score."""
    return {
        "light": max(0.5, 0.01 * centre),
        "focus": max(1e-4, 0.02 * centre),
        "x": 0.1 / SMALL_SIDE,
        "y": 0.1 / SMALL_SIDE,
        "score": max(0.01, 0.02 * abs(centre)),
    }[name]


def _check(watch: _Watch) -> None:
    where = f"{watch.camera}, {watch.product}"
    if set(watch.channels) != {name for names in _CHANNELS.values() for name in names}:
        raise ValueError(f"{where}: the signals {sorted(watch.channels)}")
    if watch.template is not None and len(watch.template) != 4 * SMALL_SIDE**2:
        raise ValueError(f"{where}: a template of {len(watch.template)} bytes")
    if any(len(small) != SMALL_SIDE**2 for small in watch.waiting):
        raise ValueError(f"{where}: a reference picture of the wrong size")
    for name, channel in watch.channels.items():
        numbers = [channel.spread, channel.deviation, *channel.values]
        numbers += [] if channel.centre is None else [channel.centre]
        if not all(math.isfinite(number) for number in numbers) or channel.spread <= 0:
            raise ValueError(f"{where}: {name} is not a usable reference")
