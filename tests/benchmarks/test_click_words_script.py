"""The benchmark of words at a size that takes seconds: that it runs, and what it states."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click_samples import write_clicks

from adclick_edge.data.sample_line import render_line
from adclick_edge.data.sample_line.overlap import OVERLAPS
from adclick_edge.words import shipped_prompts

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "click_words.py"
WAYS = ["right word", "no word", "wrong word"]


def test_every_way_of_every_product(weights_bundle: Path, tmp_path: Path) -> None:
    render_line(tmp_path / "line", train_normals=4, test_normals=1, defects_per_kind=0, size=128)
    bundle = write_clicks(weights_bundle, tmp_path / "worded.bundle", prompts=shipped_prompts().encode())
    out = tmp_path / "result.json"
    words = [bundle, "--line", tmp_path / "line", "--out", out, "--banks", tmp_path / "banks"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, words), "--frames", "1", "--size", "128", "--threads", "1"],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert set(result["mean_iou"]) == set(OVERLAPS)
    assert result["frames"] == sum(map(len, OVERLAPS.values()))
    assert result["trained_on"] == []
    for ways in (*result["mean_iou"].values(), result["all_products"]):
        assert list(ways) == WAYS
        for overlaps in ways.values():
            assert len(overlaps) == 5
            assert all(0 <= overlap <= 1 for overlap in overlaps)
    right, without, wrong = (result["all_products"][way] for way in WAYS)
    assert right != without  # the words reached the network
    assert right != wrong
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
