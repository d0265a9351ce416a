"""Labels of classes among the targets of data: which of them they are, and as what numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.tasks.labelled import TARGET_NAMES

__all__ = ["class_numbers", "label_of"]


def class_numbers(name: str, target: NDArray[Any], classes: int) -> NDArray[Any]:
    """The target as numbers of classes [rows], where it is labels of ``classes`` classes in another
    form: one-hot rows, a column, booleans, and, called as labels are, whole numbers that are kept
    as floats. Else the target as it is."""
    if target.ndim == 2 and target.shape[1] == classes > 1:
        ones = target == 1
        if (ones.sum(1) == 1).all() and (ones | (target == 0)).all():
            return np.asarray(ones.argmax(1), np.int64)
    if target.ndim == 2 and target.shape[1] == 1:
        target = target[:, 0]
    if target.dtype.kind == "b":
        return target.astype(np.int64)
    called_so = name in TARGET_NAMES or name.startswith("#")
    if target.ndim == 1 and target.dtype.kind == "f" and called_so:
        whole = np.isfinite(target).all() and (target == np.round(target)).all()
        return target.astype(np.int64) if whole else target
    return target


def label_of(targets: Mapping[str, NDArray[Any]], wanted: str | None = None) -> str | None:
    """The target that a loss of labels means, where it has one for each sample; else None."""
    found = wanted or (next(iter(targets)) if len(targets) == 1 else None)
    found = found or next((name for name in TARGET_NAMES if name in targets), None)
    return found if found is not None and found in targets and targets[found].ndim == 1 else None
