"""Accuracy of a product before and after training, beside plain PatchCore, on the same features and pictures.

    python benchmarks/accuracy.py --data DATA --product magnetic_tile --skip-kind uneven --flip \
        --backbone mobilenet_v2=WEIGHTS.npz --backbone edge_backbone=shipped --runs RUNS --out RESULT.json

Rows, per backbone:

* patchcore  distance to the nearest of the bank's rows in all dimensions, enlarged and smoothed by sigma 4 at 256 px
             (our own few lines; the same coreset rows as below)
* bank       `adclick bank`: no training
* synthetic  ADClick-Seg trained on the product's normals with synthetic defects
* labelled   the same with --real-defects labelled defects per kind

All rows are scored on the same test pictures, ``other_defects``: those that show a defect the labelled run was trained on,
in whatever shot, are left out of every row. Rows without labels are scored on ``all_pictures`` too. Each with and without
the kinds named by --skip-kind. Runs found under --runs are taken as they are, so that an interrupted benchmark goes on;
the JSON states what each bundle says of its training.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
from machine import describe_machine
from matplotlib.figure import Figure
from rich.progress import track

from adclick_edge.bundle import read_bundle
from adclick_edge.console import progress_console
from adclick_edge.data.dataset import Product, Sample, open_product
from adclick_edge.data.images import read_image, read_mask
from adclick_edge.data.resize import fit
from adclick_edge.evaluation.inspection import InspectionMetrics
from adclick_edge.export.run_bundle import export_backbone, export_run
from adclick_edge.features.weights import shipped_weights
from adclick_edge.files import sha256_file, write_text
from adclick_edge.models.presets import Preset, preset_named
from adclick_edge.runtime.inspector import Inspector
from adclick_edge.runtime.setup import SetUp, set_up_product
from adclick_edge.training.episodes import EpisodeMix
from adclick_edge.training.run_folder import RunConfig
from adclick_edge.training.seg import train_seg

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
FIGURES = ("pixel_ap", "pro", "pixel_auroc", "image_auroc", "image_ap")


def main() -> None:
    options = _options()
    began = time.monotonic()
    product = open_product(options.data, options.product)
    rows: dict[str, dict[str, object]] = {}
    bundles: list[tuple[str, Path]] = []
    for entry in options.backbone:
        name, _, file = entry.partition("=")
        weights = shipped_weights(name) if file == "shipped" else Path(file)
        bundles += [(f"{name} {row}", bundle) for row, bundle in _bundles(options, product, name, weights)]
    trained_on: set[str] = set()
    for _, bundle in bundles:
        with read_bundle(bundle) as opened:
            trained_on |= set(opened.manifest.training.get("image_hashes", ()))
    samples = [*product.normals("test"), *product.defects()]
    other = {s.path for s in samples if sha256_file(s.path) not in trained_on}
    for label, bundle in bundles:
        with Inspector.open(bundle) as inspector:
            training = inspector.bundle.manifest.training
            seen = {s.path for s in samples} - other if training.get("image_hashes") and "labelled" in label else set()
            scored = [s for s in samples if s.path not in seen]
            if label.endswith(" bank"):
                scorer = _patchcore(inspector)
                rows[label.replace(" bank", " patchcore")] = score_pictures(
                    label, scored, other, options.skip_kind, scorer
                )
            rows[label] = score_pictures(label, scored, other, options.skip_kind, bundle_scorer(inspector))
            if seen:
                del rows[label]["all_pictures"]
            rows[label]["bank_rows"] = len(inspector.bank.rows)
            rows[label]["version"] = inspector.bundle.manifest.version
            rows[label]["training"] = {k: v for k, v in training.items() if k != "image_hashes"}
    result = {
        "product": product.name,
        "test_pictures": len(samples),
        "of_other_defects": len(other),
        "skipped_kinds": options.skip_kind,
        "real_defects_per_kind": options.real_defects,
        "machine": describe_machine(),
        "seconds": round(time.monotonic() - began, 1),
        "rows": rows,
    }
    write_text(options.out, json.dumps(result, indent=1) + "\n")
    plot_rows(rows, options.out.with_suffix(".png"), product.name)
    print(f"{'':28s}" + "".join(f"{f:>13s}" for f in FIGURES))
    for label, row in rows.items():
        kept: dict[str, float] = row["other_defects"]["without_skipped"]  # type: ignore[index]
        print(f"{label:28s}" + "".join(f"{kept[f]:13.3f}" for f in FIGURES))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--product", required=True)
    parser.add_argument("--backbone", action="append", required=True, help="NAME=WEIGHTS, or NAME=shipped")
    parser.add_argument("--skip-kind", action="append", default=[], help="trained without, and scored with and without")
    parser.add_argument("--real-defects", type=int, default=10)
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, required=True, help="where runs and bundles are kept")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def _bundles(options: argparse.Namespace, product: Product, backbone: str, weights: Path) -> list[tuple[str, Path]]:
    preset = msgspec.structs.replace(preset_named("edge-s"), backbone=backbone)
    bank = options.runs / f"{backbone}.bank.bundle"
    if not bank.exists():
        with tempfile.TemporaryDirectory() as scratch:
            export_backbone(preset, weights, Path(scratch) / "weights", weights_license="for measuring")
            with read_bundle(Path(scratch) / "weights") as opened:
                set_up_product(
                    opened, product.normals("train"), bank, SetUp(product.name, preset.input_size, preset.bank)
                )
    found = [("bank", bank)]
    for row, real in (("synthetic", 0), ("labelled", options.real_defects)):
        config = run_config(options, product, preset, weights, real_defects_per_kind=real)
        found.append((row, trained_bundle(options.runs / f"{backbone}.{row}", config)))
    return found


def run_config(
    options: argparse.Namespace,
    product: Product,
    preset: Preset,
    weights: Path,
    *,
    real_defects_per_kind: int,
    labels: Path | None = None,
) -> RunConfig:
    """The training run of a row; ``options`` has data, steps, seed, flip and skip_kind."""
    return RunConfig(
        preset=preset,
        data=str(options.data),
        products=(product.name,),
        backbone_sha256=sha256_file(weights),
        backbone_file=str(weights),
        steps=options.steps,
        seed=options.seed,
        mix=EpisodeMix(flip=options.flip),
        real_defects_per_kind=real_defects_per_kind,
        labels=None if labels is None else str(labels),
        skip_kinds=tuple(options.skip_kind),
    )


def trained_bundle(run: Path, config: RunConfig) -> Path:
    """``run`` trained and exported to RUN.bundle, unless that is there."""
    bundle = run.with_name(f"{run.name}.bundle")
    if not bundle.exists():
        train_seg(run, config)
        export_run(run, bundle, weights_license="for measuring")
    return bundle


def bundle_scorer(inspector: Inspector) -> Callable[[U8], F32]:
    return lambda image: inspector.maps([image])[0][0]


def _patchcore(inspector: Inspector) -> Callable[[U8], F32]:
    """Root of the smallest squared distance of each cell to the bank's rows, in all dimensions, smoothed."""
    rows = inspector.bank.rows.astype(np.float64)
    norms = (rows * rows).sum(axis=1)

    def score(image: U8) -> F32:
        size = inspector.bundle.manifest.input_size
        embedding = inspector.engine.features(fit(image, size)[None])["embedding"][0]
        cells = embedding.reshape(len(embedding), -1).T.astype(np.float64)
        squared = ((cells * cells).sum(axis=1)[:, None] - 2 * cells @ rows.T + norms).min(axis=1)
        distance = np.sqrt(np.maximum(squared, 0)).reshape(embedding.shape[1:]).astype(np.float32)
        return cv2.GaussianBlur(cv2.resize(distance, size[::-1], interpolation=cv2.INTER_LINEAR), (0, 0), 4.0)

    return score


