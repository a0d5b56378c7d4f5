"""``adclick swap``, ``rollback``, ``shadow``, ``status`` and ``reload``: told to the daemon that runs."""

import json
from pathlib import Path

import msgspec

from adclick_edge.console import progress_console
from adclick_edge.errors import LineError, UsageError
from adclick_edge.line.control import Reload, Reply, Request, Rollback, Shadow, Status, Swap, ask
from adclick_edge.line.line_file import state_folder
from adclick_edge.line.tally import CameraTally, LineTally, ProductTally

__all__ = ["run_reload", "run_rollback", "run_shadow", "run_status", "run_swap"]

QUICK_S = 10.0
LOADING_S = 900.0
"""A bundle is checked on its own golden frames before it serves, and some back ends build an engine first."""


def run_swap(line_file: Path, product: str, bundle: Path, force: bool = False) -> None:
    """``force``: also a bundle without thresholds."""
    _told(
        line_file, Swap(product, _existing(bundle), force), f"loading {bundle} beside what serves {product}", LOADING_S
    )


def run_rollback(line_file: Path, product: str) -> None:
    _told(line_file, Rollback(product), f"going back to the bundle that served {product} before", LOADING_S)


def run_shadow(line_file: Path, product: str, bundle: Path | None) -> None:
    """``bundle`` None ends the shadow."""
    if bundle is None:
        _told(line_file, Shadow(product, None), None, LOADING_S)
    else:
        _told(line_file, Shadow(product, _existing(bundle)), f"loading {bundle} to judge {product} unheard", LOADING_S)


def run_reload(line_file: Path) -> None:
    _told(line_file, Reload(), None, LOADING_S)


def run_status(line_file: Path, json_output: bool) -> None:
    reply = _ask(line_file, Status(), QUICK_S)
    if json_output:
        print(json.dumps(reply.details))
        return
    try:
        tally = msgspec.convert(reply.details, LineTally)
    except msgspec.ValidationError as error:
        raise LineError(f"the daemon's status is none: {error}; use the adclick the daemon came with") from error
    for line in _lines(tally):
        print(line)


def _told(line_file: Path, request: Request, doing: str | None, timeout_s: float) -> None:
    if doing is not None:
        progress_console().print(doing, markup=False)
    print(_ask(line_file, request, timeout_s).text or "done")


def _ask(line_file: Path, request: Request, timeout_s: float) -> Reply:
    reply = ask(state_folder(line_file), request, timeout_s)
    if not reply.ok:
        raise LineError(reply.text or "the daemon refused and did not say why; see its log")
    return reply


def _existing(bundle: Path) -> str:
    """The daemon runs in another folder, so it is told the whole path."""
    if not bundle.exists():
        raise UsageError(f"{bundle}: no such bundle")
    return str(bundle.absolute())


def _lines(tally: LineTally) -> list[str]:
    state = "stopping" if tally.stopping else "ready" if tally.ready else "not ready"
    lines = [f"{tally.name}: {state}, up {_duration(tally.uptime_s)}, {tally.frames_per_s:.1f} frames/s"]
    if total := tally.latency_ms.get("total"):
        lines.append("latency ms p50/p95/p99: " + " / ".join(f"{value:.1f}" for value in total))
    for name, product in sorted(tally.products.items()):
        lines.extend(_product_lines(name, product))
    for name, camera in sorted(tally.cameras.items()):
        lines.append(_camera_line(name, camera))
    routing = tally.routing
    lines.append(
        f"operators: {routing.queued} of {routing.offered} frames queued, {routing.waiting} wait, "
        f"{routing.failed} failed, {routing.duplicate} duplicates, {routing.over_budget} over budget"
    )
    if routing.last_failure:
        lines.append(f"  last failure: {routing.last_failure}")
    lines.extend(f"messages of no camera: {count} x {code}" for code, count in sorted(tally.strangers.items()))
    return lines


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _product_lines(name: str, product: ProductTally) -> list[str]:
    line = f"product {name}: {product.version}"
    line += f", before {product.previous}" if product.previous else ""
    line += f", in its shadow {product.shadow}" if product.shadow else ""
    lines = [line, f"  in {product.bundle}"]
    if product.shadow:
        changed = ", ".join(f"{count} {change}" for change, count in sorted(product.shadow_changed.items())) or "none"
        lines.append(
            f"  shadow: {product.shadow_frames} frames, changed: {changed}, failures: {product.shadow_failures}"
        )
    if product.alarms:
        lines.append(f"  ALARM: {', '.join(product.alarms)} drifted")
    if product.last_failure:
        lines.append(f"  last failure: {product.last_failure}")
    lines.extend(f"  notice: {notice}" for notice in product.notices)
    return lines


def _camera_line(name: str, camera: CameraTally) -> str:
    missing = ", ".join(f"{count} {reason}" for reason, count in sorted(camera.not_inspected.items())) or "0"
    return (
        f"camera {name} ({camera.product}, {'connected' if camera.connected else 'NOT CONNECTED'}): "
        f"received {camera.received}, ok {camera.ok}, ng {camera.ng}, uncertain {camera.uncertain}, "
        f"not inspected {missing}, pending {camera.pending}, missed {camera.missed}, late {camera.late}"
    )
