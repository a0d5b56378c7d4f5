"""The camera side's books: credits, and exactly one verdict for every trigger."""

import heapq
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from adclick_edge.line.camera_verdict import CameraCounts, CameraVerdict, LocalReason
from adclick_edge.line.protocol import RingSlot, VerdictMessage

__all__ = ["CameraBooks", "Settled", "Trigger"]

MOST_GIVEN_UP = 8192
"""Triggers given up whose late verdicts are still recognised."""


def _held_lock() -> threading.Lock:
    lock = threading.Lock()
    lock.acquire()
    return lock


@dataclass(slots=True, eq=False)
class Trigger:
    """One trigger that holds a credit. ``header`` is encoded; ``payload`` is None where the frame lies in a ring."""

    seq: int
    part: str | None
    started_ns: int
    expires_ns: int
    connection: int
    header: bytes = b""
    payload: bytes | None = None
    slot: RingSlot | None = None
    sent: bool = False
    handed_over: threading.Lock = field(default_factory=_held_lock)
    """Held until the frame is with ZeroMQ."""


class Settled(NamedTuple):
    verdict: CameraVerdict
    slot: RingSlot | None
    """To be released: it will not be waited for any more."""


class CameraBooks:
    """A state without threads, sockets or a clock: callers hold one lock, and pass the time.

    A trigger is `reserve`, then `open`. From `open` on it is pending until one of `verdict`, `refuse`, `expire`, `lost`
    (only what was not sent yet) and `close` settles it; each of them hands its verdict out, and none hands out a second.
    """

    def __init__(self) -> None:
        self.next_seq = 0
        self.credits = 0
        self.connected = False
        self.counts = CameraCounts()
        self._connection = 0
        self._closed = False
        self._pending: dict[int, Trigger] = {}
        self._unsent: deque[Trigger] = deque()
        self._expiries: list[tuple[int, int]] = []
        self._given_up: dict[int, int] = {}
        """Connection over which each trigger went that was given up after it was sent, oldest first."""
        self._last_given_up_ns: int | None = None

    @property
    def pending(self) -> int:
        return len(self._pending)

    @property
    def unanswered(self) -> int:
        """Triggers that got no verdict of any daemon."""
        return sum(self.counts.local.values()) - self.counts.late

    def snapshot(self) -> CameraCounts:
        return msgspec.structs.replace(self.counts, local=dict(self.counts.local), pending=len(self._pending))

    def welcomed(self, credits: int) -> None:
        self._connection += 1
        self.connected = True
        self.credits = credits
        self._last_given_up_ns = None
        self.counts.reconnects += self._connection > 1

    def granted(self, credits: int) -> None:
        if self.connected:
            self.credits += credits

    def lost(self, now_ns: int) -> list[Settled]:
        """The connection is gone. What was sent may still be answered over the next one; the rest is settled."""
        self.connected = False
        self.credits = 0
        unsent = [trigger for trigger in self._unsent if trigger.seq in self._pending]
        self._unsent.clear()
        return [self._give_up(trigger, "no_connection", now_ns) for trigger in unsent]

    def reserve(self) -> int | LocalReason:
        """Take a credit for a frame about to be copied; the number is for `open` or `give_back`."""
        if self._closed:
            return "closed"
        if not self.connected:
            return "no_connection"
        if self.credits == 0:
            return "no_credit"
        self.credits -= 1
        return self._connection

    def give_back(self, reserved: int) -> None:
        if reserved == self._connection and self.connected:
            self.credits += 1

    def open(
        self, reserved: int | LocalReason, *, part: str | None, started_ns: int, expires_ns: int, now_ns: int
    ) -> Trigger | Settled:
        """Count a trigger and number it: pending with the credit ``reserved``, or settled at once by its reason."""
        seq = self.next_seq
        self.next_seq += 1
        self.counts.triggers += 1
        if isinstance(reserved, int):
            if self._closed:
                reserved = "closed"
            elif not self.connected or reserved != self._connection:
                reserved = "no_connection"
        if isinstance(reserved, str):
            self._count_local(reserved)
            latency_ms = (now_ns - started_ns) / 1e6
            return Settled(CameraVerdict.given_locally(seq, reserved, part=part, latency_ms=latency_ms), None)
        trigger = Trigger(seq, part, started_ns, expires_ns, reserved)
        self._pending[seq] = trigger
        self._unsent.append(trigger)
        heapq.heappush(self._expiries, (expires_ns, seq))
        return trigger

    def next_unsent(self) -> Trigger | None:
        """The next trigger to send, marked as sent."""
        while self._unsent:
            trigger = self._unsent.popleft()
            if trigger.seq in self._pending:
                trigger.sent = True
                return trigger
        return None

    def not_sent(self, trigger: Trigger) -> None:
        """The connection did not take what `next_unsent` gave out."""
        trigger.sent = False
        self._unsent.appendleft(trigger)

    def verdict(self, message: VerdictMessage, now_ns: int) -> Settled | None:
        """A daemon's verdict; None if its trigger was given up already, or is none of ours."""
        trigger = self._pending.get(message.seq)
        if trigger is not None and trigger.sent and message.part in (None, trigger.part):
            if now_ns < trigger.expires_ns:
                del self._pending[message.seq]
                self.give_back(trigger.connection)
                self.counts.answered += 1
                latency_ms = (now_ns - trigger.started_ns) / 1e6
                verdict = CameraVerdict.received(message, part=trigger.part, latency_ms=latency_ms)
                return Settled(verdict, trigger.slot)
            self.counts.late += 1
            self.give_back(trigger.connection)
            settled = self._give_up(trigger, "no_answer", now_ns)
            del self._given_up[message.seq]
            return settled
        connection = self._given_up.pop(message.seq, None) if trigger is None else None
        if connection is None:
            self.counts.bad_messages += 1
        else:
            self.counts.late += 1
            self.give_back(connection)
        return None

    def refuse(self, seq: int, reason: LocalReason, now_ns: int) -> Settled | None:
        """The daemon did not take this frame, so it used no credit."""
        trigger = self._pending.get(seq)
        if trigger is None or not trigger.sent:
            return None
        self.give_back(trigger.connection)
        settled = self._give_up(trigger, reason, now_ns)
        del self._given_up[seq]
        return settled

    def expire(self, now_ns: int) -> list[Settled]:
        settled = []
        while self._expiries and self._expiries[0][0] <= now_ns:
            _, seq = heapq.heappop(self._expiries)
            if (trigger := self._pending.get(seq)) is not None:
                settled.append(self._give_up(trigger, "no_answer", now_ns))
        return settled

    def next_expiry_ns(self) -> int | None:
        while self._expiries and self._expiries[0][1] not in self._pending:
            heapq.heappop(self._expiries)
        return self._expiries[0][0] if self._expiries else None

    def stalled_since_ns(self) -> int | None:
        """Since when no credit is left and no verdict is to be expected that would give one back."""
        if self.connected and self.credits == 0 and not self._pending:
            return self._last_given_up_ns
        return None

    def close(self, now_ns: int) -> list[Settled]:
        self._closed = True
        self.connected = False
        self._unsent.clear()
        return [self._give_up(trigger, "closed", now_ns) for trigger in list(self._pending.values())]

    def _give_up(self, trigger: Trigger, reason: LocalReason, now_ns: int) -> Settled:
        del self._pending[trigger.seq]
        if trigger.sent:
            self._last_given_up_ns = now_ns
            self._given_up[trigger.seq] = trigger.connection
            if len(self._given_up) > MOST_GIVEN_UP:
                del self._given_up[next(iter(self._given_up))]
        self._count_local(reason)
        latency_ms = (now_ns - trigger.started_ns) / 1e6
        verdict = CameraVerdict.given_locally(trigger.seq, reason, part=trigger.part, latency_ms=latency_ms)
        return Settled(verdict, trigger.slot)

    def _count_local(self, reason: LocalReason) -> None:
        self.counts.local[reason] = self.counts.local.get(reason, 0) + 1
