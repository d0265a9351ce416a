from __future__ import annotations

import math

import numpy as np
import pytest

from edgeopt.graphs.capture.check import agreement_db


def test_ratio_of_signal_to_noise_is_the_worst_outputs():
    a = np.ones(100, np.float32)
    close, far = a + np.float32(1e-3), a + np.float32(1e-1)
    assert agreement_db([a, a], [close, far]) == pytest.approx(20, abs=1e-3)
    assert agreement_db([a], [a]) == math.inf


@pytest.mark.parametrize(
    ("reference", "got"),
    [
        ([np.ones(3, np.float32)], []),
        ([np.ones(3, np.float32)], [np.ones(4, np.float32)]),
        ([np.array([1, np.nan], np.float32)], [np.array([1, 1], np.float32)]),
        ([np.zeros(2, np.float32)], [np.ones(2, np.float32)]),
        ([np.arange(10)], [np.arange(10)[::-1]]),
    ],
)
def test_what_never_agrees(reference, got):
    assert agreement_db(reference, got) == -math.inf


def test_not_finite_in_both_and_equal_integers_agree():
    bad = np.array([1, np.nan, np.inf], np.float32)
    assert agreement_db([bad, np.arange(5)], [bad.copy(), np.arange(5)]) == math.inf
