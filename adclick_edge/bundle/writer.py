"""Writing a bundle so that it is complete or not there."""

import shutil
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import adclick_edge
from adclick_edge.bundle.archive import add_file, ordered, zip_aside
from adclick_edge.bundle.manifest import (
    SCHEMA_VERSION,
    FileEntry,
    Manifest,
    encode_manifest,
    parse_manifest,
    seal,
    version_of,
)
from adclick_edge.bundle.names import CALIBRATION, MANIFEST, REGIONS, SETTINGS, name_problem
from adclick_edge.bundle.settings import encode_settings
from adclick_edge.errors import BundleError
from adclick_edge.files import atomic_folder, sha256_file

__all__ = ["write_bundle"]

_COMPUTED = ("schema_version", "version", "files", "adclick_edge_version", "manifest_sha256")


def write_bundle(
    path: Path | str,
    manifest_fields: Mapping[str, object],
    files: Mapping[str, bytes | Path],
    *,
    calibration: object = None,
    regions: object = None,
) -> Path:
    """Write a bundle to ``path``: a folder, or a zip where the name ends with ``.zip``. Returns ``path``.

    ``manifest_fields`` are the keys of ``Manifest`` that only the caller knows; schema version, version, files,
    the release and the checksum are filled in here, and ``created_utc`` unless given. ``files`` maps names inside
    the bundle to their bytes, or to the file to copy. ``calibration`` and ``regions`` are JSON objects or structs.

    A bundle at ``path`` is replaced; anything else that stands there is left alone and refused. A failure at any
    moment leaves what was there. The same fields and files give the same bytes, zip included.

    Raises BundleError for wrong fields, names or sources.
    """
    path = Path(path)
    settings = {CALIBRATION: calibration, REGIONS: regions}
    as_zip = path.suffix.lower() == ".zip"
    _check_target(path, as_zip)
    _check_names(path, files)
    encoded = {name: encode_settings(body, f"{path}: {name}") for name, body in settings.items() if body is not None}
    if not as_zip:
        with atomic_folder(path) as folder:
            _fill(folder, path, manifest_fields, files, encoded)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        folder = Path(scratch)
        manifest = _fill(folder, path, manifest_fields, files, encoded)
        with zip_aside(path) as archive:
            for name in ordered([*manifest.files, *encoded], MANIFEST):
                add_file(archive, name, folder / name)
    return path


def _check_target(path: Path, as_zip: bool) -> None:
    if as_zip:
        if path.is_dir():
            raise BundleError(f"{path}: is a folder, but the name asks for a zip; choose another name")
        return
    if not path.exists() and not path.is_symlink():
        return
    if path.is_symlink() or not path.is_dir():
        raise BundleError(f"{path}: exists and is not a folder; choose another name, or one ending with .zip")
    if not (path / MANIFEST).is_file() and any(path.iterdir()):
        raise BundleError(f"{path}: exists and is not a bundle, so it will not be replaced; choose another folder")


def _check_names(path: Path, files: Mapping[str, bytes | Path]) -> None:
    for name in files:
        if problem := name_problem(name):
            raise BundleError(f"{path}: {problem}")
        if name == MANIFEST:
            raise BundleError(f"{path}: {MANIFEST} is made from manifest_fields; leave it out of files")
        if name in SETTINGS:
            raise BundleError(f"{path}: give {name} as {name.removesuffix('.json')}=, not among files")


def _fill(
    folder: Path,
    path: Path,
    manifest_fields: Mapping[str, object],
    files: Mapping[str, bytes | Path],
    settings: Mapping[str, bytes],
) -> Manifest:
    if wrong := [key for key in _COMPUTED if key in manifest_fields]:
        raise BundleError(f"{path}: {wrong[0]} is computed; leave it out of manifest_fields")
    entries: dict[str, FileEntry] = {}
    for name in sorted(files):
        target = folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            source = files[name]
            if isinstance(source, Path):
                shutil.copyfile(source, target)
            else:
                target.write_bytes(source)
        except OSError as e:
            raise BundleError(f"{path}: {name} cannot be written: {e}") from e
        entries[name] = FileEntry(sha256=sha256_file(target), size_bytes=target.stat().st_size)
    fields = {
        "schema_version": SCHEMA_VERSION,
        "version": version_of(entries),
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        **manifest_fields,
        "files": {name: {"sha256": entry.sha256, "size_bytes": entry.size_bytes} for name, entry in entries.items()},
        "adclick_edge_version": adclick_edge.__version__,
    }
    manifest = seal(fields, str(path))
    data = encode_manifest(manifest)
    parse_manifest(data, str(path))  # a text or number that JSON takes but no reader accepts is found here, not later
    (folder / MANIFEST).write_bytes(data)
    for name, encoded in settings.items():
        (folder / name).write_bytes(encoded)
    return manifest
