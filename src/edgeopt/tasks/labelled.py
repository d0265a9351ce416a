"""Labelled data: what a model is fed, and what its answers are judged by.

One ``--data`` holds both: arrays that the model takes are its inputs, the others are targets. For
pairs (two sentences and how alike they are), an input ``NAME`` has a second array ``NAME_b``, and
every row is a pair.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import InputSpec, file_sha256
from edgeopt.data.fitting import fit_feeds, fixed_batch, order_names
from edgeopt.data.samples import SampleFeed, Samples, load
from edgeopt.errors import InputsError

__all__ = ["SECOND", "TARGET_NAMES", "Labelled", "read_labelled"]

#: The second of a pair: ``input_ids_b`` beside ``input_ids``.
SECOND = "_b"

#: What is taken of a callable that yields on and on: so many feeds, so many bytes.
_MOST_FEEDS, _MOST_BYTES = 1 << 16, 1 << 31

#: Names that targets go by, the likeliest first, where there are several arrays beside the inputs.
TARGET_NAMES = ("labels", "label", "targets", "target", "scores", "score", "y")


@dataclass(frozen=True)
class Labelled:
    """Feeds in the order that they are run in, and the targets of all rows.

    Of pairs, feed 2i is the first and feed 2i + 1 the second. ``targets`` are by name, joined
    along the leading axis, and cut where a last batch would not be full. ``sizes`` are the rows of
    each feed (of each pair of feeds), which share them out again.
    """

    label: str
    opener: Callable[[], Iterator[SampleFeed]] = field(repr=False)
    targets: Mapping[str, NDArray[Any]]
    paired: bool = False
    sizes: tuple[int, ...] = ()

    def feeds(self, limit: int | None = None) -> Iterator[SampleFeed]:
        return itertools.islice(self.opener(), limit)

    @property
    def target(self) -> NDArray[Any] | None:
        """The one that answers are judged by; None where there is none, or no telling."""
        if len(self.targets) == 1:
            return next(iter(self.targets.values()))
        found = next((name for name in TARGET_NAMES if name in self.targets), None)
        return None if found is None else self.targets[found]


def read_labelled(spec: str, inputs: Sequence[InputSpec]) -> Labelled:
    """``--data`` for a model with ``inputs``; files are gone through once here, and once for every
    use. A callable is asked once: it may shuffle, and must not part rows from their targets.

    Raises InputsError where an input is missing or does not fit, or where there are not as many
    targets as rows.
    """
    samples = load(spec)
    if samples.count is None:
        samples = _asked_once(spec, samples)
    if samples.resolve is not None:  # a folder: its files' names decide what they are
        samples = samples.resolve([s.name for s in inputs])
    first = next(iter(samples), None)
    if first is None:
        raise InputsError(f"{samples.label} gives no samples; at least one is needed")
    label = f"{samples.label}{_digest(spec)}"
    names = order_names(tuple(first), inputs, samples.label)
    paired = any(f"{given}{SECOND}" in first for given in names.values())
    sides = [names]
    if paired:
        # What both have in common (a mask that is all ones) need not be given twice.
        second = {n: f"{g}{SECOND}" if f"{g}{SECOND}" in first else g for n, g in names.items()}
        sides.append(second)
    batch = fixed_batch(first, inputs, names)
    used = {given for side in sides for given in side.values()}
    counts, targets = _targets(samples, used, names, inputs, label)
    rows = sum(counts)
    for name, target in targets.items():
        if len(target) != rows:
            raise InputsError(f"{label}: {len(target)} {name} for {rows} samples; give one each")
    sizes = [sum(counts[at : at + batch]) for at in range(0, len(counts) - batch + 1, batch)]
    kept = sum(sizes)

    def opener() -> Iterator[SampleFeed]:
        runs = [fit_feeds(iter(samples), inputs, side, batch, label) for side in sides]
        return itertools.chain.from_iterable(zip(*runs, strict=True))

    cut = {name: target[:kept] for name, target in targets.items()}
    return Labelled(label, opener, cut, paired, tuple(sizes))


def _asked_once(spec: str, samples: Samples) -> Samples:
    """All that a callable yields, kept; of one that goes on and on the first, as the label says."""
    feeds: list[SampleFeed] = []
    size = 0
    ended = True
    for feed in load(spec, None):
        size += sum(array.nbytes for array in feed.values())
        if len(feeds) >= _MOST_FEEDS or (feeds and size > _MOST_BYTES):
            ended = False
            break
        feeds.append(feed)
    label = samples.label if ended else f"{samples.label}, the first {len(feeds):,} of it"
    return replace(samples, label=label, opener=lambda: iter(feeds), limit=None)


def _targets(
    samples: Samples,
    used: set[str],
    names: Mapping[str, str],
    inputs: Sequence[InputSpec],
    label: str,
) -> tuple[list[int], dict[str, NDArray[Any]]]:
    """The rows of every feed, and every array that is no input, whole."""
    counts: list[int] = []
    parts: dict[str, list[NDArray[Any]]] = {}
    spec = next(iter(inputs), None)
    for feed in samples:
        given = None if spec is None else feed.get(names[spec.name])
        # A sample by itself has no axis of samples: neither have its targets.
        alone = spec is None or given is None or given.ndim != len(spec.shape) or not given.ndim
        counts.append(1 if alone or given is None else len(given))
        for name, array in feed.items():
            if name not in used:
                whole = alone and array.ndim > 0 and len(array) > 1
                parts.setdefault(name, []).append(array[None] if whole else np.atleast_1d(array))
    for name, arrays in parts.items():
        if len({array.shape[1:] for array in arrays}) > 1:
            raise InputsError(f"{label}: {name} changes its shape from sample to sample")
    return counts, {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _digest(spec: str) -> str:
    """The file's own mark: scores are paired over the same samples only."""
    path = Path(spec)
    return f" (SHA-256 {file_sha256(path)[:12]})" if path.is_file() else ""
