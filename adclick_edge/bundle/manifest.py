"""The typed content of ``manifest.json`` and its checks."""

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from adclick_edge.bundle.names import BANK, CLICK_GRAPHS, GRAPHS, MANIFEST, SETTINGS, name_problem
from adclick_edge.errors import BundleError

__all__ = [
    "MAX_MANIFEST_BYTES",
    "SCHEMA_VERSION",
    "ClickSpec",
    "FileEntry",
    "Manifest",
    "TensorSpec",
    "Tiling",
    "canonical_json",
    "encode_manifest",
    "parse_manifest",
    "seal",
    "version_of",
]

SCHEMA_VERSION = 1
MAX_MANIFEST_BYTES = 4 << 20
_VERSION_HEX_DIGITS = 12
_CLICK_SIZE_STEP = 16

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Positive = Annotated[int, Meta(ge=1)]
Text = Annotated[str, Meta(min_length=1, max_length=200)]
DType = Literal["bool", "uint8", "int32", "int64", "float16", "float32"]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file of the bundle must hash to, and its size."""

    sha256: Sha256
    size_bytes: Annotated[int, Meta(ge=0)]


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An input or output of a graph; -1 in ``shape`` is a free size."""

    name: Text
    dtype: DType
    shape: list[Annotated[int, Meta(ge=-1)]]

    def __post_init__(self) -> None:
        if 0 in self.shape:
            raise ValueError(f"tensor {self.name!r} has shape {self.shape}: a size is at least 1, or -1 for free")


class Tiling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Frames are scaled, then cut into overlapping tiles of the input size; without it they are resized to it."""

    scale: Annotated[float, Meta(gt=0, le=8)]
    overlap: Annotated[int, Meta(ge=0)]  # pixels of the scaled frame


class ClickSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The two graphs that answer clicks: ``click_encode.onnx`` once per view, ``click_decode.onnx`` per click.

    ``size`` is the view's height and width in pixels, multiples of 16. ``parity`` is free JSON, as in `Manifest`.
    """

    size: tuple[Positive, Positive]
    max_clicks: Positive
    prompt_dims: Positive
    encode_inputs: list[TensorSpec]
    encode_outputs: list[TensorSpec]
    decode_inputs: list[TensorSpec]
    parity: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if any(side % _CLICK_SIZE_STEP for side in self.size):
            raise ValueError(f"click.size is {list(self.size)}: both must be multiples of {_CLICK_SIZE_STEP}")
        names = {spec.name for spec in self.encode_outputs} | {"clicks", "previous", "prompt"}
        found = [spec.name for spec in self.decode_inputs]
        if sorted(found) != sorted(names):
            raise ValueError(f"click.decode_inputs are {found}, but click_encode gives what needs {sorted(names)}")


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle is, how it was made and what its files must hash to.

    ``training``, ``metrics`` and ``parity`` are free JSON; by convention ``parity`` holds ``max_map_difference``,
    ``changed_verdicts`` and ``frames``. ``search_dims`` is None only where no bank, hence no PCA, exists yet.
    """

    schema_version: int
    kind: Literal["weights", "product"]
    product: Text | None
    version: str  # version_of(files): the same content has the same version
    parent: Text | None
    created_utc: str
    preset: Text
    segmenter: Literal["distance", "adclick_seg"]
    files: dict[str, FileEntry]
    features_outputs: list[TensorSpec]
    segment_inputs: list[TensorSpec]
    segment_outputs: list[TensorSpec]
    input_size: tuple[Positive, Positive]  # height, width
    embedding_dims: Positive
    search_dims: Positive | None
    training: dict[str, Any]
    metrics: dict[str, Any]
    parity: dict[str, Any]
    weights_license: Text
    adclick_edge_version: Text
    tiling: Tiling | None = None
    click: ClickSpec | None = None
    manifest_sha256: Sha256  # of the canonical JSON of all other keys

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {self.schema_version}, this release writes {SCHEMA_VERSION}")
        self._check_kind()
        self._check_files()
        for key in ("features_outputs", "segment_inputs", "segment_outputs"):
            names = [spec.name for spec in getattr(self, key)]
            if len(set(names)) != len(names):
                raise ValueError(f"{key} names a tensor twice: {names}")
        if self.search_dims is not None and self.search_dims > self.embedding_dims:
            raise ValueError(f"search_dims {self.search_dims} exceeds embedding_dims {self.embedding_dims}")
        if datetime.fromisoformat(self.created_utc).utcoffset() is None:
            raise ValueError(f"created_utc {self.created_utc!r} names no time zone, as in 2025-01-31T12:00:00Z")

    @property
    def clicks_trained_on(self) -> frozenset[str]:
        """SHA-256 of the pictures that the graphs of clicks were trained on: their masks say little about others."""
        click = self.training.get("click", {})
        return frozenset(click.get("image_hashes", ()) if isinstance(click, dict) else ())

    def _check_kind(self) -> None:
        if (self.kind == "product") != (self.product is not None):
            raise ValueError(f"kind is {self.kind!r} and product is {self.product!r}: only a product bundle names one")
        if (self.kind == "product") != (BANK in self.files):
            raise ValueError(
                f"kind is {self.kind!r} and {BANK} is {'' if BANK in self.files else 'not '}listed: "
                "a product bundle has a bank, a weights bundle has none"
            )
        if self.kind == "product" and self.search_dims is None:
            raise ValueError("search_dims is null, but a product bundle has a bank, hence search dims")

    def _check_files(self) -> None:
        for name in self.files:
            if problem := name_problem(name):
                raise ValueError(problem)
            if name == MANIFEST or name in SETTINGS:
                raise ValueError(f"files lists {name}, which is never covered by the manifest")
        if missing := [name for name in GRAPHS if name not in self.files]:
            raise ValueError(f"files does not list {', '.join(missing)}")
        listed = [name for name in CLICK_GRAPHS if name in self.files]
        if len(listed) != (0 if self.click is None else len(CLICK_GRAPHS)):
            raise ValueError(
                f"files lists {listed or 'no click graphs'} and click is {'null' if self.click is None else 'given'}: "
                f"{' and '.join(CLICK_GRAPHS)} and click go together"
            )
        if self.version != version_of(self.files):
            raise ValueError(f"version is {self.version!r}, but the files listed give {version_of(self.files)!r}")


class _Probe(msgspec.Struct):
    schema_version: int


def canonical_json(value: object) -> bytes:
    """The one way to write ``value``: sorted keys, no spaces, ASCII.

    Raises ValueError or TypeError for what JSON cannot say (NaN, infinities, unsortable keys, foreign types).
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def version_of(files: Mapping[str, FileEntry]) -> str:
    """The version id of a set of files: 12 hex digits over their names, sizes and hashes."""
    listing = {name: [entry.sha256, entry.size_bytes] for name, entry in files.items()}
    return hashlib.sha256(canonical_json(listing)).hexdigest()[:_VERSION_HEX_DIGITS]


