"""From a camera's trigger to its verdict, less what the engine takes: ring, ipc and tcp, beside REQ/REP peers.

A real daemon (`adclick serve`) judges 1080p frames of one camera at a time; every round triggers each transport once, so
that all meet the same machine. The peers move the same pixels the way imagezmq does (a REQ socket with a JSON header and
the array's bytes, a REP socket that answers once it holds the array), and judge nothing.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zmq
from line_rig import ServedLine, sample_bundle
from machine import describe_machine

from adclick_edge.line.camera_client import CameraClient

PRODUCT = "flange"
ENGINE_STAGES = ("resize", "features", "residual", "segment", "judge")
U8 = npt.NDArray[np.uint8]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--warm-up", type=int, default=20)
    parser.add_argument("--width", type=int, default=1920)
    parser.add_argument("--height", type=int, default=1080)
    parser.add_argument("--size", type=int, default=256, help="input size of the network")
    parser.add_argument("--pause-ms", type=float, default=10.0, help="between two triggers")
    parser.add_argument("--work", type=Path, help="folder to keep the bundle in")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/line_transport.json"))
    call = parser.parse_args()
    machine = describe_machine()
    frame = np.random.default_rng(0).integers(0, 256, (call.height, call.width, 3), np.uint8)
    with tempfile.TemporaryDirectory() as scratch:
        work = call.work or Path(scratch)
        bundle = sample_bundle(work, PRODUCT, size=call.size)
        rows = measure(Path(scratch) / "line", bundle, frame, call.rounds, call.warm_up, call.pause_ms / 1e3)
    result = {
        "what": "trigger to verdict, milliseconds; engine = resize, features, residual, segment, judge; rest = total - engine",
        "frame": [call.height, call.width, 3],
        "input_size": call.size,
        "rounds": call.rounds,
        "machine": machine,
        "rows": rows,
    }
    call.out.parent.mkdir(parents=True, exist_ok=True)
    call.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{'':22s}{'rest p50':>10s}{'rest p99':>10s}{'of it read':>12s}{'resize':>9s}{'engine':>9s}{'total':>9s}")
    for row in rows:
        read = row.get("read", {}).get("p50_ms", float("nan"))
        resize = row.get("resize", {}).get("p50_ms", float("nan"))
        engine = row.get("engine", {}).get("p50_ms", float("nan"))
        rest, total = row["rest"], row["total"]
        line = (
            f"{rest['p50_ms']:10.2f}{rest['p99_ms']:10.2f}{read:12.2f}{resize:9.2f}{engine:9.2f}{total['p50_ms']:9.2f}"
        )
        print(f"{row['name']:22s}{line}")
    plot(rows, call.out.with_suffix(".png"))


def measure(folder: Path, bundle: Path, frame: U8, rounds: int, warm_up: int, pause_s: float) -> list[dict[str, Any]]:
    port = free_port()
    names = ("ring", "ipc", "tcp")
    tables = {
        "line": {"bind": [f"ipc://{folder}/line.ipc", f"tcp://127.0.0.1:{port}"], "max_batch": 1},
        "products": {PRODUCT: {"bundle": bundle}},
        "cameras": {name: {"product": PRODUCT, "deadline_ms": 5000.0} for name in names},
        "routing": {"budget_per_hour": 0},
    }
    peers = {name: Peer(endpoint) for name, endpoint in peer_endpoints(folder).items()}
    found: dict[str, list[dict[str, float]]] = {}
    with ServedLine(folder, tables) as line:
        cameras = {
            "ring": CameraClient(line.endpoint, "ring", transport="ring"),
            "ipc": CameraClient(line.endpoint, "ipc", transport="message"),
            "tcp": CameraClient(f"tcp://127.0.0.1:{port}", "tcp", transport="message"),
        }
        try:
            asks: dict[str, Callable[[U8], dict[str, float]]] = {
                **{name: asker(camera) for name, camera in cameras.items()},
                **{f"REQ/REP {name}": peer.ask for name, peer in peers.items()},
            }
            for camera in cameras.values():
                if not camera.wait_connected(10):
                    raise RuntimeError(f"{camera.camera} does not connect: {camera.last_error}")
            for turn in range(warm_up + rounds):
                for name, ask in asks.items():
                    time.sleep(pause_s)
                    times = ask(frame)
                    if turn >= warm_up:
                        found.setdefault(name, []).append(times)
        finally:
            for camera in cameras.values():
                camera.close()
            for peer in peers.values():
                peer.close()
    return [
        {"name": name, **{key: percentiles([t[key] for t in times]) for key in times[0]}}
        for name, times in found.items()
    ]


def asker(camera: CameraClient) -> Callable[[U8], dict[str, float]]:
    def ask(frame: U8) -> dict[str, float]:
        camera.trigger(frame)
        verdict = camera.verdict(10)
        if verdict is None or verdict.local or verdict.verdict == "not_inspected":
            raise RuntimeError(f"{camera.camera}: {verdict}")
        engine = sum(verdict.stage_ms.get(stage, 0.0) for stage in ENGINE_STAGES)
        return {
            "total": verdict.latency_ms,
            "engine": engine,
            "resize": verdict.stage_ms["resize"],
            "read": verdict.stage_ms["read"],
            "rest": verdict.latency_ms - engine,
        }

    return ask


class Peer:
    """Frames over REQ/REP to another process."""

    def __init__(self, endpoint: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=answer, args=(endpoint,), daemon=True)
        self._process.start()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.REQ)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, 30_000)
        self._socket.connect(endpoint)

    def ask(self, frame: U8) -> dict[str, float]:
        began = time.perf_counter()
        self._socket.send_json({"dtype": str(frame.dtype), "shape": frame.shape, "msg": "camera"}, zmq.SNDMORE)
        self._socket.send(frame, copy=True)
        self._socket.recv()
        total = 1e3 * (time.perf_counter() - began)
        return {"total": total, "rest": total}

    def close(self) -> None:
        self._socket.close()
        self._context.term()
        self._process.terminate()
        self._process.join(10)


def answer(endpoint: str) -> None:
    """The hub of a peer, in a process of its own."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.REP)
    socket.bind(endpoint)
    while True:
        about = json.loads(socket.recv())
        frame = np.frombuffer(socket.recv(), np.dtype(about["dtype"])).reshape(about["shape"])
        socket.send(b"OK" if frame.size else b"empty")


def peer_endpoints(folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    return {"ipc": f"ipc://{folder}/peer.ipc", "tcp": f"tcp://127.0.0.1:{free_port()}"}


def free_port() -> int:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context.socket(zmq.REP) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
    context.term()
    return port


def percentiles(values: list[float]) -> dict[str, float]:
    p10, p50, p90, p99 = np.percentile(values, (10, 50, 90, 99))
    return {"p10_ms": round(p10, 3), "p50_ms": round(p50, 3), "p90_ms": round(p90, 3), "p99_ms": round(p99, 3)}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.6 * len(rows) + 1.4), layout="constrained")
    for place, row in enumerate(rows):
        rest = row["rest"]
        read = row.get("read", {}).get("p50_ms", 0.0)
        axes.barh(place, rest["p50_ms"], color="#9db7d5" if read else "#c9c9c9")
        axes.barh(place, read, color="#4a78b0")
        axes.plot([rest["p10_ms"], rest["p99_ms"]], [place, place], color="black", linewidth=1)
        axes.text(rest["p50_ms"], place + 0.32, f" {rest['p50_ms']:.2f}", fontsize=8, va="center")
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("ms from trigger to verdict without the engine; line: p10 to p99; dark: reading the frame")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
