"""Fidelity, against the formulas written out over all samples at once (numpy, scipy)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

from edgeopt.core import Fidelity
from edgeopt.measure import fidelity as module
from edgeopt.measure.fidelity import FidelityMeter


def measure(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Fidelity:
    meter = FidelityMeter("y")
    for reference, got in pairs:
        assert meter.add(reference, got) is None
    return meter.result()


def some_pairs(shape: tuple[int, ...], count: int = 6, noise: float = 0.1, scale: float = 3.0):
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(count):
        ref = (scale * rng.standard_normal(shape)).astype(np.float32)
        pairs.append((ref, (ref + noise * rng.standard_normal(shape)).astype(np.float32)))
    return pairs


@pytest.mark.parametrize("shape", [(1, 10), (3, 7), (2, 5, 11)])
@pytest.mark.parametrize("chunk", [1 << 19, 8])
def test_against_the_formulas(
    shape: tuple[int, ...], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", chunk)
    pairs = some_pairs(shape)
    found = measure(pairs)
    ref = np.stack([p[0] for p in pairs]).astype(np.float64)
    got = np.stack([p[1] for p in pairs]).astype(np.float64)
    assert found.sqnr_db == pytest.approx(
        10 * np.log10((ref**2).sum() / ((ref - got) ** 2).sum()), abs=1e-9
    )
    flat_ref, flat_got = ref.reshape(len(pairs), -1), got.reshape(len(pairs), -1)
    cosines = (flat_ref * flat_got).sum(1) / (
        np.linalg.norm(flat_ref, axis=1) * np.linalg.norm(flat_got, axis=1)
    )
    assert found.cosine == pytest.approx(cosines.mean(), abs=1e-12)
    assert found.max_abs == pytest.approx(np.abs(ref - got).max())
    assert found.top1 == pytest.approx((ref.argmax(-1) == got.argmax(-1)).mean())
    divergence = rel_entr(softmax(ref, -1), softmax(got, -1)).sum(-1).mean()
    assert found.kl == pytest.approx(divergence, rel=1e-6)
    assert found.finite
    assert not found.constant
    assert found.samples == len(pairs)


def test_identical_outputs_have_no_noise() -> None:
    found = measure([(p[0], p[0].copy()) for p in some_pairs((1, 10))])
    assert found.sqnr_db == math.inf
    assert found.cosine == pytest.approx(1.0)
    assert (found.max_abs, found.top1, found.kl) == (0.0, 1.0, 0.0)


def test_kl_is_stable_at_large_logits() -> None:
    ref = np.array([[1e4, 0.0, -1e4]], np.float32)
    got = np.array([[1e4, 1.0, -1e4]], np.float32)
    assert measure([(ref, got)]).kl == pytest.approx(0.0, abs=1e-12)


def test_kl_of_probabilities_takes_them_as_they_are() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]], np.float32)
    q = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1]], np.float32)
    expected = rel_entr(p.astype(np.float64), q.astype(np.float64)).sum(-1).mean()
    assert measure([(p, q)]).kl == pytest.approx(expected, rel=1e-6)


def test_kl_of_log_probabilities_equals_that_of_the_logits() -> None:
    (ref, got), *_ = some_pairs((4, 9))
    logs = measure([(log_softmax(ref, -1), log_softmax(got, -1))])
    assert logs.kl == pytest.approx(measure([(ref, got)]).kl or 0.0, rel=1e-4)


@pytest.mark.parametrize("shape", [(), (5,), (4, 1), (1, 3, 8, 8)])
def test_no_class_axis_no_top1(shape: tuple[int, ...]) -> None:
    found = measure(some_pairs(shape))
    assert found.top1 is None
    assert found.kl is None
    assert math.isfinite(found.sqnr_db)


def test_integers_are_compared_by_the_share_that_is_equal() -> None:
    ref, got = np.arange(10), np.arange(10)
    got[3:5] = -1
    found = measure([(ref, got)])
    assert math.isnan(found.sqnr_db)
    assert found.top1 == pytest.approx(0.8)
    assert measure([(ref, ref)]).sqnr_db == math.inf
    flags = np.array([True, False])
    assert measure([(flags, ~flags)]).top1 == 0.0


def test_half_precision_is_compared_in_double() -> None:
    ref = np.full((1, 4), 60000.0, np.float32) + np.arange(4, dtype=np.float32)
    found = measure([(ref, ref.astype(np.float16))])  # its square overflows float16
    assert found.finite
    assert 60 < found.sqnr_db < 120


def test_a_nan_that_the_source_does_not_have_is_not_finite() -> None:
    ref = np.array([[1.0, 2.0, 3.0]], np.float32)
    for bad in (np.nan, np.inf):
        found = measure([(ref, np.array([[1.0, bad, 3.0]], np.float32))])
        assert not found.finite
        assert found.top1 == 0.0


def test_a_mask_of_the_source_is_no_fault_of_the_artifact() -> None:
    ref = np.array([[1.0, -np.inf, 3.0]], np.float32)
    meter = FidelityMeter("y")
    meter.add(ref, np.array([[1.0, -np.inf, 3.1]], np.float32))
    found = meter.result()
    assert found.finite
    assert meter.source_not_finite
    assert found.top1 == 1.0
    assert found.sqnr_db == pytest.approx(10 * np.log10(10 / 0.01), abs=1e-3)
    p, q = softmax([1.0, 3.0]), softmax([1.0, 3.1])
    assert found.kl == pytest.approx(rel_entr(p, q).sum(), rel=1e-3)


def test_constant_means_one_value_over_all_samples() -> None:
    same = np.full((1, 4), 2.5, np.float32)
    assert measure([(same, same), (same, same)]).constant
    assert not measure([(same, same), (2 * same, same)]).constant
    rounding = same * (1 + np.array([0, 1e-7, 0, -1e-7], np.float32))
    assert measure([(rounding, rounding)]).constant
    assert not measure([(np.float32(2.5), np.float32(2.5))]).constant  # one number tells nothing
    assert measure([(np.zeros((0, 3)), np.zeros((0, 3)))]).constant
    assert measure([(np.full(3, np.nan), np.full(3, np.nan))]).constant
    assert measure([(np.ones(3, np.int64), np.ones(3, np.int64))]).constant


def test_zeros_have_defined_answers() -> None:
    zero, one = np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)
    assert measure([(zero, zero)]).sqnr_db == math.inf
    assert measure([(zero, zero)]).cosine == 1.0
    assert measure([(zero, one)]).sqnr_db == -math.inf
    assert measure([(zero, one)]).cosine == 0.0


def test_what_cannot_be_compared_is_said() -> None:
    meter = FidelityMeter("y")
    assert "[1, 3]" in (meter.add(np.zeros((1, 3)), np.zeros((1, 4))) or "")
    assert "not numbers" in (meter.add(np.array([1j]), np.array([1j])) or "")


def test_texts_are_the_same_or_not() -> None:
    meter = FidelityMeter("label")
    source = np.array([["a", "b"], ["c", "a"]], object)
    assert meter.add(source, source.copy()) is None
    assert meter.result().sqnr_db == math.inf
    assert meter.add(source, np.array([["a", "b"], ["c", "é"]], object)) is None
    found = meter.result()
    assert math.isnan(found.sqnr_db) and found.top1 == 7 / 8


def test_a_class_that_is_infinite_in_both_wins_in_both() -> None:
    meter = FidelityMeter("y")
    source = np.array([[0.0, np.inf, 1.0], [2.0, -np.inf, 1.0]], np.float32)
    assert meter.add(source, source + np.float32(0.01)) is None
    found = meter.result()
    assert (found.top1, found.finite) == (1.0, True)
    assert math.isfinite(found.kl) and math.isfinite(found.sqnr_db)


def test_memory_does_not_grow_with_an_output(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = module._chunks

    def spy(*args):
        for ref, new in original(*args):
            seen.append(ref.size)
            yield ref, new

    monkeypatch.setattr(module, "_chunks", spy)
    big = np.random.default_rng(0).standard_normal((1, 600, 2000)).astype(np.float32)
    measure([(big, big), (big.reshape(-1), big.reshape(-1))])
    assert max(seen) <= module._CHUNK
    assert sum(seen) == 2 * big.size


@pytest.mark.parametrize(
    ("low", "high", "constant"),
    [(1e-9, 1e-6, True), (0.995, 0.9999, True), (0.48, 0.52, False), (1e-6, 0.3, False)],
)
def test_a_probability_that_never_spoke_proves_nothing(
    low: float, high: float, constant: bool
) -> None:
    """A detector of text that was shown none: its tiny answers agree to many decibels."""
    values = np.linspace(low, high, 64, dtype=np.float32).reshape(1, 64)
    meter = FidelityMeter("p", probability=True)
    meter.add(values, values * np.float32(1.001))
    assert meter.result().constant is constant
    plain = FidelityMeter("p")
    plain.add(values, values * np.float32(1.001))
    assert not plain.result().constant
