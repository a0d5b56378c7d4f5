"""Cameras that ask for more, or less, than the line can do, for as long as it takes; do the books balance to the frame?

First the capacity is measured, then every camera triggers at its share of ``--load`` times that. Checked at the end, with
exit code 1 when it does not hold: for every camera the daemon's and the camera's own counts agree to the frame, no trigger
was answered after its deadline, memory stayed flat. ``--swap-every`` exchanges the bundle meanwhile, ``--deaf-monitor`` adds
a monitor that never reads.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from line_rig import ServedLine, sample_bundle
from machine import describe_machine
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from adclick_edge.data.sample_line import render_frame
from adclick_edge.line.camera_client import CameraClient
from adclick_edge.line.camera_verdict import CameraVerdict
from adclick_edge.line.control import Swap, ask

PRODUCT = "flange"
SETTLE_SHARE = 0.2
"""Of the run, before memory must have become flat."""
MOST_GROWTH_BYTES = 24 << 20
MOST_GROWTH_SHARE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--load", type=float, default=2.0, help="in units of the capacity measured first")
    parser.add_argument("--policy", nargs="+", default=["reject_newest", "drop_oldest", "block"], help="taken in turns")
    parser.add_argument("--deadline-ms", type=float, default=500.0)
    parser.add_argument("--swap-every", type=float, default=0.0, help="seconds; 0: never")
    parser.add_argument("--deaf-monitor", action="store_true")
    parser.add_argument("--side", type=int, default=320, help="height and width of the frames")
    parser.add_argument("--work", type=Path, help="folder to keep the bundles in")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/line_overload.json"))
    call = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as scratch:
        work = call.work or Path(scratch)
        bundles = [sample_bundle(work, PRODUCT, rows=rows) for rows in (2000, *((1000,) if call.swap_every else ()))]
        result = run(Path(scratch) / "line", bundles, call)
    result = {
        "call": {k: str(v) if isinstance(v, Path) else v for k, v in vars(call).items() if k not in ("work", "out")},
        "machine": machine,
        **result,
    }
    call.out.parent.mkdir(parents=True, exist_ok=True)
    call.out.write_text(json.dumps(result, indent=1) + "\n")
    report(result)
    plot(result, call.out.with_suffix(".png"))
    sys.exit(1 if result["problems"] else 0)


class Trigger(threading.Thread):
    """A camera that triggers at a fixed rate, whatever becomes of its frames."""

    def __init__(self, endpoint: str, name: str, per_s: float, frames: list[Any], deadline_ms: float) -> None:
        super().__init__(name=name, daemon=True)
        self.verdicts: Counter[str] = Counter()
        self.slowest_ms = 0.0
        self.stop_at = float("inf")
        self._frames, self._per_s = frames, per_s
        self.client = CameraClient(endpoint, name, deadline_ms=deadline_ms, on_verdict=self._note)

    def run(self) -> None:
        due, number = time.monotonic(), 0
        while due < self.stop_at:
            time.sleep(max(0.0, due - time.monotonic()))
            self.client.trigger(self._frames[number % len(self._frames)], part=f"{self.name}-{number}")
            number += 1
            due += 1 / self._per_s

    def _note(self, verdict: CameraVerdict) -> None:
        where = "here" if verdict.local else "daemon"
        self.verdicts[f"{where}:{verdict.verdict}:{verdict.reason}"] += 1
        if not verdict.local:
            self.slowest_ms = max(self.slowest_ms, verdict.latency_ms)


def run(folder: Path, bundles: list[Path], call: argparse.Namespace) -> dict[str, Any]:
    names = [f"cam{i}" for i in range(call.cameras)]
    policies = {name: call.policy[i % len(call.policy)] for i, name in enumerate(names)}
    monitor = f"ipc://{folder}/monitor.ipc"
    tables = {
        "line": {"monitor": monitor, "max_batch": 2},
        "products": {PRODUCT: {"bundle": bundles[0]}},
        "cameras": {
            name: {"product": PRODUCT, "deadline_ms": call.deadline_ms, "overload": policies[name], "queue": 4}
            for name in names
        }
        | {"gauge": {"product": PRODUCT, "deadline_ms": 5000.0, "queue": 4}},
        "routing": {"budget_per_hour": 600, "audit_share": 0.01},
    }
    frames = [render_frame(PRODUCT, seed=9, index=i, split="test", size=call.side)[0] for i in range(8)]
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    deaf = context.socket(zmq.SUB)
    samples: list[dict[str, float]] = []
    swaps: list[dict[str, Any]] = []
    try:
        with ServedLine(folder, tables) as line:
            if call.deaf_monitor:
                deaf.setsockopt(zmq.LINGER, 0)
                deaf.setsockopt(zmq.RCVHWM, 1)
                deaf.setsockopt(zmq.SUBSCRIBE, b"")
                deaf.connect(monitor)
            capacity = measure_capacity(line.endpoint, frames)
            per_s = call.load * capacity / call.cameras
            triggers = [Trigger(line.endpoint, name, per_s, frames, call.deadline_ms) for name in names]
            for trigger in triggers:
                if not trigger.client.wait_connected(10):
                    raise RuntimeError(f"{trigger.name} does not connect: {trigger.client.last_error}")
            began = time.monotonic()
            for trigger in triggers:
                trigger.stop_at = began + call.seconds
                trigger.start()
            swapper = threading.Thread(target=swap_all, args=(folder, bundles, call, began, swaps), daemon=True)
            swapper.start()
            watch(line, began, call.seconds, samples)
            for trigger in triggers:
                trigger.join(60)
                trigger.client.drain(10)
            swapper.join(120)
            counts = {trigger.name: trigger.client.counts for trigger in triggers}
            for trigger in triggers:
                trigger.client.close()
            time.sleep(0.5)
            status = line.status()
            exit_code = line.stop()
    finally:
        deaf.close()
        context.term()
    cameras = {}
    problems = [] if exit_code == 0 else [f"the daemon ended with {exit_code}"]
    for trigger in triggers:
        theirs, ours = counts[trigger.name], status["cameras"][trigger.name]
        problems += [f"{trigger.name}: {text}" for text in disagreements(theirs, ours, trigger)]
        cameras[trigger.name] = {
            "policy": policies[trigger.name],
            "camera": {k: getattr(theirs, k) for k in theirs.__struct_fields__},
            "daemon": ours,
            "verdicts": dict(trigger.verdicts),
            "slowest_ms": round(trigger.slowest_ms, 1),
        }
    problems += [f"swap failed: {swap['text']}" for swap in swaps if not swap["ok"]]
    growth = memory_growth(samples, call.seconds)
    if growth["bytes"] > max(MOST_GROWTH_BYTES, MOST_GROWTH_SHARE * growth["settled_bytes"]):
        problems.append(f"memory grew by {growth['bytes'] / 1e6:.1f} MB after the first fifth of the run")
    return {
        "capacity_per_s": round(capacity, 1),
        "asked_per_s": round(per_s * call.cameras, 1),
        "problems": problems,
        "memory": growth,
        "swaps": {"done": sum(s["ok"] for s in swaps), "failed": sum(not s["ok"] for s in swaps), "each": swaps},
        "latency_ms": status["latency_ms"],
        "routing": status["routing"],
        "cameras": cameras,
        "samples": samples,
    }


def measure_capacity(endpoint: str, frames: list[Any], seconds: float = 4.0) -> float:
    """Frames per second with always some waiting."""
    judged = 0
    with CameraClient(endpoint, "gauge", deadline_ms=5000) as camera:
        if not camera.wait_connected(10):
            raise RuntimeError(f"the daemon does not answer: {camera.last_error}")
        for number in range(4):
            camera.trigger(frames[number % len(frames)])
        began = None
        end = time.monotonic() + seconds + 1
        while time.monotonic() < end:
            verdict = camera.verdict(5)
            if verdict is None or verdict.verdict == "not_inspected":
                raise RuntimeError(f"the line does not judge: {verdict}")
            camera.trigger(frames[judged % len(frames)])
            if began is None and time.monotonic() > end - seconds:
                began, judged = time.monotonic(), 0
            judged += 1
        took = time.monotonic() - (began or 0)
        camera.drain(10)
    return judged / took


def swap_all(
    folder: Path, bundles: list[Path], call: argparse.Namespace, began: float, swaps: list[dict[str, Any]]
) -> None:
    if not call.swap_every:
        return
    number = 0
    while (due := began + (number + 1) * call.swap_every) < began + call.seconds - 1:
        time.sleep(max(0.0, due - time.monotonic()))
        number += 1
        start = time.monotonic()
        try:
            reply = ask(folder / "state", Swap(PRODUCT, str(bundles[number % 2])), 60)
            ok, text = reply.ok, reply.text
        except Exception as error:
            ok, text = False, f"{type(error).__name__}: {error}"
        swaps.append(
            {"at_s": round(start - began, 2), "took_s": round(time.monotonic() - start, 3), "ok": ok, "text": text}
        )


def watch(line: ServedLine, began: float, seconds: float, samples: list[dict[str, float]]) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("load", total=seconds)
        while (passed := time.monotonic() - began) < seconds:
            status = line.status()
            totals = Counter[str]()
            for camera in status["cameras"].values():
                totals.update(
                    {k: camera[k] for k in ("received", "ok", "ng", "uncertain", "late", "missed", "pending")}
                )
                totals["not_inspected"] += sum(camera["not_inspected"].values())
            samples.append(
                {
                    "at_s": round(passed, 2),
                    "rss_bytes": line.rss_bytes(),
                    "open_files": line.open_files(),
                    "p50_ms": status["latency_ms"].get("total", [0, 0, 0])[0],
                    "p99_ms": status["latency_ms"].get("total", [0, 0, 0])[2],
                    **totals,
                }
            )
            progress.update(task, completed=passed)
            time.sleep(max(0.0, min(1.0, seconds / 60)))


def disagreements(theirs: Any, ours: dict[str, Any], trigger: Trigger) -> list[str]:
    """What does not balance between a camera's own counts and the daemon's."""
    found = []
    answered = ours["ok"] + ours["ng"] + ours["uncertain"] + sum(ours["not_inspected"].values())
    if ours["received"] != answered or ours["pending"]:
        found.append(f"received {ours['received']}, answered {answered}, pending {ours['pending']}")
    if not theirs.balanced or theirs.pending:
        found.append(f"the camera's own counts do not balance: {theirs}")
    unsent = sum(theirs.local.get(reason, 0) for reason in ("no_credit", "no_connection"))
    if ours["received"] != theirs.triggers - unsent:
        found.append(f"{theirs.triggers} triggers, {unsent} not sent, {ours['received']} received")
    if theirs.answered != ours["received"]:
        found.append(
            f"{ours['received']} received, {theirs.answered} verdicts reached the camera in time: {theirs.local}"
        )
    if sum(trigger.verdicts.values()) != theirs.triggers:
        found.append(f"{theirs.triggers} triggers, {sum(trigger.verdicts.values())} verdicts handed on")
    if ours["late"]:
        found.append(f"{ours['late']} verdicts after their deadline")
    return found


def memory_growth(samples: list[dict[str, float]], seconds: float) -> dict[str, float]:
    """From the median of the fifth after the first to that of the last."""
    share = seconds * SETTLE_SHARE
    settled = [s["rss_bytes"] for s in samples if share <= s["at_s"] < 2 * share]
    last = [s["rss_bytes"] for s in samples if s["at_s"] >= seconds - share]
    before, after = float(np.median(settled)), float(np.median(last))
    return {"settled_bytes": before, "last_bytes": after, "bytes": after - before}


def report(result: dict[str, Any]) -> None:
    print(f"capacity {result['capacity_per_s']} frames/s, asked {result['asked_per_s']}")
    head = f"{'camera':8s}{'policy':>15s}{'triggers':>10s}{'unsent':>8s}{'received':>10s}{'judged':>8s}"
    print(f"{head}{'overload':>10s}{'deadline':>10s}{'late':>6s}{'slowest':>9s}")
    for name, row in result["cameras"].items():
        camera, daemon = row["camera"], row["daemon"]
        judged = daemon["ok"] + daemon["ng"] + daemon["uncertain"]
        reasons = daemon["not_inspected"]
        unsent = sum(camera["local"].get(r, 0) for r in ("no_credit", "no_connection"))
        text = f"{name:8s}{row['policy']:>15s}{camera['triggers']:10d}{unsent:8d}{daemon['received']:10d}{judged:8d}"
        print(
            f"{text}{reasons.get('overload', 0):10d}{reasons.get('deadline', 0):10d}{daemon['late']:6d}{row['slowest_ms']:9.1f}"
        )
    memory = result["memory"]
    print(
        f"memory {memory['settled_bytes'] / 1e6:.0f} -> {memory['last_bytes'] / 1e6:.0f} MB; swaps {result['swaps']['done']}"
    )
    for problem in result["problems"]:
        print(f"PROBLEM {problem}")
    print("everything balances" if not result["problems"] else f"{len(result['problems'])} problems")


def plot(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    samples = result["samples"]
    at = np.array([s["at_s"] for s in samples])
    figure, (top, middle, bottom) = pyplot.subplots(3, 1, figsize=(8, 7), sharex=True, layout="constrained")
    colours = {"ok": "#4a9b5f", "ng": "#c0504d", "uncertain": "#e0a030", "not_inspected": "#8a8a8a"}
    steps = np.maximum(np.diff(at), 1e-6)
    rates = [np.diff([s[name] for s in samples]) / steps for name in colours]
    if len(at) > 1:
        top.stackplot(at[1:], rates, labels=list(colours), colors=list(colours.values()), step="pre")
    top.axhline(result["capacity_per_s"], color="black", linewidth=0.8, linestyle="--", label="capacity")
    top.set_ylabel("answers per second")
    top.legend(loc="lower right", fontsize=8, ncols=5)
    for name, style in (("p50_ms", "-"), ("p99_ms", ":")):
        middle.plot(at, [s[name] for s in samples], style, color="#333333", label=name.removesuffix("_ms"))
    middle.axhline(result["call"]["deadline_ms"], color="#c0504d", linewidth=0.8, label="deadline")
    middle.set_ylabel("receipt to verdict, ms")
    middle.set_ylim(bottom=0)
    middle.legend(fontsize=8)
    bottom.plot(at, [s["rss_bytes"] / 1e6 for s in samples], color="#4a78b0")
    for swap in result["swaps"]["each"]:
        bottom.axvline(swap["at_s"], color="#c0504d" if not swap["ok"] else "#bbbbbb", linewidth=0.6)
    bottom.set_ylabel("memory of the daemon, MB")
    bottom.set_ylim(0, 1.15 * max(s["rss_bytes"] / 1e6 for s in samples))
    bottom.set_xlabel("s")
    for axes in (top, middle, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
