import random
import time
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.errors import ProtocolError
from adclick_edge.line.protocol import (
    BITS_PER_PIXEL,
    ENCODED,
    MAX_HEADER_BYTES,
    PROTOCOL_VERSION,
    Bye,
    CameraMessage,
    Credit,
    DaemonMessage,
    ErrorCode,
    ErrorMessage,
    FrameHeader,
    Heartbeat,
    Hello,
    PixelFormat,
    Region,
    RingSlot,
    VerdictMessage,
    Welcome,
    decode_camera_message,
    decode_daemon_message,
    encode,
)
from adclick_edge.runtime.decision import Reason, Verdict

FUZZED = 10_000
MAX_U63 = (1 << 63) - 1

u63 = st.integers(0, MAX_U63)
name = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True)
# Without lone surrogates, which no UTF-8 can hold.
character = st.characters(exclude_categories=["Cs"])
short = st.text(character, max_size=64)
long = st.text(character, max_size=300)
milliseconds = st.floats(0, 3_600_000)
number = st.floats(allow_nan=False)
credit_count = st.integers(1, 4096)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


ring_slots = st.builds(
    RingSlot,
    name=st.from_regex(r"adclick-[A-Za-z0-9_.-]{1,100}", fullmatch=True),
    slot=st.integers(0, 4095),
    generation=u63,
    size_bytes=u63,
)
int64 = st.integers(-(1 << 63), (1 << 64) - 1)
regions = st.builds(Region, left=int64, top=int64, width=int64, height=int64, peak=number)
from_camera: st.SearchStrategy[CameraMessage] = st.one_of(
    st.builds(Hello, camera=name, session=u63, next_seq=u63, unanswered=u63, boot_id=maybe(short), software=short),
    st.builds(
        FrameHeader,
        seq=u63,
        format=st.sampled_from(get_args(PixelFormat)),
        width=st.integers(1, 1 << 20),
        height=st.integers(1, 1 << 20),
        stride_bytes=st.integers(0, 1 << 24),
        bit_depth=st.integers(8, 16),
        deadline_ms=maybe(milliseconds),
        sent_ns=maybe(u63),
        code=maybe(short),
        part=maybe(short),
        ring=maybe(ring_slots),
    ),
    st.builds(Heartbeat, sent_ns=u63),
    st.builds(Bye, reason=long),
)
from_daemon: st.SearchStrategy[DaemonMessage] = st.one_of(
    st.builds(
        Welcome,
        daemon=u63,
        credits=credit_count,
        deadline_ms=milliseconds,
        heartbeat_ms=milliseconds,
        max_payload_bytes=u63,
        local=st.booleans(),
    ),
    st.builds(Credit, credits=credit_count),
    st.builds(
        VerdictMessage,
        seq=u63,
        verdict=st.sampled_from(get_args(Verdict)),
        reason=maybe(st.sampled_from(get_args(Reason))),
        score=maybe(number),
        lower=maybe(number),
        upper=maybe(number),
        product=maybe(short),
        bundle_version=maybe(short),
        part=maybe(short),
        stage_ms=st.dictionaries(short, number, max_size=4),
        regions=st.lists(regions, max_size=8).map(tuple),
        regions_found=int64,
    ),
    st.builds(Heartbeat, sent_ns=u63),
    st.builds(ErrorMessage, code=st.sampled_from(get_args(ErrorCode)), message=long, seq=maybe(u63)),
    st.builds(Bye, reason=long),
)

FRAME: dict[str, Any] = {"type": "frame", "v": 1, "seq": 3, "format": "mono8", "width": 4, "height": 2}
SLOT: dict[str, Any] = {"name": "adclick-c-1", "slot": 0, "generation": 2, "size_bytes": 8}
HELLO: dict[str, Any] = {"type": "hello", "v": 1, "camera": "cam-1", "session": 5, "next_seq": 0}
VERDICT: dict[str, Any] = {"type": "verdict", "v": 1, "seq": 3, "verdict": "ok"}
WELCOME: dict[str, Any] = {
    "type": "welcome", "v": 1, "daemon": 1, "credits": 4, "deadline_ms": 500.0, "heartbeat_ms": 250.0,
    "max_payload_bytes": 1000,
}  # fmt: skip
CREDIT: dict[str, Any] = {"type": "credit", "credits": 1}
ERROR: dict[str, Any] = {"type": "error", "code": "version", "message": "m"}
BYE: dict[str, Any] = {"type": "bye"}
HEARTBEAT: dict[str, Any] = {"type": "heartbeat", "sent_ns": 1}

pack = msgspec.msgpack.encode


