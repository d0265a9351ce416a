"""Next-token statistics against scipy's and torch's, on logits of every temper."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from edgeopt.numerics import divergence
from edgeopt.numerics.divergence import Divergence, DivergenceMeter, log_softmax

ROWS, VOCABULARY = 400, 97


def logits(seed: int, spread: float = 3.0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((ROWS, VOCABULARY)) * spread
    return values.astype(np.float32)


def close(seed: int = 0, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    base = logits(seed)
    other = base + noise * logits(seed + 1, 1.0)
    targets = np.random.default_rng(seed + 2).integers(0, VOCABULARY, ROWS).astype(np.int32)
    return base, other, targets


def measured(base: np.ndarray, other: np.ndarray, targets: np.ndarray) -> Divergence:
    meter = DivergenceMeter()
    for part in np.array_split(np.arange(len(targets)), 7):
        meter.add(base[part], other[part], targets[part])
    return meter.result()


def test_against_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "_BLOCK", 5 * VOCABULARY)
    base, other, targets = close()
    found = measured(base, other, targets)
    assert found.tokens == ROWS and found.finite
    p, q = (special.softmax(x.astype(np.float64), axis=1) for x in (base, other))
    row = np.arange(ROWS)
    nll_base, nll = -np.log(p[row, targets]), -np.log(q[row, targets])
    kld = special.rel_entr(p, q).sum(axis=1)
    delta = 100 * (q[row, targets] - p[row, targets])
    same = 100.0 * (p.argmax(axis=1) == q.argmax(axis=1))
    expected = {
        "Mean PPL(Q)": np.exp(nll.mean()),
        "Mean PPL(base)": np.exp(nll_base.mean()),
        "Cor(ln(PPL(Q)), ln(PPL(base)))": 100 * stats.pearsonr(nll, nll_base).statistic,
        "Mean ln(PPL(Q)/PPL(base))": (nll - nll_base).mean(),
        "Mean PPL(Q)/PPL(base)": np.exp(nll.mean() - nll_base.mean()),
        "Mean PPL(Q)-PPL(base)": np.exp(nll.mean()) - np.exp(nll_base.mean()),
        "Mean KLD": kld.mean(),
        "Maximum KLD": kld.max(),
        "99.9% KLD": np.percentile(kld, 99.9),
        "99.0% KLD": np.percentile(kld, 99.0),
        "Median KLD": np.median(kld),
        "Minimum KLD": kld.min(),
        "Mean Δp": delta.mean(),
        "RMS Δp": np.sqrt((delta**2).mean()),
        "Same top p": same.mean(),
    }
    assert {each.name: each.value for each in found.statistics} == pytest.approx(expected, rel=1e-9)
    errors = {each.name: each.error for each in found.statistics if each.error is not None}
    assert errors == pytest.approx(
        {
            "Mean PPL(Q)": np.exp(nll.mean()) * stats.sem(nll),
            "Mean PPL(base)": np.exp(nll_base.mean()) * stats.sem(nll_base),
            "Mean ln(PPL(Q)/PPL(base))": stats.sem(nll - nll_base),
            "Mean PPL(Q)/PPL(base)": expected["Mean PPL(Q)/PPL(base)"] * stats.sem(nll - nll_base),
            "Mean PPL(Q)-PPL(base)": stats.sem(
                np.exp(nll.mean()) * nll - np.exp(nll_base.mean()) * nll_base
            ),
            "Mean KLD": stats.sem(kld),
            "Mean Δp": stats.sem(delta),
            "RMS Δp": stats.sem(delta**2) / (2 * expected["RMS Δp"]),
            "Same top p": stats.sem(same),
        },
        rel=1e-9,
    )


def test_against_torch() -> None:
    torch = pytest.importorskip("torch")
    base, other, targets = close(5)
    found = measured(base, other, targets)
    p, q = (torch.log_softmax(torch.from_numpy(x).double(), -1) for x in (base, other))
    kld = torch.nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)
    nll = torch.nn.functional.nll_loss(q, torch.from_numpy(targets).long())
    assert found.value("Mean KLD") == pytest.approx(float(kld), rel=1e-12)
    assert found.value("Mean PPL(Q)") == pytest.approx(math.exp(float(nll)), rel=1e-12)


def test_a_model_against_itself() -> None:
    base, _, targets = close()
    found = measured(base, base, targets)
    for name in ("Mean KLD", "Maximum KLD", "Mean Δp", "RMS Δp", "Mean ln(PPL(Q)/PPL(base))"):
        assert found.value(name) == 0.0
    assert found.value("Same top p") == 100.0
    assert found.value("Cor(ln(PPL(Q)), ln(PPL(base)))") == pytest.approx(100.0)


def test_logits_far_from_zero() -> None:
    values = np.array([[5e4, 5e4 - 1, -5e4], [-3e38, 3e38, 0.0]], np.float32)
    expected = special.log_softmax(values.astype(np.float64), axis=1)
    np.testing.assert_allclose(log_softmax(values), expected)


def test_one_prediction_has_no_error() -> None:
    found = measured(*(part[:1] for part in close()))
    assert {each.error for each in found.statistics} == {None, 0.0}


def test_what_is_not_finite_is_said() -> None:
    base, other, targets = close()
    other[3, 4] = np.nan
    found = measured(base, other, targets)
    assert not found.finite
    assert math.isnan(found.value("Mean KLD"))
    assert math.isfinite(found.value("Mean PPL(base)"))


def test_perplexity_on_the_way() -> None:
    meter = DivergenceMeter()
    assert all(math.isnan(ppl) for ppl in meter.perplexities)
    with pytest.raises(ValueError, match="no predictions"):
        meter.result()
    base, other, targets = close()
    meter.add(base, other, targets)
    found = meter.result()
    assert meter.perplexities == (found.value("Mean PPL(base)"), found.value("Mean PPL(Q)"))
