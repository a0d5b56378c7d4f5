"""The shift's book: what the line judged since the shift began, kept across restarts and kills, closed as a report.

The daemon's house-keeping thread calls `ShiftBook.observe` about once a second; it writes files and may take a while.
`ShiftBook.answered` is cheap and may be called from anywhere.
"""

import copy
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import tzinfo
from pathlib import Path
from typing import Final

import msgspec
import structlog

from adclick_edge.errors import LineError
from adclick_edge.files import write_bytes
from adclick_edge.line.shift_bins import add_ms, add_score
from adclick_edge.line.shift_calendar import shift_bounds
from adclick_edge.line.shift_counting import add_tally, carry_over
from adclick_edge.line.shift_record import (
    ALL_STAGES,
    STATE_FILE,
    CameraShift,
    ProductShift,
    Restart,
    ShiftRecord,
    ShiftState,
    encode_state,
    read_state,
)
from adclick_edge.line.shift_report import write_report
from adclick_edge.line.tally import LineTally

__all__ = ["ShiftBook"]

RETRY_S: Final = 30.0
MAX_UNWRITTEN: Final = 16
MAX_RESTARTS: Final = 300
MAX_STAGES: Final = 24
CLOCK_SET_BACK_S: Final = 600.0
"""A clock that is set back further than this before the shift's start ends the shift; smaller steps are waited out."""


