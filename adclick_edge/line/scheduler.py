"""Which frame is decoded next, and which frames share the next batch: fair between cameras, never past a deadline.

Every camera has a bounded queue of its own. Cameras take turns by start-time fair queueing: a camera pays one unit of
virtual time per frame served, the one that paid least is next, and one that was idle starts level with the others; so a
camera that floods only delays itself. Within a camera frames keep their order.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from adclick_edge.line.config import OverloadPolicy
from adclick_edge.line.job import Job

__all__ = ["Batch", "BatchCost", "Scheduler"]

NS_PER_MS = 1_000_000
COSTS_REMEMBERED = 16
COST_DOUBTED_NS = 1_000_000_000
"""After so long without a batch of one, frames are not given up for what the last ones cost: one is tried."""
DECODED_AHEAD = 2
"""Batches' worth of frames that may stand decoded: more would be decoded for nothing when they are dropped."""


@dataclass(frozen=True)
class Batch:
    product: str
    jobs: tuple[Job, ...]
    hopeless: tuple[Job, ...] = ()
    """Frames that not even the quickest batch seen lately would answer in time."""


class BatchCost:
    """How long a batch takes at best, from the last ones of each size.

    The smallest of the last few: an estimate that one hiccup cannot raise. Frames given up as hopeless do not correct it,
    so it holds against them for a while only (`hopeless_ns`): a host that was busy for some seconds, or a bundle that was
    too slow and was rolled back, would stop the line for good.
    """

    def __init__(self) -> None:
        self._seen: dict[int, deque[int]] = {}
        self._single_ns = 0

    def add(self, frames: int, took_ns: int, now: int) -> None:
        self._seen.setdefault(frames, deque(maxlen=COSTS_REMEMBERED)).append(took_ns)
        if frames == 1:
            self._single_ns = now

    def hopeless_ns(self, now: int) -> int:
        """A frame with less time left is given up."""
        return self.least_ns(1) if now - self._single_ns < COST_DOUBTED_NS else 0

    def least_ns(self, frames: int) -> int:
        """For a size not seen, in proportion to the next smaller one seen; 0 while nothing is known."""
        for size in range(frames, 0, -1):
            if size in self._seen:
                return min(self._seen[size]) * frames // size
        return 0


@dataclass
class _Camera:
    limit: int
    policy: OverloadPolicy
    raw: deque[Job] = field(default_factory=deque)
    ready: deque[Job] = field(default_factory=deque)
    decoding: set[Job] = field(default_factory=set)
    decode_turn: float = 0.0
    judge_turn: float = 0.0

    def waiting(self) -> int:
        return len(self.raw) + len(self.decoding) + len(self.ready)

    def oldest(self) -> Job:
        """The oldest that nobody worked on yet: to drop a decoded one would cost its work, and at every trigger again, so
        that a camera that triggers faster than it is judged would never have a frame ready when its turn comes.
        """
        if self.raw:
            return self.raw[0]
        if self.ready:
            return self.ready[0]
        return min(self.decoding, key=lambda job: job.seq)


