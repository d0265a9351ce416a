"""Example inputs: what ``--data`` names, read one sample at a time, fitted to a model.

``--data`` is one of

* an ``.npz`` file: one array an input, by name (``arr_0``, ``arr_1``: by position); the leading
  axis counts samples, and every row is kept as a batch of one. That is so for every input: of one
  whose batch is not in front (a state ``h [2, batch, 64]``) save ``[rows, 2, 1, 64]`` or
  ``[rows, 2, 64]``, of one without a batch (``scales [3]``) ``[rows, 3]``;
* an ``.npy`` file: the same for a model with one input;
* a folder of ``.npy`` files: where their stems are the names of the model's inputs, each file is
  one input with a leading sample axis; otherwise each file is one sample of the only input;
* a folder of folders: each subfolder is an input, its i-th ``.npy`` file (by name) sample i;
* ``module:callable``, importable from the working directory: yields dicts by input name, or
  tuples or single arrays by position; each is one feed as it stands.

From Python also arrays by input name (as in an ``.npz``), one array or tensor (as in an ``.npy``),
and what :func:`edgeopt.data.readers.open_object` takes.

Files are told apart by content. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from edgeopt.core import Array, InputSpec
from edgeopt.core.given import is_given, lookup
from edgeopt.data import readers
from edgeopt.data.fitting import fit_feeds, fixed_batch, order_names
from edgeopt.errors import InputsError

__all__ = ["DEFAULT_LIMIT", "SampleFeed", "Samples", "load"]

#: Input name -> array, what a session runs on.
SampleFeed: TypeAlias = dict[str, Array]

#: Samples taken from a generator whose length nobody knows.
DEFAULT_LIMIT = 256

_CALLABLE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class Samples:
    """Feeds that can be gone through again and again, one in memory at a time.

    ``label`` says where they come from, for a person. ``count`` is their number, None for a
    generator (then ``limit`` bounds it). ``inputs`` is what they were fitted to; before
    :meth:`fit`, arrays given by position are called ``#0``, ``#1``, ... ``bare`` ones are single
    samples, perhaps without an axis for a batch; ``made_up`` ones nobody gave, and ``kinds``
    says of each what it is like ("silence").
    """

    label: str
    opener: Callable[[], Iterator[SampleFeed]] = field(repr=False)
    count: int | None = None
    limit: int | None = None
    inputs: tuple[InputSpec, ...] = ()
    bare: bool = False
    made_up: bool = False
    kinds: tuple[str, ...] = ()
    resolve: Callable[[Sequence[str]], Samples] | None = field(default=None, repr=False)
    names: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[SampleFeed]:
        return itertools.islice(self.opener(), self.limit)

    def __len__(self) -> int:
        if self.count is None:
            raise TypeError(f"{self.label} has no known length")
        return self.count

    def __bool__(self) -> bool:
        return True

    def fit(self, inputs: Sequence[InputSpec]) -> Samples:
        """The same samples as feeds for a model with these inputs.

        Adapted without a word: wider integers, other float widths, a leading axis of one added
        or dropped, and rows gathered into the batch a model insists on (what is left over is
        dropped). Arrays the model does not take are left out, and the label says so. The first
        sample is checked here, every other one as it is read.

        Raises:
            InputsError: a missing input, or one whose rank, size, dtype or values cannot fit.
        """
        if self.resolve is not None:
            return self.resolve([spec.name for spec in inputs]).fit(inputs)
        specs = tuple(inputs)
        label = self.label
        first = next(iter(self), None)
        if first is None:
            raise InputsError(f"{label} gives no samples; at least one is needed")
        names = order_names(tuple(first), specs, label)
        unused = [name for name in first if name not in names.values()]
        batch = fixed_batch(first, specs, names)
        count = self.count if self.count is None else self.count // batch

        def opener() -> Iterator[SampleFeed]:
            return fit_feeds(iter(self), specs, names, batch, label)

        if next(opener(), None) is None:
            raise InputsError(
                f"{label} gives {self.count} samples, the model takes batches of {batch}; give at"
                f" least {batch}"
            )
        if unused:
            label += f" (not used: {', '.join(unused)})"
        return Samples(label, opener, count, None, specs)

    def example(self) -> SampleFeed:
        """The first sample before it is fitted to anything: by name, and by position where names
        are not known to be inputs."""
        found = dict(next(iter(self), {}))
        if self.resolve is not None:  # a folder of files: each an input, or each a sample
            with contextlib.suppress(InputsError):
                found |= next(iter(self.resolve(self.names)), {})
        return found

    def select(self, keep: Callable[[int], bool], count: int | None, label: str) -> Samples:
        """Those samples whose index (from 0) is to be kept."""

        def opener() -> Iterator[SampleFeed]:
            return (feed for index, feed in enumerate(self) if keep(index))

        return Samples(label, opener, count, None, self.inputs)

    def take(self, limit: int) -> Samples:
        """At most the first ``limit`` samples."""
        if self.resolve is not None:
            resolve = self.resolve
            return replace(self, resolve=lambda names: resolve(names).take(limit))
        count = self.count if self.count is None else min(self.count, limit)
        limit = limit if self.limit is None else min(self.limit, limit)
        return replace(self, count=count, limit=limit)


def load(spec: str, limit: int | None = DEFAULT_LIMIT) -> Samples:
    """What ``--data`` means (the module's docstring lists the forms).

    ``limit`` bounds generators only (None: nothing does): the rows of files are all taken, see
    :meth:`Samples.take`.

    Raises:
        InputsError: nothing there, a file that is no array, arrays that disagree on the number
            of samples, Python objects instead of numbers, or a callable that cannot be imported.
    """
    if is_given(spec):
        return _load_object(spec, limit)
    path = Path(spec)
    if path.is_dir():
        return _load_folder(path)
    if path.is_file():
        reader = readers.open_file(path)
        return Samples(f"{path.name}, {reader.count} samples", reader.rows, reader.count)
    if _CALLABLE.fullmatch(spec):
        return Samples(spec, readers.open_callable(spec), None, limit)
    raise InputsError(
        f"--data {spec!r} is no file, folder or module:callable; give an .npz, an .npy, a folder"
        " of .npy files or a callable"
    )


def _load_object(spec: str, limit: int | None) -> Samples:
    """What a Python caller handed over: arrays have a row a sample, as files do; everything else
    yields feeds, as a callable does."""
    value = lookup(spec)
    if (reader := readers.open_arrays(value)) is not None:
        label = f"arrays in memory, {reader.count} samples"
        return Samples(label, reader.rows, reader.count)
    return Samples(spec, readers.open_object(spec, value), None, limit)


def _load_folder(path: Path) -> Samples:
    def samples(reader: readers.Reader, bare: bool = True) -> Samples:
        label = f"{path.name}/, {reader.count} samples"
        return Samples(label, reader.rows, reader.count, bare=bare)

    folders = sorted(p for p in path.iterdir() if p.is_dir() and any(p.glob("*.npy")))
    if folders:
        return samples(readers.zipped({p.name: readers.each_file(p, "#0") for p in folders}, path))
    whole = samples(readers.each_file(path, "#0"))
    files = {p.stem: p for p in sorted(path.glob("*.npy"))}

    def resolve(names: Sequence[str]) -> Samples:
        if not set(names) <= set(files):
            return replace(whole, resolve=None)
        columns = {name: readers.open_npy(file) for name, file in files.items()}
        return samples(readers.zipped(columns, path), bare=False)

    return replace(whole, resolve=resolve, names=tuple(files))
