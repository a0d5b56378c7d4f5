"""``adclick inspect``"""

import json
import sys
from collections import Counter
from pathlib import Path

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
from rich.progress import track

from adclick_edge.commands.pictures import find_pictures, other_files
from adclick_edge.console import progress_console
from adclick_edge.data.images import read_image
from adclick_edge.errors import AdclickError, EngineError, ImageError
from adclick_edge.files import write_bytes
from adclick_edge.runtime.decision import FrameVerdict, Verdict, not_inspected
from adclick_edge.runtime.inspector import Inspection, Inspector
from adclick_edge.runtime.overlay import draw_overlay

__all__ = ["run"]

MOST_NAMES = 20
"""Of files that are no pictures: more are counted, not named."""
VERDICTS: tuple[Verdict, ...] = ("ok", "ng", "uncertain", "not_inspected")


def run(bundle: Path, images: Path, json_output: bool, overlay: Path | None, threads: int | None) -> None:
    files = find_pictures(images)
    root = images if images.is_dir() else images.parent
    ignored = other_files(images, files)
    if ignored:
        more = f" and {len(ignored) - MOST_NAMES} more" if len(ignored) > MOST_NAMES else ""
        _warn(
            f"{len(ignored)} ignored, not PNG, JPEG, BMP or TIFF by name: {', '.join(ignored[:MOST_NAMES])}{more}; "
            "they get no verdict"
        )
    verdicts: list[FrameVerdict] = []
    with Inspector.open(bundle, threads=threads) as inspector:
        notices = getattr(inspector, "notices", ())
        if inspector.calibration is None and not notices:
            progress_console().print("this bundle has no thresholds yet: every frame is uncertain", style="yellow")
        for notice in notices:
            _warn(notice)
        console = progress_console()
        for path in track(files, "inspecting", console=console, disable=len(files) == 1):
            verdict = _one(inspector, path, root, overlay)
            verdicts.append(verdict)
            if not json_output:
                score = "" if verdict.score is None else f"{verdict.score:10.4f}"
                reason = f" ({verdict.reason})" if verdict.reason else ""
                print(f"{verdict.verdict + reason:28s}{score:>10s}  {verdict.frame}", flush=True)
        version = inspector.bundle.manifest.version
    counted = Counter(v.verdict for v in verdicts)
    counts = {name: counted[name] for name in VERDICTS}
    if json_output:
        frames = [msgspec.to_builtins(v) for v in verdicts]
        about = {"bundle": str(bundle), "version": version, "received": len(files)}
        left = {"ignored": ignored[:MOST_NAMES], "ignored_count": len(ignored)}
        print(json.dumps({**about, **counts, **left, "frames": frames}))
    else:
        print(f"{len(files)} received: " + ", ".join(f"{number} {name}" for name, number in counts.items()))
        if overlay is not None and overlay.is_dir():
            print(f"overlays in {overlay}")
    if counts["not_inspected"] == len(files):
        message = f"error: none of the {len(files)} pictures could be inspected"
        progress_console().print(message, style="red", markup=False, soft_wrap=True)
        sys.exit(1)


def _one(inspector: Inspector, path: Path, root: Path, overlay: Path | None) -> FrameVerdict:
    """Every picture gets exactly one verdict, also one that cannot be read."""
    version = inspector.bundle.manifest.version
    try:
        image = read_image(path)
    except ImageError as error:
        _warn(f"not inspected: {error}")
        return not_inspected("bad_frame", frame=str(path), bundle_version=version)
    try:
        inspection = inspector.inspect([image], [str(path)])[0]
    except EngineError as error:
        _warn(f"not inspected: {path}: {error}")
        return not_inspected("engine_error", frame=str(path), bundle_version=version)
    if overlay is not None and inspection.verdict.verdict != "not_inspected":
        target = overlay / path.relative_to(root).with_name(f"{path.name}.jpg")
        try:
            _draw(inspection, inspector.valid(inspection.map.shape), image, target)
        except (OSError, AdclickError) as error:
            # The verdict stands, and so do those of the frames to come.
            _warn(f"no overlay of {path}: {error}")
    return inspection.verdict


def _draw(
    inspection: Inspection, valid: npt.NDArray[np.bool_] | None, image: npt.NDArray[np.uint8], path: Path
) -> None:
    verdict, anomaly_map = inspection.verdict, inspection.map
    counted = anomaly_map if valid is None else anomaly_map[valid]
    low = verdict.lower if verdict.lower is not None else float(counted.min())
    high = verdict.upper if verdict.upper is not None else float(counted.max())
    picture = draw_overlay(image, anomaly_map, low=low, high=max(high, low + 1e-6), valid=valid)
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    assert done  # a uint8 picture always encodes
    write_bytes(path, data.tobytes())


def _warn(message: str) -> None:
    progress_console().print(message, style="yellow", markup=False, soft_wrap=True)
