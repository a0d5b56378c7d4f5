import html
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from datetime import datetime, timedelta
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shift_simulation import Clock, make_book, simulate
from tally_samples import empty, later

from adclick_edge.errors import LineError, UsageError
from adclick_edge.line import shift_counting
from adclick_edge.line.shift import ShiftBook
from adclick_edge.line.shift_bins import add_ms, add_score, ms_percentiles, score_edge
from adclick_edge.line.shift_calendar import shift_bounds
from adclick_edge.line.shift_figures import ShiftSummary
from adclick_edge.line.shift_record import STATE_FILE, CameraShift, read_state
from adclick_edge.line.shift_report import render_page
from adclick_edge.line.shift_summary import summarise

BERLIN = ZoneInfo("Europe/Berlin")
STARTS = ("06:00", "14:00", "22:00")


def at(text: str, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN, fold=fold).timestamp()


def berlin_book(folder: Path, clock: Clock, **options: object) -> ShiftBook:
    return make_book(folder, clock, zone=BERLIN, **options)


def figures(page: Path) -> ShiftSummary:
    return msgspec.json.decode(page.with_suffix(".json").read_bytes(), type=ShiftSummary)


def so_far(book: ShiftBook, clock: Clock) -> ShiftSummary:
    record = book.running()
    assert record is not None
    return summarise(record, clock(), zone=BERLIN, closed=False)


# When shifts begin


def test_shifts_of_a_plain_day() -> None:
    bounds = shift_bounds(at("2026-11-02T10:15"), STARTS, BERLIN)
    assert bounds == (at("2026-11-02T06:00"), at("2026-11-02T14:00"))
    assert shift_bounds(at("2026-11-02T14:00"), STARTS, BERLIN)[0] == at("2026-11-02T14:00")
    night = (at("2026-11-01T22:00"), at("2026-11-02T06:00"))
    assert shift_bounds(at("2026-11-02T05:59:59"), STARTS, BERLIN) == night


@pytest.mark.parametrize(
    ("day", "hours"), [("2026-03-29", 7), ("2026-10-25", 9), ("2026-11-02", 8)], ids=["spring", "autumn", "plain"]
)
def test_the_night_shift_when_the_clocks_change(day: str, hours: int) -> None:
    begun, ends = shift_bounds(at(f"{day}T05:00"), STARTS, BERLIN)
    assert (ends - begun) / 3600 == hours


def test_starts_in_the_hour_that_is_skipped_or_comes_twice() -> None:
    starts = ("02:30", "12:00")
    skipped, _ = shift_bounds(at("2026-03-29T11:00"), starts, BERLIN)
    assert datetime.fromtimestamp(skipped, BERLIN).strftime("%H:%M") == "03:30"
    twice, _ = shift_bounds(at("2026-10-25T11:00"), starts, BERLIN)
    assert twice == at("2026-10-25T02:30", fold=0)
    assert shift_bounds(at("2026-10-25T02:45", fold=1), starts, BERLIN)[0] == twice


@settings(deadline=None, max_examples=60)
@given(
    st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31)),
    st.lists(st.builds("{:02d}:{:02d}".format, st.integers(0, 23), st.integers(0, 59)), min_size=1, max_size=5),
    st.sampled_from(["Europe/Berlin", "Asia/Kathmandu", "America/St_Johns", "Australia/Lord_Howe"]),
)
def test_shifts_follow_each_other_without_hole_or_overlap(moment: datetime, starts: list[str], zone: str) -> None:
    now_s = moment.replace(tzinfo=ZoneInfo(zone)).timestamp()
    begun, ends = shift_bounds(now_s, starts, ZoneInfo(zone))
    assert begun <= now_s < ends
    assert ends - begun <= timedelta(hours=25).total_seconds()
    assert shift_bounds(ends, starts, ZoneInfo(zone))[0] == ends
    assert shift_bounds(begun, starts, ZoneInfo(zone)) == (begun, ends)


def test_this_computers_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        for moment in ("2026-03-29T03:30", "2026-10-25T02:10", "2026-11-02T23:00"):
            assert shift_bounds(at(moment), STARTS) == shift_bounds(at(moment), STARTS, BERLIN)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("starts", [(), ("6:00",), ("24:00",), ("12:60",), ("ab:cd",)])
def test_starts_that_are_none(tmp_path: Path, starts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="shift start"):
        berlin_book(tmp_path, Clock(0.0), starts=starts)


