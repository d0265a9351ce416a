"""Whether samples can be trained on: the one line that names the sample and the input if not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Array, InputSpec
from edgeopt.errors import InputsError

__all__ = ["IGNORED", "check_inputs", "check_targets"]

#: The label that torch's losses leave out (``ignore_index``).
IGNORED = -100

_KINDS = {"f": "floats", "i": "whole numbers", "u": "whole numbers", "b": "booleans"}


def check_inputs(
    inputs: Mapping[str, Array],
    specs: Sequence[InputSpec],
    label: str,
    rows: NDArray[np.int64],
) -> None:
    """Raises InputsError where an input is missing, not of the model's shape, or not finite.

    ``rows`` are the places of the samples, as a person would look them up.
    """
    for spec in specs:
        array = inputs.get(spec.name)
        if array is None:
            raise InputsError(
                f"{label} lacks input {spec.name}: it gives {', '.join(inputs)}; give it by name"
            )
        if not _fits(array.shape[1:], spec.shape[1:]):
            raise InputsError(
                f"{label}, input {spec.name}: a sample is {_shape(array.shape[1:])}, the model "
                f"takes {_shape(spec.shape[1:])}"
            )
        wanted = np.dtype(spec.dtype).kind if spec.dtype != "bfloat16" else "f"
        if array.dtype.kind == "f" and wanted != "f":
            raise InputsError(
                f"{label}, input {spec.name}: holds {array.dtype}, the model takes {spec.dtype}"
            )
        if array.dtype.kind not in _KINDS:
            raise InputsError(f"{label}, input {spec.name}: holds {array.dtype}, and no numbers")
    for name, array in inputs.items():
        _check_finite(array, f"input {name}", label, rows)


def check_targets(
    targets: Mapping[str, Array],
    classes: Mapping[str, int],
    label: str,
    rows: NDArray[np.int64],
) -> None:
    """Raises InputsError where a target is not finite, or a label not one of its classes."""
    for name, array in targets.items():
        _check_finite(array, f"target {name}", label, rows)
        limit = classes.get(name)
        if limit is None:
            continue
        if array.dtype.kind not in ("i", "u"):
            raise InputsError(f"{label}: target {name} holds {array.dtype}; give whole numbers")
        wrong = ((array < 0) | (array >= limit)) & (array != IGNORED)
        if wrong.any():
            index = int(np.flatnonzero(wrong.reshape(len(array), -1).any(1))[0])
            value = array[index][wrong[index]].ravel()[0] if array.ndim > 1 else array[index]
            raise InputsError(
                f"{label}, sample {rows[index]}: {name} {value}, the model has {limit} classes; "
                f"give labels from 0 to {limit - 1}"
            )


def _check_finite(array: Array, what: str, label: str, rows: NDArray[np.int64]) -> None:
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return
    index = int(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1))[0])
    bad = "NaN" if np.isnan(array[index]).any() else "Inf"
    raise InputsError(
        f"{label}, sample {rows[index]}: {what} holds {bad}; correct the sample or leave it out"
    )


def _fits(shape: Sequence[int], wanted: Sequence[int | str]) -> bool:
    return len(shape) == len(wanted) and all(
        isinstance(size, str) or size == given for given, size in zip(shape, wanted, strict=True)
    )


def _shape(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"
