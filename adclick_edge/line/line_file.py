"""Read ``line.toml``: everything wrong with it is said at once, before the daemon opens a socket."""

import os
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from adclick_edge.errors import ConfigError, LineError
from adclick_edge.line.config import (
    Alarms,
    Camera,
    Limits,
    Line,
    LineConfig,
    Name,
    Product,
    Routing,
    Security,
    Shift,
)
from adclick_edge.line.curve import ServerKeys
from adclick_edge.line.endpoints import Address, bind_address, collide, http_address
from adclick_edge.line.example_file import example_line_file
from adclick_edge.line.typed_tables import TableReader, as_written, did_you_mean

__all__ = ["example_line_file", "read_line_file", "state_folder"]

S = TypeVar("S", bound=msgspec.Struct)
MAX_FILE_BYTES = 1 << 20
MAX_PROBLEMS = 10

NAME_WORDS = "1 to 64 letters, digits and _ . -, the first a letter or digit"
WORDS = {
    "bind": "ipc://PATH or tcp://ADDRESS:PORT",
    "monitor": "ipc://PATH or tcp://ADDRESS:PORT",
    "http": "ADDRESS:PORT, as in 127.0.0.1:8600",
    "product": f"a product's name in quotes: {NAME_WORDS}",
    "starts": "a local time in quotes, 00:00 to 23:59",
}
SINGLE: dict[str, type[msgspec.Struct]] = {
    "line": Line,
    "limits": Limits,
    "security": Security,
    "routing": Routing,
    "alarms": Alarms,
    "shift": Shift,
}
NAMED: dict[str, type[msgspec.Struct]] = {"products": Product, "cameras": Camera}


def read_line_file(path: Path) -> LineConfig:
    """Read and check the file; relative paths in it are taken from its folder, host names are resolved.

    ConfigError lists up to ten problems, each with table, key, value and what is allowed.
    """
    raw = _load(path)
    base = path.absolute().parent
    reader = TableReader(_path_hook(base), WORDS, _homes())
    problems = reader.problems

    def single(struct: type[S], name: str) -> S:
        return reader.read(struct, raw.get(name, {}), name) or struct()

    for key in raw.keys() - SINGLE.keys() - NAMED.keys():
        hint = did_you_mean(key, [*SINGLE, *NAMED])
        home = _homes().get(key)
        problems.append(f"{key} = {as_written(raw[key])}: " + (f"belongs in [{home}]" if home else f"unknown{hint}"))
    line, limits, security = single(Line, "line"), single(Limits, "limits"), single(Security, "security")
    routing, alarms, shift = single(Routing, "routing"), single(Alarms, "alarms"), single(Shift, "shift")
    products: dict[str, Product] = _named(reader, raw, "products", Product)
    cameras: dict[str, Camera] = _named(reader, raw, "cameras", Camera)

    security = msgspec.structs.replace(security, keys=base / security.keys)
    line = _with_addresses(line, security, base, problems)
    _check_products(products, line.state, problems)
    _check_cameras(cameras, _names(raw, "products"), line.answer_margin_ms, problems)
    _check_folder("line", "state", line.state, problems)
    _check_folder("routing", "spool", routing.spool, problems)
    _check_folder("shift", "reports", shift.reports, problems)
    if security.curve:
        try:
            ServerKeys.load(security.keys)
        except LineError as error:
            problems.append(f"[security] keys = {as_written(str(security.keys))}: {error}")
    for start in _doubles(shift.starts):
        problems.append(f"[shift] starts: {as_written(start)} is named twice; name it once")
    if problems:
        raise ConfigError(_report(path, problems))
    return LineConfig(
        line=line,
        limits=limits,
        security=security,
        products=products,
        cameras=cameras,
        routing=routing,
        alarms=alarms,
        shift=shift,
    )


def state_folder(path: Path) -> Path:
    """The folder of the daemon's state and control socket; nothing else in the file needs to be right.

    A daemon that runs can be told things although, say, a bundle it was started with is gone. ConfigError.
    """
    table = _load(path).get("line", {})
    reader = TableReader(_path_hook(path.absolute().parent), WORDS, {})
    line = reader.read(Line, {"state": table["state"]} if isinstance(table, dict) and "state" in table else {}, "line")
    if reader.problems or line is None:
        raise ConfigError(_report(path, reader.problems))
    return path.absolute().parent / line.state


def _load(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as f:
            data = f.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; `adclick serve` needs a line.toml") from error
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}; name a line.toml that this user may read"
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_FILE_BYTES} bytes; this is no line.toml")
    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: line {line} is not UTF-8; save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deeply; this is no line.toml") from error


def _named(reader: TableReader, raw: Mapping[str, Any], group: str, struct: type[Any]) -> dict[str, Any]:
    tables = raw.get(group, {})
    if not isinstance(tables, dict):
        kind = "a list of tables ([[...]])" if isinstance(tables, list) else as_written(tables)
        reader.problems.append(f"[{group}] is {kind}: write a table [{group}.NAME] for each")
        return {}
    if not tables:
        reader.problems.append(f"[{group}.NAME] is missing: the line needs at least one")
    found = {}
    for name, table in tables.items():
        try:
            msgspec.convert(name, Name)
        except msgspec.ValidationError:
            reader.problems.append(f"[{group}.{as_written(name)}]: a name must have {NAME_WORDS}")
            continue
        read = reader.read(struct, table, f"{group}.{name}")
        if read is not None:
            found[name] = read
    return found


