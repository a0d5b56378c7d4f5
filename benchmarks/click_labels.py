"""What labels from clicks are worth: ADClick-Seg with synthetic defects only, with click labels, with pixel masks.

    python benchmarks/click_labels.py --data DATA --product magnetic_tile --skip-kind uneven --flip \
        --backbone mobilenet_v2=WEIGHTS.npz --click-bundle CLICKS.bundle --runs RUNS --out RESULT.json

Rows: three training runs of one backbone, seed and number of steps, which differ in their labelled defects alone:

* synthetic     none
* click labels  up to --per-kind defects per kind with masks of `adclick label` (--clicks of the robot's clicks each)
* pixel masks   the very same pictures with their ground truth

All are scored on the same test pictures: those that show a defect with a label, in whatever shot, are left out of every row.
Runs (BACKBONE.synthetic, .clicks, .labelled) and labels found under --runs are taken as they are if they were made with these
settings, and refused otherwise, so that an interrupted benchmark goes on. `accuracy.py` makes the first and the last one too.
--click-bundle may be left out once the labels are finished.
"""

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from accuracy import bundle_scorer, plot_rows, run_config, score_pictures, trained_bundle
from machine import describe_machine

from adclick_edge.bundle import read_bundle
from adclick_edge.commands.label import LabelCall
from adclick_edge.commands.label import run as make_labels
from adclick_edge.data.dataset import Product, open_product
from adclick_edge.data.labels_folder import Labels, read_labels
from adclick_edge.errors import TrainingError, UsageError
from adclick_edge.features.weights import shipped_weights
from adclick_edge.files import sha256_file, write_text
from adclick_edge.models.presets import preset_named
from adclick_edge.runtime.inspector import Inspector
from adclick_edge.training.run_folder import RunConfig, read_config

FIGURES = ("pixel_ap", "pro", "image_auroc")
SYNTHETIC, CLICKED, OUTLINED = "synthetic", "click labels", "pixel masks"
AIM = 0.95
"""Share of the pixel AP of pixel masks that click labels should reach."""


def main() -> None:
    options = _options()
    began = time.monotonic()
    product = open_product(options.data, options.product)
    name, _, file = options.backbone.partition("=")
    weights = shipped_weights(name) if file == "shipped" else Path(file)
    preset = msgspec.structs.replace(preset_named("edge-s"), backbone=name, input_size=(options.size, options.size))
    folder = options.labels or options.runs / f"labels_{options.clicks}_clicks"
    labels = _labels(options, product, folder)
    sources: dict[str, tuple[str, dict[str, Any]]] = {
        SYNTHETIC: ("synthetic", {"real_defects_per_kind": 0}),
        CLICKED: ("clicks", {"real_defects_per_kind": 0, "labels": folder}),
        OUTLINED: ("labelled", {"real_defects_per_kind": options.per_kind}),
    }
    bundles: dict[str, Path] = {}
    for row, (ending, labelled) in sources.items():
        run, config = options.runs / f"{name}.{ending}", run_config(options, product, preset, weights, **labelled)
        _check_run(run, config)
        bundles[row] = trained_bundle(run, config)
    rows = _rows(product, bundles, options.skip_kind)
    ratio = _kept(rows[CLICKED])["pixel_ap"] / _kept(rows[OUTLINED])["pixel_ap"]
    result = {
        "product": product.name,
        "backbone": name,
        "steps": options.steps,
        "seed": options.seed,
        "per_kind": options.per_kind,
        "skipped_kinds": options.skip_kind,
        "click_labels": _describe(labels),
        "pixel_ap_of_clicks_over_pixel_masks": ratio,
        "aim": AIM,
        "machine": describe_machine(),
        "seconds": round(time.monotonic() - began, 1),
        "rows": rows,
    }
    write_text(options.out, json.dumps(result, indent=1) + "\n")
    plot_rows(rows, options.out.with_suffix(".png"), f"{product.name}, {options.per_kind} labelled defects per kind")
    print(f"{'':16s}" + "".join(f"{figure:>13s}" for figure in FIGURES))
    for row, found in rows.items():
        print(f"{row:16s}" + "".join(f"{_kept(found)[figure]:13.3f}" for figure in FIGURES))
    print(f"click labels reach {ratio:.1%} of the pixel AP of pixel masks (aim {AIM:.0%})")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--product", required=True)
    parser.add_argument("--backbone", required=True, help="NAME=WEIGHTS, or NAME=shipped")
    parser.add_argument("--click-bundle", type=Path, help="product bundle with click graphs that never saw the product")
    parser.add_argument("--clicks", type=int, default=5)
    parser.add_argument("--no-words", action="store_true", help="label without naming the kind of defect")
    parser.add_argument("--per-kind", type=int, default=10)
    parser.add_argument("--skip-kind", action="append", default=[], help="neither trained on nor scored")
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--size", type=int, default=256, help="height and width the network sees")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="threads of the click network; default: all cores")
    parser.add_argument("--runs", type=Path, required=True, help="where runs, bundles and labels are kept")
    parser.add_argument("--labels", type=Path, help="label folder; default: one under --runs")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _labels(options: argparse.Namespace, product: Product, folder: Path) -> Labels:
    """The labels in ``folder``, made or finished first where a click bundle is given."""
    if options.click_bundle is not None:
        return make_labels(
            LabelCall(
                bundle=options.click_bundle,
                data=options.data,
                product=product.name,
                out=folder,
                clicks=options.clicks,
                per_kind=options.per_kind,
                skip_kinds=tuple(options.skip_kind),
                words=not options.no_words,
                mirrored=True,
                threads=options.threads,
            )
        )
    labels = read_labels(folder, product.name)
    made = (labels.settings.clicks, labels.settings.per_kind, labels.settings.skip_kinds)
    if made != (options.clicks, options.per_kind, tuple(sorted(set(options.skip_kind)))):
        raise UsageError(f"{folder}: made with other --clicks, --per-kind or --skip-kind; give another --labels")
    return labels


