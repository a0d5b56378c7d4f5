"""Milliseconds per frame on the ONNX Runtime CPU engine, beside a PatchCore-like graph in the same run.

    python benchmarks/latency.py --out benchmarks/results/latency_cpu.json

Writes the JSON and a picture of the same name ending in .png.

* end to end: a frame in memory (decoded) to a verdict, by preset edge-s, with each stage apart; resize, features, residual and
  segment are timed by the engine, judge is what is left of the whole
* the search over banks of other sizes, with and without a position window, and numpy's answer to the same question
* batches: milliseconds per frame of each graph given 1 to 8 frames at once

Variants take turns in every round, and ratios are taken within rounds: other processes disturb all alike. Weights and frames
are random: latency does not depend on their values.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any, get_args

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import torch
from graph_chain import GRAPHS, ChainOptions, GraphChain
from latency_plots import draw_latency
from machine import describe_machine
from patchcore_like import PeerForm, export_patchcore_like, peer_runner
from random_products import SegmenterName, bank_of_size, random_frame, random_product
from timing import Variant, paired_ratio, take_turns

from adclick_edge.console import progress_console
from adclick_edge.features.backbones import BACKBONES
from adclick_edge.features.bank import Bank
from adclick_edge.features.extractor import build_extractor
from adclick_edge.files import write_text
from adclick_edge.models.presets import PRESETS, Preset
from adclick_edge.runtime.engine import BankHandle
from adclick_edge.runtime.inspector import Inspector
from adclick_edge.runtime.ort_cpu import OrtCpuEngine

U8 = npt.NDArray[np.uint8]

PEER_BACKBONE = "mobilenet_v2"
BANK_FRAMES = 4
FRAMES_IN_TURN = 4
WINDOW_RADIUS = 3
OTHER_SEARCH_DIMS = (32, 64, 128)
BATCHES = (1, 2, 4, 8)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    machine = describe_machine()
    cv2.setNumThreads(options.threads)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="adclick-latency.") as scratch:
        products = _products(options, Path(scratch))
        result: dict[str, Any] = {
            "benchmark": "latency",
            "machine": machine,
            "settings": _settings(options),
            "end_to_end": _end_to_end(options, products, Path(scratch)),
            "search": _search(options, products[options.backbone[0], options.segmenter[0]]),
            "batches": [row for name in options.backbone for row in _batches(options, name, products)],
            "load_average_after": [round(load, 2) for load in os.getloadavg()],
        }
    write_text(options.out, json.dumps(result, indent=1) + "\n")
    draw_latency(result, options.out.with_suffix(".png"))
    _print(result)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=200, help="timed turns of each variant end to end")
    parser.add_argument("--search-rounds", type=int, default=60, help="the same for the search and the batches")
    parser.add_argument("--warmup", type=int, default=10, help="rounds that are not timed")
    parser.add_argument("--size", type=int, default=256, help="pixels a side of the networks' input")
    parser.add_argument("--bank-rows", type=int, default=2000)
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 1000, 2000, 5000, 10_000, 20_000])
    parser.add_argument("--frame-sizes", type=int, nargs="+", default=[320, 900], help="pixels a side of the frames")
    parser.add_argument("--backbone", nargs="+", choices=sorted(BACKBONES), default=["edge_backbone", "mobilenet_v2"])
    parser.add_argument("--segmenter", nargs="+", choices=get_args(SegmenterName), default=["edge", "distance"])
    return parser.parse_args(arguments)


def _settings(options: argparse.Namespace) -> dict[str, object]:
    return {
        "preset": "edge-s",
        "input_size": [options.size, options.size],
        "threads": options.threads,
        "batch": 1,
        "bank_rows": options.bank_rows,
        "search_dims": PRESETS["edge-s"].bank.search_dims,
        "rounds": options.rounds,
        "search_rounds": options.search_rounds,
        "warmup": options.warmup,
        "weights": "random; latency does not depend on their values",
        "verdicts": "every frame ng, its regions outlined",
    }


Products = dict[tuple[str, str], Path]


def _preset(options: argparse.Namespace, backbone: str) -> Preset:
    preset = PRESETS["edge-s"]
    bank = msgspec.structs.replace(preset.bank, rows=options.bank_rows)
    return msgspec.structs.replace(preset, backbone=backbone, input_size=(options.size, options.size), bank=bank)


def _products(options: argparse.Namespace, scratch: Path) -> Products:
    frames = [random_frame(options.size, options.size, seed) for seed in range(BANK_FRAMES)]
    made = {}
    for backbone, segmenter in product(options.backbone, options.segmenter):
        _say(f"exporting {backbone} with the {segmenter} segmenter")
        folder = scratch / f"{backbone}-{segmenter}"
        made[backbone, segmenter] = random_product(folder, _preset(options, backbone), segmenter, frames)
    return made


def _end_to_end(options: argparse.Namespace, products: Products, scratch: Path) -> list[dict[str, Any]]:
    inspectors = {key: Inspector.open(path, threads=options.threads) for key, path in products.items()}
    peers = _peers(options, scratch)
    variants: dict[str, Variant] = {}
    about: dict[str, dict[str, Any]] = {}
    for side in options.frame_sizes:
        frames = [random_frame(side, side, 100 + number) for number in range(FRAMES_IN_TURN)]
        for (backbone, segmenter), inspector in inspectors.items():
            name = f"edge-s {backbone} {segmenter} {side}"
            variants[name] = _inspecting(inspector, frames)
            about[name] = {"kind": "ours", "backbone": backbone, "segmenter": segmenter, "frame": [side, side]}
        for form, run in peers.items():
            name = f"PatchCore-like {form} {PEER_BACKBONE} {side}"
            variants[name] = _running(run, frames)
            about[name] = {"kind": "peer", "backbone": PEER_BACKBONE, "form": form, "frame": [side, side]}
    _say(f"end to end: {len(variants)} variants, {options.rounds} rounds")
    timings = take_turns(variants, rounds=options.rounds, warmup=options.warmup)
    for inspector in inspectors.values():
        inspector.close()
    rows = []
    for name, timing in timings.items():
        row = {"name": name, **about[name], **timing.summary()}
        if about[name]["kind"] == "ours":
            side = about[name]["frame"][0]
            row["ratio_to_peer"] = {
                form: paired_ratio(timing.wall_ms, timings[f"PatchCore-like {form} {PEER_BACKBONE} {side}"].wall_ms)
                for form in peers
            }
        rows.append(row)
    return rows


def _peers(options: argparse.Namespace, scratch: Path) -> dict[PeerForm, Callable[[U8], object]]:
    """Each form of the graph, around one bank of random rows."""
    preset = _preset(options, PEER_BACKBONE)
    torch.manual_seed(0)
    extractor = build_extractor(preset)
    rng = np.random.default_rng(0)
    rows = np.abs(rng.normal(size=(options.bank_rows, extractor.dims))).astype(np.float32)
    peers: dict[PeerForm, Callable[[U8], object]] = {}
    for form in get_args(PeerForm):
        _say(f"exporting the PatchCore-like graph, {form}")
        path = export_patchcore_like(extractor, rows, preset.input_size, form, scratch / f"peer-{form}.onnx")
        peers[form] = peer_runner(path, preset.input_size, options.threads)
    return peers


def _inspecting(inspector: Inspector, frames: Sequence[U8]) -> Variant:
    turn = cycle(frames)

    def run() -> dict[str, float]:
        began = cv2.getTickCount()
        (inspection,) = inspector.inspect([next(turn)], ["frame"])
        whole_ms = 1e3 * (cv2.getTickCount() - began) / cv2.getTickFrequency()
        stages = dict(inspection.verdict.stage_ms)
        return {**stages, "judge": whole_ms - sum(stages.values())}

    return run


def _running(run_peer: Callable[[U8], object], frames: Sequence[U8]) -> Variant:
    turn = cycle(frames)

    def run() -> None:
        run_peer(next(turn))

    return run


def _search(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The residual stage as it follows the features of a frame."""
    engine = OrtCpuEngine(folder, threads=options.threads)
    bank = Bank.from_bytes((folder / "bank.safetensors").read_bytes())
    frame = random_frame(options.size, options.size)[None]
    embedding = engine.features(frame)["embedding"]
    dims = PRESETS["edge-s"].bank.search_dims
    banks: dict[tuple[str, int, int], Bank] = {}
    for rows in options.rows:
        banks["whole bank", rows, dims] = bank_of_size(bank, rows, dims)
        banks["position window", rows, dims] = bank_of_size(bank, rows, dims, window_radius=WINDOW_RADIUS)
    for other in OTHER_SEARCH_DIMS:
        banks["whole bank", options.bank_rows, other] = bank_of_size(bank, options.bank_rows, other)
    variants: dict[str, Variant] = {}
    about: dict[str, dict[str, Any]] = {}
    for (kind, rows, dims), sized in banks.items():
        name = f"{kind} {rows} {dims}"
        variants[name] = _searching(engine, engine.load_bank(sized), frame)
        about[name] = {"kind": kind, "rows": rows, "search_dims": dims}
        about[name]["rows_compared"] = rows if sized.window is None else int(sized.window[1].shape[1])
        if kind == "whole bank":
            variants[f"numpy {rows} {dims}"] = _searching_by_numpy(sized, embedding)
            about[f"numpy {rows} {dims}"] = {**about[name], "kind": "numpy"}
    _say(f"search: {len(variants)} variants, {options.search_rounds} rounds")
    timings = take_turns(variants, rounds=options.search_rounds, warmup=min(2, options.warmup))
    return [
        {**about[name], **(timing.stage("residual") if timing.stages_ms else timing).summary()}
        for name, timing in timings.items()
    ]


