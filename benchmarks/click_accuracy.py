"""Clicks to masks on products never trained on, beside GrabCut and feature clicks: the same robot, pictures and run.

    python benchmarks/click_accuracy.py --fold A.bundle=DATA:bottle,capsule --fold B.bundle=DATA:cookie ... \
        --skip magnetic_tile=uneven --banks BANKS --out RESULT.json

A fold is a bundle of weights with click graphs and the products it was trained without. A product bundle of each is made
under --banks from the product's good parts (as `adclick bank --size 512` does), and `adclick eval-clicks` scores it on every
labelled defect. Pictures a bundle was trained on are left out by their hashes, and the bundle's own list of products is
checked against the fold. --jobs products are scored at once, each on one thread; finished ones are kept under --banks.
"""

import argparse
import contextlib
import io
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from click_banks import product_bundle
from machine import describe_machine
from matplotlib.figure import Figure

from adclick_edge.bundle import read_bundle
from adclick_edge.commands.eval_clicks import EvalClicksCall
from adclick_edge.commands.eval_clicks import run as score
from adclick_edge.errors import UsageError
from adclick_edge.files import write_text

MODELS = ("adclick", "grabcut", "feature_clicks", "feature_clicks_grabcut")
FLOOR = 0.05
_SETTINGS = ("size", "skip", "words", "noc", "one_shot", "baselines")
"""Options that a score depends on."""


def main() -> None:
    options = _options()
    jobs = [job for fold in options.fold for job in _jobs(fold, options)]
    with ProcessPoolExecutor(options.jobs) as pool:
        results = dict(pool.map(_score, jobs))
    document = {
        "machine": describe_machine(),
        "bank_size_px": options.size,
        "words": options.words,
        "mirrored": options.mirrored,
        "products": results,
        "mean": _mean(list(results.values())),
    }
    write_text(options.out, json.dumps(document, indent=1) + "\n")
    _plot(results, options.out.with_suffix(".png"))
    _print(results, document["mean"])


def _jobs(fold: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    bundle, _, rest = fold.partition("=")
    data, _, names = rest.partition(":")
    skip = dict(text.split("=", 1) for text in options.skip)
    with read_bundle(bundle) as weights:
        seen = weights.manifest.training.get("click", {}).get("products", [])
    products = names.split(",")
    if both := sorted(set(products) & set(seen)):
        raise UsageError(f"{bundle} was trained on {both[0]}; a fold is tested on products it never saw")
    return [
        {
            "weights": Path(bundle),
            "data": Path(data),
            "product": name,
            "skip": tuple(skip[name].split(",")) if name in skip else (),
            "banks": options.banks,
            "size": options.size,
            "words": options.words,
            "mirrored": options.mirrored,
            "noc": options.noc,
            "trained_on": seen,
            "one_shot": name in options.one_shot,
            "baselines": options.baselines,
        }
        for name in products
    ]


def _score(job: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    cv2.setNumThreads(1)
    name, banks = job["product"], job["banks"]
    stem = f"{job['weights'].stem}.{name}"
    kept = banks / f"{stem}.json"
    settings = {key: list(job[key]) if key == "skip" else job[key] for key in _SETTINGS}
    bundle = product_bundle(job["weights"], job["data"], name, banks / f"{stem}.bundle", job["size"])
    if not kept.exists():
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            score(
                EvalClicksCall(
                    bundle=bundle,
                    data=job["data"],
                    product=name,
                    clicks=5,
                    skip_kinds=job["skip"],
                    words=job["words"],
                    mirrored=job["mirrored"],
                    limit=None,
                    one_shot_per_defect=job["one_shot"],
                    noc=job["noc"],
                    baselines=job["baselines"],
                    report=banks / f"{stem}.report",
                    json_output=True,
                    threads=1,
                )
            )
        about = {"trained_on": job["trained_on"], "bundle": stem, "settings": settings}
        write_text(kept, json.dumps({**json.loads(printed.getvalue()), **about}) + "\n")
    found = json.loads(kept.read_text())
    if found.get("settings", settings) != settings:
        raise UsageError(f"{kept} was scored with other options ({found['settings']}); give another --banks")
    return name, found


def _of(result: dict[str, Any], model: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = result if model == "adclick" else result.get(model)
    return found


def _iou(result: dict[str, Any], model: str, clicks: int, figure: str = "mean_iou") -> float:
    found = _of(result, model)
    if found is None:
        return float("nan")
    return float(next(row[figure] for row in found["per_click"] if row["clicks"] == clicks))


def _mean(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        model: {
            **{f"iou_{k}": round(float(np.mean([_iou(r, model, k) for r in results])), 4) for k in (1, 2, 3, 5)},
            "ap_5": round(float(np.mean([_iou(r, model, 5, "ap") for r in results])), 4),
        }
        for model in MODELS
        if all(_of(result, model) is not None for result in results)
    }


def _print(results: dict[str, dict[str, Any]], mean: dict[str, Any]) -> None:
    print(f"{'':14} {'model':24} IoU@1  IoU@3  IoU@5   AP@5")
    for name, result in results.items():
        best = max(_iou(result, model, 5) for model in MODELS[1:])
        for model in MODELS:
            if _of(result, model) is None:
                continue
            row = [_iou(result, model, k) for k in (1, 3, 5)] + [_iou(result, model, 5, "ap")]
            print(f"{name if model == 'adclick' else '':14} {model:24} " + "  ".join(f"{v:.3f}" for v in row))
        gain = _iou(result, "adclick", 5) - best
        if np.isfinite(gain):
            print(
                f"{'':14} {'above the best of them':24} {gain:+.3f} ({'met' if gain >= FLOOR else 'missed'}: +{FLOOR})"
            )
    for model, row in mean.items():
        print(f"{'mean':14} {model:24} {row['iou_1']:.3f}  {row['iou_3']:.3f}  {row['iou_5']:.3f}  {row['ap_5']:.3f}")


def _plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    columns = 4
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    colours = ("tab:blue", "tab:orange", "tab:green", "tab:red")
    for axis, (name, result) in zip(axes, results.items(), strict=False):
        for model, colour in zip(MODELS, colours, strict=True):
            if (found := _of(result, model)) is not None:
                counts = [row["clicks"] for row in found["per_click"]]
                axis.plot(
                    counts, [row["mean_iou"] for row in found["per_click"]], marker=".", label=model, color=colour
                )
        axis.set(title=f"{name} ({result['images']})", xlabel="clicks", ylim=(0, 1), xticks=[1, 2, 3, 5])
        axis.grid(alpha=0.3)
    for axis in axes[len(results) :]:
        axis.axis("off")
    axes[0].set_ylabel("mean IoU")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fold", action="append", required=True, metavar="BUNDLE=DATA:PRODUCT,...")
    parser.add_argument("--skip", action="append", default=[], metavar="PRODUCT=KIND,...", help="kinds not to score")
    parser.add_argument(
        "--one-shot", action="append", default=[], metavar="PRODUCT", help="one shot of each defect only"
    )
    parser.add_argument("--banks", type=Path, required=True, help="folder for product bundles and finished scores")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write; the plot goes beside it")
    parser.add_argument("--size", type=int, default=512, help="input size of bank and residuals")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--words", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--mirrored", action="store_true", help="answer from each frame and its mirrorings")
    parser.add_argument("--noc", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--baselines", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
