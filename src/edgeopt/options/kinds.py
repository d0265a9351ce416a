"""Kinds of values that options take, and how a value of each kind is read.

Reading is lenient where people are (one text where several may stand, a numpy integer), and never
guesses: a truth value is no number, bytes are no path.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "ANY",
    "CODE",
    "CODE_OR_PATH",
    "DATA",
    "EXTERNAL",
    "FLAG",
    "FUNCTION",
    "METRICS",
    "NAMES",
    "NUMBER",
    "PATH",
    "PATHS",
    "PLAN",
    "SOURCE",
    "SOURCES",
    "TEXT",
    "TEXTS",
    "WHOLE",
    "WHOLES",
    "Takes",
    "choice",
    "is_module",
]


@dataclass(frozen=True)
class Takes:
    """A kind of value: what it is called, and how one is read.

    ``read`` gives the value as the function wants it, and raises TypeError or ValueError for what
    is of another kind. ``choices`` are all there are, where that can be said.
    """

    what: str
    read: Callable[[Any], Any]
    choices: tuple[Any, ...] = ()
    named: str = ""


def _path(value: Any) -> Any:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise TypeError
    if not text:
        raise ValueError("it is empty")
    if "\0" in text:
        raise ValueError("it holds a null byte")
    return value if isinstance(value, str) or hasattr(value, "with_suffix") else text


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return str(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        raise TypeError
    return int(operator.index(value))


def _number(value: Any) -> float:
    if isinstance(value, (bool, str, bytes)) or type(value).__name__ in ("bool", "bool_"):
        raise TypeError
    if getattr(value, "shape", ()) != ():
        raise TypeError
    number = float(value)
    return value if isinstance(value, (int, float)) else number


def _flag(value: Any) -> bool:
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):
        raise TypeError
    return bool(value)


def _sequence(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple, range)) and type(value).__name__ != "ndarray":
        raise TypeError
    return tuple(value)


def _texts(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(map(_text, _sequence(value)))


def _wholes(value: Any) -> tuple[int, ...]:
    try:
        return (_whole(value),)
    except TypeError:
        return tuple(map(_whole, _sequence(value)))


def _called(value: Any) -> Any:
    if not callable(value):
        raise TypeError
    return value


def _names(value: Any) -> Any:
    if not isinstance(value, Mapping) or not all(
        isinstance(text, str) for pair in value.items() for text in pair
    ):
        raise TypeError
    return value


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _data(value: Any) -> Any:
    if _is_path(value):
        return str(os.fspath(_path(value)))
    if isinstance(value, type) or not (
        callable(value) or hasattr(value, "__iter__") or hasattr(value, "__getitem__")
    ):
        raise TypeError
    if isinstance(value, (bytes, bytearray, memoryview, set, frozenset)):
        raise TypeError
    return value


def is_module(value: Any) -> bool:
    """Without importing torch: whoever has a module has imported it."""
    return not isinstance(value, type) and any(
        base.__module__ == "torch.nn.modules.module" and base.__name__ == "Module"
        for base in type(value).__mro__
    )


def _code(value: Any) -> Any:
    return _text(value) if isinstance(value, str) else _called(value)


def _code_or_path(value: Any) -> Any:
    return str(os.fspath(_path(value))) if _is_path(value) else _code(value)


def _codes(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str) or callable(value):
        return (_code(value),)
    return tuple(map(_code, _sequence(value)))


def _source(value: Any) -> Any:
    """A path; or something that :mod:`edgeopt.verbs.in_memory` knows what to do with."""
    if _is_path(value):
        return _path(value)
    if value is None or isinstance(value, (bool, int, float, complex, bytes, set, frozenset, type)):
        raise TypeError
    return value


def _paths(value: Any) -> tuple[Any, ...]:
    return (_path(value),) if _is_path(value) else tuple(map(_path, _sequence(value)))


def _sources(value: Any) -> tuple[Any, ...]:
    if _is_path(value) or is_module(value):
        return (_source(value),)
    return tuple(map(_source, _sequence(value)))


def _plan(value: Any) -> Any:
    if type(value).__module__ == "edgeopt.core.plan" and type(value).__name__ == "Plan":
        return value
    return _path(value)


def choice(*known: Any) -> Takes:
    """One of ``known``."""

    def read(value: Any) -> Any:
        found = value if isinstance(value, str) else _whole(value)
        if found not in known:
            raise ValueError
        return found

    return Takes(f"one of {', '.join(map(repr, known))}", read, known)


def _external(value: Any) -> Any:
    return value if isinstance(value, str) else _whole(value)


PATH = Takes("a path", _path)
PATHS = Takes("paths", _paths)
TEXT = Takes("a text", _text)
TEXTS = Takes("a text or several", _texts)
WHOLE = Takes("a whole number", _whole)
WHOLES = Takes("a whole number or several", _wholes)
NUMBER = Takes("a number", _number)
FLAG = Takes("True or False", _flag)
FUNCTION = Takes("a function", _called)
DATA = Takes(
    "a path, 'module:callable', arrays by input name, an array, or an iterable of either",
    _data,
    named="one",
)
CODE = Takes("'package.module:callable', a class, a function or a torch module", _code, named="one")
CODE_OR_PATH = Takes(
    "a path, 'module:callable', a class or a torch module", _code_or_path, named="one"
)
METRICS = Takes("names of metrics, 'module:callable' or functions", _codes, named="each")
SOURCE = Takes("a path, a torch module or tensors by name", _source)
SOURCES = Takes("paths", _sources)
PLAN = Takes("a path, or a Plan", _plan)
EXTERNAL = Takes("'auto', 'always', 'never' or a number of bytes", _external)
NAMES = Takes("names by name", _names)
ANY = Takes("anything", lambda value: value)
