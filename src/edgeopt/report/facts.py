"""Where and how a document was measured, as named facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeopt.report.document import Document
from edgeopt.report.numbers import Number, Phrase, Said, count, number, pointer

__all__ = ["Fact", "environment_facts", "placement_facts", "settings_facts"]


@dataclass(frozen=True)
class Fact:
    """One line: a name, and what is known of it (``known``: whether anything is)."""

    name: str
    phrase: Phrase
    known: bool = True


#: Names of the environment that need saying better, and the units of their numbers.
_TITLES: Mapping[str, str] = {
    "cpu": "CPU",
    "gpu": "GPU",
    "gpus": "GPUs",
    "operating_system": "operating system",
    "libc": "C library",
    "cores_physical": "cores, physical",
    "features": "CPU features",
    "cores_usable": "cores usable",
    "cpu_limit": "container's CPU limit",
    "memory_total": "memory",
    "memory_limit": "container's memory limit",
    "load_1min": "load, one minute",
}
_UNITS: Mapping[str, str] = {
    "memory_total": "B",
    "memory_limit": "B",
    "memory_available": "B",
    "swap_used": "B",
    "seconds": "s",
    "turn": "s",
    "silence": "s",
    "time": "s",
}
_SUFFIXES: Mapping[str, str] = {"_s": "s", "_bytes": "B", "_mhz": "MHz", "_c": "°C", "_j": "J"}

#: Members shown of a list or a mapping before the rest is only counted.
_MOST = 40


def environment_facts(document: Document) -> tuple[Fact, ...]:
    """The machine and the versions; what could not be found out is said to be unavailable."""
    return tuple(_facts(document.results.environment, ("environment",)))


def settings_facts(document: Document) -> tuple[Fact, ...]:
    """What the measurement was asked for, and how it went about it."""
    return tuple(_facts(document.results.settings, ("settings",), "not set"))


def placement_facts(document: Document, subject: int) -> tuple[Fact, ...]:
    """What the runtime did with one artifact."""
    placement = document.results.subjects[subject].placement
    return tuple(_facts(placement, ("subjects", subject, "placement")))


def _facts(
    values: Mapping[str, Any], path: tuple[str | int, ...], unknown: str = "unavailable"
) -> Iterator[Fact]:
    for key, value in values.items():
        name = _TITLES.get(key) or _named(str(key))
        phrase = _phrase(value, (*path, key), _unit(str(key)))
        known = value not in ("unavailable", None)
        yield Fact(name, phrase if known else (unknown,), known)


def _named(key: str) -> str:
    """A key as words; the unit is said by the value."""
    suffix = next((s for s in _SUFFIXES if key.endswith(s)), "")
    return key.removesuffix(suffix).replace("_", " ")


def _unit(key: str) -> str:
    found = (unit for suffix, unit in _SUFFIXES.items() if key.endswith(suffix))
    return _UNITS.get(key) or next(found, "")


def _phrase(value: Any, path: tuple[str | int, ...], unit: str) -> Phrase:
    if isinstance(value, bool) or value is None:
        return ({True: "yes", False: "no", None: "unavailable"}[value],)
    if isinstance(value, int) and not unit:
        return (count(value, pointer(*path)),)
    if isinstance(value, (int, float)):
        return (number(float(value), pointer(*path), unit),)
    if isinstance(value, Mapping):
        return _joined([(f"{k}: ", v, (*path, k)) for k, v in value.items()], unit)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return _joined([("", v, (*path, i)) for i, v in enumerate(value)], unit)
    return (Said(value),)


def _joined(members: Sequence[tuple[str, Any, tuple[str | int, ...]]], unit: str) -> Phrase:
    said: list[str | Number] = []
    for label, value, path in members[:_MOST]:
        said += [", "] if said else []
        said += [
            *([Said(label)] if label else []),
            *_phrase(value, path, unit or _unit(str(path[-1]))),
        ]
    if len(members) > _MOST:
        said.append(", and more")
    return tuple(said) if said else ("none",)
