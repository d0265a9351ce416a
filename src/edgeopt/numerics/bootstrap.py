"""Confidence intervals of timings that were taken in a few processes, many samples in each.

Samples of one process resemble one another: they follow each other in time, and they share the
process's memory layout. What is independent is the process. So processes are drawn with
replacement, each with all of its samples, and the statistic is taken of what was drawn, pooled.
Drawing again inside the processes would count their own noise twice: it is already part of how
they differ (Davison and Hinkley 1997, 3.8; Kalibera and Jones 2013 for timings). That also makes
the autocorrelation of the samples harmless, whatever its length.

With five processes the plain percentile interval is too narrow, by sqrt(4/5) and by the normal
quantile that it implies (Hesterberg 2015). Both are mended: the bootstrap's standard error is
multiplied by sqrt(n / (n - 1)) and by the quantile of Student's t with n - 1 degrees of freedom,
on a logarithmic scale, since times are ratios of each other. Up to six processes every way to
draw them is gone through, with its probability: such an interval involves no chance at all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edgeopt.numerics.statistics import Interval

__all__ = [
    "FEWEST_PROCESSES",
    "MEAN",
    "Resampled",
    "chances",
    "ratio_of",
    "resample",
    "resampled_mean",
    "student_t",
    "welch",
]

#: Two processes differ by one number: that is no spread (t with one degree of freedom is 12.7).
FEWEST_PROCESSES = 3

#: The key of the mean among percentiles.
MEAN = "mean"

_EXHAUSTIVE = 6
_DRAWS = 2000


@dataclass(frozen=True)
class Resampled:
    """One statistic: its ``estimate`` from all samples and its value in each draw of processes.

    Draws of as many processes are the same draws, so that two statistics of the same rounds can
    be divided draw by draw.
    """

    estimate: float
    draws: NDArray[np.float64]
    processes: int
    samples: int

    @property
    def error(self) -> float | None:
        """The standard error, logarithmic where all draws are positive; None: too few processes."""
        if self.processes < FEWEST_PROCESSES:
            return None
        chance = chances(self.processes)
        values = np.log(self.draws) if self._logarithmic else self.draws
        centre = float(chance @ values)
        variance = float(chance @ np.square(values - centre))
        return math.sqrt(variance * self.processes / (self.processes - 1))

    def interval(self, confidence: float = 0.95) -> Interval | None:
        """The estimate with its bounds; None where there are too few processes."""
        error = self.error
        if error is None:
            return None
        reach = student_t(confidence, self.processes - 1) * error
        if self._logarithmic:
            low, high = self.estimate * math.exp(-reach), self.estimate * math.exp(min(reach, 700))
        else:
            low, high = self.estimate - reach, self.estimate + reach
        return Interval(self.estimate, low, high, self.samples)

    @property
    def _logarithmic(self) -> bool:
        return self.estimate > 0 and bool((self.draws > 0).all())


def resample(
    groups: Sequence[NDArray[np.float64]], percentiles: Sequence[float] = (50.0,)
) -> dict[float | str, Resampled]:
    """Percentiles (0 to 100) and the mean (``MEAN``) of samples, one array of them a process.

    Every array holds one finite sample or more; raises ValueError where one is empty.
    """
    if not groups or any(g.size == 0 for g in groups):
        raise ValueError("no samples: an interval needs one or more of each process")
    count = len(groups)
    weights, _ = _draws(count)
    pooled = np.concatenate(groups)
    drawn = weights @ np.array([g.size for g in groups], np.float64)
    found: dict[float | str, Resampled] = {
        MEAN: Resampled(
            float(pooled.mean()),
            (weights @ np.array([g.sum() for g in groups])) / drawn,
            count,
            int(pooled.size),
        )
    }
    order = np.argsort(pooled, kind="stable")
    ranked = pooled[order]
    owner = np.repeat(np.arange(count), [g.size for g in groups])[order]
    up_to = np.cumsum(owner[:, None] == np.arange(count), axis=0, dtype=np.float64)
    for q in percentiles:
        at = _reached(up_to, weights, drawn * (q / 100.0))
        estimate = float(np.percentile(ranked, q))
        found[q] = Resampled(estimate, ranked[at], count, int(pooled.size))
    return found


def resampled_mean(logs: Sequence[float], samples: int) -> Resampled:
    """The geometric mean of one value a process, given as logarithms (``samples`` are behind them).

    Raises ValueError on no values.
    """
    if not logs:
        raise ValueError("no processes: a mean needs one or more")
    values = np.asarray(logs, np.float64)
    weights, _ = _draws(values.size)
    draws: NDArray[np.float64] = np.exp(weights @ values / values.size)
    return Resampled(float(np.exp(values.mean())), draws, values.size, samples)


def ratio_of(subject: Resampled, base: Resampled) -> Resampled:
    """``subject / base`` of the same rounds of processes, draw by draw.

    What a round did to both cancels. Raises ValueError where their processes differ in number.
    """
    if subject.processes != base.processes:
        raise ValueError(f"{subject.processes} and {base.processes} processes are no rounds")
    return Resampled(
        subject.estimate / base.estimate,
        subject.draws / base.draws,
        subject.processes,
        min(subject.samples, base.samples),
    )


def welch(subject: Resampled, base: Resampled, confidence: float = 0.95) -> Interval | None:
    """``subject / base`` of processes that did not run together (Welch 1947), or None.

    Degrees of freedom are rounded down, so that none but whole ones are needed.
    """
    a, b = subject.error, base.error
    if a is None or b is None or min(subject.estimate, base.estimate) <= 0:
        return None
    ratio = subject.estimate / base.estimate
    variance = a * a + b * b
    spread = a**4 / (subject.processes - 1) + b**4 / (base.processes - 1)
    freedom = max(1, int(variance**2 / spread)) if spread > 0 else subject.processes - 1
    reach = student_t(confidence, freedom) * math.sqrt(variance)
    samples = min(subject.samples, base.samples)
    return Interval(ratio, ratio * math.exp(-reach), ratio * math.exp(min(reach, 700)), samples)


def chances(processes: int) -> NDArray[np.float64]:
    """The chance of each draw of so many processes, in the order of :attr:`Resampled.draws`."""
    return _draws(processes)[1]


@lru_cache(maxsize=256)
def student_t(confidence: float, freedom: int) -> float:
    """The two-sided quantile of Student's t: 2.776 for 95% and 4 degrees of freedom.

    From the finite series that the distribution has for whole degrees of freedom (Abramowitz and
    Stegun 26.7.3 and 26.7.4), halved until it is exact to a float.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        angle = (low + high) / 2
        if _within(angle, freedom) < confidence:
            low = angle
        else:
            high = angle
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| < sqrt(freedom) tan(angle))."""
    sine, square = math.sin(angle), math.cos(angle) ** 2
    total = 0.0
    if freedom % 2:
        term = math.cos(angle)
        for k in range(1, (freedom - 1) // 2 + 1):
            total += term
            term *= square * (2 * k) / (2 * k + 1)
        return (angle + sine * total) * 2 / math.pi
    term = 1.0
    for k in range(1, freedom // 2 + 1):
        total += term
        term *= square * (2 * k - 1) / (2 * k)
    return sine * total


def _reached(
    up_to: NDArray[np.float64], weights: NDArray[np.float64], wanted: NDArray[np.float64]
) -> NDArray[np.intp]:
    """The first rank of each draw at which ``wanted`` of the samples drawn are reached.

    ``up_to[i]`` holds each process's number of samples among the lowest i + 1. All draws are
    halved at once, so that no draw is ever written out.
    """
    low = np.zeros(len(weights), np.intp)
    high = np.full(len(weights), len(up_to) - 1, np.intp)
    while (low < high).any():
        middle = (low + high) // 2
        reached = np.einsum("dp,dp->d", weights, up_to[middle]) >= wanted - 1e-9
        high = np.where(reached, middle, high)
        low = np.where(reached, low, np.minimum(middle + 1, high))
    return high


@lru_cache(maxsize=64)
def _draws(count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How often each of ``count`` processes is drawn, one row a draw, and the draws' chances."""
    if count > _EXHAUSTIVE:
        rng = np.random.default_rng(count)
        weights = rng.multinomial(count, np.full(count, 1.0 / count), _DRAWS)
        return weights.astype(np.float64), np.full(_DRAWS, 1.0 / _DRAWS)
    sets = [
        np.bincount(chosen, minlength=count)
        for chosen in itertools.combinations_with_replacement(range(count), count)
    ]
    ways = [
        math.factorial(count) / math.prod(math.factorial(int(k)) for k in times) for times in sets
    ]
    return np.array(sets, np.float64), np.array(ways) / count**count
