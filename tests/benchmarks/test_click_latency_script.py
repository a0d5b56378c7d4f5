"""The latency benchmark of clicks at a size that takes seconds: that it runs, and what it states."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "click_latency.py"


def test_it_states_every_stage_and_its_peer(tmp_path: Path) -> None:
    out = tmp_path / "results" / "clicks.json"
    words = ["--threads", "1", "--rounds", "2", "--warmup", "0", "--size", "64", "--width", "8", "--clicks", "1", "3"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(out), *words],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert set(rows) == {
        "encode",
        "decode, 1 clicks",
        "decode, 3 clicks",
        "GrabCut, 1 clicks",
        "GrabCut, 3 clicks",
        "second click, closer view",
    }
    for row in rows.values():
        assert 0 < row["p10_ms"] <= row["p50_ms"] <= row["p99_ms"]
    assert set(rows["encode"]["stages"]) == {"residual", "resize", "features", "click_encode"}
    decode = rows["decode, 3 clicks"]
    assert decode["p99_ms"] >= decode["stages"]["click_decode"]["p10_ms"]
    assert decode["p50_ms"] == decode["stages"]["click"]["p50_ms"]
    assert result["machine"]["cores"] >= 1
    assert result["settings"]["view"] == [64, 64]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
