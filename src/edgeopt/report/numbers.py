"""Numbers as a person reads them, each with the place in the document that it comes from.

Whatever shows a number makes it here: so that text, Markdown and page say the same, and so that a
number on the page can be held against the document (a :class:`Number` carries the JSON pointer,
RFC 6901, of the value behind it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "SHAPES",
    "Number",
    "Phrase",
    "Said",
    "count",
    "exactly",
    "number",
    "plain",
    "pointer",
    "printable",
    "quantity",
    "rate",
    "scale_of",
    "shorten",
    "span",
]


@dataclass(frozen=True)
class Number:
    """``text`` is what is shown, ``value`` what the document holds at ``key``.

    ``shape`` names how the one is made of the other: see :data:`SHAPES`. ``scale`` is what the
    text's number is to be multiplied by where its unit stands further on: "4.09 to 4.13 ms".
    """

    text: str
    key: str
    value: float
    shape: str = "value"
    scale: float = 1.0


class Said(str):
    """Words that the document gave, as a name or a reason: whatever digits are in them are no
    numbers of the report."""

    __slots__ = ()


#: Words with numbers among them.
Phrase: TypeAlias = "tuple[str | Number, ...]"

#: What the shown number is of the document's: to check the one against the other.
SHAPES: Mapping[str, Callable[[float], float]] = {
    "value": lambda value: value,
    "inverse": lambda value: 1.0 / value,
    "percent": lambda value: 100.0 * value,
    # an error's amplitude, as a percentage of the signal's, from its decibels
    "amplitude": lambda value: 100.0 * 10.0 ** (-value / 20.0),
}

#: Units and their larger and smaller sisters, largest first: (factor, name).
_SCALES: Mapping[str, Sequence[tuple[float, str]]] = {
    "B": ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
    "J": ((1e3, "kJ"), (1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ")),
}


def scale_of(largest: float, unit: str) -> tuple[float, str]:
    """(factor, unit) that values up to ``largest`` are best read in: 0.0041 s in (1e-3, "ms")."""
    scales = _SCALES.get(unit)
    if scales is None:
        return 1.0, unit
    # 999.6 ms would be shown as 1000 ms: it is a second
    fits = (pair for pair in scales if abs(largest) >= pair[0] * 0.9995)
    return next(fits, (1.0, "s") if largest == 0 and unit == "s" else scales[-1])


def quantity(value: float, unit: str, digits: int = 3) -> str:
    """``value`` with ``digits`` significant digits and a unit that fits it: 0.0041 s is 4.10 ms."""
    if not math.isfinite(value):
        return _odd(value)
    factor, name = scale_of(value, unit)
    shown = _digits(value / factor, digits, whole=factor == 1.0 and unit == "B")
    return f"{shown} {name}" if name else shown


def exactly(value: float, unit: str) -> str:
    """Every digit of a whole number, in groups of three: 23,104,512 B."""
    return f"{value:,.0f} {unit}".strip()


def number(value: float, key: str, unit: str = "", shape: str = "value") -> Number:
    """A :class:`Number` in the form its shape asks for."""
    return Number(_FORMS[shape](value, unit), key, value, shape)


def count(value: int, key: str, shape: str = "value") -> Number:
    """A whole number, every digit of it."""
    return Number(f"{value:,}", key, value, shape)


def span(low: float, high: float, low_key: str, high_key: str, unit: str) -> Phrase:
    """Two numbers and the one unit of both: "4.09 to 4.13 ms"."""
    factor, name = scale_of(high, unit)
    ends = [
        Number(_digits(value / factor, 3), key, value, "value", factor)
        for value, key in ((low, low_key), (high, high_key))
    ]
    return (ends[0], " to ", ends[1], f" {name}".rstrip())


def rate(shown: Number, unit: str = "") -> Phrase:
    """A rate as a bare number, its unit after it where no heading says it."""
    bare = Number(quantity(shown.value, ""), shown.key, shown.value)
    return (bare, unit) if unit else (bare,)


def plain(phrase: Phrase) -> str:
    """The words alone."""
    return "".join(part if isinstance(part, str) else part.text for part in phrase)


def pointer(*path: str | int) -> str:
    """The JSON pointer of a place in the document (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def printable(words: str) -> str:
    """One line of characters that can be shown: a name may hold escape sequences and worse."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(words.split()))


def shorten(name: str, width: int) -> str:
    """The head and the tail of a name that is too long, never more than ``width`` characters."""
    name = printable(name)
    if len(name) <= width:
        return name
    width = max(width, 4)
    tail = min(width // 2, 16)
    return f"{name[: width - tail - 1]}…{name[-tail:]}"


def _odd(value: float) -> str:
    return "not a number" if math.isnan(value) else ("∞" if value > 0 else "-∞")


def _digits(value: float, digits: int, whole: bool = False) -> str:
    """So many significant digits, or all of the whole part where that has more: 1,227."""
    if value == 0 or whole:
        return f"{value:,.0f}"
    before = math.floor(math.log10(abs(value))) + 1
    rounded = round(value, max(0, digits - before))
    # 9.996 has one digit before the point, and 10.0 has two
    before = math.floor(math.log10(abs(rounded))) + 1 if rounded else before
    return f"{rounded:,.{max(0, digits - before)}f}"


def _times(factor: float) -> str:
    """Two digits or three; close to one, as many as it takes not to say 1."""
    if factor >= 9.95:
        return f"{factor:,.0f}x"
    if factor >= 1.095:
        return f"{factor:.1f}x"
    return f"{factor:.3f}x" if 0.995 < factor < 1.005 else f"{factor:.2f}x"


def _percent(share: float) -> str:
    """Rounded down: 99.97% of the answers being the same is not all of them."""
    value = 100.0 * share
    if not math.isfinite(value):
        return _odd(value)
    shown = math.floor(value * 10 + 1e-9) / 10
    shown = 99.9 if shown == 100.0 and share < 1.0 else shown
    return f"{shown:.0f}%" if shown == round(shown) else f"{shown:.1f}%"


def _inverse(value: float, unit: str) -> str:
    return _times(1.0 / value)


_FORMS: Mapping[str, Callable[[float, str], str]] = {
    "value": lambda value, unit: _times(value) if unit == "ratio" else quantity(value, unit),
    "inverse": _inverse,
    "percent": lambda value, unit: _percent(value),
    "amplitude": lambda value, unit: f"{_digits(100 * 10 ** (-value / 20), 2)}%",
}
