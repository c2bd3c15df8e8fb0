"""Frozen records of plain data: lists are read as tuples, types are checked, unknown keys name the nearest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from openmvit.errors import UserError, did_you_mean

_R = TypeVar("_R")


def settle(record: Any) -> None:
    """Turn the lists in a frozen dataclass into tuples and check every field against its annotation.

    Raises:
        UserError: naming the first field of another type and what it accepts.
    """
    for name, hint in get_type_hints(type(record)).items():
        value = _tuples(getattr(record, name))
        object.__setattr__(record, name, value)
        if not _is(value, hint):
            accepted = ", ".join(get_args(hint)) if get_origin(hint) is Literal else _words(hint)
            raise UserError(f"{name} is {value!r}", f"Accepted: {accepted}")


def from_fields(kind: type[_R], fields: Mapping[str, Any], what: str) -> _R:
    """A record from plain data.

    Args:
        what: how a message calls the record.
    Raises:
        UserError: if a key is no field, naming the nearest one.
    """
    names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in fields:
        if key not in names:
            raise UserError(f"{what} has no field {key!r}", did_you_mean(key, names))
    return kind(**fields)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def _is(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; whole numbers are numbers, but yes and no are none."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in parts
    if origin in (Union, UnionType):
        return any(_is(value, part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if parts[-1] is Ellipsis:
            return all(_is(v, parts[0]) for v in value)
        return len(value) == len(parts) and all(_is(v, part) for v, part in zip(value, parts, strict=True))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def _words(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        size = "" if parts[-1] is Ellipsis else f" of {len(parts)}"
        return f"a list{size}, each {_words(parts[0])}"
    return names.get(hint) or " or ".join(_words(part) for part in get_args(hint)) or getattr(hint, "__name__", "data")
