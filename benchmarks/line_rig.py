"""A real line for benchmarks and tests: `adclick serve` in a process of its own, and what it is doing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

__all__ = ["ServedLine", "sample_bundle"]

READY_WITHIN_S = 120.0


def sample_bundle(
    folder: Path, product: str = "flange", *, size: int = 256, normals: int = 24, rows: int = 2000
) -> Path:
    """A calibrated bundle of a product of the sample line, made from its good parts; kept for the next call."""
    bundle = folder / f"{product}-{size}-{rows}.bundle"
    if not bundle.exists():
        data = folder / f"line-{product}-{normals}"
        adclick = (sys.executable, "-m", "adclick_edge")
        if not data.exists():
            made = ("sample-line", str(data), "--product", product, "--train-normals", str(normals))
            _run(*adclick, *made, "--test-normals", "16", "--defects-per-kind", "2")
        where = ("--data", str(data), "--product", product)
        _run(*adclick, "bank", *where, "--out", str(bundle), "--size", str(size), "--rows", str(rows))
        good = data / product / "test" / "good"
        _run(*adclick, "calibrate", str(bundle), "--normals", str(good), "--false-alarms", "0.1")
    return bundle


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")


class ServedLine:
    """Writes ``folder``/line.toml from ``tables`` and serves it. ``tables`` may leave out what has a default here."""

    def __init__(self, folder: Path, tables: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.endpoint = f"ipc://{folder}/line.ipc"
        line = {
            "bind": [self.endpoint],
            "http": "127.0.0.1:0",
            "state": str(folder / "state"),
            **tables.get("line", {}),
        }
        self.line_file = folder / "line.toml"
        self.line_file.write_text(_toml({**tables, "line": line}))
        self.events: list[dict[str, Any]] = []
        """The daemon's log, line by line."""
        self._changed = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def http(self) -> str:
        ready = [e for e in self.events if e.get("event") == "ready"]
        return f"http://{ready[-1]['http']}"

    def start(self) -> None:
        """Returns when the line is ready to judge."""
        before = self._count("ready")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "adclick_edge", "serve", str(self.line_file), "--json-logs"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        self.until(lambda: self._count("ready") > before, READY_WITHIN_S)

    def kill(self) -> None:
        """SIGKILL: no chance to say anything."""
        self._end(signal.SIGKILL)

    def stop(self, timeout_s: float = 60.0) -> int:
        """SIGTERM; the exit code."""
        return self._end(signal.SIGTERM, timeout_s)

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.http}/status", timeout=10) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.http}{path}", timeout=10) as answer:
            text: str = answer.read().decode()
        return text

    def rss_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def open_files(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def until(self, condition: Any, timeout_s: float = 30.0) -> None:
        end = time.monotonic() + timeout_s
        with self._changed:
            while not condition():
                if time.monotonic() > end or (self._process is not None and self._process.poll() not in (None,)):
                    if condition():
                        return
                    raise TimeoutError(f"the daemon's last lines: {self.events[-5:]}")
                self._changed.wait(0.05)

    def _count(self, event: str) -> int:
        return sum(e.get("event") == event for e in self.events)

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stderr is not None
        with process.stderr:
            for text in process.stderr:
                try:
                    event = json.loads(text)
                except ValueError:
                    event = {"event": "text", "text": text.rstrip()}
                with self._changed:
                    self.events.append(event)
                    self._changed.notify_all()

    def _end(self, number: int, timeout_s: float = 60.0) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(number)
        try:
            return process.wait(timeout_s)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            if self._reader is not None:
                self._reader.join(10)


def _toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Tables two levels deep at most: ``products`` and ``cameras`` hold a table for each name."""
    lines = []
    for name, table in tables.items():
        nested = {key: value for key, value in table.items() if isinstance(value, Mapping)}
        own = {key: value for key, value in table.items() if key not in nested}
        titled = [(name, own)] if own else []
        for title, content in titled + [(f"{name}.{key}", value) for key, value in nested.items()]:
            lines.append(f"[{title}]")
            for key, value in content.items():
                lines.append(f"{key} = {json.dumps(str(value) if isinstance(value, Path) else value)}")
            lines.append("")
    return "\n".join(lines)
