"""Decode workers and the judge: frames that are answered under their hands, and whatever else raises, end neither."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import pytest
from line_jobs import make_job

from adclick_edge.errors import AdclickError
from adclick_edge.line.config import Limits
from adclick_edge.line.decoding import DecodeWorker
from adclick_edge.line.drift import DriftMonitor
from adclick_edge.line.frame_stats import FrameStats
from adclick_edge.line.job import Job
from adclick_edge.line.judging import Judge
from adclick_edge.line.models import Models
from adclick_edge.line.routing import Candidate, RelabelRouter
from adclick_edge.line.scheduler import Scheduler
from adclick_edge.runtime.decision import FrameVerdict
from adclick_edge.runtime.inspector import Inspection

SIZE = (4, 4)
FAR_MS = 1e12


def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def expire(job: Job) -> None:
    """What the front does to a job that it answers at its deadline."""
    job.answered = True
    job.payload = job.prepared = None


def ready(seq: int) -> Job:
    job = make_job(seq=seq, deadline_ms=FAR_MS)
    job.prepared, job.shape = np.zeros((*SIZE, 3), np.uint8), SIZE
    job.stats = FrameStats(light=1.0, focus=1.0, small=np.zeros((64, 64), np.uint8))
    return job


class Rig:
    """A judge over a scripted model, router and drift monitor; what it posts."""

    tiled = False
    input_size = SIZE
    product = "p"

    def __init__(self) -> None:
        self.posted: dict[int, FrameVerdict] = {}
        self.offered: list[int] = []
        self.lost_count = 0
        self.on_using: Callable[[], None] = lambda: None
        self.on_wants: Callable[[], None] = lambda: None
        self.on_offer: Callable[[], None] = lambda: None
        self.scheduler = Scheduler({"a": (8, "reject_newest")}, max_batch=4)
        self.judge_thread = Judge(
            self.scheduler,
            cast(Models, self),
            cast(RelabelRouter, self),
            cast(DriftMonitor, self),
            Limits(),
            self.post,
        )

    def post(self, job: Job, verdict: FrameVerdict, message: str | None) -> None:
        del message
        if not job.answered:
            expire(job)
            self.posted[job.seq] = verdict

    # The model and the models

    @contextmanager
    def using(self, product: str) -> Iterator["Rig"]:
        del product
        self.on_using()
        yield self

    def judge(self, frames: Sequence[Any], names: Sequence[str], shapes: Sequence[tuple[int, int]]) -> list[Inspection]:
        found = []
        for frame, name, _ in zip(frames, names, shapes, strict=True):
            assert frame.shape == (*self.input_size, 3)
            verdict = FrameVerdict(frame=name, verdict="uncertain", score=1.0, lower=0.5, upper=2.0)
            found.append(Inspection(verdict=verdict, map=np.zeros((1, 1), np.float32)))
        return found

    def valid(self, shape: tuple[int, ...]) -> None:
        del shape

    def shadowed(self, product: str) -> bool:
        del product
        return False

    # The router and the drift monitor

    def wants(self, *_: object) -> str:
        self.on_wants()
        return "uncertain"

    def offer(self, candidate: Candidate, why: str) -> None:
        del why
        self.on_offer()
        self.offered.append(candidate.seq)

    def lost(self) -> None:
        self.lost_count += 1

    def add(self, *_: object, **__: object) -> None:
        pass

    # Frames through the thread

    @contextmanager
    def running(self) -> Iterator[None]:
        self.judge_thread.start()
        try:
            yield
        finally:
            self.scheduler.stop()
            self.judge_thread.stop()

    def feed(self, *jobs: Job) -> None:
        """As one batch."""
        for job in jobs:
            self.scheduler.add(job)
        taken = [self.scheduler.next_raw(1) for _ in jobs]
        with self.scheduler._lock:  # all of them become ready at one moment
            camera = self.scheduler._cameras["a"]
            for job in taken:
                assert job is not None
                camera.decoding.discard(job)
                camera.ready.append(job)
            self.scheduler._judge.notify()


def test_a_frame_that_expires_before_its_batch_costs_no_other() -> None:
    rig = Rig()
    late, good = ready(0), ready(1)
    rig.on_using = lambda: expire(late)
    with rig.running():
        rig.feed(late, good)
        until(lambda: 1 in rig.posted)
    assert rig.posted[1].verdict == "uncertain"


def test_a_frame_that_expires_while_the_router_is_asked_does_not_end_the_judge() -> None:
    rig = Rig()
    late = ready(0)
    rig.on_wants = lambda: expire(late)
    with rig.running():
        rig.feed(late)
        until(lambda: rig.lost_count + len(rig.offered) == 1)
        rig.on_wants = lambda: None
        rig.feed(ready(1))
        until(lambda: 1 in rig.posted)
        assert rig.judge_thread.is_alive()


def test_a_router_that_raises_does_not_end_the_judge() -> None:
    rig = Rig()

    def broken() -> None:
        raise RuntimeError("out of anything")

    for hook in ("on_offer", "on_wants", "on_using"):
        setattr(rig, hook, broken)
    with rig.running():
        for seq, hook in enumerate(("on_using", "on_wants", "on_offer")):
            rig.feed(ready(seq))
            until(lambda seq=seq: seq in rig.posted)
            setattr(rig, hook, lambda: None)
        rig.feed(ready(3))
        until(lambda: rig.offered == [3])
        assert rig.judge_thread.is_alive()
    assert {seq: v.reason for seq, v in rig.posted.items()} == {0: "engine_error", 1: "engine_error", 2: None, 3: None}
    assert rig.judge_thread.busy_since_ns is None


def test_a_frame_that_cannot_be_decoded_for_the_swapped_bundle_costs_no_other() -> None:
    rig = Rig()
    rig.input_size = (8, 8)
    bad, good = ready(0), ready(1)
    bad.payload = b"0" * 3
    with rig.running():
        rig.feed(bad, good)
        until(lambda: len(rig.posted) == 2)
    assert (rig.posted[0].reason, rig.posted[1].verdict) == ("engine_error", "uncertain")


class Expiring(dict[str, float]):
    """Times of stages that let their job expire when the last one is entered."""

    job: Job

    def __setitem__(self, key: str, value: float) -> None:
        super().__setitem__(key, value)
        if key == "resize":
            expire(self.job)


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    made = Scheduler({"a": (8, "reject_newest")}, max_batch=4)
    yield made
    made.stop()


@contextmanager
def worker_of(scheduler: Scheduler, size: tuple[int, int] | None) -> Iterator[tuple[DecodeWorker, list[int]]]:
    failed: list[int] = []

    def note(job: Job, error: AdclickError) -> None:
        del error
        failed.append(job.seq)

    worker = DecodeWorker(0, scheduler, Limits(), input_size=lambda _: size, measure=DriftMonitor.measure, failed=note)
    worker.start()
    try:
        yield worker, failed
    finally:
        worker.stop()


def test_a_frame_that_expires_while_it_is_decoded_does_not_end_the_worker(scheduler: Scheduler) -> None:
    late = make_job(seq=0)
    late.stage_ms = times = Expiring()
    times.job = late
    with worker_of(scheduler, SIZE) as (worker, failed):
        scheduler.add(late)
        scheduler.add(good := make_job(seq=1))
        until(lambda: good.stats is not None)
        assert worker.is_alive()
    assert failed == []


def test_pixels_that_come_too_late_are_not_kept(scheduler: Scheduler) -> None:
    """A frame displaced while it was decoded would hold its pixels until its deadline."""
    late = make_job(seq=0, deadline_ms=FAR_MS)
    begun, go = threading.Event(), threading.Event()

    class Slow(dict[str, float]):
        def __setitem__(self, key: str, value: float) -> None:
            begun.set()
            go.wait(10)
            super().__setitem__(key, value)

    late.stage_ms = Slow()
    with worker_of(scheduler, SIZE) as (_, failed):
        scheduler.add(late)
        assert begun.wait(10)
        late.answered = True
        late.payload = None
        go.set()
        until(lambda: late.prepared is None)
    assert failed == []


def test_a_picture_too_small_to_be_measured_does_not_end_the_worker(scheduler: Scheduler) -> None:
    tiny = make_job(seq=0)
    tiny.header = type(tiny.header)(seq=0, format="mono8", width=2, height=2)
    tiny.payload = b"0" * 4
    with worker_of(scheduler, None) as (worker, failed):
        scheduler.add(tiny)
        scheduler.add(good := make_job(seq=1))
        until(lambda: good.stats is not None)
        assert worker.is_alive()
    assert failed == []
    assert tiny.stats is None
