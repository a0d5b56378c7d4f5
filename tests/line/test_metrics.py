import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from tally_samples import tally

from adclick_edge.errors import UsageError
from adclick_edge.line.latency import MAX_STAGES, LatencyWindow
from adclick_edge.line.metrics import SECONDS_EDGES, LineMetrics
from adclick_edge.line.tally import CameraTally, LineTally

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(metrics: LineMetrics) -> Samples:
    body, _ = metrics.render()
    return {(s.name, frozenset(s.labels.items())): s.value for family in parse(body.decode()) for s in family.samples}


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"adclick_line_{name}", frozenset(labels.items())


def make(source: LineTally | None = None, **options: object) -> LineMetrics:
    taken = tally() if source is None else source
    return LineMetrics(lambda: taken, cameras=("left", "right"), products=("flange", "lid"), **options)  # type: ignore[arg-type]


def test_counts_come_from_the_tally() -> None:
    found = samples(make())
    assert found[key("frames_received_total", camera="left")] == 100
    assert found[key("verdicts_total", camera="left", verdict="ok", reason="")] == 80
    assert found[key("verdicts_total", camera="left", verdict="not_inspected", reason="deadline")] == 4
    assert found[key("camera_connected", camera="left")] == 1
    assert found[key("camera_connected", camera="right")] == 0
    assert found[key("frames_pending", camera="left")] == 1
    assert found[key("product_info", product="flange", version="3-abc", shadow="4-def")] == 1
    assert found[key("shadow_differences_total", product="flange", change="ok->ng")] == 3
    assert found[key("alarm", product="flange", kind="light")] == 1
    assert found[key("alarm", product="flange", kind="focus")] == 0
    assert found[key("threshold", product="flange", bound="upper")] == 2.5
    assert key("threshold", product="lid", bound="upper") not in found
    assert found[key("routing_decided_total", outcome="duplicate")] == 4
    assert found[key("spool_bytes")] == 123456
    assert found[key("stranger_messages_total", code="unknown_camera")] == 3
    assert found[key("books_unbalanced")] == 0
    assert found[key("ready")] == 1
    assert found[("process_open_fds", frozenset())] > 0
    assert found[("process_resident_memory_bytes", frozenset())] > 1e6


def test_each_scrape_reads_the_tally_anew() -> None:
    now = [tally()]
    metrics = LineMetrics(lambda: now[0], cameras=("left",), products=("flange",))
    assert samples(metrics)[key("ready")] == 1
    now[0] = tally(ready=False)
    assert samples(metrics)[key("ready")] == 0


def test_books_that_do_not_add_up_show() -> None:
    taken = tally()
    taken.cameras["left"].ok += 1
    assert samples(make(taken))[key("books_unbalanced")] == 1


def test_deviations_are_given_for_known_alarms() -> None:
    found = samples(make(deviations=lambda: {"flange": {"light": 7.5, "taste": 1.0}, "nobody": {"light": 1.0}}))
    deviations = {k: v for k, v in found.items() if k[0] == "adclick_line_drift_deviations"}
    assert deviations == {key("drift_deviations", product="flange", kind="light"): 7.5}


def test_answers_fill_buckets() -> None:
    metrics = make()
    metrics.answered("left", "ok", None, {"segment": 4.0, "total": 20.0}, 20.0, product="flange", score=0.9)
    metrics.answered("left", "ok", None, {"segment": 6.0}, 5000.1, product="flange", score=-3.0)
    metrics.answered("left", "not_inspected", "deadline", {}, 500.0, product="flange")
    found = samples(metrics)
    labels = {"camera": "left", "verdict": "ok", "reason": ""}
    assert found[key("answer_seconds_count", **labels)] == 2
    assert found[key("answer_seconds_sum", **labels)] == pytest.approx(5.0201)
    assert found[key("answer_seconds_bucket", **labels, le="0.015")] == 0
    assert found[key("answer_seconds_bucket", **labels, le="0.02")] == 1  # an edge belongs to its bucket
    assert found[key("answer_seconds_bucket", **labels, le="5.0")] == 1
    assert found[key("answer_seconds_bucket", **labels, le="+Inf")] == 2
    assert found[key("answer_seconds_count", camera="left", verdict="not_inspected", reason="deadline")] == 1
    assert found[key("stage_seconds_count", stage="segment")] == 2
    assert key("stage_seconds_count", stage="total") not in found
    assert found[key("score_bucket", product="flange", verdict="ok", le="0.0")] == 1
    assert found[key("score_bucket", product="flange", verdict="ok", le="+Inf")] == 2


