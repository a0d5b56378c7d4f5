"""The accuracy benchmark of clicks at a size that takes seconds: that it runs, goes on, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click_samples import SIZE, TinyClicks

from adclick_edge.bundle import read_bundle
from adclick_edge.errors import UsageError
from adclick_edge.export.click_bundle import write_click_bundle

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "click_accuracy.py"
IOUS = {"iou_1", "iou_2", "iou_3", "iou_5", "ap_5"}


def call(fold: str, folder: Path, *more: object) -> subprocess.CompletedProcess[str]:
    words = ["--fold", fold, "--banks", folder / "banks", "--out", folder / "result.json", "--size", 128, "--jobs", 1]
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, (*words, "--no-noc", "--no-baselines", "--no-words", *more))],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("click_accuracy")


@pytest.fixture(scope="module")
def result(folder: Path, line: Path, click_bundle: Path) -> Path:
    done = call(f"{click_bundle}={line}:fabric", folder)
    assert done.returncode == 0, done.stderr
    return folder / "result.json"


def strict(path: Path) -> dict:
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_row_for_each_product_and_their_mean(result: Path) -> None:
    document = strict(result)
    assert list(document["products"]) == ["fabric"]
    fabric = document["products"]["fabric"]
    assert [row["clicks"] for row in fabric["per_click"]] == [1, 2, 3, 5]
    assert fabric["images"] > 0
    assert fabric["trained_on"] == []
    assert set(document["mean"]) == {"adclick"}  # no baseline was asked for, and none is stated
    assert set(document["mean"]["adclick"]) == IOUS
    assert document["mean"]["adclick"]["iou_5"] == pytest.approx(fabric["per_click"][-1]["mean_iou"], abs=1e-4)
    assert result.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_finished_scores_are_taken_but_not_those_of_other_options(
    result: Path, folder: Path, line: Path, click_bundle: Path
) -> None:
    before = json.loads(result.read_text())["products"]
    assert call(f"{click_bundle}={line}:fabric", folder).returncode == 0
    assert json.loads(result.read_text())["products"] == before  # seconds included: nothing was scored again
    other = call(f"{click_bundle}={line}:fabric", folder, "--words")
    assert other.returncode != 0
    assert "scored with other options" in other.stderr


def test_a_bank_of_other_weights_is_refused(result: Path, folder: Path, line: Path, weights_bundle: Path) -> None:
    other = folder / "click.bundle"  # by its name the same fold
    with read_bundle(weights_bundle) as base:
        write_click_bundle(base, TinyClicks(9.0), None, other, size=SIZE)
    done = call(f"{other}={line}:fabric", folder)
    assert done.returncode != 0
    assert "made from other weights" in done.stderr


def test_a_product_that_was_trained_on_is_refused(
    line: Path, weights_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with read_bundle(weights_bundle) as base:
        write_click_bundle(
            base, TinyClicks(), None, tmp_path / "seen.bundle", size=SIZE, training={"products": ["flange"]}
        )
    monkeypatch.syspath_prepend(SCRIPT.parent)
    for name in ("click_accuracy", "click_banks", "machine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import click_accuracy

    words = ["--fold", f"{tmp_path / 'seen.bundle'}={line}:fabric,flange", "--banks", tmp_path / "banks"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words), "--out", str(tmp_path / "result.json")])
    with pytest.raises(UsageError, match="was trained on flange"):
        click_accuracy.main()
    assert not (tmp_path / "banks").exists()
