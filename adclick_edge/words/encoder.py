"""Sentences to vectors. Two back ends, one of which is opened from a local folder; nothing is ever downloaded."""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adclick_edge.errors import WeightsError

__all__ = ["F32", "TextEncoder", "normalised", "open_encoder"]

F32 = NDArray[np.float32]


class TextEncoder(Protocol):
    """``sha256`` is that of the weights the vectors come from: vectors of different weights cannot be compared."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    @property
    def dims(self) -> int: ...

    def encode(self, sentences: list[str]) -> F32:
        """Unit vectors float32 ``[len(sentences), dims]``, one per sentence, whatever sentences it stands beside."""
        ...


def normalised(vectors: F32) -> F32:
    """Rows at unit length; float32 ``[n, dims]`` or ``[dims]``."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-12), np.float32)


def open_encoder(folder: Path) -> TextEncoder:
    """The encoder in ``folder``: an ONNX copy (``words.json``; no torch), or a model of the transformers library.

    Raises WeightsError for a folder that holds neither, and for files that do not fit their hashes.
    """
    if (folder / "words.json").is_file():
        from adclick_edge.words.onnx_encoder import OnnxEncoder

        return OnnxEncoder(folder)
    if (folder / "config.json").is_file():
        from adclick_edge.words.transformers_encoder import TransformersEncoder

        return TransformersEncoder(folder)
    raise WeightsError(
        f"{folder}: no text encoder: neither words.json (made by 'adclick words export') nor config.json with "
        "model.safetensors (a transformers model such as all-MiniLM-L6-v2); give the folder that holds one"
    )
