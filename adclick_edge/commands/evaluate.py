"""``adclick eval``"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import msgspec
from rich.progress import track

from adclick_edge.commands.product import open_with_split
from adclick_edge.console import progress_console
from adclick_edge.data.dataset import Product, Sample
from adclick_edge.data.images import read_image, read_mask
from adclick_edge.errors import DataError, ImageError, UsageError
from adclick_edge.evaluation.curves import curves
from adclick_edge.evaluation.inspection import InspectionMetrics, InspectionResult
from adclick_edge.evaluation.report import write_report
from adclick_edge.evaluation.worst import WorstCollector
from adclick_edge.files import sha256_file
from adclick_edge.runtime.inspector import Inspector
from adclick_edge.runtime.regions import masked_score, valid_mask

__all__ = ["evaluate", "run"]


def run(
    bundle: Path,
    data: Path,
    product_name: str | None,
    skip_kinds: Sequence[str],
    report: Path | None,
    json_output: bool,
    split_normals: float | None,
) -> None:
    with Inspector.open(bundle) as inspector:
        product = open_with_split(data, product_name or _own_product(inspector, data), split_normals)
        _warn_of_another_product(inspector, product)
        result, counts = evaluate(inspector, product, skip_kinds, report)
        own, version = inspector.bundle.manifest.product, inspector.bundle.manifest.version
    about = {"product": product.name, "bundle": str(bundle), "bundle_product": own, "version": version}
    flat: dict[str, Any] = {**about, **msgspec.to_builtins(result), **counts}
    if json_output:
        print(json.dumps(flat))
        return
    of = "" if own == product.name else f" of {own}"
    print(
        f"{product.name}, version {version}{of}: {flat['images']} pictures, {counts['left_out_trained_on']} left out as "
        f"trained on, {counts['seconds']:.1f} s"
    )
    for key in ("pixel_ap", "pixel_auroc", "pro", "image_auroc", "image_ap", "f1_max"):
        value = flat[key]
        print(f"{key:12s} {'undefined: ' + result.undefined[key] if value is None else format(value, '.4f')}")
    if report is not None:
        print(f"report: {report / 'report.html'}")


def evaluate(
    inspector: Inspector, product: Product, skip_kinds: Sequence[str] = (), report: Path | None = None
) -> tuple[InspectionResult, dict[str, Any]]:
    """Score the test pictures of ``product``; those the bundle was made from are left out, by content.

    Maps are enlarged (bilinear) to each picture's own size. Returns the figures, and counts with ``seconds``.
    """
    began = time.monotonic()
    console = progress_console()
    if unknown := sorted(set(skip_kinds) - set(product.kinds())):
        raise UsageError(
            f"{product.root}: has no defects of the kind {unknown[0]!r} to skip; it has {', '.join(product.kinds())}"
        )
    known = {*inspector.bank.image_hashes, *inspector.bundle.manifest.training.get("image_hashes", ())}
    samples = [*product.normals("test"), *(s for s in product.defects() if s.kind not in skip_kinds)]
    metrics, worst = InspectionMetrics(), WorstCollector()
    left_out, bad = 0, 0
    for sample in track(samples, f"eval {product.name}", console=console):
        if sha256_file(sample.path) in known:
            left_out += 1
            continue
        try:
            _add(inspector, sample, metrics, worst)
        except ImageError as error:
            bad += 1
            console.print(f"skipped: {error}", style="yellow", markup=False, soft_wrap=True)
    if left_out + bad == len(samples):
        raise DataError(f"{product.root}: no test picture is left to score; add some under test/")
    result = metrics.compute()
    counts = {
        "seconds": round(time.monotonic() - began, 3),
        "left_out_trained_on": left_out,
        "unreadable": bad,
    }
    if report is not None:
        extra = {"bundle version": inspector.bundle.manifest.version, **counts}
        write_report(
            report,
            title=f"{product.name}: inspection",
            result=result,
            curves=curves(metrics),
            worst=worst.images(),
            extra=extra,
        )
    return result, counts


def _add(inspector: Inspector, sample: Sample, metrics: InspectionMetrics, worst: WorstCollector) -> None:
    image = read_image(sample.path)
    height, width = image.shape[:2]
    mask = None if sample.mask_path is None else read_mask(sample.mask_path, shape=(height, width))
    (small,), _ = inspector.maps([image])
    score = masked_score(small, inspector.valid(small.shape))
    full = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    everywhere = not inspector.regions.roi and not inspector.regions.ignore
    valid = None if everywhere else valid_mask(inspector.regions, height, width)
    name = str(sample.path)
    metrics.add(full, mask, score, defective=sample.is_defect, valid=valid, name=name)  # type: ignore[arg-type]
    worst.add(name, image, full, mask, score, defective=sample.is_defect, valid=valid)  # type: ignore[arg-type]


def _warn_of_another_product(inspector: Inspector, product: Product) -> None:
    own = inspector.bundle.manifest.product
    if own != product.name:
        progress_console().print(
            f"warning: the bundle was made for {own!r}, the pictures are of {product.name!r}: the figures say how it does "
            "on another product, unless only the name differs",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


def _own_product(inspector: Inspector, data: Path) -> str | None:
    """The bundle's own product where the data has one of that name."""
    own = inspector.bundle.manifest.product
    return own if own is not None and (data / own).is_dir() else None
