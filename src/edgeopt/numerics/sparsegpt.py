"""SparseGPT (Frantar and Alistarh 2023, arXiv:2301.00774): pruning with reconstruction.

The layer's output error ``||W X - W' X||^2`` has the Hessian ``H = X X^T`` for every row of W. A
weight that is pruned costs ``w^2 / [H^-1]_jj`` (optimal brain surgeon, Hassibi and Stork 1992), and
the weights that are still free make up for it. Columns are gone through from the first to the
last, and a column that has been seen stays as it is: then one factor serves all rows, the upper
Cholesky factor U of ``H^-1 = U^T U``, whose row j holds what column j's error does to those after
it, and ``U_jj^2`` the inverse of the Hessian without the columns before it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.numerics.masks import Mask, lowest, misfit, n_of_m, pruned_count

__all__ = ["BLOCK", "DAMPING", "inverse_factor", "prune"]

#: Columns whose mask is chosen together (section 3.4), and that are updated at once.
BLOCK = 128
#: Added to the Hessian's diagonal, as a share of its mean.
DAMPING = 0.01


def inverse_factor(hessian: NDArray[Any], damping: float = DAMPING) -> NDArray[np.float64]:
    """The upper triangular U, ``[n, n]`` float64, with ``U^T U`` the inverse of the damped Hessian.

    ``hessian`` is X X^T or any multiple of it. A column whose diagonal is zero (dead: its input
    never was anything else) is uncoupled from the others. Raises ValueError where the Hessian is
    not square, not finite, or not positive definite even so.
    """
    if hessian.ndim != 2 or hessian.shape[0] != hessian.shape[1]:
        raise ValueError(f"a Hessian of shape {list(hessian.shape)} is not square")
    h = hessian.astype(np.float64)
    if not np.isfinite(h).all():
        raise ValueError("the Hessian is not finite")
    diagonal = np.diagonal(h)
    dead = diagonal <= 0
    mean = float(diagonal[~dead].mean()) if not dead.all() else 1.0
    h[dead] = 0.0
    h[:, dead] = 0.0
    h[np.arange(len(h)), np.arange(len(h))] += np.where(dead, mean, damping * mean)
    # H = A A^T with A upper triangular is a Cholesky factorisation from the last column to the
    # first; then U = A^-1. H itself is never inverted, which would square its condition.
    try:
        a = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    except np.linalg.LinAlgError:
        raise ValueError(
            f"the Hessian is not positive definite with damping {damping}; give a larger one"
        ) from None
    return np.triu(np.linalg.inv(a))


def prune(
    w: NDArray[Any],
    hessian: NDArray[Any],
    *,
    ratio: float | None = None,
    pattern: tuple[int, int] | None = None,
    damping: float = DAMPING,
    block: int = BLOCK,
) -> tuple[NDArray[Any], Mask]:
    """Weights ``[out, in]`` pruned and updated, in their own dtype, and the mask.

    ``hessian`` ``[in, in]`` is the sum of x x^T over samples and positions, or a multiple of it.
    ``ratio``: exactly ``round(ratio * size)`` weights go, spread over the blocks of columns by
    their size, and chosen within a block over all rows. ``pattern`` (n, m): n of every m
    neighbouring columns stay, in every row. Weights of dead columns go first, and are not updated.

    Raises ValueError unless exactly one of ratio and pattern is given, where shapes do not fit,
    and as :func:`inverse_factor` and the masks do.
    """
    if (ratio is None) == (pattern is None):
        raise ValueError("give a ratio or a pattern, one of them")
    if w.ndim != 2 or hessian.shape != (w.shape[1], w.shape[1]):
        raise ValueError(f"weights {list(w.shape)} and a Hessian {list(hessian.shape)} do not fit")
    rows, columns = w.shape
    if pattern is not None:
        reason = misfit(w.shape, *pattern)
        if reason:
            raise ValueError(reason)
        block = max(block // pattern[1], 1) * pattern[1]
    work = np.float64 if w.dtype == np.float64 else np.float32
    factor = inverse_factor(hessian, damping).astype(work)
    alive = (np.diagonal(hessian) > 0).astype(work)
    left: NDArray[Any] = w.astype(
        work
    )  # what is left of each weight: final before `begin`, moving after it
    kept = np.ones(w.shape, np.bool_)
    for begin in range(0, columns, block):
        end = min(begin + block, columns)
        part, u = left[:, begin:end], factor[begin:end, begin:end]
        weigh = alive[begin:end] / np.diagonal(u) ** 2
        if ratio is not None:
            # rounded from the first column on, so that the blocks add up to the whole
            count = pruned_count(ratio, rows * end) - pruned_count(ratio, rows * begin)
            kept[:, begin:end] = ~lowest(part**2 * weigh, count)
        errors = np.zeros_like(part)
        for j in range(end - begin):
            if pattern is not None and j % pattern[1] == 0:
                group = slice(j, j + pattern[1])
                chosen = n_of_m(part[:, group] ** 2 * weigh[group], *pattern)
                kept[:, begin + j : begin + j + pattern[1]] = chosen
            gone = np.where(kept[:, begin + j], 0, part[:, j])
            errors[:, j] = gone / u[j, j]
            part[:, j:] -= np.outer(errors[:, j], u[j, j:])
            part[~kept[:, begin + j], j] = 0  # not a rounding error of zero
        left[:, end:] -= errors @ factor[begin:end, end:]
    return left.astype(w.dtype), kept
