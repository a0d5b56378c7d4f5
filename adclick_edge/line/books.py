"""The daemon's books: every frame received is answered exactly once, and every count says so."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from adclick_edge.line.job import Job
from adclick_edge.line.tally import CameraTally
from adclick_edge.runtime.decision import Reason, Verdict

__all__ = ["MOST_MISSED", "Books"]

MOST_MISSED = 1 << 53
"""Where the count of missed triggers ends: cameras state the numbers it comes from, and not every reader of the books takes
integers of any size.
"""
RATE_OVER_NS = 5_000_000_000


class Books:
    """One thread writes (`receive`, `answer` and the other counts), any thread reads `cameras`."""

    def __init__(self, products: dict[str, str], *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """``products`` names each camera's own product."""
        self._cameras = {name: CameraTally(product=product) for name, product in products.items()}
        self._expected: dict[str, tuple[int, int]] = {}
        """Session and next sequence number of each camera."""
        self._strangers: dict[str, int] = {}
        self._answered_ns: deque[int] = deque(maxlen=4096)
        self._clock = clock
        self._lock = threading.Lock()

    def __getitem__(self, camera: str) -> CameraTally:
        """The live counts; only the writing thread may look at them like this."""
        return self._cameras[camera]

    def hello(self, camera: str, session: int, next_seq: int, unanswered: int) -> None:
        """A camera said hello; what is missing since its last frame was lost on the way.

        Of a session this daemon never saw, the camera itself knows best what got no verdict.
        """
        with self._lock:
            tally = self._cameras[camera]
            tally.sessions += 1
            tally.connected = True
            known = self._expected.get(camera)
            if known is not None and known[0] == session:
                self._miss(tally, next_seq - known[1])
                next_seq = max(next_seq, known[1])
            else:
                self._miss(tally, min(unanswered, next_seq))
            self._expected[camera] = (session, next_seq)

    def gone(self, camera: str) -> None:
        with self._lock:
            self._cameras[camera].connected = False

    def is_new(self, camera: str, session: int, seq: int) -> bool:
        """Whether this sequence number may still come; numbers only rise."""
        known = self._expected.get(camera)
        return known is None or known[0] != session or seq >= known[1]

    def receive(self, job: Job) -> None:
        """From here on the frame must be answered."""
        with self._lock:
            tally = self._cameras[job.camera]
            known = self._expected.get(job.camera)
            if known is not None and known[0] == job.session:
                self._miss(tally, job.seq - known[1])
            self._expected[job.camera] = (job.session, job.seq + 1)
            tally.received += 1
            tally.pending += 1

    def _miss(self, tally: CameraTally, triggers: int) -> None:
        tally.missed = min(MOST_MISSED, tally.missed + max(0, triggers))

    def answer(self, job: Job, verdict: Verdict, reason: Reason | None, now: int) -> bool:
        """Enter the answer; False if there was one already, and this one must be dropped."""
        with self._lock:
            tally = self._cameras[job.camera]
            if job.answered:
                tally.late_results += 1
                return False
            job.answered = True
            tally.pending -= 1
            if verdict == "not_inspected":
                key = str(reason)
                tally.not_inspected[key] = tally.not_inspected.get(key, 0) + 1
            else:
                setattr(tally, verdict, getattr(tally, verdict) + 1)
            tally.late += now > job.deadline_ns
            self._answered_ns.append(now)
            return True

    def undelivered(self, camera: str) -> None:
        with self._lock:
            self._cameras[camera].undelivered += 1

    def bad_message(self, camera: str | None, code: str) -> None:
        """Bytes that are no message of the protocol, or one that may not come now."""
        with self._lock:
            if camera is not None:
                self._cameras[camera].bad_messages += 1
            else:
                self._strangers[code] = self._strangers.get(code, 0) + 1

    def cameras(self, queues: Iterable[tuple[str, int]] = ()) -> dict[str, CameraTally]:
        """A copy of all counts as they stood at one moment; ``queues`` is the number of frames that wait, per camera."""
        waiting = dict(queues)
        with self._lock:
            return {
                name: msgspec.structs.replace(
                    tally, not_inspected=dict(tally.not_inspected), queue=waiting.get(name, 0)
                )
                for name, tally in self._cameras.items()
            }

    def strangers(self) -> dict[str, int]:
        with self._lock:
            return dict(self._strangers)

    def frames_per_s(self) -> float:
        """Answers over the last five seconds."""
        since = self._clock() - RATE_OVER_NS
        with self._lock:
            return sum(t > since for t in self._answered_ns) / (RATE_OVER_NS / 1e9)