def score_pictures(
    label: str, samples: Sequence[Sample], other: set[Path], skip_kinds: Sequence[str], scorer: Callable[[U8], F32]
) -> dict[str, object]:
    """Figures of all ``samples`` and of those in ``other``, each with and without the kinds skipped."""
    scored = {
        (pictures, kinds): InspectionMetrics()
        for pictures in ("other_defects", "all_pictures")
        for kinds in ("without_skipped", "all_kinds")
    }
    for sample in track(samples, label, console=progress_console()):
        image = read_image(sample.path)
        height, width = image.shape[:2]
        small = scorer(image)
        full = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
        mask = None if sample.mask_path is None else read_mask(sample.mask_path, shape=(height, width))
        for (pictures, kinds), metrics in scored.items():
            if (pictures == "all_pictures" or sample.path in other) and (
                kinds == "all_kinds" or sample.kind not in skip_kinds
            ):
                metrics.add(full, mask, float(small.max()), defective=sample.is_defect, name=str(sample.path))
    return {
        pictures: {
            kinds: msgspec.to_builtins(scored[pictures, kinds].compute()) for kinds in ("without_skipped", "all_kinds")
        }
        for pictures in ("other_defects", "all_pictures")
    }


def plot_rows(rows: dict[str, dict[str, object]], path: Path, product: str) -> None:
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(rows))
    for number, name in enumerate(("pixel_ap", "pro", "image_auroc")):
        values = [row["other_defects"]["without_skipped"][name] for row in rows.values()]  # type: ignore[index]
        bars = axis.bar(places + 0.27 * (number - 1), values, 0.25, label=name)
        axis.bar_label(bars, fmt="%.2f", fontsize=7)
    axis.set_xticks(places, [label.replace(" ", "\n") for label in rows], fontsize=8)
    axis.set(ylim=(0, 1.05), title=product)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, -0.32), ncols=3, fontsize=8)
    axis.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
