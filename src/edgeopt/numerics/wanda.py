"""Wanda (Sun et al. 2023, arXiv:2306.11695): pruning by weights and activations.

A weight's score is its magnitude times the norm of the input that it meets,
``|W_ij| * ||X_j||_2`` (equation 1), and scores are compared within one output's row, not over the
layer. Nothing is updated: what stays, stays as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.numerics.masks import Mask, n_of_m, rowwise

__all__ = ["keep", "scores"]


def scores(w: NDArray[Any], norms: NDArray[Any]) -> NDArray[Any]:
    """Scores ``[out, in]`` of weights ``[out, in]`` whose inputs have L2 norms ``[in]`` over all
    samples and positions. Raises ValueError for norms that do not fit or are not finite."""
    if norms.shape != w.shape[-1:]:
        raise ValueError(f"norms of shape {list(norms.shape)} for weights {list(w.shape)}")
    if not np.isfinite(norms).all() or (norms < 0).any():
        raise ValueError("norms of the inputs are negative or not finite")
    found: NDArray[Any] = np.abs(w) * norms.astype(w.dtype)
    return found


def keep(
    w: NDArray[Any],
    norms: NDArray[Any],
    *,
    ratio: float | None = None,
    pattern: tuple[int, int] | None = None,
) -> Mask:
    """The mask ``[out, in]``: a ``ratio`` of every row pruned, or n of every m kept.

    Exactly one of the two is given. Raises ValueError otherwise, and as :func:`scores` and the
    masks do.
    """
    if (ratio is None) == (pattern is None):
        raise ValueError("give a ratio or a pattern, one of them")
    found = scores(w, norms)
    if pattern is not None:
        return n_of_m(found, *pattern)
    assert ratio is not None
    return rowwise(found, ratio)