def test_labels_are_bounded_whatever_comes() -> None:
    taken = tally(strangers={"bad_message": 1, "x" * 500: 2, "y": 3})
    taken.cameras["stranger"] = CameraTally(product="flange", received=5, ok=5)
    taken.cameras["left"].not_inspected = {"because": 7}
    taken.products["flange"].shadow_changed = {"a->b": 1, "c->d": 2}
    metrics = make(taken)
    for i in range(200):
        metrics.answered(f"cam{i}", f"v{i}", f"r{i}", {f"stage{i}": 1.0}, 1.0, product=f"p{i}", score=1.0)
    metrics.answered("left", "ok", None, {"a": float("nan")}, float("inf"), product="flange", score=float("nan"))
    found = samples(metrics)
    assert found[key("stranger_messages_total", code="other")] == 5
    assert found[key("verdicts_total", camera="left", verdict="not_inspected", reason="other")] == 7
    assert found[key("shadow_differences_total", product="flange", change="other")] == 3
    assert found[key("answer_seconds_count", camera="other", verdict="other", reason="other")] == 200
    assert found[key("score_bucket", product="other", verdict="other", le="+Inf")] == 200
    assert {dict(labels)["camera"] for _, labels in found if "camera" in dict(labels)} == {"left", "right", "other"}
    assert len({dict(labels)["stage"] for _, labels in found if "stage" in dict(labels)}) <= MAX_STAGES + 1
    assert key("answer_seconds_count", camera="left", verdict="ok", reason="") not in found
    assert len(found) < 1500


def test_names_follow_the_conventions_and_openmetrics_parses() -> None:
    metrics = make()
    metrics.answered("left", "ok", None, {"segment": 4.0}, 20.0, product="flange", score=0.9)
    body, content_type = metrics.render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    families = list(parse_openmetrics(body.decode()))
    assert len(families) > 30
    for family in families:
        assert family.name.startswith(("adclick_line_", "process_"))
        assert family.documentation
    assert "_ms" not in body.decode()
    assert "_created" not in body.decode()


def test_nothing_is_put_into_the_global_registry() -> None:
    make()
    assert not [name for name in REGISTRY._names_to_collectors if name.startswith("adclick")]


def test_threads_may_answer_while_others_scrape() -> None:
    metrics = make()

    def answer() -> None:
        for _ in range(500):
            metrics.answered("left", "ok", None, {"segment": 4.0}, 20.0, product="flange", score=0.9)

    threads = [threading.Thread(target=answer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        metrics.render()
    for thread in threads:
        thread.join()
    assert samples(metrics)[key("answer_seconds_count", camera="left", verdict="ok", reason="")] == 2000


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0, 1e5), min_size=1, max_size=60))
def test_a_histogram_counts_as_numpy_does(times_ms: list[float]) -> None:
    metrics = make()
    for ms in times_ms:
        metrics.answered("right", "ng", None, {}, ms)
    found = samples(metrics)
    seconds = np.array(times_ms) / 1000
    for edge in SECONDS_EDGES:
        bucket = key("answer_seconds_bucket", camera="right", verdict="ng", reason="", le=repr(edge))
        assert found[bucket] == (seconds <= edge).sum()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=300), st.integers(1, 64))
def test_percentiles_of_the_last_answers(times_ms: list[float], size: int) -> None:
    window = LatencyWindow(size)
    for ms in times_ms:
        window.add({"decode": ms / 2}, ms)
    expected = np.percentile(np.array(times_ms[-size:]), (50, 95, 99), method="inverted_cdf")
    taken = window.snapshot()
    assert taken["total"] == pytest.approx(expected, rel=1e-6, abs=1e-3)
    assert taken["decode"] == pytest.approx(expected / 2, rel=1e-6, abs=1e-3)


def test_a_latency_window_is_bounded() -> None:
    window = LatencyWindow(4)
    window.add({f"stage{i}": 1.0 for i in range(1000)}, 9.0)
    window.add({"total": 1e9, "stage1": float("nan")}, float("inf"))
    taken = window.snapshot()
    assert len(taken) == MAX_STAGES + 1
    assert taken["total"] == [9.0, 9.0, 9.0]
    assert LatencyWindow().snapshot() == {}
    with pytest.raises(UsageError, match="size is 0"):
        LatencyWindow(0)
