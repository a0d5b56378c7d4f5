"""The latency benchmark at a size that takes seconds: that it runs, and what it states."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ROUNDS = 3


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    out = tmp_path_factory.mktemp("latency") / "results" / "latency.json"
    arguments = {
        "out": out,
        "threads": 1,
        "rounds": ROUNDS,
        "search-rounds": 2,
        "warmup": 1,
        "size": 64,
        "bank-rows": 70,
        "rows": (50, 90),
        "frame-sizes": 80,
        "backbone": "edge_backbone",
        "segmenter": "distance",
    }
    words = [
        str(word)
        for name, value in arguments.items()
        for word in (f"--{name}", *(value if isinstance(value, tuple) else (value,)))
    ]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "latency.py"), *words],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def result(out):
    return json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def assert_ordered(row):
    assert 0 < row["p10_ms"] <= row["p50_ms"] <= row["p99_ms"]


def test_the_machine_is_named(result):
    machine = result["machine"]
    assert machine["cpu"]
    assert machine["cores"] >= machine["cores_usable"] >= 1
    assert machine["memory_gib"] is None or machine["memory_gib"] > 0
    assert machine["python"] == ".".join(map(str, sys.version_info[:3]))
    assert machine["packages"]["onnxruntime"]
    assert machine["load_average"] is None or len(machine["load_average"]) == 3
    assert machine["others_busy_share"] is None or 0 <= machine["others_busy_share"] <= 1


def test_settings_are_those_asked_for(result):
    settings = result["settings"]
    assert settings["threads"] == 1
    assert settings["input_size"] == [64, 64]
    assert settings["bank_rows"] == 70
    assert settings["rounds"] == ROUNDS


def test_end_to_end_states_stages_and_peers(result):
    rows = {row["name"]: row for row in result["end_to_end"]}
    assert set(rows) == {
        "edge-s edge_backbone distance 80",
        "PatchCore-like plain mobilenet_v2 80",
        "PatchCore-like lean mobilenet_v2 80",
    }
    for row in rows.values():
        assert_ordered(row)
        assert row["cpu_p50_ms"] > 0
    ours = rows["edge-s edge_backbone distance 80"]
    assert set(ours["stages"]) == {"resize", "features", "residual", "segment", "judge"}
    for stage in ours["stages"].values():
        assert_ordered(stage)
    # stages are measured within the whole: their fastest cannot take longer than its slowest
    assert sum(stage["p10_ms"] for stage in ours["stages"].values()) <= ours["p99_ms"] + 0.01
    assert set(ours["ratio_to_peer"]) == {"plain", "lean"}
    for ratio in ours["ratio_to_peer"].values():
        assert 0 < ratio["p25"] <= ratio["p50"] <= ratio["p75"]


def test_the_search_is_swept(result):
    found = {(row["kind"], row["rows"], row["search_dims"]) for row in result["search"]}
    whole = {("whole bank", rows, 64) for rows in (50, 90)} | {("whole bank", 70, dims) for dims in (32, 64, 128)}
    windows = {("position window", rows, 64) for rows in (50, 90)}
    assert found == whole | windows | {("numpy", rows, dims) for _, rows, dims in whole}
    for row in result["search"]:
        assert_ordered(row)
        assert 0 < row["rows_compared"] <= row["rows"]


def test_batches_are_compared_with_single_frames(result):
    rows = {(row["graph"], row["frames"]): row for row in result["batches"]}
    assert set(rows) == {(graph, frames) for graph in ("features", "residual", "segment") for frames in (1, 2, 4, 8)}
    for (_, frames), row in rows.items():
        assert_ordered(row["ms_per_frame"])
        if frames == 1:
            assert row["ratio_to_single"] == {"p25": 1.0, "p50": 1.0, "p75": 1.0}


def test_a_picture_is_drawn(out):
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
