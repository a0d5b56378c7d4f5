"""A text encoder without torch: ``model.onnx`` and ``tokenizer.json`` of an ONNX copy, checked against ``words.json``."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from adclick_edge.errors import EngineError, UsageError, WeightsError
from adclick_edge.files import sha256_file
from adclick_edge.words.encoder import F32, normalised

__all__ = ["MODEL", "TOKENIZER", "WORDS", "WORDS_SCHEMA", "FileFacts", "OnnxEncoder", "WordsFile"]

WORDS, MODEL, TOKENIZER = "words.json", "model.onnx", "tokenizer.json"
WORDS_SCHEMA = 1

_MAX_WORDS_BYTES = 1 << 16
_MAX_FILE_BYTES = 2 << 30
_BATCH = 64
_Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class FileFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bytes: Annotated[int, Meta(ge=1, le=_MAX_FILE_BYTES)]
    sha256: _Sha256


class WordsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``words.json``. ``source_sha256`` is that of the weights the copy was made from, which prompt tables name too."""

    schema: Annotated[int, Meta(ge=1)]
    name: Annotated[str, Meta(min_length=1, max_length=200)]
    source_sha256: _Sha256
    dims: Annotated[int, Meta(ge=1, le=4096)]
    max_tokens: Annotated[int, Meta(ge=2, le=4096)]
    pad_id: Annotated[int, Meta(ge=0)]
    files: dict[str, FileFacts]


class OnnxEncoder:
    """Needs onnxruntime and tokenizers (the extra ``words``).

    Raises WeightsError for a folder that is incomplete, altered or of another schema, UsageError where tokenizers or
    onnxruntime is missing, and EngineError where onnxruntime refuses the graph.
    """

    def __init__(self, folder: Path, *, threads: int = 1) -> None:
        file = _checked(folder)
        self.name, self.sha256, self.dims = file.name, file.source_sha256, file.dims
        try:
            import onnxruntime
            import tokenizers
        except ImportError as error:
            raise UsageError(
                f"{folder}: free text needs {error.name}, which is not installed; pip install 'adclick-edge[words]' and, "
                "for onnxruntime, 'adclick-edge[cpu]'"
            ) from error
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(folder / TOKENIZER))
        except Exception as error:  # tokenizers raises plain Exception
            raise WeightsError(f"{folder / TOKENIZER}: cannot be read: {error}; export the encoder again") from error
        self._tokenizer.enable_truncation(file.max_tokens)
        # The padding's look does not matter, since the graph masks it; its id must be one the model knows.
        self._tokenizer.enable_padding(pad_id=file.pad_id)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(
                str(folder / MODEL), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no base of their own
            raise EngineError(f"{folder / MODEL}: onnxruntime refuses it: {error}; export the encoder again") from error

    def encode(self, sentences: list[str]) -> F32:
        parts = []
        for start in range(0, len(sentences), _BATCH):
            found = self._tokenizer.encode_batch(sentences[start : start + _BATCH])
            ids = np.asarray([one.ids for one in found], np.int64)
            mask = np.asarray([one.attention_mask for one in found], np.int64)
            try:
                (vectors,) = self._session.run(["vectors"], {"ids": ids, "mask": mask})
            except Exception as error:
                raise EngineError(f"text encoder {self.name}: {error}; export the encoder again") from error
            parts.append(vectors)
        return normalised(np.concatenate(parts)) if parts else np.zeros((0, self.dims), np.float32)


def _checked(folder: Path) -> WordsFile:
    path = folder / WORDS
    again = "copy the folder again, or make it again with 'adclick words export'"
    try:
        with open(path, "rb") as f:
            data = f.read(_MAX_WORDS_BYTES + 1)
        if len(data) > _MAX_WORDS_BYTES:
            raise WeightsError(f"{path}: larger than {_MAX_WORDS_BYTES} bytes; {again}")
        file = msgspec.json.decode(data, type=WordsFile)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}; {again}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WeightsError(f"{path}: not a description of a text encoder: {error}; {again}") from error
    if file.schema != WORDS_SCHEMA:
        raise WeightsError(f"{path}: of schema {file.schema}, this version reads {WORDS_SCHEMA}; {again}")
    if set(file.files) != {MODEL, TOKENIZER}:
        raise WeightsError(f"{path}: names {', '.join(sorted(file.files))}, not {MODEL} and {TOKENIZER}; {again}")
    for name, facts in sorted(file.files.items()):
        if not (folder / name).is_file():
            raise WeightsError(f"{folder}: {name} is missing; {again}")
        if (folder / name).stat().st_size != facts.bytes or sha256_file(folder / name) != facts.sha256:
            raise WeightsError(f"{folder}: {name} does not fit the hash in {WORDS}: altered or damaged; {again}")
    return file
