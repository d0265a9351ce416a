"""Task metrics against scikit-learn, scipy and torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr
from sklearn.metrics import accuracy_score
from sklearn.metrics.pairwise import paired_cosine_distances

from edgeopt.numerics.paired import paired_difference
from edgeopt.numerics.task_metrics import (
    accuracy,
    cosines,
    negative_log_likelihoods,
    ranks,
    spearman,
)

RNG = np.random.default_rng(0)


def test_accuracy_is_scikit_learns() -> None:
    logits, labels = RNG.standard_normal((200, 7)), RNG.integers(0, 7, 200)
    scores = accuracy(logits, labels)
    assert scores.mean() == accuracy_score(labels, logits.argmax(1))
    assert set(scores) <= {0.0, 1.0}
    assert np.array_equal(accuracy(logits.argmax(1), labels), scores)


def test_accuracy_of_many_labels_a_sample() -> None:
    logits, labels = RNG.standard_normal((3, 5, 4)), RNG.integers(0, 4, (3, 5))
    labels[0, 2] = -100
    expected = [
        accuracy_score(want[want >= 0], rows.argmax(-1)[want >= 0])
        for rows, want in zip(logits, labels, strict=True)
    ]
    assert accuracy(logits, labels) == pytest.approx(expected)
    # classes first, as segmentation has them
    images = np.moveaxis(logits.reshape(3, 5, 1, 4), -1, 1)
    assert accuracy(images, labels.reshape(3, 5, 1)) == pytest.approx(expected)
    labels[1] = -1
    assert np.isnan(accuracy(logits, labels)[1])


def test_a_row_with_nan_is_wrong() -> None:
    logits = np.array([[np.nan, 0.0], [1.0, 0.0]])
    assert accuracy(logits, np.array([0, 0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("shape", "labels"), [((4,), (4,)), ((4, 1), (4,)), ((4, 3), (5,)), ((4, 3, 2), (4,))]
)
def test_outputs_without_classes(shape: tuple[int, ...], labels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="has no classes for labels of shape"):
        accuracy(np.zeros(shape, np.float32), np.zeros(labels, np.int64))


@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-9, 9)), min_size=2, max_size=30))
def test_spearman_is_scipys(pairs: list[tuple[int, float]]) -> None:
    a, b = np.array(pairs, np.float64).T
    assert np.array_equal(ranks(a), rankdata(a))
    if len(set(a)) > 1 and len(set(b)) > 1:
        assert spearman(a, b) == pytest.approx(float(spearmanr(a, b).statistic), abs=1e-12)
    else:
        assert np.isnan(spearman(a, b))


def test_spearman_of_nan_is_nan() -> None:
    assert np.isnan(spearman(np.array([1.0, np.nan, 3.0]), np.arange(3.0)))


def test_cosines_are_scikit_learns() -> None:
    a, b = RNG.standard_normal((2, 9, 16)).astype(np.float32)
    assert cosines(a, b) == pytest.approx(1 - paired_cosine_distances(a, b), abs=1e-6)
    assert np.isnan(cosines(a * 0, b)).all()


def test_log_likelihoods_are_torchs() -> None:
    logits = RNG.standard_normal((2, 6, 11)).astype(np.float32) * 30
    ids = RNG.integers(0, 11, (2, 6))
    mask = np.ones((2, 6), np.int64)
    mask[1, 4:] = 0
    wanted = torch.from_numpy(np.where(mask != 0, ids, -100))[:, 1:].reshape(-1)
    rows = torch.from_numpy(logits)[:, :-1].reshape(-1, 11).double()
    expected = torch.nn.functional.cross_entropy(rows, wanted, reduction="none")
    found = negative_log_likelihoods(logits, ids, mask)
    assert found == pytest.approx(expected[wanted >= 0].numpy(), rel=1e-6)
    masked = np.where(mask != 0, ids, -100)
    assert negative_log_likelihoods(logits, masked) == pytest.approx(found)
    assert negative_log_likelihoods(logits[:, :1], ids[:, :1]).size == 0
    with pytest.raises(ValueError, match="token 11 is beyond the vocabulary of 11"):
        negative_log_likelihoods(logits, ids * 0 + 11)
    with pytest.raises(ValueError, match="do not predict tokens"):
        negative_log_likelihoods(logits[0], ids[0])


def test_paired_interval_covers_the_difference() -> None:
    """Of 80 pairs of correlated 0/1 scores, about 95% of the intervals hold the true change."""
    rng, covered = np.random.default_rng(3), 0
    for _ in range(80):
        base = (rng.random(300) < 0.9).astype(float)
        flips = rng.random(300) < 0.05
        other = np.where(flips, 1 - base, base)
        truth = 0.05 * (1 - 2 * 0.9)  # a flip loses a right answer more often than it makes one
        found = paired_difference(base, other)
        assert found is not None
        covered += found.low <= truth <= found.high
    assert 71 <= covered <= 80


def test_paired_interval_needs_the_same_samples_and_enough() -> None:
    scores = np.linspace(0, 1, 20)
    assert paired_difference(scores, scores[:-1]) is None
    assert paired_difference(scores[:7], scores[:7]) is None
    assert paired_difference(scores, scores * np.nan) is None
    same = paired_difference(scores, scores + 0.5)
    assert same is not None
    assert (same.low, same.estimate, same.high) == pytest.approx((0.5, 0.5, 0.5))
    assert paired_difference(scores, scores[::-1]) == paired_difference(scores, scores[::-1])
