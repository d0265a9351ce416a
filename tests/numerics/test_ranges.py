"""Streaming calibrators, against numpy over all the data at once."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.numerics.ranges import CALIBRATORS, Entropy, Histogram, MinMax, Mse, Percentile


def batches(kind: str, count: int = 20) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    draw = {
        "normal": lambda: rng.normal(0.2, 1, 4000),
        "relu": lambda: np.maximum(rng.normal(0, 1, 4000), 0),
        "outliers": lambda: rng.standard_t(2, 4000),
        "growing": lambda: rng.normal(0, 1, 4000),
        "negative": lambda: -np.abs(rng.normal(0, 3, 4000)),
        "offset": lambda: rng.uniform(100, 101, 4000),
    }[kind]
    found = [draw().astype(np.float32).reshape(4, -1) for _ in range(count)]
    return [b * 1.7**i for i, b in enumerate(found)] if kind == "growing" else found


KINDS = ["normal", "relu", "outliers", "growing", "negative", "offset"]


def observed(calibrator, arrays):
    for array in arrays:
        calibrator.observe(array)
    return calibrator


@pytest.mark.parametrize("kind", KINDS)
def test_histogram_is_numpys(kind):
    data = batches(kind)
    histogram = observed(Histogram(512), data)
    whole = np.concatenate([b.reshape(-1) for b in data]).astype(np.float64)
    want, _ = np.histogram(whole, bins=histogram.edges)
    # numpy's last bin is closed; ours is half open like the others. Nothing lies on that edge.
    np.testing.assert_array_equal(histogram.counts, want)
    assert histogram.counts.sum() == whole.size
    assert len(histogram.edges) == 513
    np.testing.assert_allclose(histogram.centres, (histogram.edges[1:] + histogram.edges[:-1]) / 2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6, width=32), max_size=6), min_size=1, max_size=8))
def test_histogram_holds_whatever_comes(batches_of_values):
    histogram = Histogram(16)
    everything: list[float] = []
    for values in batches_of_values:
        histogram.observe(np.array(values, np.float32))
        everything += values
        assert histogram.counts.sum() == len(everything)
    if everything:
        occupied = np.flatnonzero(histogram.counts)
        assert histogram.edges[occupied[0]] <= min(everything) < histogram.edges[occupied[0] + 1]
        assert histogram.edges[occupied[-1]] <= max(everything) < histogram.edges[occupied[-1] + 1]


@pytest.mark.parametrize("kind", KINDS)
def test_minmax_is_exact(kind):
    data = batches(kind)
    low, high = observed(MinMax(), data).range()
    assert low == min(b.min() for b in data)
    assert high == max(b.max() for b in data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percent", [99.0, 99.9, 99.99, 100])
def test_percentile_is_numpys_within_a_bin(kind, percent):
    data = batches(kind)
    calibrator = observed(Percentile(percent), data)
    whole = np.concatenate([b.reshape(-1) for b in data]).astype(np.float64)
    low, high = calibrator.range()
    beyond = (100 - percent) / 2
    bounds = [
        np.percentile(whole, [beyond, 100 - beyond], method=method)
        for method in ("lower", "higher")
    ]
    width = calibrator.histogram.width
    assert bounds[0][0] - width <= low <= bounds[1][0] + width
    assert bounds[0][1] - width <= high <= bounds[1][1] + width
    assert low >= whole.min()
    assert high <= whole.max()
    if percent == 100:
        assert (low, high) == (whole.min(), whole.max())


def quantization_noise(whole: np.ndarray, low: float, high: float) -> float:
    """As ONNX does it: 0 is a code, so its zero point is a whole number."""
    step = (high - low) / 255
    zero = np.rint(-low / step)
    back = (np.clip(np.rint(whole / step) + zero, 0, 255) - zero) * step
    return float(np.mean((back - whole) ** 2))


@pytest.mark.parametrize("kind", KINDS)
def test_mse_is_near_the_best_clipping(kind):
    data = batches(kind)
    whole = np.concatenate([b.reshape(-1) for b in data]).astype(np.float64)
    low, high = observed(Mse(), data).range()
    found = quantization_noise(whole, low, high)
    widest = min(whole.min(), 0), max(whole.max(), 0)
    best = min(
        quantization_noise(whole, widest[0] * a, widest[1] * b)
        for a in np.linspace(0.05, 1, 20)
        for b in np.linspace(0.05, 1, 20)
    )
    assert found <= best * 1.05
    assert widest[0] <= low < high <= widest[1]


def test_entropy_clips_a_long_tail_and_leaves_a_uniform_range_alone():
    rng = np.random.default_rng(0)
    uniform = [rng.uniform(-1, 1, 10000).astype(np.float32) for _ in range(5)]
    low, high = observed(Entropy(), uniform).range()
    assert low == pytest.approx(-1, abs=0.05)
    assert high == pytest.approx(1, abs=0.05)
    low, high = observed(Entropy(), [np.abs(u) for u in uniform]).range()
    assert low >= 0
    normal = [rng.normal(0, 1, 10000).astype(np.float32) for _ in range(5)]
    low, high = observed(Entropy(), [*normal, np.float32([60.0])]).range()
    assert 3 < high < 30
    assert low == pytest.approx(min(n.min() for n in normal))


def kl_by_hand(counts: np.ndarray, kept: int, levels: int) -> float:
    """The three steps of TensorRT's calibrator, a bin at a time."""
    clipped = counts[:kept].astype(float)
    inside = clipped.copy()
    clipped[-1] += counts[kept:].sum()
    q = np.zeros(kept)
    for level in range(levels):
        members = [i for i in range(kept) if i * levels // kept == level]
        occupied = [i for i in members if inside[i]]
        for i in occupied:
            q[i] = sum(inside[j] for j in members) / len(occupied)
    p, q = clipped / clipped.sum(), np.maximum(q / q.sum(), 1e-12)
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def test_entropy_takes_the_candidate_of_least_divergence():
    data = [np.abs(b) for b in batches("outliers")]
    calibrator = Entropy(levels=16, bins=128)
    calibrator.candidates = 1000
    observed(calibrator, data)
    histogram = calibrator.histogram
    start = -histogram.first
    counts = histogram.counts[start:]
    used = int(np.flatnonzero(counts)[-1]) + 1
    divergence = {n: kl_by_hand(counts, n, 16) for n in range(16, used + 1)}
    best = min(divergence, key=divergence.__getitem__)
    assert calibrator.range()[1] == pytest.approx(best * histogram.width)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_two_hundred_samples_cost_what_two_do(name):
    def peak(count: int) -> int:
        rng = np.random.default_rng(0)
        calibrator = CALIBRATORS[name]()
        tracemalloc.start()
        try:
            for i in range(count):
                calibrator.observe(rng.standard_normal(20000).astype(np.float32) * (i + 1))
            calibrator.range()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)
    assert peak(200) < peak(2) * 1.2 + 50_000


