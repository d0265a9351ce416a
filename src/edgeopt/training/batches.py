"""What a student is trained on: arrays whose rows are drawn, or batches as somebody yields them.

A batch is cut into parts, one for each process and piece of accumulation: part ``i`` of ``n`` is
the same rows whoever asks for it, so that shards are disjoint and together are the batch.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Array, InputSpec
from edgeopt.errors import InputsError, UsageError
from edgeopt.training.randomness import isolated
from edgeopt.training.sample_checks import check_inputs, check_targets

__all__ = ["ArrayData", "Data", "MicroBatch", "StreamData"]

#: Rows that are looked at in one go while arrays are checked or hashed.
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """The rows of one process in one piece of an update.

    ``rows`` are their places in the data (None for a stream). ``share`` is how many there are, as
    a multiple of an even part: its loss is weighed by that, so that the whole batch's is the mean
    over its rows. A part without rows of its own borrows one, and weighs nothing.
    """

    inputs: Mapping[str, Array]
    targets: Mapping[str, Array]
    rows: NDArray[np.int64] | None
    share: float


class Data(Protocol):
    """What the loop asks of data."""

    @property
    def label(self) -> str: ...

    def count(self, batch_size: int) -> int | None:
        """Batches of one pass, where that is known."""

    def parts(
        self, batch_size: int, of: int, mine: Sequence[int], key: tuple[int, int] | None, start: int
    ) -> Iterator[tuple[MicroBatch, ...]]:
        """For every batch of a pass, from ``start`` on, the parts ``mine`` of its ``of`` parts.

        ``key`` is (seed, pass): the order is drawn from it. None is the order that rows are in.
        """

    def bind(self, specs: Sequence[InputSpec]) -> Data:
        """The same data, checked against what the model takes: arrays now, a stream as it is drawn.

        Raises InputsError naming the first sample and input that cannot be trained on.
        """

    def fingerprint(self) -> str:
        """What tells these data from others."""


@dataclass(frozen=True, eq=False)
class ArrayData:
    """Arrays with one row a sample, by the names of the model's inputs and of the targets.

    ``classes`` says of integer targets how many values they may take (0 up to that; -100, which
    torch's losses leave out, is allowed). ``rows`` chooses samples. A pass goes through all of
    them once, in batches of at most ``batch_size`` that differ by at most one row: none is left
    out, and no batch is a small rest.
    """

    inputs: Mapping[str, Array]
    targets: Mapping[str, Array] = field(default_factory=dict)
    label: str = "the data"
    classes: Mapping[str, int] = field(default_factory=dict)
    rows: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if not self.inputs:
            raise InputsError(f"{self.label} gives no inputs to train on")
        lengths = {name: _length(array) for name, array in self._all()}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{count} {name}" for name, count in lengths.items())
            raise InputsError(f"{self.label}: {listed}; give every sample each")
        if not len(self):
            raise InputsError(f"{self.label} has no samples to train on; give at least one")

    def _all(self) -> Iterator[tuple[str, Array]]:
        return itertools.chain(self.inputs.items(), self.targets.items())

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values()))) if self.rows is None else len(self.rows)

    def split(self, share: float, seed: int = 0) -> tuple[ArrayData, ArrayData]:
        """(to train on, to validate on): disjoint, together all, the same for the same seed.

        Raises UsageError for a share outside (0, 1), InputsError where one side would be empty.
        """
        if not 0 < share < 1:
            raise UsageError(f"validation share {share:g}; give one above 0 and below 1")
        if len(self) < 2:
            raise InputsError(f"{self.label} has one sample; two are needed to hold one out")
        held = min(len(self) - 1, max(1, round(share * len(self))))
        order = np.random.default_rng(seed).permutation(len(self))
        return self.take(np.sort(order[held:])), self.take(np.sort(order[:held]))

    def take(self, rows: NDArray[np.int64]) -> ArrayData:
        """The samples at these places, in this order."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def count(self, batch_size: int) -> int:
        return -(-len(self) // batch_size)

    def parts(
        self, batch_size: int, of: int, mine: Sequence[int], key: tuple[int, int] | None, start: int
    ) -> Iterator[tuple[MicroBatch, ...]]:
        order = np.arange(len(self))
        if key is not None:
            order = np.random.default_rng(key).permutation(len(self))
        for batch in np.array_split(order, self.count(batch_size))[start:]:
            yield tuple(self._part(rows, share) for rows, share in _cut(batch, of, mine))

    def _part(self, rows: NDArray[np.int64], share: float) -> MicroBatch:
        places = rows if self.rows is None else self.rows[rows]
        return MicroBatch(
            {name: array[places] for name, array in self.inputs.items()},
            {name: array[places] for name, array in self.targets.items()},
            rows,
            share,
        )

    def bind(self, specs: Sequence[InputSpec]) -> ArrayData:
        for begin in range(0, len(self), _CHUNK):
            rows = np.arange(begin, min(begin + _CHUNK, len(self)))
            places = rows if self.rows is None else self.rows[rows]
            part = self._part(rows, 1.0)
            check_inputs(part.inputs, specs, self.label, places)
            check_targets(part.targets, self.classes, self.label, places)
        return self

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, array in sorted(self._all()):
            digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\n".encode())
            for begin in range(0, len(array), _CHUNK):
                digest.update(np.ascontiguousarray(array[begin : begin + _CHUNK]).data)
        if self.rows is not None:
            digest.update(np.ascontiguousarray(self.rows, np.int64).data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class StreamData:
    """Batches as a callable yields them, each time from the beginning.

    ``opener()`` yields mappings of inputs and targets by name, batch first; ``names`` says which
    are inputs. Every batch is one update, whatever the batch size asked for; each process takes its
    part of it. What the generators of torch, numpy and Python give while a batch is drawn depends
    on the seed and the batch's place alone. ``batches`` is how many one pass has, if that is known;
    ``specs`` what batches are held to, from :meth:`bind`.
    """

    opener: Callable[[], Iterator[Mapping[str, Array]]] = field(repr=False)
    names: tuple[str, ...]
    label: str = "the stream"
    classes: Mapping[str, int] = field(default_factory=dict)
    batches: int | None = None
    specs: tuple[InputSpec, ...] = ()

    def count(self, batch_size: int) -> int | None:
        return self.batches

    def parts(
        self, batch_size: int, of: int, mine: Sequence[int], key: tuple[int, int] | None, start: int
    ) -> Iterator[tuple[MicroBatch, ...]]:
        for number, batch in enumerate(self._drawn(key or (0, 0))):
            if number >= start:
                yield self._parts(batch, number, of, mine)

    def _drawn(self, key: tuple[int, int]) -> Iterator[Mapping[str, Array]]:
        with isolated(*key, 0):
            stream = iter(self.opener())
        for number in itertools.count(1):
            with isolated(*key, number):
                batch = next(stream, None)
            if batch is None:
                return
            yield batch

    def _parts(
        self, batch: Mapping[str, Array], number: int, of: int, mine: Sequence[int]
    ) -> tuple[MicroBatch, ...]:
        where = f"{self.label}, batch {number}"
        lacking = [name for name in self.names if name not in batch]
        if lacking:
            raise InputsError(f"{where} lacks input {', '.join(lacking)}; every batch needs it")
        lengths = {name: _length(np.asarray(array)) for name, array in batch.items()}
        if len(set(lengths.values())) > 1 or 0 in lengths.values():
            listed = ", ".join(f"{count} {name}" for name, count in lengths.items())
            raise InputsError(f"{where}: {listed}; give every row each, and at least one row")
        rows = np.arange(next(iter(lengths.values())))
        made = []
        for chosen, share in _cut(rows, of, mine):
            part = {name: np.asarray(array)[chosen] for name, array in batch.items()}
            inputs = {name: part.pop(name) for name in self.names}
            check_inputs(inputs, self.specs, where, chosen)
            check_targets(part, self.classes, where, chosen)
            made.append(MicroBatch(inputs, part, None, share))
        return tuple(made)

    def bind(self, specs: Sequence[InputSpec]) -> StreamData:
        bound = replace(self, specs=tuple(specs))
        if next(bound.parts(1, 1, (0,), None, 0), None) is None:
            raise InputsError(f"{self.label} yields no batches to train on; give at least one")
        return bound

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"stream {self.batches}".encode())
        for part in next(self.parts(1, 1, (0,), None, 0), ()):
            for name, array in sorted([*part.inputs.items(), *part.targets.items()]):
                digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\n".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def _cut(
    batch: NDArray[np.int64], of: int, mine: Sequence[int]
) -> Iterator[tuple[NDArray[np.int64], float]]:
    pieces = np.array_split(batch, of)
    for index in mine:
        rows = pieces[index]
        yield (rows, len(rows) * of / len(batch)) if len(rows) else (batch[:1], 0.0)


def _length(array: NDArray[Any]) -> int:
    return len(array) if array.ndim else 0
