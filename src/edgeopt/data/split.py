"""Samples to calibrate on, and others, never seen then, to judge by."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

from edgeopt.data.samples import Samples
from edgeopt.data.synthetic import Hint, synthetic

__all__ = ["split"]


def split(
    samples: Samples, holdout: float = 0.25, *, hints: Mapping[str, Hint] | None = None
) -> tuple[Samples, Samples]:
    """(calibration, held out): disjoint, and the same every time.

    Every n-th sample is held out, n being ``1 / holdout`` rounded, so that data in the order of
    its classes stays mixed; at least one is. Fitted samples only (:meth:`Samples.fit`). A single
    sample cannot do both: it calibrates, and the held-out inputs are synthetic, of its shape,
    with ``hints``; the label says so.

    Raises:
        ValueError: ``holdout`` outside (0, 0.5], or samples that are not fitted to a model.
    """
    if not 0 < holdout <= 0.5:
        raise ValueError(f"holdout is {holdout}; use a share above 0 and up to 0.5")
    if not samples.inputs:
        raise ValueError("samples are not fitted to a model; call fit first")
    every = round(1 / holdout)
    count = samples.count
    if count is None:  # a generator: look far enough to see whether there is one to hold out
        seen = sum(1 for _ in itertools.islice(samples, every))
        count = seen if seen < every else None
    if count == 1:
        return samples, _made_up(samples, hints)
    last = every - 1 if count is None else min(every, count) - 1

    def held(index: int) -> bool:
        return index % every == last

    out = None if count is None else len(range(last, count, every))
    return (
        samples.select(
            lambda index: not held(index),
            None if count is None or out is None else count - out,
            f"{samples.label}: all rows but every {_ordinal(every)}",
        ),
        samples.select(held, out, f"{samples.label}: {_rows(last, every, count)}, held out"),
    )


def _made_up(samples: Samples, hints: Mapping[str, Hint] | None) -> Samples:
    feed = next(iter(samples))
    sizes = {
        dim: size
        for spec in samples.inputs
        for dim, size in zip(spec.shape, feed[spec.name].shape, strict=True)
        if isinstance(dim, str)
    }
    made = synthetic(samples.inputs, hints, sizes=sizes)
    label = f"{made.label}: {samples.label} has one sample, which calibrated"
    return replace(made, label=label)


def _ordinal(n: int) -> str:
    return {2: "2nd", 3: "3rd"}.get(n, f"{n}th")


def _rows(first: int, every: int, count: int | None) -> str:
    shown = list(range(first, count if count is not None else first + 4 * every, every))
    text = ", ".join(map(str, shown[:3]))
    return f"row{'s' if len(shown) > 1 else ''} {text}{', ...' if len(shown) > 3 else ''}"