class Scheduler:
    """Thread-safe: one thread adds and drops, decode workers and the engine's thread take.

    ``cameras`` gives each camera's queue length and policy.
    """

    def __init__(
        self,
        cameras: Mapping[str, tuple[int, OverloadPolicy]],
        *,
        max_batch: int,
        batch_wait_ms: float = 0.0,
        margin_ms: float = 0.0,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._cameras = {name: _Camera(limit, policy) for name, (limit, policy) in cameras.items()}
        self._max_batch = max_batch
        self._batch_wait_ns = int(batch_wait_ms * NS_PER_MS)
        self._margin_ns = int(margin_ms * NS_PER_MS)
        self._clock = clock
        self._costs: dict[str, BatchCost] = {}
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        """Something to decode, or room for what is decoded."""
        self._judge = threading.Condition(self._lock)
        self._stopped = False

    def add(self, job: Job) -> Job | None:
        """Take a frame in. Returns the one that must be answered with overload instead: itself, or the oldest."""
        with self._lock:
            camera = self._cameras[job.camera]
            displaced = None
            if self._stopped:
                return job
            if camera.waiting() >= camera.limit:
                if camera.policy != "drop_oldest":
                    return job
                displaced = camera.oldest()
                self._remove(camera, displaced)
            if not camera.raw:
                camera.decode_turn = max(camera.decode_turn, self._least_turn("decode_turn"))
            camera.raw.append(job)
            self._work.notify()
            return displaced

    def drop(self, job: Job) -> None:
        """Forget a frame that was answered while it waited."""
        with self._lock:
            self._remove(self._cameras[job.camera], job)
            self._work.notify()

    def waiting(self, camera: str) -> int:
        with self._lock:
            return self._cameras[camera].waiting()

    def next_raw(self, timeout_s: float) -> Job | None:
        """The frame to decode next; None after the timeout, or when stopped."""
        with self._lock:
            if not self._work.wait_for(self._may_decode, timeout_s) or self._stopped:
                return None
            camera = min((c for c in self._cameras.values() if c.raw), key=lambda c: (c.decode_turn, c.raw[0].born_ns))
            job = camera.raw.popleft()
            camera.decoding.add(job)
            camera.decode_turn += 1
            return job

    def decoded(self, job: Job) -> None:
        """Its pixels are prepared. A frame that was dropped meanwhile is not taken."""
        with self._lock:
            camera = self._cameras[job.camera]
            if job not in camera.decoding:
                return
            camera.decoding.discard(job)
            if not camera.ready:
                camera.judge_turn = max(camera.judge_turn, self._least_turn("judge_turn"))
            # Several workers may finish out of order.
            place = len(camera.ready)
            while place and camera.ready[place - 1].seq > job.seq and camera.ready[place - 1].session == job.session:
                place -= 1
            camera.ready.insert(place, job)
            self._judge.notify()

    def next_batch(self, timeout_s: float) -> Batch | None:
        """Frames of one product to judge together; None after the timeout, or when stopped."""
        end = self._clock() + int(timeout_s * 1000) * NS_PER_MS
        with self._lock:
            while not self._stopped:
                now = self._clock()
                first = self._first_ready()
                if first is None:
                    if now >= end or not self._judge.wait((end - now) / 1e9):
                        return None
                    continue
                wait_ns = self._may_wait_ns(first.product, now)
                if wait_ns > 0:
                    self._judge.wait(wait_ns / 1e9)
                    continue
                return self._take(first.product, now)
        return None

    def took(self, product: str, frames: int, ns: int) -> None:
        """What a batch cost, so that the next one fits its deadlines."""
        with self._lock:
            self._costs.setdefault(product, BatchCost()).add(frames, ns, self._clock())

    def stop(self) -> None:
        """Let every waiting thread go. What still waits stays with the owner of the books."""
        with self._lock:
            self._stopped = True
            self._work.notify_all()
            self._judge.notify_all()

    def _remove(self, camera: _Camera, job: Job) -> None:
        if job in camera.decoding or job in camera.ready:
            camera.decode_turn -= 1  # its turn came to nothing
        camera.decoding.discard(job)
        for queue in (camera.raw, camera.ready):
            if job in queue:
                queue.remove(job)

    def _least_turn(self, which: str) -> float:
        queue = "raw" if which == "decode_turn" else "ready"
        turns = [getattr(c, which) for c in self._cameras.values() if getattr(c, queue)]
        return min(turns, default=0.0)

    def _may_decode(self) -> bool:
        if self._stopped:
            return True
        ready = sum(len(c.ready) + len(c.decoding) for c in self._cameras.values())
        return ready < DECODED_AHEAD * self._max_batch + 1 and any(c.raw for c in self._cameras.values())

    def _order(self) -> list[_Camera]:
        return sorted(
            (c for c in self._cameras.values() if c.ready), key=lambda c: (c.judge_turn, c.ready[0].deadline_ns)
        )

    def _first_ready(self) -> Job | None:
        order = self._order()
        return order[0].ready[0] if order else None

    def _may_wait_ns(self, product: str, now: int) -> int:
        """How long the batch may still fill: until its oldest frame waited enough, or its nearest deadline forbids it."""
        if self._batch_wait_ns == 0:
            return 0
        jobs = [job for camera in self._cameras.values() for job in camera.ready if job.product == product]
        if len(jobs) >= self._max_batch:
            return 0
        cost = self._costs.get(product, BatchCost()).least_ns(len(jobs) + 1)
        patience = min(job.received_ns for job in jobs) + self._batch_wait_ns
        latest_start = min(job.deadline_ns for job in jobs) - self._margin_ns - cost
        return min(patience, latest_start) - now

    def _take(self, product: str, now: int) -> Batch:
        cost = self._costs.setdefault(product, BatchCost())
        jobs: list[Job] = []
        hopeless: list[Job] = []
        nearest = None
        while len(jobs) < self._max_batch:
            camera = next((c for c in self._order() if c.ready[0].product == product), None)
            if camera is None:
                break
            job = camera.ready[0]
            if now + cost.hopeless_ns(now) > job.deadline_ns:
                hopeless.append(camera.ready.popleft())
                continue
            deadline = job.deadline_ns if nearest is None else min(nearest, job.deadline_ns)
            if jobs and now + cost.least_ns(len(jobs) + 1) > deadline - self._margin_ns:
                break  # one more frame would make the batch too late for one of its own
            nearest = deadline
            jobs.append(camera.ready.popleft())
            camera.judge_turn += 1
        self._work.notify()
        return Batch(product, tuple(jobs), tuple(hopeless))
