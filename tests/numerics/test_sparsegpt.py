"""SparseGPT against closed forms (optimal brain surgeon, least squares) and torch's factor."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.numerics import masks, sparsegpt, wanda


def _layer(seed: int, rows: int = 24, columns: int = 64, samples: int = 400, rank: int = 12):
    """Weights, and inputs that share most of their variance, as activations do."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(rows, columns)).astype(np.float32)
    mixed = rng.normal(size=(samples, rank)) @ rng.normal(size=(rank, columns))
    x = mixed + 0.3 * rng.normal(size=(samples, columns))
    return w, x * np.exp(rng.normal(size=columns) * 0.5)


def _error(w: np.ndarray, pruned: np.ndarray, x: np.ndarray) -> float:
    return float(np.square((w.astype(float) - pruned) @ x.T).sum())


def _best_on(mask: np.ndarray, w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The least squares weights of a mask: what no reconstruction on it can better."""
    best = np.zeros(w.shape)
    for row, kept in enumerate(mask):
        wanted = x @ w[row].astype(float)
        best[row, kept] = np.linalg.lstsq(x[:, kept], wanted, rcond=None)[0]
    return best


def test_the_factor_is_torchs_cholesky_of_the_inverse() -> None:
    torch = pytest.importorskip("torch")
    _, x = _layer(0)
    h = x.T @ x
    damped = torch.from_numpy(h + 0.01 * np.diagonal(h).mean() * np.eye(len(h)))
    wanted = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True).numpy()
    found = sparsegpt.inverse_factor(h)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9 * np.abs(wanted).max())


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([{"ratio": 0.4}, {"pattern": (2, 4)}]))
def test_a_diagonal_hessian_is_optimal_brain_surgeon_in_closed_form(seed, how) -> None:
    """No column helps another: survivors stay, and the cost of a weight is w^2 h."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(5, 12))
    h = rng.uniform(0.1, 10, size=12)
    pruned, mask = sparsegpt.prune(w, np.diag(h), damping=0.0, **how)
    cost = w**2 * h
    ratio, pattern = how.get("ratio"), how.get("pattern")
    wanted = masks.n_of_m(cost, *pattern) if pattern else masks.layerwise(cost, ratio)
    assert np.array_equal(mask, wanted)
    assert np.array_equal(pruned, np.where(mask, w, 0))


def test_one_weight_a_row_is_made_up_for_as_least_squares_does() -> None:
    """The first column goes and all others are free: the greedy update is the optimum."""
    w, x = _layer(1, rows=8, columns=16)
    w = w.astype(np.float64)
    w[:, 0] *= 1e-4
    pruned, mask = sparsegpt.prune(w, x.T @ x, ratio=1 / 16, damping=0.0)
    assert not mask[:, 0].any() and mask[:, 1:].all()
    np.testing.assert_allclose(pruned, _best_on(mask, w, x), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("how", [{"ratio": 0.5}, {"ratio": 0.7}, {"pattern": (2, 4)}])
@pytest.mark.parametrize("seed", range(3))
def test_closer_than_wanda_closer_than_magnitude_and_no_better_than_possible(seed, how) -> None:
    w, x = _layer(seed)
    pruned, mask = sparsegpt.prune(w, x.T @ x, **how)
    ratio, pattern = how.get("ratio"), how.get("pattern")
    plain = masks.n_of_m(np.abs(w), *pattern) if pattern else masks.layerwise(np.abs(w), ratio)
    weighed = wanda.keep(w, np.linalg.norm(x, axis=0), **how)
    found = _error(w, pruned, x)
    assert found < _error(w, w * weighed, x) < _error(w, w * plain, x)
    assert found < 0.5 * _error(w, w * plain, x)
    assert _error(w, _best_on(mask, w, x), x) <= found * (1 + 1e-6)
    if pattern:
        assert (mask.reshape(-1, pattern[1]).sum(axis=1) == pattern[0]).all()
    else:
        assert (~mask).sum() == round(ratio * w.size)
    assert not pruned[~mask].any()


@pytest.mark.parametrize("block", [1, 5, 16, 64, 1000])
def test_any_block_of_columns_prunes_the_same_count(block: int) -> None:
    w, x = _layer(3)
    _, mask = sparsegpt.prune(w, x.T @ x, ratio=0.37, block=block)
    assert (~mask).sum() == round(0.37 * w.size)
    # a pattern's groups are chosen one by one: the block is only a matter of speed
    wide, same = sparsegpt.prune(w, x.T @ x, pattern=(2, 4), block=64)
    pruned, found = sparsegpt.prune(w, x.T @ x, pattern=(2, 4), block=block)
    assert np.array_equal(found, same)
    np.testing.assert_allclose(pruned, wide, rtol=1e-3, atol=1e-4)


def test_a_multiple_of_the_hessian_changes_nothing() -> None:
    w, x = _layer(4)
    w = w.astype(np.float64)
    one, mask = sparsegpt.prune(w, x.T @ x, ratio=0.5)
    other, same = sparsegpt.prune(w, x.T @ x * 1e-3, ratio=0.5)
    assert np.array_equal(mask, same)
    np.testing.assert_allclose(one, other, rtol=1e-9)


def test_dead_columns_go_first_and_those_that_stay_keep_their_weights() -> None:
    w, x = _layer(5, columns=16)
    x[:, [2, 7, 11]] = 0
    pruned, mask = sparsegpt.prune(w, x.T @ x, ratio=0.5)
    assert not mask[:, [2, 7, 11]].any()
    pruned, mask = sparsegpt.prune(w, x.T @ x, ratio=0.1)
    assert mask[:, [0, 1, 3, 4, 5, 6, 8, 9, 10, 12, 13, 14, 15]].all()
    assert np.array_equal(pruned, np.where(mask, w, 0))
    pruned, mask = sparsegpt.prune(w, np.zeros((16, 16)), ratio=0.5)
    assert (~mask).sum() == w.size // 2 and np.isfinite(pruned).all()


def test_float32_is_good_to_float64_on_a_hessian_of_low_rank() -> None:
    """Fewer samples than columns: singular but for the damping."""
    w, x = _layer(6, samples=20, columns=64)
    low, _ = sparsegpt.prune(w, (x.T @ x).astype(np.float32), ratio=0.5)
    high, _ = sparsegpt.prune(w.astype(np.float64), x.T @ x, ratio=0.5)
    assert low.dtype == np.float32 and high.dtype == np.float64
    assert _error(w, low, x) == pytest.approx(_error(w, high, x), rel=0.05)


@pytest.mark.parametrize(
    ("w", "h", "how", "said"),
    [
        ((2, 4), np.eye(4), {}, "one of them"),
        ((2, 4), np.eye(4), {"ratio": 0.5, "pattern": (2, 4)}, "one of them"),
        ((2, 4), np.eye(3), {"ratio": 0.5}, "do not fit"),
        ((2, 6), np.eye(6), {"pattern": (2, 4)}, "6 columns"),
        ((2, 4), np.full((4, 4), np.nan), {"ratio": 0.5}, "not finite"),
        ((2, 4), np.ones((4, 4)), {"ratio": 0.5, "damping": 0.0}, "positive definite"),
    ],
)
def test_what_cannot_be_done_is_said(w, h, how, said) -> None:
    with pytest.raises(ValueError, match=said):
        sparsegpt.prune(np.ones(w, np.float32), h, **how)
    if h.shape == (3, 3):
        with pytest.raises(ValueError, match="not square"):
            sparsegpt.inverse_factor(h[:2])
