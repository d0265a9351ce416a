"""Round to nearest: the range of each block sets its scale, and nothing is searched."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Codes
from edgeopt.numerics import affine
from edgeopt.numerics.affine import Floats, Levels

__all__ = ["encode", "fit", "minmax"]

_TINY = np.float32(np.finfo(np.float32).tiny)


def encode(
    w: NDArray[Any],
    *,
    bits: int,
    block: int | None,
    symmetric: bool,
    scale_dtype: str = "float32",
) -> Codes:
    """Round to nearest over each block's absolute maximum, or its range when asymmetric.

    ``w`` is float32 ``[rows, columns]``; see :func:`edgeopt.numerics.affine.encode`. With 4
    symmetric bits each block takes the better of two scales: ``max|w| / 7``, or the one (of either
    sign) that gives its largest element the code -8, as ggml's Q4_0 does.
    """
    return affine.encode(
        w, fit, bits=bits, block=block, symmetric=symmetric, scale_dtype=scale_dtype
    )


def fit(
    x: Floats, levels: Levels, importance: Floats | None = None
) -> tuple[Floats, Floats | None]:
    """Scale and zero point of each column of ``x``; see :class:`edgeopt.numerics.affine.Fit`."""
    if not levels.symmetric:
        return minmax(x, levels)
    high, low = x.max(axis=0), x.min(axis=0)
    peak = np.where(high >= -low, high, low)
    mirrored = np.maximum(np.abs(peak) / np.float32(levels.high), _TINY)
    if levels.mirrored:
        return mirrored, None
    longer = _at_least_tiny(peak / np.float32(levels.low))
    better = _noise(x, longer, levels) < _noise(x, mirrored, levels)
    return np.where(better, longer, mirrored), None


def minmax(x: Floats, levels: Levels) -> tuple[Floats, Floats]:
    """Scale and zero point that cover each column's range, and 0.

    0 is always inside: a zero point that is itself a code cannot say otherwise.
    """
    span = np.float32(levels.high)
    low = np.minimum(x.min(axis=0), np.float32(0))
    high = np.maximum(x.max(axis=0), np.float32(0))
    scale = np.maximum(high / span - low / span, _TINY)
    return scale, np.clip(np.rint(-low / scale), 0, span)


def _noise(x: Floats, scale: Floats, levels: Levels) -> Floats:
    """Squared error of each column in squared steps of ``scale``, made comparable."""
    t = x / scale
    d = np.rint(t)
    np.clip(d, levels.low, levels.high, out=d)
    d -= t
    # Relative to the block's own size: scale ** 2 would underflow for tiny weights.
    size = np.maximum(np.abs(t).max(axis=0), np.float32(1))
    d /= size
    return np.asarray(np.einsum("ij,ij->j", d, d), dtype=np.float32)


def _at_least_tiny(scale: Floats) -> Floats:
    return np.where(np.abs(scale) < _TINY, _TINY, scale)
