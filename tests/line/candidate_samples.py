"""Candidates for the relabel queue, made up in microseconds."""

from datetime import UTC, datetime, timedelta

import cv2
import numpy as np

from adclick_edge.line.likeness import signature
from adclick_edge.line.routing import Candidate
from adclick_edge.line.spool import SpoolRecord
from adclick_edge.runtime.decision import FrameVerdict

LOWER, UPPER = 1.0, 2.0
START = datetime(2026, 1, 31, 23, 59, 59, 123456, tzinfo=UTC)


def a_frame(seed: int, side: int = 96) -> np.ndarray:
    """uint8 [side, side, 3] with structure at all scales, another one for each seed."""
    noise = np.random.default_rng(seed).normal(0, 1, (side, side, 3)).astype(np.float32)
    levels = 40 * cv2.GaussianBlur(noise, (0, 0), 2) / 0.14 + 128
    return np.clip(levels, 0, 255).astype(np.uint8)


def a_map(seed: int = 0, peak: float = 1.5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.uniform(0, 0.5, (24, 24)).astype(np.float32)
    values[tuple(rng.integers(4, 20, 2))] = peak
    return values


def a_verdict(score: float = 1.5, *, calibrated: bool = True) -> FrameVerdict:
    if not calibrated:
        return FrameVerdict(frame="cam/1", verdict="uncertain", reason="uncalibrated", score=score, bundle_version="b1")
    verdict = "ng" if score >= UPPER else "ok" if score < LOWER else "uncertain"
    return FrameVerdict(
        frame="cam/1",
        verdict=verdict,
        score=score,
        lower=LOWER,
        upper=UPPER,
        bundle_version="b1",
        stage_ms={"total": 9.0},
    )


def a_candidate(seq: int = 1, *, picture: int | None = None, score: float = 1.5, camera: str = "cam") -> Candidate:
    picture = seq if picture is None else picture
    return Candidate(
        camera=camera,
        session=7,
        seq=seq,
        part=f"part-{seq}",
        product="board",
        verdict=a_verdict(score),
        map=a_map(picture, score),
        judged_utc=START + timedelta(milliseconds=seq),
        frame=a_frame(picture),
    )


def a_record(seq: int = 1, camera: str = "cam") -> SpoolRecord:
    return SpoolRecord(
        camera=camera,
        session=7,
        seq=seq,
        part="p",
        product="board",
        bundle_version="b1",
        verdict="uncertain",
        why="uncertain",
        usefulness=0.7,
        score=1.5,
        lower=LOWER,
        upper=UPPER,
        stage_ms={"total": 9.0},
        judged_utc=START + timedelta(milliseconds=seq),
        signature=signature(a_frame(seq), a_map(seq)),
    )
