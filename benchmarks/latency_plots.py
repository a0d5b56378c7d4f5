"""The picture of a latency run."""

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["draw_latency"]

_COLOURS = {
    "resize": "#bbbbbb",
    "features": "#4477aa",
    "residual": "#66ccee",
    "segment": "#228833",
    "judge": "#ccbb44",
    "graph": "#ee6677",
}


def draw_latency(result: dict[str, Any], path: Path) -> None:
    """Stages end to end above, the search against the rows of the bank below."""
    figure = Figure(figsize=(9, 9), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(1.2, 1))
    _draw_stages(upper, result["end_to_end"])
    _draw_search(lower, result["search"], result["settings"]["search_dims"])
    machine, settings = result["machine"], result["settings"]
    figure.suptitle(
        f"{machine['cpu']}, {machine['cores']} cores, {settings['threads']} threads, "
        f"onnxruntime {machine['packages'].get('onnxruntime', '?')}, load before {machine['load_average']}",
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_stages(axes: Axes, rows: list[dict[str, Any]]) -> None:
    labelled = set()
    for place, row in enumerate(reversed(rows)):
        # Medians of stages need not add up to the median of the whole: the bar is scaled to the whole.
        stages = {name: values["p50_ms"] for name, values in row.get("stages", {}).items()} or {"graph": row["p50_ms"]}
        scale = row["p50_ms"] / sum(stages.values())
        start = 0.0
        for stage, stage_ms in stages.items():
            label = None if stage in labelled else stage
            axes.barh(place, stage_ms * scale, left=start, color=_COLOURS[stage], label=label)
            labelled.add(stage)
            start += stage_ms * scale
        axes.plot([row["p99_ms"]], [place], "k|", markersize=10, label=None if "p99" in labelled else "p99")
        labelled.add("p99")
        axes.text(start, place, f" {row['p50_ms']:.1f}", va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)], fontsize=8)
    axes.set_xlabel("ms per frame, median; batch 1")
    axes.legend(fontsize=8, loc="best")


def _draw_search(axes: Axes, rows: list[dict[str, Any]], search_dims: int) -> None:
    for kind in dict.fromkeys(row["kind"] for row in rows):
        line = sorted(
            (row["rows"], row["p50_ms"], row["p99_ms"])
            for row in rows
            if row["kind"] == kind and row["search_dims"] == search_dims
        )
        bank_rows, p50, p99 = zip(*line, strict=True)
        (drawn,) = axes.plot(bank_rows, p50, "o-", label=f"{kind}, p50")
        axes.plot(bank_rows, p99, ":", color=drawn.get_color(), label=f"{kind}, p99")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(f"rows of the bank ({search_dims} search dims)")
    axes.set_ylabel("residual stage, ms per frame")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize=8)
