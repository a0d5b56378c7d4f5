"""Files that are never seen half-written: write aside, fsync, rename."""

import ctypes
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["atomic_folder", "fsync_folder", "replacing", "sha256_file", "write_bytes", "write_text"]


def fsync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable (a rename is not, until its folder is synced)."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of ``path`` when the block succeeds, and is removed when it fails.

    A reader sees the old bytes or the new ones, whenever the power fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, whole or not at all."""
    with replacing(path) as f:
        f.write(data)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; on success it takes the place of ``path``, on error it is removed.

    A folder that stood at ``path`` is exchanged for the new one in one step where the system can (Linux), so that a
    reader always finds one of the two. The old one is then removed: a reader that opens the folder once, and its files
    relative to it, never mixes the two, but may find a file of the old one gone and should then open the folder again.
    A link at ``path`` is followed. NotADirectoryError if a file stands there.
    """
    if path.is_symlink():
        path = path.resolve()
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; a folder cannot take its place: remove it or choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{path.name}.new.", dir=path.parent))
    try:
        yield new
        for file in sorted(new.rglob("*")):
            if file.is_file():
                with open(file, "rb") as f:
                    os.fsync(f.fileno())
            elif file.is_dir():
                fsync_folder(file)
        fsync_folder(new)
        os.chmod(new, 0o755)
        if not path.exists():
            os.replace(new, path)
        elif not _exchange(new, path):
            _swap_by_renames(new, path)
        fsync_folder(path.parent)
    finally:
        # Holds the new folder after a failure, the old one after an exchange, nothing otherwise.
        shutil.rmtree(new, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Let two names change places in one step; False where kernel or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    at_fdcwd, rename_exchange = -100, 2
    done: int = renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange)
    return done == 0


def _swap_by_renames(new: Path, path: Path) -> None:
    """Put ``new`` at ``path`` and the old folder at ``new``; the old one goes back if that fails half-way."""
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    try:
        os.replace(path, aside)
    except BaseException:
        aside.rmdir()
        raise
    try:
        os.replace(new, path)
    except BaseException:
        os.replace(aside, path)
        raise
    os.replace(aside, new)


def sha256_file(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
