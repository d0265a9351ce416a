"""Objects that a Python caller hands over, by the names they go by for the length of one call.

Everything behind a verb knows models, data and code as texts: a path, or ``module:callable``. What
has no such text, a loader or a class typed into a notebook, gets one (``python:Net``) that only
this process can resolve. Nothing is kept once the call is over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["add", "home_of", "is_given", "lookup", "scope", "stand_in"]

_PREFIX = "python:"


@dataclass
class _GivenObjects:
    objects: dict[str, Any] = field(default_factory=dict)
    homes: dict[Path, Path] = field(default_factory=dict)


_SCOPE: ContextVar[_GivenObjects | None] = ContextVar("given", default=None)


@contextmanager
def scope() -> Iterator[None]:
    """Names that :func:`add` gives out are good within the block. A verb called by a verb shares
    the outer one's."""
    if _SCOPE.get() is not None:
        yield
        return
    token = _SCOPE.set(_GivenObjects())
    try:
        yield
    finally:
        _SCOPE.reset(token)


def add(value: Any) -> str:
    """A name for an object, made of its own or its class's; one object has one name."""
    found = _SCOPE.get()
    assert found is not None, "objects are named within a call"
    for name, there in found.objects.items():
        if there is value:
            return name
    own = getattr(value, "__name__", None)
    word = own if isinstance(own, str) and own.isidentifier() else type(value).__name__
    base = name = f"{_PREFIX}{re.sub(r'[^0-9A-Za-z_]', '_', word)}"
    number = 1
    while name in found.objects:
        number += 1
        name = f"{base}_{number}"
    found.objects[name] = value
    return name


def is_given(name: str | None) -> bool:
    """Whether a text is the name of an object that this call was handed."""
    found = _SCOPE.get()
    return found is not None and name in found.objects


def lookup(name: str) -> Any:
    """The object of that name. KeyError where :func:`is_given` says no."""
    found = _SCOPE.get()
    if found is None:
        raise KeyError(name)
    return found.objects[name]


def stand_in(path: Path, home: Path) -> None:
    """``path`` holds, for this call, what lay in memory; what is made of it belongs beside
    ``home``."""
    found = _SCOPE.get()
    assert found is not None, "objects are named within a call"
    found.homes[path] = home


def home_of(path: Path) -> Path:
    """Beside what a file's products lie: itself, or what it stands in for."""
    found = _SCOPE.get()
    return path if found is None else found.homes.get(path, path)
