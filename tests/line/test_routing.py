import threading
import time

import cv2
import numpy as np
import pytest
from candidate_samples import START, a_candidate, a_frame, a_map, a_verdict
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.data.sample_line import PRODUCTS, render_frame
from adclick_edge.errors import LineError
from adclick_edge.line import routing
from adclick_edge.line.config import Routing
from adclick_edge.line.likeness import QueuedLately, Signature, likeness, most_alike, signature
from adclick_edge.line.routing import Candidate, RelabelRouter
from adclick_edge.line.spool import Spool
from adclick_edge.line.token_bucket import TokenBucket
from adclick_edge.runtime.decision import not_inspected

S = 1_000_000_000


class Clock:
    def __init__(self):
        self.ns = 0

    def __call__(self):
        return self.ns


def a_router(folder, *, clock=None, spool=None, seed=1, **config):
    config = Routing(**({"audit_share": 0.0} | config))
    return RelabelRouter(config, spool or Spool(folder, 1 << 30), seed=seed, clock=clock or Clock())


def work(router):
    while router.step() == 0:
        assert router.tally().balanced()


def give(router, candidate):
    why = router.wants(candidate.camera, candidate.product, candidate.verdict)
    if why is not None:
        router.offer(candidate, why)
    return why


# ---- which frames


def test_uncertain_frames_are_wanted_with_thresholds_and_without(tmp_path):
    router = a_router(tmp_path)
    assert router.wants("cam", "board", a_verdict(1.5)) == "uncertain"
    assert router.wants("cam", "board", a_verdict(1.5, calibrated=False)) == "uncertain"
    assert router.wants("cam", "board", a_verdict(0.5)) is None
    assert router.wants("cam", "board", a_verdict(2.5)) is None
    assert router.wants("cam", "board", not_inspected("overload", frame="f")) is None
    assert router.tally().offered == 0  # nothing was offered yet, and nothing refused


def test_ok_and_ng_are_drawn_for_audit_at_the_share_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(routing, "LOOKS_PER_S", 1e9)
    clock = Clock()
    router = a_router(tmp_path, clock=clock, audit_share=0.1)
    drawn = 0
    for frame in range(5000):
        clock.ns += S
        drawn += router.wants("cam", "board", a_verdict(0.5 if frame % 2 else 2.5)) == "audit"
    assert 400 < drawn < 600
    again = a_router(tmp_path, audit_share=0.1)
    other = a_router(tmp_path, audit_share=0.1)
    assert [again.wants("c", "p", a_verdict(0.5)) for _ in range(50)] == [
        other.wants("c", "p", a_verdict(0.5)) for _ in range(50)
    ]


