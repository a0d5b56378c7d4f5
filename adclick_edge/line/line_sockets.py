"""The daemon's sockets, bound: a ROUTER for cameras, a PUB for monitors."""

import socket as sockets
from collections.abc import Callable
from pathlib import Path

import zmq

from adclick_edge.errors import LineError
from adclick_edge.line.config import LineConfig, OverloadPolicy

__all__ = ["bind_sockets", "credits_of"]

CREDITS_BEYOND_QUEUE = 4
"""Where frames may be turned away, a camera may send more than the queue holds: the answer comes at once."""
PROBE_S = 0.5
MONITOR_BACKLOG = 1000
"""Messages kept for a monitor that reads slowly; it loses what comes on top, and nobody waits for it."""


def credits_of(queue: int, policy: OverloadPolicy) -> int:
    """Frames that a camera with such a queue may have under way."""
    return queue if policy == "block" else queue + CREDITS_BEYOND_QUEUE


def bind_sockets(
    context: "zmq.Context[zmq.Socket[bytes]]", config: LineConfig, curve: Callable[["zmq.Socket[bytes]"], None] | None
) -> tuple["zmq.Socket[bytes]", "zmq.Socket[bytes] | None"]:
    """The ROUTER for cameras and the PUB for monitors, bound; LineError naming the endpoint that cannot be."""
    router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    monitor: zmq.Socket[bytes] | None = None
    try:
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.ROUTER_HANDOVER, 0)
        router.setsockopt(zmq.MAXMSGSIZE, config.limits.max_payload_bytes)
        most = max(credits_of(c.queue, c.overload) for c in config.cameras.values())
        router.setsockopt(zmq.RCVHWM, 2 * most + 16)
        router.setsockopt(zmq.SNDHWM, 4 * most + 64)
        router.setsockopt(zmq.LINGER, 0)
        # Dead TCP peers are dropped by ZeroMQ too; cameras are missed by our own heartbeats long before.
        router.setsockopt(zmq.HEARTBEAT_IVL, 2000)
        router.setsockopt(zmq.HEARTBEAT_TIMEOUT, 10_000)
        router.setsockopt(zmq.BACKLOG, 128)
        if curve is not None:
            curve(router)
        for endpoint in config.line.bind:
            _bind(router, endpoint)
        if config.line.monitor is not None:
            monitor = context.socket(zmq.PUB)
            monitor.setsockopt(zmq.SNDHWM, MONITOR_BACKLOG)
            monitor.setsockopt(zmq.LINGER, 0)
            if curve is not None:
                curve(monitor)
            _bind(monitor, config.line.monitor)
    except BaseException:
        router.close(0)
        if monitor is not None:
            monitor.close(0)
        raise
    return router, monitor


def _bind(socket: "zmq.Socket[bytes]", endpoint: str) -> None:
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))
    try:
        if endpoint.startswith("ipc://"):
            path = Path(endpoint.removeprefix("ipc://"))
            path.parent.mkdir(parents=True, exist_ok=True)
            if _is_served(path):  # ZeroMQ would take its place without a word
                raise LineError(f"cannot bind {endpoint}: another daemon serves it; stop it, or name another path")
        socket.bind(endpoint)
    except (zmq.ZMQError, OSError) as error:
        raise LineError(
            f"cannot bind {endpoint}: {error.strerror}; is another daemon running, or is the address not this host's?"
        ) from error


def _is_served(path: Path) -> bool:
    """Whether somebody listens at this socket, which a daemon that was killed leaves behind."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