# Bins


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(0.06, 1e6), min_size=1, max_size=200))
def test_percentiles_are_as_near_as_they_say(times_ms: list[float]) -> None:
    bins: dict[int, int] = {}
    for ms in times_ms:
        add_ms(bins, ms)
    found = ms_percentiles(bins, (0.5, 0.95, 0.99))
    expected = np.percentile(times_ms, (50, 95, 99), method="inverted_cdf")
    assert found == pytest.approx(expected, rel=0.0222)


@given(st.floats(-1e4, 1e4))
def test_a_score_lies_in_its_bin(score: float) -> None:
    bins: dict[int, int] = {}
    add_score(bins, score)
    [place] = bins
    assert score_edge(place) <= score + 1e-9 + 1e-9 * abs(score)
    assert score < score_edge(place + 1) + 1e-9 * abs(score)


def test_bins_take_anything() -> None:
    bins: dict[int, int] = {}
    for value in (float("nan"), float("inf"), -1.0, 0.0, 1e300):
        add_ms(bins, value)
        add_score(bins, value)
    assert sum(bins.values()) == 3 + 3
    assert ms_percentiles({}, (0.5,)) is None


# Counting


def test_a_shift_counts_differences(tmp_path: Path) -> None:
    clock = Clock(at("2026-11-02T06:00"))
    book, tally = berlin_book(tmp_path, clock), empty()
    book.observe(tally)
    clock.now_s += 1
    tally = later(tally, ok=5, ng=2, not_inspected={"deadline": 1}, pending=2)
    book.observe(tally)
    clock.now_s += 3600
    tally = later(tally, ok=1, uncertain=1, pending=0)
    book.observe(tally)
    shift = so_far(book, clock)
    [left, right] = shift.cameras
    assert (left.counts.ok, left.counts.ng, left.counts.uncertain, left.not_inspected) == (6, 2, 1, {"deadline": 1})
    assert (left.received, left.pending, left.carried) == (10, 0, 0)
    assert right.received == 0
    assert [hour.counts.answered for hour in shift.hours] == [8, 2]
    assert [hour.local for hour in shift.hours] == ["06:00", "07:00"]
    assert all(check.holds for check in shift.checks)


def test_answers_fill_products_scores_and_times(tmp_path: Path) -> None:
    clock = Clock(at("2026-11-02T06:00"))
    book = berlin_book(tmp_path, clock)
    book.answered("left", "flange", "ok", None, {}, 1.0)  # before the first observation: of no shift
    book.observe(empty())
    for _ in range(99):
        book.answered("left", "flange", "ok", None, {"segment": 5.0, "total": 20.0}, 20.0, 0.9)
    book.answered("left", "lid", "not_inspected", "overload", {}, 0.5)
    book.answered("right", "flange", "uncertain", "uncalibrated", {f"s{i}": 1.0 for i in range(100)}, 900.0, -2.0)
    shift = so_far(book, clock)
    flange, lid = shift.products
    assert (flange.counts.ok, flange.counts.uncertain) == (99, 1)
    assert lid.not_inspected == {"overload": 1}
    assert shift.latency_ms["total"][0] == pytest.approx(20, rel=0.03)
    assert shift.latency_ms["segment"][2] == pytest.approx(5, rel=0.03)
    assert len(shift.latency_ms) <= 25
    assert shift.cameras[1].latency_ms == pytest.approx((900,) * 3, rel=0.03)
    assert flange.scores is not None
    assert sum(flange.scores.frames["ok"]) == 99
    assert len(flange.scores.edges) == len(flange.scores.frames["ok"]) + 1
    assert flange.scores.edges[0] <= -2.0 < 0.9 < flange.scores.edges[-1]


def test_alarms_and_swaps_have_their_times(tmp_path: Path) -> None:
    clock = Clock(at("2026-11-02T06:00"))
    book, tally = berlin_book(tmp_path, clock), empty()
    book.observe(tally)
    flange = tally.products["flange"]
    for second, alarms in ((10, ("light",)), (20, ("light", "focus")), (30, ("focus",)), (40, ("focus", "light"))):
        clock.now_s = at("2026-11-02T06:00") + second
        tally = later(tally)
        tally.products["flange"].alarms = alarms
        book.observe(tally)
    spans = [
        (alarm.kind, alarm.on_local[17:19], (alarm.off_local or "")[17:19]) for alarm in so_far(book, clock).alarms
    ]
    assert spans == [("light", "10", "30"), ("focus", "20", ""), ("light", "40", "")]
    tally = later(tally)
    flange = tally.products["flange"]
    flange.version, flange.swaps = "4-def", 1
    book.observe(tally)
    tally = later(tally)
    flange = tally.products["flange"]
    flange.failed_swaps, flange.last_failure = 1, "golden frames differ"
    book.observe(tally)
    swaps = [(swap.before, swap.after, swap.failure) for swap in so_far(book, clock).swaps]
    assert swaps == [("3-abc", "4-def", None), ("4-def", "4-def", "golden frames differ")]
    assert so_far(book, clock).products[0].versions == ("3-abc", "4-def")


