"""``adclick demo line``: the main job on the sample line, offline, from good parts to verdicts."""

import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from adclick_edge.bundle import read_bundle
from adclick_edge.commands.bank import SHIPPED_WEIGHTS
from adclick_edge.commands.evaluate import evaluate
from adclick_edge.commands.sample_line import run as render_sample_line
from adclick_edge.data.dataset import Product, list_products, open_product
from adclick_edge.data.images import read_image, read_mask
from adclick_edge.data.resize import fit
from adclick_edge.files import write_bytes
from adclick_edge.models.presets import preset_named
from adclick_edge.runtime.calibration import calibrate, store_calibration
from adclick_edge.runtime.inspector import Inspector
from adclick_edge.runtime.overlay import draw_overlay
from adclick_edge.runtime.setup import SetUp, set_up_product

__all__ = ["run"]

U8 = npt.NDArray[np.uint8]

CALIBRATION_NORMALS = 30
"""Of the test normals; the rest are inspected. A real line would take at least 100."""
FALSE_ALARMS = 0.04
SHEET_CELL = 200


def run(root: Path) -> None:
    """Render the line, set each product up from its good parts, set thresholds, inspect the rest, draw a sheet."""
    began = time.monotonic()
    line = root / "line"
    render_sample_line(line, None, 40, 46, 5, 320, 0, root / "line.jpg")
    table = Table(
        title="verdicts on parts never seen before",
        caption="not ok: ng, uncertain (for a person to judge) or not inspected",
    )
    for column in (
        "product",
        "good parts: ok",
        "good parts: not ok",
        "defective: ok",
        "defective: not ok",
        "pixel AP",
        "image AUROC",
        "ms a frame",
    ):
        table.add_column(column, justify="left" if column == "product" else "right")
    rows: list[U8] = []
    for name in list_products(line):
        product = open_product(line, name)
        bundle = root / f"{name}.bundle"
        with read_bundle(SHIPPED_WEIGHTS) as weights:
            preset = preset_named(weights.manifest.preset)
            set_up_product(weights, product.normals("train"), bundle, SetUp(name, preset.input_size, preset.bank))
        with Inspector.open(bundle) as inspector:
            table.add_row(name, *_inspect(inspector, product, root, rows))
    sheet = root / "overlays.jpg"
    _write_picture(sheet, np.concatenate(rows))
    Console().print(table)
    print(f"the parts, with their true defects outlined:  {root / 'line.jpg'}")
    print(f"what was found, heat maps and verdicts:       {sheet}")
    print(f"per product: figures and worst pictures:      {root}/PRODUCT.report/report.html")
    print(f"{time.monotonic() - began:.0f} s")


def _inspect(inspector: Inspector, product: Product, root: Path, rows: list[U8]) -> list[str]:
    normals = product.normals("test")
    scores = []
    for sample in normals[:CALIBRATION_NORMALS]:
        (anomaly_map,), _ = inspector.maps([read_image(sample.path)])
        scores.append(float(anomaly_map.max()))
    store_calibration(
        inspector.bundle, calibrate(scores, false_alarms=FALSE_ALARMS, source="held_out", author="adclick demo")
    )
    inspector.reload_settings()
    counts: Counter[tuple[bool, str]] = Counter()
    spent: list[float] = []
    pictured: dict[str, U8] = {}
    for sample in (*normals[CALIBRATION_NORMALS:], *product.defects()):
        image = read_image(sample.path)
        found = inspector.inspect([image], [str(sample.path)])[0]
        counts[sample.is_defect, found.verdict.verdict] += 1
        spent.append(sum(found.verdict.stage_ms.values()))
        if sample.kind not in pictured and found.verdict.lower is not None and found.verdict.upper is not None:
            mask = None if sample.mask_path is None else read_mask(sample.mask_path, shape=image.shape[:2])
            high = max(found.verdict.upper, found.verdict.lower + 1e-6)
            valid = inspector.valid(found.map.shape)
            drawn = draw_overlay(image, found.map, low=found.verdict.lower, high=high, mask=mask, valid=valid)
            pictured[sample.kind] = _labelled(drawn, f"{product.name} {sample.kind}: {found.verdict.verdict}")
            write_bytes(root / f"{product.name}.overlays" / f"{sample.kind}.jpg", _jpeg(drawn))
    cells = [*pictured.values()][:7]
    cells += [np.full_like(cells[0], 255)] * (7 - len(cells))
    rows.append(np.concatenate(cells, axis=1))
    result, _ = evaluate(inspector, product, report=root / f"{product.name}.report")
    not_ok = [sum(counts[d, v] for v in ("ng", "uncertain", "not_inspected")) for d in (False, True)]
    return [
        str(counts[False, "ok"]),
        str(not_ok[0]),
        str(counts[True, "ok"]),
        str(not_ok[1]),
        "" if result.pixel_ap is None else f"{result.pixel_ap:.3f}",
        "" if result.image_auroc is None else f"{result.image_auroc:.3f}",
        f"{np.median(spent):.1f}",
    ]


def _labelled(picture: U8, text: str) -> U8:
    small = fit(picture, (SHEET_CELL, SHEET_CELL))
    bar = np.full((22, SHEET_CELL, 3), 255, np.uint8)
    cv2.putText(bar, text, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([bar, small])


def _jpeg(picture: U8) -> bytes:
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert done  # a uint8 picture always encodes
    return data.tobytes()


def _write_picture(path: Path, picture: U8) -> None:
    write_bytes(path, _jpeg(picture))
