"""The golden click case of a bundle: inputs so small that they are stored, and the answer they must give.

Its frame and its residual are given by blocks that are repeated to the network's size: no resizing and no source of chance
that another machine might compute otherwise.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from adclick_edge.bundle import Bundle
from adclick_edge.bundle.names import CLICK_GOLDEN
from adclick_edge.errors import BundleError
from adclick_edge.runtime.click_view import to_probability
from adclick_edge.runtime.engine import ClickEngine

__all__ = ["check_click_golden", "golden_click_file"]

F32 = npt.NDArray[np.float32]
Case = dict[str, npt.NDArray[Any]]

TOLERANCE = 1e-2
"""Largest difference of the probability that a loaded bundle may show: other CPUs sum in another order."""
BLOCK_PX = 16
"""Pixels a side of a block of the golden frame; every size a bundle may have is a multiple of it."""
RESIDUAL_BLOCK = 2
KEPT_EVERY = 4


def golden_click_file(
    engine: ClickEngine, size: tuple[int, int], dims: int, prompt_dims: int, max_clicks: int, *, seed: int = 0
) -> bytes:
    """``golden/click.safetensors``, as ``engine`` computes it for residuals of ``dims`` channels."""
    rng = np.random.default_rng(seed)
    blocks = (size[0] // BLOCK_PX, size[1] // BLOCK_PX)
    clicks = np.zeros((max_clicks, 3), np.float32)
    clicks[:2] = (size[0] * 0.4, size[1] * 0.55, 1), (size[0] * 0.8, size[1] * 0.1, -1)
    prompt = rng.normal(size=prompt_dims)
    case: Case = {
        "frame": rng.integers(0, 256, (*blocks, 3), np.uint8),
        "profile": rng.random(dims, np.float32),
        "distance": (3 * rng.random(blocks)).astype(np.float32),
        "previous": rng.random(blocks).astype(np.float32),
        "clicks": clicks,
        "prompt": (prompt / np.linalg.norm(prompt)).astype(np.float32),
    }
    return safetensors.numpy.save({**case, "probability": _answer(engine, case)})


def check_click_golden(bundle: Bundle, engine: ClickEngine) -> None:
    """Raises BundleError where the graphs of clicks of ``bundle`` do not answer as they did when it was exported.

    A bundle without a golden click case passes.
    """
    if CLICK_GOLDEN not in bundle.manifest.files:
        return
    try:
        case = safetensors.numpy.load(bundle.read(CLICK_GOLDEN))
        expected = case.pop("probability")
        found = _answer(engine, case)
    except (SafetensorError, KeyError, ValueError) as error:
        raise BundleError(
            f"{bundle.location}: {CLICK_GOLDEN} cannot be used: {error!r}; export the bundle again"
        ) from error
    difference = float(np.abs(found - expected).max()) if found.shape == expected.shape else float("nan")
    if not difference <= TOLERANCE:
        raise BundleError(
            f"{bundle.location}: the golden click case differs by {difference:.3g} on {engine.name} (at most {TOLERANCE}); "
            "this machine does not compute what was exported: do not use the bundle here, export it anew"
        )


def _answer(engine: ClickEngine, case: Case) -> F32:
    """Every `KEPT_EVERY`-th probability of the answer."""
    frames = _repeat(case["frame"], BLOCK_PX)[None]
    distance = _repeat(case["distance"], RESIDUAL_BLOCK)[None, None]
    embedding = engine.click_encode(
        {
            **engine.features(frames),
            "frames": frames,
            "relative": np.ascontiguousarray(case["profile"].reshape(1, -1, 1, 1) * distance**2),
            "relative_distance": distance,
        }
    )
    logits = engine.click_decode(
        {
            **embedding,
            "clicks": case["clicks"][None],
            "previous": _repeat(case["previous"], 2 * RESIDUAL_BLOCK)[None, None],
            "prompt": case["prompt"][None],
        }
    )
    return np.ascontiguousarray(to_probability(logits[0, ::KEPT_EVERY, ::KEPT_EVERY]))


def _repeat(blocks: npt.NDArray[Any], times: int) -> npt.NDArray[Any]:
    return np.ascontiguousarray(blocks.repeat(times, axis=0).repeat(times, axis=1))
