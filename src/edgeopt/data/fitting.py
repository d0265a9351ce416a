"""A feed made to fit a model's inputs, or the one line that says why it cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgeopt.core import Array, InputSpec
from edgeopt.errors import InputsError

__all__ = ["fit_feeds", "fixed_batch", "order_names", "plain_dtype", "ranked"]


def plain_dtype(name: str) -> np.dtype[Any] | None:
    """numpy's own dtype of that name; None for those it lacks (``bfloat16``, strings)."""
    try:
        dtype: np.dtype[Any] = np.dtype(name)
    except TypeError:
        return None
    # ml_dtypes, once imported by anyone, teaches numpy more names
    return dtype if dtype.isbuiltin == 1 and dtype.kind in "biuf" else None


def order_names(given: Sequence[str], specs: Sequence[InputSpec], label: str) -> dict[str, str]:
    """Model input -> name in the feed: by name, or by position for ``#0``, ``#1``, ... Of those one
    may be left at the end: the target that loaders give beside the inputs."""
    wanted = ", ".join(spec.name for spec in specs)
    if all(name.startswith("#") for name in given):
        if len(given) not in (len(specs), len(specs) + 1):
            raise InputsError(
                f"{label} gives {len(given)} arrays by position, the model takes {len(specs)}"
                f" ({wanted}); give one an input, or name them"
            )
        return {spec.name: f"#{i}" for i, spec in enumerate(specs)}
    missing = [spec.name for spec in specs if spec.name not in given]
    if missing:
        raise InputsError(
            f"{label} lacks input {', '.join(missing)}: it gives {', '.join(given)}, the model"
            f" takes {wanted}"
        )
    return {spec.name: spec.name for spec in specs}


def fixed_batch(
    feed: Mapping[str, Array], specs: Sequence[InputSpec], names: Mapping[str, str]
) -> int:
    """How many samples make one batch: 1, or the leading size that a model insists on."""
    sizes = set()
    for spec in specs:
        array = feed[names[spec.name]]
        leading = spec.shape[0] if spec.shape else 1
        alone = array.ndim == len(spec.shape) and array.shape[:1] == (1,)
        if isinstance(leading, int) and leading > 1 and (alone or _lacks_batch(array, spec)):
            sizes.add(leading)
    return sizes.pop() if len(sizes) == 1 else 1


def fit_feeds(
    feeds: Iterator[dict[str, Array]],
    specs: Sequence[InputSpec],
    names: Mapping[str, str],
    batch: int,
    label: str,
) -> Iterator[dict[str, Array]]:
    """Feeds for the model; groups of ``batch`` are joined along the leading axis."""
    group: list[dict[str, Array]] = []
    for index, feed in enumerate(feeds):
        where = f"{label}, sample {index}"
        absent = [name for name in names.values() if name not in feed]
        if absent:
            raise InputsError(f"{where} lacks input {', '.join(absent)}; every sample needs it")
        group.append({s.name: _fit_array(feed[names[s.name]], s, batch, where) for s in specs})
        if len(group) == batch:
            joined = {s.name: _joined([g[s.name] for g in group], s) for s in specs}
            _check_symbols(joined, specs, where)
            yield joined
            group = []


def _joined(arrays: list[Array], spec: InputSpec) -> Array:
    """Rows to a batch; an input without a batch axis keeps the first sample's value."""
    if len(arrays) == 1:
        return arrays[0]
    leading = spec.shape[0] if spec.shape else None
    batched = isinstance(leading, str) or leading == len(arrays)
    return np.concatenate(arrays) if batched else arrays[0]


