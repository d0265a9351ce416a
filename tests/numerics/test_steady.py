"""Steady states that are there are found, and those that are not are not."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks._series import NEVER, STEADY, start_is_right

from edgeopt.numerics.steady import steady_start

TRIALS = 30


def test_steady_states_are_found_where_they_begin() -> None:
    right = 0
    for make in STEADY.values():
        rng = np.random.default_rng(11)
        for _ in range(TRIALS):
            series, start = make(rng)
            assert start is not None
            right += start_is_right(steady_start(series), start, len(series))
    assert right >= 0.95 * TRIALS * len(STEADY)


def test_what_never_settles_is_not_called_steady() -> None:
    false = 0
    for make in NEVER.values():
        rng = np.random.default_rng(12)
        false += sum(steady_start(make(rng)[0]) is not None for _ in range(TRIALS))
    assert false <= 0.05 * TRIALS * len(NEVER)


@pytest.mark.parametrize(
    ("samples", "start"),
    [
        ([], None),
        ([1.0], None),
        ([1.0, 1.0], 0),
        ([3.0, 1.0, 1.0, 1.001], 1),
        ([1.0, 1.1, 1.2, 1.3], None),
        ([1.0] * 50, 0),
        ([1.0, float("nan")] * 20, None),
        ([0.0] * 20, None),
    ],
)
def test_edges(samples: list[float], start: int | None) -> None:
    assert steady_start(samples) == start


def test_seconds_or_milliseconds_make_no_difference() -> None:
    series, _ = STEADY["steps"](np.random.default_rng(3))
    assert steady_start(series) == steady_start(series * 1e3) is not None
