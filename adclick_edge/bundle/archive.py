"""Zip files of bundles: written the same for the same content, read as if somebody hostile had made them."""

import fcntl
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from adclick_edge.bundle.names import name_problem
from adclick_edge.errors import BundleError
from adclick_edge.files import replacing

__all__ = [
    "add_bytes",
    "add_file",
    "copy_entry",
    "extract_entry",
    "folder_lock",
    "open_zip",
    "ordered",
    "read_entry",
    "zip_aside",
]

_MAX_ENTRIES = 10_000
_MAX_UNPACKED_BYTES = 16 << 30
# A bundle holds floats and PNGs, which hardly compress; zeros compress a thousandfold.
_MAX_RATIO = 100
_ALWAYS_ALLOWED_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip whose entries were checked; whatever zipfile raises inside becomes a BundleError naming ``path``.

    Refused before anything is unpacked: names outside the allow-list, doubles, links, encryption, methods other
    than stored and deflated, and sizes that only a zip bomb declares.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_entries(archive, path)
            yield archive
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        OSError,
        OverflowError,
        RuntimeError,
        ValueError,
        struct.error,
    ) as e:
        raise BundleError(f"{path}: the zip cannot be used: {e}; copy it again, or make room on the disk") from e


def _check_entries(archive: zipfile.ZipFile, path: Path) -> None:
    infos = archive.infolist()
    if len(infos) > _MAX_ENTRIES:
        raise BundleError(f"{path}: {len(infos)} entries, a bundle has at most {_MAX_ENTRIES}")
    seen: set[str] = set()
    for info in infos:
        name = info.orig_filename
        if problem := name_problem(name.removesuffix("/")):
            raise BundleError(f"{path}: {problem}; do not use this file")
        if name in seen:
            raise BundleError(f"{path}: {name} is in the zip twice; pack the bundle again")
        seen.add(name)
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise BundleError(f"{path}: {name} is a link or a special file; pack the bundle again from plain files")
        if info.flag_bits & 0x1:
            raise BundleError(f"{path}: {name} is encrypted; pack the bundle again without a password")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BundleError(f"{path}: {name} uses an unusual compression; pack the bundle again, stored or deflated")
    unpacked_bytes = sum(info.file_size for info in infos)
    allowed_bytes = min(_MAX_UNPACKED_BYTES, max(_ALWAYS_ALLOWED_BYTES, _MAX_RATIO * path.stat().st_size))
    if unpacked_bytes > allowed_bytes:
        raise BundleError(
            f"{path}: would unpack to {unpacked_bytes} bytes, more than the {allowed_bytes} plausible for its size; "
            "do not use this file"
        )


def read_entry(archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    """A small entry whole. Raises KeyError where there is none, BundleError where it is larger than ``max_bytes``."""
    info = archive.getinfo(name)
    if info.file_size > max_bytes:
        raise BundleError(f"{archive.filename}: {name} is larger than {max_bytes} bytes; this is not a bundle")
    return archive.read(info)


def extract_entry(archive: zipfile.ZipFile, name: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, open(target, "xb") as sink:
        shutil.copyfileobj(source, sink, _CHUNK_BYTES)


def _new_info(name: str, size_bytes: int) -> zipfile.ZipInfo:
    # Fixed date, system and mode: the same content gives the same bytes on every machine.
    info = zipfile.ZipInfo(name, date_time=_EPOCH)
    info.create_system = 3
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.file_size = size_bytes
    return info


def _add_stream(archive: zipfile.ZipFile, name: str, source: IO[bytes], size_bytes: int) -> None:
    with archive.open(_new_info(name, size_bytes), "w") as sink:
        shutil.copyfileobj(source, sink, _CHUNK_BYTES)


def add_file(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    with open(path, "rb") as source:
        _add_stream(archive, name, source, path.stat().st_size)


def add_bytes(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(_new_info(name, len(data)), data)


def copy_entry(source: zipfile.ZipFile, target: zipfile.ZipFile, name: str) -> None:
    info = source.getinfo(name)
    with source.open(info) as stream:
        _add_stream(target, name, stream, info.file_size)


@contextmanager
def zip_aside(path: Path) -> Iterator[zipfile.ZipFile]:
    """Yield an empty zip that takes the place of ``path``, durably, when the block ends well."""
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        yield archive


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold off other threads and processes that change files of ``folder`` under the same lock."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def ordered(names: Iterable[str], first: str) -> list[str]:
    """``first``, then the others by name: a reader meets the manifest before anything else."""
    return [first, *sorted(set(names) - {first})]
