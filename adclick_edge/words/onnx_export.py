"""An ONNX copy of a text encoder, written only if it says what the original says."""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from adclick_edge.errors import ExportError, ParityError
from adclick_edge.files import atomic_folder, sha256_file
from adclick_edge.words.onnx_encoder import MODEL, TOKENIZER, WORDS, WORDS_SCHEMA, FileFacts, OnnxEncoder, WordsFile
from adclick_edge.words.templates import known_vocabulary, sentences
from adclick_edge.words.transformers_encoder import TransformersEncoder

__all__ = ["MAX_DIFFERENCE", "WordsExport", "export_encoder"]

MAX_DIFFERENCE = 1e-4
"""Largest difference between copy and original in any number of a unit vector."""

_OPSET = 18


@dataclass(frozen=True)
class WordsExport:
    name: str
    dims: int
    model_bytes: int
    sentences_compared: int
    max_difference: float


def export_encoder(model: Path, out: Path) -> WordsExport:
    """Copy the transformers model in ``model`` to ``out`` (model.onnx, tokenizer.json, words.json), all or nothing.

    Raises WeightsError for a model that cannot be read, ExportError where the exporter fails, and ParityError where
    the copy differs by more than ``MAX_DIFFERENCE`` on sentences of all lengths.
    """
    encoder = TransformersEncoder(model)
    with atomic_folder(out) as folder:
        (folder / MODEL).write_bytes(_graph(encoder))
        encoder.backend_tokenizer.save(str(folder / TOKENIZER))
        files = {
            name: FileFacts((folder / name).stat().st_size, sha256_file(folder / name)) for name in (MODEL, TOKENIZER)
        }
        words = WordsFile(
            schema=WORDS_SCHEMA,
            name=encoder.name,
            source_sha256=encoder.sha256,
            dims=encoder.dims,
            max_tokens=encoder.max_tokens,
            pad_id=encoder.pad_id,
            files=files,
        )
        (folder / WORDS).write_bytes(msgspec.json.format(msgspec.json.encode(words)) + b"\n")
        probes = _probes()
        difference = float(np.abs(OnnxEncoder(folder).encode(probes) - encoder.encode(probes)).max())
        if not difference <= MAX_DIFFERENCE:
            raise ParityError(
                f"{model}: the ONNX copy differs from the original by {difference:.2g} (allowed {MAX_DIFFERENCE:g}); "
                "nothing was written; try other versions of torch and onnxruntime"
            )
    return WordsExport(encoder.name, encoder.dims, files[MODEL].bytes, len(probes), difference)


def _probes() -> list[str]:
    """One sentence of each known kind, single words, and text past the cut, in one padded batch after another."""
    texts = [sentences(kind)[k % 30] for k, kind in enumerate(known_vocabulary())]
    return [*texts, "x", "Öl auf der Dichtfläche", " ".join(["a long scratch beside a stain"] * 30)]


def _graph(encoder: TransformersEncoder) -> bytes:
    import onnx
    import torch

    ids, mask = encoder.tokens(["a scratched part", "a part with a long thin scratch"])
    free: Any = {0: torch.export.Dim("n", min=1, max=4096), 1: torch.export.Dim("t", min=2, max=encoder.max_tokens)}
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                encoder.module,
                (ids, mask),
                dynamo=True,
                opset_version=_OPSET,
                input_names=["ids", "mask"],
                output_names=["vectors"],
                dynamic_shapes=(free, free),
                verbose=False,
            )
        assert program is not None
        model = program.model_proto
        onnx.checker.check_model(model)
    except Exception as error:  # the exporter raises whatever its passes raise
        raise ExportError(f"the text encoder cannot be exported: {type(error).__name__}: {error}") from error
    finally:
        logger.setLevel(level)
    data: bytes = model.SerializeToString()
    return data
