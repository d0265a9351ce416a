from __future__ import annotations

import numpy as np
import pytest
import static_models as nets
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.graphs.static.params import (
    MIN_SCALE,
    activation,
    bias_codes,
    bias_floor,
    weight_codes,
)

ANY = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(ANY, ANY, st.booleans())
def test_activation_parameters_are_always_usable(low, high, signed):
    param = activation(low, high, signed)
    assert np.float32(param.scale) == param.scale
    assert MIN_SCALE <= param.scale < np.inf
    bottom = -128 if signed else 0
    assert bottom <= param.zero <= bottom + 255
    assert param.quantize(np.float32(0)) == param.zero  # zero is exact


@given(st.floats(-1e3, 0), st.floats(0.01, 1e3), st.booleans())
def test_ranges_are_covered_within_half_a_step(low, high, signed):
    param = activation(low, high, signed)
    x = np.linspace(low, high, 100)
    back = (param.quantize(x).astype(np.float64) - param.zero) * param.scale
    assert np.abs(back - x).max() <= param.scale * 1.001


def test_quantize_is_onnx_quantize_linear():
    net = nets.Net(("x", ["n"]))
    param = activation(-1.3, 2.9)
    scale, zero = net.constant(np.float32(param.scale)), net.constant(np.uint8(param.zero))
    codes = net.op("QuantizeLinear", "x", scale, zero)
    model = net.model(net.op("Cast", codes, to=1, out="y"))
    x = np.random.default_rng(0).uniform(-3, 5, 4000).astype(np.float32)
    np.testing.assert_allclose(nets.run(model, {"x": x})[0], param.quantize(x), atol=0)


@settings(max_examples=50)
@given(st.integers(0, 2**32), st.sampled_from([0, 1]), st.sampled_from([63, 127]))
def test_weights_come_back_within_half_a_step(seed, axis, top):
    weight = np.random.default_rng(seed).standard_normal((5, 7, 3)).astype(np.float32)
    codes, scale = weight_codes(weight, axis, top)
    assert codes.shape == weight.shape
    assert np.abs(codes.astype(int)).max() == top
    shape = [1, 1, 1]
    shape[axis] = -1
    error = np.abs(codes * scale.reshape(shape) - weight)
    assert (error <= scale.reshape(shape) * 0.5001).all()


def test_weights_that_are_zero_or_not_finite():
    weight = np.array([[0, 0], [np.inf, 1], [np.nan, 2], [1e-40, 0]], np.float32)
    codes, scale = weight_codes(weight, 0)
    assert np.isfinite(scale).all()
    assert (scale > 0).all()
    assert scale[0] == 1
    assert codes[0].tolist() == [0, 0]
    assert codes[1, 0] == 127
    assert codes[2].tolist() == [0, 127]


def test_a_large_bias_on_a_tiny_weight_does_not_overflow():
    weight = np.array([[1e-9], [1.0]], np.float32)
    bias = np.array([50.0, 0.5], np.float32)
    codes, scale = weight_codes(weight, 0, floor=bias_floor(bias, 0.01))
    q, product = bias_codes(bias, 0.01, scale)
    np.testing.assert_allclose(q * product.astype(np.float64), bias, rtol=1e-3)
    assert codes[1, 0] == 127


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_biases_that_are_not_finite_saturate(value):
    q, scale = bias_codes(np.array([value], np.float32), 0.1, np.array([0.1], np.float32))
    assert np.isfinite(q * scale).all()
