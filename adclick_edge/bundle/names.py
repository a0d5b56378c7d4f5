"""Names of files inside a bundle: which exist, and which may exist at all."""

import re
from pathlib import Path

from adclick_edge.errors import BundleError

__all__ = [
    "BANK",
    "CALIBRATION",
    "CLICK_GOLDEN",
    "CLICK_GRAPHS",
    "EXPECTED",
    "GOLDEN_FOLDER",
    "GRAPHS",
    "MANIFEST",
    "PROMPTS",
    "REGIONS",
    "SETTINGS",
    "name_problem",
    "regular_file",
]

MANIFEST = "manifest.json"
GRAPHS = ("features.onnx", "residual.onnx", "segment.onnx")
CLICK_GRAPHS = ("click_encode.onnx", "click_decode.onnx")
BANK = "bank.safetensors"
PROMPTS = "prompts.json"
GOLDEN_FOLDER = "golden/"
EXPECTED = "golden/expected.safetensors"
CLICK_GOLDEN = "golden/click.safetensors"
CALIBRATION = "calibration.json"
REGIONS = "regions.json"
# Not covered by the manifest's hashes, so that a threshold can change without a new bundle version.
SETTINGS = (CALIBRATION, REGIONS)

_MAX_NAME_CHARS = 200
_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_NAME = re.compile(rf"{_PART}(/{_PART})*")


def name_problem(name: str) -> str | None:
    """Why ``name`` may not stand in a bundle, or None where it may.

    An allow-list rather than a search for ``..``: it also keeps out absolute paths, drive letters, backslashes,
    hidden files and control characters, on whatever system the bundle is unpacked.
    """
    if len(name) > _MAX_NAME_CHARS:
        return f"the name {name[:40]!r}... is longer than {_MAX_NAME_CHARS} characters"
    if not _NAME.fullmatch(name):
        return (
            f"the name {name!r} is not allowed: parts of letters, digits, '.', '_' and '-', not starting with '.' or "
            "'-', joined by '/'"
        )
    return None


def regular_file(root: Path, name: str) -> Path:
    """The path of ``name`` below ``root``, after checking that no link leads out and that it is a file.

    Raises BundleError for a link on the way and for anything that is not a regular file.
    """
    path = root
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            raise BundleError(
                f"{root}: {name}: {path.name} is a symbolic link, which a bundle may not hold; copy the file itself"
            )
    if not path.is_file():
        what = "is not a regular file" if path.exists() else "is missing"
        raise BundleError(f"{root}: {name} {what}; copy the bundle again from where it was made")
    return path