def _check_run(run: Path, config: RunConfig) -> None:
    """Refuse a run that is not this row's, also where it was exported already. Paths may be spelt otherwise."""

    def settings(of: RunConfig) -> RunConfig:
        labels = None if of.labels is None else str(Path(of.labels).resolve())
        data, backbone = str(Path(of.data).resolve()), str(Path(of.backbone_file).resolve())
        return msgspec.structs.replace(of, data=data, backbone_file=backbone, labels=labels)

    if (run / "run.json").exists():
        if settings(read_config(run)) != settings(config):
            raise TrainingError(f"{run} holds a run with other settings; give another --runs, or the same settings")
    elif run.with_name(f"{run.name}.bundle").exists():
        raise TrainingError(f"{run}.bundle is there without its run, so what it is is unknown; give another --runs")


def _rows(product: Product, bundles: Mapping[str, Path], skip_kinds: list[str]) -> dict[str, dict[str, Any]]:
    """The figures of each bundle on the test pictures that none of them learnt from."""
    seen: dict[str, set[str]] = {}
    for row, bundle in bundles.items():
        with read_bundle(bundle) as opened:
            seen[row] = set(opened.manifest.training["image_hashes"])
    if seen[CLICKED] != seen[OUTLINED]:
        raise TrainingError("click labels and pixel masks are not of the same pictures: their rows cannot be compared")
    trained_on = set().union(*seen.values())
    candidates = [*product.normals("test"), *product.defects()]
    samples = [s for s in candidates if s.kind not in skip_kinds and sha256_file(s.path) not in trained_on]
    rows = {}
    for row, bundle in bundles.items():
        with Inspector.open(bundle) as inspector:
            found = score_pictures(row, samples, {s.path for s in samples}, skip_kinds, bundle_scorer(inspector))
            training = inspector.bundle.manifest.training
            rows[row] = {
                "other_defects": {"without_skipped": _kept(found)},
                "version": inspector.bundle.manifest.version,
                "training": {k: v for k, v in training.items() if k != "image_hashes"},
            }
    return rows


def _kept(row: Mapping[str, Any]) -> dict[str, Any]:
    figures: dict[str, Any] = row["other_defects"]["without_skipped"]
    return figures


def _describe(labels: Labels) -> dict[str, Any]:
    kinds = sorted({p.kind for p in labels.pictures})
    return {
        "settings": msgspec.to_builtins(labels.settings),
        "pictures": len(labels.pictures),
        "empty": sum(p.mask is None for p in labels.pictures),
        "pictures_seen_in_training": labels.seen_in_training,
        "mean_iou": float(np.mean([p.iou for p in labels.pictures])),
        "mean_iou_by_kind": {k: float(np.mean([p.iou for p in labels.pictures if p.kind == k])) for k in kinds},
        "seconds_per_picture": float(np.mean([p.seconds for p in labels.pictures])),
    }


if __name__ == "__main__":
    main()
