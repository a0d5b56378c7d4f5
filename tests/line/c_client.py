"""`client.c`, compiled and run: a client that knows the protocol from docs/protocol.md alone."""

import functools
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CClient", "build_c_client", "why_no_c_client"]

SOURCE = Path(__file__).with_name("client.c")
FLAGS = ["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O1", "-g", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


@functools.cache
def why_no_c_client(*, sanitize: bool = False) -> str | None:
    """Why it cannot be compiled here (the reason for a skip), or None."""
    if shutil.which("gcc") is None:
        return "gcc is not installed"
    probe = "#include <zmq.h>\nint main(void) { int a, b, c; zmq_version(&a, &b, &c); return 0; }\n"
    command = ["gcc", "-x", "c", "-", *(SANITIZE if sanitize else []), "-lzmq", "-lm", "-o", os.devnull]
    found = subprocess.run(command, input=probe, capture_output=True, text=True, timeout=60, check=False)
    if found.returncode == 0:
        return None
    if "zmq" in found.stderr:
        return "zmq.h or libzmq is not installed (Debian: libzmq3-dev)"
    return "gcc cannot link with its sanitizers" if sanitize else f"gcc cannot compile: {found.stderr[:200]}"


def build_c_client(folder: Path, *, sanitize: bool = False) -> "CClient":
    """Compile into ``folder``. Ask `why_no_c_client` first; a compiler's complaint about the client is a test's failure."""
    program = folder / ("client_checked" if sanitize else "client")
    command = ["gcc", *FLAGS, *(SANITIZE if sanitize else []), str(SOURCE), "-lzmq", "-lm", "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert built.returncode == 0, built.stderr
    return CClient(program)


@dataclass(frozen=True)
class Ran:
    code: int
    triggers: list[dict[str, str]]
    """What was printed for each trigger, in the order of the answers: seq, verdict, reason, score, local and others."""
    errors: str


@dataclass(frozen=True)
class CClient:
    program: Path

    def start(self, endpoint: str, camera: str, *arguments: object) -> "subprocess.Popen[str]":
        command = [str(self.program), endpoint, camera, *map(str, arguments)]
        # libzmq keeps some memory until the process ends.
        environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
        )

    def finish(self, process: "subprocess.Popen[str]", timeout_s: float = 30) -> Ran:
        """Wait for its end; killed, and subprocess.TimeoutExpired, after the timeout."""
        with process:
            try:
                out, errors = process.communicate(timeout=timeout_s)
            finally:
                process.kill()
        triggers = [dict(item.split("=", 1) for item in line.split(" ")) for line in out.splitlines()]
        return Ran(process.returncode, triggers, errors)

    def run(self, endpoint: str, camera: str, *arguments: object, timeout_s: float = 30) -> Ran:
        return self.finish(self.start(endpoint, camera, *arguments), timeout_s)
