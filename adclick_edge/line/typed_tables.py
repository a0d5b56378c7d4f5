"""TOML tables to structs, with every problem found at once, named by table, key, value and what is allowed."""

import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
import msgspec.inspect as inspect

__all__ = ["TableReader", "as_written", "did_you_mean"]

S = TypeVar("S", bound=msgspec.Struct)
MAX_SHOWN = 80


class TableReader:
    """Reads tables into structs and collects what is wrong with them in ``problems``."""

    def __init__(self, hook: Callable[[type, Any], Any], words: Mapping[str, str], homes: Mapping[str, str]) -> None:
        """``hook`` converts values of types TOML does not know, as `msgspec.convert` wants it.

        ``words`` says what a key allows where its pattern would not mean much to people; ``homes`` names the table
        that each key belongs to, for keys that stand in a wrong one.
        """
        self.problems: list[str] = []
        self._hook = hook
        self._words = words
        self._homes = homes

    def read(self, struct: type[S], raw: object, table: str) -> S | None:
        """The table as a struct. A value with a problem counts as its default; None where there is none."""
        if not isinstance(raw, dict):
            self.problems.append(f"{table} = {as_written(raw)}: must be a table, headed by a line [{table}]")
            return None
        fields = {field.name: field for field in msgspec.structs.fields(struct)}
        for key in raw.keys() - fields.keys():
            self.problems.append(f"[{table}] {key} = {as_written(raw[key])}: {self._stray(key, fields)}")
        values: dict[str, object] = {}
        whole = True
        for name, field in fields.items():
            if name not in raw:
                if field.required:
                    whole = False
                    self.problems.append(f"[{table}] {name} is missing: {self._allowed(name, field.type)}")
                continue
            try:
                values[name] = self._value(raw[name], field.type)
            except ValueError as error:
                whole = whole and not field.required
                place, found = error.args
                allowed = self._allowed(name, field.type, item=bool(place))
                self.problems.append(f"[{table}] {name}{place} = {as_written(found)}: {allowed}")
        return struct(**values) if whole else None

    def _value(self, raw: object, kind: Any) -> object:
        """ValueError(index, value) of the part that is wrong."""
        if isinstance(inspect.type_info(kind), inspect.VarTupleType) and isinstance(raw, list):
            for place, item in enumerate(raw):
                self._convert([item], kind, f"[{place}]", item)
        return self._convert(raw, kind, "", raw)

    def _convert(self, raw: object, kind: Any, place: str, shown: object) -> object:
        try:
            if isinstance(raw, float) and not math.isfinite(raw):
                raise ValueError("not finite")
            return msgspec.convert(raw, kind, dec_hook=self._hook)
        except (ValueError, OverflowError) as error:  # msgspec.ValidationError is a ValueError
            raise ValueError(place, shown) from error

    def _stray(self, key: str, fields: Iterable[str]) -> str:
        if key in self._homes:
            return f"unknown here; it belongs in [{self._homes[key]}]"
        return f"unknown key{did_you_mean(key, fields)}"

    def _allowed(self, name: str, kind: Any, *, item: bool = False) -> str:
        info = inspect.type_info(kind)
        if isinstance(info, inspect.VarTupleType) and (item or name not in self._words):
            info = info.item_type
            inner = self._words.get(name) or _describe(info)
            return f"must be {inner}" if item else f"must be a list, each {inner}"
        if isinstance(info, inspect.VarTupleType):
            return f"must be a list, each {self._words[name]}"
        return f"must be {self._words.get(name) or _describe(info)}"


def _describe(info: inspect.Type) -> str:
    match info:
        case inspect.UnionType():
            return _describe(next(t for t in info.types if not isinstance(t, inspect.NoneType)))
        case inspect.IntType():
            return f"a whole number{_bounds(info.ge, info.le)}"
        case inspect.FloatType():
            return f"a number{_bounds(info.ge, info.le)}"
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType():
            return "one of " + ", ".join(as_written(value) for value in info.values)
        case inspect.StrType():
            if info.max_length is not None:
                return f"a text in quotes, {info.min_length or 0} to {info.max_length} characters"
            return "a text in quotes"
        case inspect.CustomType():
            return "a path in quotes"
    raise NotImplementedError(f"no words for {info}")


def _bounds(least: float | None, most: float | None) -> str:
    parts = []
    if least is not None:
        parts.append(f"at least {least}")
    if most is not None:
        parts.append(f"at most {most}")
    return ", " + " and ".join(parts) if parts else ""


def as_written(value: object) -> str:
    """The value as TOML writes it, cut after `MAX_SHOWN` characters."""
    match value:
        case bool() | str():
            text = json.dumps(value, ensure_ascii=False)
        case list():
            text = "[" + ", ".join(map(as_written, value)) + "]"
        case dict():
            text = "{" + ", ".join(f"{key} = {as_written(item)}" for key, item in value.items()) + "}"
        case _:
            text = str(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"``, or all that is known where nothing is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(names)}" if names else ""
