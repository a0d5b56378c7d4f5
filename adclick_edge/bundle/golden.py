"""Golden frames: what a loaded bundle must still compute, whatever engine runs it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from adclick_edge.bundle.names import EXPECTED, GOLDEN_FOLDER, name_problem
from adclick_edge.errors import BundleError

__all__ = ["GoldenFrame", "golden_files", "golden_frames"]


@dataclass(frozen=True, eq=False)
class GoldenFrame:
    """A frame, u8 [H,W,3] RGB, with the map, f32 [h4,w4], and the score that the exporting machine computed."""

    name: str
    frame: NDArray[np.uint8]
    map: NDArray[np.float32]
    score: float


def golden_files(frames: Sequence[GoldenFrame]) -> dict[str, bytes]:
    """The files of ``golden/`` for ``frames``, ready for ``write_bundle``. Raises BundleError for unusable frames."""
    files: dict[str, bytes] = {}
    expected: dict[str, NDArray[np.float32]] = {}
    for golden in frames:
        name = f"{GOLDEN_FOLDER}{golden.name}.png"
        problem = "a frame's name may not hold a slash" if "/" in golden.name else name_problem(name)
        if problem:
            raise BundleError(f"golden frame {golden.name!r}: {problem}")
        if name in files:
            raise BundleError(f"golden frame {golden.name!r} is given twice; give each frame a name of its own")
        frame = golden.frame
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
            raise BundleError(f"golden frame {golden.name!r} is {frame.dtype} {frame.shape}; expected uint8 [H,W,3]")
        done, png = cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        if not done:
            raise BundleError(f"golden frame {golden.name!r} of shape {frame.shape} cannot be written as PNG")
        files[name] = png.tobytes()
        expected[f"{golden.name}.map"] = np.ascontiguousarray(golden.map)
        expected[f"{golden.name}.score"] = np.array([golden.score], np.float32)
        _check_expected(expected, golden.name, "golden frames")
    if files:
        files[EXPECTED] = safetensors.numpy.save(expected)
    return files


def golden_frames(files: Mapping[str, bytes], where: str) -> list[GoldenFrame]:
    """The frames in ``files`` (those below ``golden/``), by name; ``where`` names the bundle in errors."""
    if not files:
        return []
    if EXPECTED not in files:
        raise BundleError(f"{where}: {EXPECTED} is missing, but there are golden frames; export the bundle again")
    try:
        expected = safetensors.numpy.load(files[EXPECTED])
    except (SafetensorError, KeyError, ValueError) as e:
        raise BundleError(f"{where}: {EXPECTED} cannot be read: {e}; export the bundle again") from e
    names = sorted(name.removeprefix(GOLDEN_FOLDER).removesuffix(".png") for name in files if name.endswith(".png"))
    if extra := sorted(set(expected) - {f"{name}.{part}" for name in names for part in ("map", "score")}):
        raise BundleError(f"{where}: {EXPECTED} holds {extra[0]!r}, but no frame of that name is in golden/")
    frames = []
    for name in names:
        _check_expected(expected, name, f"{where}: {EXPECTED}")
        data = np.frombuffer(files[f"{GOLDEN_FOLDER}{name}.png"], np.uint8)
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if data.size else None
        if image is None:
            raise BundleError(f"{where}: {GOLDEN_FOLDER}{name}.png is not an image; export the bundle again")
        frame = cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
        frames.append(GoldenFrame(name, frame, expected[f"{name}.map"], float(expected[f"{name}.score"][0])))
    return frames


def _check_expected(expected: Mapping[str, NDArray[np.float32]], name: str, where: str) -> None:
    for key, dims in ((f"{name}.map", 2), (f"{name}.score", 1)):
        tensor = expected.get(key)
        if tensor is None:
            raise BundleError(f"{where}: {key!r} is missing; export the bundle again")
        if tensor.dtype != np.float32 or tensor.ndim != dims or (dims == 1 and tensor.size != 1) or tensor.size == 0:
            shape = "[1]" if dims == 1 else "[h,w]"
            raise BundleError(f"{where}: {key!r} is {tensor.dtype} {tensor.shape}; expected float32 {shape}")
        if not np.isfinite(tensor).all():
            raise BundleError(f"{where}: {key!r} holds NaN or infinities; fix the network before exporting it")
