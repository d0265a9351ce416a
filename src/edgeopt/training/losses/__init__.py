"""What a student is trained on: losses by name, one file each.

A new one is a file here with a :class:`~edgeopt.training.losses.base.Loss` and a line in
``LOSSES``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgeopt.core.names import near
from edgeopt.errors import UsageError
from edgeopt.training.losses.attention import Attention
from edgeopt.training.losses.base import Batch, Loss
from edgeopt.training.losses.cosine import Cosine
from edgeopt.training.losses.hard_labels import HardLabels
from edgeopt.training.losses.hints import Hints
from edgeopt.training.losses.mse import MeanSquared
from edgeopt.training.losses.next_token import NextToken
from edgeopt.training.losses.soft_labels import SoftLabels

__all__ = ["LOSSES", "Batch", "Loss", "parse_losses"]

#: Name on the command line -> loss.
LOSSES: Mapping[str, type[Loss]] = {
    kind.kind: kind
    for kind in (SoftLabels, HardLabels, Hints, Attention, Cosine, MeanSquared, NextToken)
}


def parse_losses(specs: Sequence[str]) -> list[Loss]:
    """``NAME[=WEIGHT][,OPTION=VALUE]...`` each, as ``soft=0.9,T=4``. Without a weight: 1.

    Two of a kind need different outputs, and are then called ``NAME:OUTPUT``. Raises UsageError
    naming what there is.
    """
    losses = [_parse(spec) for spec in specs]
    names = [loss.name for loss in losses]
    for loss in losses:
        output = getattr(loss, "output", None)
        if names.count(loss.name) > 1 and output is not None:
            loss.name = f"{loss.name}:{output}"
    names = [loss.name for loss in losses]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"--loss {name} is given twice; give it once, or an output=NAME to each"
            )
    return losses


def _parse(spec: str) -> Loss:
    head, *parts = (part.strip() for part in spec.split(","))
    name, equals, weight = (piece.strip() for piece in head.partition("="))
    kind = LOSSES.get(name)
    if kind is None:
        raise UsageError(f"--loss {spec}: there is no loss {name!r}; {near(name, LOSSES)}")
    arguments: dict[str, Any] = {"weight": _weight(weight, spec)} if equals else {}
    for part in parts:
        key, _, value = (piece.strip() for piece in part.partition("="))
        option = kind.options.get(key)
        if option is None:
            raise UsageError(
                f"--loss {spec}: {name} has no option {key!r}; {near(key, kind.options)}"
            )
        if option.argument in arguments:
            raise UsageError(f"--loss {spec}: {key} is given twice")
        try:
            arguments[option.argument] = option.read(value)
        except ValueError as error:
            raise UsageError(f"--loss {spec}: {key}={value} is not {error}") from None
    return kind(**arguments)


def _weight(text: str, spec: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise UsageError(
            f"--loss {spec}: the weight {text!r} is no finite number above 0; leave a loss out "
            "instead of giving it none"
        )
    return weight
