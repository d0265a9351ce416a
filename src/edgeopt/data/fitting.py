"""A feed made to fit a model's inputs, or the one line that says why it cannot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from edgeopt.core import Array, InputSpec, shown_shape
from edgeopt.data.sizes import batch_axes
from edgeopt.errors import InputsError

__all__ = ["fit_feeds", "fixed_batch", "is_text", "join_rows", "order_names", "plain_dtype"]


def plain_dtype(name: str) -> np.dtype[Any] | None:
    """numpy's own dtype of that name; None for those it lacks (``bfloat16``, strings)."""
    try:
        dtype: np.dtype[Any] = np.dtype(name)
    except TypeError:
        return None
    # ml_dtypes, once imported by anyone, teaches numpy more names
    return dtype if dtype.isbuiltin == 1 and dtype.kind in "biuf" else None


def is_text(dtype: str) -> bool:
    """Whether an input takes strings, as the file's reader or the runtime names them."""
    return dtype in ("str", "string")


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
    axes = batch_axes(specs)
    for spec in specs:
        array = feed[names[spec.name]]
        if axes[spec.name] != 0:
            continue
        leading = spec.shape[0]
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
    """Feeds for the model; groups of ``batch`` are joined along the axis that counts samples."""
    axes = batch_axes(specs)
    group: list[dict[str, Array]] = []
    for index, feed in enumerate(feeds):
        where = f"{label}, sample {index}"
        absent = [name for name in names.values() if name not in feed]
        if absent:
            raise InputsError(f"{where} lacks input {', '.join(absent)}; every sample needs it")
        group.append(
            {s.name: _fit_array(feed[names[s.name]], s, axes[s.name], batch, where) for s in specs}
        )
        if len(group) == batch:
            joined = join_rows(group, specs, where)
            _check_symbols(joined, specs, where)
            yield joined
            group = []


def join_rows(
    feeds: Sequence[Mapping[str, Array]], specs: Sequence[InputSpec], where: str
) -> dict[str, Array]:
    """Feeds as one batch, each input along the axis that counts samples.

    An input without one (``scales [3]``) has one value for the whole batch: InputsError where the
    feeds differ in it.
    """
    axes = batch_axes(specs)
    joined: dict[str, Array] = {}
    for spec in specs:
        arrays = [feed[spec.name] for feed in feeds]
        axis = axes[spec.name]
        if axis is not None and len(arrays) > 1:
            joined[spec.name] = np.concatenate(arrays, axis=axis)
            continue
        if any(not np.array_equal(arrays[0], other) for other in arrays[1:]):
            raise InputsError(
                f"{where}: input {spec} has one value for a whole batch, and samples that are"
                " batched differ in it; give them the same, or batches of one"
            )
        joined[spec.name] = arrays[0]
    return joined


def _fit_array(
    array: Array, spec: InputSpec, batch_axis: int | None, batch: int, where: str
) -> Array:
    shape = _laid_out(array.shape, spec, batch_axis, batch)
    kind = "strings" if array.dtype.kind in "US" else str(array.dtype)
    given = f"{kind}[{', '.join(map(str, array.shape))}]"
    if len(shape) != len(spec.shape):
        raise InputsError(
            f"{where}: input {spec.name} is given {given} with {array.ndim} axes, the model needs"
            f" {spec}{_how_to_save(spec, batch_axis)}"
        )
    grouped = batch > 1 and batch_axis is not None and shape[batch_axis] == 1
    for axis, (size, need) in enumerate(zip(shape, spec.shape, strict=True)):
        if isinstance(need, int) and size != need and not (axis == batch_axis and grouped):
            raise InputsError(
                f"{where}: input {spec.name} is given {given}, size {size} on axis {axis} where the"
                f" model needs {need} ({spec}){_how_to_save(spec, batch_axis)}"
            )
    return np.ascontiguousarray(_cast(array, spec, where)).reshape(shape)


def _laid_out(
    shape: tuple[int, ...], spec: InputSpec, batch_axis: int | None, batch: int
) -> tuple[int, ...]:
    """The shape that a sample's array takes for the model: its own, where nothing else fits.

    A row of a file has a leading axis of one in front of the input's own axes, which goes (an
    input without a batch, or one whose batch is not in front), or in place of its batch, which
    moves to where the model has it. Nothing but axes of one come and go, so values never move.
    """
    rank = len(spec.shape)
    if batch > 1 and batch_axis is not None:  # one of those that make the batch
        alone = (*spec.shape[:batch_axis], 1, *spec.shape[batch_axis + 1 :])
        spec = replace(spec, shape=alone)
    if len(shape) == rank and _fits(shape, spec):
        return shape
    bare = shape[1:] if shape[:1] == (1,) else None
    if bare is not None and len(bare) == rank:
        return bare
    for without in (shape, bare):
        if without is None or len(without) != rank - 1:
            continue
        for axis in (batch_axis, 0):
            if axis is not None:
                moved = (*without[:axis], 1, *without[axis:])
                if _fits(moved, spec):
                    return moved
    # No layout fits; a missing batch is taken to be in front, for the error and for grouping.
    return (1, *shape) if len(shape) == rank - 1 else shape


def _fits(shape: Sequence[int], spec: InputSpec) -> bool:
    return all(
        isinstance(need, str) or size == need for size, need in zip(shape, spec.shape, strict=True)
    )


def _how_to_save(spec: InputSpec, batch_axis: int | None) -> str:
    """How rows of an input are saved whose leading axis counts no samples."""
    if batch_axis == 0 or not spec.shape:
        return ""
    axes = ["1" if i == batch_axis else str(d) for i, d in enumerate(shown_shape(spec.shape))]
    return f"; rows are the leading axis of a file: save it as [rows, {', '.join(axes)}]"


def _lacks_batch(array: Array, spec: InputSpec) -> bool:
    return array.ndim == len(spec.shape) - 1


def _cast(array: Array, spec: InputSpec, where: str) -> Array:
    """To the model's dtype where no value changes its meaning."""
    have = array.dtype
    if is_text(spec.dtype):
        if have.kind not in "US":
            raise InputsError(
                f"{where}: input {spec.name} is given {have}, the model needs strings"
            )
        return array.astype(str)
    if have.kind in "US":
        raise InputsError(
            f"{where}: input {spec.name} is given strings, the model needs {spec.dtype}"
        )
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