def refusal(data: bytes) -> str:
    """The code with which both sides refuse these bytes."""
    codes = set()
    for decode in (decode_camera_message, decode_daemon_message):
        with pytest.raises(ProtocolError) as error:
            decode(data)
        codes.add(error.value.code)
        assert 0 < len(str(error.value)) <= 1000
        ErrorMessage(code=error.value.code, message=str(error.value))
    (code,) = codes
    return code


# --- round trips


@given(message=from_camera)
@settings(deadline=None, max_examples=200)
def test_round_trip_from_cameras(message: CameraMessage) -> None:
    data = encode(message)
    assert len(data) <= MAX_HEADER_BYTES
    assert decode_camera_message(data) == message
    assert decode_camera_message(memoryview(data)) == message


@given(message=from_daemon)
@settings(deadline=None, max_examples=200)
def test_round_trip_from_the_daemon(message: DaemonMessage) -> None:
    assert decode_daemon_message(encode(message)) == message


@given(message=from_camera | from_daemon)
@settings(deadline=None, max_examples=100)
def test_headers_are_maps_that_say_type_and_version(message: CameraMessage | DaemonMessage) -> None:
    fields = msgspec.msgpack.decode(encode(message))
    assert fields["v"] == PROTOCOL_VERSION
    assert fields["type"] in {
        "hello", "frame", "heartbeat", "bye", "welcome", "credit", "verdict", "error"
    }  # fmt: skip


@pytest.mark.parametrize("fields", [FRAME, HELLO])
def test_cameras_do_not_get_what_cameras_send(fields: dict[str, Any]) -> None:
    decode_camera_message(pack(fields))
    with pytest.raises(ProtocolError):
        decode_daemon_message(pack(fields))


@pytest.mark.parametrize("fields", [WELCOME, CREDIT, VERDICT, ERROR])
def test_daemons_do_not_get_what_daemons_send(fields: dict[str, Any]) -> None:
    decode_daemon_message(pack(fields))
    with pytest.raises(ProtocolError):
        decode_camera_message(pack(fields))


def test_every_raw_format_has_a_size() -> None:
    assert set(BITS_PER_PIXEL) | ENCODED == set(get_args(PixelFormat))
    assert not set(BITS_PER_PIXEL) & ENCODED


def test_the_largest_frame_header_fits() -> None:
    frame = FrameHeader(
        seq=MAX_U63, format="bayer_rg8", width=1 << 20, height=1 << 20, stride_bytes=1 << 24, deadline_ms=3_600_000.0,
        sent_ns=MAX_U63, code="\U0001f984" * 64, part="\U0001f984" * 64,
        ring=RingSlot(name="adclick-" + "x" * 100, slot=4095, generation=MAX_U63, size_bytes=MAX_U63),
    )  # fmt: skip
    assert decode_camera_message(encode(frame)) == frame


def test_a_header_too_long_to_send() -> None:
    with pytest.raises(ProtocolError, match=r"a VerdictMessage of \d+ bytes exceeds 4096; shorten its texts") as error:
        encode(VerdictMessage(seq=0, verdict="ok", stage_ms={f"stage {i:04}": 1.0 for i in range(400)}))
    assert error.value.code == "bad_message"


# --- bounds


