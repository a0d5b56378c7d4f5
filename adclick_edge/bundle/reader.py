"""Opening a bundle: nothing is handed out before it was checked."""

import hashlib
import os
import tempfile
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from adclick_edge.bundle.archive import (
    add_bytes,
    copy_entry,
    extract_entry,
    folder_lock,
    open_zip,
    ordered,
    read_entry,
    zip_aside,
)
from adclick_edge.bundle.golden import GoldenFrame, golden_frames
from adclick_edge.bundle.manifest import MAX_MANIFEST_BYTES, FileEntry, Manifest, parse_manifest
from adclick_edge.bundle.names import (
    CALIBRATION,
    CLICK_GOLDEN,
    GOLDEN_FOLDER,
    MANIFEST,
    REGIONS,
    SETTINGS,
    regular_file,
)
from adclick_edge.bundle.settings import MAX_SETTINGS_BYTES, decode_settings, encode_settings
from adclick_edge.errors import BundleError
from adclick_edge.files import sha256_file, write_bytes

__all__ = ["Bundle", "read_bundle"]

_REPAIR = {
    CALIBRATION: "run `adclick calibrate` to set the thresholds again",
    REGIONS: "set the regions again with `adclick regions --set`, then run `adclick calibrate`",
}


def read_bundle(path: Path | str, *, unpack_to: Path | None = None, unread: Collection[str] = ()) -> "Bundle":
    """Open a bundle, folder or zip, after checking all of it.

    Checked: the manifest (schema, types, its own checksum), each listed file (present, regular, size, sha256), the
    checksums of ``calibration.json`` and ``regions.json``, and for a zip every entry before anything is unpacked.
    A zip is unpacked to a temporary folder (below ``unpack_to`` where given) that ``Bundle.close`` removes.
    ``unread`` names settings that are left alone until asked for: whoever replaces a damaged one must get this far.

    Raises BundleError that names the file, what is wrong with it and what to do.
    """
    try:
        real = Path(path).resolve(strict=True)  # once: a link that is turned to a new bundle later changes nothing here
    except (OSError, RuntimeError) as e:
        raise BundleError(f"{path}: there is no bundle here ({e}); check the path") from e
    if not real.is_dir() and not real.is_file():
        raise BundleError(f"{path}: is neither a folder nor a file; check the path")
    bundle = Bundle(real, *(_open_folder(real) if real.is_dir() else _open_zip(real, unpack_to)))
    try:
        bundle.check(unread=unread)
    except BaseException:
        bundle.close()
        raise
    return bundle


def _open_folder(path: Path) -> tuple[bytes, tempfile.TemporaryDirectory[str] | None, tuple[str, ...]]:
    return _read_manifest_file(path), None, ()


def _open_zip(path: Path, unpack_to: Path | None) -> tuple[bytes, tempfile.TemporaryDirectory[str], tuple[str, ...]]:
    scratch = tempfile.TemporaryDirectory(prefix="adclick-bundle-", dir=unpack_to)
    try:
        with open_zip(path) as archive:
            manifest_bytes = _read_manifest_entry(path, archive)
            manifest = parse_manifest(manifest_bytes, str(path))
            present = {info.filename: info.file_size for info in archive.infolist() if not info.is_dir()}
            for name, entry in manifest.files.items():
                if name not in present:
                    raise BundleError(f"{path}: {name} is missing from the zip; copy the bundle again")
                _check_size(path, name, entry, present[name])
                extract_entry(archive, name, Path(scratch.name) / name)
            unlisted = sorted(set(present) - set(manifest.files) - {MANIFEST, *SETTINGS})
    except BaseException:
        scratch.cleanup()
        raise
    return manifest_bytes, scratch, tuple(unlisted)


def _read_manifest_file(root: Path) -> bytes:
    if not (root / MANIFEST).exists():
        raise BundleError(f"{root}: {MANIFEST} is missing, so this is not a bundle or its copying was interrupted")
    file = regular_file(root, MANIFEST)
    with open(file, "rb") as f:
        return f.read(MAX_MANIFEST_BYTES + 1)


def _read_manifest_entry(path: Path, archive: Any) -> bytes:
    try:
        return read_entry(archive, MANIFEST, MAX_MANIFEST_BYTES)
    except KeyError:
        raise BundleError(
            f"{path}: {MANIFEST} is missing from the zip; pack the content of the bundle's folder, not the folder"
        ) from None


def _check_size(where: Path, name: str, entry: FileEntry, size_bytes: int) -> None:
    if size_bytes != entry.size_bytes:
        raise BundleError(
            f"{where}: {name} has {size_bytes} bytes, the manifest says {entry.size_bytes}; copy the bundle again"
        )


