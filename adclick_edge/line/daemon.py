"""The line daemon: cameras in, verdicts out; all its threads are owned by one object."""

import os
import secrets
import sys
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import structlog
import zmq

from adclick_edge.errors import AdclickError, LineError
from adclick_edge.line.authenticator import Authenticator
from adclick_edge.line.books import Books
from adclick_edge.line.config import LineConfig
from adclick_edge.line.control import (
    CONTROL_SOCKET,
    ControlServer,
    Reload,
    Reply,
    Request,
    Rollback,
    Shadow,
    Status,
    Swap,
)
from adclick_edge.line.curve import ServerKeys, serve_with_curve
from adclick_edge.line.decoding import DecodeWorker
from adclick_edge.line.drift import DriftMonitor, Signal
from adclick_edge.line.front import Answered, Front
from adclick_edge.line.http_server import HttpServer
from adclick_edge.line.job import Job
from adclick_edge.line.judging import Judge
from adclick_edge.line.latency import LatencyWindow
from adclick_edge.line.line_sockets import bind_sockets
from adclick_edge.line.logs import report_suppressed
from adclick_edge.line.metrics import LineMetrics
from adclick_edge.line.models import Models, SwapOutcome
from adclick_edge.line.ring import remove_leftovers
from adclick_edge.line.routing import RelabelRouter
from adclick_edge.line.scheduler import Scheduler
from adclick_edge.line.shift import ShiftBook
from adclick_edge.line.spool import Spool
from adclick_edge.line.systemd import WATCHDOG, notify, watchdog_s
from adclick_edge.line.tally import LineTally, RoutingTally
from adclick_edge.runtime.decision import not_inspected

__all__ = ["Daemon"]

SWITCH_INTERVAL_S = 0.0005
"""A thread that waits for the interpreter gets it after so long; Python's 5 ms are half of a frame's time."""
ENGINE_STUCK_S = 10.0
HOUSE_EVERY_S = 1.0
FRONT_GONE_S = 2.0
DRIFT_SAVED_EVERY_S = 30.0


