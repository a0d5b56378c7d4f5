"""Every frame received is answered exactly once, whatever happens in which order."""

from hypothesis import given, settings
from hypothesis import strategies as st
from line_jobs import MS, make_job

from adclick_edge.line.books import Books
from adclick_edge.line.job import Job
from adclick_edge.line.tally import CameraTally
from adclick_edge.runtime.decision import Reason, Verdict


def test_a_frame_is_received_then_answered_once() -> None:
    books = Books({"a": "p"})
    job = make_job()
    books.receive(job)
    assert books.cameras()["a"].pending == 1
    assert books.answer(job, "ng", None, 0)
    assert not books.answer(job, "ok", None, 0)
    tally = books.cameras()["a"]
    assert (tally.ng, tally.ok, tally.pending, tally.late_results) == (1, 0, 0, 1)
    assert tally.balanced()


def test_an_answer_after_the_deadline_is_late() -> None:
    books = Books({"a": "p"})
    first, second = make_job(seq=0, deadline_ms=10), make_job(seq=1, deadline_ms=10)
    for job in (first, second):
        books.receive(job)
    books.answer(first, "ok", None, 10 * MS)
    books.answer(second, "ok", None, 10 * MS + 1)
    assert books.cameras()["a"].late == 1


def test_gaps_in_sequence_numbers_are_missed_triggers() -> None:
    books = Books({"a": "p"})
    books.hello("a", session=7, next_seq=0, unanswered=0)
    for seq in (0, 1, 5):
        books.receive(make_job(seq=seq, session=7))
    assert books.cameras()["a"].missed == 3
    assert not books.is_new("a", 7, 5)
    assert books.is_new("a", 7, 6)
    assert books.is_new("a", 8, 0)
    # The link was cut; the camera counted on.
    books.hello("a", session=7, next_seq=10, unanswered=4)
    assert books.cameras()["a"].missed == 7
    assert books.cameras()["a"].sessions == 2


def test_a_restarted_daemon_learns_from_the_camera_what_was_lost() -> None:
    books = Books({"a": "p"})
    books.hello("a", session=7, next_seq=1000, unanswered=12)
    books.receive(make_job(seq=1000, session=7))
    assert books.cameras()["a"].missed == 12


def test_strangers_are_counted_apart() -> None:
    books = Books({"a": "p"})
    books.bad_message(None, "unknown_session")
    books.bad_message("a", "bad_message")
    assert books.strangers() == {"unknown_session": 1}
    assert books.cameras()["a"].bad_messages == 1


def test_a_snapshot_is_a_copy() -> None:
    books = Books({"a": "p"})
    job = make_job()
    books.receive(job)
    before = books.cameras([("a", 3)])["a"]
    books.answer(job, "not_inspected", "overload", 0)
    assert before.pending == 1
    assert before.not_inspected == {}
    assert before.queue == 3
    assert books.cameras()["a"] == CameraTally(product="p", received=1, not_inspected={"overload": 1})


def test_the_rate_covers_the_last_seconds() -> None:
    now = [0]
    books = Books({"a": "p"}, clock=lambda: now[0])
    for seq in range(50):
        job = make_job(seq=seq)
        books.receive(job)
        books.answer(job, "ok", None, seq * 100 * MS)
    now[0] = 5000 * MS
    assert abs(books.frames_per_s() - 10) < 0.5
    now[0] = 60_000 * MS
    assert books.frames_per_s() == 0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.integers(0, 30),
            st.sampled_from(
                [
                    ("ok", None),
                    ("ng", None),
                    ("uncertain", None),
                    ("not_inspected", "overload"),
                    ("not_inspected", "deadline"),
                ]
            ),
        ),
        max_size=80,
    )
)
def test_the_sums_hold_at_every_moment(steps: list[tuple[bool, int, tuple[Verdict, Reason | None]]]) -> None:
    books = Books({"a": "p"})
    jobs: list[Job] = []
    for receive, which, (verdict, reason) in steps:
        if receive or not jobs:
            jobs.append(make_job(seq=len(jobs)))
            books.receive(jobs[-1])
        else:
            books.answer(jobs[which % len(jobs)], verdict, reason, 0)
        tally = books.cameras()["a"]
        assert tally.balanced()
        assert tally.received == len(jobs)
        assert tally.pending == sum(not job.answered for job in jobs)
