"""A run's report: ``report.json`` for programs and one ``report.html`` without outside files for people."""

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from string import Template
from typing import Any, Final

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from adclick_edge.errors import UsageError
from adclick_edge.evaluation.curves import Curves
from adclick_edge.evaluation.figures import DARK, LIGHT, Theme, draw_curve, draw_scores
from adclick_edge.evaluation.inspection import InspectionResult
from adclick_edge.evaluation.worst import WorstImage, WorstKind
from adclick_edge.files import write_text
from adclick_edge.runtime.overlay import CONTOUR_RGB, TRUTH_RGB, draw_overlay

__all__ = ["write_report"]

_TILES: Final = (
    ("image_auroc", "Image AUROC", "frames, by score"),
    ("image_ap", "Image AP", "frames, by score"),
    ("f1_max", "Image F1 max", "best threshold in hindsight"),
    ("pixel_ap", "Pixel AP", "all images"),
    ("pixel_auroc", "Pixel AUROC", "all images"),
    ("pro", "PRO", "per-region overlap"),
)

_LISTS: Final[dict[WorstKind, tuple[str, str]]] = {
    "missed": ("Missed or nearly missed", "Defective frames with the lowest scores."),
    "false_alarm": ("False alarms", "Normal frames with the highest scores."),
    "overlap": (
        "Poor outlines",
        "Defective frames whose map follows the defect least, each at its own best threshold.",
    ),
}

_LOW_FPR: Final = 0.02  # heat begins where this share of normal pixels lies above

U8 = npt.NDArray[np.uint8]


def write_report(
    folder: Path,
    *,
    title: str,
    result: InspectionResult,
    curves: Curves,
    worst: Sequence[WorstImage],
    extra: Mapping[str, object],
) -> Path:
    """Write ``report.json`` and ``report.html`` into ``folder`` and return the path of the page.

    Each file appears whole or not at all; other files in the folder are left alone.

    Args:
        folder: Made if missing.
        title: Heading of the page; any text.
        result: The metrics.
        curves: The curves and the histogram of scores.
        worst: Images for the gallery, usually ``WorstCollector.images()``.
        extra: What else to state (product, bundle, back end, times): names to values that JSON can hold, paths or numpy
            scalars.

    Raises:
        UsageError: ``extra`` holds a value of another type.
    """
    stated = _plain(extra)
    document = {
        "title": title,
        "result": msgspec.to_builtins(result),
        "extra": stated,
        "curves": msgspec.to_builtins(curves),
        "worst": [
            {"kind": image.kind, "name": image.name, "score": image.score, "overlap": image.overlap} for image in worst
        ],
    }
    page = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(title),
        summary=html.escape(_summary(result)),
        tiles="\n".join(_tile(result, *tile) for tile in _TILES),
        plots=_plots(result, curves),
        tables=_table("Result", _result_rows(result)) + (_table("Run", _extra_rows(stated)) if stated else ""),
        gallery=_gallery(worst, *_heat_range(result, curves, worst)) if worst else "",
    )
    write_text(folder / "report.json", msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n")
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _plain(extra: Mapping[str, object]) -> dict[str, Any]:
    def convert(value: object) -> object:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, np.generic):
            return value.item()
        raise UsageError(f"report: extra holds a {type(value).__name__}; pass text, numbers, lists or mappings of them")

    plain: dict[str, Any] = msgspec.to_builtins(dict(extra), enc_hook=convert, str_keys=True)
    return plain


def _summary(result: InspectionResult) -> str:
    return (
        f"{result.images} images: {result.normal_images} normal, {result.defect_images} defective "
        f"with {result.regions} outlined regions"
    )


def _tile(result: InspectionResult, field: str, name: str, note: str) -> str:
    value = getattr(result, field)
    shown, css = (f"{value:.4f}", "value") if value is not None else ("undefined", "value undefined")
    note = result.undefined.get(field, note)
    return (
        f'<div class="tile"><div class="name">{name}</div><div class="{css}">{shown}</div>'
        f'<div class="note">{html.escape(note)}</div></div>'
    )


def _result_rows(result: InspectionResult) -> list[tuple[str, str]]:
    def number(field: str, digits: str = ".4f") -> str:
        value = getattr(result, field)
        return f"undefined: {result.undefined[field]}" if value is None else format(value, digits)

    resolution = result.pixel_resolution
    return [
        ("Image AUROC", number("image_auroc")),
        ("Image AP", number("image_ap")),
        ("Image F1 max", number("f1_max")),
        ("reached at score", number("f1_max_threshold", ".6g")),
        ("Pixel AP", number("pixel_ap")),
        ("Pixel AUROC", number("pixel_auroc")),
        (f"PRO up to FPR {result.fpr_limit:g}", number("pro")),
        ("Pixel F1 max", number("pixel_f1_max")),
        ("reached at map value", number("pixel_f1_max_threshold", ".6g")),
        ("Defective images without outline", f"{result.unmasked_defect_images} (count for image figures only)"),
        ("Pixels evaluated", f"{result.normal_pixels:,} normal, {result.defect_pixels:,} defective"),
        ("Rounding of pixel values", f"{resolution:.1e} of the value" if resolution else "none, exact"),
    ]


