import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_daemon import FakeDaemon, ok

from adclick_edge.commands import camera
from adclick_edge.errors import LineError, UsageError
from adclick_edge.line.protocol import FrameHeader, VerdictMessage

PATIENCE_S = 10.0


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        assert cv2.imwrite(str(folder / f"{number}.png"), np.full((8, 10, 3), number, np.uint8))
    return folder


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/line.ipc"


Run = Callable[..., None]


@pytest.fixture
def run(endpoint: str, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(camera, "CONNECT_S", 2.0)

    def with_defaults(**options: object) -> None:
        defaults: dict[str, object] = {
            "endpoint": endpoint,
            "name": "cam1",
            "folder": pictures,
            "video": None,
            "usb": None,
            "rtsp": None,
            "genicam": None,
            "serial": None,
            "rate": 100.0,
            "count": None,
            "loop": False,
            "encoded": False,
            "transport": "auto",
            "deadline_ms": 2000.0,
            "code": None,
            "keys": None,
            "stall_s": 2.0,
            "json_output": False,
        }
        camera.run(**(defaults | options))  # type: ignore[arg-type]

    return with_defaults


def some_bad(header: FrameHeader, payload: bytes) -> VerdictMessage:
    if header.seq == 1:
        return VerdictMessage(seq=1, verdict="ng", score=3.5, lower=1.0, upper=2.0, part=header.part)
    if header.seq == 2:
        return VerdictMessage(seq=2, verdict="not_inspected", reason="deadline", part=header.part)
    return ok(header)


def test_a_line_per_verdict_and_a_summary(
    endpoint: str, run: Run, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "4.png").write_bytes(b"no picture")
    with FakeDaemon(endpoint, some_bad) as daemon:
        run(code="C-7", encoded=True)
    found = capsys.readouterr()
    lines = found.out.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["ok", "ng", "not_inspected", "ok"]
    assert "3.5000" in lines[1]
    assert lines[1].endswith("1.png")
    assert lines[4] == "4 triggers: 2 ok, 1 ng, 0 uncertain, 1 not_inspected"
    assert lines[5] == "reasons: 1 deadline"
    assert "1 unreadable" in lines[7]
    assert "no trigger for 4.png" in found.err
    assert [f.format for f in daemon.frames] == ["png"] * 4
    assert {f.code for f in daemon.frames} == {"C-7"}
    assert daemon.payloads[0] == (pictures / "0.png").read_bytes()


def test_json_lines(endpoint: str, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeDaemon(endpoint, some_bad):
        run(json_output=True, loop=True, count=6)
    *verdicts, last = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert [v["seq"] for v in verdicts] == list(range(6))
    summary = last["summary"]
    assert summary["triggers"] == 6 == sum(summary[name] for name in camera.VERDICTS)
    assert (summary["ok"], summary["ng"], summary["reasons"]) == (4, 1, {"deadline": 1})
    assert summary["client"]["answered"] == 6


def test_nothing_inspected_is_exit_code_1(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(camera, "CONNECT_S", 0.05)
    with pytest.raises(SystemExit) as stop:
        run()
    assert stop.value.code == 1
    found = capsys.readouterr()
    assert "4 triggers: 0 ok, 0 ng, 0 uncertain, 4 not_inspected" in found.out
    assert "4 no_connection" in found.out
    assert "nothing could be inspected" in found.err


def test_ctrl_c_ends_with_the_summary(
    endpoint: str, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(*_: object) -> None:
        ends = time.monotonic() + PATIENCE_S
        while len(daemon.frames) < 2:
            assert time.monotonic() < ends
        raise KeyboardInterrupt

    sent = camera._trigger
    number = 0

    def trigger(*arguments: object) -> None:
        nonlocal number
        number += 1
        if number == 3:
            pressed()
        sent(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(camera, "_trigger", trigger)
    with FakeDaemon(endpoint) as daemon, pytest.raises(KeyboardInterrupt):
        run(loop=True)
    assert "2 triggers: " in capsys.readouterr().out
    assert not [t for t in threading.enumerate() if t.name.startswith(("camera-", "verdicts-"))]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"folder": None}, "name one source"),
        ({"usb": 0}, "name one source"),
        ({"folder": None, "usb": 0, "encoded": True}, "--encoded"),
        ({"folder": None, "usb": 0, "loop": True}, "--loop"),
        ({"folder": None, "usb": 0, "stall_s": 0.0}, "--stall-s"),
        ({"serial": "S"}, "--serial"),
        ({"folder": None, "genicam": Path("x.cti")}, "--rate"),
        ({"folder": None, "genicam": Path("none.cti"), "rate": None}, r"none\.cti|harvesters"),
        ({"count": 0}, "--count"),
        ({"transport": "pigeon"}, "transport"),
    ],
)
def test_options_are_checked(run: Run, options: dict[str, object], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        run(**options)


def test_keys_are_needed_where_they_are_named(run: Run, tmp_path: Path) -> None:
    with pytest.raises(LineError, match="no such key"):
        run(keys=tmp_path / "keys")
