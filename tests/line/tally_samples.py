"""Tallies of a line of two cameras, and numbers to fill them with."""

import copy
import random

from adclick_edge.line.tally import CameraTally, LineTally, ProductTally, RoutingTally


def tally(daemon: int = 7, **fields: object) -> LineTally:
    """Balanced: 100 frames of ``left``, 10 of ``right``."""
    values: dict[str, object] = {
        "name": "press 3",
        "daemon": daemon,
        "started_utc": "2026-11-02T05:00:00Z",
        "taken_utc": "2026-11-02T06:00:00Z",
        "uptime_s": 3600.0,
        "ready": True,
        "cameras": {
            "left": CameraTally(
                product="flange",
                connected=True,
                received=100,
                ok=80,
                ng=7,
                uncertain=5,
                not_inspected={"deadline": 4, "overload": 3},
                pending=1,
                missed=2,
                late=1,
                queue=1,
                sessions=1,
            ),
            "right": CameraTally(product="lid", received=10, ok=10),
        },
        "products": {
            "flange": ProductTally(
                bundle="flange.bundle",
                version="3-abc",
                lower=1.5,
                upper=2.5,
                swaps=2,
                shadow="4-def",
                shadow_frames=50,
                shadow_changed={"ok->ng": 3},
                alarms=("light",),
            ),
            "lid": ProductTally(bundle="lid.bundle", version="1-aaa"),
        },
        "routing": RoutingTally(offered=12, queued=5, duplicate=4, over_budget=2, waiting=1, spool_bytes=123456),
        "strangers": {"unknown_camera": 3},
        "latency_ms": {"total": [12.0, 20.0, 30.0], "segment": [5.0, 6.0, 7.0]},
        "frames_per_s": 4.25,
    }
    return LineTally(**{**values, **fields})  # type: ignore[arg-type]


def later(
    before: LineTally,
    *,
    camera: str = "left",
    ok: int = 0,
    ng: int = 0,
    uncertain: int = 0,
    not_inspected: dict[str, int] | None = None,
    pending: int | None = None,
) -> LineTally:
    """A copy with so many answers more, and as many frames received as that takes."""
    after = copy.deepcopy(before)
    cam = after.cameras[camera]
    answered = ok + ng + uncertain + sum((not_inspected or {}).values())
    cam.ok += ok
    cam.ng += ng
    cam.uncertain += uncertain
    for reason, count in (not_inspected or {}).items():
        cam.not_inspected[reason] = cam.not_inspected.get(reason, 0) + count
    if pending is None:
        pending = cam.pending
    cam.received += answered + pending - cam.pending
    cam.pending = pending
    assert cam.balanced()
    return after


def empty(daemon: int = 7) -> LineTally:
    """A daemon that just started."""
    cameras = {"left": CameraTally(product="flange"), "right": CameraTally(product="lid")}
    products = {
        "flange": ProductTally(bundle="flange.bundle", version="3-abc", lower=1.5, upper=2.5),
        "lid": ProductTally(bundle="lid.bundle", version="1-aaa"),
    }
    return tally(
        daemon, cameras=cameras, products=products, routing=RoutingTally(), strangers={}, uptime_s=0.0, latency_ms={}
    )


def outcome(rng: random.Random) -> tuple[str, str | None, float | None]:
    """A verdict, its reason, and its score."""
    draw = rng.random()
    if draw < 0.01:
        return "not_inspected", rng.choice(("deadline", "overload")), None
    score = rng.gauss(1.0, 0.15) if draw < 0.95 else rng.gauss(2.6, 0.6)
    return ("ok" if score < 1.5 else "ng" if score >= 2.5 else "uncertain"), None, score
