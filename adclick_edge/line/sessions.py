"""Which cameras are connected, over which connection, and when each was last heard of."""

from dataclasses import dataclass

__all__ = ["SILENT_BEATS", "Session", "Sessions"]

SILENT_BEATS = 4
"""Heartbeats missed after which a peer is gone (docs/protocol.md)."""


@dataclass(slots=True)
class Session:
    camera: str
    route: bytes
    session: int
    shares_clock: bool
    last_heard_ns: int
    last_sent_ns: int
    under_way: int = 0
    """Frames received and not answered."""


class Sessions:
    """Of one thread. A camera has one connection at a time: the one that said hello last."""

    def __init__(self) -> None:
        self._by_route: dict[bytes, Session] = {}
        self._by_camera: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._by_route)

    def all(self) -> list[Session]:
        return list(self._by_route.values())

    def of_route(self, route: bytes) -> Session | None:
        return self._by_route.get(route)

    def open(self, session: Session) -> tuple[Session | None, Session | None]:
        """Enter a session; returns the camera's on another connection, and the connection's of another camera: both end."""
        before = self._by_camera.get(session.camera)
        if before is not None:
            self._by_route.pop(before.route, None)
        other = self._by_route.get(session.route)
        if other is not None:
            self._by_camera.pop(other.camera, None)  # one connection speaks for one camera
        self._by_camera[session.camera] = session
        self._by_route[session.route] = session
        return before if before is not None and before.route != session.route else None, other

    def close(self, session: Session) -> None:
        if self._by_route.get(session.route) is session:
            del self._by_route[session.route]
        if self._by_camera.get(session.camera) is session:
            del self._by_camera[session.camera]

    def forgive(self, ns: int) -> None:
        """Nobody listened for so long: what cameras said meanwhile is still to be read."""
        for session in self._by_route.values():
            session.last_heard_ns += ns

    def silent(self, now: int, heartbeat_ns: int) -> list[Session]:
        """Sessions that were not heard of for too long."""
        return [s for s in self._by_route.values() if now - s.last_heard_ns > SILENT_BEATS * heartbeat_ns]
