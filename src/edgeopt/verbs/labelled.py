"""Labelled data: what a model is fed, and what its answers are judged by.

One ``--data`` holds both: arrays that the model takes are its inputs, the others are targets. For
pairs (two sentences and how alike they are), an input ``NAME`` has a second array ``NAME_b``, and
every row is a pair.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import InputSpec, file_sha256
from edgeopt.data.fitting import fit_feeds, fixed_batch, order_names
from edgeopt.data.samples import Feed, Samples, load
from edgeopt.errors import InputsError

__all__ = ["SECOND", "Labelled", "read_labelled"]

#: The second of a pair: ``input_ids_b`` beside ``input_ids``.
SECOND = "_b"

#: Names that targets go by, the likeliest first, where there are several arrays beside the inputs.
_TARGETS = ("labels", "label", "targets", "target", "scores", "score", "y")


@dataclass(frozen=True)
class Labelled:
    """Feeds in the order that they are run in, and the targets of all rows.

    Of pairs, feed 2i is the first and feed 2i + 1 the second. ``targets`` are by name, joined
    along the leading axis, and cut where a last batch would not be full.
    """

    label: str
    opener: Callable[[], Iterator[Feed]] = field(repr=False)
    targets: Mapping[str, NDArray[Any]]
    paired: bool = False

    def feeds(self, limit: int | None = None) -> Iterator[Feed]:
        return itertools.islice(self.opener(), limit)

    @property
    def target(self) -> NDArray[Any] | None:
        """The one that answers are judged by; None where there is none, or no telling."""
        if len(self.targets) == 1:
            return next(iter(self.targets.values()))
        found = next((name for name in _TARGETS if name in self.targets), None)
        return None if found is None else self.targets[found]


def read_labelled(spec: str, inputs: Sequence[InputSpec]) -> Labelled:
    """``--data`` for a model with ``inputs``; gone through once here, and once for every use.

    Raises InputsError where an input is missing or does not fit, or where there are not as many
    targets as rows.
    """
    samples = load(spec)
    if samples.resolve is not None:  # a folder: its files' names decide what they are
        samples = samples.resolve([s.name for s in inputs])
    first = next(iter(samples), None)
    if first is None:
        raise InputsError(f"{samples.label} gives no samples; at least one is needed")
    label = f"{samples.label}{_digest(spec)}"
    names = _names(first, inputs, samples.label)
    paired = any(f"{given}{SECOND}" in first for given in names.values())
    sides = [names]
    if paired:
        # What both have in common (a mask that is all ones) need not be given twice.
        second = {n: f"{g}{SECOND}" if f"{g}{SECOND}" in first else g for n, g in names.items()}
        sides.append(second)
    batch = fixed_batch(first, inputs, names)
    used = {given for side in sides for given in side.values()}
    rows, targets = _targets(samples, used, next(iter(names.values()), ""), label)
    kept = rows - rows % batch
    for name, target in targets.items():
        if len(target) != rows:
            raise InputsError(f"{label}: {len(target)} {name} for {rows} samples; give one each")

    def opener() -> Iterator[Feed]:
        runs = [fit_feeds(iter(samples), inputs, side, batch, label) for side in sides]
        return itertools.chain.from_iterable(zip(*runs, strict=True))

    return Labelled(label, opener, {n: t[:kept] for n, t in targets.items()}, paired)


def _names(feed: Feed, inputs: Sequence[InputSpec], label: str) -> dict[str, str]:
    """Model input -> array. Arrays by position may have one more at the end: the target."""
    if len(feed) == len(inputs) + 1 and all(name.startswith("#") for name in feed):
        return {spec.name: f"#{i}" for i, spec in enumerate(inputs)}
    return order_names(tuple(feed), inputs, label)


def _targets(
    samples: Samples, used: set[str], counted: str, label: str
) -> tuple[int, dict[str, NDArray[Any]]]:
    """How many rows there are, and every array that is no input, whole."""
    rows = 0
    parts: dict[str, list[NDArray[Any]]] = {}
    for feed in samples:
        given = feed.get(counted)
        rows += len(given) if given is not None and given.ndim else 1
        for name, array in feed.items():
            if name not in used:
                parts.setdefault(name, []).append(np.atleast_1d(array))
    for name, arrays in parts.items():
        if len({array.shape[1:] for array in arrays}) > 1:
            raise InputsError(f"{label}: {name} changes its shape from sample to sample")
    return rows, {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _digest(spec: str) -> str:
    """The file's own mark: scores are paired over the same samples only."""
    path = Path(spec)
    return f" (SHA-256 {file_sha256(path)[:12]})" if path.is_file() else ""
