"""Outputs whose rows may come in another order, or in another number: matched, then compared.

What NonMaxSuppression, TopK, Unique and NonZero give is a set. Two files that answer alike may
order it otherwise where two scores all but tie, and a row at the edge of a threshold may be there
in one and not in the other. Rows are paired across all outputs that belong together: boxes by how
much they overlap, else rows with the same whole numbers, else the nearest ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RowCount", "RowMatcher", "unequal"]

Arrays = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float64]
Pairs = list[tuple[int, int]]

#: Boxes that overlap less (intersection over union) are not the same.
_SAME_BOX = 0.5

#: Pairs of rows that are looked at, at most: beyond, rows stay in the order that they are in.
_MOST_PAIRS = 1 << 23


@dataclass(frozen=True)
class RowCount:
    """Rows over all samples: the source's, the artifact's, and those found in both."""

    outputs: tuple[str, ...]
    source: int
    artifact: int
    matched: int

    @property
    def share(self) -> float:
        """Of the rows of the file that has more, those that the other has too."""
        most = max(self.source, self.artifact)
        return self.matched / most if most else 1.0


@dataclass
class RowMatcher:
    """Pairs rows sample by sample, and counts what has no counterpart.

    ``loose`` are outputs whose rows are known to be a set; those that differ in size along one
    axis are taken for it as they come.
    """

    loose: frozenset[str] = frozenset()
    _seen: dict[str, None] = field(default_factory=dict)
    _source: int = 0
    _artifact: int = 0
    _matched: int = 0

    def pair(self, expected: Arrays, got: Arrays) -> tuple[dict[str, Any], dict[str, Any]]:
        """Both with the rows that belong together, in one order. What is no set, or has no rows
        that could be paired, stays as it is."""
        sides = dict(expected), dict(got)
        axes = _row_axes(expected, got, self.loose)
        groups: dict[tuple[int, int, int], list[str]] = {}
        for name, axis in axes.items():
            self._seen.setdefault(name)
            batch = expected[name].shape[0] if axis else 1
            size = expected[name].shape[axis], got[name].shape[axis], batch
            groups.setdefault(size, []).append(name)
        for (_, _, batch), group in groups.items():
            of = {name: axes[name] for name in group}
            for side, arrays in zip(sides, self._group(of, batch, *sides), strict=True):
                side.update(arrays)
        return sides

    def _group(
        self, axes: Mapping[str, int], batch: int, expected: Arrays, got: Arrays
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Outputs with one row for the same thing each, paired; batches one after the other."""
        names = list(axes)
        parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
        for place in range(batch):
            ours, theirs = (
                {n: each[n][place] if axis else each[n] for n, axis in axes.items()}
                for each in (expected, got)
            )
            count, other = len(ours[names[0]]), len(theirs[names[0]])
            pairs = _paired(ours, theirs, count, other)
            self._source += count
            self._artifact += other
            self._matched += len(pairs)
            for side, rows, part in zip((0, 1), (ours, theirs), parts, strict=True):
                chosen = [pair[side] for pair in pairs]
                part.append({name: array[chosen] for name, array in rows.items()})
        first, second = (
            {n: np.concatenate([rows[n] for rows in part]) if part else each[n] for n in names}
            for part, each in zip(parts, (expected, got), strict=True)
        )
        return first, second

    def result(self) -> RowCount | None:
        """None where no output is a set of rows."""
        if not self._seen:
            return None
        return RowCount(tuple(self._seen), self._source, self._artifact, self._matched)


# ---------------------------------------------------------------------------------------------
# which rows


def _row_axes(expected: Arrays, got: Arrays, loose: frozenset[str]) -> dict[str, int]:
    """The axis that rows lie along, of every output that is a set: where sizes differ, else the
    first, or the second behind a batch."""
    found: dict[str, int] = {}
    alike: list[str] = []
    for name, array in expected.items():
        other = got[name]
        if array.shape != other.shape:
            axis = _grown_along(array, other, name in loose)
            if axis is not None:
                found[name] = axis
        elif name in loose and array.ndim and array.dtype.kind in "biuf":
            alike.append(name)
    # Labels [n] beside boxes [n, 4] and scores [1, n]; or all behind a batch, [b, n] and [b, n, 4].
    flat = {len(expected[name]) for name in alike if expected[name].ndim == 1}
    flat |= {expected[name].shape[axis] for name, axis in found.items()}
    leading = {expected[name].shape[0] for name in alike}
    for name in alike:
        shape = expected[name].shape
        if len(shape) == 1 or (flat and shape[0] in flat and shape[0] != 1):
            found[name] = 0
        elif flat:
            found[name] = 1 if shape[0] == 1 and shape[1] in flat else 0
        else:
            found[name] = 0 if len(leading) > 1 or (len(alike) == 1 and shape[0] != 1) else 1
    return found


def _grown_along(array: NDArray[Any], other: NDArray[Any], loose: bool) -> int | None:
    """The one axis along which two outputs have another number of rows."""
    if array.ndim != other.ndim:
        return None
    differing = [i for i in range(array.ndim) if array.shape[i] != other.shape[i]]
    if len(differing) != 1 or array.dtype.kind not in "biuf":
        return None
    # [1, 10] and [1, 7] are other classes, unless the graph says that it is a set.
    known = differing[0] == 0 or (differing[0] == 1 and (array.ndim > 2 or loose))
    return differing[0] if known else None