def ranked(array: Array, spec: InputSpec) -> Array:
    """A sample with the axes that the model's input has, where one reading of it fits.

    A row of a file has a leading axis of one, which an input of its own may lack (``scales [3]``),
    have (``x [batch, 64]``), or have elsewhere (``h [2, batch, 64]``, given as [1, 2, 1, 64] or as
    [1, 2, 64]); a single sample may come without its batch. As it is, where no reading fits.
    """
    row = array[0] if array.ndim and array.shape[0] == 1 else None
    readings = [array, row, *_with_free_axis(array, spec)]
    if row is not None:
        readings += _with_free_axis(row, spec)
    for reading in readings:
        if reading is not None and _fits(reading, spec):
            return reading
    if _lacks_batch(array, spec):
        return array[None]
    return row if row is not None and row.ndim == len(spec.shape) else array


def _with_free_axis(array: Array, spec: InputSpec) -> list[Array]:
    """The array with an axis of one where the model has a free one."""
    if array.ndim != len(spec.shape) - 1:
        return []
    places = [i for i, dim in enumerate(spec.shape) if isinstance(dim, str) or dim == 1]
    return [np.expand_dims(array, place) for place in places]


def _fits(array: Array, spec: InputSpec) -> bool:
    return array.ndim == len(spec.shape) and all(
        isinstance(need, str) or need <= 0 or size == need
        for size, need in zip(array.shape, spec.shape, strict=True)
    )


def _fit_array(array: Array, spec: InputSpec, batch: int, where: str) -> Array:
    array = ranked(array, spec)
    given = f"{array.dtype}[{', '.join(map(str, array.shape))}]"
    if array.ndim != len(spec.shape):
        raise InputsError(
            f"{where}: input {spec.name} is given {given} with {array.ndim} axes, the model needs"
            f" {spec}"
        )
    grouped = batch > 1 and array.shape[0] == 1
    for axis, (size, need) in enumerate(zip(array.shape, spec.shape, strict=True)):
        if isinstance(need, int) and size != need and not (axis == 0 and grouped):
            raise InputsError(
                f"{where}: input {spec.name} is given {given}, size {size} on axis {axis} where the"
                f" model needs {need} ({spec})"
            )
    return np.ascontiguousarray(_cast(array, spec, where)).reshape(array.shape)


def _lacks_batch(array: Array, spec: InputSpec) -> bool:
    return array.ndim == len(spec.shape) - 1


def _cast(array: Array, spec: InputSpec, where: str) -> Array:
    """To the model's dtype where no value changes its meaning."""
    have = array.dtype
    if have.kind == "f" and np.isnan(array).any():
        raise InputsError(f"{where}: input {spec.name} holds NaN; give finite numbers")
    need = plain_dtype(spec.dtype)
    if need is None:
        raise InputsError(
            f"{where}: input {spec.name} needs {spec.dtype}, which numpy arrays cannot carry"
        )
    if have == need:
        return array
    cast: Array | None = None
    if have.kind == "f" and need.kind == "f":
        with np.errstate(over="ignore"):
            cast = array.astype(need)
        if (np.isinf(cast) & ~np.isinf(array)).any():
            cast = None
    elif have.kind in "biu" and need.kind in "biu":
        # exact in numpy's own sense, or exact for the values at hand
        cast = array.astype(need)
        if not np.can_cast(have, need, "safe") and not np.array_equal(cast.astype(have), array):
            cast = None
    if cast is None:
        alike = (have.kind == "f") == (need.kind == "f")
        why = ", whose values do not fit" if alike else ""
        raise InputsError(
            f"{where}: input {spec.name} is given {have}{why}, the model needs {spec.dtype};"
            " convert it as in training"
        )
    return cast


def _check_symbols(feed: Mapping[str, Array], specs: Sequence[InputSpec], where: str) -> None:
    """Dimensions of one name have one size."""
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        for size, need in zip(feed[spec.name].shape, spec.shape, strict=True):
            if isinstance(need, int):
                continue
            seen, other = sizes.setdefault(need, (size, spec.name))
            if seen != size:
                raise InputsError(
                    f"{where}: inputs {other} and {spec.name} share the dimension {need!r}, given"
                    f" {seen} and {size}"
                )