@pytest.mark.parametrize("name", CALIBRATORS)
def test_trouble_is_told(name):
    with pytest.raises(ValueError, match="no activations were observed"):
        CALIBRATORS[name]().range()
    with pytest.raises(ValueError, match="no activations were observed"):
        observed(CALIBRATORS[name](), [np.empty((0, 3), np.float32)]).range()
    for bad in (np.nan, np.inf):
        array = np.ones(10, np.float32)
        array[3] = bad
        with pytest.raises(ValueError, match="NaN or Inf"):
            observed(CALIBRATORS[name](), [np.ones(4, np.float32), array]).range()


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("value", [0.0, 2.5, -1e-30, 1e30])
def test_constant_activations_have_a_range(name, value):
    arrays = [np.full((2, 3), value, np.float32)] * 3
    low, high = observed(CALIBRATORS[name](), arrays).range()
    want = float(np.float32(value))
    assert low <= want <= high
    assert high - low <= abs(want) * 0.01, "a constant's range is the constant"


@pytest.mark.parametrize("name", CALIBRATORS)
def test_integers_and_halves_are_taken(name):
    for dtype in (np.int8, np.uint8, np.int64, np.float16, np.float64):
        low, high = observed(CALIBRATORS[name](), [np.arange(100).astype(dtype)]).range()
        assert low >= 0
        assert 80 < high <= 99


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="6 bins"):
        Histogram(6)
    with pytest.raises(ValueError, match="percentile 0"):
        Percentile(0)
    assert Histogram().width == 0