class ShiftBook:
    """Counts of the running shift; thread-safe.

    Args:
        state_folder: Where ``shift.json`` lives.
        reports_folder: Where closed shifts go, as ``YYYY-mm-dd_HHMM.json`` and ``.html`` by the local time of the start.
        starts: Local times HH:MM at which shifts begin.
        clock: Unix seconds.
        zone: Default: this computer's.
        save_s: Least time between two saves, in seconds: what a kill can lose.

    A damaged ``shift.json`` is moved to ``shift.json.damaged`` and said so in the new record. Raises UsageError for
    ``starts`` that are no times. Disks that cannot be written stop nothing: it is logged and tried again.
    """

    def __init__(
        self,
        state_folder: Path,
        reports_folder: Path,
        starts: Sequence[str],
        *,
        clock: Callable[[], float] = time.time,
        zone: tzinfo | None = None,
        save_s: float = 1.0,
    ) -> None:
        shift_bounds(clock(), starts, zone)
        self._state_folder = state_folder
        self._reports_folder = reports_folder
        self._starts = tuple(starts)
        self._clock = clock
        self._zone = zone
        self._save_s = save_s
        self._lock = threading.Lock()
        """Held for moments only; never while a file is written."""
        self._files = threading.Lock()
        self._running: ShiftRecord | None = None
        self._last: LineTally | None = None
        self._unwritten: list[ShiftRecord] = []
        self._saved_s = self._tried_s = float("-inf")
        self._log = structlog.get_logger()
        self._note = self._load()

    def answered(
        self,
        camera: str,
        product: str,
        verdict: str,
        reason: str | None,
        stage_ms: Mapping[str, float],
        total_ms: float,
        score: float | None = None,
    ) -> None:
        """Note one answer: times in milliseconds, the raw score where there is one."""
        outcome = verdict if verdict != "not_inspected" else f"{verdict}:{reason}"
        with self._lock:
            record = self._running
            if record is None:
                return
            add_ms(record.stage_ms.setdefault(ALL_STAGES, {}), total_ms)
            add_ms(record.cameras.setdefault(camera, CameraShift()).total_ms, total_ms)
            for stage, ms in stage_ms.items():
                if stage != ALL_STAGES and (stage in record.stage_ms or len(record.stage_ms) < MAX_STAGES):
                    add_ms(record.stage_ms.setdefault(stage, {}), ms)
            shift = record.products.setdefault(product, ProductShift())
            shift.verdicts[outcome] = shift.verdicts.get(outcome, 0) + 1
            if score is not None:
                add_score(shift.scores.setdefault(verdict, {}), score)

    def observe(self, tally: LineTally) -> list[Path]:
        """Take the daemon's books in; about once a second, and a last time at a stop (``stopping``, nothing pending).

        Returns the pages of reports written, usually none.
        """
        now_s = self._clock()
        with self._lock:
            closed = self._advance(tally, now_s)
            if closed is not None:
                self._unwritten.append(closed)
        if closed is not None or abs(now_s - self._saved_s) >= self._save_s:
            self._save(now_s)
        if closed is not None or (self._unwritten and abs(now_s - self._tried_s) >= RETRY_S):
            return self._write_closed(now_s)
        return []

    def running(self) -> ShiftRecord | None:
        """A copy of the running shift; None before the first observation."""
        with self._lock:
            if self._running is None:
                return None
            data = msgspec.json.encode(self._running)
        return msgspec.json.decode(data, type=ShiftRecord)

    def write_running(self, folder: Path | None = None) -> Path | None:
        """Write the running shift's report so far as ``..._running.json`` and ``.html``; None if nothing was observed.

        OSError when it cannot be written.
        """
        record = self.running()
        if record is None:
            return None
        with self._files:
            return write_report(folder or self._reports_folder, record, self._clock(), zone=self._zone, closed=False)

    def close(self) -> None:
        """Save; the shift goes on when a daemon starts again with this state folder."""
        self._save(self._clock())

    def _load(self) -> str | None:
        path = self._state_folder / STATE_FILE
        try:
            state = read_state(self._state_folder)
        except LineError as error:
            if not path.exists():
                return None
            self._log.error("the shift's book is damaged and is begun anew", path=str(path), why=str(error))
            try:
                path.replace(path.with_name(f"{STATE_FILE}.damaged"))
            except OSError as why:
                self._log.error("the damaged book could not be moved away", path=str(path), why=str(why))
            return "the book of this shift was damaged; counts begin where it was begun anew"
        self._running, self._last, self._unwritten = state.running, state.last, state.unwritten
        return None

    def _advance(self, tally: LineTally, now_s: float) -> ShiftRecord | None:
        """Bring the running shift up to ``tally``; returns the shift that ended, if one did."""
        running, last = self._running, self._last
        self._last = tally
        if running is None or last is None:
            self._running = self._open(tally, now_s)
            add_tally(self._running, None, tally, now_s)
            return None
        restart = None
        if last.daemon != tally.daemon:
            clean = last.stopping and all(camera.pending == 0 for camera in last.cameras.values())
            restart = Restart(at_s=now_s, last_s=running.last_s, clean=clean)
        set_back = now_s < running.start_s - CLOCK_SET_BACK_S
        if now_s < running.end_s and not set_back:
            if restart is not None:
                _add_restart(running, restart)
            add_tally(running, last, tally, now_s)
            return None
        if restart is None:
            add_tally(running, last, tally, max(now_s, running.last_s) if set_back else now_s)
        else:
            _abandon(running)
            _add_restart(running, Restart(at_s=running.end_s, last_s=running.last_s, clean=restart.clean))
        if set_back:
            running.notes.append("the computer's clock was set back; the shift was closed there")
        running.last_s = min(running.last_s, running.end_s)
        self._running = opened = self._open(tally, now_s)
        carry_over(opened, running, tally if restart is None else _without_pending(last))
        if restart is not None:
            # Not written down since before this shift began: the gap is stated from its start.
            if now_s > opened.start_s:
                since_s = min(max(restart.last_s, opened.start_s), now_s)
                _add_restart(opened, Restart(at_s=now_s, last_s=since_s, clean=restart.clean))
            add_tally(opened, last, tally, now_s)
        return running

    def _open(self, tally: LineTally, now_s: float) -> ShiftRecord:
        start_s, end_s = shift_bounds(now_s, self._starts, self._zone)
        notes = [] if self._note is None else [self._note]
        self._note = None
        return ShiftRecord(
            shift=secrets.randbits(63),
            line=tally.name,
            start_s=start_s,
            end_s=end_s,
            opened_s=now_s,
            last_s=now_s,
            notes=notes,
        )

    def _save(self, now_s: float) -> None:
        with self._lock:
            if self._running is None or self._last is None:
                return
            data = encode_state(ShiftState(running=self._running, last=self._last, unwritten=self._unwritten))
        self._saved_s = now_s
        try:
            with self._files:
                write_bytes(self._state_folder / STATE_FILE, data)
        except OSError as error:
            self._log.error("the shift's book could not be saved", folder=str(self._state_folder), why=str(error))

    def _write_closed(self, now_s: float) -> list[Path]:
        """Write what is closed and not written; what fails stays, the newest `MAX_UNWRITTEN` of them."""
        self._tried_s = now_s
        pages = []
        for record in list(self._unwritten):
            try:
                with self._files:
                    pages.append(write_report(self._reports_folder, record, now_s, zone=self._zone, closed=True))
            except OSError as error:
                folder = str(self._reports_folder)
                self._log.error("the shift's report could not be written", folder=folder, why=str(error))
                continue
            with self._lock:
                self._unwritten.remove(record)
        with self._lock:
            given_up = self._unwritten[:-MAX_UNWRITTEN]
            del self._unwritten[: len(given_up)]
        for record in given_up:
            self._log.error("a shift's report is given up", start_s=record.start_s, kept=MAX_UNWRITTEN)
        if pages or given_up:
            self._save(now_s)
        return pages


def _abandon(record: ShiftRecord) -> None:
    for camera in record.cameras.values():
        camera.abandoned += camera.pending
        camera.pending = 0


def _add_restart(record: ShiftRecord, restart: Restart) -> None:
    if len(record.restarts) < MAX_RESTARTS:
        record.restarts.append(restart)
    else:
        record.left_out["restarts"] = record.left_out.get("restarts", 0) + 1


def _without_pending(tally: LineTally) -> LineTally:
    """Of a daemon that is gone: its frames under way were abandoned in the shift before."""
    tally = copy.deepcopy(tally)
    for camera in tally.cameras.values():
        camera.pending = 0
    return tally
