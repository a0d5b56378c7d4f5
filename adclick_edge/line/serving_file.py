"""``STATE/serving.json``: which bundle each product was judged by, so that a restart goes on with it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from adclick_edge.errors import LineError
from adclick_edge.files import write_bytes

__all__ = ["Kept", "ServingRecord", "read_serving", "write_serving"]

MAX_BYTES = 1 << 20

FolderName = Annotated[str, Meta(pattern=r"^[0-9a-f]{12}(-[0-9]{1,4})?$")]


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A copy of a bundle in the store."""

    folder: FolderName
    version: str


class ServingRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What serves one product."""

    configured: str
    """The bundle line.toml named when this was written. Once it names another, that one is meant."""
    chain: Annotated[tuple[Kept, ...], Meta(min_length=1)]
    """Oldest first; the last one serves, the one before it is what a rollback goes to."""


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    format: Literal[1] = 1
    products: dict[str, ServingRecord]


def read_serving(path: Path) -> dict[str, ServingRecord]:
    """Records by product, none where there is no file. Raises LineError for a file that cannot be used."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise LineError(f"{path}: larger than {MAX_BYTES} bytes; this is not what the daemon wrote")
        return msgspec.json.decode(data, type=_File).products
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise LineError(f"{path}: cannot be read ({error.strerror}); check its rights and the disk") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LineError(f"{path}: damaged ({error}); swap the products' bundles in again") from error


def write_serving(path: Path, products: Mapping[str, ServingRecord]) -> None:
    """Replace the file, durably, in one step. Raises LineError where the disk does not take it."""
    data = msgspec.json.format(msgspec.json.encode(_File(products=dict(products))), indent=1)
    try:
        write_bytes(path, data + b"\n")
    except OSError as error:
        raise LineError(f"{path}: cannot be written ({error}); make room on the disk or check its rights") from error
