"""What a click run looks like: IoU against clicks, and a sheet of the worst, median and best pictures."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np
import numpy.typing as npt

from adclick_edge.data.clicks import Click
from adclick_edge.data.resize import fit, fit_mask
from adclick_edge.errors import UsageError
from adclick_edge.evaluation.click_baselines.discs import scaled_clicks
from adclick_edge.evaluation.click_metrics import ClickResult
from adclick_edge.evaluation.click_protocol import ClickedImage
from adclick_edge.evaluation.click_robot import THRESHOLD
from adclick_edge.files import write_bytes

if TYPE_CHECKING:  # matplotlib takes a second to import and is needed only when a report is written
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PLOT", "SHEET", "ClickSheet", "draw_overlaps", "write_click_report"]

PLOT: Final = "iou_by_clicks.png"
SHEET: Final = "pictures.png"

_COLUMNS: Final = ("frame", "clicks", "mask", "truth")
_PER_GROUP: Final = 3
_SIDE_PX: Final = 280
_POSITIVE_RGB: Final = (0, 229, 160)
_NEGATIVE_RGB: Final = (255, 92, 92)
_DARK_RGB: Final = (16, 16, 24)
_COLOURS: Final = ("#2563eb", "#e4572e", "#0f9d76", "#8b5cf6", "#64748b")
_DPI: Final = 150

Bool = npt.NDArray[np.bool_]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _Row:
    """A picture reduced to at most 280 px: 0.4 MB."""

    name: str
    overlap: float
    frame: U8
    clicks: tuple[Click, ...]  # on the reduced frame
    found: Bool
    truth: Bool

    def pictures(self) -> tuple[U8, U8, U8, U8]:
        """In the order of `_COLUMNS`, uint8 ``[h, w, 3]`` each."""
        return (
            self.frame,
            _with_clicks(self.frame, self.clicks),
            _black_and_white(self.found),
            _black_and_white(self.truth),
        )


class ClickSheet:
    """Collects the pictures of a run in small, and draws the worst, median and best of them.

    Memory is bounded: pictures beyond the first ``most`` are not shown.
    """

    def __init__(self, most: int = 400) -> None:
        self._most = most
        self._rows: list[_Row] = []

    def add(self, image: ClickedImage) -> None:
        if len(self._rows) == self._most:
            return
        height, width = image.truth.shape
        ratio = _SIDE_PX / max(height, width)
        size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
        self._rows.append(
            _Row(
                f"{image.sample.kind}/{image.sample.path.name}",
                image.overlaps[len(image.clicks) - 1],
                fit(image.frame, size).copy(),
                tuple(scaled_clicks(image.clicks, (height, width), size)),
                _reduced(image.probability > THRESHOLD, size),
                _reduced(image.truth, size),
            )
        )

    def png(self) -> bytes:
        """The sheet. UsageError where no picture was added."""
        if not self._rows:
            raise UsageError("no picture was added to the sheet; add some before drawing it")
        from matplotlib.figure import Figure

        chosen = _chosen(sorted(self._rows, key=lambda row: row.overlap))
        figure = Figure(figsize=(1.9 * len(_COLUMNS) + 0.4, 2.0 * len(chosen) + 0.3), dpi=_DPI, layout="constrained")
        grid = figure.subplots(len(chosen), len(_COLUMNS), squeeze=False)
        for (group, row), axes in zip(chosen, grid, strict=True):
            for picture, axis in zip(row.pictures(), axes, strict=True):
                axis.imshow(picture, interpolation="nearest")
                axis.set_xticks([])
                axis.set_yticks([])
                axis.spines[:].set_color("#cbd5e1")
            axes[0].set_ylabel(f"{group}: IoU {row.overlap:.2f}\n{row.name}", fontsize=6.5, color="#475467")
        for column, axis in zip(_COLUMNS, grid[0], strict=True):
            axis.set_title(column, fontsize=9, color="#475467")
        return _png(figure)


def draw_overlaps(results: Sequence[ClickResult]) -> bytes:
    """A PNG of mean IoU against clicks, a line for each of ``results``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.8), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    for number, result in enumerate(results):
        counts = [scores.clicks for scores in result.per_click]
        overlaps = [scores.mean_iou for scores in result.per_click]
        axes.plot(
            counts,
            overlaps,
            marker="o",
            markersize=4,
            linewidth=2.2 if number == 0 else 1.4,
            color=_COLOURS[number % len(_COLOURS)],
            label=f"{result.name} ({overlaps[-1]:.2f})",
        )
    _style(axes, sorted({scores.clicks for result in results for scores in result.per_click}))
    return _png(figure)


def write_click_report(folder: Path, results: Sequence[ClickResult], sheet: ClickSheet) -> tuple[Path, Path]:
    """Write the plot and the sheet into ``folder``, each whole or not at all; returns their paths."""
    plot, pictures = folder / PLOT, folder / SHEET
    write_bytes(plot, draw_overlaps(results))
    write_bytes(pictures, sheet.png())
    return plot, pictures


def _chosen(ascending: Sequence[_Row]) -> list[tuple[str, _Row]]:
    """Worst, median and best, none of them twice."""
    count = len(ascending)
    if count <= 3 * _PER_GROUP:
        third = (count + 2) // 3
        return [(("worst", "median", "best")[min(place // third, 2)], row) for place, row in enumerate(ascending)]
    middle = (count - _PER_GROUP) // 2
    return [
        (group, row)
        for group, first in (("worst", 0), ("median", middle), ("best", count - _PER_GROUP))
        for row in ascending[first : first + _PER_GROUP]
    ]


def _with_clicks(frame: U8, clicks: Sequence[Click]) -> U8:
    """A copy of ``frame`` with a numbered dot at each click, green on a defect, red on a normal place."""
    drawn = frame.copy()
    for number, click in enumerate(clicks, start=1):
        centre = (round(click.x), round(click.y))
        colour = _POSITIVE_RGB if click.positive else _NEGATIVE_RGB
        cv2.circle(drawn, centre, 6, _DARK_RGB, -1, cv2.LINE_AA)
        cv2.circle(drawn, centre, 4, colour, -1, cv2.LINE_AA)
        beside = (min(centre[0] + 8, frame.shape[1] - 12), max(centre[1] + 4, 10))
        for shade, thickness in ((_DARK_RGB, 3), (colour, 1)):
            cv2.putText(drawn, str(number), beside, cv2.FONT_HERSHEY_SIMPLEX, 0.42, shade, thickness, cv2.LINE_AA)
    return drawn


def _reduced(mask: Bool, size: tuple[int, int]) -> Bool:
    """``mask`` at ``size``, True where it marks a little of a pixel, so that small marks are not lost."""
    return fit_mask(mask, size) > 0.02


def _black_and_white(mask: Bool) -> U8:
    grey = np.where(mask, 235, 24).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _style(axes: "Axes", counts: Sequence[int]) -> None:
    axes.set_xlabel("clicks")
    axes.set_ylabel("mean IoU")
    axes.set_ylim(0, 1.02)
    axes.set_xticks(list(counts))
    axes.grid(color="#e4e7ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower left", bbox_to_anchor=(-0.02, 1.0))


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
