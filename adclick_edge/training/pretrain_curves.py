"""A picture of a pretraining log, and a log thin enough to keep beside the code."""

import json
from pathlib import Path

from adclick_edge.errors import TrainingError
from adclick_edge.files import write_text

__all__ = ["read_log", "thin_log", "write_curves"]

_PARTS = ("loss", "episode", "instance", "region", "dense")
_SMOOTHING = 0.98


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of log.jsonl. Raises TrainingError when it is empty."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    if not lines:
        raise TrainingError(f"{path}: the log is empty; train first")
    return lines


def thin_log(lines: list[dict[str, float]], path: Path, most_lines: int = 1000) -> None:
    """Write every n-th line, all lines with a validation score, and the last."""
    every = max(1, -(-len(lines) // most_lines))
    kept = [x for i, x in enumerate(lines, 1) if i % every == 0 or "validation_ap" in x or i == len(lines)]
    write_text(path, "".join(f"{json.dumps(line)}\n" for line in kept))


def write_curves(lines: list[dict[str, float]], path: Path) -> None:
    """Losses (smoothed) and validation score over steps, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    steps = [line["step"] for line in lines]
    for name in _PARTS:
        left.plot(steps, _smoothed([line[name] for line in lines]), label=name)
    left.set(xlabel="step", title="losses, smoothed", yscale="log")
    left.legend()
    scored = [line for line in lines if "validation_ap" in line]
    right.plot([x["step"] for x in scored], [x["validation_ap"] for x in scored], marker="o")
    right.set(xlabel="step", title="pixel AP on held-out procedural worlds")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _smoothed(values: list[float]) -> list[float]:
    """Exponential mean, started at the mean of the first few values so that it has no dip."""
    head = values[:20]
    level, out = sum(head) / len(head), []
    for value in values:
        level = _SMOOTHING * level + (1 - _SMOOTHING) * value
        out.append(level)
    return out