@pytest.mark.parametrize(
    ("fields", "key", "good", "bad"),
    [
        (FRAME, "seq", [0, MAX_U63], [-1, 1 << 63, 1.0, "1", None, True, [1]]),
        (FRAME, "width", [1, 1 << 20], [0, -1, (1 << 20) + 1, None, "4"]),
        (FRAME, "height", [1, 1 << 20], [0, -1, (1 << 20) + 1]),
        (FRAME, "stride_bytes", [0, 1 << 24], [-1, (1 << 24) + 1, None]),
        (FRAME, "bit_depth", [8, 16], [7, 17, 0, 12.0]),
        (FRAME, "deadline_ms", [None, 0, 5, 3_600_000.0], [-1e-9, 3_600_001, float("nan"), float("inf"), "5"]),
        (FRAME, "sent_ns", [None, 0, MAX_U63], [-1, 1 << 63, 0.5]),
        (FRAME, "format", get_args(PixelFormat), ["MONO8", "", "mono", 8, None]),
        (FRAME, "code", [None, "", "é" * 64], ["x" * 65, 5, b"x"]),
        (FRAME, "part", [None, "", "é" * 64], ["x" * 65, 5, b"x"]),
        (FRAME, "ring", [None, SLOT], [[], "adclick-x", {}, SLOT | {"slot": None}]),
        (HELLO, "camera", ["a", "A.b_c-9", "x" * 64], ["", ".a", "-a", "a/b", "a b", "ä", "x" * 65, None, 5]),
        (HELLO, "session", [0, MAX_U63], [-1, 1 << 63]),
        (HELLO, "next_seq", [0, MAX_U63], [-1, 1 << 63]),
        (HELLO, "unanswered", [0, MAX_U63], [-1, 1 << 63, None]),
        (HELLO, "boot_id", [None, "", "x" * 64], ["x" * 65, 5]),
        (HELLO, "software", ["", "x" * 64], ["x" * 65, None]),
        (BYE, "reason", ["", "x" * 1000], ["x" * 1001, None]),
        (HEARTBEAT, "sent_ns", [0, MAX_U63], [-1, 1 << 63, None]),
    ],
)
def test_bounds_of_what_cameras_send(fields: dict[str, Any], key: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        decode_camera_message(pack(fields | {key: value}))
    for value in bad:
        assert refusal(pack(fields | {key: value})) == "bad_message", value


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("name", ["adclick-a", "adclick-" + "x" * 100], ["adclick-", "adclick-a/b", "x", "adclick-" + "x" * 101, None]),
        ("slot", [0, 4095], [-1, 4096, None]),
        ("generation", [0, MAX_U63], [-1, 1 << 63]),
        ("size_bytes", [0, MAX_U63], [-1, 1 << 63]),
    ],
)
def test_bounds_of_ring_slots(key: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        decode_camera_message(pack(FRAME | {"ring": SLOT | {key: value}}))
    for value in bad:
        assert refusal(pack(FRAME | {"ring": SLOT | {key: value}})) == "bad_message", value


@pytest.mark.parametrize(
    ("fields", "key", "good", "bad"),
    [
        (WELCOME, "credits", [1, 4096], [0, 4097, None]),
        (WELCOME, "heartbeat_ms", [0, 3_600_000], [-1, float("nan")]),
        (WELCOME, "deadline_ms", [0, 3_600_000], [-1, float("nan"), None]),
        (WELCOME, "local", [True, False], [1, None]),
        (CREDIT, "credits", [1, 4096], [0, 4097]),
        (VERDICT, "verdict", get_args(Verdict), ["OK", "", None]),
        (VERDICT, "reason", [None, *get_args(Reason)], ["because", ""]),
        (VERDICT, "score", [None, 0, -1.5], ["0", True]),
        (ERROR, "code", get_args(ErrorCode), ["oops", None]),
        (ERROR, "message", ["", "x" * 1000], ["x" * 1001]),
    ],
)
def test_bounds_of_what_daemons_send(fields: dict[str, Any], key: str, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        decode_daemon_message(pack(fields | {key: value}))
    for value in bad:
        assert refusal(pack(fields | {key: value})) == "bad_message", value


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        (FRAME, {"type", "seq", "format", "width", "height"}),
        (HELLO, {"type", "camera", "session", "next_seq"}),
        (HEARTBEAT, {"type", "sent_ns"}),
        (WELCOME, {"type", "daemon", "credits", "deadline_ms", "heartbeat_ms", "max_payload_bytes"}),
        (CREDIT, {"type", "credits"}),
        (VERDICT, {"type", "seq", "verdict"}),
        (ERROR, {"type", "code", "message"}),
        (BYE, {"type"}),
    ],
)
def test_keys_that_must_be_there(fields: dict[str, Any], needed: set[str]) -> None:
    decode = decode_daemon_message if fields in (WELCOME, CREDIT, VERDICT, ERROR) else decode_camera_message
    assert decode(pack({key: value for key, value in fields.items() if key in needed}))
    for key in needed:
        assert refusal(pack({k: v for k, v in fields.items() if k != key})) == "bad_message"


def test_the_longest_header() -> None:
    padding = MAX_HEADER_BYTES - len(pack(FRAME | {"later": bytes(300)})) + 300
    assert len(pack(FRAME | {"later": bytes(padding)})) == MAX_HEADER_BYTES
    decode_camera_message(pack(FRAME | {"later": bytes(padding)}))
    assert refusal(pack(FRAME | {"later": bytes(padding + 1)})) == "bad_message"
    assert refusal(bytes(10_000_000)) == "bad_message"


# --- other versions


@given(
    fields=st.sampled_from([FRAME, HELLO, HEARTBEAT, BYE]),
    key=st.text(character, min_size=1, max_size=20),
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-(1 << 63), MAX_U63) | st.floats() | st.binary(max_size=9) | short,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(short, inner, max_size=3),
        max_leaves=6,
    ),
)
@settings(deadline=None, max_examples=150)
def test_keys_of_a_newer_peer_are_ignored(fields: dict[str, Any], key: str, value: Any) -> None:
    known = {"code", "part", "ring", "deadline_ms", "sent_ns", "stride_bytes", "bit_depth"}
    known |= {"unanswered", "boot_id", "software", "reason"}
    if key in fields or key in known:
        key = "later." + key
    assert decode_camera_message(pack(fields | {key: value})) == decode_camera_message(pack(fields))


