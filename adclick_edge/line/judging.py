"""The engine's thread: batches to verdicts. It alone runs engines."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from adclick_edge.errors import AdclickError
from adclick_edge.line.config import Limits
from adclick_edge.line.decoding import PayloadReader
from adclick_edge.line.drift import DriftMonitor
from adclick_edge.line.job import Job
from adclick_edge.line.models import Model, Models
from adclick_edge.line.pixels import to_rgb
from adclick_edge.line.protocol import ENCODED
from adclick_edge.line.routing import Candidate, RelabelRouter
from adclick_edge.line.scheduler import Batch, Scheduler
from adclick_edge.runtime.decision import FrameVerdict, not_inspected
from adclick_edge.runtime.inspector import Inspection

__all__ = ["Judge"]

IDLE_S = 0.1
U8 = npt.NDArray[np.uint8]
Post = Callable[[Job, FrameVerdict, str | None], None]
"""Job, its verdict, and what to tell people beyond it."""

_log = logging.getLogger(__name__)


class Judge(threading.Thread):
    """Takes batches from the scheduler and posts verdicts. An engine that raises costs the frames it was given, no more."""

    def __init__(
        self,
        scheduler: Scheduler,
        models: Models,
        router: RelabelRouter,
        drift: DriftMonitor,
        limits: Limits,
        post: Post,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        super().__init__(name="judge", daemon=True)
        self._scheduler, self._models, self._router, self._drift = scheduler, models, router, drift
        self._limits, self._post, self._clock = limits, post, clock
        self._stopping = threading.Event()
        self.busy_since_ns: int | None = None
        """When the batch in work was begun; a watchdog looks at it."""

    def stop(self, timeout_s: float = 10.0) -> None:
        self._stopping.set()
        self.join(timeout_s)

    def run(self) -> None:
        reader = PayloadReader(self._limits)
        try:
            while not self._stopping.is_set():
                batch = self._scheduler.next_batch(IDLE_S)
                if batch is not None:
                    self.busy_since_ns = self._clock()
                    try:
                        self._batch(batch, reader)
                    except Exception as error:  # without this thread nothing would be judged any more
                        _log.exception("a batch could not be seen through")
                        self._engine_failed(batch.jobs, error)
                    self.busy_since_ns = None
        finally:
            reader.close()

    def _batch(self, batch: Batch, reader: PayloadReader) -> None:
        for job in batch.hopeless:
            self._post(job, not_inspected("deadline", frame=job.name), None)
        # The front lets go of a job's pixels when it answers it, at any moment; ours stay until the batch is done.
        taken = [(job, frame) for job in batch.jobs if (frame := job.prepared) is not None]
        with self._models.using(batch.product) as model:
            taken = self._fitting(model, taken, reader)
            if not taken:
                return
            jobs, frames = [job for job, _ in taken], [frame for _, frame in taken]
            try:
                inspections = self._judge(model, jobs, frames)
            except Exception as error:  # a back end may raise anything; the line goes on
                self._engine_failed(jobs, error)
                return
            for job, inspection in zip(jobs, inspections, strict=True):
                if inspection is not None:
                    self._finish(model, job, inspection, reader)
        self._shadow(batch.product, jobs, frames, inspections)

    def _fitting(self, model: Model, taken: Sequence[tuple[Job, U8]], reader: PayloadReader) -> list[tuple[Job, U8]]:
        """Frames of the size that ``model`` takes: those decoded for a bundle that was swapped meanwhile are decoded again."""
        size = None if model.tiled else model.input_size
        found = []
        for job, frame in taken:
            if frame.shape[:2] == (size or job.shape):
                found.append((job, frame))
                continue
            try:
                frame = reader.prepare(job, size)
            except Exception as error:
                self._engine_failed([job], error)
            else:
                found.append((job, frame))
        return found

    def _judge(self, model: Model, jobs: Sequence[Job], frames: Sequence[U8]) -> list[Inspection | None]:
        began = self._clock()
        try:
            found: list[Inspection | None] = list(self._run(model, jobs, frames))
        except Exception as error:
            if len(jobs) == 1:
                raise
            # One frame that the engine cannot stand must not take the others with it.
            found = []
            for job, frame in zip(jobs, frames, strict=True):
                try:
                    found.extend(self._run(model, [job], [frame]))
                except Exception:
                    found.append(None)
                    self._engine_failed([job], error)
        else:
            self._scheduler.took(model.product, len(jobs), self._clock() - began)
        return found

    def _run(self, model: Model, jobs: Sequence[Job], frames: Sequence[U8]) -> list[Inspection]:
        return model.judge(frames, [job.name for job in jobs], [job.shape for job in jobs])

    def _engine_failed(self, jobs: Sequence[Job], error: Exception) -> None:
        why = str(error) if isinstance(error, AdclickError) else f"{type(error).__name__}: {error}"
        for job in jobs:
            self._post(job, not_inspected("engine_error", frame=job.name), f"the engine failed: {why}")

    def _finish(self, model: Model, job: Job, inspection: Inspection, reader: PayloadReader) -> None:
        verdict = inspection.verdict
        payload = job.payload  # an answer, which may come at any moment, lets go of it
        why = None
        if verdict.verdict != "not_inspected" and not job.answered:
            why = self._router.wants(job.camera, job.product, verdict)
        # Its verdict lets the camera use a slot in shared memory again, so that is read before; all else comes after.
        early = why is not None and job.header.ring is not None
        candidate = self._candidate(model, job, payload, inspection, reader) if early else None
        self._post(job, verdict, None)
        try:
            if why is not None and not early:
                candidate = self._candidate(model, job, payload, inspection, reader)
            if why is not None and candidate is not None:
                self._router.offer(candidate, why)
            if (stats := job.stats) is not None and verdict.score is not None:
                calibrated = verdict.reason != "uncalibrated"
                self._drift.add(job.camera, job.product, stats, verdict.score, verdict.verdict, calibrated=calibrated)
        except Exception:  # the rest of the batch waits for its verdicts
            _log.exception("a frame could not be passed on")

    def _candidate(
        self, model: Model, job: Job, payload: Any, inspection: Inspection, reader: PayloadReader
    ) -> Candidate | None:
        encoded = job.header.format in ENCODED
        try:
            data = reader.payload(job.header, payload)
            return Candidate(
                camera=job.camera,
                session=job.session,
                seq=job.seq,
                part=job.header.part,
                product=job.product,
                verdict=inspection.verdict,
                map=inspection.map,
                frame=None if encoded else to_rgb(job.header, data),
                encoded=bytes(data) if encoded else None,
                suffix={"jpeg": ".jpg", "png": ".png"}.get(job.header.format, ".png"),
                judged_utc=datetime.now(UTC),
                valid=model.valid(inspection.map.shape),
            )
        except Exception:  # also what a decoder or a disk raises, and memory that is not there
            self._router.lost()
            return None

    def _shadow(
        self,
        product: str,
        jobs: Sequence[Job],
        frames: Sequence[U8],
        inspections: Sequence[Inspection | None],
    ) -> None:
        if not self._models.shadowed(product):
            return
        judged = [
            (frame, job, found.verdict)
            for frame, job, found in zip(frames, jobs, inspections, strict=True)
            if found is not None
        ]
        if judged:
            self._models.shadow_judge(
                product,
                [frame for frame, _, _ in judged],
                [job.name for _, job, _ in judged],
                [job.shape for _, job, _ in judged],
                [verdict for _, _, verdict in judged],
            )
