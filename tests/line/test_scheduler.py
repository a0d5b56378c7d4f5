"""Fair between cameras, bounded, never past a deadline."""

import threading
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from line_jobs import MS, make_job

from adclick_edge.line.config import OverloadPolicy
from adclick_edge.line.job import Job
from adclick_edge.line.scheduler import BatchCost, Scheduler


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def scheduler_of(
    cameras: dict[str, tuple[int, OverloadPolicy]],
    *,
    max_batch: int = 4,
    wait_ms: float = 0,
    clock: Clock | None = None,
) -> Scheduler:
    return Scheduler(cameras, max_batch=max_batch, batch_wait_ms=wait_ms, margin_ms=5, clock=clock or Clock())


def decode_all(scheduler: Scheduler) -> list[Job]:
    done = []
    while (job := scheduler.next_raw(0)) is not None:
        scheduler.decoded(job)
        done.append(job)
    return done


def test_frames_of_a_camera_keep_their_order() -> None:
    scheduler = scheduler_of({"a": (8, "reject_newest")})
    for seq in range(5):
        assert scheduler.add(make_job(seq=seq)) is None
    decode_all(scheduler)
    batch = scheduler.next_batch(0)
    assert batch is not None
    assert [job.seq for job in batch.jobs] == [0, 1, 2, 3]
    second = scheduler.next_batch(0)
    assert second is not None
    assert [job.seq for job in second.jobs] == [4]
    assert scheduler.next_batch(0) is None


@pytest.mark.parametrize("policy", ["reject_newest", "block"])
def test_a_full_queue_turns_the_newest_away(policy: OverloadPolicy) -> None:
    scheduler = scheduler_of({"a": (2, policy)})
    assert scheduler.add(make_job(seq=0)) is None
    assert scheduler.add(make_job(seq=1)) is None
    third = make_job(seq=2)
    assert scheduler.add(third) is third
    assert scheduler.waiting("a") == 2


def test_a_full_queue_drops_the_oldest_nobody_works_on() -> None:
    scheduler = scheduler_of({"a": (3, "drop_oldest")})
    jobs = [make_job(seq=i) for i in range(6)]
    for job in jobs[:3]:
        assert scheduler.add(job) is None
    first = scheduler.next_raw(0)
    assert first is jobs[0]
    scheduler.decoded(first)
    second = scheduler.next_raw(0)
    assert second is jobs[1]
    assert scheduler.add(jobs[3]) is jobs[2]
    assert scheduler.next_raw(0) is jobs[3]
    assert scheduler.add(jobs[4]) is jobs[0]  # nothing raw is left: what is ready, then what is being decoded
    assert scheduler.add(jobs[5]) is jobs[4]
    scheduler.decoded(second)
    scheduler.decoded(jobs[3])
    decode_all(scheduler)
    batch = scheduler.next_batch(0)
    assert batch is not None
    assert [job.seq for job in batch.jobs] == [1, 3, 5]


@pytest.mark.parametrize("policy", ["reject_newest", "drop_oldest"])
def test_every_policy_gets_its_share_of_an_overloaded_line(policy: OverloadPolicy) -> None:
    """Four cameras trigger twice as often as the line can judge, each time after a frame was decoded and before it is
    taken; a camera that drops its oldest must not drop the decoded one every time.
    """
    cameras: dict[str, tuple[int, OverloadPolicy]] = {"a": (4, policy)}
    cameras |= dict.fromkeys("bcd", (4, "reject_newest"))
    scheduler = scheduler_of(cameras, max_batch=2)
    served: Counter[str] = Counter()
    for step in range(400):
        for _ in range(2):
            job = scheduler.next_raw(0)
            if job is not None:
                scheduler.decoded(job)
        for name in cameras:
            scheduler.add(make_job(name, step, deadline_ms=1e6))
        batch = scheduler.next_batch(0)
        served.update(job.camera for job in (batch.jobs if batch else ()))
    assert all(abs(served[name] - 200) <= 5 for name in cameras), served


