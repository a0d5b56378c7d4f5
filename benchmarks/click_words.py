"""What words bring: frames of the sample line on which two kinds of defect overlap, one of them meant.

    python benchmarks/click_words.py CLICKS.bundle --line LINE --banks BANKS --out RESULT.json

LINE is a folder made by `adclick sample-line`; bundles with a bank of each product are kept under BANKS. Each frame is
clicked on once per kind and way: with the word for the kind that is meant, with none, and with the word for the other kind.
The robot of the click protocol starts anew each time, so a wrong first answer costs clicks. Frames are drawn from a seed that
no training run uses.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from click_banks import product_bundle
from machine import describe_machine
from matplotlib.figure import Figure
from rich.progress import track

from adclick_edge.bundle import read_bundle
from adclick_edge.console import progress_console
from adclick_edge.data.sample_line.overlap import OVERLAPS, render_overlap
from adclick_edge.evaluation.click_metrics import intersection_over_union
from adclick_edge.evaluation.click_robot import next_click
from adclick_edge.files import write_text
from adclick_edge.runtime.click_session import ClickSession

WAYS = ("right word", "no word", "wrong word")
CLICKS = 5


def main() -> None:
    options = _options()
    with read_bundle(options.bundle) as weights:
        seen = weights.manifest.training.get("click", {}).get("products", [])
    ious: dict[str, dict[str, list[list[float]]]] = {p: {way: [] for way in WAYS} for p in OVERLAPS}
    for product in OVERLAPS:
        bundle = product_bundle(
            options.bundle, options.line, product, options.banks / f"{product}.bundle", options.size
        )
        with ClickSession.open(bundle, threads=options.threads) as session:
            jobs = [(pair, index) for pair in OVERLAPS[product] for index in range(options.frames)]
            for pair, index in track(jobs, product, console=progress_console()):
                frame, masks = render_overlap(product, pair, seed=options.seed, index=index, size=options.size)
                session.prompt(None)
                session.set_image(frame)
                for meant, other in (pair, pair[::-1]):
                    for way, word in zip(WAYS, (meant, None, other), strict=True):
                        ious[product][way].append(_clicked(session, masks[meant], word))
    result = {
        "machine": describe_machine(),
        "bundle": options.bundle.name,
        "trained_on": seen,
        "frames": options.frames * sum(map(len, OVERLAPS.values())),
        "seed": options.seed,
        "mean_iou": {product: _means(ways) for product, ways in ious.items()},
        "all_products": _means({way: [row for ways in ious.values() for row in ways[way]] for way in WAYS}),
    }
    write_text(options.out, json.dumps(result, indent=1) + "\n")
    _plot(result, options.out.with_suffix(".png"))
    for way in WAYS:
        shown = "  ".join(f"{value:.3f}" for value in result["all_products"][way])  # type: ignore[index]
        print(f"{way:12} IoU after 1..{CLICKS} clicks: {shown}")


def _clicked(session: ClickSession, truth: np.ndarray[Any, np.dtype[np.bool_]], word: str | None) -> list[float]:
    """IoU after 1..`CLICKS` clicks on the image the session holds."""
    while session.clicks:
        session.undo()
    session.prompt(word)
    found, overlaps = session.probability, []
    for _ in range(CLICKS):
        click = next_click(found, truth, session.clicks)
        if click is not None:
            found = session.click(click.y, click.x, click.positive)
        overlaps.append(intersection_over_union(found, truth))
    return overlaps


def _means(ways: dict[str, list[list[float]]]) -> dict[str, list[float]]:
    return {way: np.mean(rows, axis=0).round(4).tolist() for way, rows in ways.items()}


def _plot(result: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots(1, 4, sharey=True)
    for axis, (name, ways) in zip(axes, [*result["mean_iou"].items(), ("all", result["all_products"])], strict=True):
        for way, colour in zip(WAYS, ("tab:green", "0.4", "tab:red"), strict=True):
            axis.plot(range(1, CLICKS + 1), ways[way], marker=".", label=way, color=colour)
        axis.set(title=name, xlabel="clicks", ylim=(0, 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("mean IoU")
    axes[0].legend()
    figure.savefig(path, dpi=110)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="weights bundle with click graphs")
    parser.add_argument("--line", type=Path, required=True, help="folder of `adclick sample-line`, for the banks")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write; the plot goes beside it")
    parser.add_argument("--banks", type=Path, required=True, help="folder for the product bundles")
    parser.add_argument("--frames", type=int, default=8, help="frames per pair of kinds")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=77_000)
    parser.add_argument("--threads", type=int, default=None)
    return parser.parse_args()


if __name__ == "__main__":
    main()