def test_events_are_bounded_and_the_rest_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shift_counting, "MAX_EVENTS", 3)
    clock = Clock(at("2026-11-02T06:00"))
    book, tally = berlin_book(tmp_path, clock), empty()
    for i in range(20):
        clock.now_s += 1
        tally = later(tally)
        tally.products["flange"].alarms = ("light",) if i % 2 else ()
        tally.products["flange"].version = str(i)
        book.observe(tally)
    shift = so_far(book, clock)
    assert (len(shift.alarms), len(shift.swaps)) == (3, 3)
    assert "7 more alarms than this report lists" in shift.notes
    assert "16 more swaps than this report lists" in shift.notes


def test_a_shadow_that_begins_anew_counts_on(tmp_path: Path) -> None:
    clock = Clock(at("2026-11-02T06:00"))
    book, tally = berlin_book(tmp_path, clock), empty()
    for frames in (0, 30, 50, 5):
        tally = later(tally)
        tally.products["flange"].shadow_frames = frames
        book.observe(tally)
    assert so_far(book, clock).products[0].shadow_frames == 55


# The end of a shift


def test_a_shift_is_closed_at_its_end(tmp_path: Path) -> None:
    clock = Clock(at("2026-11-02T13:59"))
    book, tally = berlin_book(tmp_path, clock), empty()
    book.observe(tally)
    tally = later(tally, ok=7, pending=2)
    tally.products["flange"].alarms = ("light",)
    clock.now_s += 30
    assert book.observe(tally) == []
    clock.now_s = at("2026-11-02T14:00:00.5")
    tally = later(tally, ok=1, pending=3)
    [page] = book.observe(tally)
    assert page == tmp_path / "reports" / "2026-11-02_0600.html"
    closed = figures(page)
    assert (closed.counts.ok, closed.pending, closed.received, closed.closed) == (8, 3, 11, True)
    assert all(check.holds for check in closed.checks)
    clock.now_s += 10
    tally = later(tally, ok=3, pending=0)
    book.observe(tally)
    now = so_far(book, clock)
    assert (now.carried, now.received, now.counts.ok, now.pending) == (3, 0, 3, 0)
    assert all(check.holds for check in now.checks)
    assert (now.start_local, now.alarms[0].on_s) == ("2026-11-02T14:00:00+01:00", closed.alarms[0].on_s)


def test_the_running_report_gives_way_to_the_final_one(tmp_path: Path) -> None:
    clock = Clock(at("2026-11-02T13:00"))
    book = berlin_book(tmp_path, clock)
    assert book.write_running() is None
    book.observe(empty())
    page = book.write_running()
    assert page is not None
    assert page.name == "2026-11-02_0600_running.html"
    assert not figures(page).closed
    clock.now_s = at("2026-11-02T14:00")
    book.observe(empty())
    assert sorted(p.name for p in (tmp_path / "reports").iterdir()) == ["2026-11-02_0600.html", "2026-11-02_0600.json"]


def test_a_report_of_another_shift_is_not_replaced(tmp_path: Path) -> None:
    clock = Clock(at("2026-11-02T13:00"))
    for name in ("a", "b"):
        book = ShiftBook(tmp_path / name, tmp_path / "reports", STARTS, clock=clock, zone=BERLIN)
        book.observe(empty())
        clock.now_s = at("2026-11-02T14:00")
        book.observe(empty())
        clock.now_s = at("2026-11-02T13:00")
    names = {page.name for page in (tmp_path / "reports").glob("*.html")}
    assert names == {"2026-11-02_0600.html", "2026-11-02_0600_2.html"}


def test_a_clock_that_is_set_back(tmp_path: Path) -> None:
    clock = Clock(at("2026-11-02T14:00:01"))
    book, tally = berlin_book(tmp_path, clock), empty()
    book.observe(tally)
    clock.now_s -= 5
    tally = later(tally, ok=2)
    assert book.observe(tally) == []  # a small step is waited out
    clock.now_s = at("2026-10-01T08:00")
    [page] = book.observe(later(tally, ok=1))
    assert "set back" in figures(page).notes[0]
    assert all(check.holds for check in figures(page).checks)
    assert so_far(book, clock).start_local == "2026-10-01T06:00:00+02:00"