def _paired(ours: Arrays, theirs: Arrays, count: int, other: int) -> Pairs:
    """Indices of rows that belong together, in the order of the first."""
    least = min(count, other)
    if count * other > _MOST_PAIRS or least == 0:
        return [(i, i) for i in range(least)]
    boxes = next((n for n, a in ours.items() if _boxes(a) is not None), None)
    if boxes is not None and (there := _boxes(theirs[boxes], strict=False)) is not None:
        overlap = _overlap(_boxes_of(ours[boxes]), there)
        return _greedy(-overlap + 0.1 * _other_numbers(ours, theirs), -_SAME_BOX + 0.1)
    whole = [n for n, a in ours.items() if a.dtype.kind in "iub"]
    distance = _distance(ours, theirs)
    if whole:
        same = _other_numbers(ours, theirs) == 0
        distance = np.where(same, distance, np.inf)
    return _greedy(distance, np.finfo(np.float64).max)


def _greedy(cost: Floats, limit: float) -> Pairs:
    """The cheapest pair first, every row once, none that costs more than ``limit``.

    Of pairs that cost the same, those in their own places come first.
    """
    count, other = cost.shape
    places = np.abs(np.arange(count)[:, None] - np.arange(other)[None, :])
    order = np.lexsort((places.ravel(), cost.ravel()))
    taken, given = np.zeros(count, bool), np.zeros(other, bool)
    found: Pairs = []
    for flat in order:
        i, j = divmod(int(flat), other)
        if not cost[i, j] <= limit or len(found) == min(count, other):
            break
        if not taken[i] and not given[j]:
            taken[i] = given[j] = True
            found.append((i, j))
    return sorted(found)


def _other_numbers(ours: Arrays, theirs: Arrays) -> Floats:
    """1 where rows differ in a whole number (a class, an index), 0 where they have the same."""
    shape = len(next(iter(ours.values()))), len(next(iter(theirs.values())))
    differ = np.zeros(shape, bool)
    for name, array in ours.items():
        if array.dtype.kind in "iub":
            a, b = (each.reshape(len(each), -1) for each in (array, theirs[name]))
            differ |= (a[:, None, :] != b[None, :, :]).any(-1)
    return differ.astype(np.float64)


def _distance(ours: Arrays, theirs: Arrays) -> Floats:
    """Mean square difference of rows' floats, every column in units of its own spread."""
    shape = len(next(iter(ours.values()))), len(next(iter(theirs.values())))
    total = np.zeros(shape)
    for name, array in ours.items():
        if array.dtype.kind != "f" or array.size == 0:
            continue
        a, b = (each.reshape(len(each), -1).astype(np.float64) for each in (array, theirs[name]))
        spread = a.std(0) + 1e-3 * np.abs(a).mean(0) + 1e-12
        a, b = np.nan_to_num(a / spread), np.nan_to_num(b / spread)
        square = (a * a).sum(-1)[:, None] + (b * b).sum(-1)[None, :] - 2 * a @ b.T
        total += np.maximum(square, 0.0) / a.shape[1]
    return total


# ---------------------------------------------------------------------------------------------
# boxes


def _boxes(array: NDArray[Any], *, strict: bool = True) -> Floats | None:
    """Corners (x0, y0, x1, y1) of rows that are boxes: four columns, or the first four of up to
    seven, or those behind the number of the picture. ``strict``: the values must say so."""
    if array.dtype.kind != "f" or array.ndim != 2 or not 4 <= array.shape[1] <= 7:
        return None
    starts = (0, 1) if array.shape[1] > 4 else (0,)
    for start in starts:
        corners = np.asarray(array[:, start : start + 4], np.float64)
        wide, high = corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1]
        good = (wide >= 0) & (high >= 0) & (wide * high > 0)
        if len(corners) and np.isfinite(corners).all() and good.mean() >= 0.9:
            return corners
    return None if strict else np.asarray(array[:, :4], np.float64)


def _boxes_of(array: NDArray[Any]) -> Floats:
    found = _boxes(array)
    assert found is not None
    return found


def _overlap(a: Floats, b: Floats) -> Floats:
    """Intersection over union of every box of ``a`` with every one of ``b``."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.prod(np.maximum(high - low, 0.0), axis=-1)
    area_a, area_b = (np.prod(np.maximum(e[:, 2:] - e[:, :2], 0.0), axis=-1) for e in (a, b))
    union = area_a[:, None] + area_b[None, :] - shared
    return np.asarray(np.where(union > 0, shared / np.where(union > 0, union, 1.0), 0.0))


def unequal(expected: Arrays, got: Arrays) -> Sequence[str]:
    """What is still of another shape, for a person."""
    return [
        f"{name} {list(array.shape)} in the source and {list(got[name].shape)} in the artifact"
        for name, array in expected.items()
        if array.shape != got[name].shape
    ]
