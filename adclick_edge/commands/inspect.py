"""``adclick inspect``"""

import json
import sys
from collections import Counter
from pathlib import Path

import cv2
import msgspec
from rich.progress import track

from adclick_edge.commands.pictures import find_pictures
from adclick_edge.console import progress_console
from adclick_edge.data.images import read_image
from adclick_edge.errors import EngineError, ImageError
from adclick_edge.files import write_bytes
from adclick_edge.runtime.decision import FrameVerdict, Verdict, not_inspected
from adclick_edge.runtime.inspector import Inspection, Inspector
from adclick_edge.runtime.overlay import draw_overlay

__all__ = ["run"]

VERDICTS: tuple[Verdict, ...] = ("ok", "ng", "uncertain", "not_inspected")


def run(bundle: Path, images: Path, json_output: bool, overlay: Path | None, threads: int | None) -> None:
    files = find_pictures(images)
    root = images if images.is_dir() else images.parent
    verdicts: list[FrameVerdict] = []
    with Inspector.open(bundle, threads=threads) as inspector:
        if inspector.calibration is None:
            progress_console().print("this bundle has no thresholds yet: every frame is uncertain", style="yellow")
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
        print(
            json.dumps({"bundle": str(bundle), "version": version, "received": len(files), **counts, "frames": frames})
        )
    else:
        print(f"{len(files)} received: " + ", ".join(f"{number} {name}" for name, number in counts.items()))
        if overlay is not None:
            print(f"overlays in {overlay}")
    if counts["not_inspected"] == len(files):
        sys.exit(1)


def _one(inspector: Inspector, path: Path, root: Path, overlay: Path | None) -> FrameVerdict:
    """Every picture gets exactly one verdict, also one that cannot be read."""
    version = inspector.bundle.manifest.version
    try:
        image = read_image(path)
    except ImageError as error:
        progress_console().print(f"not inspected: {error}", style="yellow", markup=False, soft_wrap=True)
        return not_inspected("bad_frame", frame=str(path), bundle_version=version)
    try:
        inspection = inspector.inspect([image], [str(path)])[0]
    except EngineError as error:
        progress_console().print(f"not inspected: {path}: {error}", style="yellow", markup=False, soft_wrap=True)
        return not_inspected("engine_error", frame=str(path), bundle_version=version)
    if overlay is not None:
        _draw(inspection, image, overlay / path.relative_to(root).with_name(f"{path.name}.jpg"))
    return inspection.verdict


def _draw(inspection: Inspection, image: cv2.typing.MatLike, path: Path) -> None:
    verdict, anomaly_map = inspection.verdict, inspection.map
    low = verdict.lower if verdict.lower is not None else float(anomaly_map.min())
    high = verdict.upper if verdict.upper is not None else float(anomaly_map.max())
    picture = draw_overlay(image, anomaly_map, low=low, high=max(high, low + 1e-6))  # type: ignore[arg-type]
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 92])
    assert done  # a uint8 picture always encodes
    write_bytes(path, data.tobytes())