@pytest.mark.parametrize("version", [0, 2, 3, -1, 1 << 40])
@pytest.mark.parametrize("fields", [FRAME, HELLO, {"type": "handshake"}, FRAME | {"width": "wide"}, {}])
def test_other_versions_are_told_so(fields: dict[str, Any], version: int) -> None:
    """Whatever else changed with it: the camera's maker must learn that the version is what is wrong."""
    assert refusal(pack(fields | {"v": version})) == "version"


def test_a_message_without_version_is_of_the_first() -> None:
    assert decode_camera_message(pack({k: v for k, v in FRAME.items() if k != "v"})) == decode_camera_message(
        pack(FRAME)
    )


# --- bytes that are no messages


def packs(fields: dict[str, Any]) -> bytes:
    return pack(fields | {"ring": SLOT, "deadline_ms": 5.5, "code": "c", "later": [1, {"a": b"b"}, -1, 1e300]})


SEEDS = [
    pack(FRAME), packs(FRAME), pack(HELLO), packs(HELLO), pack(HEARTBEAT), pack(BYE), pack(WELCOME), pack(CREDIT),
    pack(VERDICT | {"stage_ms": {"total": 1.0}, "regions": [{"left": 0, "top": 0, "width": 1, "height": 1, "peak": 1.0}]}),
    pack(ERROR),
]  # fmt: skip
# First bytes of arrays, maps, strings, binaries and extensions (among them timestamps) that promise a lot.
PROMISES = [
    bytes([kind]) + size
    for kind in (0xDF, 0xDD, 0xDB, 0xC6, 0xC9, 0xDE, 0xDC, 0xDA, 0xC5, 0xC8)
    for size in (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\xff\xff", b"\xff\xff")
] + [b"\xd4\xff", b"\xd6\xff", b"\xd7\xff", b"\xd8\xff", b"\xc7\x0c\xff", b"\xc7\x0c\x01", b"\xc1", b"\xd9\xff\xff"]


def fuzzed(random: random.Random) -> bytes:
    kind = random.randrange(6)
    if kind == 0:
        return random.randbytes(random.randrange(200))
    seed = bytearray(random.choice(SEEDS))
    if kind == 1:  # a few bytes changed
        for _ in range(random.randint(1, 6)):
            seed[random.randrange(len(seed))] = random.randrange(256)
        return bytes(seed)
    if kind == 2:  # cut off, or pieces of two
        other = random.choice(SEEDS)
        return bytes(seed[: random.randrange(len(seed))]) + other[random.randrange(len(other)) :]
    at = random.randrange(len(seed))
    if kind == 3:  # something of another size in the middle
        return bytes(seed[:at]) + random.choice(PROMISES) + bytes(seed[at:])
    if kind == 4:  # deep nesting, as a value of an unknown key or in place of anything
        deep = random.choice([b"\x91", b"\x81\xa1a", b"\x92\x90", b"\xdc\x00\x01"]) * random.randint(1, 1300)
        return (bytes(seed[:at]) if random.random() < 0.5 else b"\x81\xa1x") + deep[:4000] + bytes(seed[at:])
    return random.randbytes(random.choice([0, 1, 4095, 4096, 4097, 20_000]))


def test_fuzzed_headers_are_messages_or_protocol_errors() -> None:
    draw = random.Random(20240607)
    headers = [fuzzed(draw) for _ in range(FUZZED)]
    outcomes = {"message": 0, "bad_message": 0, "version": 0}
    slowest_s = 0.0
    started = time.process_time()
    for header in headers:
        for decode in (decode_camera_message, decode_daemon_message):
            before = time.thread_time()
            try:
                decode(header)
                outcomes["message"] += 1
            except ProtocolError as error:
                outcomes[error.code] += 1
            slowest_s = max(slowest_s, time.thread_time() - before)
    assert time.process_time() - started < 10
    assert slowest_s < 0.1
    assert min(outcomes.values()) > FUZZED / 1000
    assert sum(outcomes.values()) == 2 * FUZZED


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("place", [b"", b"\x81", b"\x81\xa4type", b"\x82\xa4type\xa5frame\xa1x"])
def test_sizes_that_are_promised_and_not_there(place: bytes, promise: bytes) -> None:
    assert refusal(place + promise) == "bad_message"


@pytest.mark.parametrize("level", [b"\x91", b"\x81\xa1a", b"\x81\x91"])
def test_nesting_as_deep_as_a_header_allows(level: bytes) -> None:
    deep = level * ((MAX_HEADER_BYTES - 10) // len(level))
    assert refusal(deep) == "bad_message"
    assert refusal(b"\x81\xa1x" + deep) == "bad_message"


def test_what_follows_a_message() -> None:
    assert refusal(pack(FRAME) + b"\0") == "bad_message"
    assert refusal(pack(FRAME) * 2) == "bad_message"
    assert refusal(b"") == "bad_message"
