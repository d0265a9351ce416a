"""Verdicts: nothing is claimed of copies, five percent is found, and ties and gaps are told."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks._series import in_turns

from edgeopt.numerics import bootstrap as bs
from edgeopt.numerics import decide as dc
from edgeopt.numerics.statistics import Interval


def verdict_of(rng: np.random.Generator, slowdown: float, kind: str) -> str:
    base, other, blocks = in_turns(rng, kind, slowdown)
    ratio = dc.compare_turns(dc.turn_ratios(base, blocks, other, blocks))
    rule = dc.rule_of("latency", "p50")
    return dc.verdict(ratio.interval(rule.confidence), rule.effect)


@pytest.mark.parametrize("kind", ["calm", "drift", "bursts", "two speeds", "offsets"])
def test_copies_do_not_differ_and_five_percent_does(kind: str) -> None:
    rng = np.random.default_rng(4)
    alarms = sum(verdict_of(rng, 1.0, kind) != "not significant" for _ in range(60))
    found = sum(verdict_of(rng, 1.05, kind) == "worse" for _ in range(60))
    assert alarms <= 1
    assert found >= 56


def test_turns_are_paired_by_number_and_empty_ones_left_out() -> None:
    base, other = [(1.0, 3.0, 2.0, 4.0)], [(2.0, 9.0, 9.0, 8.0)]
    # turn 0: median 2 against none, turn 1: 2 against 2, turn 2: 4 against 9 (of 9, 9, 8)
    (ratios,) = dc.turn_ratios(base, [(2, 1, 1)], other, [(0, 1, 3)])
    assert ratios == pytest.approx([1.0, 2.25])
    assert dc.turn_ratios(base, (), other, ()) == []
    assert dc.turn_ratios(base, [(2, 1)], other, [(0, 1, 3)]) == []
    nan = [(math.nan, math.nan, 1.0, 1.0)]
    (left,) = dc.turn_ratios(nan, [(2, 2)], [(1.0, 1.0, 3.0, 3.0)], [(2, 2)])
    assert left == pytest.approx([3.0])


def test_the_median_of_a_turn_is_numpys() -> None:
    rng = np.random.default_rng(0)
    counts = [int(n) for n in rng.integers(1, 9, 30)]
    values = rng.normal(5.0, 1.0, sum(counts))
    expected = [np.median(v) for v in np.split(values, np.cumsum(counts)[:-1])]
    ones = [1.0] * sum(counts)
    (ratios,) = dc.turn_ratios([ones], [counts], [values.tolist()], [counts])
    assert ratios == pytest.approx(expected)


@pytest.mark.parametrize(
    ("interval", "more", "said"),
    [
        (None, False, "unknown"),
        (Interval(1.0, 1.0, 1.0, 9), False, "same"),
        (Interval(1.0, 0.9, 1.1, 9), False, "not significant"),
        (Interval(1.1, 1.05, 1.2, 9), False, "worse"),
        (Interval(1.1, 1.05, 1.2, 9), True, "better"),
        (Interval(0.5, 0.4, 0.6, 9), False, "better"),
        (Interval(0.5, 0.4, 0.6, 9), True, "worse"),
        (Interval(1.01, 1.009, 1.011, 9), False, "not significant"),  # certain, and tiny
        (Interval(0.99, 0.989, 0.991, 9), False, "not significant"),
        (Interval(2.0, 0.9, 4.0, 9), False, "not significant"),  # large, and uncertain
    ],
)
def test_a_verdict_needs_certainty_and_an_effect(
    interval: Interval | None, more: bool, said: str
) -> None:
    assert dc.verdict(interval, 0.025, more_is_better=more) == said


def test_rules_go_by_statistic_then_metric_then_its_first_word() -> None:
    assert dc.rule_of("latency", "p50") == dc.RULES["latency.p50"]
    assert dc.rule_of("latency", "p99") == dc.RULES["latency"]
    assert dc.rule_of("memory.peak", "median") == dc.RULES["memory"]
    assert dc.rule_of("something", "median").effect == 0.05


def test_what_cannot_be_divided_is_not_compared() -> None:
    zero = bs.resample([np.zeros(2)] * 5)[50.0]
    one = bs.resample([np.ones(2)] * 5)[50.0]
    assert dc.compare(zero, one, rounds=True) is None
    assert dc.compare(one, bs.resample([np.ones(2)] * 2)[50.0], rounds=True) is None
    same = dc.compare(one, one, rounds=False)
    assert same is not None and same.low == same.high == 1.0
