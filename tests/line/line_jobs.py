"""Frames for tests of the daemon's parts."""

from adclick_edge.line.job import Job
from adclick_edge.line.protocol import FrameHeader

MS = 1_000_000


def make_job(
    camera: str = "a",
    seq: int = 0,
    *,
    now_ms: float = 0,
    deadline_ms: float = 500,
    product: str = "p",
    session: int = 1,
) -> Job:
    now = int(now_ms * MS)
    return Job(
        camera=camera,
        route=camera.encode(),
        session=session,
        header=FrameHeader(seq=seq, format="mono8", width=4, height=4),
        payload=b"0" * 16,
        product=product,
        received_ns=now,
        born_ns=now,
        deadline_ns=now + int(deadline_ms * MS),
    )
