"""How much a measurement scatters, when that is much, and what the user can do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["NOISY", "advice", "is_noisy", "scatter"]

#: From which scatter on a row is called noisy, by metric or by its first word.
NOISY: Mapping[str, float] = {
    "latency": 0.05,
    "import": 0.20,
    "load": 0.20,
    "first": 0.20,
    "memory": 0.05,
    "energy": 0.10,
}

#: Turns that a process's samples are cut into where they were not taken in turns.
_TURNS = 20

_FROM_MAD = 1.4826


def scatter(
    metric: str, groups: Sequence[NDArray[np.float64]], blocks: Sequence[Sequence[int]] = ()
) -> float | None:
    """The relative standard deviation of what should have been alike; None: not enough of it.

    Of a latency that is the medians of turns about their process's own median, robustly
    (1.4826 times the median absolute deviation), and the processes' medians about each other,
    whichever is more: bursts and drift show in the first, unlucky processes in
    the second. Of other metrics it is the processes about each other.
    """
    if metric in ("file", "warmup"):
        return None
    finite = [g[np.isfinite(g) & (g > 0)] for g in groups]
    finite = [g for g in finite if g.size]
    levels = np.log([float(np.median(g)) for g in finite])
    found = [float(levels.std(ddof=1))] if len(levels) >= 3 else []
    if metric == "latency":
        deviations = []
        for i, group in enumerate(groups):
            counts = blocks[i] if i < len(blocks) and sum(blocks[i]) == group.size else ()
            bounds = np.cumsum(counts) if counts else np.arange(0, group.size, _size(group))
            with np.errstate(invalid="ignore", divide="ignore"):
                parts = np.split(np.log(group), np.unique(bounds))
            medians = np.array([np.median(p) for p in parts if p.size])
            medians = medians[np.isfinite(medians)]
            if medians.size >= 3:
                deviations.append(np.abs(medians - np.median(medians)))
        if deviations:
            found.append(_FROM_MAD * float(np.median(np.concatenate(deviations))))
    return max(found) if found else None


def _size(group: NDArray[np.float64]) -> int:
    return max(1, group.size // _TURNS)


def is_noisy(metric: str, found: float | None) -> bool:
    """Whether a scatter is worth a flag."""
    limit = NOISY.get(metric, NOISY.get(metric.partition(".")[0]))
    return found is not None and limit is not None and found > limit


def advice(environment: Mapping[str, Any], processes: int) -> tuple[str, ...]:
    """What to do about noise on the machine that measured, most useful first."""
    found = []
    load, cores = environment.get("load_1min"), environment.get("cores_usable")
    if isinstance(load, (int, float)) and isinstance(cores, int) and load > 0.5 * cores:
        found.append(f"close other programs: the load was {load:.1f} on {cores} cores")
    else:
        found.append("close other programs while it runs")
    governor = environment.get("governor")
    if isinstance(governor, str) and governor not in ("performance", "unavailable", ""):
        found.append(
            f"pin the CPU's frequency: the governor is {governor}; "
            "try cpupower frequency-set -g performance"
        )
    steal = environment.get("steal")
    if isinstance(steal, (int, float)) and steal > 0.01:
        found.append("the host took time from this virtual machine; measure when it is idle")
    found.append(f"use more --processes (these are {processes}), or a longer --time")
    return tuple(found)
