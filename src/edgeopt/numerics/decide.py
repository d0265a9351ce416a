"""Whether one subject differs from another: an interval, and an effect worth the name.

A test alone is not enough. Timings of one file against its own copy differ in fact, a little: by
where the pages fell, by who was running meanwhile (Mytkowicz et al. 2009), and enough samples make
any such difference "significant". So a difference counts only where the 99% interval leaves out 1
*and* the estimate lies beyond a smallest effect. For the median latency that is half of the 5%
which are to be found: with eight processes whose ratios scatter by up to 2%, both errors stay
rare (``benchmarks/measure_synthetic.py``); five find less. What is noisier must differ by more.
``bench``, ``compare`` and every proof go by these rules, so that they cannot disagree about what
"slower" means; the choices of a plan ask for more (:mod:`edgeopt.measure.contest`).

Subjects that took turns are compared turn by turn. Turn i of both ran side by side, so that their
ratio is free of what the machine did then; the median of a process's ratios is free of bursts,
and orders that alternate (A B B A) free of drift. The processes' ratios are then averaged, and
their scatter gives the interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.numerics.bootstrap import Resampled, ratio_of, resample, resampled_mean, welch
from edgeopt.numerics.statistics import (
    BLOCKS_PER_ROUND,
    FEWEST_RATIOS,
    Interval,
    ratio_interval,
    round_ratios,
)

__all__ = [
    "RULES",
    "DecisionRule",
    "alike",
    "compare",
    "compare_blocks",
    "compare_turns",
    "compare_values",
    "rule_of",
    "turn_ratios",
    "verdict",
    "verdict_of",
]


@dataclass(frozen=True)
class DecisionRule:
    """What makes a difference: ``confidence`` of the interval that must leave out 1, and the
    smallest ``effect`` (0.025: a ratio of 1.025 or more, or of 1 / 1.025 or less)."""

    confidence: float
    effect: float


#: By "metric.statistic", else by metric, else by the metric's first word.
RULES: Mapping[str, DecisionRule] = {
    "latency.p50": DecisionRule(0.99, 0.025),
    "latency": DecisionRule(0.99, 0.05),
    "first": DecisionRule(0.99, 0.10),
    "import": DecisionRule(0.99, 0.10),
    "load": DecisionRule(0.99, 0.10),
    "memory": DecisionRule(0.99, 0.02),
    "energy": DecisionRule(0.99, 0.05),
}

_OTHERS = DecisionRule(0.99, 0.05)


def rule_of(metric: str, statistic: str) -> DecisionRule:
    """The rule of a metric's statistic."""
    for name in (f"{metric}.{statistic}", metric, metric.partition(".")[0]):
        if name in RULES:
            return RULES[name]
    return _OTHERS


def turn_ratios(
    base: Sequence[Sequence[float]],
    base_blocks: Sequence[Sequence[int]],
    other: Sequence[Sequence[float]],
    other_blocks: Sequence[Sequence[int]],
) -> list[NDArray[np.float64]]:
    """``other / base`` of the medians of every turn that both have samples in, by process.

    Values and numbers of samples a turn are those of a Measurement. Processes without such a
    turn are left out; all of them where the two did not take turns.
    """
    found = []
    for values, counts, values_2, counts_2 in zip(
        base, base_blocks, other, other_blocks, strict=False
    ):
        if sum(counts) != len(values) or sum(counts_2) != len(values_2):
            continue
        a, b = _turn_medians(values, counts), _turn_medians(values_2, counts_2)
        turns = min(len(a), len(b))
        ratios = b[:turns] / a[:turns]
        ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
        if ratios.size:
            found.append(ratios)
    return found


def _turn_medians(values: Sequence[float], counts: Sequence[int]) -> NDArray[np.float64]:
    """The median of each turn; NaN of one without samples."""
    array = np.asarray(values, np.float64)
    sizes = np.asarray(counts, np.intp)
    turn = np.repeat(np.arange(sizes.size), sizes)
    ranked = array[np.lexsort((array, turn))]
    begin = np.cumsum(sizes) - sizes
    medians = np.full(sizes.size, np.nan)
    some = sizes > 0
    low, high = begin + (sizes - 1) // 2, begin + sizes // 2
    medians[some] = (ranked[low[some]] + ranked[high[some]]) / 2.0
    return medians


def compare_turns(ratios: Sequence[NDArray[np.float64]]) -> Resampled:
    """The ratio of subjects that took turns: the geometric mean of the processes' medians.

    Raises ValueError on no process.
    """
    return resampled_mean([float(np.median(np.log(r))) for r in ratios], sum(map(len, ratios)))


def compare_blocks(base: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> str:
    """The :func:`verdict` on the median latency of ``other`` against ``base``, from the blocks of
    A B B A rounds, one sequence a process, both files in each.

    Every process judges by its own rounds, and a difference counts where all of them find it:
    what a process adds (where its pages fell) is the same in all of its rounds.
    """
    said = {
        verdict_of(round_ratios(a, b, BLOCKS_PER_ROUND), rule_of("latency", "p50"))
        for a, b in zip(base, other, strict=False)
    }
    return said.pop() if len(said) == 1 else "not significant" if said else "unknown"


def verdict_of(ratios: Sequence[float] | NDArray[np.float64], rule: DecisionRule) -> str:
    """The :func:`verdict` on ratios of rounds in one process; ``unknown`` of fewer than three."""
    if len(ratios) < FEWEST_RATIOS:
        return "unknown"
    return verdict(ratio_interval(ratios, rule.confidence), rule.effect)


def compare_values(
    metric: str, base: Sequence[Sequence[float]], other: Sequence[Sequence[float]]
) -> str:
    """The :func:`verdict` on the median of a metric, process i of both one after the other."""
    rule = rule_of(metric, "median")
    a, b = (resample([np.asarray(v, np.float64) for v in each])[50.0] for each in (base, other))
    return verdict(compare(a, b, rounds=True, confidence=rule.confidence), rule.effect)


def compare(
    base: Resampled, other: Resampled, *, rounds: bool, confidence: float = 0.95
) -> Interval | None:
    """``other / base``; ``rounds`` says that process i of both ran at the same time.

    None where there are fewer than three processes of either, or nothing to divide by.
    """
    if base.estimate <= 0 or other.estimate <= 0:
        return None
    if rounds and base.processes == other.processes and bool((base.draws > 0).all()):
        return ratio_of(other, base).interval(confidence)
    return welch(other, base, confidence)


def verdict(ratio: Interval | None, effect: float, *, more_is_better: bool = False) -> str:
    """``better``, ``worse``, ``same``, ``not significant``, or ``unknown`` without an interval.

    ``ratio`` carries the interval of the rule's confidence. Less is better unless told. Equal
    without any scatter is ``same``.
    """
    if ratio is None:
        return "unknown"
    if ratio.low == ratio.high == 1.0:
        return "same"
    if ratio.low > 1.0 and ratio.estimate >= 1.0 + effect:
        return "better" if more_is_better else "worse"
    if ratio.high < 1.0 and ratio.estimate <= 1.0 / (1.0 + effect):
        return "worse" if more_is_better else "better"
    return "not significant"


def alike(low: float, high: float, effect: float) -> bool:
    """Whether an interval of a ratio shows that two are equal: it lies within the ``effect``.

    Not the same as finding no difference, which noise or few samples may hide.
    """
    return 1.0 / (1.0 + effect) <= low and high <= 1.0 + effect