# Restarts


def test_a_restart_continues_the_shift(tmp_path: Path) -> None:
    clock = Clock(at("2026-11-02T06:00"))
    book, tally = berlin_book(tmp_path, clock), empty(daemon=1)
    book.observe(tally)
    clock.now_s += 100
    tally = later(tally, ok=10, pending=4)
    book.observe(tally)
    clock.now_s += 60  # killed here, 60 s before it is started again
    book, tally = berlin_book(tmp_path, clock), later(empty(daemon=2), ok=1)
    book.observe(tally)
    clock.now_s += 10
    book.observe(later(tally, ok=5, pending=1))
    shift = so_far(book, clock)
    assert (shift.counts.ok, shift.abandoned, shift.pending, shift.received) == (16, 4, 1, 21)
    assert all(check.holds for check in shift.checks)
    [gap] = shift.gaps
    assert (gap.seconds, gap.why) == (60, "the daemon ended without a stop")
    assert (shift.unobserved_s, shift.observed_s, shift.restarts) == (60, 110, 1)


def test_a_stop_that_answered_everything_is_told_from_a_kill(tmp_path: Path) -> None:
    clock = Clock(at("2026-11-02T06:00"))
    book, tally = berlin_book(tmp_path, clock, save_s=1000.0), empty(daemon=1)
    book.observe(tally)
    tally = later(tally, ok=10, pending=0)
    tally.stopping = True
    book.observe(tally)
    book.close()
    clock.now_s += 60
    book = berlin_book(tmp_path, clock)
    book.observe(empty(daemon=2))
    shift = so_far(book, clock)
    assert (shift.counts.ok, shift.abandoned) == (10, 0)
    assert shift.gaps[0].why == "the daemon was stopped"


def test_a_shift_that_ended_while_the_daemon_was_down(tmp_path: Path) -> None:
    clock = Clock(at("2026-11-02T13:00"))
    book, tally = berlin_book(tmp_path, clock), empty(daemon=1)
    book.observe(tally)
    clock.now_s = at("2026-11-02T13:30")
    book.observe(later(tally, ok=10, pending=4))
    clock.now_s = at("2026-11-02T14:10")
    book = berlin_book(tmp_path, clock)
    tally = later(empty(daemon=2), ok=2)
    tally.products["flange"].version = "4-def"
    [page] = book.observe(tally)
    closed = figures(page)
    assert (closed.counts.ok, closed.abandoned, closed.pending) == (10, 4, 0)
    assert [round(gap.seconds) for gap in closed.gaps] == [7 * 3600, 1800]
    now = so_far(book, clock)
    assert (now.carried, now.counts.ok, now.swaps[0].after) == (0, 2, "4-def")
    assert [round(gap.seconds) for gap in now.gaps] == [600]
    for shift in (closed, now):
        assert all(check.holds for check in shift.checks)


def test_a_line_that_stood_still_for_days(tmp_path: Path) -> None:
    clock = Clock(at("2026-11-02T13:00"))
    berlin_book(tmp_path, clock).observe(empty(daemon=1))
    clock.now_s = at("2026-11-05T13:00")
    book = berlin_book(tmp_path, clock)
    assert [page.name for page in book.observe(empty(daemon=2))] == ["2026-11-02_0600.html"]
    assert so_far(book, clock).start_local == "2026-11-05T06:00:00+01:00"
    assert so_far(book, clock).unobserved_s == 7 * 3600


KILLED = """
    import itertools, sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from tally_samples import empty, later
    from adclick_edge.line.shift import ShiftBook
    folder = Path(sys.argv[1])
    book = ShiftBook(folder / "state", folder / "reports", ("06:00",), save_s=0.0)
    tally = empty(daemon=1)
    for i in itertools.count(1):
        tally = later(tally, ok=2, pending=i % 3)
        book.answered("left", "flange", "ok", None, {"segment": 5.0}, 20.0, 1.0)
        book.observe(tally)
        print(i, flush=True)
"""


