"""Addresses the daemon binds to: are they well-formed, who can reach them, do two of them collide?"""

import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MAX_IPC_PATH_BYTES", "Address", "bind_address", "collide", "http_address"]

MAX_IPC_PATH_BYTES = 107
"""Of a Unix socket's path on Linux."""

_ANY_HOST = frozenset({"*", "0.0.0.0", "::"})
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9])?\.?")


@dataclass(frozen=True)
class Address:
    text: str
    """As it should be bound: host names are replaced by addresses, relative paths by absolute ones."""
    remote: bool
    """Other hosts can reach it, if nothing on the way stops them."""
    host: str
    """Empty for ipc."""
    port: int
    """0: any free one."""


def bind_address(text: str, base: Path) -> Address:
    """Check an endpoint of the form ipc://PATH or tcp://HOST:PORT; paths are relative to ``base``.

    ValueError says what must be different, without naming the endpoint.
    """
    transport, separator, rest = text.partition("://")
    if not separator or transport not in ("ipc", "tcp"):
        raise ValueError("must be ipc://PATH or tcp://ADDRESS:PORT")
    if transport == "ipc":
        return Address(f"ipc://{_socket_path(rest, base)}", remote=False, host="", port=0)
    host, port = _split(rest, wildcard_port=True)
    host, remote = _numeric(host, interfaces=True)
    return Address(f"tcp://{_bracketed(host)}:{port or '*'}", remote=remote, host=host, port=port)


def http_address(text: str) -> Address:
    """Check HOST:PORT. ValueError as of `bind_address`."""
    host, port = _split(text, wildcard_port=False)
    host, remote = _numeric("0.0.0.0" if host == "*" else host, interfaces=False)
    return Address(f"{_bracketed(host)}:{port}", remote=remote, host=host, port=port)


def collide(a: Address, b: Address) -> bool:
    """Whether the second of the two could not be bound, or would take the place of the first."""
    if not a.host or not b.host:
        return a.text == b.text
    return a.port == b.port != 0 and (a.host == b.host or a.host in _ANY_HOST or b.host in _ANY_HOST)


def _socket_path(rest: str, base: Path) -> str:
    if rest.startswith("@"):
        return rest  # a name without a file
    if not rest or rest == "*" or "\0" in rest or rest.endswith("/"):
        raise ValueError("must name the socket's file: ipc:///run/adclick/line.ipc")
    path = str(base / rest)
    size = len(os.fsencode(path))
    if size > MAX_IPC_PATH_BYTES:
        raise ValueError(
            f"its path has {size} bytes; a socket's path has at most {MAX_IPC_PATH_BYTES}: choose a shorter"
        )
    return path


def _split(text: str, *, wildcard_port: bool) -> tuple[str, int]:
    host, _, digits = text.rpartition(":")
    if not host:
        raise ValueError("must end with an address and a port, as in 127.0.0.1:5555")
    if wildcard_port and digits == "*":
        digits = "0"
    if not (digits.isascii() and digits.isdigit()) or int(digits) > 65535:
        raise ValueError("its port must be a number from 1 to 65535 (0: any free one)")
    if host.startswith("[") and host.endswith("]"):
        inner = host[1:-1]
        if ":" in inner:
            return inner, int(digits)
    elif ":" not in host:
        return host, int(digits)
    raise ValueError("an IPv6 address must stand in brackets, as in [::1]:5555")


def _numeric(host: str, *, interfaces: bool) -> tuple[str, bool]:
    """The address a host name stands for, and whether other hosts can reach it. Interface names stay."""
    if host == "*":
        return host, True
    if interfaces and host in {name for _, name in socket.if_nameindex()}:
        return host, host != "lo"
    try:
        return host, not ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    # Nothing but a name may reach the resolver, which would take "127.1" or "0x7f000001" for an address too.
    if not _HOST_NAME.fullmatch(host) or re.fullmatch(r"[0-9.]+|0[xX][0-9A-Fa-f]+", host):
        raise ValueError("its host must be an IP address, a host name or *")
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(
            f"its host is no name that resolves here ({error}); write an IP address of this box"
        ) from error
    chosen = min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0]
    return str(chosen), not ipaddress.ip_address(str(chosen).partition("%")[0]).is_loopback


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
