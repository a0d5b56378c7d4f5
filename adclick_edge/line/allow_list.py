"""Which public key may be which camera: one line each, ``CAMERA KEY``, in a small text file."""

import fcntl
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from zmq.utils import z85

from adclick_edge.errors import LineError
from adclick_edge.files import write_text
from adclick_edge.line.config import Name

__all__ = ["ALLOW_LIST", "AllowList", "allow", "allowed", "check_camera_name", "check_key", "revoke"]

ALLOW_LIST = "cameras.allow"
HEAD = "# CAMERA PUBLIC_KEY, written by `adclick keys allow`\n"
MAX_FILE_BYTES = 1 << 20
MAX_ENTRIES = 4096

_KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")

Signature = tuple[int, int, int]


def check_key(text: str, what: str) -> bytes:
    """The 32 bytes of a key in its printable form (Z85, 40 characters). LineError that begins with ``what``."""
    try:
        if _KEY.fullmatch(text):
            return z85.decode(text.encode())
    except struct.error:  # five characters that stand for more than 32 bits
        pass
    raise LineError(f"{what}: no key; copy all 40 characters of a .public file")


def check_camera_name(camera: str) -> None:
    """LineError if line.toml could not name a camera so."""
    try:
        msgspec.convert(camera, Name)
    except msgspec.ValidationError as error:
        raise LineError(
            f"{camera!r}: no camera's name; 1 to 64 letters, digits and _ . - are allowed, the first a letter or digit"
        ) from error


def allowed(folder: Path) -> dict[str, str]:
    """Camera by public key (40 characters). A missing file allows nobody; a malformed one is a LineError."""
    path = folder / ALLOW_LIST
    try:
        with open(path, "rb") as f:
            data = f.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise LineError(f"{path}: cannot be read: {error.strerror}; it must belong to the daemon's user") from error
    if len(data) > MAX_FILE_BYTES:
        raise LineError(f"{path}: larger than {MAX_FILE_BYTES} bytes; this is no list of keys")
    cameras: dict[str, str] = {}
    for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{path}: line {number}"
        parts = line.split()
        if len(parts) != 2:
            raise LineError(f"{where}: must be a camera and its public key; mend or remove the line")
        camera, key = parts
        check_camera_name(camera)
        check_key(key, where)
        if cameras.setdefault(key, camera) != camera:
            raise LineError(f"{where}: this key is {cameras[key]}'s already; a key can be one camera only")
        if len(cameras) > MAX_ENTRIES:
            raise LineError(f"{path}: more than {MAX_ENTRIES} keys; remove those that are not used")
    return cameras


def allow(folder: Path, camera: str, public_key: str) -> None:
    """Let whoever proves ``public_key`` be ``camera``; a camera may have several keys. LineError."""
    check_camera_name(camera)
    check_key(public_key, public_key)
    with _locked(folder):
        cameras = allowed(folder)
        owner = cameras.setdefault(public_key, camera)
        if owner != camera:
            raise LineError(
                f"this key is {owner}'s already; revoke it there first: `adclick keys revoke FOLDER {owner}`"
            )
        _write(folder, cameras)


def revoke(folder: Path, camera: str, public_key: str | None = None) -> int:
    """Forget one key of a camera, or all; the number of keys. LineError if there was none."""
    with _locked(folder):
        cameras = allowed(folder)
        kept = {k: c for k, c in cameras.items() if c != camera or (public_key is not None and k != public_key)}
        if len(kept) == len(cameras):
            named = ", ".join(sorted(set(cameras.values()))) or "none"
            raise LineError(f"{folder}: no such key of {camera} is allowed; cameras with keys: {named}")
        _write(folder, kept)
    return len(cameras) - len(kept)


class AllowList:
    """The list as a daemon asks it: read again when the file changed, kept as it was while the file is malformed."""

    def __init__(self, folder: Path) -> None:
        """LineError if the list cannot be used at the start."""
        self._path = folder / ALLOW_LIST
        self._folder = folder
        self._seen = self._signature()
        self._cameras = {z85.decode(key.encode()): camera for key, camera in allowed(folder).items()}
        self.problem: str | None = None
        """Why the file as it is now is not in use."""

    def camera_of(self, key: bytes) -> str | None:
        """The camera that these 32 bytes prove to be."""
        self._refresh()
        return self._cameras.get(key)

    def _refresh(self) -> None:
        signature = self._signature()
        if signature == self._seen:
            return
        try:
            cameras = {z85.decode(key.encode()): camera for key, camera in allowed(self._folder).items()}
        except LineError as error:
            self.problem = str(error)
        else:
            self._cameras, self.problem = cameras, None
        self._seen = signature

    def _signature(self) -> Signature | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size


def _write(folder: Path, cameras: dict[str, str]) -> None:
    lines = sorted(f"{camera} {key}\n" for key, camera in cameras.items())
    write_text(folder / ALLOW_LIST, HEAD + "".join(lines))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two who change the list at once must not lose one of the changes."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise LineError(f"{folder}: {error.strerror}; `adclick keys new {folder}` makes a folder of keys") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
