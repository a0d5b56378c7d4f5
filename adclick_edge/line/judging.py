"""The engine's thread: batches to verdicts. It alone runs engines."""

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
Post = Callable[[Job, FrameVerdict, str | None], None]
"""Job, its verdict, and what to tell people beyond it."""


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
                    self._batch(batch, reader)
                    self.busy_since_ns = None
        finally:
            reader.close()

    def _batch(self, batch: Batch, reader: PayloadReader) -> None:
        for job in batch.hopeless:
            self._post(job, not_inspected("deadline", frame=job.name), None)
        jobs = [job for job in batch.jobs if not job.answered]
        if not jobs:
            return
        frames = [job.prepared for job in jobs]  # for the shadow; an answer lets go of them
        inspections: list[Inspection | None] = []
        with self._models.using(batch.product) as model:
            try:
                inspections = self._judge(model, jobs, reader)
            except Exception as error:  # a back end may raise anything; the line goes on
                self._engine_failed(jobs, error)
                return
            for job, inspection in zip(jobs, inspections, strict=True):
                if inspection is not None:
                    self._finish(model, job, inspection, reader)
        self._shadow(batch.product, jobs, frames, inspections)

    def _judge(self, model: Model, jobs: Sequence[Job], reader: PayloadReader) -> list[Inspection | None]:
        began = self._clock()
        size = None if model.tiled else model.input_size
        for job in jobs:
            assert job.prepared is not None
            if job.prepared.shape[:2] != (size or job.shape):
                reader.prepare(job, size)  # decoded for a bundle that was swapped meanwhile
        try:
            found: list[Inspection | None] = list(self._run(model, jobs))
        except Exception as error:
            if len(jobs) == 1:
                raise
            # One frame that the engine cannot stand must not take the others with it.
            found = []
            for job in jobs:
                try:
                    found.extend(self._run(model, [job]))
                except Exception:
                    found.append(None)
                    self._engine_failed([job], error)
        else:
            self._scheduler.took(model.product, len(jobs), self._clock() - began)
        return found

    def _run(self, model: Model, jobs: Sequence[Job]) -> list[Inspection]:
        frames = [job.prepared for job in jobs if job.prepared is not None]
        return model.judge(frames, [job.name for job in jobs], [job.shape for job in jobs])

    def _engine_failed(self, jobs: Sequence[Job], error: Exception) -> None:
        why = str(error) if isinstance(error, AdclickError) else f"{type(error).__name__}: {error}"
        for job in jobs:
            self._post(job, not_inspected("engine_error", frame=job.name), f"the engine failed: {why}")

    def _finish(self, model: Model, job: Job, inspection: Inspection, reader: PayloadReader) -> None:
        verdict = inspection.verdict
        why = None
        if verdict.verdict != "not_inspected" and not job.answered:
            why = self._router.wants(job.camera, job.product, verdict)
        # Its verdict lets the camera use a slot in shared memory again, so that is read before; all else comes after.
        early = why is not None and job.header.ring is not None
        payload = job.payload  # the answer lets go of it
        candidate = self._candidate(model, job, payload, inspection, reader) if early else None
        self._post(job, verdict, None)
        if why is not None and not early:
            candidate = self._candidate(model, job, payload, inspection, reader)
        if why is not None and candidate is not None:
            self._router.offer(candidate, why)
        if verdict.score is not None and job.stats is not None:
            calibrated = verdict.reason != "uncalibrated"
            self._drift.add(job.camera, job.product, job.stats, verdict.score, verdict.verdict, calibrated=calibrated)

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
        except AdclickError:
            self._router.lost()
            return None

    def _shadow(
        self,
        product: str,
        jobs: Sequence[Job],
        frames: Sequence[npt.NDArray[np.uint8] | None],
        inspections: Sequence[Inspection | None],
    ) -> None:
        if not self._models.shadowed(product):
            return
        judged = [
            (frame, job, found.verdict)
            for frame, job, found in zip(frames, jobs, inspections, strict=True)
            if frame is not None and found is not None
        ]
        if judged:
            self._models.shadow_judge(
                product,
                [frame for frame, _, _ in judged],
                [job.name for _, job, _ in judged],
                [job.shape for _, job, _ in judged],
                [verdict for _, _, verdict in judged],
            )