def test_a_camera_that_floods_delays_only_itself() -> None:
    cameras: dict[str, tuple[int, OverloadPolicy]] = {"flood": (100, "reject_newest"), "calm": (4, "reject_newest")}
    scheduler = scheduler_of(cameras, max_batch=2)
    for seq in range(100):
        scheduler.add(make_job("flood", seq))
    served: Counter[str] = Counter()
    for turn in range(20):
        scheduler.add(make_job("calm", turn))
        decode_all(scheduler)
        batch = scheduler.next_batch(0)
        assert batch is not None
        served.update(job.camera for job in batch.jobs)
    assert served["calm"] >= 18


def test_a_camera_that_was_idle_gets_no_more_than_its_share() -> None:
    cameras: dict[str, tuple[int, OverloadPolicy]] = {"a": (200, "reject_newest"), "b": (200, "reject_newest")}
    scheduler = scheduler_of(cameras, max_batch=1)
    for seq in range(120):
        scheduler.add(make_job("a", seq))
    for _ in range(60):
        decode_all(scheduler)
        assert scheduler.next_batch(0) is not None
    for seq in range(60):
        scheduler.add(make_job("b", seq))
    order = []
    for _ in range(24):
        decode_all(scheduler)
        batch = scheduler.next_batch(0)
        assert batch is not None
        order.append(batch.jobs[0].camera)
    # A few were decoded before the other camera came.
    assert 9 <= order.count("b") <= 13


def test_a_batch_holds_one_product() -> None:
    cameras: dict[str, tuple[int, OverloadPolicy]] = {"a": (8, "reject_newest"), "b": (8, "reject_newest")}
    scheduler = scheduler_of(cameras)
    for seq in range(2):
        scheduler.add(make_job("a", seq, product="p"))
        scheduler.add(make_job("b", seq, product="q"))
    decode_all(scheduler)
    products = []
    while (batch := scheduler.next_batch(0)) is not None:
        products.append(batch.product)
        assert {job.product for job in batch.jobs} == {batch.product}
        assert len(batch.jobs) == 2
    assert sorted(products) == ["p", "q"]


def test_a_batch_is_no_larger_than_its_deadlines_allow() -> None:
    clock = Clock()
    scheduler = scheduler_of({"a": (8, "reject_newest")}, clock=clock)
    for frames in (1, 2, 3, 4):
        scheduler.took("p", frames, frames * 20 * MS)
    for seq in range(4):
        scheduler.add(make_job(seq=seq, deadline_ms=50))
    decode_all(scheduler)
    batch = scheduler.next_batch(0)
    assert batch is not None
    assert len(batch.jobs) == 2  # 40 ms and the margin fit, 60 ms do not


def test_hopeless_frames_are_given_up_at_once_and_cost_no_engine_time() -> None:
    clock = Clock()
    scheduler = scheduler_of({"a": (8, "reject_newest")}, clock=clock)
    scheduler.took("p", 1, 20 * MS)
    scheduler.add(make_job(seq=0, deadline_ms=30))
    scheduler.add(make_job(seq=1, deadline_ms=100))
    decode_all(scheduler)
    clock.now = 15 * MS
    batch = scheduler.next_batch(0)
    assert batch is not None
    assert [job.seq for job in batch.hopeless] == [0]
    assert [job.seq for job in batch.jobs] == [1]


def test_one_slow_batch_does_not_condemn_the_next() -> None:
    cost = BatchCost()
    cost.add(1, 20 * MS, 0)
    cost.add(1, 900 * MS, 0)
    assert cost.least_ns(1) == 20 * MS
    assert cost.least_ns(3) == 60 * MS
    for _ in range(16):
        cost.add(1, 40 * MS, 0)
    assert cost.least_ns(1) == 40 * MS
    assert BatchCost().least_ns(4) == 0


