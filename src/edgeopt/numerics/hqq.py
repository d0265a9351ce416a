"""Half-Quadratic Quantization (Badri and Shaji, 2023): data-free, robust to outliers.

Minimises ``sum |w - dequantized|**p`` with p < 1, which lets the few largest errors be large for
the sake of the many. The half-quadratic splitting alternates two closed forms: the errors that
are taken for outliers, ``e = shrink_lp(w - dequantized)`` (generalised soft thresholding), and the
zero point that suits the rest, ``mean(q - (w - e) / scale)``.

Two departures from the paper, both because the stored form has them: zero points are codes here,
so they are rounded and the scale is refitted to what is left; and errors are measured in steps of
the block's scale, so that the result does not depend on the unit the weights come in. The
symmetric form has no zero point: its scale is what alternates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Codes
from edgeopt.numerics import affine, rtn
from edgeopt.numerics.affine import Floats, Levels

__all__ = ["encode", "fit"]

_P = np.float32(0.7)
_BETA = 10.0
_KAPPA = 1.2
_ITERATIONS = 8
_SMALL = np.float32(1e-12)


def encode(
    w: NDArray[Any],
    *,
    bits: int,
    block: int | None,
    symmetric: bool,
    scale_dtype: str = "float32",
) -> Codes:
    """Codes of least lp error (p = 0.7) for ``w`` float32 ``[rows, columns]``.

    No block's squared error is larger than round to nearest leaves it. See
    :func:`edgeopt.numerics.affine.encode`.
    """
    return affine.encode(
        w, fit, bits=bits, block=block, symmetric=symmetric, scale_dtype=scale_dtype
    )


def fit(
    x: Floats, levels: Levels, importance: Floats | None = None
) -> tuple[Floats, Floats | None]:
    """Scale and zero point of each column of ``x``; see :class:`edgeopt.numerics.affine.Fit`."""
    peak = np.maximum(x.max(axis=0), -x.min(axis=0))
    peak = np.where(peak > 0, peak, np.float32(1))
    x = np.asarray(x / peak, np.float32)
    first, first_zero = rtn.fit(x, levels)
    scale = np.where(np.abs(first) < _SMALL, _SMALL, first)
    zero = np.zeros_like(scale) if first_zero is None else first_zero
    unit = np.abs(scale)
    best_scale, best_zero = scale, zero
    d = _codes(x, scale, zero, levels)
    error: Floats = np.subtract(x, d * scale)
    size, power, squared, best = _errors(error, unit)
    ceiling = squared
    beta = _BETA
    for _ in range(_ITERATIONS):
        # Generalised soft thresholding, the proximal step of |error|**p / beta: what is left of
        # the errors above the threshold is taken for outliers, and set aside.
        threshold = power / np.maximum(size, _SMALL) / np.float32(beta)
        outliers = np.copysign(np.maximum(size - threshold, np.float32(0)) * unit, error)
        rest: Floats = np.subtract(x, outliers)
        if not levels.symmetric:
            shift = (d - rest / scale).mean(axis=0)
            zero = np.clip(np.rint(zero + shift), levels.low, levels.high)
            d = _codes(x, scale, zero, levels)
        suited = np.einsum("ij,ij->j", rest, d) / np.maximum(np.einsum("ij,ij->j", d, d), _SMALL)
        usable = suited * np.sign(scale) > _SMALL
        scale = np.where(usable, suited, scale)
        d = _codes(x, scale, zero, levels)
        error = np.subtract(x, d * scale)
        size, power, squared, robust = _errors(error, unit)
        better = (robust < best) & (squared <= ceiling)
        best = np.where(better, robust, best)
        best_scale = np.where(better, scale, best_scale)
        best_zero = np.where(better, zero, best_zero)
        beta *= _KAPPA
    return best_scale * peak, None if levels.symmetric else best_zero


def _codes(x: Floats, scale: Floats, zero: Floats, levels: Levels) -> Floats:
    """``q - zero``."""
    d: Floats = np.rint(x * (np.float32(1) / scale))
    np.clip(d, levels.low - zero, levels.high - zero, out=d)
    return d


def _errors(error: Floats, unit: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """The errors' sizes in steps of ``unit``, those to the power p, and the sums by column of
    their squares and of their powers."""
    size: Floats = np.divide(np.abs(error), unit)
    power: Floats = np.power(size, _P)
    return size, power, np.einsum("ij,ij->j", size, size), np.sum(power, axis=0)
