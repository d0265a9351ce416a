"""Synthetic timings whose answers are known: noise of the kinds that machines make."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]


def autoregressive(rng: np.random.Generator, shape: tuple[int, ...], phi: float) -> Array:
    """AR(1) along the last axis, of unit variance."""
    noise = rng.normal(size=shape)
    series = np.empty(shape)
    series[..., 0] = noise[..., 0]
    for i in range(1, shape[-1]):
        series[..., i] = phi * series[..., i - 1] + math.sqrt(1 - phi * phi) * noise[..., i]
    return series


# ---------------------------------------------------------------------------------------------
# for intervals: a few processes, whose samples resemble one another


@dataclass(frozen=True)
class Machine:
    """Relative sizes: processes' own offsets, AR(1) noise within one, and a right tail."""

    offsets: float
    noise: float
    phi: float
    tail: str = "exponential"

    def draw(self, rng: np.random.Generator, processes: int, samples: int) -> Array:
        """Seconds, one row a process."""
        level = self.offsets * rng.normal(size=(processes, 1))
        values = np.exp(level + self.noise * autoregressive(rng, (processes, samples), self.phi))
        if self.tail == "pareto":
            return np.asarray(values * (1 + 0.02 * rng.pareto(2.5, values.shape)))
        return np.asarray(values * (1 + 0.05 * rng.exponential(size=values.shape)))


MACHINES: Mapping[str, Machine] = {
    "independent": Machine(0.01, 0.01, 0.0),
    "mild": Machine(0.01, 0.01, 0.5),
    "no offsets": Machine(0.0, 0.02, 0.9),
    "offsets": Machine(0.03, 0.02, 0.9),
    "slow noise": Machine(0.01, 0.03, 0.98),
    "heavy tail": Machine(0.01, 0.02, 0.8, "pareto"),
    "heavy tail, no offsets": Machine(0.0, 0.02, 0.8, "pareto"),
}

# ---------------------------------------------------------------------------------------------
# for the steady state: (series, where it begins, or None: never)

Labelled: TypeAlias = "tuple[Array, int | None]"


def _floor(rng: np.random.Generator, count: int) -> Array:
    """What a process does when nothing happens: slow noise, and a right tail."""
    slow = 0.008 * autoregressive(rng, (count,), rng.uniform(0.0, 0.9))
    return np.asarray(np.exp(slow) * (1 + 0.01 * rng.exponential(size=count)))


def _count(rng: np.random.Generator) -> int:
    return int(np.exp(rng.uniform(math.log(60), math.log(2000))))


def flat(rng: np.random.Generator) -> Labelled:
    return _floor(rng, _count(rng)), 0


def decay(rng: np.random.Generator) -> Labelled:
    """Warm-up that fades: steady once what is left of it is under 2%."""
    count = _count(rng)
    height, pace = rng.uniform(0.2, 3.0), count * rng.uniform(0.005, 0.08)
    start = int(pace * math.log(height / 0.02))
    return _floor(rng, count) * (1 + height * np.exp(-np.arange(count) / pace)), start


