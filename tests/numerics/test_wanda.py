"""Wanda's scores and rows against the formula, written out."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.numerics import masks, wanda


def test_scores_are_magnitude_times_the_inputs_norm_and_rows_are_ranked_alone() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(6, 8)).astype(np.float32)
    w[0] *= 100  # a loud row loses as many weights as the others
    x = rng.normal(size=(50, 8)) * np.geomspace(0.01, 10, 8)
    norms = np.linalg.norm(x, axis=0)
    kept = wanda.keep(w, norms, ratio=0.25)
    for i in range(6):
        score = [abs(float(w[i, j])) * float(np.sqrt((x[:, j] ** 2).sum())) for j in range(8)]
        assert set(np.flatnonzero(~kept[i])) == set(np.argsort(score)[:2])


def test_equal_norms_give_magnitudes_masks() -> None:
    w = np.random.default_rng(1).normal(size=(5, 16)).astype(np.float32)
    norms = np.full(16, 3.0)
    assert np.array_equal(wanda.keep(w, norms, pattern=(2, 4)), masks.n_of_m(np.abs(w), 2, 4))
    assert np.array_equal(wanda.keep(w, norms, ratio=0.5), masks.rowwise(np.abs(w), 0.5))


def test_an_input_that_is_never_there_goes_first() -> None:
    w = np.array([[9.0, 0.1, 0.2, 0.3]], np.float32)
    kept = wanda.keep(w, np.array([0.0, 1, 1, 1]), ratio=0.25)
    assert kept.tolist() == [[False, True, True, True]]


@pytest.mark.parametrize("norms", [[1, 2], [1, np.nan, 1], [1, -1, 1], [1, np.inf, 1]])
def test_norms_that_are_none_are_refused(norms: list[float]) -> None:
    with pytest.raises(ValueError, match="norms"):
        wanda.keep(np.ones((2, 3), np.float32), np.array(norms, float), ratio=0.5)


def test_one_of_ratio_and_pattern() -> None:
    w, norms = np.ones((2, 4), np.float32), np.ones(4)
    for given in ({}, {"ratio": 0.5, "pattern": (2, 4)}):
        with pytest.raises(ValueError, match="one of them"):
            wanda.keep(w, norms, **given)  # type: ignore[arg-type]