def test_a_batch_waits_for_company_but_not_past_a_deadline() -> None:
    clock = Clock()
    scheduler = scheduler_of({"a": (8, "reject_newest")}, wait_ms=40, clock=clock)
    scheduler.took("p", 1, 10 * MS)
    scheduler.took("p", 2, 20 * MS)
    patient, urgent = make_job(seq=0, deadline_ms=500), make_job(seq=1, deadline_ms=30)
    scheduler.add(patient)
    decode_all(scheduler)
    assert scheduler._may_wait_ns("p", 0) == 40 * MS
    scheduler.add(urgent)
    decode_all(scheduler)
    # 30 ms until the deadline, less 30 for a batch of three (in proportion), less the margin: start now.
    assert scheduler._may_wait_ns("p", 0) <= 0
    batch = scheduler.next_batch(0)
    assert batch is not None
    assert len(batch.jobs) == 2


def test_a_stop_lets_every_waiting_thread_go() -> None:
    scheduler = Scheduler({"a": (2, "reject_newest")}, max_batch=1)
    threads = [
        threading.Thread(target=scheduler.next_raw, args=(30,)),
        threading.Thread(target=scheduler.next_batch, args=(30,)),
    ]
    for thread in threads:
        thread.start()
    scheduler.stop()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    late = make_job()
    assert scheduler.add(late) is late


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "raw", "decoded", "batch", "drop"]), st.sampled_from("abc")), max_size=120
    ),
    st.sampled_from(["reject_newest", "drop_oldest", "block"]),
    st.integers(1, 5),
)
def test_no_frame_is_lost_or_handed_out_twice(steps: list[tuple[str, str]], policy: OverloadPolicy, limit: int) -> None:
    clock = Clock()
    scheduler = scheduler_of(dict.fromkeys("abc", (limit, policy)), clock=clock)
    added: list[Job] = []
    left: list[Job] = []
    decoding: list[Job] = []
    for number, (what, camera) in enumerate(steps):
        clock.now += MS
        if what == "add":
            job = make_job(camera, number, now_ms=clock.now / MS, deadline_ms=10_000, product="pq"[number % 2])
            added.append(job)
            displaced = scheduler.add(job)
            if displaced is not None:
                left.append(displaced)
        elif what == "raw" and (raw := scheduler.next_raw(0)) is not None:
            decoding.append(raw)
        elif what == "decoded" and decoding:
            scheduler.decoded(decoding.pop(number % len(decoding)))
        elif what == "batch" and (batch := scheduler.next_batch(0)) is not None:
            left += batch.jobs
        elif what == "drop" and (mine := [j for j in added if j.camera == camera and j not in left]):
            scheduler.drop(mine[0])
            left.append(mine[0])
        for name in "abc":
            assert scheduler.waiting(name) <= limit
    for job in decoding:
        scheduler.decoded(job)
    while True:
        decode_all(scheduler)
        batch = scheduler.next_batch(0)
        if batch is None:
            break
        left += batch.jobs
    assert len(left) == len(set(map(id, left)))
    assert set(map(id, left)) == set(map(id, added))
    assert all(scheduler.waiting(name) == 0 for name in "abc")


def test_an_estimate_that_gives_every_frame_up_is_tried_again() -> None:
    """Nothing that is given up corrects it: after one slow batch the line would never judge again."""
    clock = Clock()
    scheduler = scheduler_of({"a": (8, "reject_newest")}, clock=clock)
    judged = []
    cost_ms = 900.0
    for seq in range(40):
        now_ms = clock.now / MS
        scheduler.add(make_job(seq=seq, now_ms=now_ms, deadline_ms=500))
        decode_all(scheduler)
        batch = scheduler.next_batch(0)
        assert batch is not None
        if batch.jobs:
            judged.append(seq)
            clock.now += int(cost_ms * MS)
            scheduler.took("p", 1, int(cost_ms * MS))
            cost_ms = 20.0 if len(judged) > 2 else 900.0
        clock.now += 100 * MS
    assert judged[0] == 0
    assert 10 <= judged[1] <= 12  # a second later, no sooner
    assert judged[3:] == list(range(judged[3], 40))
    assert judged[3] < 40
