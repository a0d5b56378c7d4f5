import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.line.camera_books import CameraBooks, Settled
from adclick_edge.line.protocol import VerdictMessage

LIFE_NS = 10


def trigger(books: CameraBooks, now: int, part: str | None = None) -> list[Settled]:
    opened = books.open(books.reserve(), part=part, started_ns=now, expires_ns=now + LIFE_NS, now_ns=now)
    return [opened] if isinstance(opened, Settled) else []


def verdict(seq: int, part: str | None = None) -> VerdictMessage:
    return VerdictMessage(seq=seq, verdict="ok", part=part)


STEPS = st.lists(
    st.one_of(
        st.just(("trigger", 0)),
        st.just(("trigger", 0)),
        st.just(("send", 0)),
        st.just(("send failed", 0)),
        st.tuples(st.just("verdict"), st.integers(0, 30)),
        st.tuples(st.just("refuse"), st.integers(0, 30)),
        st.tuples(st.just("wait"), st.integers(1, 8)),
        st.tuples(st.just("welcome"), st.integers(1, 3)),
        st.tuples(st.just("grant"), st.integers(1, 2)),
        st.just(("lost", 0)),
    ),
    max_size=80,
)


@settings(deadline=None, max_examples=300)
@given(STEPS)
def test_every_trigger_gets_one_verdict_in_time_and_the_books_balance(steps: list[tuple[str, int]]) -> None:
    books = CameraBooks()
    settled: dict[int, Settled] = {}
    started: dict[int, int] = {}
    on_the_way: list[int] = []
    now = 0

    def enter(new: list[Settled]) -> None:
        for one in new:
            assert one.verdict.seq not in settled
            settled[one.verdict.seq] = one

    for step, number in steps:
        now += 1
        match step:
            case "trigger":
                started[books.next_seq] = now
                enter(trigger(books, now))
            case "send":
                if (sent := books.next_unsent()) is not None:
                    on_the_way.append(sent.seq)
            case "send failed":
                if (failed := books.next_unsent()) is not None:
                    books.not_sent(failed)
                    enter(books.lost(now))
            case "verdict":
                answered = books.verdict(verdict(number), now)
                assert answered is None or number in on_the_way
                enter([answered] if answered else [])
            case "refuse":
                refused = books.refuse(number, "refused", now)
                enter([refused] if refused else [])
            case "wait":
                now += number
            case "welcome":
                enter(books.lost(now))
                books.welcomed(number)
            case "grant":
                books.granted(number)
            case "lost":
                enter(books.lost(now))
        enter(books.expire(now))
        counts = books.snapshot()
        assert counts.balanced
        assert counts.triggers == len(settled) + counts.pending == books.next_seq
        assert books.credits >= 0
        assert all(now < started[seq] + LIFE_NS for seq in started if seq not in settled)
    enter(books.close(now))
    assert sorted(settled) == list(range(books.next_seq))
    assert books.snapshot().pending == 0
    for one in settled.values():
        assert one.verdict.local == (one.verdict.verdict == "not_inspected")


def test_a_verdict_gives_its_credit_back_and_a_late_one_too() -> None:
    books = CameraBooks()
    books.welcomed(2)
    for _ in range(2):
        trigger(books, 0)
        books.next_unsent()
    assert books.reserve() == "no_credit"
    assert books.verdict(verdict(0), 1) is not None
    assert books.credits == 1
    assert [s.verdict.reason for s in books.expire(LIFE_NS)] == ["no_answer"]
    assert books.credits == 1
    assert books.unanswered == 1
    assert books.verdict(verdict(1), LIFE_NS + 1) is None
    assert books.credits == 2
    assert (books.counts.late, books.unanswered) == (1, 0)


def test_a_late_verdict_of_an_earlier_connection_gives_no_credit() -> None:
    books = CameraBooks()
    books.welcomed(1)
    trigger(books, 0)
    books.next_unsent()
    books.lost(1)
    books.expire(LIFE_NS)
    books.welcomed(1)
    assert books.verdict(verdict(0), LIFE_NS + 1) is None
    assert (books.counts.late, books.credits) == (1, 1)


def test_a_verdict_read_after_its_time_does_not_count() -> None:
    books = CameraBooks()
    books.welcomed(1)
    trigger(books, 0)
    books.next_unsent()
    settled = books.verdict(verdict(0), LIFE_NS)
    assert settled is not None
    assert settled.verdict.reason == "no_answer"
    assert (books.counts.late, books.credits, books.counts.answered) == (1, 1, 0)
    assert books.verdict(verdict(0), LIFE_NS) is None
    assert books.counts.bad_messages == 1


@pytest.mark.parametrize("message", [verdict(1), verdict(0, part="other"), verdict(7)])
def test_a_verdict_of_another_trigger_or_part_is_not_taken(message: VerdictMessage) -> None:
    books = CameraBooks()
    books.welcomed(2)
    trigger(books, 0, part="mine")
    trigger(books, 0, part="unsent")
    books.next_unsent()
    assert books.verdict(message, 1) is None
    assert (books.counts.bad_messages, books.pending, books.credits) == (1, 2, 0)


def test_a_reservation_does_not_outlive_its_connection() -> None:
    books = CameraBooks()
    books.welcomed(1)
    reserved = books.reserve()
    books.lost(0)
    books.welcomed(1)
    opened = books.open(reserved, part=None, started_ns=0, expires_ns=9, now_ns=1)
    assert isinstance(opened, Settled)
    assert opened.verdict.reason == "no_connection"
    assert isinstance(reserved, int)
    books.give_back(reserved)
    assert books.credits == 1


def test_a_stall_is_seen_only_when_no_credit_can_come_back() -> None:
    books = CameraBooks()
    books.welcomed(2)
    for _ in range(2):
        trigger(books, 0)
        books.next_unsent()
    assert books.stalled_since_ns() is None
    books.expire(LIFE_NS)
    assert books.stalled_since_ns() == LIFE_NS
    books.verdict(verdict(0), LIFE_NS + 1)
    assert books.stalled_since_ns() is None
