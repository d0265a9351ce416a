"""How the text of a loss's option is read. Each raises ValueError saying what is wanted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

__all__ = ["above_zero", "count", "one_of", "word", "zero_or_more"]


def above_zero(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError("a finite number above 0")
    return value


def zero_or_more(text: str) -> float:
    """A finite number, 0 or above."""
    value = _number(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError("a finite number, 0 or above")
    return value


def count(text: str) -> int:
    """A whole number, 1 or above."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("a whole number, 1 or above")
    return int(text)


def word(text: str) -> str:
    """A name, as it stands."""
    if not text:
        raise ValueError("a name")
    return text


def one_of(*choices: str) -> Callable[[str], str]:
    """Reads one of ``choices``."""

    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(_or(choices))
        return text

    return read


def _or(choices: Sequence[str]) -> str:
    return " or ".join(choices)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number") from None
