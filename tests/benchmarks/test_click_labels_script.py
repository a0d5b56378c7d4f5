"""The benchmark of click labels at a size that takes seconds: that it runs, goes on, and what it states."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from label_samples import DiskModel

from adclick_edge.commands import label as label_module
from adclick_edge.errors import TrainingError, UsageError
from adclick_edge.training.run_folder import read_config, write_config

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ROWS = ["synthetic", "click labels", "pixel masks"]


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        for name in ("click_labels", "accuracy", "machine"):
            patch.delitem(sys.modules, name, raising=False)
        yield patch


@pytest.fixture(scope="module")
def model() -> DiskModel:
    return DiskModel(12)


@pytest.fixture(scope="module")
def measure(patch, model: DiskModel, line: Path, backbone_file: Path, tmp_path_factory) -> Callable[..., Path]:
    """``measure(*more)``: run the script on the line's flange, always with the same runs; gives its result file."""
    folder = tmp_path_factory.mktemp("click_labels")
    patch.setattr(label_module, "_open_session", lambda bundle, threads, mirrored: model)

    def run(*more: object) -> Path:
        import click_labels

        words = ["--data", line, "--product", "flange", "--backbone", f"edge_backbone={backbone_file}", "--size", 64]
        words += ["--steps", 2, "--per-kind", 1, "--skip-kind", "stain", "--runs", folder / "runs"]
        patch.setattr(sys, "argv", ["click_labels.py", *map(str, (*words, "--out", folder / "result.json", *more))])
        click_labels.main()
        return folder / "result.json"

    return run


@pytest.fixture(scope="module")
def out(measure: Callable[..., Path], product_bundle: Path) -> Path:
    return measure("--click-bundle", product_bundle)


def test_three_rows_over_the_same_pictures(out: Path) -> None:
    result = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    rows = {name: row["other_defects"]["without_skipped"] for name, row in result["rows"].items()}
    assert list(rows) == ROWS
    for figures in rows.values():
        assert {0 <= figures[name] <= 1 for name in ("pixel_ap", "pro", "image_auroc")} == {True}
        counts = (figures["images"], figures["normal_images"], figures["defect_images"])
        assert counts == (11, 6, 5)  # 6 kinds of 2 defects: one skipped, one of each of the others labelled
    assert result["pixel_ap_of_clicks_over_pixel_masks"] == pytest.approx(
        rows["click labels"]["pixel_ap"] / rows["pixel masks"]["pixel_ap"]
    )
    labels = result["click_labels"]
    assert labels["pictures"] == 5
    assert labels["settings"]["clicks"] == 5
    assert "stain" not in labels["mean_iou_by_kind"]
    assert 0 < labels["mean_iou"] < 1
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_runs_differ_in_their_masks_alone(out: Path) -> None:
    runs = out.parent / "runs"
    clicks, outlined = read_config(runs / "edge_backbone.clicks"), read_config(runs / "edge_backbone.labelled")
    assert clicks.labels is not None
    assert msgspec.structs.replace(clicks, labels=None, real_defects_per_kind=1) == outlined
    splits = [(runs / f"edge_backbone.{row}" / "splits.json").read_bytes() for row in ("clicks", "labelled")]
    assert splits[0] == splits[1]


def test_what_is_there_is_taken_as_it_is(out: Path, measure: Callable[..., Path], model: DiskModel) -> None:
    before, images = json.loads(out.read_text())["rows"], model.images
    assert json.loads(measure().read_text())["rows"] == before
    assert model.images == images


def test_labels_of_other_settings_are_refused(out: Path, measure: Callable[..., Path]) -> None:
    labels = out.parent / "runs" / "labels_5_clicks"
    with pytest.raises(UsageError, match="other --clicks"):
        measure("--clicks", 3, "--labels", labels)


def test_runs_of_other_settings_are_refused_though_exported(out: Path, measure: Callable[..., Path]) -> None:
    run = out.parent / "runs" / "edge_backbone.synthetic"
    config = read_config(run)
    write_config(run, msgspec.structs.replace(config, seed=1))
    try:
        with pytest.raises(TrainingError, match="other settings"):
            measure()
        (run / "run.json").unlink()
        with pytest.raises(TrainingError, match="without its run"):
            measure()
    finally:
        write_config(run, config)
