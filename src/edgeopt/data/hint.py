"""What is known of an input's values before anybody gave any."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Hint"]


@dataclass(frozen=True)
class Hint:
    """What a model tells of one input's values.

    Integers: ``low <= value < high``; ``values`` are those that the graph compares a lone integer
    with (a sample rate). Floats: uniform from ``low`` to ``high``, or normal with ``mean`` and
    ``std`` (one number, or one for each channel on axis 1). ``kind`` names a use that values alone
    do not tell: ``mask`` (1 keep, 0 leave out), ``sound`` (a wave), ``state`` (what a recurrent
    network remembers). ``stride`` is how many of the input's cells lie
    under one cell of the network's coarsest map, along an axis; ``known`` sizes of axes (axis,
    size) that the first product with a weight asks for. ``begin`` and ``end`` are special
    tokens that every text starts and ends with.
    """

    low: float | None = None
    high: float | None = None
    kind: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    values: tuple[int, ...] = ()
    stride: int = 1
    known: tuple[tuple[int, int], ...] = ()
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
