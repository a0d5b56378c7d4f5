"""Milliseconds from a frame to something to click on, and from a click to its mask, beside GrabCut in the same run.

    python benchmarks/click_latency.py --out benchmarks/results/click_latency_cpu.json

Writes the JSON and a picture of the same name ending in .png.

* encode: what `ClickSession.set_image` does: residual of the frame at the bank's size, features and click_encode at the
  network's, each apart
* decode: one click after 0, 4 and 19 others, in the view of the whole frame, until its probability is at the frame's size
* zoom: the second click, answered in a closer view that is embedded first
* GrabCut of OpenCV, 5 iterations, with as many clicks as seeds

Variants take turns in every round: other processes disturb all alike. Weights and frames are random: latency does not depend
on their values, but for GrabCut, which is given a texture with one defect.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import torch
from machine import describe_machine
from matplotlib.figure import Figure
from random_products import random_frame, random_product
from timing import Timings, Variant, take_turns

from adclick_edge.bundle import read_bundle
from adclick_edge.console import progress_console
from adclick_edge.data.clicks import Click
from adclick_edge.data.synthetic import add_defect
from adclick_edge.export.click_bundle import write_click_bundle
from adclick_edge.files import write_text
from adclick_edge.models.adclick import EdgeClicks
from adclick_edge.models.presets import PRESETS
from adclick_edge.runtime.click_session import ClickSession

U8 = npt.NDArray[np.uint8]

CHANNELS = {4: 48, 8: 96, 16: 128}
GRABCUT_ITERATIONS = 5
SEED_RADIUS_PX = 5


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    machine = describe_machine()
    cv2.setNumThreads(options.threads)
    torch.set_num_threads(1)
    frame, mask = add_defect(random_frame(options.size, options.size), np.random.default_rng(1))
    clicks = _clicks(mask, max(options.clicks))
    with tempfile.TemporaryDirectory(prefix="adclick-latency.") as scratch:
        bundle = _bundle(options, Path(scratch))
        # Without a closer view each click is one decode; a session of its own looks closer.
        with (
            ClickSession.open(bundle, threads=options.threads, zoom=False) as session,
            ClickSession.open(bundle, threads=options.threads, zoom=True) as closer,
        ):
            variants: dict[str, Variant] = {"encode": _encoding(session, frame)}
            for count in options.clicks:
                variants[f"decode, {count} clicks"] = _decoding(bundle, options.threads, frame, clicks[:count])
                variants[f"GrabCut, {count} clicks"] = _grabcut(frame, clicks[:count])
            variants["second click, closer view"] = _zooming(closer, frame)
            _say(f"{len(variants)} variants, {options.rounds} rounds")
            timings = take_turns(variants, rounds=options.rounds, warmup=options.warmup)
    result: dict[str, Any] = {
        "benchmark": "click_latency",
        "machine": machine,
        "settings": {
            "preset": "edge-s",
            "view": [options.size, options.size],
            "residual_size": list(PRESETS["edge-s"].input_size) if options.size >= 256 else [options.size] * 2,
            "width": options.width,
            "threads": options.threads,
            "rounds": options.rounds,
            "weights": "random; latency does not depend on their values",
        },
        "rows": [_row(name, timing) for name, timing in timings.items()],
        "load_average_after": [round(load, 2) for load in os.getloadavg()],
    }
    write_text(options.out, json.dumps(result, indent=1) + "\n")
    _draw(result, options.out.with_suffix(".png"))
    for row in result["rows"]:
        stages = ", ".join(f"{name} {values['p50_ms']}" for name, values in row.get("stages", {}).items())
        print(f"{row['name']:28} p50 {row['p50_ms']:8} ms  p99 {row['p99_ms']:8} ms  {stages}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=100, help="timed turns of each variant")
    parser.add_argument("--warmup", type=int, default=5, help="rounds that are not timed")
    parser.add_argument("--size", type=int, default=512, help="pixels a side of frames and of the network's view")
    parser.add_argument("--width", type=int, default=32, help="channels of the network")
    parser.add_argument("--clicks", type=int, nargs="+", default=[1, 5, 20])
    return parser.parse_args(arguments)


def _bundle(options: argparse.Namespace, scratch: Path) -> Path:
    side = min(options.size, PRESETS["edge-s"].input_size[0])
    preset = msgspec.structs.replace(PRESETS["edge-s"], input_size=(side, side))
    _say("exporting the product")
    product = random_product(scratch / "product", preset, "distance", [random_frame(side, side, n) for n in range(4)])
    _say("exporting the click graphs")
    with read_bundle(product) as base:
        network = EdgeClicks(base.manifest.embedding_dims, CHANNELS, options.width)
        write_click_bundle(base, network, None, scratch / "clicks", size=(options.size, options.size))
    return scratch / "clicks"


def _clicks(mask: npt.NDArray[np.bool_], count: int) -> list[Click]:
    """Positive ones on the defect and every third beside it, the first in its middle."""
    rng = np.random.default_rng(0)
    inside, outside = np.argwhere(mask), np.argwhere(~mask)
    clicks = [Click(*map(float, inside[len(inside) // 2]), True)]
    for number in range(1, count):
        pool = outside if number % 3 == 0 else inside
        y, x = pool[rng.integers(len(pool))]
        clicks.append(Click(float(y), float(x), number % 3 != 0))
    return clicks


def _encoding(session: ClickSession, frame: U8) -> Variant:
    def run() -> dict[str, float]:
        session.set_image(frame)
        return session.stage_ms

    return run


def _decoding(bundle: Path, threads: int, frame: U8, clicks: Sequence[Click]) -> Variant:
    """The last of ``clicks``, on a session of its own that was given those before it."""
    session = ClickSession.open(bundle, threads=threads, zoom=False, check_golden=False)
    session.set_image(frame)
    for click in clicks[:-1]:
        session.click(click.y, click.x, click.positive)
    last = clicks[-1]

    def run() -> dict[str, float]:
        spent = _timed_click(session, last.y, last.x, positive=last.positive)
        session.undo()
        return spent

    return run


def _zooming(session: ClickSession, frame: U8) -> Variant:
    middle = frame.shape[0] / 2

    def run() -> dict[str, float]:
        session.set_image(frame)
        session.click(middle, middle, positive=True)
        return _timed_click(session, middle + 3, middle, positive=True)

    return run


def _timed_click(session: ClickSession, y: float, x: float, *, positive: bool) -> dict[str, float]:
    """Stages of one click, and ``click``, the whole of it."""
    began = time.perf_counter()
    session.click(y, x, positive)
    return {"click": 1e3 * (time.perf_counter() - began), **session.stage_ms}


def _grabcut(frame: U8, clicks: Sequence[Click]) -> Variant:
    seeds = np.full(frame.shape[:2], cv2.GC_PR_BGD, np.uint8)
    for click in clicks:
        label = cv2.GC_FGD if click.positive else cv2.GC_BGD
        cv2.circle(seeds, (round(click.x), round(click.y)), SEED_RADIUS_PX, int(label), -1)
    # Both classes need a pixel: the frame's border counts as normal.
    seeds[[0, -1], :] = seeds[:, [0, -1]] = cv2.GC_BGD

    def run() -> None:
        background, foreground = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(
            frame,
            seeds.copy(),
            None,
            background,
            foreground,
            GRABCUT_ITERATIONS,
            cv2.GC_INIT_WITH_MASK,  # type: ignore[call-overload]
        )

    return run


def _row(name: str, timing: Timings) -> dict[str, object]:
    """What a turn did before and after its click is not counted."""
    of_click = timing.stage("click").summary() if "click" in timing.stages_ms else {}
    return {"name": name, **timing.summary(), **of_click}


def _draw(result: dict[str, Any], path: Path) -> None:
    rows = result["rows"][::-1]
    figure = Figure(figsize=(9, 0.5 * len(rows) + 1.5), layout="constrained")
    axes = figure.subplots()
    colours = ["#4477aa" if "GrabCut" not in row["name"] else "#bbbbbb" for row in rows]
    axes.barh([row["name"] for row in rows], [row["p50_ms"] for row in rows], color=colours)
    axes.plot([row["p99_ms"] for row in rows], range(len(rows)), "k|", markersize=10, label="p99")
    for place, row in enumerate(rows):
        axes.text(row["p50_ms"], place, f" {row['p50_ms']:.1f}", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("ms, median")
    axes.legend(fontsize=8)
    machine, settings = result["machine"], result["settings"]
    axes.set_title(
        f"{machine['cpu']}, {settings['threads']} threads, view {settings['view'][0]} px, load before "
        f"{machine['load_average']}",
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _say(text: str) -> None:
    progress_console().print(text)


if __name__ == "__main__":
    main()