def test_a_record_says_all_that_is_known(tmp_path):
    router = a_router(tmp_path)
    candidate = a_candidate(5)
    give(router, candidate)
    work(router)
    spool = Spool(tmp_path, 1 << 30)
    ((path, record),) = spool.records()
    frame = spool.take(path)
    pixels = cv2.cvtColor(cv2.imdecode(np.frombuffer(frame.image, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(pixels, candidate.frame)
    np.testing.assert_array_equal(frame.map, candidate.map)
    assert (record.camera, record.session, record.seq, record.part, record.product) == ("cam", 7, 5, "part-5", "board")
    assert (record.verdict, record.why, record.score, record.lower, record.upper) == (
        "uncertain",
        "uncertain",
        1.5,
        1,
        2,
    )
    assert (record.bundle_version, record.judged_utc) == ("b1", candidate.judged_utc)
    assert 0 < record.usefulness <= 1


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_the_camera_s_file_is_stored_byte_by_byte(tmp_path, suffix):
    data = cv2.imencode(suffix, a_frame(3))[1].tobytes()
    router = a_router(tmp_path)
    verdict = a_verdict()
    router.offer(
        Candidate(
            camera="cam", session=1, seq=1, part=None, product="board", verdict=verdict, map=a_map(), judged_utc=START,
            encoded=data, suffix=suffix,
        ),
        "uncertain",
    )  # fmt: skip
    work(router)
    spool = Spool(tmp_path, 1 << 30)
    frame = spool.take(spool.paths()[0])
    assert (frame.image, frame.suffix) == (data, suffix)
    assert router.tally().queued == 1


def test_a_candidate_has_pixels_or_a_file():
    with pytest.raises(LineError, match="one of them"):
        Candidate(
            camera="c", session=1, seq=1, part=None, product="p", verdict=a_verdict(), map=a_map(), judged_utc=START
        )


# ---- the budget


def test_the_budget_holds_over_hours(tmp_path):
    clock = Clock()
    router = a_router(tmp_path, clock=clock, budget_per_hour=30, waiting=3)
    seq = 0
    for _ in range(60):  # an hour, two new frames a minute
        for _ in range(2):
            seq += 1
            give(router, a_candidate(seq))
        work(router)
        clock.ns += 60 * S
    tally = router.tally()
    assert tally.offered == seq
    assert 30 <= tally.queued <= 30 + 3  # and the burst, a tenth of an hour's
    assert tally.duplicate == tally.failed == 0


def test_the_most_useful_of_those_that_wait_goes_first(tmp_path):
    clock = Clock()
    router = a_router(tmp_path, clock=clock, budget_per_hour=1, waiting=3)
    scores = [1.05, 1.5, 1.9, 1.45, 1.02, 1.3, 1.98]
    give(router, a_candidate(1, score=1.2))
    work(router)  # takes the burst
    for seq, score in enumerate(scores, 2):
        give(router, a_candidate(seq, score=score))
        work(router)
    assert router.tally().waiting == 3
    assert router.tally().over_budget == 4
    for _ in range(3):
        clock.ns += 3600 * S
        work(router)
    queued = sorted((record.judged_utc, record.seq, record.score) for _, record in Spool(tmp_path, 1 << 30).records())
    assert sorted(score for _, _, score in queued[1:]) == [1.3, 1.45, 1.5]


def test_a_frame_without_a_chance_is_refused_before_it_is_copied(tmp_path):
    router = a_router(tmp_path, budget_per_hour=1, waiting=2)
    for seq in (1, 2, 3):
        give(router, a_candidate(seq, score=1.5))
        work(router)
    before = router.tally()
    assert router.wants("cam", "board", a_verdict(1.01)) is None
    after = router.tally()
    assert (after.offered, after.over_budget) == (before.offered + 1, before.over_budget + 1)
    assert router.wants("cam", "board", a_verdict(1.5)) == "uncertain"


def test_no_budget_means_no_frames(tmp_path):
    router = a_router(tmp_path, budget_per_hour=0, audit_share=1)
    assert give(router, a_candidate()) is None
    router.offer(a_candidate(), "uncertain")
    work(router)
    assert router.tally().over_budget == router.tally().offered == 2


def test_a_flood_costs_the_judging_thread_few_copies(tmp_path):
    clock = Clock()
    router = a_router(tmp_path, clock=clock, budget_per_hour=3600)
    copies = 0
    for _ in range(1000):  # 100 frames a second for ten seconds, and a router that has time for all
        clock.ns += S // 100
        if router.wants("cam", "board", a_verdict()) is not None:
            copies += 1
            router.lost()
    assert copies <= 16 + 10 * routing.LOOKS_PER_S + 1
    assert router.tally().offered == 1000
    assert router.tally().failed == copies


def test_audit_frames_are_neither_compared_nor_crowded_out(tmp_path):
    clock = Clock()
    router = a_router(tmp_path, clock=clock, budget_per_hour=60, audit_share=1.0, waiting=5)
    seq = 0
    for _ in range(60):
        seq += 1
        give(router, a_candidate(seq))
        seq += 1
        give(router, a_candidate(seq, picture=0, score=0.2))
        work(router)
        clock.ns += 60 * S
    whys = [record.why for _, record in Spool(tmp_path, 1 << 30).records()]
    assert 0.15 < whys.count("audit") / len(whys) < 0.3
    assert router.tally().duplicate == 0


def test_a_bucket_fills_at_its_rate_and_no_higher_than_its_burst():
    bucket = TokenBucket(0.5, 2, 0)
    assert [bucket.take(0) for _ in range(3)] == [True, True, False]
    assert bucket.wait_s(0) == pytest.approx(2)
    assert not bucket.take(S)
    assert bucket.take(2 * S)
    assert [bucket.take(1000 * S) for _ in range(3)] == [True, True, False]
    assert not bucket.take(0)  # a clock that goes back gives nothing
    assert TokenBucket(0, 0, 0).wait_s(S) == float("inf")


# ---- duplicates


def test_a_part_that_stands_still_is_queued_once_and_displaces_nothing(tmp_path):
    clock = Clock()
    router = a_router(tmp_path, clock=clock, budget_per_hour=1, waiting=4)
    for seq in (1, 2, 3, 4):
        give(router, a_candidate(seq, score=1.4))
        work(router)
    for seq in range(10, 40):
        clock.ns += S
        give(router, a_candidate(seq, picture=1, score=1.5))
        work(router)
    tally = router.tally()
    assert (tally.queued, tally.waiting, tally.duplicate) == (1, 3, 30)


def test_two_alike_that_wait_are_one(tmp_path):
    clock = Clock()
    router = a_router(tmp_path, clock=clock, budget_per_hour=1)
    for seq in (1, 2):
        give(router, a_candidate(seq))
        work(router)
    give(router, a_candidate(9, picture=2))
    work(router)
    assert (router.tally().queued, router.tally().waiting, router.tally().duplicate) == (1, 1, 1)


def test_a_restart_does_not_queue_again_what_the_spool_holds(tmp_path):
    router = a_router(tmp_path)
    give(router, a_candidate(1))
    work(router)
    router.stop()
    again = a_router(tmp_path)
    give(again, a_candidate(2, picture=1))
    give(again, a_candidate(3))
    work(again)
    assert (again.tally().duplicate, again.tally().queued) == (1, 1)


def _seen_again(frame, rng, right, down):
    moved = cv2.warpAffine(
        frame, np.float32([[1, 0, right], [0, 1, down]]), frame.shape[1::-1], borderMode=cv2.BORDER_REFLECT_101
    )
    return np.clip(moved + rng.normal(0, 2, frame.shape), 0, 255).round().astype(np.uint8)


def _map_of(mask, rng):
    near = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 5)
    values = cv2.resize(near, (64, 64), interpolation=cv2.INTER_AREA)
    return values / values.max() + rng.uniform(0, 0.3, (64, 64)).astype(np.float32)


@pytest.mark.parametrize("product", sorted(PRODUCTS))
def test_what_a_similarity_of_98_percent_means(product):
    rng = np.random.default_rng(0)
    seen = []
    for index, kind in enumerate(PRODUCTS[product][:4]):
        frame, mask = render_frame(product, seed=11, index=index, kind=kind)
        seen.append((frame, mask, signature(frame, _map_of(mask, rng))))
    for frame, mask, sign in seen:
        for right, down in ((0, 0), (1, 0), (0, -1), (1, 1)):
            again = signature(_seen_again(frame, rng, right, down), _map_of(np.roll(mask, (down, right), (0, 1)), rng))
            assert likeness(sign, again) >= 0.98
            assert likeness(again, sign) >= 0.98
    for index, (_, _, sign) in enumerate(seen):
        assert most_alike(sign, [other for place, (*_, other) in enumerate(seen) if place != index]) < 0.98


def test_the_same_part_with_a_defect_elsewhere_is_another_question():
    frame, _ = render_frame("board", seed=3, index=0, kind="good")
    signs = []
    for x, y in ((80, 80), (240, 200)):
        marked, mask = frame.copy(), np.zeros(frame.shape[:2], bool)
        cv2.circle(marked, (x, y), 7, (230, 230, 230), -1)
        cv2.circle(mask.view(np.uint8), (x, y), 7, 1, -1)
        signs.append(signature(marked, _map_of(mask, np.random.default_rng(x))))
    assert likeness(*signs) < 0.9


def test_plain_surfaces_are_alike_though_their_noise_is_not():
    rng = np.random.default_rng(0)
    plain = [np.clip(rng.normal(120, 2, (320, 320, 3)), 0, 255).astype(np.uint8) for _ in range(2)]
    assert likeness(*(signature(frame, a_map(1)) for frame in plain)) > 0.9


def test_memory_is_bounded_and_kept_per_product():
    lately = QueuedLately(limit=3)
    signs = [signature(a_frame(seed), a_map(seed)) for seed in range(5)]
    for sign in signs:
        lately.add("board", sign)
    assert len(lately) == 3
    assert lately.most_alike("board", signs[4]) == pytest.approx(1)
    assert lately.most_alike("board", signs[0]) < 0.9
    assert lately.most_alike("flange", signs[4]) == 0


def test_a_signature_knows_its_size_and_place():
    with pytest.raises(ValueError, match="thumbnail of 3 bytes"):
        Signature(thumbnail=b"abc", x=0.5, y=0.5)
    with pytest.raises(ValueError, match="outside the frame"):
        Signature(thumbnail=bytes(128 * 128), x=1.5, y=0.5)
    values = np.zeros((10, 20), np.float32)
    values[2, 5], values[7, 15] = 2, 1
    assert (signature(a_frame(0), values).x, signature(a_frame(0), values).y) == (5.5 / 20, 2.5 / 10)
    valid = np.ones((10, 20), bool)
    valid[2] = False
    assert signature(a_frame(0), values, valid).x == 15.5 / 20


# ---- what goes wrong


def test_what_cannot_be_stored_is_counted_and_costs_no_budget(tmp_path, monkeypatch):
    clock = Clock()
    spool = Spool(tmp_path, 1 << 30)
    router = a_router(tmp_path, clock=clock, spool=spool, budget_per_hour=1)

    def full(*_args):
        raise LineError("the spool is full")

    with monkeypatch.context() as patched:
        patched.setattr(spool, "put", full)
        for seq in (1, 2):
            give(router, a_candidate(seq))
        work(router)
        assert (router.tally().failed, router.tally().waiting) == (1, 1)
        assert router.tally().last_failure == "the spool is full"
    clock.ns += 3 * S
    work(router)
    assert (router.tally().failed, router.tally().queued, router.tally().waiting) == (1, 1, 0)


def test_a_frame_nobody_can_decode_does_not_end_the_routing(tmp_path):
    router = a_router(tmp_path)
    broken = a_candidate(1)
    broken.frame, broken.encoded, broken.suffix = None, b"no jpeg", ".jpg"
    router.offer(broken, "uncertain")
    empty = a_candidate(2)
    empty.map = np.zeros((0, 0), np.float32)
    router.offer(empty, "uncertain")
    router.offer(a_candidate(3), "uncertain")
    work(router)
    assert (router.tally().failed, router.tally().queued) == (2, 1)


def test_lost_pixels_are_counted(tmp_path):
    router = a_router(tmp_path)
    assert router.wants("cam", "board", a_verdict()) == "uncertain"
    router.lost()
    assert (router.tally().offered, router.tally().failed) == (1, 1)


def test_stop_hands_over_what_the_budget_allows(tmp_path):
    router = a_router(tmp_path, budget_per_hour=30)  # a burst of three
    for seq in range(1, 8):
        give(router, a_candidate(seq))
    assert router.stop()
    tally = router.tally()
    assert (tally.queued, tally.over_budget, tally.waiting) == (3, 4, 0)
    assert give(router, a_candidate(9)) is None
    router.offer(a_candidate(10), "uncertain")
    assert router.tally().over_budget == 6
    assert router.tally().balanced()


@pytest.fixture(scope="module")
def a_few_candidates():
    return [a_candidate(seq, picture=seq % 6, score=1.1 + seq % 4 * 0.2) for seq in range(12)]


class MemorySpool(Spool):
    """Takes no time, and fails on demand."""

    broken = False

    def put(self, record, image, suffix, anomaly_map):
        if self.broken:
            raise LineError("no room")
        return self.folder / str(record.seq)


operation = st.one_of(
    st.tuples(st.just("give"), st.integers(0, 11)),
    st.tuples(st.just("audit"), st.integers(0, 11)),
    st.tuples(st.just("step"), st.integers(1, 3)),
    st.tuples(st.just("wait"), st.integers(1, 5000)),
    st.tuples(st.just("lost"), st.just(0)),
    st.tuples(st.just("break"), st.integers(0, 1)),
    st.tuples(st.just("stop"), st.just(0)),
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(operation, max_size=50),
    st.sampled_from([0.0, 1.0, 20.0, 3600.0]),
    st.integers(1, 6),
    st.sampled_from([0.5, 0.98, 1.0]),
)
def test_every_frame_is_accounted_for_at_every_moment(
    tmp_path_factory, a_few_candidates, operations, budget, waiting, similarity
):
    clock = Clock()
    spool = MemorySpool(tmp_path_factory.getbasetemp() / "memory", 1 << 30)
    router = a_router(
        None, clock=clock, spool=spool, budget_per_hour=budget, waiting=waiting, duplicate_similarity=similarity,
        audit_share=1.0,
    )  # fmt: skip
    offered = 0
    for name, number in operations:
        match name:
            case "give":
                give(router, a_few_candidates[number])
                offered += 1
            case "audit":
                ok = a_verdict(0.3)
                if (why := router.wants("cam", "board", ok)) is not None:
                    assert why == "audit"
                    router.offer(a_few_candidates[number], why)
                offered += 1
            case "step":
                for _ in range(number):
                    router.step()
            case "wait":
                clock.ns += number * S
            case "lost":
                router.lost()
                offered += 1
            case "break":
                spool.broken = bool(number)
            case "stop":
                assert router.stop(0.1)
                assert router.tally().waiting == 0
        tally = router.tally()
        assert tally.balanced()
        assert tally.offered == offered
        assert tally.waiting <= waiting + routing.NEW_PLACES


# ---- with its thread


def wait_until(condition, timeout_s=20.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def test_the_thread_hands_over_and_stops(tmp_path):
    router = a_router(tmp_path, clock=time.monotonic_ns)
    router.start()
    with pytest.raises(LineError, match="started already"):
        router.start()
    for seq in (1, 2, 3):
        give(router, a_candidate(seq))
    wait_until(lambda: router.tally().queued == 3)
    assert router.stop()
    assert not any(thread.name == "router" for thread in threading.enumerate())
    assert len(Spool(tmp_path, 1 << 30).paths()) == 3


def test_cameras_that_offer_at_once_are_all_counted(tmp_path, a_few_candidates):
    router = a_router(
        None, clock=time.monotonic_ns, spool=MemorySpool(tmp_path, 1 << 30), audit_share=0.5, budget_per_hour=1000
    )
    router.start()
    unbalanced, done = [], threading.Event()

    def watch():
        while not done.is_set():
            if not router.tally().balanced():
                unbalanced.append(router.tally())

    def offer():
        for number in range(300):
            give(router, a_few_candidates[number % 12])

    watcher, cameras = threading.Thread(target=watch), [threading.Thread(target=offer) for _ in range(3)]
    for thread in (watcher, *cameras):
        thread.start()
    for thread in cameras:
        thread.join(60)
    assert router.stop()
    done.set()
    watcher.join(20)
    assert unbalanced == []
    tally = router.tally()
    assert tally.balanced()
    assert tally.offered == 900
    assert tally.waiting == 0


def test_a_disk_that_hangs_blocks_neither_offers_nor_the_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(routing, "IDLE_S", 0.1)
    hung, resume = threading.Event(), threading.Event()

    class HangingSpool(MemorySpool):
        def put(self, *args):
            hung.set()
            assert resume.wait(30)
            return super().put(*args)

    router = a_router(None, clock=time.monotonic_ns, spool=HangingSpool(tmp_path, 1 << 30))
    router.start()
    give(router, a_candidate(1))
    assert hung.wait(20)
    began = time.monotonic()
    for seq in range(2, 30):
        give(router, a_candidate(seq, picture=seq % 5))
    assert not router.stop(0.1)
    assert time.monotonic() - began < 5
    tally = router.tally()
    assert (tally.waiting, tally.offered) == (1, 29)
    assert tally.balanced()
    resume.set()
    wait_until(lambda: router.tally().queued == 1)
    assert router.tally().balanced()
    wait_until(lambda: not any(thread.name == "router" for thread in threading.enumerate()))
