"""The plots of a report, as PNG bytes."""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from adclick_edge.evaluation.curves import Curve, ScoreHistogram

if TYPE_CHECKING:  # matplotlib takes a second to import and is needed only when a report is written
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["DARK", "LIGHT", "Theme", "draw_curve", "draw_scores"]

_SIZE_IN: Final = (3.7, 2.9)
_DPI: Final = 180


@dataclass(frozen=True)
class Theme:
    """Colours of a plot on a transparent ground."""

    text: str
    grid: str
    curve: str
    normal: str
    defective: str


LIGHT: Final = Theme(text="#475467", grid="#e4e7ec", curve="#2563eb", normal="#2563eb", defective="#e4572e")
DARK: Final = Theme(text="#a5b0c0", grid="#2c3442", curve="#6ea8fe", normal="#6ea8fe", defective="#ff8a66")


def draw_curve(
    curve: Curve, theme: Theme, *, x_label: str, y_label: str, stepped: bool = False, x_limit: float = 1.0
) -> bytes:
    """Return a PNG of ``curve`` in 0..``x_limit`` by 0..1; the area that the metric measures is shaded.

    Args:
        stepped: Draw precision over recall as average precision sums it, each step at the height of its right end.
    """
    figure, axes = _new_figure(theme)
    x, y = np.array([0.0, *curve.x]), np.array([curve.y[0] if stepped else 0.0, *curve.y])
    axes.plot(x, y, color=theme.curve, linewidth=1.8, drawstyle="steps-pre" if stepped else "default")
    axes.fill_between(x, y, color=theme.curve, alpha=0.12, linewidth=0, step="pre" if stepped else None)
    axes.set_xlim(0, x_limit)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    return _png(figure)


def draw_scores(scores: ScoreHistogram, theme: Theme, *, threshold: float | None) -> bytes:
    """Return a PNG of the share of normal and of defective frames per score bin, with a line at ``threshold``."""
    figure, axes = _new_figure(theme)
    edges = np.array(scores.edges)
    kinds = (("normal", scores.normal, theme.normal), ("defective", scores.defective, theme.defective))
    for label, counts, colour in kinds:
        total = sum(counts)
        if total:
            share = 100 * np.array(counts) / total
            axes.stairs(share, edges, fill=True, color=colour, alpha=0.35)
            axes.stairs(share, edges, color=colour, linewidth=1.5, label=f"{label} ({total})")
    if threshold is not None:
        axes.axvline(threshold, color=theme.text, linewidth=1.2, linestyle=(0, (4, 3)), label="best F1")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("score of a frame")
    axes.set_ylabel("share of its class, %")
    axes.legend(
        frameon=False,
        fontsize=8,
        labelcolor=theme.text,
        ncols=3,
        loc="lower left",
        bbox_to_anchor=(-0.03, 1.02),
        columnspacing=1.2,
        handlelength=1.4,
        borderaxespad=0,
    )
    return _png(figure)


def _new_figure(theme: Theme) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure  # the object API draws with Agg and leaves the caller's pyplot alone

    figure = Figure(figsize=_SIZE_IN, dpi=_DPI, layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.grid)
    axes.tick_params(colors=theme.text, labelsize=9, length=0)
    axes.xaxis.label.set_color(theme.text)
    axes.yaxis.label.set_color(theme.text)
    return figure, axes


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
