"""docs/protocol.md says what the code does: its hex dumps, its tables, its ring."""

import json
import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from adclick_edge.line.pixels import MAX_SCANS, MIN_BAYER_SIDE
from adclick_edge.line.protocol import (
    BITS_PER_PIXEL,
    ENCODED,
    MAX_HEADER_BYTES,
    MAX_REGIONS,
    Bye,
    Credit,
    ErrorCode,
    ErrorMessage,
    FrameHeader,
    Heartbeat,
    Hello,
    RingSlot,
    VerdictMessage,
    Welcome,
    decode_camera_message,
    decode_daemon_message,
    encode,
)
from adclick_edge.line.ring_layout import HEADER, MAX_SLOT_BYTES, MAX_SLOTS, RECORD, Geometry, record_at
from adclick_edge.runtime.decision import FrameVerdict, Reason, Verdict

DOC = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"

if not DOC.is_file():
    pytest.skip("the documentation is not installed with the package", allow_module_level=True)

TEXT = DOC.read_text()
DUMPS = re.findall(r"```json\n(.*?)```\n```hex\n(.*?)```", TEXT, re.DOTALL)
FROM_CAMERA = {"hello", "frame", "heartbeat", "bye"}
SECTIONS = {
    "hello": Hello,
    "frame": FrameHeader,
    "heartbeat": Heartbeat,
    "bye": Bye,
    "welcome": Welcome,
    "credit": Credit,
    "verdict": VerdictMessage,
    "error": ErrorMessage,
}


def section(title: str, level: str = "###") -> str:
    """What stands under a heading, up to the next one."""
    found = re.search(rf"^{level} {title}\n(.*?)(?=^##|\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


def rows(text: str, header: str) -> list[list[str]]:
    """Cells of the table whose head begins with ``header``."""
    lines = iter(text.splitlines())
    assert any(line.startswith(header) for line in lines), header
    next(lines)
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def from_hex(text: str) -> bytes:
    return bytes.fromhex("".join(text.split()))


@pytest.mark.parametrize(("stated", "dump"), DUMPS)
def test_dumps_say_what_is_written_over_them(stated: str, dump: str) -> None:
    fields = json.loads(stated)
    data = from_hex(dump)
    assert msgspec.msgpack.decode(data) == fields
    decode = decode_camera_message if fields["type"] in FROM_CAMERA else decode_daemon_message
    message = decode(data)
    assert isinstance(message, SECTIONS[fields["type"]])
    assert encode(message) == data
    if isinstance(message, VerdictMessage):  # one that the daemon could say
        FrameVerdict(
            frame="x", verdict=message.verdict, reason=message.reason, score=message.score, lower=message.lower,
            upper=message.upper,
        )  # fmt: skip


def test_every_message_has_a_dump() -> None:
    assert {json.loads(stated)["type"] for stated, _ in DUMPS} == set(SECTIONS)


def documented(text: str) -> dict[str, str]:
    """Default by key, as a table of keys states it."""
    return {key: cells[2] for cells in rows(text, "| key |") for key in names(cells[0])}


def default_of(field: msgspec.inspect.Field) -> str:
    if field.required:
        return "required"
    if isinstance(field.default_factory, type):
        return {dict: "{}", list: "[]"}[field.default_factory]
    if field.default is None:
        return "nil"
    return "[]" if field.default == () else json.dumps(field.default)


def struct_fields(kind: type[msgspec.Struct]) -> dict[str, str]:
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    return {field.encode_name: default_of(field) for field in info.fields if field.encode_name != "v"}


@pytest.mark.parametrize(("title", "kind"), SECTIONS.items())
def test_tables_name_every_key_and_its_default(title: str, kind: type[msgspec.Struct]) -> None:
    assert documented(section(title)) == struct_fields(kind)


def test_the_rings_keys() -> None:
    text = section("frame").split("`ring` is a map of", 1)[1]
    assert documented(text) == struct_fields(RingSlot)


def test_codes_verdicts_formats_and_limits() -> None:
    assert {c for cells in rows(section("error"), "| code |") for c in names(cells[0])} == set(get_args(ErrorCode))
    stated = {
        (verdict, reason)
        for cells in rows(section("verdict"), "| verdict |")
        for verdict in names(cells[0])
        for reason in names(cells[1]) or [None]
    }
    for verdict in get_args(Verdict):
        for reason in (None, *get_args(Reason)):
            try:
                FrameVerdict(frame="x", verdict=verdict, reason=reason, score=0.0, lower=0.0, upper=0.0)
            except ValueError:
                assert (verdict, reason) not in stated
            else:
                assert (verdict, reason) in stated
    pixels = section("Pixels", "##")
    formats = {names(cells[0])[0]: cells[1] for cells in rows(pixels, "| format |")}
    assert formats == {**{f: str(bits // 8) for f, bits in BITS_PER_PIXEL.items()}, **dict.fromkeys(ENCODED, "")}
    assert f"At most {MAX_SCANS} scans" in pixels
    assert f"at least {MIN_BAYER_SIDE} x {MIN_BAYER_SIDE} pixels" in pixels
    assert f"at most {MAX_HEADER_BYTES} bytes" in TEXT
    assert f"at most {MAX_REGIONS} |" in TEXT


def test_the_ring_dump() -> None:
    (dump,) = re.findall(r"```ring\n(.*?)```", TEXT, re.DOTALL)
    data = from_hex(dump)
    assert data == Geometry(slots=2, slot_bytes=4096, data_offset=4096, writer_pid=1234).header() + RECORD.pack(2, 2048)
    assert len(data) == record_at(0) + RECORD.size == HEADER.size + 16
    layout = section("Shared memory", "##")
    assert f"1 to {MAX_SLOTS} |" in layout
    assert MAX_SLOT_BYTES == 1 << 31


def test_links_lead_somewhere() -> None:
    titles = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    assert set(re.findall(r"\]\(#([^)]+)\)", TEXT)) <= anchors
