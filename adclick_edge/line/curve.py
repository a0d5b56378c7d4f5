"""CURVE keys of the daemon and its cameras, as files, and how sockets take them.

::

    FOLDER of the daemon    server.public  server.secret  cameras.allow
    FOLDER of a camera      server.public (a copy)  CAMERA.public  CAMERA.secret
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from adclick_edge.errors import LineError
from adclick_edge.files import fsync_folder, write_text
from adclick_edge.line.allow_list import AllowList, allow, allowed, check_camera_name, check_key, revoke
from adclick_edge.line.authenticator import ZAP_DOMAIN, Authenticator

__all__ = [
    "SERVER",
    "AllowList",
    "Authenticator",
    "CameraKeys",
    "ServerKeys",
    "allow",
    "allowed",
    "connect_with_curve",
    "new_keys",
    "public_key_in",
    "revoke",
    "serve_with_curve",
]

SERVER = "server"
KEY_CHARS = 40


@dataclass(frozen=True)
class ServerKeys:
    """The daemon's pair, 40 printable characters each."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def load(cls, folder: Path) -> "ServerKeys":
        """LineError if the folder has no pair, or others could read or replace it."""
        secret = _secret(folder, SERVER, f"make one: `adclick keys new {folder}`")
        return cls(_public_of(secret), secret)


@dataclass(frozen=True)
class CameraKeys:
    """A camera's pair, and the public key of the daemon it trusts."""

    public: str
    server: str
    secret: str = field(repr=False)

    @classmethod
    def load(cls, folder: Path, camera: str | None = None) -> "CameraKeys":
        """``camera`` is needed where the folder holds keys of several. LineError if there is no fitting pair."""
        if camera is None:
            found = sorted(path.stem for path in folder.glob("*.secret") if path.stem != SERVER)
            if len(found) > 1:
                raise LineError(f"{folder}: keys of {', '.join(found)}; say which camera this is")
            camera = found[0] if found else "CAMERA"
        secret = _secret(folder, camera, f"make one: `adclick keys new {folder} --camera {camera}`")
        server = folder / f"{SERVER}.public"
        if not server.is_file():
            raise LineError(f"{server}: no such file; copy it from the daemon's folder of keys")
        return cls(_public_of(secret), public_key_in(server), secret)


def new_keys(folder: Path, name: str) -> str:
    """Make the pair ``name`` (a camera, or `SERVER`) in ``folder`` and return its public key.

    The folder is made with mode 0700. LineError if the pair is there already, or others may write to the folder.
    """
    check_camera_name(name)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_folder(folder)
    public_file, secret_file = folder / f"{name}.public", folder / f"{name}.secret"
    public, secret = _pair()
    if public_file.exists():
        raise LineError(f"{public_file} is there already; choose another folder, or remove the old pair first")
    try:
        fd = os.open(secret_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise LineError(
            f"{secret_file} is there already; choose another folder, or remove the old pair first"
        ) from error
    try:
        with os.fdopen(fd, "w") as f:
            f.write(f"{secret}\n")
            f.flush()
            os.fsync(f.fileno())
        write_text(public_file, f"{public}\n")
    except BaseException:
        secret_file.unlink()
        raise
    fsync_folder(folder)
    return public


def public_key_in(path: Path) -> str:
    """The public key a file holds. LineError."""
    if path.suffix == ".secret":
        raise LineError(f"{path} is a secret key; name the .public file beside it, and show the secret one to nobody")
    key = _read(path)
    check_key(key, str(path))
    return key


def serve_with_curve(socket: "zmq.Socket[bytes]", keys: ServerKeys | Path) -> None:
    """Let the socket take only clients that an `Authenticator` of its context accepts. Call it before bind."""
    if isinstance(keys, Path):
        keys = ServerKeys.load(keys)
    socket.curve_server = True
    socket.curve_secretkey = keys.secret.encode()
    socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    # Without this, ZeroMQ lets everybody in who knows the daemon's public key while no authenticator runs.
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def connect_with_curve(socket: "zmq.Socket[bytes]", keys: CameraKeys | Path) -> None:
    """Prove the camera's key, and talk to nobody but the daemon whose key it trusts. Call it before connect."""
    if isinstance(keys, Path):
        keys = CameraKeys.load(keys)
    socket.curve_serverkey = keys.server.encode()
    socket.curve_publickey = keys.public.encode()
    socket.curve_secretkey = keys.secret.encode()


def _pair() -> tuple[str, str]:
    """One in 85 public keys begins with ``-`` and would be taken for an option on a command line."""
    while True:
        public, secret = (key.decode() for key in zmq.curve_keypair())
        if public[0].isalnum():
            return public, secret


def _read(path: Path) -> str:
    try:
        with open(path, "rb") as f:
            return f.read(KEY_CHARS + 2).decode("ascii", errors="replace").strip()
    except OSError as error:
        raise LineError(
            f"{path}: cannot be read: {error.strerror}; it must belong to the user who runs this"
        ) from error


def _secret(folder: Path, name: str, remedy: str) -> str:
    path = folder / f"{name}.secret"
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise LineError(f"{path}: no such key; {remedy}") from error
    except OSError as error:
        raise LineError(f"{path}: {error.strerror}; keys must belong to the user who runs this") from error
    _check_folder(folder)
    if mode & 0o077:
        raise LineError(f"{path}: others may use it (mode {stat.S_IMODE(mode):04o}): `chmod 600 {path}`")
    key = _read(path)
    check_key(key, str(path))
    return key


def _public_of(secret: str) -> str:
    return zmq.curve_public(secret.encode()).decode()


def _check_folder(folder: Path) -> None:
    mode = folder.stat().st_mode
    if mode & 0o022:
        raise LineError(f"{folder}: others may replace keys here (mode {stat.S_IMODE(mode):04o}): `chmod 700 {folder}`")
