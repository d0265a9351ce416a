"""Tensors a few rows at a time, and which of them are the same one under two names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Weight

__all__ = ["raw_bytes", "row_spans", "ties_of"]

#: Elements of a tensor that are worked on at a time.
_CHUNK = 1 << 20


def ties_of(weights: Iterable[Weight]) -> dict[str, str]:
    """Tensors that are another one under a second name -> that one."""
    first: dict[tuple[Any, ...], Weight] = {}
    ties: dict[str, str] = {}
    for weight in weights:
        if weight.storage is None or weight.size == 0:
            continue
        key = (weight.storage.key, weight.storage.offset, weight.shape, weight.dtype)
        other = first.setdefault(key, weight)
        if other is not weight and _same_view(weight, other):
            ties[weight.name] = other.name
    return ties


def _same_view(a: Weight, b: Weight) -> bool:
    """Whether two tensors at the same place of a storage, of equal shape, are equal.

    With dimensions of equal size one may be the other transposed: then the values decide.
    """
    sizes = [size for size in a.shape if size > 1]
    if len(set(sizes)) == len(sizes):
        return True
    return all(
        np.array_equal(raw_bytes(a.rows(lo, hi)), raw_bytes(b.rows(lo, hi)))
        for lo, hi in row_spans(a)
    )


def raw_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The array's bytes in row-major order."""
    flat: NDArray[np.uint8] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return flat


def row_spans(weight: Weight) -> Iterator[tuple[int, int]]:
    """Rows of a tensor, about a chunk at a time; a 0-dim tensor has one row."""
    if weight.size == 0:
        return
    count = weight.shape[0] if weight.shape else 1
    step = max(1, _CHUNK * count // weight.size)
    for lo in range(0, count, step):
        yield lo, min(lo + step, count)
