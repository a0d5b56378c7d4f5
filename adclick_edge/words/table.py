"""``prompts.json``: the vectors of known defect kinds, so that an edge box needs no text encoder for them."""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np
from msgspec import Meta

from adclick_edge.bundle.names import PROMPTS
from adclick_edge.errors import BundleError, UsageError
from adclick_edge.files import write_bytes
from adclick_edge.words.encoder import F32, TextEncoder, normalised
from adclick_edge.words.templates import kind_key, sentences

if TYPE_CHECKING:
    from adclick_edge.bundle import Bundle

__all__ = ["MAX_TABLE_BYTES", "PROMPTS_SCHEMA", "PromptTable", "shipped_prompts"]

PROMPTS_SCHEMA = 1
MAX_TABLE_BYTES = 8 << 20
_MAX_TEXT_CHARS = 400
_EXAMPLES = 3

_Key = Annotated[str, Meta(min_length=1, max_length=200)]
_Sentence = Annotated[str, Meta(min_length=1, max_length=_MAX_TEXT_CHARS)]
_Vectors = Annotated[str, Meta(max_length=1 << 20)]


class _Encoder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=200)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``vectors``: base64 of float16 (little endian) ``[1 + len(sentences), dims]``: the mean of ``averaged``
    sentences first, then those of ``sentences``."""

    averaged: Annotated[int, Meta(ge=1, le=1000)]
    sentences: Annotated[list[_Sentence], Meta(max_length=64)]
    vectors: _Vectors


_Entries = Annotated[dict[_Key, _Entry], Meta(max_length=2000)]


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: Annotated[int, Meta(ge=1)]
    encoder: _Encoder
    dims: Annotated[int, Meta(ge=1, le=4096)]
    kinds: _Entries
    products: Annotated[dict[_Key, _Entries], Meta(max_length=2000)]


@dataclass(frozen=True)
class _Prompt:
    averaged: int
    sentences: tuple[str, ...]
    mean: F32  # [dims], unit length
    examples: F32  # [len(sentences), dims], unit length


@dataclass(frozen=True)
class PromptTable:
    """Vectors by kind, for parts in general and for products of their own; see ``vector``.

    Names are compared in lower case with spaces and hyphens as underscores. ``dims`` is the length of a vector;
    ``encoder_sha256`` names the weights the vectors come from.
    """

    encoder_name: str
    encoder_sha256: str
    dims: int
    _general: Mapping[str, _Prompt] = field(repr=False)
    _products: Mapping[str, Mapping[str, _Prompt]] = field(repr=False)

    @classmethod
    def build(
        cls,
        encoder: TextEncoder,
        kinds: Iterable[str],
        products: Mapping[str, Iterable[str]] | None = None,
        *,
        examples: int = _EXAMPLES,
    ) -> "PromptTable":
        """Encode the sentences of general ``kinds``, and of the kinds of each of ``products``.

        ``examples``: so many single sentences of each general kind are kept beside the mean, spread over its list.
        """

        def prompt(kind: str, product: str | None, keep: int) -> _Prompt:
            texts = sentences(kind, product)
            vectors = encoder.encode(list(texts))
            kept = [round((k + 0.5) * len(texts) / keep - 0.5) for k in range(keep)]
            mean = normalised(vectors.mean(axis=0))
            return _Prompt(len(texts), tuple(texts[k] for k in kept), mean, vectors[kept])

        general = {kind_key(kind): prompt(kind, None, examples) for kind in kinds}
        own = {
            kind_key(product): {kind_key(kind): prompt(kind, product, 0) for kind in named}
            for product, named in (products or {}).items()
        }
        return cls(encoder.name, encoder.sha256, encoder.dims, general, own)

    @classmethod
    def read(cls, path: Path) -> "PromptTable":
        """Raises BundleError for a file that is missing, too large, of another schema or not whole."""
        try:
            with open(path, "rb") as f:
                data = f.read(MAX_TABLE_BYTES + 1)
        except OSError as error:
            raise BundleError(
                f"{path}: cannot be read: {error.strerror}; copy it again, or make it with 'adclick words vectors'"
            ) from error
        return cls.decode(data, str(path))

    @classmethod
    def of_bundle(cls, bundle: "Bundle") -> "PromptTable | None":
        """The table that ``bundle`` carries; None where it has none. Raises BundleError as `decode` does."""
        if PROMPTS not in bundle.manifest.files:
            return None
        return cls.decode(bundle.read(PROMPTS), f"{bundle.location}: {PROMPTS}")

    @classmethod
    def decode(cls, data: bytes, where: str = "prompts.json") -> "PromptTable":
        """As ``read``, of bytes; ``where`` names them in errors."""
        again = "copy the bundle again, or make the table again with 'adclick words vectors'"
        if len(data) > MAX_TABLE_BYTES:
            raise BundleError(f"{where}: larger than {MAX_TABLE_BYTES} bytes; {again}")
        try:
            file = msgspec.json.decode(data, type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BundleError(f"{where}: not a table of prompts: {error}; {again}") from error
        if file.schema != PROMPTS_SCHEMA:
            raise BundleError(
                f"{where}: of schema {file.schema}, this version reads {PROMPTS_SCHEMA}; install the version of "
                "adclick-edge that wrote it, or make the table again with 'adclick words vectors'"
            )

        def prompts(entries: Mapping[str, _Entry], prefix: str) -> dict[str, _Prompt]:
            found = {}
            for name, entry in entries.items():
                if kind_key(name) != name:
                    raise BundleError(f"{where}: the name {name!r} is not in lower case with underscores; {again}")
                try:
                    found[name] = _decoded(entry, file.dims)
                except ValueError as error:
                    raise BundleError(f"{where}: the vectors of {prefix}{name} {error}; {again}") from error
            return found

        products = {}
        for product, entries in file.products.items():
            if kind_key(product) != product:
                raise BundleError(f"{where}: the name {product!r} is not in lower case with underscores; {again}")
            products[product] = prompts(entries, f"{product}/")
        return cls(file.encoder.name, file.encoder.sha256, file.dims, prompts(file.kinds, ""), products)

    def encode(self) -> bytes:
        """The bytes of ``prompts.json``: the same for the same table."""

        def entries(prompts: Mapping[str, _Prompt]) -> dict[str, _Entry]:
            return {name: _encoded(prompts[name]) for name in sorted(prompts)}

        file = _File(
            schema=PROMPTS_SCHEMA,
            encoder=_Encoder(self.encoder_name, self.encoder_sha256),
            dims=self.dims,
            kinds=entries(self._general),
            products={product: entries(self._products[product]) for product in sorted(self._products)},
        )
        return msgspec.json.format(msgspec.json.encode(file), indent=1) + b"\n"

    def write(self, path: Path) -> None:
        write_bytes(path, self.encode())

    def known_kinds(self, product: str | None = None) -> tuple[str, ...]:
        """Kinds that need no text encoder, sorted; with a product, those that have sentences about that product."""
        if product is not None:
            return tuple(sorted(self._products.get(kind_key(product), {})))
        return tuple(sorted({*self._general, *(kind for own in self._products.values() for kind in own)}))

    def known_products(self) -> tuple[str, ...]:
        return tuple(sorted(self._products))

    def vector(self, product: str | None, kind_or_text: str, encoder: TextEncoder | None = None) -> F32:
        """The unit vector float32 ``[dims]`` of a kind's sentences, or of free text.

        Looked up in this order: the kind under the product, the kind of parts in general, the mean of the kind under
        other products, and then the text itself through ``encoder``.

        Raises UsageError for empty or overlong text, for text that is no known kind where there is no encoder, and
        for an encoder with other weights than the table's.
        """
        known = self._known(product, kind_or_text)
        if known is not None:
            return known.copy()
        text = " ".join(kind_or_text.split())
        if not text or len(text) > _MAX_TEXT_CHARS:
            raise UsageError(
                f"a prompt of {len(text)} characters; give 1 to {_MAX_TEXT_CHARS}, such as 'a deep scratch'"
            )
        if encoder is None:
            raise UsageError(
                f"{text!r} is no known kind of defect, and free text needs a text encoder, which this box has not. Known "
                f"kinds: {', '.join(self.known_kinds()) or 'none'}. For free text: pip install 'adclick-edge[words]', "
                "run 'adclick words export' where torch is, and copy its folder here"
            )
        self.check_encoder(encoder)
        if re.fullmatch(r"[\w\-]+", text):  # a folder's name rather than words
            return normalised(encoder.encode(list(sentences(text, product))).mean(axis=0))
        return normalised(encoder.encode([text])[0])

    def examples(self, product: str | None, kind: str) -> F32:
        """Unit vectors ``[k, dims]``, k >= 1, of the mean and of single sentences of a kind, for variety in training.

        Raises UsageError for a kind the table does not hold.
        """
        rows = [self.vector(product, kind)]
        general = self._general.get(kind_key(kind))
        if general is not None:
            rows += [general.mean, *general.examples]
        return np.stack(rows)

    def check_encoder(self, encoder: TextEncoder) -> None:
        """Raises UsageError unless ``encoder`` makes vectors of this table's space."""
        if encoder.sha256 != self.encoder_sha256:
            raise UsageError(
                f"the text encoder {encoder.name} (weights {encoder.sha256[:12]}) is not the one the prompts were made "
                f"with: {self.encoder_name} (weights {self.encoder_sha256[:12]}); use that one, or make prompts.json again "
                "with 'adclick words vectors'"
            )

    def _known(self, product: str | None, kind: str) -> F32 | None:
        key, own = kind_key(kind), self._products.get(kind_key(product or ""), {})
        for prompts in (own, self._general):
            if key in prompts:
                return prompts[key].mean
        others = [prompts[key].mean for _, prompts in sorted(self._products.items()) if key in prompts]
        return normalised(np.mean(others, axis=0)) if others else None


