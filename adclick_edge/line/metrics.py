"""What Prometheus scrapes. Counts are read off a tally when it asks; only the histograms are fed by answers.

Labels are bounded: cameras and products of ``line.toml``, verdicts and reasons of the protocol, the first stages seen.
"""

import math
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, TypeVar, get_args

from prometheus_client import CollectorRegistry, Metric, ProcessCollector
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from adclick_edge.line.tally import LineTally
from adclick_edge.line.tally_metrics import tally_metrics
from adclick_edge.runtime.decision import Reason, Verdict

__all__ = ["SCORE_EDGES", "SECONDS_EDGES", "LineMetrics"]

SECONDS_EDGES: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75),
    *(1.0, 1.5, 2.0, 5.0),
)
SCORE_EDGES: Final = (
    *(-50.0, -20.0, -10.0, -5.0, -2.0, -1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0),
    *(5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0, 100.0),
)
"""Scores are distances (about 1 on normal parts) or logits, so both signs and some decades are covered."""

MAX_STAGES: Final = 24
OTHER: Final = "other"
VERDICTS: Final[tuple[str, ...]] = get_args(Verdict)
REASONS: Final = frozenset(get_args(Reason))

K = TypeVar("K")


class _Histogram:
    """Counts per bucket and the sum, without a lock of its own."""

    __slots__ = ("_counts", "_edges", "_sum")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self._edges = edges
        self._counts = [0] * (len(edges) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._edges, value)] += 1
        self._sum += value

    def copy(self) -> "_Histogram":
        twin = _Histogram(self._edges)
        twin._counts, twin._sum = list(self._counts), self._sum
        return twin

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        buckets: list[tuple[str, float]] = []
        total = 0
        for edge, count in zip((*self._edges, math.inf), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if math.isinf(edge) else repr(edge), total))
        # A histogram with buckets below zero has no sum: it could fall, and a counter must not.
        family.add_metric(labels, buckets, self._sum if self._edges[0] > 0 else None)


class LineMetrics(Collector):
    """The daemon's metrics in a registry of their own.

    Args:
        tally: Called at each scrape.
        cameras: Names of ``line.toml``; answers of others are counted as ``other``.
        products: Likewise.
        deviations: Product -> alarm (light, focus, position, score) -> distance from the reference in standard
            deviations; called at each scrape.
    """

    def __init__(
        self,
        tally: Callable[[], LineTally],
        *,
        cameras: Iterable[str],
        products: Iterable[str],
        deviations: Callable[[], Mapping[str, Mapping[str, float]]] | None = None,
    ) -> None:
        self._tally = tally
        self._cameras = frozenset(cameras)
        self._products = frozenset(products)
        self._deviations = deviations
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, str], _Histogram] = {}
        self._stages: dict[str, _Histogram] = {}
        self._scores: dict[tuple[str, str], _Histogram] = {}
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def answered(
        self,
        camera: str,
        verdict: str,
        reason: str | None,
        stage_ms: Mapping[str, float],
        total_ms: float,
        *,
        product: str | None = None,
        score: float | None = None,
    ) -> None:
        """Note one answer; costs a few microseconds. Times in milliseconds, ``total_ms`` from the receipt."""
        camera = camera if camera in self._cameras else OTHER
        verdict = verdict if verdict in VERDICTS else OTHER
        outcome = verdict if reason is None else f"{verdict}:{reason if reason in REASONS else OTHER}"
        with self._lock:
            _add(self._answers, (camera, outcome), SECONDS_EDGES, total_ms / 1000)
            for stage, ms in stage_ms.items():
                if stage == "total":
                    continue
                known = stage in self._stages or len(self._stages) < MAX_STAGES
                _add(self._stages, stage if known else OTHER, SECONDS_EDGES, ms / 1000)
            if score is not None and product is not None:
                product = product if product in self._products else OTHER
                _add(self._scores, (product, verdict), SCORE_EDGES, score)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type, in the format that the ``Accept`` header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def collect(self) -> Iterator[Metric]:
        deviations = {} if self._deviations is None else self._deviations()
        yield from tally_metrics(self._tally(), self._cameras, self._products, deviations)
        with self._lock:
            answers = {key: histogram.copy() for key, histogram in self._answers.items()}
            stages = {key: histogram.copy() for key, histogram in self._stages.items()}
            scores = {key: histogram.copy() for key, histogram in self._scores.items()}
        family = HistogramMetricFamily(
            "adclick_line_answer_seconds",
            "From a frame's receipt to its answer.",
            labels=["camera", "verdict", "reason"],
        )
        for (camera, outcome), histogram in sorted(answers.items()):
            verdict, _, reason = outcome.partition(":")
            histogram.add_to(family, [camera, verdict, reason])
        yield family
        family = HistogramMetricFamily(
            "adclick_line_stage_seconds", "Time of each stage of the computation.", labels=["stage"]
        )
        for stage, histogram in sorted(stages.items()):
            histogram.add_to(family, [stage])
        yield family
        family = HistogramMetricFamily(
            "adclick_line_score", "Raw scores of judged frames.", labels=["product", "verdict"]
        )
        for (product, verdict), histogram in sorted(scores.items()):
            histogram.add_to(family, [product, verdict])
        yield family


def _add(histograms: dict[K, _Histogram], key: K, edges: tuple[float, ...], value: float) -> None:
    if math.isfinite(value):
        histogram = histograms.get(key)
        if histogram is None:
            histogram = histograms[key] = _Histogram(edges)
        histogram.add(value)
