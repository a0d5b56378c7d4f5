import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_daemon import FakeDaemon, ok
from hypothesis import given, settings
from hypothesis import strategies as st

from adclick_edge.errors import LineError, UsageError
from adclick_edge.line.camera_verdict import CameraVerdict
from adclick_edge.line.plc import MOST_PARTS, FileOutput, RejectLine, main
from adclick_edge.line.protocol import FrameHeader, VerdictMessage
from adclick_edge.runtime.decision import Verdict

MS = 1_000_000


class Output:
    def __init__(self) -> None:
        self.levels: list[bool] = []
        self.broken = False

    def set(self, reject: bool) -> None:
        if self.broken:
            raise OSError("no such line")
        self.levels.append(reject)


def verdict(seq: int, what: Verdict) -> CameraVerdict:
    return CameraVerdict(seq=seq, part=None, verdict=what, reason=None, local=False, latency_ms=1.0)


VERDICTS: list[Verdict | None] = ["ok", "ng", "uncertain", "not_inspected", None]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sampled_from(VERDICTS), min_size=1, max_size=30), st.integers(1, 4), st.booleans())
def test_the_right_part_is_rejected_by_parts(said: list[Verdict | None], delay: int, pass_uncertain: bool) -> None:
    output = Output()
    reject: set[Verdict] = {"ng", "not_inspected"} if pass_uncertain else {"ng", "not_inspected", "uncertain"}
    line = RejectLine(output, delay_parts=delay, reject=reject)
    with line:
        for seq, what in enumerate(said):
            line.part_arrived(seq)
            if what is not None:
                line.verdict(verdict(seq, what))
            if seq >= delay:
                at_ejector = said[seq - delay]
                assert output.levels[-1] == (at_ejector is None or at_ejector in reject)
            else:
                assert output.levels == [True]
    assert output.levels[-1] is True
    judged = said[: max(0, len(said) - delay)]
    assert line.passed + line.rejected == len(judged)
    assert line.unknown == judged.count(None)


def test_the_right_part_is_rejected_by_time() -> None:
    now = [0]
    output = Output()
    line = RejectLine(output, delay_ms=100, pulse_ms=30, clock=lambda: now[0])
    seen: list[tuple[int, bool]] = []
    for seq, (at_ms, what) in enumerate([(0, "ok"), (20, "ng"), (40, None), (200, "uncertain")]):
        line.part_arrived(seq, at_ms * MS)
        if what is not None:
            line.verdict(verdict(seq, what))  # type: ignore[arg-type]
    for now_ms in range(0, 400, 10):
        now[0] = now_ms * MS
        before = len(output.levels)
        line.tick()
        seen += [(now_ms, level) for level in output.levels[before:]]
    # Pulses of 30 ms at 120 (ng) and 140 (no verdict) run into one; the next is at 300.
    assert seen == [(0, False), (120, True), (170, False), (300, True), (330, False)]
    assert (line.passed, line.rejected, line.unknown, line.fault) == (1, 3, 1, None)


def test_a_bad_part_that_got_past_stops_the_line() -> None:
    now = [0]
    output = Output()
    line = RejectLine(output, delay_ms=100, pulse_ms=30, clock=lambda: now[0])
    line.part_arrived(0, 0)
    line.part_arrived(1, 10 * MS)
    line.verdict(verdict(0, "ok"))
    line.verdict(verdict(1, "ng"))
    now[0] = 150 * MS
    line.tick()
    assert "passed the ejector 40 ms ago" in str(line.fault)
    now[0] = 900 * MS
    line.tick()
    assert output.levels == [True]


def test_by_time_in_its_own_thread() -> None:
    output = Output()
    with RejectLine(output, delay_ms=20, pulse_ms=60_000) as line:
        wait_for(lambda: output.levels == [True, False])
        line.part_arrived(0)
        line.verdict(verdict(0, "ok"))
        wait_for(lambda: line.passed == 1)
        assert output.levels == [True, False]
        line.part_arrived(1)
        wait_for(lambda: output.levels == [True, False, True])
        assert line.unknown == 1
    assert output.levels[-1] is True
    assert not [t for t in threading.enumerate() if t.name == "reject-line"]


def test_an_output_that_fails_leaves_everything_rejected() -> None:
    output = Output()
    with RejectLine(output, delay_parts=1) as line:
        line.part_arrived(0)
        line.verdict(verdict(0, "ok"))
        output.broken = True
        line.part_arrived(1)
        assert "no such line" in str(line.fault)
        output.broken = False
        for seq in range(2, 5):
            line.verdict(verdict(seq - 1, "ok"))
            line.part_arrived(seq)
        assert output.levels == [True, True]


def test_an_error_of_the_program_leaves_the_line_at_reject() -> None:
    output = Output()

    def program() -> None:
        with RejectLine(output, delay_parts=1) as line:
            line.part_arrived(0)
            line.verdict(verdict(0, "ok"))
            line.part_arrived(1)
            assert output.levels[-1] is False
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        program()
    assert output.levels == [True, False, True]


def test_after_the_end_nothing_passes() -> None:
    output = Output()
    with RejectLine(output, delay_parts=1) as line:
        line.part_arrived(0)
    line.verdict(verdict(0, "ok"))
    line.part_arrived(1)
    assert output.levels == [True]


def test_an_output_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(LineError, match="cannot be set"), RejectLine(FileOutput(tmp_path), delay_parts=1):
        pytest.fail("must not begin")


def test_too_many_parts_on_the_way() -> None:
    line = RejectLine(Output(), delay_ms=1e6)
    for seq in range(MOST_PARTS):
        line.part_arrived(seq, 0)
    assert line.fault is None
    line.part_arrived(MOST_PARTS, 0)
    assert line.fault is not None


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"delay_parts": 1, "delay_ms": 1.0},
        {"delay_parts": 0},
        {"delay_ms": -1.0},
        {"delay_parts": 1, "pulse_ms": 0},
        {"delay_parts": 1, "reject": {"ng"}},
        {"delay_parts": 1, "reject": {"ng", "not_inspected", "ok"}},
    ],
)
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        RejectLine(Output(), **options)  # type: ignore[arg-type]


def wait_for(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.002)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in range(6):
        assert cv2.imwrite(str(folder / f"{number}.png"), np.full((8, 8, 3), number, np.uint8))
    return folder


def test_the_example_from_camera_to_output(tmp_path: Path, parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def third_is_bad(header: FrameHeader, payload: bytes) -> VerdictMessage:
        if payload[0] == 2:
            return VerdictMessage(seq=header.seq, verdict="ng", score=3.0, lower=1.0, upper=2.0)
        return ok(header)

    output = tmp_path / "reject"
    endpoint = f"ipc://{tmp_path}/line.ipc"
    arguments = [endpoint, "--name", "cam", "--folder", str(parts), "--rate", "20", "--output", str(output)]
    with FakeDaemon(endpoint, third_is_bad):
        assert main([*arguments, "--delay-parts", "2"]) == 0
    assert "3 passed, 1 rejected, 0 of them" in capsys.readouterr().out
    assert output.read_text() == "1"


def test_the_example_says_what_is_wrong(tmp_path: Path, parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"ipc://{tmp_path}/x", "--name", "cam", "--folder", str(parts), "--output", str(tmp_path / "reject")]
    assert main(arguments) == 2
    assert "either in parts or in milliseconds" in capsys.readouterr().err
    assert main([*arguments[:-1], str(tmp_path), "--delay-parts", "1"]) == 1
    assert "cannot be set" in capsys.readouterr().err