def _extra_rows(stated: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in stated.items():
        shown = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        rows.append((name, f"{value:.6g}" if isinstance(value, float) else shown))
    return rows


def _table(heading: str, rows: Sequence[tuple[str, str]]) -> str:
    body = "\n".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
    return f'<div class="card"><h3>{heading}</h3><table>\n{body}\n</table></div>\n'


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _plots(result: InspectionResult, curves: Curves) -> str:
    cards = []
    if curves.scores is not None:
        draw = partial(draw_scores, curves.scores, threshold=result.f1_max_threshold)
        cards.append(_plot_card("Scores of frames", draw))
    fpr, recall, precision = "false-positive rate", "recall", "precision"
    limit = result.fpr_limit
    for heading, curve, x_label, y_label, options in (
        ("ROC, frames", curves.image_roc, fpr, recall, {}),
        ("Precision and recall, frames", curves.image_pr, recall, precision, {"stepped": True}),
        ("Precision and recall, pixels", curves.pixel_pr, recall, precision, {"stepped": True}),
        ("ROC, pixels", curves.pixel_roc, fpr, recall, {}),
        (f"PRO up to FPR {limit:g}", curves.pro, fpr, "mean overlap of regions", {"x_limit": limit}),
    ):
        if curve is not None:
            cards.append(_plot_card(heading, partial(draw_curve, curve, x_label=x_label, y_label=y_label, **options)))
    return "\n".join(cards) or '<p class="none">Nothing to draw.</p>'


def _plot_card(heading: str, draw: Callable[[Theme], bytes]) -> str:
    light, dark = (_data_uri(draw(theme), "png") for theme in (LIGHT, DARK))
    return (
        f'<div class="card"><h3>{html.escape(heading)}</h3>'
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{html.escape(heading)}"></picture></div>'
    )


def _heat_range(result: InspectionResult, curves: Curves, worst: Sequence[WorstImage]) -> tuple[float, float]:
    """Return the map values where heat begins and where the contour lies, the same for the whole gallery."""
    lowest = min((float(image.anomaly_map.min()) for image in worst), default=0.0)
    highest = max((float(image.anomaly_map.max()) for image in worst), default=1.0)
    high = highest if result.pixel_f1_max_threshold is None else result.pixel_f1_max_threshold
    low = lowest
    if curves.pixel_roc is not None:
        low = curves.pixel_roc.threshold[int(np.searchsorted(curves.pixel_roc.x, _LOW_FPR))]
    if low >= high:
        low = lowest if lowest < high else high - max(abs(high), 1.0)
    return low, high


def _gallery(worst: Sequence[WorstImage], low: float, high: float) -> str:
    def swatch(rgb: tuple[int, int, int]) -> str:
        return f'<i class="swatch outline" style="border-color: rgb{rgb}"></i>'

    parts = [
        "<h2>Worst images</h2>",
        f"<p>Heat begins at a map value of {low:.4g}; the scale is the same for all images.</p>",
        f'<div class="key"><span>{swatch(TRUTH_RGB)}true outline</span>'
        f"<span>{swatch(CONTOUR_RGB)}map at {high:.4g} and above</span></div>",
    ]
    for kind, (heading, note) in _LISTS.items():
        images = [image for image in worst if image.kind == kind]
        if images:
            figures = "\n".join(_figure(image, low, high) for image in images)
            parts.append(f'<h3 class="list">{heading}</h3>\n<p>{note}</p>')
            parts.append(f'<section class="gallery">\n{figures}\n</section>')
    return "\n".join(parts)


def _figure(image: WorstImage, low: float, high: float) -> str:
    overlay = draw_overlay(image.frame, image.anomaly_map, low=low, high=high, mask=image.mask)
    name = html.escape(image.name)
    numbers = f"score {image.score:.4g}"
    if image.overlap is not None:
        numbers += f", overlap {image.overlap:.2f}"
    return (
        f'<figure><div class="pair"><img src="{_jpeg_uri(image.frame)}" alt="{name}">'
        f'<img src="{_jpeg_uri(overlay)}" alt="anomaly map over {name}"></div>'
        f'<figcaption>{name}<br><span class="numbers">{numbers}</span></figcaption></figure>'
    )


def _jpeg_uri(image: U8) -> str:
    # Full colour resolution: thin coloured outlines smear under the usual subsampling.
    quality = [cv2.IMWRITE_JPEG_QUALITY, 88, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _, data = cv2.imencode(".jpg", image[..., ::-1], quality)
    return _data_uri(data.tobytes(), "jpeg")
