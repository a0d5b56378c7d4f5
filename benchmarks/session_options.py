"""ONNX Runtime session options side by side on the three graphs of a product, one frame at a time.

    python benchmarks/session_options.py --out benchmarks/results/session_options_cpu.json

`base` is what the engine uses; `base again` is the same in sessions of its own: what it differs by is noise. With --nodes N
the N slowest nodes of each graph are printed and written too, on one thread (whose times other processes disturb least).

Sessions take turns. A variant whose waiting threads spin also slows those whose turn comes next: compare spinning with
`--only base spin`.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import onnxruntime
from graph_chain import GRAPHS, ChainOptions, GraphChain
from machine import describe_machine
from random_products import SegmenterName, random_frame, random_product
from timing import paired_ratio, take_turns

from adclick_edge.features.backbones import BACKBONES
from adclick_edge.features.bank import Bank
from adclick_edge.files import write_text
from adclick_edge.models.presets import PRESETS

SPINNING = {"session.intra_op.allow_spinning": "1"}
NODE_RUNS = 60


def variants(threads: int) -> dict[str, ChainOptions]:
    level = onnxruntime.GraphOptimizationLevel

    def options(config: Mapping[str, str] | None = None, **attributes: object) -> ChainOptions:
        return ChainOptions(threads=threads, config=config or {}, attributes=attributes)

    return {
        "base": options(),
        "base again": options(),
        "one thread": ChainOptions(threads=1),
        "spin": options(SPINNING),
        "spin 50 us": options({**SPINNING, "session.intra_op.spin_duration_us": "50"}),
        "no optimisation": options(graph_optimization_level=level.ORT_DISABLE_ALL),
        "basic optimisation": options(graph_optimization_level=level.ORT_ENABLE_BASIC),
        "extended optimisation": options(graph_optimization_level=level.ORT_ENABLE_EXTENDED),
        "no memory arena": options(enable_cpu_mem_arena=False),
        "no memory pattern": options(enable_mem_pattern=False),
        "denormals as zero": options({"session.set_denormal_as_zero": "1"}),
        "dynamic blocks of work": options({"session.dynamic_block_base": "4"}),
        "fixed shapes": ChainOptions(threads=threads, fixed_shapes=True),
    }


def main() -> None:
    options = _options()
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="adclick-options.") as scratch:
        preset = msgspec.structs.replace(PRESETS["edge-s"], backbone=options.backbone)
        frames = [random_frame(*preset.input_size, seed) for seed in range(4)]
        folder = random_product(Path(scratch) / "product", preset, options.segmenter, frames)
        bank = Bank.from_bytes((folder / "bank.safetensors").read_bytes())

        def chain(of: ChainOptions) -> GraphChain:
            return GraphChain(folder, bank, preset.input_size, of)

        chosen = {
            name: of for name, of in variants(options.threads).items() if not options.only or name in options.only
        }
        chains = {name: chain(of) for name, of in chosen.items()}
        result: dict[str, Any] = {
            "benchmark": "session options",
            "machine": machine,
            "settings": {"backbone": options.backbone, "segmenter": options.segmenter, "threads": options.threads},
            "graphs": {graph: _compare(chains, graph, frames[0], options.rounds) for graph in GRAPHS},
        }
        if options.nodes:
            profiled = chain(ChainOptions(threads=1, profile_prefix=str(Path(scratch) / "profile")))
            result["slowest_nodes"] = _slowest_nodes(profiled, frames[0], options.nodes)
    write_text(options.out, json.dumps(result, indent=1) + "\n")
    _print(result)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--backbone", choices=sorted(BACKBONES), default="edge_backbone")
    parser.add_argument("--segmenter", choices=get_args(SegmenterName), default="edge")
    parser.add_argument("--only", nargs="+", help="these variants alone; the first is compared with")
    parser.add_argument("--nodes", type=int, default=0, help="also list so many of the slowest nodes of each graph")
    return parser.parse_args()


def _compare(chains: Mapping[str, GraphChain], graph: str, frame: Any, rounds: int) -> dict[str, Any]:
    feed = next(iter(chains.values())).feeds(frame[None])[graph]

    def running(chain: GraphChain) -> Callable[[], None]:
        def run() -> None:
            chain.run(graph, feed)

        return run

    timings = take_turns({name: running(chain) for name, chain in chains.items()}, rounds=rounds, warmup=3)
    base = next(iter(timings.values()))
    return {
        name: {**timing.summary(), "ratio_to_base": paired_ratio(timing.wall_ms, base.wall_ms)}
        for name, timing in timings.items()
    }


def _slowest_nodes(chain: GraphChain, frame: Any, count: int) -> dict[str, list[dict[str, object]]]:
    feeds = chain.feeds(frame[None])
    found = {}
    for graph in GRAPHS:
        for _ in range(NODE_RUNS):
            chain.run(graph, feeds[graph])
        spent: dict[tuple[str, str], list[float]] = defaultdict(list)
        for event in json.loads(Path(chain.sessions[graph].end_profiling()).read_text()):
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                shapes = [shape for kind in event["args"].get("output_type_shape", []) for shape in kind.values()]
                spent[event["args"]["op_name"], f"{event['name'].removesuffix('_kernel_time')} {shapes}"].append(
                    event["dur"]
                )
        nodes = [
            {"ms": round(float(np.median(times)) / 1e3, 3), "operator": operator, "node": node}
            for (operator, node), times in spent.items()
        ]
        found[graph] = sorted(nodes, key=lambda node: -float(str(node["ms"])))[:count]
    return found


def _print(result: Mapping[str, Any]) -> None:
    for graph, rows in result["graphs"].items():
        for name, row in rows.items():
            print(f"{graph:9} {name:24} p50 {row['p50_ms']:7} ms  {row['ratio_to_base']['p50']:6} of base")
    for graph, nodes in result.get("slowest_nodes", {}).items():
        for node in nodes:
            print(f"{graph:9} {node['ms']:7} ms  {node['operator']:14} {node['node']}")


if __name__ == "__main__":
    main()
