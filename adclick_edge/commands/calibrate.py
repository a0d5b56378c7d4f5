"""``adclick calibrate``"""

from pathlib import Path

import msgspec
import numpy as np
from rich.progress import track

from adclick_edge.commands.pictures import find_pictures
from adclick_edge.console import progress_console
from adclick_edge.data.images import read_image
from adclick_edge.errors import DataError, ImageError
from adclick_edge.files import sha256_file
from adclick_edge.runtime import calibration
from adclick_edge.runtime.inspector import Inspector
from adclick_edge.runtime.regions import masked_score

__all__ = ["run"]


def run(
    bundle: Path,
    normals: Path,
    false_alarms: float,
    defects: Path | None,
    missed_defects: float,
    author: str,
    json_output: bool,
) -> None:
    normal_files = find_pictures(normals)
    defect_files = [] if defects is None else find_pictures(defects)
    with Inspector.open(bundle) as inspector:
        hashes = {str(path): sha256_file(path) for path in normal_files}
        calibration.check_held_out(inspector.bank.image_hashes, hashes)
        thresholds = calibration.calibrate(
            _scores(inspector, normal_files, "normal"),
            false_alarms=false_alarms,
            defect_scores=_scores(inspector, defect_files, "defective") if defects is not None else None,
            missed_defects=missed_defects,
            source="held_out",
            author=author,
        )
        stored = calibration.store_calibration(inspector.bundle, thresholds)
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
