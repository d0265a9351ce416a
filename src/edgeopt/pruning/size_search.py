"""How much to prune for a model of a wanted size or speed: a search over the ratio.

A target is what is to be left: of parameters, FLOPs, bytes or latency, as a share of the original
or in its own unit. Shares shrink in steps of whole channels and heads, so the search is for the
ratio whose result is within 2% of the target, and where no step falls there, for the nearest step
that does not exceed it.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from edgeopt.core import Progress, format_bytes
from edgeopt.errors import SourceError, UsageError
from edgeopt.modules.counting import count
from edgeopt.modules.model import TorchModel
from edgeopt.pruning.result import Pruning

__all__ = ["TOLERANCE", "Found", "Kind", "Reading", "SizeTarget", "parse_target", "search_target"]

Kind: TypeAlias = Literal["params", "flops", "bytes", "latency"]

#: How near to the target is near enough, as a share of it.
TOLERANCE = 0.02

#: Models made at most. One that is timed is exported first, which is most of the work.
_STEPS = 16
_TIMED_STEPS = 9
_FINEST = 1 / 4096
_MOST = 0.99

_SI = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_UNITS: Mapping[str, Mapping[str, float]] = {
    "params": _SI,
    "flops": _SI,
    "bytes": {
        **{f"{unit}b": factor for unit, factor in _SI.items()},
        "": 1.0,
        "kib": 2.0**10,
        "mib": 2.0**20,
        "gib": 2.0**30,
    },
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6},
}
_NUMBER = re.compile(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-zµ]*)", re.IGNORECASE)


@dataclass(frozen=True)
class SizeTarget:
    """What is to be left: ``value`` is a share of the original where ``relative``, else elements,
    FLOPs of one sample, bytes of weights, or seconds."""

    kind: Kind
    value: float
    relative: bool

    def __str__(self) -> str:
        wanted = f"{self.value:g}" if self.relative else _written(self.kind, self.value)
        return f"{self.kind}={wanted}"


@dataclass(frozen=True)
class Reading:
    """A model's measure, and that as a share of the original's (of one run, where it varies)."""

    value: float
    share: float


@dataclass(frozen=True)
class Found:
    """The ratio to prune with, what it leaves, and what there is to say about it."""

    ratio: float
    reading: Reading
    notes: tuple[str, ...] = ()


def parse_target(text: str) -> SizeTarget:
    """``params=0.5``, ``flops=10M``, ``bytes=2MB``, ``latency=0.6`` or ``latency=5ms``.

    A number below 1 without a unit is the share of the original to be left. Raises UsageError for
    anything else.
    """
    kind, equals, wanted = text.partition("=")
    kind = kind.strip().lower()
    if not equals or kind not in _UNITS:
        raise UsageError(f"target {text!r}; use one of {', '.join(f'{k}=...' for k in _UNITS)}")
    found = _NUMBER.fullmatch(wanted.strip())
    units = _UNITS[kind]
    unit = found.group(2).lower() if found else ""
    value = float(found.group(1)) if found else 0.0
    relative = unit == "" and value < 1
    named = [name for name in units if name]
    if found is None or not (relative or unit in units):
        raise UsageError(f"target {text!r}; use a share below 1, or a number in {', '.join(named)}")
    value *= 1.0 if relative else units[unit]
    if not 0 < value < math.inf or (unit == "" and value == 1):
        raise UsageError(f"target {text!r}; use a share above 0 and below 1, or an amount above 0")
    return SizeTarget(kind, value, relative)  # type: ignore[arg-type]


def search_target(
    model: TorchModel,
    target: SizeTarget,
    prune: Callable[[TorchModel, float], Pruning],
    *,
    latency: Callable[[TorchModel], Reading] | None = None,
    progress: Progress | None = None,
) -> Found:
    """The ratio at which ``prune`` leaves what the target says, within 2% of it.

    ``prune`` is called on deep copies; ``model`` stays as it is. ``latency`` measures a model
    beside the original. Where whole channels step over the target, the result is the nearest
    below, with a note that says by how much.

    Raises UsageError for a target that the original meets already, or that cannot be reached: it
    says what can; SourceError as ``prune`` does.
    """
    search = _RatioSearch(model, target, prune, _meter(model, target, latency), progress)
    return search.run()


def _meter(
    model: TorchModel, target: SizeTarget, latency: Callable[[TorchModel], Reading] | None
) -> Callable[[TorchModel], Reading]:
    if target.kind == "latency":
        if latency is None:
            raise UsageError(f"target {target}: latency cannot be measured here; use flops")
        return latency
    name = {"params": "parameters", "flops": "flops", "bytes": "nbytes"}[target.kind]
    original = float(getattr(count(model), name))
    if not original:
        raise SourceError(f"target {target}: the model has no {target.kind} that can be counted")

    def read(changed: TorchModel) -> Reading:
        value = float(getattr(count(changed), name))
        return Reading(value, value / original)

    return read


class _RatioSearch:
    """Ratios tried, and the nearest that leave too much and no more than wanted."""

    def __init__(
        self,
        model: TorchModel,
        target: SizeTarget,
        prune: Callable[[TorchModel, float], Pruning],
        read: Callable[[TorchModel], Reading],
        progress: Progress | None,
    ) -> None:
        self.model, self.target, self.prune, self.read = model, target, prune, read
        self.progress = progress
        self.tried = 0
        self.steps = _TIMED_STEPS if target.kind == "latency" else _STEPS

    def run(self) -> Found:
        wanted = self.target.value
        whole = 1.0 if self.target.relative else self._size(self._at(0.0))
        if whole <= wanted:
            raise UsageError(
                f"target {self.target}: the model has {self._named(whole)} already; give less"
            )
        above, below = (0.0, whole), _MOST
        best: Found | None = None
        ratio = 1 - math.sqrt(wanted / whole)  # what shrinks on both sides goes with the square
        while self.tried < self.steps and below - above[0] > _FINEST:
            reading = self._at(ratio)
            size = self._size(reading)
            if abs(size - wanted) <= TOLERANCE * wanted:
                return Found(ratio, reading)
            if size > wanted:
                above = (ratio, size)
            else:
                below, best = ratio, Found(ratio, reading)
            ratio = (above[0] + below) / 2
        best = best or self._least(wanted)
        size = self._size(best.reading)
        note = (
            f"target {self.target}: whole channels leave {self._named(size)},"
            f" {1 - size / wanted:.1%} below it, or {self._named(above[1])}"
        )
        return replace(best, notes=(note,))

    def _least(self, wanted: float) -> Found:
        """What is left where all goes that can."""
        reading = self._at(_MOST)
        size = self._size(reading)
        if size > wanted * (1 + TOLERANCE):
            raise UsageError(
                f"target {self.target} cannot be reached: the most that can go leaves"
                f" {self._named(size)}; give that or more"
            )
        return Found(_MOST, reading)

    def _size(self, reading: Reading) -> float:
        return reading.share if self.target.relative else reading.value

    def _at(self, ratio: float) -> Reading:
        if self.progress is not None:
            self.progress(f"target {self.target}: ratio {ratio:.3f}", self.tried / self.steps)
        changed = replace(self.model, module=copy.deepcopy(self.model.module))
        if ratio > 0:
            try:
                self.prune(changed, ratio)
            except SourceError:
                # So little that no whole channel goes is a step too; nothing at all is not.
                if ratio >= _MOST:
                    raise
        self.tried += 1
        return self.read(changed)

    def _named(self, size: float) -> str:
        if self.target.relative:
            return f"{size:.3g} of the {self.target.kind}"
        return _written(self.target.kind, size)


def _written(kind: str, value: float) -> str:
    if kind == "latency":
        return f"{value * 1e3:.4g} ms"
    return format_bytes(int(value)) if kind == "bytes" else f"{value:,.0f}"
