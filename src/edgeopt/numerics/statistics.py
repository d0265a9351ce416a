"""Statistics of raw timings: medians, percentiles with a floor, ratios with an interval.

They are derived whenever they are shown and never stored: what is stored are the raw values.
Two files are compared by the ratios of blocks that ran side by side (A B B A), never by two
medians taken apart: what the machine did meanwhile then falls on both sides of each ratio.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BLOCKS_PER_ROUND",
    "FEWEST_RATIOS",
    "Interval",
    "median",
    "paired_interval",
    "percentile",
    "ratio_interval",
    "round_ratios",
]

#: Observations that must lie beyond a percentile before it is quoted. MLPerf's LoadGen asks for
#: 64 samples at p90 and 662 at p99: six and a half observations in the tail.
TAIL_FLOOR = 6.4

#: Blocks of each of the two files in an A B B A round.
BLOCKS_PER_ROUND = 2

#: Fewer ratios than this say nothing about their own spread.
FEWEST_RATIOS = 3


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its confidence interval, from ``count`` observations."""

    estimate: float
    low: float
    high: float
    count: int


def median(values: Sequence[float]) -> float:
    """The p50 of one value or more. Raises ValueError on none."""
    if len(values) == 0:
        raise ValueError("no values: a median needs one or more")
    return float(np.median(np.asarray(values, np.float64)))


def percentile(values: Sequence[float], q: float) -> float | None:
    """The ``q``-th percentile (0 to 100), or None where too few samples lie beyond it.

    A tail is quoted only when at least six and a half observations are expected in it (p90 from
    64 samples, p95 from 128, p99 from 640); p50 needs 13 and is never fewer than the median of
    what there is: use :func:`median` for that.
    """
    tail = min(q, 100.0 - q) / 100.0
    if len(values) * tail < TAIL_FLOOR - 1e-9:
        return None
    return float(np.percentile(np.asarray(values, np.float64), q))


def round_ratios(
    base: Sequence[float], other: Sequence[float], per_round: int = 1
) -> NDArray[np.float64]:
    """``other / base`` of each round, where a round holds ``per_round`` blocks of both.

    With A B B A rounds (``per_round`` 2) the two blocks of each side are added first, so that a
    drift along the round cancels. Blocks after the last whole round are left out.
    """
    rounds = min(len(base), len(other)) // per_round
    a = np.asarray(base[: rounds * per_round], np.float64).reshape(rounds, per_round).sum(axis=1)
    b = np.asarray(other[: rounds * per_round], np.float64).reshape(rounds, per_round).sum(axis=1)
    ratios: NDArray[np.float64] = b / a
    return ratios


def ratio_interval(
    ratios: Sequence[float] | NDArray[np.float64],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The median ratio with its percentile bootstrap interval (Efron 1979), seeded.

    Rounds are resampled with replacement ``resamples`` times; the bounds are percentiles of the
    medians. The median rather than the mean because a spike (a page fault, a neighbour's burst)
    spoils a round, not the comparison. With a handful of rounds the bounds become the smallest
    and largest ratio met. Raises ValueError on no ratios.
    """
    data = np.asarray(ratios, np.float64)
    if data.size == 0:
        raise ValueError("no ratios: an interval needs one or more")
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, data.size, (resamples, data.size))
    medians = np.median(data[picks], axis=1)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(medians, (tail, 1.0 - tail))
    return Interval(float(np.median(data)), float(low), float(high), int(data.size))


def paired_interval(
    base: Sequence[Sequence[float]], other: Sequence[Sequence[float]]
) -> Interval | None:
    """``other / base`` from the blocks of A B B A rounds, one sequence per worker process.

    Rounds never mix processes. None where there is not one whole round.
    """
    ratios: list[float] = []
    for a, b in zip(base, other, strict=False):
        ratios.extend(round_ratios(a, b, BLOCKS_PER_ROUND))
    return ratio_interval(ratios) if ratios else None