def _names(raw: Mapping[str, Any], group: str) -> list[str]:
    tables = raw.get(group, {})
    return list(tables) if isinstance(tables, dict) else []


def _with_addresses(line: Line, security: Security, base: Path, problems: list[str]) -> Line:
    """Check endpoints and give the line as it is to be bound. CURVE protects ZeroMQ's sockets, not the HTTP one."""
    if not line.bind:
        problems.append("[line] bind = []: must name at least one endpoint that cameras connect to")
    bound: list[tuple[str, Address]] = []

    def take(key: str, text: str, address: Address | str) -> str:
        if isinstance(address, str):
            problems.append(f"[line] {key} = {as_written(text)}: {address}")
            return text
        for other, taken in bound:
            if collide(address, taken):
                problems.append(f"[line] {key} = {as_written(text)}: the same address as {other}; choose another")
        bound.append((key, address))
        if address.remote and not security.plain_remote:
            if key == "http":
                problems.append(
                    f"[line] {key} = {as_written(text)}: other hosts can reach it, and CURVE does not protect HTTP; "
                    "bind to 127.0.0.1, or set [security] plain_remote = true where nobody else is on the network"
                )
            elif not security.curve:
                problems.append(
                    f"[line] {key} = {as_written(text)}: other hosts can reach it without proving a key; set [security] "
                    "curve = true (`adclick keys new`), bind to ipc:// or 127.0.0.1, or set plain_remote = true where "
                    "nobody else is on the network"
                )
        return address.text

    bind = tuple(take(f"bind[{i}]", text, _checked(text, base)) for i, text in enumerate(line.bind))
    monitor = line.monitor and take("monitor", line.monitor, _checked(line.monitor, base))
    http = line.http and take("http", line.http, _checked(line.http, None))
    return msgspec.structs.replace(line, bind=bind, monitor=monitor, http=http, state=base / line.state)


def _checked(text: str, base: Path | None) -> Address | str:
    """The address, or what is wrong with it."""
    try:
        return http_address(text) if base is None else bind_address(text, base)
    except ValueError as error:
        return str(error)


def _check_products(products: Mapping[str, Product], state: Path, problems: list[str]) -> None:
    owners: dict[str, str] = {}
    for name, product in products.items():
        if problem := _bundle_problem(product.bundle, state / "bundles" / name):
            problems.append(f"[products.{name}] bundle = {as_written(str(product.bundle))}: {problem}")
        for code in _doubles(product.codes):
            problems.append(f"[products.{name}] codes: {as_written(code)} is named twice; name it once")
        for code in dict.fromkeys(product.codes):
            if code in owners:
                problems.append(
                    f"[products.{name}] codes: {as_written(code)} chooses [products.{owners[code]}] already; "
                    "a code can choose one product only"
                )
            owners.setdefault(code, name)


def _bundle_problem(bundle: Path, kept: Path) -> str | None:
    """A line that ran keeps copies, and must start again from them though somebody has tidied the bundle away."""
    try:
        if not bundle.exists() and kept.is_dir() and any(kept.iterdir()):
            return None
        if bundle.is_dir():
            return None if (bundle / "manifest.json").is_file() else "a folder without manifest.json is no bundle"
        if bundle.is_file():
            return None
        if bundle.exists():
            return "must be a bundle: a folder or a zip file"
    except OSError as error:
        return f"cannot be looked at: {error.strerror}"
    return "no such bundle; name the folder or zip that `adclick bank` or `adclick export` wrote"


def _check_cameras(cameras: Mapping[str, Camera], products: list[str], margin_ms: float, problems: list[str]) -> None:
    for name, camera in cameras.items():
        if products and camera.product not in products:
            problems.append(
                f"[cameras.{name}] product = {as_written(camera.product)}: no [products.{camera.product}]"
                + did_you_mean(camera.product, products)
            )
        if camera.deadline_ms <= margin_ms:
            problems.append(
                f"[cameras.{name}] deadline_ms = {camera.deadline_ms}: must be more than [line] answer_margin_ms = "
                f"{margin_ms}, or no frame could ever be judged"
            )


def _check_folder(table: str, key: str, folder: Path | None, problems: list[str]) -> None:
    if folder is not None and os.path.lexists(folder) and not folder.is_dir():
        problems.append(f"[{table}] {key} = {as_written(str(folder))}: is there, but is no folder; choose another")


def _path_hook(base: Path) -> Any:
    def hook(kind: type, value: Any) -> Path:
        if kind is not Path or not isinstance(value, str) or not value.strip() or "\0" in value:
            raise ValueError("no path")
        try:
            return base / Path(value).expanduser()
        except RuntimeError as error:  # no home to put for ~
            raise ValueError("no home") from error

    return hook


def _homes() -> dict[str, str]:
    """Of each key that stands in one table only, that table."""
    tables = {**SINGLE, **{f"{group}.NAME": struct for group, struct in NAMED.items()}}
    places = [(field.name, table) for table, struct in tables.items() for field in msgspec.structs.fields(struct)]
    often = Counter(key for key, _ in places)
    return {key: table for key, table in places if often[key] == 1}


def _doubles(values: Iterable[str]) -> list[str]:
    return [value for value, times in Counter(values).items() if times > 1]


def _report(path: Path, problems: list[str]) -> str:
    lines = [f"{path}: {problem}" for problem in problems[:MAX_PROBLEMS]]
    if len(problems) > MAX_PROBLEMS:
        lines.append(f"{path}: and {len(problems) - MAX_PROBLEMS} more")
    return "\n".join(lines)
