"""The difference of two means over the same samples, with its interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeopt.numerics.statistics import Interval

__all__ = ["paired_difference"]

#: Fewer samples say nothing about their own spread.
_FEWEST = 8

_RESAMPLES = 2000

#: Differences drawn at a time: index arrays of a few megabytes whatever the number of samples.
_DRAWN = 1 << 19


def paired_difference(
    base: Sequence[float], other: Sequence[float], confidence: float = 0.95, seed: int = 0
) -> Interval | None:
    """``mean(other) - mean(base)`` with its percentile bootstrap interval (Efron 1979), seeded.

    Samples are resampled with both of their scores: what makes a sample hard is hard for both,
    and cancels. None where the two are not scores of the same samples (unequal lengths), where
    there are fewer than eight, or where one is not finite.
    """
    a, b = np.asarray(base, np.float64), np.asarray(other, np.float64)
    if a.shape != b.shape or a.size < _FEWEST:
        return None
    difference = b - a
    if not np.isfinite(difference).all():
        return None
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWN // difference.size)
    means = [
        difference[generator.integers(0, difference.size, (count, difference.size))].mean(axis=1)
        for start in range(0, _RESAMPLES, step)
        if (count := min(step, _RESAMPLES - start))
    ]
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.concatenate(means), (tail, 1.0 - tail))
    return Interval(float(difference.mean()), float(low), float(high), int(difference.size))