class Daemon:
    """``start`` loads the bundles and binds; ``stop`` answers what is left. Use as a context manager.

    ``stop_asked`` is set when somebody asked it to stop over its control socket.
    """

    def __init__(self, config: LineConfig, *, models: Models | None = None) -> None:
        """``models`` for tests; ConfigError and LineError come from `start`."""
        line = config.line
        self.config = config
        self.stop_asked = threading.Event()
        self._log = structlog.get_logger()
        self._id = secrets.randbits(63)
        self._started = time.monotonic()
        self._started_utc = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.models = models or Models(config, threads=line.threads or default_threads())
        self._books = Books({name: camera.product for name, camera in config.cameras.items()})
        self._latency = LatencyWindow()
        self._drift = DriftMonitor(config.alarms)
        self._metrics = LineMetrics(
            self.tally, cameras=config.cameras, products=config.products, deviations=self._deviations
        )
        self._shift = ShiftBook(line.state, config.shift.reports or line.state / "shifts", config.shift.starts)
        self._scheduler = Scheduler(
            {name: (camera.queue, camera.overload) for name, camera in config.cameras.items()},
            max_batch=line.max_batch,
            batch_wait_ms=line.batch_wait_ms,
            margin_ms=line.answer_margin_ms,
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._gate: Authenticator | None = None
        self._front: Front | None = None
        self._judge: Judge | None = None
        self._workers: list[DecodeWorker] = []
        self._router: RelabelRouter | None = None
        self._http: HttpServer | None = None
        self._control: ControlServer | None = None
        self._house: threading.Thread | None = None
        self._stopping = threading.Event()
        self._ready = False
        self._switch_interval = sys.getswitchinterval()
        self._refused: dict[str, int] = {}
        self._alarms: dict[str, tuple[str, ...]] = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def http_address(self) -> str | None:
        """host:port of the health endpoints, with the port that was taken."""
        return None if self._http is None else self._http.address

    def start(self) -> None:
        """Load, bind, run. On an error everything begun is undone, and the error says what to do."""
        config, line = self.config, self.config.line
        try:
            self._control = ControlServer(line.state / CONTROL_SOCKET, self._carry_out)
            self._control.start()  # first: it holds the state folder, so that two daemons never share one
            for name in remove_leftovers():
                self._log.info("shared memory of a dead camera removed", name=name)
            self._load_drift()
            self.models.open()
            for name, product in self.models.tally().items():
                self._log.info("product", product=name, version=product.version, bundle=product.bundle)
                for notice in product.notices:
                    self._log.warning("notice", product=name, text=notice)
            self._start_threads()
            if line.http is not None:
                self._http = HttpServer(
                    line.http, self.tally, ready=self.why_not_ready, alive=self.seconds_silent, metrics=self._metrics
                )
                self._http.start()
        except BaseException:
            self.stop()
            raise
        self._ready = True
        self._log.info("ready", line=line.name, bind=list(config.line.bind), http=self.http_address)

    def _start_threads(self) -> None:
        config, line = self.config, self.config.line
        curve = None
        if config.security.curve:
            keys = ServerKeys.load(config.security.keys)
            self._gate = Authenticator(self._context, config.security.keys)
            self._gate.start()

            def curve(socket: "zmq.Socket[bytes]") -> None:
                serve_with_curve(socket, keys)

        sys.setswitchinterval(SWITCH_INTERVAL_S)
        spool = Spool(config.routing.spool or line.state / "relabel", config.routing.max_spool_bytes)
        self._router = RelabelRouter(config.routing, spool)
        self._router.start()
        self._front = Front(
            config,
            bind_sockets(self._context, config, curve),
            self._books,
            self._scheduler,
            daemon=self._id,
            product_for=self._product_for,
            answered=self._answered,
            each_second=self._messages,
            log=self._log,
        )
        self._judge = Judge(self._scheduler, self.models, self._router, self._drift, config.limits, self._front.post)
        self._workers = [
            DecodeWorker(
                number,
                self._scheduler,
                config.limits,
                input_size=self.models.input_size,
                measure=self._drift.measure,
                failed=self._cannot_decode,
            )
            for number in range(line.decode_workers)
        ]
        self._house = threading.Thread(target=self._keep_house, name="house", daemon=True)
        for thread in (self._judge, *self._workers, self._front, self._house):
            thread.start()

    def stop(self) -> None:
        """Judge what was taken for ``drain_s`` at most, answer the rest with shutdown, and end every thread.

        What cannot be written any more is logged; the rest is ended all the same.
        """
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._ready = False
        if self._front is not None:
            if self._front.is_alive() and not self._front.drain(self.config.line.drain_s):
                self._log.warning("not everything was judged in time", drain_s=self.config.line.drain_s)
            self._front.stop()
        self._scheduler.stop()
        for worker in self._workers:
            if worker.is_alive():
                worker.stop()
        if self._judge is not None and self._judge.is_alive():
            self._judge.stop()
        if self._house is not None and self._house.is_alive():
            self._house.join(10)
        for part in (self._stop_router, self._stop_http, self._close_models, self._close_books, self._stop_gate):
            try:
                part()
            except Exception as error:
                self._log.error("not ended in order", part=part.__name__, why=f"{type(error).__name__}: {error}")
        self._context.destroy()  # sockets were closed with the time their last messages may take
        sys.setswitchinterval(self._switch_interval)
        if self._control is not None:
            self._control.stop()  # last: it holds the state folder, which another daemon may be waiting for
        self._log.info("stopped", **self._sums())

    def _stop_router(self) -> None:
        if self._router is not None:
            self._router.stop()

    def _stop_http(self) -> None:
        if self._http is not None:
            self._http.stop()

    def _close_models(self) -> None:
        if self._judge is None or not self._judge.is_alive():
            self.models.close()

    def _close_books(self) -> None:
        if self._front is not None:
            self._shift.observe(self.tally())
            self._shift.close()
            self._drift.save(self._drift_file)

    def _stop_gate(self) -> None:
        if self._gate is not None:
            self._gate.stop()

    # What others ask

    def tally(self) -> LineTally:
        """The books at this moment."""
        products = self.models.tally()
        for name, product in products.items():
            product.alarms = self._drift.alarms(name)
        return LineTally(
            name=self.config.line.name,
            daemon=self._id,
            started_utc=self._started_utc,
            taken_utc=datetime.now(UTC).isoformat(timespec="milliseconds"),
            uptime_s=round(time.monotonic() - self._started, 3),
            ready=self.why_not_ready() is None,
            stopping=self._stopping.is_set(),
            cameras=self._books.cameras((name, self._scheduler.waiting(name)) for name in self.config.cameras),
            products=products,
            routing=RoutingTally() if self._router is None else self._router.tally(),
            strangers={**self._books.strangers(), **{f"key: {why}": n for why, n in self._refused.items()}},
            latency_ms=self._latency.snapshot(),
            frames_per_s=self._books.frames_per_s(),
        )

    def why_not_ready(self) -> str | None:
        if self._stopping.is_set():
            return "the daemon stops"
        if not self._ready:
            return "bundles are being loaded"
        silent = self.seconds_silent()
        return None if silent < FRONT_GONE_S else f"nothing was answered for {silent:.0f} s"

    def seconds_silent(self) -> float:
        """Since the front last came round, or since the engine began a batch that takes far too long."""
        if self._front is None or self._judge is None:
            return 0.0
        now = time.monotonic_ns()
        silent = (now - self._front.beat_ns) / 1e9
        if (busy := self._judge.busy_since_ns) is not None and (now - busy) / 1e9 > ENGINE_STUCK_S:
            silent = max(silent, (now - busy) / 1e9)
        return float("inf") if self.ended() else silent

    def ended(self) -> list[str]:
        """Threads that ended by a fault, without which frames are not judged; the daemon must be started again."""
        if self._stopping.is_set():
            return []
        needed = (self._front, self._judge, *self._workers)
        return [thread.name for thread in needed if thread is not None and not thread.is_alive()]

    def _carry_out(self, request: Request) -> Reply:
        if self._stopping.is_set() and isinstance(request, Swap | Rollback | Shadow | Reload):
            return Reply(False, "the daemon is stopping; nothing was changed")
        match request:
            case Swap(product, bundle, force):
                return self._outcome("swap", self.models.swap(product, bundle, force=force))
            case Rollback(product):
                return self._outcome("rollback", self.models.rollback(product))
            case Shadow(product, bundle):
                return self._outcome("shadow", self.models.shadow(product, bundle))
            case Status():
                return Reply(True, details=msgspec.to_builtins(self.tally()))
            case Reload():
                changed = self.models.reload_settings()
                return Reply(True, f"taken over for {', '.join(changed)}" if changed else "nothing changed")
            case _:
                self.stop_asked.set()
                return Reply(True, "the daemon stops")

    def _outcome(self, what: str, outcome: SwapOutcome) -> Reply:
        log = self._log.info if outcome.ok else self._log.error
        log(what, product=outcome.product, ok=outcome.ok, version=outcome.version, text=outcome.message)
        if outcome.ok and what != "shadow":
            scores: tuple[Signal, ...] = ("score",)
            self._drift.reset(None, outcome.product, scores)  # other networks, other scores
        return Reply(outcome.ok, outcome.message, msgspec.to_builtins(outcome))

    # What the threads call

    def _product_for(self, camera: str, code: str | None) -> str | None:
        try:
            return self.models.product_for(camera, code)
        except LineError:
            return None

    def _cannot_decode(self, job: Job, error: AdclickError) -> None:
        assert self._front is not None
        self._front.post(job, not_inspected("bad_frame", frame=job.name), str(error))

    def _answered(self, answered: Answered) -> None:
        job, verdict = answered.job, answered.verdict
        self._latency.add(verdict.stage_ms, answered.total_ms)
        self._metrics.answered(
            job.camera,
            verdict.verdict,
            verdict.reason,
            verdict.stage_ms,
            answered.total_ms,
            product=job.product,
            score=verdict.score,
        )
        self._shift.answered(
            job.camera,
            job.product,
            verdict.verdict,
            verdict.reason,
            verdict.stage_ms,
            answered.total_ms,
            verdict.score,
        )

    def _messages(self) -> Mapping[str, bytes]:
        return {"tally": msgspec.json.encode(self.tally())}

    # House-keeping

    @property
    def _drift_file(self) -> Path:
        return self.config.line.state / "drift.json"

    def _keep_house(self) -> None:
        pet = watchdog_s()
        saved = time.monotonic()
        while not self._stopping.wait(HOUSE_EVERY_S):
            try:
                for product in self.models.reload_settings():
                    self._log.info("thresholds taken over", product=product)
                self._note_alarms()
                self._shift.observe(self.tally())
                report_suppressed()
                self._note_refusals()
                if time.monotonic() - saved > DRIFT_SAVED_EVERY_S:
                    self._drift.save(self._drift_file)
                    saved = time.monotonic()
            except Exception as error:  # a full disk must not end the house-keeping, nor it the line
                self._log.error("house-keeping failed", why=f"{type(error).__name__}: {error}")
            if pet is not None and self.seconds_silent() < pet:
                notify(WATCHDOG)

    def _note_alarms(self) -> None:
        for product in self.config.products:
            on, before = self._drift.alarms(product), self._alarms.get(product, ())
            if begun := set(on) - set(before):
                self._log.warning("drift alarm", product=product, alarms=sorted(begun))
            if over := set(before) - set(on):
                self._log.info("drift alarm over", product=product, alarms=sorted(over))
            self._alarms[product] = on

    def _note_refusals(self) -> None:
        """Clients that the gate turned away count as strangers; a broken allow-list is said."""
        if self._gate is None:
            return
        refused = self._gate.refused()
        for why, count in refused.items():
            if count > self._refused.get(why, 0):
                self._log.warning("connection refused", why=why, count=count)
        self._refused = refused  # another one each time: other threads may be reading the old one
        if problem := self._gate.problem():
            self._log.error("the allow-list on disk is not in use", why=problem)

    def _load_drift(self) -> None:
        try:
            self._drift.load(self._drift_file)
        except LineError as error:  # no reason to leave the line standing
            self._log.warning("drift is learned anew", why=str(error))

    def _deviations(self) -> Mapping[str, Mapping[str, float]]:
        """Of each product's signals, at the camera where it is furthest off."""
        worst: dict[str, dict[str, float]] = {}
        for (_, product), states in self._drift.states().items():
            of_product: dict[str, float] = worst.setdefault(product, {})
            for signal, state in states.items():
                if abs(state.deviation) >= abs(of_product.get(signal, 0.0)):
                    of_product[signal] = state.deviation
        return worst

    def _sums(self) -> dict[str, int]:
        cameras = self._books.cameras().values()
        return {
            "received": sum(c.received for c in cameras),
            "ok": sum(c.ok for c in cameras),
            "ng": sum(c.ng for c in cameras),
            "uncertain": sum(c.uncertain for c in cameras),
            "not_inspected": sum(sum(c.not_inspected.values()) for c in cameras),
            "pending": sum(c.pending for c in cameras),
        }


def default_threads() -> int:
    """All cores but the one that the front and the decoders share; one where there are no more."""
    return max(1, len(os.sched_getaffinity(0)) - 1)
