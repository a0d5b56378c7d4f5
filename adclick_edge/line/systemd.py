"""Tell systemd how the service stands (sd_notify), without its library."""

import contextlib
import os
import socket

__all__ = ["READY", "STOPPING", "WATCHDOG", "notify", "watchdog_s"]

READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"


def notify(*lines: str) -> bool:
    """Send assignments such as `READY` or ``"STATUS=3 cameras"``; False where no systemd listens. Never blocks."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender,
        contextlib.suppress(OSError),  # a systemd that is busy or gone must not stop the line
    ):
        sender.sendto("\n".join(lines).encode(), address)
        return True
    return False


def watchdog_s() -> float | None:
    """Seconds within which `WATCHDOG` must be sent again (send it twice as often); None where nobody waits for it."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        interval_us = int(os.environ.get("WATCHDOG_USEC", "0"))
    except ValueError:
        return None
    return interval_us / 1e6 if interval_us > 0 else None
