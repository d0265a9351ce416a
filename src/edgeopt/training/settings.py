"""How a student is trained: every number that the loop goes by, checked when it is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from edgeopt.core import Array
from edgeopt.errors import UsageError

__all__ = ["PRECISIONS", "Augment", "TrainSettings"]

#: Inputs of one part of a batch, and a generator of its own -> the inputs to train on.
Augment: TypeAlias = Callable[[Mapping[str, Array], np.random.Generator], Mapping[str, Array]]

#: Precision of the arithmetic -> accelerate's name of it.
PRECISIONS: Mapping[str, str] = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}

_INF = math.inf

#: Field -> lowest and highest value, whether a whole number, and what it means.
_LIMITS: Mapping[str, tuple[float, float, bool, str]] = {
    "epochs": (1, _INF, True, "passes over the data"),
    "steps": (1, _INF, True, "updates"),
    "batch_size": (1, _INF, True, "rows of one update"),
    "learning_rate": (0, _INF, False, "the highest learning rate"),
    "weight_decay": (0, _INF, False, "the decay of weights"),
    "warmup": (0, 1, False, "a share of the updates"),
    "hold": (0, 1, False, "a share of the updates"),
    "floor": (0, 1, False, "a share of the learning rate"),
    "clip": (0, _INF, False, "the largest norm of the gradient"),
    "accumulation": (1, _INF, True, "pieces of one update"),
    "patience": (1, _INF, True, "evaluations without gain"),
    "evaluate_every": (1, _INF, True, "updates"),
    "checkpoint_every": (1, _INF, True, "updates"),
    "log_every": (1, _INF, True, "updates"),
    "seed": (0, 2**63 - 1, True, "a whole number from 0 on"),
    "diverged_factor": (1, _INF, False, "a multiple of the first losses"),
    "diverged_steps": (1, _INF, True, "updates"),
}

#: Limits that are themselves too low.
_ABOVE = frozenset({"learning_rate", "clip", "diverged_factor"})

#: What can differ between two runs of one and the same training.
_ASIDE = frozenset({"checkpoint", "checkpoint_every", "cache_teacher", "augment"})


@dataclass(frozen=True)
class TrainSettings:
    """How long, how fast, how precisely; exactly one of ``epochs`` and ``steps`` is to be given.

    ``batch_size`` counts the rows of one update: over all processes, and over the ``accumulation``
    pieces in which each computes its share. The learning rate rises over ``warmup`` (a share of
    all updates), holds over ``hold``, then falls along a cosine to ``floor`` of itself. ``clip`` is
    the largest norm of the gradient (``None``: any). ``patience`` is how many evaluations without
    gain end the training early (``None``: none do). ``evaluate_every``, ``checkpoint_every`` and
    ``log_every`` count updates; ``None`` is an epoch, an evaluation, and a 400th of the whole.

    ``precision`` other than ``fp32`` is mixed precision and needs a GPU; ``device`` is ``auto`` or
    ``cpu``. ``checkpoint`` is a folder in which the run can be taken up again, ``cache_teacher``
    one for the teacher's answers. ``augment`` changes inputs as they are drawn. A loss that stays
    above ``diverged_factor`` times the first ones for ``diverged_steps`` updates ends the training.

    Raises UsageError naming the value and its limits.
    """

    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    hold: float = 0.45
    floor: float = 0.0
    clip: float | None = 1.0
    accumulation: int = 1
    precision: str = "fp32"
    patience: int | None = None
    evaluate_every: int | None = None
    seed: int = 0
    checkpoint: Path | None = None
    checkpoint_every: int | None = None
    log_every: int | None = None
    augment: Augment | None = field(default=None, repr=False)
    cache_teacher: Path | None = None
    device: str = "auto"
    diverged_factor: float = 10.0
    diverged_steps: int = 200

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            given = "neither" if self.epochs is None else "both"
            raise UsageError(f"give epochs or steps, {given} were given")
        for name, (low, high, whole, meaning) in _LIMITS.items():
            _check(name, getattr(self, name), low, high, whole, meaning)
        if self.warmup + self.hold > 1:
            raise UsageError(
                f"warmup {self.warmup:g} and hold {self.hold:g} are shares of all updates and "
                f"add up to {self.warmup + self.hold:g}; give at most 1 together"
            )
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision {self.precision!r}; use {', '.join(PRECISIONS)}")
        if self.device not in ("auto", "cpu"):
            raise UsageError(f"device {self.device!r} to train on; use auto or cpu")
        if self.accumulation > self.batch_size:
            raise UsageError(
                f"a batch of {self.batch_size} rows cannot be computed in {self.accumulation} "
                "pieces; give an accumulation of at most the batch size"
            )
        if self.augment is not None and self.cache_teacher is not None:
            raise UsageError(
                "the teacher's answers cannot be cached while augmentation changes what it sees; "
                "leave out one of the two"
            )

    def describe(self) -> dict[str, str]:
        """Everything that the course of the training depends on, by name."""
        found = {
            name: repr(getattr(self, name))
            for name in sorted(self.__dataclass_fields__)
            if name not in _ASIDE
        }
        if self.augment is not None:
            module = getattr(self.augment, "__module__", "")
            named = getattr(self.augment, "__qualname__", type(self.augment).__qualname__)
            found["augment"] = f"{module}:{named}"
        return found


def _check(name: str, value: object, low: float, high: float, whole: bool, meaning: str) -> None:
    if value is None and name not in ("batch_size", "learning_rate"):
        return
    kinds = (int,) if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not math.isfinite(value):
        raise UsageError(f"{name} {value!r}; it is {meaning}: give a {'whole ' * whole}number")
    above = name in _ABOVE
    if value < low or value > high or (above and value <= low):
        bounds = f"{'above' if above else 'from'} {low:g}"
        bounds += "" if high == _INF else f" to {high:g}"
        raise UsageError(f"{name} {value:g}; it is {meaning}: give one {bounds}")
