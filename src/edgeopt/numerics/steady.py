"""Where a series of timings becomes steady: after the warm-up, or never.

The series is cut into stretches of one level each by changepoint analysis, as Barrett et al. (2017)
and Traini et al. (2023) do for virtual machines, and the steady state is the longest end of the
series whose stretches have the same level. Unlike theirs, levels are medians of short blocks, so
that spikes and collectors' pauses are no levels, and "the same" has a smallest difference worth
mentioning, so that a long quiet series is not refused for a tenth of a percent. Processes without
a steady state are an answer (Kalibera and Jones 2013), not a failure.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["SAME_LEVEL", "steady_start"]

#: Levels that differ by less than this share are one level, whatever the noise.
SAME_LEVEL = 0.02

#: Levels are also one where they differ by less than this many standard errors of a block.
_ERRORS = 3.0

#: The steady part is at least this share of the series.
_SHARE = 0.4

#: Fewer samples than this have no levels to speak of.
_FEWEST = 8

#: Blocks that a series is cut into, at most.
_BLOCKS = 100

#: What one more stretch must explain, in noise variances times log(blocks).
_PENALTY = 6.0

#: Stretches at another level that pass, as a neighbour's burst does, may take up this share of
#: what is steady.
_PASSING = 0.1

#: What is left of a fading warm-up may still add this share.
_LEFT = 0.01

_FROM_MAD = 1.4826

#: A quarter of normal deviations are smaller than this.
_QUARTILE = 0.3186


def steady_start(samples: Sequence[float] | NDArray[np.float64]) -> int | None:
    """How many of one process's samples come before its steady state; None: it never settles.

    ``samples`` are seconds per inference in the order they were taken, turns one after the other.
    None where the level moves until the end, where less than four tenths of the series are
    steady, and where fewer than eight samples do not all lie within 2% of their median.
    """
    series = np.asarray(samples, np.float64)
    if series.size == 0 or not np.isfinite(series).all() or (series <= 0).any():
        return None
    logs = np.log(series)
    if series.size < _FEWEST:
        near = np.abs(logs - np.median(logs)) <= SAME_LEVEL
        return int(np.argmax(near)) if near[1:].all() and series.size > 1 else None
    size = max(1, math.ceil(series.size / _BLOCKS))
    edges = np.arange(0, series.size - size + 1, size)
    blocks = np.median(logs[: len(edges) * size].reshape(-1, size), axis=1)
    # The last block takes what is left over.
    blocks[-1] = np.median(logs[edges[-1] :])
    if size < 5:  # blocks of one sample or two are no medians yet
        blocks = _smoothed(blocks, 5 // size | 1)
    noise = _noise(blocks)
    bounds = _stretches(blocks, noise)
    same = max(SAME_LEVEL, _ERRORS * noise)
    first = _first_of_level(blocks, bounds, same)
    first = _faded(blocks, first, noise)
    steady = blocks[first:]
    if len(steady) < max(_SHARE * len(blocks), 2) or _drifts(steady, max(SAME_LEVEL, 2.0 * noise)):
        return None
    level = float(np.median(steady))
    start = _refined(logs, int(edges[first]), size, level, same)
    return start if series.size - start >= _SHARE * series.size else None


def _smoothed(values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Running medians, the ends repeated."""
    padded = np.pad(values, width // 2, mode="edge")
    smooth: NDArray[np.float64] = np.median(
        np.lib.stride_tricks.sliding_window_view(padded, width), axis=1
    )
    return smooth


def _noise(blocks: NDArray[np.float64]) -> float:
    """The standard deviation of a block about its level, levels and outliers not counted.

    The larger of what neighbours show, who are too alike where noise is slow, and what blocks
    three apart show. From the lower quartile of their distances, which half of them may spoil by
    lying across a step.
    """
    found = 1e-4
    for lag in (1, 3):
        if len(blocks) > 2 * lag:
            distances = np.abs(blocks[lag:] - blocks[:-lag])
            found = max(found, float(np.quantile(distances, 0.25)) / _QUARTILE / math.sqrt(2.0))
    return found


def _stretches(blocks: NDArray[np.float64], noise: float) -> list[int]:
    """Bounds of the stretches of one level each, 0 and the number of blocks included.

    Optimal partitioning of the squares about each stretch's mean (Jackson et al. 2005; PELT
    without the pruning, which a hundred blocks do not need).
    """
    count = len(blocks)
    centred = blocks - float(np.median(blocks))
    sums = np.concatenate([[0.0], np.cumsum(centred)])
    squares = np.concatenate([[0.0], np.cumsum(centred**2)])
    penalty = _PENALTY * noise**2 * math.log(max(count, 3))
    best = np.zeros(count + 1)
    best[0] = -penalty
    came_from = np.zeros(count + 1, np.intp)
    for end in range(1, count + 1):
        starts = np.arange(end)
        total = sums[end] - sums[:end]
        cost = squares[end] - squares[:end] - total**2 / (end - starts)
        whole = best[:end] + cost + penalty
        came_from[end] = int(np.argmin(whole))
        best[end] = whole[came_from[end]]
    bounds = [count]
    while bounds[-1] > 0:
        bounds.append(int(came_from[bounds[-1]]))
    return bounds[::-1]


def _first_of_level(blocks: NDArray[np.float64], bounds: list[int], same: float) -> int:
    """The first block from which on the level is that of the end, but for what passes."""
    stretches = list(itertools.pairwise(bounds))
    levels = [float(np.median(blocks[a:b])) for a, b in stretches]
    # The level of the end: of its last stretch that is more than a passing one.
    least = _PASSING * _SHARE * len(blocks)
    anchor = next(
        (i for i in range(len(stretches) - 1, -1, -1) if stretches[i][1] - stretches[i][0] > least),
        len(stretches) - 1,
    )
    level, first = levels[anchor], stretches[anchor][0]
    apart = len(blocks) - stretches[anchor][1]
    for i in range(anchor - 1, -1, -1):
        begin, end = stretches[i]
        if abs(levels[i] - level) <= same:
            if apart <= _PASSING * (len(blocks) - begin):
                first = begin
        else:
            apart += end - begin
    return first


def _faded(blocks: NDArray[np.float64], first: int, noise: float) -> int:
    """Later than ``first`` by what still fades: until the next few blocks are at the level."""
    level = float(np.median(blocks[first:]))
    few = max(3, len(blocks) // 33)
    left = max(_LEFT, 2.0 * noise / math.sqrt(few))
    for at in range(first, len(blocks) - few):
        if float(np.median(blocks[at : at + few])) - level <= left:
            return at
    return first


def _drifts(steady: NDArray[np.float64], same: float) -> bool:
    """Whether the last third has another level than the first."""
    third = max(1, len(steady) // 3)
    begin, end = float(np.median(steady[:third])), float(np.median(steady[-third:]))
    return abs(end - begin) > same


def _refined(logs: NDArray[np.float64], start: int, size: int, level: float, same: float) -> int:
    """The start within a block: the first sample from which on three in a row agree."""
    spread = _FROM_MAD * float(np.median(np.abs(logs[start:] - level)))
    near = max(same, _ERRORS * spread)
    for at in range(max(0, start - size), min(start + size, len(logs) - 3)):
        if abs(float(np.median(logs[at : at + 3])) - level) <= near and logs[at] - level <= near:
            return at
    return start
