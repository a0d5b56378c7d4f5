"""Which judged frames operators are asked about: the most useful ones, as many as they have time for.

The thread that judges asks `RelabelRouter.wants` about every verdict and hands over what is wanted (`offer`); both take
microseconds and never wait for the disk. The router's own thread compares candidates with what was queued lately, keeps
the most useful ones, and stores one whenever the operators' budget allows. Frames for audit are drawn by lot among ok and
ng, and stay a random sample: they are neither compared nor sorted by usefulness, and get every fifth place at least.

Every uncertain and every audit frame is accounted for, at every moment:
``offered = queued + duplicate + over_budget + failed + waiting``.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

import cv2
import numpy as np
import numpy.typing as npt

from adclick_edge.errors import LineError
from adclick_edge.line.config import Routing
from adclick_edge.line.likeness import QueuedLately, Signature, likeness, most_alike, signature
from adclick_edge.line.spool import Spool, SpoolRecord, Why
from adclick_edge.line.tally import RoutingTally
from adclick_edge.line.token_bucket import TokenBucket
from adclick_edge.line.usefulness import closeness, region_size, usefulness
from adclick_edge.runtime.decision import FrameVerdict

__all__ = ["Candidate", "RelabelRouter"]

U8 = npt.NDArray[np.uint8]

NS_PER_S = 1_000_000_000
LOOKS_PER_S = 5.0
"""Candidates taken a second beyond a burst: every one costs the judging thread a copy of its frame."""
MAX_WAITING_BYTES = 1 << 30
"""Pixels that candidates may hold in memory, whatever their number."""
NEW_PLACES = 8
"""For candidates that nobody has looked at, beside those that wait."""
AUDIT_EVERY = 5
REMEMBERED_AT_START = 2048
IDLE_S = 1.0
RETRY_NS = 2 * NS_PER_S
"""After a frame could not be stored: the others had better wait than be tried, and fail, one after the other."""


@dataclass(eq=False, kw_only=True)
class Candidate:
    """A judged frame an operator may be asked about: its pixels as ``frame``, uint8 [H, W, 3] RGB, or as ``encoded``, the
    camera's own .png or .jpg file. Either must be the candidate's alone. ``map`` is float32 [h4, w4].
    """

    camera: str
    session: int
    seq: int
    part: str | None
    product: str
    verdict: FrameVerdict
    map: npt.NDArray[np.float32]
    judged_utc: datetime
    frame: U8 | None = None
    encoded: bytes | None = None
    suffix: str = ".png"
    valid: npt.NDArray[np.bool_] | None = None
    """Bool [h4, w4]: where the product is inspected; None: everywhere."""

    def __post_init__(self) -> None:
        if (self.frame is None) == (self.encoded is None):
            raise LineError(f"candidate {self.camera}/{self.seq}: give its frame or its file, one of them")

    @property
    def size_bytes(self) -> int:
        pixels = self.frame.nbytes if self.frame is not None else len(self.encoded or b"")
        return pixels + self.map.nbytes


@dataclass(eq=False)
class _Held:
    """A candidate that was looked at. ``rank`` sorts those that wait: usefulness, or the lot of an audit frame."""

    candidate: Candidate
    why: Why
    signature: Signature
    size: float
    likeness: float
    rank: float


@dataclass
class _Counts:
    offered: int = 0
    queued: int = 0
    duplicate: int = 0
    over_budget: int = 0
    failed: int = 0
    last_failure: str | None = None


class RelabelRouter:
    """Thread-safe. `start` begins the thread; without it `step` does its work, which is how tests drive it.

    ``seed`` fixes the audit lottery. The router sweeps ``spool``, and does not queue again what that holds already.
    """

    def __init__(
        self,
        config: Routing,
        spool: Spool,
        *,
        seed: int | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._config, self._spool, self._clock = config, spool, clock
        self._random = random.Random(seed)
        self._changed = threading.Condition()
        self._counts = _Counts()
        self._new: deque[tuple[Candidate, Why]] = deque()
        self._held: list[_Held] = []
        self._in_hand = 0
        self._stopping = self._closed = False
        self._stop_ns = self._retry_ns = now = clock()
        self._thread: threading.Thread | None = None
        hour = config.budget_per_hour
        self._budget = TokenBucket(hour / 3600, max(1.0, hour / 10) if hour > 0 else 0.0, now)
        self._looks: dict[Why, TokenBucket] = {
            why: TokenBucket(LOOKS_PER_S, float(max(NEW_PLACES, config.waiting)), now) for why in ("uncertain", "audit")
        }
        self._lately = QueuedLately()
        spool.sweep()
        self._remember_spooled()

    def start(self) -> None:
        if self._thread is not None:
            raise LineError("the router was started already; make another one")
        self._thread = threading.Thread(target=self._run, name="router", daemon=True)
        self._thread.start()

    def wants(self, camera: str, product: str, verdict: FrameVerdict) -> Why | None:
        """Whether to `offer` this frame, and why. A frame that has no chance is counted as over_budget here."""
        del camera, product
        if verdict.verdict == "not_inspected":
            return None
        with self._changed:
            why: Why = "uncertain"
            if verdict.verdict != "uncertain":
                if self._random.random() >= self._config.audit_share:
                    return None
                why = "audit"
            if self._has_chance(why, verdict) and self._looks[why].take(self._clock()):
                return why
            self._counts.offered += 1
            self._counts.over_budget += 1
        return None

    def offer(self, candidate: Candidate, why: Why) -> None:
        """Take a candidate that `wants` asked for. Where there is no place left for it, it is over_budget."""
        with self._changed:
            self._counts.offered += 1
            if self._has_chance(why, candidate.verdict):
                self._new.append((candidate, why))
                self._changed.notify_all()
            else:
                self._counts.over_budget += 1

    def lost(self, why: str = "its pixels were gone before they could be copied") -> None:
        """A frame that `wants` asked for cannot be offered."""
        with self._changed:
            self._counts.offered += 1
            self._failed(why)

    def tally(self) -> RoutingTally:
        spool_bytes = self._spool.size_bytes
        with self._changed:
            counts = self._counts
            return RoutingTally(
                offered=counts.offered,
                queued=counts.queued,
                duplicate=counts.duplicate,
                over_budget=counts.over_budget,
                failed=counts.failed,
                waiting=len(self._new) + len(self._held) + self._in_hand,
                spool_bytes=spool_bytes,
                last_failure=counts.last_failure,
            )

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Hand over what the budget still allows within ``timeout_s``; the rest is over_budget. True when all is done.

        Nothing is taken afterwards. False where the disk hangs: that frame counts as waiting until it is done.
        """
        with self._changed:
            self._stopping = True
            self._stop_ns = self._clock() + round(timeout_s * NS_PER_S)
            self._changed.notify_all()
        if self._thread is None:
            while self.step() == 0 and self._clock() < self._stop_ns:
                pass
        else:
            self._thread.join(timeout_s + IDLE_S)
        with self._changed:
            self._counts.over_budget += len(self._new) + len(self._held)
            self._new.clear()
            self._held.clear()
            self._closed = True
            return self._in_hand == 0

    def step(self) -> float:
        """Look at one new candidate or store the most useful one; seconds until there is more to do, 0 for at once."""
        new: tuple[Candidate, Why] | None = None
        with self._changed:
            if self._new:
                new = self._new.popleft()
            else:
                if not self._held:
                    return IDLE_S
                now = self._clock()
                if now < self._retry_ns:
                    return min(IDLE_S, (self._retry_ns - now) / NS_PER_S)
                if not self._budget.take(now):
                    return min(IDLE_S, self._budget.wait_s(now))
                chosen = self._choose()
                self._held.remove(chosen)
            self._in_hand += 1
        if new is not None:
            self._look_at(*new)
        else:
            self._store(chosen)
        return 0.0

    def _run(self) -> None:
        while True:
            delay_s = self.step()
            with self._changed:
                if self._stopping and (delay_s > 0 or self._clock() >= self._stop_ns):
                    return
                if delay_s > 0 and not self._new:
                    self._changed.wait(delay_s)

    def _has_chance(self, why: Why, verdict: FrameVerdict) -> bool:
        """Among those that wait; an uncertain frame is at most as useful as its score is close to the thresholds."""
        if self._stopping or self._config.budget_per_hour <= 0 or len(self._new) >= NEW_PLACES:
            return False
        if self._new and self._bytes() >= MAX_WAITING_BYTES:
            return False
        if why == "audit" or len(self._held) < self._config.waiting:
            return True
        ranks = [held.rank for held in self._held if held.why == "uncertain"]
        return not ranks or closeness(verdict) > min(ranks)

    def _bytes(self) -> int:
        held = sum(held.candidate.size_bytes for held in self._held)
        return held + sum(candidate.size_bytes for candidate, _ in self._new)

    def _look_at(self, candidate: Candidate, why: Why) -> None:
        """How useful it is, and whether operators have or will have its like."""
        try:
            seen = _signature(candidate)
            size = region_size(candidate.map, candidate.verdict.lower, candidate.valid)
            alike = again = 0.0
            if why == "uncertain":
                alike = self._lately.most_alike(candidate.product, seen)
                again = max(alike, most_alike(seen, [held.signature for held in self._rivals(candidate.product)]))
        except Exception as error:  # whatever it is, one odd frame must not end the routing of all others
            with self._changed:
                self._in_hand -= 1
                self._failed(_text(error))
            return
        with self._changed:
            self._in_hand -= 1
            if why == "uncertain" and again >= self._config.duplicate_similarity:
                self._counts.duplicate += 1
                return
            useful = usefulness(closeness(candidate.verdict), size, alike)
            rank = self._random.random() if why == "audit" else useful
            if self._closed:  # the look took longer than stop() would wait
                self._counts.over_budget += 1
                return
            self._held.append(_Held(candidate, why, seen, size, alike, rank))
            self._thin_out()

    def _thin_out(self) -> None:
        """Down to what may wait, in number and in bytes. Audit frames keep a fifth of the places, and no more."""
        while len(self._held) > self._config.waiting or (len(self._held) > 1 and self._bytes() > MAX_WAITING_BYTES):
            audits = [held for held in self._held if held.why == "audit"]
            others = [held for held in self._held if held.why == "uncertain"]
            too_many = len(audits) > self._config.waiting // AUDIT_EVERY or not others
            self._held.remove(min(audits if too_many else others, key=lambda held: held.rank))
            self._counts.over_budget += 1

    def _choose(self) -> _Held:
        audits = [held for held in self._held if held.why == "audit"]
        others = [held for held in self._held if held.why == "uncertain"]
        turn = self._counts.queued % AUDIT_EVERY == AUDIT_EVERY - 1
        return max(audits if audits and (turn or not others) else others, key=lambda held: held.rank)

    def _store(self, held: _Held) -> None:
        try:
            image, suffix = _picture(held.candidate)
            self._spool.put(_record(held), image, suffix, held.candidate.map)
        except Exception as error:  # as above; what was not stored must cost nothing of the operators' budget
            with self._changed:
                self._in_hand -= 1
                self._failed(_text(error))
                self._budget.give_back()
                self._retry_ns = self._clock() + RETRY_NS
            return
        self._lately.add(held.candidate.product, held.signature)
        with self._changed:
            self._in_hand -= 1
            self._counts.queued += 1
        for other in self._rivals(held.candidate.product):
            self._compare_again(other, likeness(other.signature, held.signature))

    def _rivals(self, product: str) -> list[_Held]:
        with self._changed:
            return [held for held in self._held if held.why == "uncertain" and held.candidate.product == product]

    def _compare_again(self, held: _Held, alike: float) -> None:
        """A frame that waits is less useful, or not at all, now that one like it was handed over."""
        with self._changed:
            if held not in self._held:  # stop() counted it
                return
            if alike >= self._config.duplicate_similarity:
                self._held.remove(held)
                self._counts.duplicate += 1
            elif alike > held.likeness:
                held.likeness = alike
                held.rank = usefulness(closeness(held.candidate.verdict), held.size, alike)

    def _failed(self, why: str) -> None:
        self._counts.failed += 1
        self._counts.last_failure = why

    def _remember_spooled(self) -> None:
        newest = list(islice(self._spool.records(newest_first=True), REMEMBERED_AT_START))
        for _, record in reversed(newest):
            if record.signature is not None:
                self._lately.add(record.product, record.signature)


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, LineError) else f"{type(error).__name__}: {error}"