def _encoded(prompt: _Prompt) -> _Entry:
    rows = np.concatenate([prompt.mean[None], prompt.examples]).astype("<f2")
    return _Entry(prompt.averaged, list(prompt.sentences), base64.b64encode(rows.tobytes()).decode())


def _decoded(entry: _Entry, dims: int) -> _Prompt:
    """Raises ValueError, worded to follow "the vectors of KIND"."""
    try:
        data = base64.b64decode(entry.vectors, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"are not base64 ({error})") from error
    rows = 1 + len(entry.sentences)
    if len(data) != rows * dims * 2:
        raise ValueError(f"are {len(data)} bytes, not the {rows * dims * 2} of {rows} rows of {dims}")
    vectors = np.frombuffer(data, "<f2").reshape(rows, dims).astype(np.float32)
    if not np.isfinite(vectors).all() or np.abs(np.linalg.norm(vectors, axis=1) - 1).max() > 0.01:
        raise ValueError("are not of unit length")
    unit = normalised(vectors)
    return _Prompt(entry.averaged, tuple(entry.sentences), unit[0], unit[1:])


@lru_cache(maxsize=1)
def shipped_prompts() -> PromptTable:
    """The table that comes with the package: common kinds, and the products of the sample line."""
    return PromptTable.read(Path(__file__).parent.parent / "weights" / "prompts.json")
