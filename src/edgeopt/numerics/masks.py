"""Which weights to keep: masks out of scores. True is kept, False is pruned.

Counts are exact, ``round(ratio * size)`` weights pruned as torch.nn.utils.prune counts them, and
equal scores go by index, the first pruned first: the same scores give the same mask everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Mask",
    "globally",
    "layerwise",
    "lowest",
    "misfit",
    "n_of_m",
    "pruned_count",
    "row_counts",
    "rowwise",
]

Mask: TypeAlias = NDArray[np.bool_]


def pruned_count(ratio: float, size: int) -> int:
    """How many of ``size`` weights a ratio prunes; halves to even, as Python rounds."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio {ratio} is not in 0..1")
    return round(ratio * size)


def lowest(scores: NDArray[Any], count: int) -> Mask:
    """True for the ``count`` lowest scores of an array of any shape, the first among equals.

    Raises ValueError for scores that are NaN, and for a count beyond the scores.
    """
    flat = _checked(scores).reshape(-1)
    if not 0 <= count <= flat.size:
        raise ValueError(f"{count} of {flat.size} scores cannot be chosen")
    if count == 0:
        return np.zeros(scores.shape, np.bool_)
    threshold = np.partition(flat, count - 1)[count - 1]
    chosen: Mask = flat < threshold
    equal = np.flatnonzero(flat == threshold)
    chosen[equal[: count - int(chosen.sum())]] = True
    return chosen.reshape(scores.shape)


def layerwise(scores: NDArray[Any], ratio: float) -> Mask:
    """The mask of one matrix on its own: its lowest scores go."""
    return ~lowest(scores, pruned_count(ratio, scores.size))


def globally(scores: Sequence[NDArray[Any]], ratio: float) -> list[Mask]:
    """Masks of all the matrices together, under one threshold; equal scores go in their order."""
    if not scores:
        return []
    flat = np.concatenate([s.reshape(-1) for s in scores])
    kept = ~lowest(flat, pruned_count(ratio, flat.size))
    ends = np.cumsum([s.size for s in scores])[:-1]
    parts = np.split(kept, ends)
    return [part.reshape(s.shape) for part, s in zip(parts, scores, strict=True)]


def row_counts(ratio: float, rows: int, columns: int) -> NDArray[np.int64]:
    """How many weights go in each row ``[rows]``, so that all together are exactly
    ``pruned_count(ratio, rows * columns)``, and no two rows differ by more than one."""
    pruned_count(ratio, rows * columns)
    upto = np.rint(ratio * (columns * np.arange(rows + 1)))
    counts: NDArray[np.int64] = np.diff(upto).astype(np.int64)
    return counts


def rowwise(scores: NDArray[Any], ratio: float) -> Mask:
    """The mask of a matrix ``[rows, columns]`` whose rows each lose the same share of weights."""
    rows, columns = scores.shape
    counts = row_counts(ratio, rows, columns)
    return _ranks(_checked(scores)) >= counts[:, None]


def misfit(shape: Sequence[int], n: int, m: int) -> str:
    """Why a matrix of this shape cannot be pruned n:m along its last axis; empty where it can."""
    if not 0 < n < m:
        return f"{n}:{m} is no pattern; n of m weights are kept, 0 < n < m"
    columns = shape[-1] if len(shape) else 0
    if columns == 0 or columns % m:
        return f"{columns} columns are no multiple of {m}"
    return ""


def n_of_m(scores: NDArray[Any], n: int, m: int) -> Mask:
    """Keep the ``n`` highest of every ``m`` scores along the last axis, as in 2:4 (Mishra et al.
    2021, arXiv:2104.08378) and n:m (Zhou et al. 2021, arXiv:2102.04010).

    Raises ValueError where :func:`misfit` has a reason.
    """
    reason = misfit(scores.shape, n, m)
    if reason:
        raise ValueError(reason)
    groups = _checked(scores).reshape(-1, m)
    return (_ranks(groups) >= m - n).reshape(scores.shape)


def _ranks(rows: NDArray[Any]) -> NDArray[np.int64]:
    """The place of each score in its row, from 0 for the lowest; the first among equals first."""
    order = np.argsort(rows, axis=1, kind="stable")
    found = np.empty(rows.shape, np.int64)
    np.put_along_axis(found, order, np.arange(rows.shape[1], dtype=np.int64)[None], axis=1)
    return found


def _checked(scores: NDArray[Any]) -> NDArray[Any]:
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN: no order among them")
    return scores