class Bundle:
    """An opened bundle; a context manager. ``read_bundle`` makes it.

    ``manifest`` and ``location`` (the folder or zip) do not change. ``unlisted`` names the files that were found but
    are neither listed nor settings: they are ignored.
    """

    def __init__(
        self,
        path: Path,
        manifest_bytes: bytes,
        scratch: tempfile.TemporaryDirectory[str] | None,
        unlisted: tuple[str, ...],
    ) -> None:
        self.location = path
        self._manifest_bytes = manifest_bytes
        self._scratch = scratch
        self._root = path if scratch is None else Path(scratch.name)
        self._closed = False
        self.unlisted = unlisted
        self.manifest: Manifest = parse_manifest(manifest_bytes, str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Bundle({str(self.location)!r}, version={self.manifest.version!r})"

    def close(self) -> None:
        """Remove what was unpacked. A closed bundle hands out nothing more."""
        self._closed = True
        if self._scratch is not None:
            self._scratch.cleanup()

    def check(self, *, unread: Collection[str] = ()) -> None:
        """Check every file once more but the ``unread`` settings, as ``read_bundle`` does. Raises BundleError."""
        self._check_open()
        for name, entry in self.manifest.files.items():
            file = regular_file(self._root, name)
            _check_size(self.location, name, entry, file.stat().st_size)
            self._check_hash(name, entry, sha256_file(file))
        for name in SETTINGS:
            if name not in unread:
                self._get(name)
        if self._scratch is None:
            self.unlisted = _unlisted(self._root, self.manifest)

    def read(self, name: str) -> bytes:
        """The bytes of a listed file, hashed again on the way, so that they are the ones the manifest speaks of."""
        data = self.path(name).read_bytes()
        entry = self.manifest.files[name]
        _check_size(self.location, name, entry, len(data))
        self._check_hash(name, entry, hashlib.sha256(data).hexdigest())
        return data

    def path(self, name: str) -> Path:
        """Where a listed file lies; for a zip only until ``close``. Raises BundleError for a name not listed."""
        self._check_open()
        if name not in self.manifest.files:
            raise BundleError(
                f"{self.location}: the bundle has no {name!r}; it has {', '.join(sorted(self.manifest.files))}"
            )
        return regular_file(self._root, name)

    def golden(self) -> list[GoldenFrame]:
        """The golden frames by name; empty where the bundle has none. Raises BundleError where they do not fit."""
        names = [name for name in self.manifest.files if name.startswith(GOLDEN_FOLDER) and name != CLICK_GOLDEN]
        return golden_frames({name: self.read(name) for name in names}, str(self.location))

    @property
    def calibration(self) -> dict[str, Any] | None:
        """The body of ``calibration.json`` as it is on disk now, its checksum verified; None where there is none."""
        return self._get(CALIBRATION)

    @property
    def regions(self) -> dict[str, Any] | None:
        """The body of ``regions.json`` as it is on disk now, its checksum verified; None where there is none."""
        return self._get(REGIONS)

    def set_calibration(self, body: object) -> None:
        """Replace ``calibration.json`` (a JSON object or struct) by one atomic rename, of the file or of the zip."""
        self._set(CALIBRATION, body)

    def set_regions(self, body: object) -> None:
        """Replace ``regions.json`` (a JSON object or struct) by one atomic rename, of the file or of the zip."""
        self._set(REGIONS, body)

    def _get(self, name: str) -> dict[str, Any] | None:
        self._check_open()
        where = f"{self.location}: {name}"
        if self._scratch is None:
            self._check_same(_read_manifest_file(self._root))
            if not (self._root / name).exists() and not (self._root / name).is_symlink():
                return None
            with open(regular_file(self._root, name), "rb") as f:
                return decode_settings(f.read(MAX_SETTINGS_BYTES + 1), where, _REPAIR[name])
        with open_zip(self.location) as archive:
            self._check_same(_read_manifest_entry(self.location, archive))
            if name not in archive.namelist():
                return None
            return decode_settings(read_entry(archive, name, MAX_SETTINGS_BYTES), where, _REPAIR[name])

    def _set(self, name: str, body: object) -> None:
        self._check_open()
        data = encode_settings(body, f"{self.location}: {name}")
        if self._scratch is None:
            with folder_lock(self._root):
                self._check_same(_read_manifest_file(self._root))
                write_bytes(self._root / name, data)
            return
        # A zip is read and written as a whole: without the lock two changes at once would lose one of them.
        with folder_lock(self.location.parent), open_zip(self.location) as archive:
            self._check_same(_read_manifest_entry(self.location, archive))
            kept = [info.filename for info in archive.infolist() if not info.is_dir()]
            with zip_aside(self.location) as new:
                for entry in ordered([*kept, name], MANIFEST):
                    if entry == name:
                        add_bytes(new, name, data)
                    else:
                        copy_entry(archive, new, entry)

    def _check_open(self) -> None:
        if self._closed:
            raise BundleError(f"{self.location}: this bundle was closed; open it again with read_bundle")

    def _check_same(self, manifest_bytes: bytes) -> None:
        # Thresholds of a bundle that took this one's place would be wrong for the graphs already loaded.
        if manifest_bytes != self._manifest_bytes:
            raise BundleError(f"{self.location}: another bundle took its place since it was opened; open it again")

    def _check_hash(self, name: str, entry: FileEntry, sha256: str) -> None:
        if sha256 != entry.sha256:
            raise BundleError(
                f"{self.location}: {name} was altered (its sha256 is {sha256[:12]}..., the manifest says "
                f"{entry.sha256[:12]}...); copy the bundle again"
            )


def _unlisted(root: Path, manifest: Manifest) -> tuple[str, ...]:
    known = {MANIFEST, *SETTINGS, *manifest.files}
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            relative = Path(folder, name).relative_to(root).as_posix()
            # Hidden names are those of files being written aside at this moment.
            if relative not in known and not name.startswith("."):
                found.append(relative)
    return tuple(sorted(found))
