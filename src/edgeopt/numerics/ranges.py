"""Ranges of activations, gathered while samples stream by, in memory that does not grow.

Every calibrator is fed with :meth:`~Calibrator.observe` and asked with :meth:`~Calibrator.range`.
Those that need more than the extremes keep one :class:`Histogram` of a fixed number of bins: when
a value falls outside it, bins merge pairwise and its width doubles, so two hundred samples cost
what two do. Counts do not depend on the order of the samples, as long as they are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["CALIBRATORS", "Calibrator", "Entropy", "Histogram", "MinMax", "Mse", "Percentile"]

Array = NDArray[Any]

_BINS = 4096
_CHUNK = 1 << 16


class Calibrator(Protocol):
    """Sees activations one array at a time; says which range to quantize."""

    def observe(self, values: Array) -> None:
        """Take in one array of any shape."""
        ...

    def range(self) -> tuple[float, float]:
        """(low, high). It need not hold 0: whoever makes a scale of it widens it to do so.

        Raises ValueError when nothing was observed, or when a NaN or an infinity was.
        """
        ...


class MinMax:
    """The exact extremes."""

    def __init__(self) -> None:
        self.low = math.inf
        self.high = -math.inf
        self.finite = True

    def observe(self, values: Array) -> None:
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            self.finite = False
            return
        self.low = min(self.low, low)
        self.high = max(self.high, high)

    def range(self) -> tuple[float, float]:
        if not self.finite:
            raise ValueError("activations hold NaN or Inf: no range to quantize")
        if self.low > self.high:
            raise ValueError("no activations were observed: no range to quantize")
        return self.low, self.high


class Histogram:
    """Counts of values in ``bins`` equal bins; its width doubles as the range grows.

    The bins' edges are whole multiples of the bin's width, a power of two, so that merging is
    exact and the counts are those that numpy's histogram gives for the same edges. ``extremes``
    and ``zeros``, the number of exact zeros, are exact. Memory: one array of int64 counts, and a
    chunk's temporaries while observing.
    """

    def __init__(self, bins: int = _BINS) -> None:
        if bins < 8 or bins % 4:
            raise ValueError(f"{bins} bins, a multiple of 4 from 8 is needed")
        self.bins = bins
        self.counts = np.zeros(bins, np.int64)
        self.first = 0
        self.exponent: int | None = None
        self.zeros = 0
        self.extremes = MinMax()

    @property
    def width(self) -> float:
        """Width of a bin; 0 while nothing but one value was seen."""
        return 0.0 if self.exponent is None else math.ldexp(1.0, self.exponent)

    @property
    def edges(self) -> NDArray[np.float64]:
        """The ``bins + 1`` edges."""
        return (self.first + np.arange(self.bins + 1, dtype=np.float64)) * self.width

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middles of the bins."""
        return (self.first + np.arange(self.bins, dtype=np.float64) + 0.5) * self.width

    def observe(self, values: Array) -> None:
        """Count the values of one array."""
        self.extremes.observe(values)
        if not self.extremes.finite or not values.size:
            return
        self._cover(float(values.min()), float(values.max()))
        self.zeros += values.size - int(np.count_nonzero(values))
        flat = values.reshape(-1)
        for lo in range(0, flat.size, _CHUNK):
            at = np.floor(flat[lo : lo + _CHUNK].astype(np.float64) / self.width)
            index = at.astype(np.int64) - self.first
            self.counts += np.bincount(index, minlength=self.bins)

    def _cover(self, low: float, high: float) -> None:
        """Make the bins reach from ``low`` to ``high``."""
        if self.exponent is None:
            # Half of the bins for what is seen first: most ranges grow a little.
            span = max(high - low, abs(low), abs(high)) or 1.0
            self.exponent = max(math.frexp(span * 2 / self.bins)[1], -1000)
            self.first = math.floor(low / self.width) - self.bins // 4
        assert self.exponent is not None
        while True:
            width = self.width
            wanted = math.floor(low / width), math.floor(high / width)
            if self.first <= wanted[0] and wanted[1] < self.first + self.bins:
                return
            occupied = np.flatnonzero(self.counts)
            if occupied.size:
                lowest = min(wanted[0], self.first + int(occupied[0]))
                highest = max(wanted[1], self.first + int(occupied[-1]))
            else:
                lowest, highest = wanted
            if highest - lowest < self.bins:
                self._slide(lowest - (self.bins - 1 - (highest - lowest)) // 2)
                return
            self._double()

    def _slide(self, first: int) -> None:
        occupied = np.flatnonzero(self.counts)
        moved = np.zeros_like(self.counts)
        moved[occupied + (self.first - first)] = self.counts[occupied]
        self.counts, self.first = moved, first

    def _double(self) -> None:
        """Merge bins in pairs that share an edge of twice the width."""
        assert self.exponent is not None
        at = (self.first + np.arange(self.bins)) // 2
        first = self.first // 2
        self.counts = np.bincount(at - first, weights=self.counts, minlength=self.bins)[
            : self.bins
        ].astype(np.int64)
        self.first = first
        self.exponent += 1


class _Counted:
    """What the calibrators over a histogram share."""

    def __init__(self, bins: int = _BINS) -> None:
        self.histogram = Histogram(bins)

    def observe(self, values: Array) -> None:
        self.histogram.observe(values)


class Percentile(_Counted):
    """The narrowest range that leaves ``100 - percent`` per cent out, half of it on each side.

    A side is only cut into where values lie beyond the cut; the result is within a bin of numpy's
    percentile, and never outside the exact extremes.
    """

    def __init__(self, percent: float = 99.99, bins: int = _BINS) -> None:
        if not 50 < percent <= 100:
            raise ValueError(f"percentile {percent}, over 50 and up to 100 makes sense")
        super().__init__(bins)
        self.percent = percent

    def range(self) -> tuple[float, float]:
        low, high = self.histogram.extremes.range()
        counts, edges = self.histogram.counts, self.histogram.edges
        total = np.cumsum(counts)
        left_out = (100 - self.percent) / 200 * int(total[-1])
        below = int(np.searchsorted(total, left_out, side="right"))
        above = int(np.searchsorted(total, int(total[-1]) - left_out, side="left"))
        return max(low, float(edges[below])), min(high, float(edges[above + 1]))


class Entropy(_Counted):
    """The range whose quantized distribution has the least KL divergence from the true one.

    As TensorRT's calibrator (Migacz 2017), in three steps for each candidate: clip the histogram
    (what lies outside is counted at the border), merge what is left into ``levels`` bins, spread
    each of those evenly over the occupied bins it came from. Signed activations are judged by
    magnitude, as there, and each side is then cut at the same place.
    """

    candidates = 128

    def __init__(self, levels: int = 256, bins: int = _BINS) -> None:
        super().__init__(bins)
        self.levels = levels

    def range(self) -> tuple[float, float]:
        low, high = self.histogram.extremes.range()
        size, step = _magnitudes(self.histogram)
        levels = self.levels if low >= 0 or high <= 0 else self.levels // 2
        used = int(np.flatnonzero(size)[-1]) + 1
        if used <= levels:
            return low, high
        tried = np.unique(np.linspace(levels, used, self.candidates).astype(int))
        divergences = [_divergence(size, int(n), levels) for n in tried]
        cut = float(tried[int(np.argmin(divergences))]) * step
        return max(low, -cut), min(high, cut)


class Mse(_Counted):
    """The range that leaves the least squared error with ``levels`` codes, 0 being one of them.

    The values at the middles of the bins are quantized for each candidate, one side at a time.
    Exact zeros (what a ReLU gives) cost nothing in any range that holds 0.
    """

    candidates = 100

    def __init__(self, levels: int = 256, bins: int = _BINS) -> None:
        super().__init__(bins)
        self.levels = levels

    def range(self) -> tuple[float, float]:
        extremes = self.histogram.extremes.range()
        if extremes[0] == extremes[1]:
            return extremes
        low, high = min(extremes[0], 0.0), max(extremes[1], 0.0)
        counts = self.histogram.counts.astype(np.float64)
        counts[-self.histogram.first % len(counts)] -= self.histogram.zeros
        occupied = np.flatnonzero(counts)
        values, counts = self.histogram.centres[occupied], counts[occupied]
        best = low, high
        for _ in range(2):
            for side, limit in enumerate((low, high)):
                tried = [
                    (limit * share, best[1]) if side == 0 else (best[0], limit * share)
                    for share in np.linspace(1, 0.03, self.candidates).tolist()
                ]
                best = min(tried, key=lambda r: _noise(counts, values, r, self.levels))
        return best


#: Calibrators by name, made without arguments.
CALIBRATORS: Mapping[str, Callable[[], Calibrator]] = {
    "minmax": MinMax,
    "percentile": Percentile,
    "entropy": Entropy,
    "mse": Mse,
}


def _magnitudes(histogram: Histogram) -> tuple[NDArray[np.float64], float]:
    """Counts by magnitude from 0 up, and the width of their bins."""
    at = histogram.first + np.arange(histogram.bins)
    # Bin k covers k to k + 1 widths; mirrored, bin -1 covers 0 to 1.
    distance = np.where(at >= 0, at, -1 - at)
    occupied = histogram.counts > 0
    reach = distance[occupied]
    nearest = int(reach.min())
    if nearest > 4 * histogram.bins:
        raise ValueError("activations lie far from 0 and close together: use minmax")
    size = np.bincount(reach, weights=histogram.counts[occupied].astype(np.float64))
    return np.asarray(size, dtype=np.float64), histogram.width


def _divergence(size: NDArray[np.float64], kept: int, levels: int) -> float:
    """KL(clipped || quantized) in nats for the first ``kept`` bins merged into ``levels``."""
    inside = size[:kept]
    clipped = inside.copy()
    clipped[-1] += size[kept:].sum()
    group = np.arange(kept) * levels // kept
    occupied = inside > 0
    sums = np.bincount(group, weights=inside, minlength=levels)
    shares = np.bincount(group, weights=occupied, minlength=levels)
    spread = np.where(occupied, (sums / np.maximum(shares, 1))[group], 0.0)
    p = clipped / clipped.sum()
    q = spread / max(float(spread.sum()), 1.0)
    # Where nothing but clipped values stand, the quantized distribution gives them next to none.
    q = np.maximum(q, 1e-12)
    seen = p > 0
    return float(np.sum(p[seen] * np.log(p[seen] / q[seen])))


def _noise(
    counts: NDArray[np.float64],
    values: NDArray[np.float64],
    span: tuple[float, float],
    levels: int,
) -> float:
    """Squared error of ``values`` quantized over ``span``, which holds 0."""
    low, high = span
    if low == high:
        return math.inf
    step = (high - low) / (levels - 1)
    zero = round(-low / step)
    back = np.clip(np.rint(values / step), -zero, levels - 1 - zero) * step
    return float(np.sum(counts * np.square(values - back)))
