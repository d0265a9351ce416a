"""Reading ``config.json`` by key: every value has a type and a range, or a FormatError says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.errors import FormatError, SourceError

__all__ = ["Config", "Dim"]

#: GGUF stores sizes as uint32; nothing that a configuration counts comes near.
_MOST = 2**31 - 1

#: What llama.cpp has room for.
_MOST_BLOCKS = 512


@dataclass(frozen=True)
class Dim:
    """A length that the configuration gives, with the key (or the product) it comes from."""

    value: int
    key: str

    def __str__(self) -> str:
        return f"{self.key} {self.value}"


class Config:
    """A JSON object of a configuration. A key that holds null counts as missing.

    ``within`` is the key under which it stands in the file, for messages; ``defaults`` are those
    of the model's class, for files that do not repeat them.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        file: Path,
        within: str = "",
        *,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        given = {key: value for key, value in values.items() if value is not None}
        self.values = {**(defaults or {}), **given}
        self.file, self.within = file, within

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def wrong(self, key: str, problem: str) -> FormatError:
        return FormatError(self.file, problem, field=self.path(key))

    def path(self, key: str) -> str:
        """The key as a message names it: ``rope_scaling.factor``."""
        return f"{self.within}.{key}" if self.within else key

    def refuse(self, key: str, why: str) -> SourceError:
        """A value that is well formed, and that the GGUF architecture cannot express."""
        return SourceError(
            f"{self.file}: {self.path(key)} is {_short(self.values.get(key))}; {why}"
        )

    def _found(self, key: str, default: Any) -> Any:
        value = self.values.get(key, default)
        if value is None:
            raise self.wrong(key, "is missing")
        return value

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        value = self._found(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(key, f"is {_short(value)}, a whole number was expected")
        if not least <= value <= _MOST:
            raise self.wrong(key, f"is {_short(value)}, it must be from {least} to {_MOST}")
        return value

    def dim(self, key: str, default: int | None = None) -> Dim:
        return Dim(self.integer(key, default), key)

    def blocks(self, key: str) -> int:
        """How many layers there are."""
        count = self.integer(key)
        if count > _MOST_BLOCKS:
            raise self.refuse(key, f"llama.cpp has room for {_MOST_BLOCKS} layers")
        return count

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number greater than zero."""
        value = self._found(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(key, f"is {_short(value)}, a number was expected")
        # A JSON integer may have a thousand digits: float() would raise.
        if not 0 < value < 3e38 or not math.isfinite(value):
            raise self.wrong(key, f"is {_short(value)}, it must be finite and above 0")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._found(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, f"is {_short(value)}, true or false was expected")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._found(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, f"is {_short(value)}, a text was expected")
        return value

    def one_of(self, key: str, allowed: Sequence[str]) -> str:
        """A text that has to be one of few, as llama.cpp's architecture computes nothing else."""
        value = self.text(key)
        if value not in allowed:
            raise self.refuse(key, f"llama.cpp computes {' or '.join(allowed)} here")
        return value

    def numbers(self, key: str, count: int) -> list[float]:
        values = self.items(key)
        if len(values) != count:
            raise self.wrong(key, f"has {len(values)} values, {count} were expected")
        inner = Config({f"{key}[{i}]": v for i, v in enumerate(values)}, self.file, self.within)
        return [inner.number(name) for name in inner.values]

    def items(self, key: str) -> list[Any]:
        value = self._found(key, None)
        if not isinstance(value, list):
            raise self.wrong(key, f"is {_short(value)}, a list was expected")
        return value

    def inner(self, key: str, *, defaults: Mapping[str, Any] | None = None) -> Config:
        value = self._found(key, None)
        if not isinstance(value, dict):
            raise self.wrong(key, f"is {_short(value)}, an object was expected")
        return Config(value, self.file, self.path(key), defaults=defaults)


def _short(value: object) -> str:
    # repr of an integer of more than 4300 digits raises.
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
