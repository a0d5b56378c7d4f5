"""The two files of a bundle that people change: small JSON documents with a checksum of their own."""

import hashlib
from typing import Any

import msgspec

from adclick_edge.bundle.manifest import canonical_json
from adclick_edge.errors import BundleError

__all__ = ["MAX_SETTINGS_BYTES", "decode_settings", "encode_settings"]

MAX_SETTINGS_BYTES = 4 << 20


class _Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    body: dict[str, Any]


def encode_settings(body: object, where: str) -> bytes:
    """``{"sha256": ..., "body": ...}`` of a JSON object or of a struct; ``where`` names the file in errors.

    Raises BundleError for a body that is not a JSON object or holds what no reader would accept, such as NaN.
    """
    try:
        plain = canonical_json(msgspec.to_builtins(body))
        data = b'{"sha256":"%s","body":%s}\n' % (hashlib.sha256(plain).hexdigest().encode(), plain)
    except (TypeError, ValueError, RecursionError) as e:
        raise BundleError(f"{where}: the settings cannot be written as JSON: {e}") from e
    decode_settings(data, where)
    return data


def decode_settings(data: bytes, where: str, repair: str = "set it again") -> dict[str, Any]:
    """The body, once its checksum fits. Raises BundleError that starts with ``where`` and says to ``repair``."""
    if len(data) > MAX_SETTINGS_BYTES:
        raise BundleError(f"{where}: larger than {MAX_SETTINGS_BYTES} bytes; {repair}")
    try:
        settings = msgspec.json.decode(data, type=_Settings)
        actual = hashlib.sha256(canonical_json(settings.body)).hexdigest()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as e:
        raise BundleError(f"{where}: cannot be read: {e}; {repair}, or restore it from a backup") from e
    if settings.sha256 != actual:
        raise BundleError(
            f"{where}: its checksum does not fit its body, so it was altered by hand or damaged; "
            f"{repair}, or restore it from a backup"
        )
    return settings.body
