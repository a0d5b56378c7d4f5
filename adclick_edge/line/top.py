"""``adclick top``: the line in a terminal, from what a running daemon publishes."""

import math
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from adclick_edge.line.monitor import CameraVerdict, Source
from adclick_edge.line.tally import CameraTally, LineTally, ProductTally

__all__ = ["TopState", "render", "watch"]

STALE_S: Final = 3.0
"""A daemon silent for so long is not there."""
EVENTS: Final = 10
TIMES: Final = 512
VERDICT_STYLES: Final = {"ok": "green", "ng": "bold red", "uncertain": "yellow", "not_inspected": "magenta"}


class TopState:
    """What is known of the line: the last tally, the last answers' times per camera, the last events.

    ``clock`` gives seconds, ``wall`` the local time that events are stamped with.
    """

    def __init__(
        self,
        where: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.where = where
        self.trouble: str | None = None
        self.tally: LineTally | None = None
        self.events: deque[tuple[str, str, str]] = deque(maxlen=EVENTS)
        """Time, style, text."""
        self._times_ms: dict[str, deque[float]] = {}
        self._heard_s = -math.inf
        self._clock = clock
        self._wall = wall

    def feed(self, item: LineTally | CameraVerdict) -> None:
        if isinstance(item, CameraVerdict):
            self._feed_verdict(item)
            return
        if self.tally is not None:
            self._compare(self.tally, item)
        self.tally = item
        self._heard_s = self._clock()

    @property
    def silent_s(self) -> float:
        """Since the last tally."""
        return self._clock() - self._heard_s

    def percentiles(self, camera: str) -> tuple[float, float] | None:
        """p50 and p99 of the camera's last answers, in milliseconds."""
        times = sorted(self._times_ms.get(camera, ()))
        if not times:
            return None
        return times[(len(times) - 1) // 2], times[math.ceil(0.99 * len(times)) - 1]

    def _feed_verdict(self, item: CameraVerdict) -> None:
        message = item.message
        total = message.stage_ms.get("total")
        if total is not None and (item.camera in self._times_ms or len(self._times_ms) < 256):
            self._times_ms.setdefault(item.camera, deque(maxlen=TIMES)).append(total)
        if message.verdict in ("ng", "uncertain"):
            score = "" if message.score is None else f", score {message.score:.4g}"
            part = f", part {message.part}" if message.part else ""
            self._note(VERDICT_STYLES[message.verdict], f"{item.camera}/{message.seq}: {message.verdict}{score}{part}")

    def _compare(self, before: LineTally, after: LineTally) -> None:
        if before.daemon != after.daemon:
            self._note("bold yellow", "the daemon was restarted")
            return
        if before.ready != after.ready:
            self._note("green" if after.ready else "bold red", "ready" if after.ready else "not ready")
        if after.stopping and not before.stopping:
            self._note("yellow", "the daemon is stopping")
        for name, camera in after.cameras.items():
            was = before.cameras.get(name, camera)
            if was.connected != camera.connected:
                said = "connected" if camera.connected else "gone"
                self._note("green" if camera.connected else "bold red", f"camera {name} {said}")
            lost = sum(camera.not_inspected.values()) - sum(was.not_inspected.values())
            if lost > 0:
                self._note("magenta", f"camera {name}: {lost} not inspected")
            if camera.missed > was.missed:
                self._note("bold red", f"camera {name}: {camera.missed - was.missed} triggers missed")
        for name, product in after.products.items():
            self._compare_product(name, before.products.get(name, product), product)

    def _compare_product(self, name: str, was: ProductTally, product: ProductTally) -> None:
        if was.version != product.version:
            self._note("bold green", f"{name}: {was.version} -> {product.version}")
        if product.failed_swaps > was.failed_swaps:
            self._note("bold red", f"{name}: swap refused: {product.last_failure or 'no reason given'}")
        for kind in sorted(set(product.alarms) - set(was.alarms)):
            self._note("bold red", f"{name}: {kind} drifts")
        for kind in sorted(set(was.alarms) - set(product.alarms)):
            self._note("green", f"{name}: {kind} is back")

    def _note(self, style: str, text: str) -> None:
        self.events.append((f"{self._wall():%H:%M:%S}", style, text))


def render(state: TopState) -> RenderableType:
    """The screen as it stands."""
    tally = state.tally
    if tally is None:
        return _nobody(state)
    parts: list[RenderableType] = [_header(state, tally), "", _cameras(state, tally), "", _products(tally), ""]
    parts.append(_routing(tally))
    if state.events:
        parts.append("")
        parts += [Text.assemble((f"{at}  ", "dim"), (text, style)) for at, style, text in state.events]
    return Group(*parts)


def watch(source: Source, console: Console, *, per_second: float = 4.0) -> None:
    """Show the line until q or Ctrl-C; raises nothing because the daemon is away."""
    state = TopState(source.where)
    with (
        _single_keys() as pressed,
        Live(render(state), console=console, screen=console.is_terminal, auto_refresh=False) as live,
    ):
        try:
            while pressed() not in ("q", "Q"):
                end = time.monotonic() + 1 / per_second
                while (left := end - time.monotonic()) > 0:
                    for item in source.poll(left):
                        state.feed(item)
                state.trouble = source.trouble
                live.update(render(state), refresh=True)
        except KeyboardInterrupt:
            pass


@contextmanager
def _single_keys() -> Iterator[Callable[[], str]]:
    """Yield a function that gives the key pressed, or nothing; the terminal is as before afterwards."""
    try:
        import termios
        import tty

        fd = sys.stdin.fileno()
        before = termios.tcgetattr(fd)
    except (ImportError, OSError, ValueError, AttributeError, termios.error):
        yield lambda: ""
        return

    def pressed() -> str:
        return sys.stdin.read(1) if select.select([fd], [], [], 0)[0] else ""

    tty.setcbreak(fd)
    try:
        yield pressed
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _nobody(state: TopState) -> RenderableType:
    why = f" ({state.trouble})" if state.trouble else ""
    return Text.assemble(("no daemon", "bold red"), f" at {state.where}{why}; trying on. q quits.")


def _header(state: TopState, tally: LineTally) -> Text:
    if state.silent_s > STALE_S:
        badge = (f" NO DAEMON for {state.silent_s:.0f} s ", "bold white on red")
    elif tally.stopping:
        badge = (" STOPPING ", "bold black on yellow")
    else:
        badge = (" READY ", "bold white on green") if tally.ready else (" NOT READY ", "bold white on red")
    text = Text.assemble((tally.name, "bold"), "  ", badge, f"  up {_duration(tally.uptime_s)}")
    text.append(f"  {tally.frames_per_s:.1f} frames/s")
    total = tally.latency_ms.get("total")
    if total and len(total) == 3:
        text.append(f"  p50 {total[0]:.1f}  p95 {total[1]:.1f}  p99 {total[2]:.1f} ms")
    if any(not camera.balanced() for camera in tally.cameras.values()):
        text.append("  THE COUNTS DO NOT ADD UP", "bold red")
    return text


def _cameras(state: TopState, tally: LineTally) -> Table:
    table = _table(("camera", "product"), "received", "ok", "ng", "uncertain", "not insp.", "pending", "queue")
    for head in ("missed", "late", "p50 ms", "p99 ms"):
        table.add_column(head, justify="right")
    for name, camera in tally.cameras.items():
        found = state.percentiles(name)
        times = ("-", "-") if found is None else tuple(f"{ms:.1f}" for ms in found)
        table.add_row(
            Text.assemble(("● ", "green") if camera.connected else ("○ ", "bold red"), name),
            Text(camera.product),
            str(camera.received),
            *_verdicts(camera),
            str(camera.pending),
            str(camera.queue),
            _bad(camera.missed),
            _bad(camera.late),
            *times,
        )
    return table


def _verdicts(camera: CameraTally) -> list[Text]:
    counts = {
        "ok": camera.ok,
        "ng": camera.ng,
        "uncertain": camera.uncertain,
        "not_inspected": sum(camera.not_inspected.values()),
    }
    return [Text(str(count), VERDICT_STYLES[name] if count else "dim") for name, count in counts.items()]


def _products(tally: LineTally) -> Table:
    table = _table(("product", "version"), "lower", "upper", "swaps")
    for head in ("shadow", "alarms"):
        table.add_column(head, overflow="fold")
    for name, product in tally.products.items():
        shadow = "-"
        if product.shadow is not None:
            differs = sum(product.shadow_changed.values())
            shadow = f"{product.shadow}: {differs} of {product.shadow_frames} differ"
        swaps = Text(str(product.swaps))
        if product.failed_swaps:
            swaps.append(f" ({product.failed_swaps} refused)", "bold red")
        alarms = Text(", ".join(product.alarms), "bold red") if product.alarms else Text("none", "dim")
        bounds = ("-" if bound is None else f"{bound:.4g}" for bound in (product.lower, product.upper))
        table.add_row(Text(name), Text(product.version), *bounds, swaps, Text(shadow), alarms)
    return table


def _routing(tally: LineTally) -> Text:
    routing = tally.routing
    text = Text(
        f"operators: {routing.queued} queued of {routing.offered} offered, {routing.waiting} waiting, "
        f"{routing.duplicate} duplicates, {routing.over_budget} over budget; spool {routing.spool_bytes / 1e6:.1f} MB"
    )
    if routing.failed:
        text.append(f"; {routing.failed} FAILED: {routing.last_failure or 'no reason given'}", "bold red")
    return text


def _table(left: tuple[str, ...], *right: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for head in left:
        table.add_column(head, overflow="fold")
    for head in right:
        table.add_column(head, justify="right")
    return table


def _bad(count: int) -> Text:
    return Text(str(count), "bold red" if count else "dim")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"