def steps(rng: np.random.Generator) -> Labelled:
    """One to three levels before the last one, each a tenth away or more."""
    count = _count(rng)
    series = _floor(rng, count)
    at = np.sort(rng.choice(np.arange(3, count // 2), rng.integers(1, 4), replace=False))
    for bound in at:
        series[:bound] *= 1 + rng.uniform(0.1, 0.8)
    return series, int(at[-1])


def first_few(rng: np.random.Generator) -> Labelled:
    count, start = _count(rng), int(rng.integers(1, 8))
    series = _floor(rng, count)
    series[:start] *= 1 + rng.uniform(0.5, 4.0, start)
    return series, start


def pauses(rng: np.random.Generator) -> Labelled:
    """A collector's pause every so often, and spikes in between."""
    series, start = steps(rng) if rng.random() < 0.5 else flat(rng)
    series[int(rng.integers(5, 40)) :: int(rng.integers(15, 60))] *= rng.uniform(1.5, 5.0)
    hit = rng.random(len(series)) < 0.03
    series[hit] *= rng.uniform(1.2, 6.0, int(hit.sum()))
    return series, start


def burst(rng: np.random.Generator) -> Labelled:
    """A neighbour that comes once and goes again, for a small part of the time."""
    count = _count(rng)
    series = _floor(rng, count)
    length = max(1, int(count * rng.uniform(0.01, 0.05)))
    begin = int(rng.uniform(0.2, 0.8) * count)
    series[begin : begin + length] *= rng.uniform(1.3, 2.0)
    return series, 0


def drift(rng: np.random.Generator) -> Labelled:
    count = _count(rng)
    change = rng.choice([-1, 1]) * rng.uniform(0.1, 0.6)
    return _floor(rng, count) * np.exp(change * np.linspace(0.0, 1.0, count)), None


def late_step(rng: np.random.Generator) -> Labelled:
    """Another level for the last part: what it would settle to was hardly seen."""
    count = _count(rng)
    series = _floor(rng, count)
    series[int(rng.uniform(0.7, 0.92) * count) :] *= np.exp(
        rng.choice([-1, 1]) * rng.uniform(0.1, 0.6)
    )
    return series, None


def stairs(rng: np.random.Generator) -> Labelled:
    """Slower with every step, or faster, until the end."""
    count = _count(rng)
    number = int(rng.integers(5, 12))
    stair = np.floor(np.arange(count) * number / count)
    return _floor(rng, count) * np.exp(rng.choice([-1, 1]) * rng.uniform(0.04, 0.1) * stair), None


def two_states(rng: np.random.Generator) -> Labelled:
    """Back and forth between two levels, as long at each."""
    count = _count(rng)
    period = count / rng.uniform(4.0, 8.0)
    high = ((np.arange(count) + rng.uniform(0, period)) // (period / 2)) % 2
    return _floor(rng, count) * (1 + rng.uniform(0.15, 0.8) * high), None


def still_falling(rng: np.random.Generator) -> Labelled:
    """A warm-up longer than what was measured."""
    count = _count(rng)
    height, pace = rng.uniform(0.5, 3.0), count * rng.uniform(0.6, 3.0)
    return _floor(rng, count) * (1 + height * np.exp(-np.arange(count) / pace)), None


STEADY: Mapping[str, Callable[[np.random.Generator], Labelled]] = {
    "flat": flat,
    "decay": decay,
    "steps": steps,
    "first few": first_few,
    "pauses and spikes": pauses,
    "burst": burst,
}
NEVER: Mapping[str, Callable[[np.random.Generator], Labelled]] = {
    "drift": drift,
    "late step": late_step,
    "stairs": stairs,
    "two states": two_states,
    "still falling": still_falling,
}


def start_is_right(found: int | None, true: int, count: int) -> bool:
    """Within 5% of the series, or five samples, of where the steady state begins."""
    return found is not None and abs(found - true) <= max(5, 0.05 * count)


# ---------------------------------------------------------------------------------------------
# for verdicts: two subjects that take turns on one machine

Rounds: TypeAlias = "list[list[float]]"


def in_turns(
    rng: np.random.Generator,
    kind: str,
    slowdown: float,
    *,
    processes: int = 8,
    turns: int = 20,
    samples: int = 20,
) -> tuple[Rounds, Rounds, list[list[int]]]:
    """Seconds of two subjects by process, the second ``slowdown`` times the first; blocks of both.

    What the machine does falls on both sides of a turn; where a process's pages fell does not.
    """
    offsets = 0.015 if kind == "offsets" else 0.005
    time = np.arange(processes * turns * 2).reshape(processes, turns, 2)
    machine = np.ones(time.shape)
    if kind == "drift":
        machine = 1.0 + time / time.size
    elif kind == "two speeds":
        state = np.cumsum(rng.random(time.size) < 0.1) % 2
        machine = 1.0 + 0.6 * state.reshape(time.shape)
    elif kind == "bursts":
        hit = rng.random(time.shape) < 0.15
        machine[hit] *= rng.uniform(1.3, 5.0, int(hit.sum()))
    # A turn's two halves are one side each, in alternating order: A B, B A.
    machine[:, 1::2] = machine[:, 1::2, ::-1]
    wobble = np.exp(0.02 * rng.normal(size=machine.shape))
    level = np.exp(offsets * rng.normal(size=(processes, 1, 2)))
    values = (machine * wobble * level)[..., None] * (
        1 + 0.03 * rng.exponential(size=(*machine.shape, samples))
    )
    values[:, :, 1] *= slowdown
    a, b = (values[:, :, side].reshape(processes, -1).tolist() for side in (0, 1))
    return a, b, [[samples] * turns] * processes


TURNS = ("calm", "drift", "bursts", "two speeds", "offsets")