def seal(fields: Mapping[str, object], where: str) -> Manifest:
    """A manifest of plain JSON ``fields`` (all but ``manifest_sha256``), validated; ``where`` names it in errors."""
    try:
        manifest = msgspec.convert({**fields, "manifest_sha256": "0" * 64}, Manifest)
    except msgspec.ValidationError as e:
        raise BundleError(f"{where}: the manifest fields are wrong: {e}") from e
    try:
        # Over what will be written, defaults included, rather than over what was given.
        written = msgspec.to_builtins(manifest)
        del written["manifest_sha256"]
        digest = hashlib.sha256(canonical_json(written)).hexdigest()
    except (TypeError, ValueError, RecursionError) as e:
        raise BundleError(f"{where}: the manifest fields are not JSON ({e}); NaN and infinities are not either") from e
    return msgspec.structs.replace(manifest, manifest_sha256=digest)


def encode_manifest(manifest: Manifest) -> bytes:
    return json.dumps(msgspec.to_builtins(manifest), indent=1, allow_nan=False).encode() + b"\n"


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Decode and check ``manifest.json``; ``where`` names the bundle in errors. Raises BundleError."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{where}: {MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes; this is not a bundle")
    try:
        found = msgspec.json.decode(data, type=_Probe).schema_version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise BundleError(f"{where}: {MANIFEST} cannot be read: {e}; copy the bundle again") from e
    if found > SCHEMA_VERSION:
        raise BundleError(
            f"{where}: {MANIFEST} has schema version {found}, this release reads {SCHEMA_VERSION}; update adclick-edge"
        )
    if found < SCHEMA_VERSION:
        raise BundleError(
            f"{where}: {MANIFEST} has schema version {found}, which this release no longer reads (it reads "
            f"{SCHEMA_VERSION}); export the bundle again"
        )
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
        raw: dict[str, object] = msgspec.json.decode(data)
        stated = raw.pop("manifest_sha256")
        actual = hashlib.sha256(canonical_json(raw)).hexdigest()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as e:
        raise BundleError(f"{where}: {MANIFEST} is not valid: {e}; it was altered, or export the bundle again") from e
    if stated != actual:
        raise BundleError(
            f"{where}: {MANIFEST} was altered after it was written (its own checksum does not fit); copy the bundle "
            "again, or export it again with the values you want"
        )
    return manifest
