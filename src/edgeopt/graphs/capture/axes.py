"""Free dimensions: which sizes an export is made at, and which other sizes it is checked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeopt.core import Array, InputSpec

__all__ = [
    "Axis",
    "Inputs",
    "alone",
    "axis_for",
    "feed",
    "names_of",
    "pin",
    "settle",
    "shapes",
]

#: (size at export, size at the check) for the free dimensions that have a usual name. Batches are
#: two and more because torch treats sizes of 0 and 1 apart from all others.
_USUAL: Mapping[str, tuple[tuple[int, int], ...]] = {
    "batch": ((2, 3),),
    "sequence": ((32, 24), (64, 48), (16, 11), (8, 6)),
    "height": ((64, 96), (224, 256), (32, 48), (512, 640)),
    "width": ((64, 128), (224, 288), (32, 64), (512, 768)),
    "samples": ((16000, 12000), (64000, 48000), (2000, 1600)),
}

_ALIASES: Mapping[str, str] = {
    "n": "batch",
    "b": "batch",
    "bs": "batch",
    "batch_size": "batch",
    "s": "sequence",
    "t": "sequence",
    "l": "sequence",
    "seq": "sequence",
    "seq_len": "sequence",
    "seq_length": "sequence",
    "sequence_length": "sequence",
    "tokens": "sequence",
    "time": "sequence",
    "frames": "sequence",
    "h": "height",
    "w": "width",
    "length": "samples",
    "audio": "samples",
}

_ELSE = ((32, 40), (16, 24), (64, 96), (224, 256), (1000, 1200), (16000, 12000), (4, 6))


@dataclass(frozen=True)
class Axis:
    """A free dimension: its size at export, another to check at, and whether it may be given up.

    ``optional`` axes (image sizes) are dropped with a note where an exporter cannot have them;
    others only when no rung can. ``fixed`` is the size a dropped axis is given, where that is not
    the size at export (a batch of 1 that was asked for is exported as 2 while it is free).
    """

    name: str
    first: int
    second: int
    optional: bool = False
    fixed: int | None = None

    @property
    def pinned(self) -> int:
        """The axis's size once it is no longer free."""
        return self.first if self.fixed is None else self.fixed


@dataclass(frozen=True)
class Inputs:
    """What the model takes: specs with named free dimensions, their sizes, limits of integers."""

    specs: tuple[InputSpec, ...]
    axes: Mapping[str, Axis]
    high: Mapping[str, int]
    given: Mapping[str, Array]

    def without(self, names: Sequence[str]) -> Inputs:
        """The same with some axes pinned."""
        return pin(self, names)


def axis_for(name: str, candidate: int = 0, *, optional: bool = False) -> Axis | None:
    """The ``candidate``-th pair of sizes for a free dimension of this name, None past the last."""
    usual = _USUAL.get(_ALIASES.get(name.lower(), name.lower()), _ELSE)
    if candidate >= len(usual):
        return None
    first, second = usual[candidate]
    return Axis(name, first, second, optional)


def alone(inputs: Inputs) -> Inputs:
    """The same with its batch, where that is free, at the size that was asked for, or at one."""
    axes = {
        name: replace(axis, first=axis.fixed or 1)
        if _ALIASES.get(name.lower(), name.lower()) == "batch"
        else axis
        for name, axis in inputs.axes.items()
    }
    return replace(inputs, axes=axes)


def names_of(specs: Sequence[InputSpec]) -> tuple[str, ...]:
    """Names of the free dimensions, in order of appearance."""
    found: dict[str, None] = {}
    for spec in specs:
        for size in spec.shape:
            if isinstance(size, str):
                found[size] = None
    return tuple(found)


def pin(inputs: Inputs, names: Sequence[str]) -> Inputs:
    """Give free dimensions a fixed size."""
    sizes = {n: inputs.axes[n].pinned for n in names}
    specs = tuple(
        replace(s, shape=tuple(sizes.get(d, d) if isinstance(d, str) else d for d in s.shape))
        for s in inputs.specs
    )
    return replace(
        inputs, specs=specs, axes={n: a for n, a in inputs.axes.items() if n not in sizes}
    )


def shapes(inputs: Inputs, second: bool | Sequence[str] = False) -> dict[str, tuple[int, ...]]:
    """Concrete shapes by input name: at export, or with all (or only the named) axes moved."""
    moved = set(inputs.axes) if second is True else set(second or ())

    def size(dim: int | str) -> int:
        if isinstance(dim, int):
            return dim
        axis = inputs.axes[dim]
        return axis.second if dim in moved else axis.first

    return {s.name: tuple(size(d) for d in s.shape) for s in inputs.specs}


def feed(inputs: Inputs, second: bool | Sequence[str] = False, seed: int = 0) -> dict[str, Array]:
    """One feed of these shapes: the given example fitted to size, or seeded synthetic values.

    Floats are standard normal; integers uniform below the input's limit; ``attention_mask`` and
    booleans are ones with a padded tail in the last row, so that masks are put to the test.
    """
    rng = np.random.default_rng(seed)
    result: dict[str, Array] = {}
    for spec in inputs.specs:
        shape = shapes(inputs, second)[spec.name]
        dtype = np.dtype(spec.dtype)
        if spec.name in inputs.given:
            result[spec.name] = _fit(inputs.given[spec.name], shape).astype(dtype)
        elif "mask" in spec.name and dtype.kind in "iub":
            mask = np.ones(shape, dtype)
            if mask.ndim == 2 and shape[0] > 1 and shape[1] > 2:
                mask[-1, shape[1] - shape[1] // 4 :] = 0
            result[spec.name] = mask
        elif dtype.kind == "b":
            result[spec.name] = rng.integers(0, 2, shape).astype(dtype)
        elif dtype.kind in "iu":
            high = max(inputs.high.get(spec.name, 2), 1)
            # Token ids 0 to 2 are padding and its like, where there are that many.
            low = 3 if high > 4 else 0
            result[spec.name] = rng.integers(low, high, shape).astype(dtype)
        else:
            result[spec.name] = np.asarray(rng.standard_normal(shape)).astype(dtype)
    return result


def _fit(array: Array, shape: Sequence[int]) -> Array:
    """Repeat or cut an example along every axis until it has this shape.

    Repeated values are rolled by one, so that the rows of a grown batch differ.
    """
    for axis, size in enumerate(shape):
        have = array.shape[axis]
        if have < size:
            copies = [
                np.roll(array, turn, axis=-1) if array.ndim > 1 else array
                for turn in range(-(-size // have))
            ]
            array = np.concatenate(copies, axis=axis)
        array = np.take(array, np.arange(size), axis=axis)
    return np.ascontiguousarray(array)


def settle(
    inputs: Inputs, works: Callable[[Mapping[str, Array]], str | None]
) -> tuple[Inputs, tuple[str, ...]]:
    """Keep the free dimensions that the model itself accepts at another size.

    ``works`` runs the model and returns None, or its complaint. Returns the inputs with the
    others pinned, and one note for each.
    """
    notes: list[str] = []
    for name in tuple(inputs.axes):
        complaint = works(feed(inputs, (name,), seed=1))
        if complaint is not None:
            axis = inputs.axes[name]
            inputs = pin(inputs, (name,))
            notes.append(
                f"{name} is fixed at {axis.pinned}: the model refuses {axis.second}: {complaint}"
            )
    return inputs, tuple(notes)
