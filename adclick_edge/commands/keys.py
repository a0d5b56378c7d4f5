"""``adclick keys``: CURVE keys of the line daemon and its cameras, and which camera each key may be."""

import json
from pathlib import Path

from adclick_edge.errors import UsageError
from adclick_edge.line.allow_list import allow, allowed, revoke
from adclick_edge.line.curve import SERVER, new_keys, public_key_in

__all__ = ["run_allow", "run_list", "run_new", "run_revoke"]


def run_new(folder: Path, camera: str | None, json_output: bool) -> None:
    if camera == SERVER:
        raise UsageError(f"a camera cannot be called {SERVER!r} here: the daemon's keys are; choose another name")
    name = camera or SERVER
    public = new_keys(folder, name)
    if json_output:
        print(json.dumps({"folder": str(folder), "name": name, "public_key": public}))
        return
    print(public)
    print(f"{folder / name}.secret: show it to nobody")
    if camera is None:
        print(f"{folder / name}.public: copy it to each camera's folder of keys")
    else:
        print(f"at the daemon: adclick keys allow FOLDER {camera} '{public}'")


def run_allow(folder: Path, camera: str, key_or_file: str) -> None:
    allow(folder, camera, _public_key(key_or_file))
    print(f"{camera} is allowed from its next connection on")


def run_list(folder: Path, json_output: bool) -> None:
    cameras = allowed(folder)
    server = folder / f"{SERVER}.public"
    daemon = public_key_in(server) if server.is_file() else None
    if json_output:
        rows = [
            {"camera": camera, "public_key": key} for key, camera in sorted(cameras.items(), key=lambda kc: kc[::-1])
        ]
        print(json.dumps({"daemon": daemon, "allowed": rows}))
        return
    print(f"daemon {daemon or 'has no key here'}")
    for key, camera in sorted(cameras.items(), key=lambda kc: kc[::-1]):
        print(f"{camera} {key}")


def run_revoke(folder: Path, camera: str, key_or_file: str | None) -> None:
    gone = revoke(folder, camera, None if key_or_file is None else _public_key(key_or_file))
    print(f"{gone} key{'s' if gone > 1 else ''} of {camera} revoked from its next connection on; a connection that")
    print("stands is cut by restarting the daemon")


def _public_key(key_or_file: str) -> str:
    """A key may look like a path, so a file by that name goes first."""
    try:
        is_file = Path(key_or_file).is_file()
    except (OSError, ValueError):
        is_file = False
    if is_file:
        return public_key_in(Path(key_or_file))
    if key_or_file.endswith((".public", ".secret")):
        raise UsageError(f"{key_or_file}: no such file")
    return key_or_file