def _searching(engine: OrtCpuEngine, handle: BankHandle, frame: U8) -> Variant:
    return lambda: engine.run(frame, handle).stage_ms


def _searching_by_numpy(bank: Bank, embedding: npt.NDArray[np.float32]) -> Variant:
    def run() -> None:
        bank.residual(embedding)

    return run


def _batches(options: argparse.Namespace, backbone: str, products: Products) -> list[dict[str, Any]]:
    folder = products[backbone, options.segmenter[0]]
    bank = Bank.from_bytes((folder / "bank.safetensors").read_bytes())
    chain = GraphChain(folder, bank, (options.size, options.size), ChainOptions(threads=options.threads))
    variants: dict[str, Variant] = {}
    about: dict[str, tuple[str, int]] = {}
    for frames in BATCHES:
        feeds = chain.feeds(np.stack([random_frame(options.size, options.size, seed) for seed in range(frames)]))
        for graph in GRAPHS:
            name = f"{graph} {frames}"
            variants[name] = _one_graph(chain, graph, feeds[graph])
            about[name] = (graph, frames)
    _say(f"batches of {backbone}: {len(variants)} variants, {options.search_rounds} rounds")
    timings = take_turns(variants, rounds=options.search_rounds, warmup=min(2, options.warmup))
    return [
        {
            "backbone": backbone,
            "graph": graph,
            "frames": frames,
            "ms_per_frame": timings[name].summary(per=frames),
            "ratio_to_single": paired_ratio(timings[name].wall_ms / frames, timings[f"{graph} 1"].wall_ms),
        }
        for name, (graph, frames) in about.items()
    ]


def _one_graph(chain: GraphChain, graph: str, feed: dict[str, npt.NDArray[np.float32]]) -> Variant:
    def run() -> None:
        chain.run(graph, feed)

    return run


def _print(result: dict[str, Any]) -> None:
    for row in result["end_to_end"]:
        ratios = ", ".join(f"{ratio['p50']} of {form}" for form, ratio in row.get("ratio_to_peer", {}).items())
        print(f"{row['name']:44} p50 {row['p50_ms']:7} ms  p99 {row['p99_ms']:7} ms  {ratios}")


def _say(text: str) -> None:
    progress_console().print(text)


if __name__ == "__main__":
    main()