def _signature(candidate: Candidate) -> Signature:
    frame = candidate.frame
    if frame is None:
        data = np.frombuffer(candidate.encoded or b"", np.uint8)
        # Half of each side is enough for the thumbnail, and a JPEG decodes to it in a fraction of the time.
        flags = cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_IGNORE_ORIENTATION
        decoded = cv2.imdecode(data, flags) if data.size else None
        if decoded is None:
            raise LineError(f"{candidate.camera}/{candidate.seq}: its {candidate.suffix} file cannot be decoded")
        frame = np.asarray(decoded, np.uint8)
    return signature(frame, candidate.map, candidate.valid)


def _picture(candidate: Candidate) -> tuple[bytes, str]:
    """The file to store: the camera's own, or a PNG of its pixels."""
    if candidate.frame is None:
        return candidate.encoded or b"", candidate.suffix
    bgr = cv2.cvtColor(candidate.frame, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise LineError(f"{candidate.camera}/{candidate.seq}: its {list(bgr.shape)} pixels cannot be stored as PNG")
    return data.tobytes(), ".png"


def _record(held: _Held) -> SpoolRecord:
    candidate, verdict = held.candidate, held.candidate.verdict
    return SpoolRecord(
        camera=candidate.camera,
        session=candidate.session,
        seq=candidate.seq,
        part=candidate.part,
        product=candidate.product,
        bundle_version=verdict.bundle_version,
        verdict=verdict.verdict,
        reason=verdict.reason,
        why=held.why,
        usefulness=None if held.why == "audit" else held.rank,
        score=verdict.score,
        lower=verdict.lower,
        upper=verdict.upper,
        regions=verdict.regions,
        regions_found=verdict.regions_found,
        stage_ms=verdict.stage_ms,
        judged_utc=candidate.judged_utc,
        signature=held.signature,
    )
