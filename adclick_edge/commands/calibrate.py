"""``adclick calibrate``"""

import os
from pathlib import Path

import msgspec
import numpy as np
from rich.progress import track

from adclick_edge.commands.pictures import find_pictures
from adclick_edge.console import progress_console
from adclick_edge.data.images import list_images, read_image
from adclick_edge.errors import AdclickError, CalibrationError, DataError, ImageError
from adclick_edge.files import sha256_file
from adclick_edge.runtime import calibration
from adclick_edge.runtime.inspector import Inspector
from adclick_edge.runtime.regions import masked_score, regions_sha256

__all__ = ["run"]

_MOST_NAMED = 5


def run(
    bundle: Path,
    normals: Path,
    false_alarms: float,
    defects: Path | None,
    missed_defects: float,
    author: str,
    json_output: bool,
) -> None:
    _check_flat(normals)
    normal_files = find_pictures(normals)
    defect_files = [] if defects is None else find_pictures(defects)
    normal_hashes, defect_hashes = _hashes(normal_files), _hashes(defect_files)
    _check_apart(normal_hashes, defect_hashes)
    with Inspector.open(bundle, thresholds=False) as inspector:
        trained_on = inspector.bundle.manifest.training.get("image_hashes", ())
        for hashes in (normal_hashes, defect_hashes):
            calibration.check_held_out(inspector.bank.image_hashes, hashes, trained_on)
        scores = _scores(inspector, normal_files, "normal")
        _compare(inspector, scores)
        thresholds = calibration.calibrate(
            scores,
            false_alarms=false_alarms,
            defect_scores=_scores(inspector, defect_files, "defective") if defects is not None else None,
            missed_defects=missed_defects,
            source="held_out",
            author=author,
        )
        # Marked with the regions the scores were taken under: somebody may set others meanwhile.
        marked = msgspec.structs.replace(thresholds, regions_sha256=regions_sha256(inspector.regions))
        stored = calibration.store_calibration(inspector.bundle, marked)
    if json_output:
        print(msgspec.json.encode(stored).decode())
        return
    print(f"{bundle}: ok below {stored.lower:.5g}, ng from {stored.upper:.5g}, uncertain between")
    print(
        f"false alarms: at most {stored.guaranteed_false_alarms:.3g} on average (from {stored.normals} normal pictures)"
    )
    if stored.missed_defects_bound is not None:
        print(
            f"missed defects: at most {stored.missed_defects_bound:.3g} on average (from {stored.defects} defective pictures)"
        )
    for note in stored.notes:
        print(f"note: {note}")


def _check_flat(normals: Path) -> None:
    """A folder of a whole test set holds its defects too, in subfolders: none of them may pass as normal."""
    if not normals.is_dir():
        return
    below = sorted(folder for folder, _, _ in os.walk(normals) if Path(folder) != normals and list_images(Path(folder)))
    if below:
        raise DataError(
            f"{normals}: {len(below)} subfolders hold pictures too: {_some(below)}; they may be defects: give the one "
            "folder of good parts as --normals"
        )


def _hashes(files: list[Path]) -> dict[str, str]:
    return {str(path): sha256_file(path) for path in files}


def _check_apart(normals: dict[str, str], defects: dict[str, str]) -> None:
    named = {digest: path for path, digest in normals.items()}
    if both := [f"{path} (as {named[digest]})" for path, digest in defects.items() if digest in named]:
        raise CalibrationError(
            f"{len(both)} pictures are given as normal and as defective: {_some(both)}; leave each in one of the two"
        )


def _compare(inspector: Inspector, scores: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    """Warn where the thresholds to be replaced say that these are no good parts of this product."""
    try:
        old = calibration.load_calibration(inspector.bundle)
    except AdclickError:
        return  # what cannot be read is being replaced
    if old is None or not calibration.made_under(old, inspector.regions):
        return
    if float(np.median(scores)) > old.t_ng:
        progress_console().print(
            "more than half of these pictures would be ng under the old thresholds: are they good parts of this product?",
            style="yellow",
            markup=False,
            soft_wrap=True,
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _scores(inspector: Inspector, files: list[Path], what: str) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    console = progress_console()
    scores = []
    for path in track(files, f"{what} pictures", console=console):
        try:
            image = read_image(path)
        except ImageError as error:
            console.print(f"skipped: {error}", style="yellow", markup=False, soft_wrap=True)
            continue
        (anomaly_map,), _ = inspector.maps([image])
        scores.append(masked_score(anomaly_map, inspector.valid(anomaly_map.shape)))
    if not scores:
        raise DataError(f"none of the {len(files)} {what} pictures can be read; give others")
    return np.array(scores, np.float64)
