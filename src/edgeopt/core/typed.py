"""A JSON document read back as the dataclasses that it was written from, held to their annotations.

A file may have been edited, cut or made by something else: what is not of the kind that the code
reckons with is refused here, by its place in the document, and nowhere later.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

__all__ = ["WrongPart", "read"]

#: Words for the numbers that JSON lacks.
_WORDS = frozenset({"inf", "-inf", "nan"})

#: Larger whole numbers than these count nothing: no runtime, no array and no chart holds them.
_LARGEST = 1 << 63

#: Characters of a wrong value that are shown.
_SHOWN = 40


class WrongPart(Exception):
    """A part of a document that is missing or of the wrong kind; the message names its place."""


def read(kind: Any, value: Any, place: str = "") -> Any:
    """``value``, as ``json`` parsed it, as a ``kind``: a dataclass or what its fields are made of
    (``str``, ``int``, ``float``, ``bool``, ``Any``, an optional, tuples, mappings by name).

    Floats may be spelt "inf", "-inf" and "nan". A field may be absent where the class has a
    default for it. Raises WrongPart.
    """
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, value, place)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else read(inner[0], value, place)
    if origin is tuple:
        return _read_tuple(inner, value, place)
    if origin is Sequence:
        return _read_tuple((inner[0], ...), value, place)
    if origin is Mapping:
        named = _require(value, dict, "an object", place)
        return {read(str, k, place): read(inner[1], v, f"{place}.{k}") for k, v in named.items()}
    return _read_plain(kind, value, place)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _read_fields(kind: Any, value: Any, place: str) -> Any:
    given = _require(value, dict, "an object", place)
    hints = _hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    at = f"{place}." if place else ""
    for name in given:
        if name not in fields:
            raise WrongPart(f"{at}{name} is nothing that belongs there")
    for name, field in fields.items():
        optional = field.default is not dataclasses.MISSING
        optional |= field.default_factory is not dataclasses.MISSING
        if name not in given and not optional:
            raise WrongPart(f"{at}{name} is missing")
    return kind(**{name: read(hints[name], v, f"{at}{name}") for name, v in given.items()})


def _read_tuple(inner: tuple[Any, ...], value: Any, place: str) -> tuple[Any, ...]:
    items = _require(value, list, "a list", place)
    if inner[-1] is Ellipsis:
        kinds = [inner[0]] * len(items)
    elif len(items) == len(inner):
        kinds = list(inner)
    else:
        raise WrongPart(f"{place} has {len(items)} parts, not {len(inner)}")
    pairs = zip(kinds, items, strict=True)
    return tuple(read(kind, item, f"{place}[{i}]") for i, (kind, item) in enumerate(pairs))


def _read_plain(kind: Any, value: Any, place: str) -> Any:
    if kind is float:
        if isinstance(value, str) and value in _WORDS:
            return float(value)
        _require(value, (int, float), "a number", place)
        if abs(value) >= 1e300 or not math.isfinite(value):  # a huge int is no float: first
            raise _wrong(place, value, "a number that JSON has")
        return value
    if kind is int:
        _require(value, int, "a whole number", place)
        if abs(value) >= _LARGEST:
            raise _wrong(place, value, "a count of anything")
        return value
    if kind is str:
        text = _require(value, str, "text", place)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise _wrong(place, value, "text") from None
        return text
    return _require(value, kind, "true or false", place)


def _require(value: Any, kind: Any, called: str, place: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _wrong(place, value, called)
    return value


def _wrong(place: str, value: Any, called: str) -> WrongPart:
    shown = ascii(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return WrongPart(f"{place or 'the document'} is {shown}, not {called}")
