"""A tally as Prometheus metrics: names, units and bounded labels."""

from collections.abc import Iterator, Mapping, Set
from datetime import datetime
from typing import Final, get_args

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from adclick_edge import __version__
from adclick_edge.line.protocol import ErrorCode
from adclick_edge.line.tally import CameraTally, LineTally, ProductTally
from adclick_edge.runtime.decision import Reason, Verdict

__all__ = ["ALARMS", "tally_metrics"]

ALARMS: Final = ("light", "focus", "position", "score")
OTHER: Final = "other"
REASONS: Final = frozenset(get_args(Reason))
CODES: Final = frozenset(get_args(ErrorCode))
CHANGES: Final = frozenset(f"{a}->{b}" for a in get_args(Verdict) for b in get_args(Verdict))

_CAMERA_COUNTERS: Final = (
    ("frames_received", "received", "Frames received."),
    ("triggers_missed", "missed", "Triggers whose frames never arrived, by gaps in the sequence numbers."),
    ("verdicts_undelivered", "undelivered", "Verdicts whose camera was gone when they were sent."),
    ("verdicts_late", "late", "Verdicts sent after the deadline."),
    ("results_late", "late_results", "Results for frames that had been answered with not_inspected(deadline)."),
    ("bad_messages", "bad_messages", "Messages that could not be taken."),
    ("sessions", "sessions", "Hellos accepted."),
)
_CAMERA_GAUGES: Final = (
    ("frames_pending", "pending", "Frames received and not answered yet."),
    ("queue_frames", "queue", "Frames that wait to be judged."),
    ("camera_connected", "connected", "1 while the camera is connected."),
)
_PRODUCT_COUNTERS: Final = (
    ("swaps", "swaps", "Bundles swapped in."),
    ("swap_failures", "failed_swaps", "Bundles refused; the one before went on serving."),
    ("shadow_frames", "shadow_frames", "Frames that the shadow candidate judged too."),
    ("shadow_failures", "shadow_failures", "Frames on which the shadow candidate failed."),
)
_ROUTED: Final = ("queued", "duplicate", "over_budget", "failed")


def tally_metrics(
    tally: LineTally,
    cameras: Set[str],
    products: Set[str],
    deviations: Mapping[str, Mapping[str, float]],
) -> Iterator[Metric]:
    """The metrics of one tally. Only ``cameras`` and ``products`` become labels, whatever the tally names."""
    yield from _line(tally)
    yield from _cameras({name: tally.cameras[name] for name in sorted(cameras & tally.cameras.keys())})
    yield from _products({name: tally.products[name] for name in sorted(products & tally.products.keys())}, deviations)
    yield from _routing(tally)


def _line(tally: LineTally) -> Iterator[Metric]:
    info = _gauge("info", "Always 1; what runs here.", "line", "version")
    info.add_metric([tally.name, __version__], 1)
    yield info
    yield _single("ready", "1 when all products are loaded and frames are judged.", tally.ready)
    yield _single("stopping", "1 while the daemon answers what it has taken and takes no more.", tally.stopping)
    yield _single("uptime_seconds", "Since the daemon started.", tally.uptime_s)
    yield _single("frames_per_second", "Answers over the last seconds.", tally.frames_per_s)
    yield _single("tally_timestamp_seconds", "When these counts were taken, Unix time.", _unix_seconds(tally.taken_utc))
    unbalanced = sum(not camera.balanced() for camera in tally.cameras.values())
    yield _single("books_unbalanced", "Cameras whose counts do not add up: always 0.", unbalanced)
    strangers = _counter("stranger_messages", "Messages that belong to no camera, by error code.", "code")
    for code, count in _bounded(tally.strangers, CODES).items():
        strangers.add_metric([code], count)
    yield strangers


def _cameras(tallies: Mapping[str, CameraTally]) -> Iterator[Metric]:
    info = _gauge("camera_info", "Always 1; the product that the camera looks at.", "camera", "product")
    verdicts = _counter("verdicts", "Frames answered.", "camera", "verdict", "reason")
    for name, camera in tallies.items():
        info.add_metric([name, camera.product], 1)
        for verdict, count in (("ok", camera.ok), ("ng", camera.ng), ("uncertain", camera.uncertain)):
            verdicts.add_metric([name, verdict, ""], count)
        for reason, count in _bounded(camera.not_inspected, REASONS).items():
            verdicts.add_metric([name, "not_inspected", reason], count)
    yield info
    yield verdicts
    for metric, field, text in _CAMERA_COUNTERS:
        counter = _counter(metric, text, "camera")
        for name, camera in tallies.items():
            counter.add_metric([name], getattr(camera, field))
        yield counter
    for metric, field, text in _CAMERA_GAUGES:
        gauge = _gauge(metric, text, "camera")
        for name, camera in tallies.items():
            gauge.add_metric([name], getattr(camera, field))
        yield gauge


def _products(tallies: Mapping[str, ProductTally], deviations: Mapping[str, Mapping[str, float]]) -> Iterator[Metric]:
    info = _gauge("product_info", "Always 1; versions served and shadowed.", "product", "version", "shadow")
    differences = _counter("shadow_differences", "Frames judged otherwise by the candidate.", "product", "change")
    alarm = _gauge("alarm", "1 while the drift alarm is on.", "product", "kind")
    deviation = _gauge(
        "drift_deviations", "Distance from the reference frames, in standard deviations.", "product", "kind"
    )
    threshold = _gauge("threshold", "Scores below lower are ok, from upper on ng.", "product", "bound")
    for name, product in tallies.items():
        info.add_metric([name, product.version, product.shadow or ""], 1)
        for change, count in _bounded(product.shadow_changed, CHANGES).items():
            differences.add_metric([name, change], count)
        for kind in ALARMS:
            alarm.add_metric([name, kind], kind in product.alarms)
            if kind in deviations.get(name, {}):
                deviation.add_metric([name, kind], deviations[name][kind])
        for bound, value in (("lower", product.lower), ("upper", product.upper)):
            if value is not None:
                threshold.add_metric([name, bound], value)
    yield from (info, differences, alarm, deviation, threshold)
    for metric, field, text in _PRODUCT_COUNTERS:
        counter = _counter(metric, text, "product")
        for name, product in tallies.items():
            counter.add_metric([name], getattr(product, field))
        yield counter


def _routing(tally: LineTally) -> Iterator[Metric]:
    routing = tally.routing
    yield CounterMetricFamily(
        "adclick_line_routing_offered", "Frames offered for the operators' queue.", value=routing.offered
    )
    outcomes = _counter("routing_decided", "What became of the frames offered.", "outcome")
    for outcome in _ROUTED:
        outcomes.add_metric([outcome], getattr(routing, outcome))
    yield outcomes
    yield _single("routing_waiting_frames", "Frames that wait for the operators' budget.", routing.waiting)
    yield _single("spool_bytes", "Size of the frames handed over and not fetched yet.", routing.spool_bytes)


def _bounded(counts: Mapping[str, int], known: Set[str]) -> dict[str, int]:
    """The counts under known names, the others summed as ``other``."""
    bounded = {name: count for name, count in sorted(counts.items()) if name in known}
    others = sum(count for name, count in counts.items() if name not in known)
    return {**bounded, OTHER: others} if others else bounded


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"adclick_line_{name}", text, labels=labels)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"adclick_line_{name}", text, labels=labels)


def _single(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"adclick_line_{name}", text, value=float(value))


def _unix_seconds(iso: str) -> float:
    try:
        return datetime.fromisoformat(iso).timestamp()
    except ValueError:
        return 0.0