def test_a_kill_loses_what_was_not_saved_and_nothing_else(tmp_path: Path) -> None:
    code = textwrap.dedent(KILLED)
    command = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        said = [int(process.stdout.readline()) for _ in range(15)]
    finally:
        os.kill(process.pid, signal.SIGKILL)
        said += [int(line) for line in process.stdout.read().split()]
        process.stdout.close()
        process.wait()
    state = read_state(tmp_path / "state")
    left = state.running.cameras["left"]
    assert left.balanced()
    assert 2 * said[-1] <= left.ok <= 2 * said[-1] + 2
    assert state.last.cameras["left"].ok == left.ok
    book = ShiftBook(tmp_path / "state", tmp_path / "reports", ("06:00",))
    book.observe(later(empty(daemon=2), ok=1))
    record = book.running()
    assert record is not None
    assert record.cameras["left"].ok == left.ok + 1
    assert record.cameras["left"].abandoned == left.pending
    assert [path.name for path in (tmp_path / "state").glob("*") if path.name == STATE_FILE] == [STATE_FILE]


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_the_sums_of_all_shifts_are_the_sums_of_all_daemons(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("shifts")
    clock = Clock(at("2026-10-24T20:00"))
    daemon, tally = 1, empty(daemon=1)
    book = berlin_book(folder, clock)
    answered = received = 0
    pages = book.observe(tally)
    for _ in range(data.draw(st.integers(1, 12))):
        clock.now_s += data.draw(st.sampled_from([1, 30, 3600, 5 * 3600]))
        step = data.draw(st.sampled_from(["answer", "answer", "answer", "restart", "reopen"]))
        if step == "answer":
            taken = data.draw(st.integers(0, 5))
            had = tally.cameras["left"].pending
            ok = data.draw(st.integers(0, had + taken))
            ng = data.draw(st.integers(0, had + taken - ok))
            tally = later(tally, ok=ok, ng=ng, pending=had + taken - ok - ng)
            answered += ok + ng
            received += taken
        else:
            book = berlin_book(folder, clock)
            if step == "restart":
                daemon += 1
                tally = empty(daemon=daemon)
        pages += book.observe(tally)
    shifts = [figures(page) for page in pages] + [so_far(book, clock)]
    assert sum(shift.received for shift in shifts) == received
    assert sum(shift.counts.answered for shift in shifts) == answered
    assert sum(shift.abandoned for shift in shifts) == received - answered - tally.cameras["left"].pending
    for shift in shifts:
        assert all(check.holds for check in shift.checks)
    for ended, begun in pairwise(shifts):
        assert begun.carried == ended.pending


# Disks


def test_a_damaged_book_is_set_aside_and_said(tmp_path: Path) -> None:
    clock = Clock(at("2026-11-02T06:00"))
    berlin_book(tmp_path, clock).observe(empty())
    path = tmp_path / "state" / STATE_FILE
    whole = path.read_bytes()
    for damaged in (whole[:-20], b"", b"[]", whole.replace(b'"format":1', b'"format":2'), b"\xff" + whole):
        path.write_bytes(damaged)
        with pytest.raises(LineError, match=r"shift\.json"):
            read_state(tmp_path / "state")
        book = berlin_book(tmp_path, clock)
        book.observe(empty())
        assert "damaged" in so_far(book, clock).notes[0]
        assert path.with_name("shift.json.damaged").read_bytes() == damaged


def test_a_missing_book_is_named(tmp_path: Path) -> None:
    with pytest.raises(LineError, match="no daemon has run"):
        read_state(tmp_path)


def test_a_report_that_cannot_be_written_is_kept_and_tried_again(tmp_path: Path) -> None:
    clock = Clock(at("2026-11-02T13:59"))
    (tmp_path / "reports").write_text("a file where the folder should be")
    book, tally = berlin_book(tmp_path, clock), later(empty(), ok=3)
    book.observe(tally)
    clock.now_s += 61
    assert book.observe(tally) == []
    book = berlin_book(tmp_path, clock)  # the closed shift survives a restart
    (tmp_path / "reports").unlink()
    assert len(book.observe(tally)) == 1
    clock.now_s += 1
    assert book.observe(tally) == []
    assert figures(tmp_path / "reports" / "2026-11-02_0600.html").counts.ok == 3
    assert read_state(tmp_path / "state").unwritten == []


def test_a_state_that_cannot_be_saved_stops_nothing(tmp_path: Path) -> None:
    clock = Clock(at("2026-11-02T06:00"))
    (tmp_path / "state").write_text("a file where the folder should be")
    book = berlin_book(tmp_path, clock)
    book.observe(empty())
    clock.now_s += 5
    book.observe(later(empty(), ok=3))
    assert so_far(book, clock).counts.ok == 3


def test_saves_are_spaced(tmp_path: Path) -> None:
    clock = Clock(at("2026-11-02T06:00"))
    book, tally = berlin_book(tmp_path, clock, save_s=2.0), empty()
    book.observe(tally)
    path = tmp_path / "state" / STATE_FILE
    clock.now_s += 1
    first = path.read_bytes()
    book.observe(later(tally, ok=1))
    assert path.read_bytes() == first
    clock.now_s += 1
    book.observe(later(tally, ok=2))
    assert path.read_bytes() != first


# The page


class Page(HTMLParser):
    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            assert name not in ("src", "href", "onclick", "onload"), (tag, name)
            assert "url(" not in (value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    folder = tmp_path_factory.mktemp("simulated")
    clock = Clock(at("2026-11-02T06:00"))
    _, _, said = simulate(lambda: berlin_book(folder, clock), clock, hours=8, step_s=150, pace=0.3)
    [page] = (folder / "reports").glob("*.html")
    return page, said


def test_the_report_of_a_simulated_shift(simulated: tuple[Path, dict[str, int]]) -> None:
    page, said = simulated
    shift = figures(page)
    assert {name: getattr(shift.counts, name) for name in said} == said
    assert {name: sum(getattr(p.counts, name) for p in shift.products) for name in said} == said
    assert sum(column.counts.answered for column in shift.columns) == sum(said.values())
    assert sum(hour.counts.answered for hour in shift.hours) == sum(said.values())
    assert all(check.holds for check in shift.checks)
    assert len(shift.hours) == 8
    assert shift.abandoned > 0
    assert {alarm.kind for alarm in shift.alarms} == {"light", "score"}
    assert [swap.failure is None for swap in shift.swaps] == [True, False]
    assert shift.unobserved_s == 900
    assert shift.notes == ()


def test_the_page_is_whole_and_states_the_figures(simulated: tuple[Path, dict[str, int]]) -> None:
    page, said = simulated
    source = page.read_text()
    parsed = Page()
    parsed.feed(source)
    parsed.close()
    assert parsed.open == []
    assert "$" not in source
    assert "://" not in source
    for count in said.values():
        assert f"{count:,}" in parsed.text
    for text in ("The counts add up", "golden frame 2 differs", "ended without a stop", "overload", "11:0"):
        assert text in parsed.text
    assert "not add up" not in parsed.text
    assert source.count("<svg") == 3
    for value in re.findall(r'(?:width|height|x|y)="([^"]*)"', source):
        assert "nan" not in value
        assert not value.startswith("-") or value == "-0.0"
    assert page.stat().st_size < 200_000


def test_counts_that_do_not_add_up_are_red(tmp_path: Path) -> None:
    clock = Clock(at("2026-11-02T06:30"))
    book = berlin_book(tmp_path, clock)
    book.observe(later(empty(), ok=3))
    record = book.running()
    assert record is not None
    record.cameras["left"].ok += 1
    page = render_page(summarise(record, clock(), zone=BERLIN, closed=False), zone=BERLIN)
    assert "check broken" in page
    assert "camera left (3 and 4)" in page
    assert "check holds" not in page


def test_names_and_failures_are_escaped(tmp_path: Path) -> None:
    clock = Clock(at("2026-11-02T06:30"))
    book = berlin_book(tmp_path, clock)
    evil = "<script>alert(1)</script>$title"
    tally = empty()
    tally.name = evil
    book.observe(tally)
    tally = later(tally)
    tally.products["flange"].failed_swaps, tally.products["flange"].last_failure = 1, evil
    tally.products["flange"].alarms = (evil,)
    tally.products["flange"].version = evil
    book.observe(tally)
    book.answered("left", evil, "ok", None, {evil: 1.0}, 1.0, 0.5)
    page = book.write_running()
    assert page is not None
    assert "<script" not in page.read_text()
    assert html.escape(evil) in page.read_text()


def test_an_empty_shift_has_a_page(tmp_path: Path) -> None:
    clock = Clock(at("2026-11-02T06:00"))
    book = berlin_book(tmp_path, clock)
    book.observe(empty())
    page = book.write_running()
    assert page is not None
    assert "The counts add up: 0 frames" in page.read_text()
    assert json.loads(page.with_suffix(".json").read_text())["received"] == 0


def test_a_camera_shift_balances_only_when_it_does() -> None:
    assert CameraShift(carried=1, received=2, ok=1, abandoned=1, pending=1).balanced()
    assert not CameraShift(received=2, ok=1).balanced()
