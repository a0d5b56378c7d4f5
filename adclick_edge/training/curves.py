"""Loss and validation curves of a run, as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

__all__ = ["plot_curves"]


def plot_curves(
    log: list[dict[str, Any]], path: Path, *, title: str, scores: Sequence[str] = ("pixel_ap", "image_auroc")
) -> None:
    """Draw the loss (with its running mean) and the validation ``scores`` of ``log`` entries to ``path`` (PNG)."""
    losses = [(e["step"], e["loss"]) for e in log if "loss" in e]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    if losses:
        steps, values = zip(*losses, strict=True)
        left.plot(steps, values, color="0.75", linewidth=0.8, label="step")
        smooth, mean = [], values[0]
        for value in values:
            mean += 0.05 * (value - mean)
            smooth.append(mean)
        left.plot(steps, smooth, label="running mean")
        left.legend()
    left.set(xlabel="step", ylabel="loss", title=title)
    left.set_ylim(bottom=0)
    for key in scores:
        points = [(e["step"], e[key]) for e in log if e.get(key) is not None]
        if points:
            right.plot(*zip(*points, strict=True), marker=".", label=key)
    if right.lines:
        right.legend()
    right.set(xlabel="step", title="validation", ylim=(0, 1))
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
