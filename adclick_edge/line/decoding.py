"""Decode workers: a frame's bytes to pixels at the network's input size, straight out of shared memory for local cameras."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from adclick_edge.errors import AdclickError, ImageError
from adclick_edge.line.config import Limits
from adclick_edge.line.job import Job
from adclick_edge.line.pixels import check_claims, halving_part_bytes, to_input, to_input_from_parts, to_rgb
from adclick_edge.line.protocol import ENCODED, FrameHeader
from adclick_edge.line.ring import RingReader
from adclick_edge.line.scheduler import Scheduler

__all__ = ["DecodeWorker", "PayloadReader"]

U8 = npt.NDArray[np.uint8]
IDLE_S = 0.2


class PayloadReader:
    """Pixels of jobs, for one thread."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._ring = RingReader(max_payload_bytes=limits.max_payload_bytes)

    def close(self) -> None:
        self._ring.close()

    def prepare(self, job: Job, size: tuple[int, int] | None) -> U8:
        """Set the job's ``prepared`` (at ``size``, or as large as it is), ``shape``, and the times of ``read`` and ``resize``
        (of compressed frames ``decode``, the two in one). ImageError, ProtocolError.

        Returns the pixels: the job's own are gone once it is answered, which may be at any moment.
        """
        header = job.header
        began = time.perf_counter()
        part_bytes = None if header.ring is None or size is None else halving_part_bytes(header, size)
        if part_bytes is not None and header.ring is not None and size is not None:
            check_claims(header, header.ring.size_bytes, self._limits)
            parts = _Timed(self._ring.parts(header.ring, part_bytes))
            pixels = to_input_from_parts(header, parts, size)
            read_s = parts.seconds
        else:
            data = self.payload(header, job.payload)
            read_s = time.perf_counter() - began
            pixels = to_rgb(header, data) if size is None else to_input(header, data, size)
        job.shape = (header.height, header.width)
        job.stage_ms["read"] = 1e3 * read_s
        job.stage_ms["decode" if header.format in ENCODED else "resize"] = 1e3 * (time.perf_counter() - began - read_s)
        job.prepared = pixels
        if job.answered:  # meanwhile; it may be kept for a while, its pixels need not be
            job.prepared = None
        return pixels

    def payload(self, header: FrameHeader, part: Any) -> memoryview:
        """A frame's bytes, checked: of its message's second ``part``, or those in shared memory, whole but valid only until
        the next call.
        """
        data = memoryview(part) if header.ring is None else self._ring.view(header.ring)
        check_claims(header, len(data), self._limits)
        return data


class _Timed:
    """Counts the ``seconds`` spent waiting for the next of ``parts``."""

    def __init__(self, parts: Iterator[memoryview]) -> None:
        self._parts = parts
        self.seconds = 0.0

    def __iter__(self) -> Iterator[memoryview]:
        while True:
            began = time.perf_counter()
            part = next(self._parts, None)
            self.seconds += time.perf_counter() - began
            if part is None:
                return
            yield part


class DecodeWorker(threading.Thread):
    """Takes frames from the scheduler, prepares them, gives them back; what cannot be decoded goes to ``failed``."""

    def __init__(
        self,
        number: int,
        scheduler: Scheduler,
        limits: Limits,
        *,
        input_size: Callable[[str], tuple[int, int] | None],
        measure: Callable[[U8], object],
        failed: Callable[[Job, AdclickError], None],
    ) -> None:
        """``input_size`` of a product, None where frames are wanted as large as they are."""
        super().__init__(name=f"decode-{number}", daemon=True)
        self._scheduler, self._limits = scheduler, limits
        self._input_size, self._measure, self._failed = input_size, measure, failed
        self._stopping = threading.Event()

    def stop(self, timeout_s: float = 5.0) -> None:
        self._stopping.set()
        self.join(timeout_s)

    def run(self) -> None:
        reader = PayloadReader(self._limits)
        try:
            while not self._stopping.is_set():
                job = self._scheduler.next_raw(IDLE_S)
                if job is not None:
                    self._one(reader, job)
        finally:
            reader.close()

    def _one(self, reader: PayloadReader, job: Job) -> None:
        if job.answered:
            self._scheduler.drop(job)
            return
        try:
            prepared = reader.prepare(job, self._input_size(job.product))
        except AdclickError as error:
            self._fail(job, error)
        except Exception as error:  # whatever a decoder throws at hostile bytes, the worker lives on
            self._fail(job, ImageError(f"{job.name}: cannot be decoded: {type(error).__name__}: {error}"))
        else:
            self._scheduler.decoded(job)
            # A picture of two pixels has no focus; whatever it is, it must not end the worker.
            with suppress(Exception):
                job.stats = self._measure(prepared)  # while the engine works; a frame that is quicker goes unmeasured

    def _fail(self, job: Job, error: AdclickError) -> None:
        self._scheduler.drop(job)
        self._failed(job, error)
