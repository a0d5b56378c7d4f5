"""The control socket's file: found and bound through the folder's descriptor, however long its path is.

A socket's path has at most 107 bytes, a state folder's may have more. /proc/self/fd/N/NAME is short and the same file.
"""

import contextlib
import errno
import fcntl
import os
import pwd
import secrets
import socket as sockets
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zmq

from adclick_edge.errors import LineError

__all__ = ["CONTROL_SOCKET", "bind_privately", "find_daemon", "only_daemon", "open_state"]

CONTROL_SOCKET = "control.ipc"
CONTROL_LOCK = "control.lock"
PROBE_S = 2.0
LOCK_PATIENCE_S = 1.0


@contextmanager
def open_state(state: Path) -> Iterator[int]:
    """A descriptor of the daemon's state folder, which is made with mode 0700 if it is not there.

    LineError where others may write to it, and so put a socket of their own in the place of ours.
    """
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise LineError(f"{state}: {error.strerror}; the daemon needs a state folder it may write to") from error
    try:
        mode = os.fstat(fd).st_mode
        if mode & 0o022:
            raise LineError(f"{state}: others may write here (mode {stat.S_IMODE(mode):04o}): `chmod go-w {state}`")
        yield fd
    finally:
        os.close(fd)


@contextmanager
def only_daemon(folder: int, state: Path) -> Iterator[None]:
    """Hold the state folder for this process. LineError names the process that holds it already."""
    fd = os.open(CONTROL_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        until = time.monotonic() + LOCK_PATIENCE_S  # a daemon that is just ending may still hold it
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    holder = os.pread(fd, 20, 0).decode(errors="replace").strip() or "unknown"
                    raise LineError(
                        f"{state}: a daemon runs here already (process {holder}); stop it, or give this one a state "
                        "folder of its own"
                    ) from error
                time.sleep(0.05)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


@contextmanager
def bind_privately(socket: "zmq.Socket[bytes]", folder: int) -> Iterator[None]:
    """Bind the socket to `CONTROL_SOCKET` in the folder: mode 0600 from the first moment, an old file replaced.

    The file is removed at the end. Close the socket's context inside of what is held here, since ZeroMQ removes the
    name it bound to when it closes.
    """
    with tempfile.TemporaryDirectory(prefix=".control.", dir=f"/proc/self/fd/{folder}") as aside:
        inner = os.open(aside, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        name = secrets.token_hex(8)
        try:
            socket.bind(f"ipc:///proc/self/fd/{inner}/{name}")
            os.chmod(name, 0o600, dir_fd=inner)
            os.rename(name, CONTROL_SOCKET, src_dir_fd=inner, dst_dir_fd=folder)
        finally:
            os.close(inner)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(CONTROL_SOCKET, dir_fd=folder)


@contextmanager
def find_daemon(state: Path) -> Iterator[str]:
    """The endpoint of the daemon that runs on this state folder. LineError if there is none, or not for this user."""
    try:
        fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError as error:
        raise LineError(_not_yours(state)) from error
    except OSError as error:
        raise LineError(f"{state}: no daemon runs here ({error.strerror}); start it: `adclick serve`") from error
    try:
        path = f"/proc/self/fd/{fd}/{CONTROL_SOCKET}"
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
            probe.settimeout(PROBE_S)
            try:
                probe.connect(path)
            except PermissionError as error:
                raise LineError(_not_yours(state / CONTROL_SOCKET)) from error
            except (FileNotFoundError, ConnectionRefusedError) as error:
                raise LineError(f"{state}: no daemon runs here; start it: `adclick serve`") from error
            except OSError as error:
                why = os.strerror(error.errno) if error.errno else "it does not answer"
                raise LineError(f"{state}: the daemon cannot be reached: {why}; look at its log") from error
        yield f"ipc://{path}"
    finally:
        os.close(fd)


def _not_yours(path: Path) -> str:
    owner = "the daemon's user"
    with contextlib.suppress(OSError, KeyError):
        owner = pwd.getpwuid(path.stat().st_uid).pw_name
    return f"{path}: {os.strerror(errno.EACCES)}; run this as {owner}: `sudo -u {owner} adclick ...`"
