"""Statistics of timings, against known answers and seeded noise of the kinds machines make."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.numerics import statistics as st
from edgeopt.numerics.decide import alike, compare_blocks, compare_values

ROUNDS = 40


def noisy_rounds(kind: str, slowdown: float, rng: np.random.Generator, rounds: int = ROUNDS):
    """Blocks of A B B A rounds whose true ratio is ``slowdown``, on a machine with this habit."""
    count = rounds * 4
    machine = np.ones(count)
    jitter = rng.normal(1.0, 0.03, count)
    if kind == "spikes":  # a neighbour's bursts, up to ten times the block
        hit = rng.random(count) < 0.15
        machine[hit] *= rng.uniform(1.5, 10.0, int(hit.sum()))
    elif kind == "drift":  # a clock that falls to half its frequency meanwhile
        machine *= np.linspace(1.0, 2.0, count)
    elif kind == "bimodal":  # two speeds, each kept for a while
        state, speeds = 0, (1.0, 1.6)
        for i in range(count):
            if rng.random() < 0.2:
                state = 1 - state
            machine[i] = speeds[state]
    elif kind == "heavy":  # no second moment
        machine += 0.05 * np.abs(rng.standard_t(1.5, count))
    blocks = (machine * np.abs(jitter)).reshape(rounds, 4)
    base = blocks[:, [0, 3]].reshape(-1)
    other = slowdown * blocks[:, [1, 2]].reshape(-1)
    return base, other


KINDS = ("calm", "spikes", "drift", "bimodal", "heavy")


@pytest.mark.parametrize("kind", KINDS)
def test_noise_alone_is_not_called_a_slowdown(kind: str) -> None:
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(300):
        base, other = noisy_rounds(kind, 1.0, rng)
        alarms += compare_blocks([base], [other]) == "worse"
    assert alarms / 300 <= 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_a_true_slowdown_of_15_percent_is_found(kind: str) -> None:
    rng = np.random.default_rng(2)
    found = 0
    for _ in range(200):
        base, other = noisy_rounds(kind, 1.15, rng)
        found += compare_blocks([base], [other]) == "worse"
    assert found / 200 >= (
        0.8 if kind == "spikes" else 0.9
    )  # more than half of whose rounds are hit


@pytest.mark.parametrize("kind", KINDS)
def test_few_rounds_do_not_raise_false_alarms(kind: str) -> None:
    rng = np.random.default_rng(3)
    twice = 0
    for _ in range(400):  # the gate asks two workers, and both must agree
        both = [noisy_rounds(kind, 1.0, rng, rounds=5) for _ in range(2)]
        twice += compare_blocks(*zip(*both, strict=True)) == "worse"
    assert twice / 400 <= 0.01


def test_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(400):
        interval = st.ratio_interval(np.exp(rng.normal(0.0, 0.2, 30)))
        covered += interval.low <= 1.0 <= interval.high
    assert 0.91 <= covered / 400 <= 0.99


def test_interval_is_the_same_every_time() -> None:
    data = np.random.default_rng(5).normal(1.0, 0.1, 20)
    assert st.ratio_interval(data) == st.ratio_interval(data)


def test_interval_of_constant_ratios_has_no_width() -> None:
    assert st.ratio_interval([1.2] * 9) == st.Interval(1.2, 1.2, 1.2, 9)


def test_linear_drift_cancels_in_a_round() -> None:
    base = [1.0, 4.0, 5.0, 8.0]  # A at times 1 and 4, then 5 and 8
    other = [2.0, 3.0, 6.0, 7.0]
    assert st.round_ratios(base, other, 2).tolist() == [1.0, 1.0]


def test_an_unfinished_round_is_left_out() -> None:
    assert st.round_ratios([1.0, 1.0, 9.0], [2.0, 2.0, 9.0], 2).tolist() == [2.0]


def test_processes_are_not_mixed_in_a_round() -> None:
    # Each process has one block too many; were they run together, odd pairs would form.
    interval = st.paired_interval(
        [[1.0, 1.0, 50.0], [2.0, 2.0]],
        [[2.0, 2.0, 50.0], [4.0, 4.0]],
    )
    assert interval is not None
    assert (interval.estimate, interval.count) == (2.0, 2)
    assert st.paired_interval([[1.0]], [[1.0]]) is None


def test_two_ratios_show_nothing() -> None:
    assert compare_blocks([[1.0] * 4], [[3.0] * 4]) == "unknown"
    assert compare_blocks([[1.0] * 6], [[3.0] * 6]) == "worse"
    assert compare_blocks([], []) == "unknown"


def test_processes_that_disagree_show_nothing() -> None:
    base = [[1.0] * 6] * 2
    assert compare_blocks(base, [[0.5] * 6, [1.0] * 6]) == "not significant"
    assert compare_blocks(base, [[0.5] * 6, [0.6] * 6]) == "better"


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [(0.99, 1.01, True), (1.0, 1.0, True), (0.99, 1.03, False), (0.9, 1.0, False)],
)
def test_equal_is_shown_by_an_interval_alone(low: float, high: float, shown: bool) -> None:
    assert alike(low, high, 0.025) is shown


def test_a_few_values_a_side_go_by_the_same_rule() -> None:
    base = [[100.0], [101.0], [99.0]]
    assert compare_values("memory", base, [[50.0], [50.5], [49.5]]) == "better"
    assert compare_values("load", base, [[104.0], [80.0], [118.0]]) == "not significant"
    assert compare_values("memory", base[:1], [[50.0]]) == "unknown"
    assert compare_values("memory", base, base) == "same"


def test_percentile_needs_samples_beyond_it() -> None:
    values = list(map(float, range(1000)))
    assert st.percentile(values[:63], 90) is None
    assert st.percentile(values[:64], 90) == pytest.approx(np.percentile(values[:64], 90))
    assert st.percentile(values[:600], 99) is None
    assert st.percentile(values[:662], 99) is not None
    assert st.percentile(values[:63], 10) is None


def test_nothing_has_no_median() -> None:
    assert st.median([3.0, 1.0, 2.0]) == 2.0
    with pytest.raises(ValueError, match="no values"):
        st.median([])
    with pytest.raises(ValueError, match="no ratios"):
        st.ratio_interval([])
