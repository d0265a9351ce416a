"""Scales that minimise the squared error: a grid of scales, then alternating least squares.

For given codes ``d = q - zero`` the best scale is ``sum(w d) / sum(d d)`` and leaves the error
``sum(w w) - sum(w d)**2 / sum(d d)``: so a candidate scale is judged by the codes it gives, at the
scale that suits them. ggml's ``make_qx_quants`` searches its Q4_0 and Q6_K scales this way; the
grid here reaches further down, for blocks wide enough that clipping their extremes pays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Codes
from edgeopt.numerics import affine
from edgeopt.numerics.affine import Floats, Levels
from edgeopt.numerics.rtn import minmax

__all__ = ["encode", "fit"]

#: Scales tried, as shares of the one that just covers the block.
_SYMMETRIC_GRID = np.linspace(0.56, 1.12, 15, dtype=np.float32)
_ASYMMETRIC_GRID = np.linspace(0.58, 1.0, 7, dtype=np.float32)
_WIDE_GRID = np.linspace(0.3, 1.04, 15, dtype=np.float32)

#: Blocks wider than this look further down the grid.
_WIDE = 256

_REFITS = 2

_SMALL = np.float32(1e-12)


def encode(
    w: NDArray[Any],
    *,
    bits: int,
    block: int | None,
    symmetric: bool,
    scale_dtype: str = "float32",
    importance: NDArray[Any] | None = None,
) -> Codes:
    """Codes of least squared error for ``w`` float32 ``[rows, columns]``.

    ``importance`` float32 ``[columns]``, where given, weighs the squared error of each column (the
    mean square of the activations that meet it). See :func:`edgeopt.numerics.affine.encode`.
    """
    return affine.encode(
        w,
        fit,
        bits=bits,
        block=block,
        symmetric=symmetric,
        scale_dtype=scale_dtype,
        importance=importance,
    )


def fit(
    x: Floats, levels: Levels, importance: Floats | None = None
) -> tuple[Floats, Floats | None]:
    """Scale and zero point of each column of ``x``; see :class:`edgeopt.numerics.affine.Fit`."""
    unit, peak = _normalised(x)
    search = _Search(unit, levels, importance)
    if levels.symmetric:
        _try_symmetric(search)
    else:
        _try_asymmetric(search)
    for _ in range(_REFITS):
        search.refit()
    return search.scale * peak, None if levels.symmetric else search.zero


class _Search:
    """The best scale and zero point so far, for each column of ``x``."""

    def __init__(self, x: Floats, levels: Levels, importance: Floats | None) -> None:
        self.x = x
        self.levels = levels
        self.weighted = x if importance is None else x * importance
        self.importance = importance
        n = x.shape[1]
        self.scale = np.full(n, _SMALL, np.float32)
        self.zero = np.zeros(n, np.float32)
        self.gain = np.full(n, -1, np.float32)
        self._codes = np.empty_like(x)

    def attempt(self, scale: Floats, zero: Floats | None = None) -> None:
        """Keep the codes of this scale, at the scale that suits them, where they are better."""
        d = self.codes(scale, zero)
        xd = np.einsum("ij,ij->j", self.weighted, d)
        if self.importance is None:
            dd = np.einsum("ij,ij->j", d, d)
        else:
            dd = np.einsum("ij,ij,ij->j", self.importance, d, d)
        suited = xd / np.maximum(dd, _SMALL)
        gain = suited * xd
        # Without a zero point's help a scale may have either sign; with one it may not.
        better = (gain > self.gain) & (np.abs(suited) > _SMALL)
        if zero is not None:
            better &= suited > 0
            self.zero = np.where(better, zero, self.zero)
        self.scale = np.where(better, suited, self.scale)
        self.gain = np.where(better, gain, self.gain)

    def codes(self, scale: Floats, zero: Floats | None) -> Floats:
        """``q - zero``, in a buffer that the next call overwrites."""
        d: Floats = np.multiply(self.x, np.float32(1) / scale, out=self._codes)
        np.rint(d, out=d)
        if zero is None:
            np.clip(d, self.levels.low, self.levels.high, out=d)
        else:
            np.clip(d, self.levels.low - zero, self.levels.high - zero, out=d)
        return d

    def refit(self) -> None:
        """One turn of alternating least squares from the best so far."""
        if self.levels.symmetric:
            self.attempt(self.scale)
            return
        # The best zero point for codes q is the mean of q - x / scale.
        d = self.codes(self.scale, self.zero)
        shift = (d - self.x * (np.float32(1) / self.scale)).mean(axis=0)
        moved = np.clip(np.rint(self.zero + shift), self.levels.low, self.levels.high)
        self.attempt(self.scale, np.asarray(moved, dtype=np.float32))
        self.attempt(self.scale, self.zero)


def _try_symmetric(search: _Search) -> None:
    high, low = search.x.max(axis=0), search.x.min(axis=0)
    peak = np.where(high >= -low, high, low)
    covering = _nonzero(peak / np.float32(search.levels.low))
    for share in _grid(search, _SYMMETRIC_GRID):
        search.attempt(covering * share)
    if not search.levels.mirrored:
        # The other sign: the larger side has one level fewer and loses little by being clipped.
        for share in _grid(search, _SYMMETRIC_GRID)[::3]:
            search.attempt(-covering * share)


def _try_asymmetric(search: _Search) -> None:
    scale, zero = minmax(search.x, search.levels)
    for share in _grid(search, _ASYMMETRIC_GRID):
        for shift in (0, -1, 1):
            moved = np.clip(zero + np.float32(shift), search.levels.low, search.levels.high)
            search.attempt(scale * share, moved)


def _grid(search: _Search, usual: Floats) -> Floats:
    return _WIDE_GRID if search.x.shape[0] > _WIDE else usual


def _normalised(x: Floats) -> tuple[Floats, Floats]:
    """Each column divided by its largest magnitude, so that no square under- or overflows."""
    peak = np.maximum(x.max(axis=0), -x.min(axis=0))
    peak = np.where(peak > 0, peak, np.float32(1))
    return x / peak, peak


def _nonzero(scale: Floats) -> Floats:
    return np.where(np.abs(scale) < _SMALL, _SMALL, scale)
