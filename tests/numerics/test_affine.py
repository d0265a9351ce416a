"""Every method, against definitions and against ONNX Runtime's own QuantizeLinear."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeopt.core import Codes
from edgeopt.numerics import mse
from edgeopt.numerics.affine import (
    SCALE_DTYPES,
    Levels,
    check_finite,
    dequantize,
    narrowest_scale,
    sqnr_db,
    stored_scale,
)
from edgeopt.numerics.methods import METHODS

EVERY = pytest.mark.parametrize("method", METHODS)
SYMMETRIC = pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
BITS = pytest.mark.parametrize("bits", [4, 8])


def heavy(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(4, (rows, columns)).astype(np.float32) * 0.02


def plain_dequantize(codes: Codes, block: int | None, columns: int) -> np.ndarray:
    """The definition, an element at a time."""
    rows = codes.q.shape[0]
    out = np.empty((rows, columns))
    for r, c in itertools.product(range(rows), range(columns)):
        b = 0 if block is None else c // block
        zero = 0 if codes.zero is None else int(codes.zero[r, b])
        out[r, c] = (int(codes.q[r, c]) - zero) * float(codes.scale[r, b])
    return out


@EVERY
@SYMMETRIC
@BITS
@pytest.mark.parametrize("block", [16, 32, 64, None])
def test_codes_have_the_promised_form(method, symmetric, bits, block):
    w = heavy(7, 100)
    codes = METHODS[method](w, bits=bits, block=block, symmetric=symmetric)
    blocks = 1 if block is None else -(-100 // block)
    assert codes.q.shape == w.shape
    assert codes.q.dtype == (np.int8 if symmetric else np.uint8)
    assert codes.scale.shape == (7, blocks)
    assert codes.scale.dtype == np.float32
    levels = Levels(bits, symmetric)
    assert codes.q.min() >= levels.low
    assert codes.q.max() <= levels.high
    if symmetric:
        assert codes.zero is None
    else:
        assert codes.zero is not None
        assert codes.zero.dtype == np.uint8
        assert codes.zero.max() <= levels.high
    got = dequantize(codes, block, 100)
    np.testing.assert_allclose(got, plain_dequantize(codes, block, 100), rtol=1e-6)
    assert sqnr_db(w, got) > (12 if bits == 4 else 35)


@EVERY
@SYMMETRIC
@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
def test_scales_are_stored_exactly_and_codes_suit_them(method, symmetric, scale_dtype):
    w = heavy(5, 96)
    codes = METHODS[method](w, bits=4, block=32, symmetric=symmetric, scale_dtype=scale_dtype)
    if scale_dtype == "float16":
        np.testing.assert_array_equal(codes.scale, codes.scale.astype(np.float16))
    elif scale_dtype == "bfloat16":
        assert not np.any(codes.scale.view(np.uint32) & 0xFFFF)
    # No other code is nearer, with the scale and zero point as stored.
    levels = Levels(4, symmetric)
    error = np.abs(dequantize(codes, 32, 96) - w)
    for step in (-1, 1):
        moved = np.clip(codes.q.astype(int) + step, levels.low, levels.high).astype(codes.q.dtype)
        other = np.abs(dequantize(Codes(moved, codes.scale, codes.zero), 32, 96) - w)
        assert np.all(error <= other + 1e-7)


@EVERY
@SYMMETRIC
@BITS
def test_splitting_into_chunks_changes_nothing(method, symmetric, bits, monkeypatch):
    w = heavy(33, 200)
    whole = METHODS[method](w, bits=bits, block=64, symmetric=symmetric)
    monkeypatch.setattr("edgeopt.numerics.affine._CHUNK", 128)
    parts = METHODS[method](w, bits=bits, block=64, symmetric=symmetric)
    # Sums may be taken in another order by a vector unit: all but a few codes agree.
    assert np.mean(whole.q != parts.q) < 0.002
    np.testing.assert_allclose(whole.scale, parts.scale, rtol=1e-3)
    np.testing.assert_allclose(dequantize(whole, 64, 200), dequantize(parts, 64, 200), atol=0.05)


def test_rtn_is_onnx_quantize_linear():
    """The same scale given to ONNX Runtime's QuantizeLinear yields the same codes."""
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    h = onnx.helper
    w = heavy(16, 128)
    for symmetric in (True, False):
        codes = METHODS["rtn"](w, bits=8, block=32, symmetric=symmetric)
        zero = np.zeros_like(codes.scale, np.int8) if codes.zero is None else codes.zero
        kind = onnx.TensorProto.INT8 if symmetric else onnx.TensorProto.UINT8
        graph = h.make_graph(
            [h.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1, block_size=32)],
            "g",
            [h.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [16, 128])],
            [h.make_tensor_value_info("q", kind, [16, 128])],
            [
                onnx.numpy_helper.from_array(codes.scale, "s"),
                onnx.numpy_helper.from_array(zero, "z"),
            ],
        )
        model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
        session = ort.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        np.testing.assert_array_equal(session.run(None, {"x": w})[0], codes.q)


def test_rtn_scales_are_absmax_and_range():
    w = heavy(4, 64)
    eight = METHODS["rtn"](w, bits=8, block=None, symmetric=True)
    np.testing.assert_array_equal(eight.scale[:, 0], np.abs(w).max(1) / np.float32(127))
    four = METHODS["rtn"](w, bits=4, block=None, symmetric=False)
    np.testing.assert_allclose(four.scale[:, 0], (w.max(1) - w.min(1)) / 15, rtol=1e-6)


def test_four_bits_use_minus_eight_and_either_sign_of_scale():
    w = heavy(200, 32)
    codes = METHODS["rtn"](w, bits=4, block=32, symmetric=True)
    assert (codes.scale < 0).any()
    assert (codes.scale > 0).any()
    assert codes.q.min() == -8
    half = Codes(
        np.clip(np.rint(w / (np.abs(w).max(1) / 7)[:, None]), -7, 7).astype(np.int8),
        (np.abs(w).max(1) / 7)[:, None].astype(np.float32),
    )
    noise = np.square(dequantize(codes, 32, 32) - w).sum(1)
    assert np.all(noise <= np.square(dequantize(half, 32, 32) - w).sum(1) * (1 + 1e-5))


@SYMMETRIC
@BITS
@pytest.mark.parametrize("block", [16, 128, None])
@pytest.mark.parametrize("shape", ["normal", "laplace", "standard_cauchy", "shifted"])
def test_searches_are_never_worse_than_rounding(symmetric, bits, block, shape):
    rng = np.random.default_rng(3)
    size = (24, 512)
    w = rng.normal(0.6, 0.2, size) if shape == "shifted" else getattr(rng, shape)(size=size)
    w = (w * 0.03).astype(np.float32)
    noise = {}
    for name, method in METHODS.items():
        codes = method(w, bits=bits, block=block, symmetric=symmetric)
        noise[name] = np.square(dequantize(codes, block, 512).astype(float) - w).sum()
    assert noise["mse"] <= noise["rtn"] * 1.0001
    assert noise["hqq"] <= noise["rtn"] * 1.0001


def test_mse_is_near_the_best_of_an_exhaustive_search():
    w = heavy(40, 32)
    got = np.square(dequantize(mse.encode(w, bits=4, block=32, symmetric=True), 32, 32) - w).sum()
    best = 0.0
    for row in w.astype(float):
        peak = np.abs(row).max()
        scales = np.concatenate([np.linspace(0.4, 1.3, 2000), -np.linspace(0.4, 1.3, 2000)])
        s = (scales * peak / 8)[:, None]
        best += np.square(np.clip(np.rint(row / s), -8, 7) * s - row).sum(1).min()
    assert got <= best * 1.02


def test_importance_moves_error_to_where_it_matters_less():
    w = heavy(64, 128)
    importance = np.where(np.arange(128) % 4 == 0, 100.0, 1.0).astype(np.float32)
    for symmetric in (True, False):
        plain = dequantize(mse.encode(w, bits=4, block=32, symmetric=symmetric), 32, 128)
        weighed = dequantize(
            mse.encode(w, bits=4, block=32, symmetric=symmetric, importance=importance), 32, 128
        )
        loss = [float((np.square(d - w) * importance).sum()) for d in (plain, weighed)]
        assert loss[1] < loss[0]


@EVERY
@SYMMETRIC
@BITS
@pytest.mark.parametrize("scale_dtype", SCALE_DTYPES)
def test_zero_and_constant_blocks(method, symmetric, bits, scale_dtype):
    w = np.zeros((4, 70), np.float32)
    w[1] = 0.37
    w[2] = -1.25
    w[3, 32:] = 3e-2
    codes = METHODS[method](w, bits=bits, block=32, symmetric=symmetric, scale_dtype=scale_dtype)
    got = dequantize(codes, 32, 70)
    digits = {"float32": 3e-7, "float16": 2**-10, "bfloat16": 2**-8}[scale_dtype]
    np.testing.assert_allclose(got, w, rtol=digits, atol=0)
    assert np.isfinite(codes.scale).all()
    assert (codes.scale != 0).all()


@EVERY
@SYMMETRIC
@BITS
@settings(max_examples=25, deadline=None)
@given(
    w=arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 40)),
        elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
    ),
    block=st.sampled_from([None, 1, 16, 32]),
)
def test_any_finite_matrix_gives_finite_weights(method, symmetric, bits, w, block):
    codes = METHODS[method](w, bits=bits, block=block, symmetric=symmetric)
    got = dequantize(codes, block, w.shape[1])
    assert np.isfinite(got).all()
    width = w.shape[1] if block is None else block
    for first in range(0, w.shape[1], width):
        part, back = w[:, first : first + width], got[:, first : first + width]
        span = np.abs(part).max(axis=1, keepdims=True).astype(float)
        assert (np.abs(part.astype(float) - back) <= span * 1.01 + 1e-36).all()
        assert not back[span[:, 0] == 0].any()


@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(method, bad):
    w = heavy(3, 40)
    w[2, 39] = bad
    with pytest.raises(ValueError, match="weights hold NaN or Inf"):
        METHODS[method](w, bits=4, block=32, symmetric=True)
    with pytest.raises(ValueError, match="weights hold NaN or Inf"):
        check_finite(w)
    check_finite(w[:2])


def test_arguments_are_checked():
    w = heavy(2, 8)
    for arguments, problem in [
        ({"bits": 9}, "9 bits"),
        ({"bits": 1}, "1 bits"),
        ({"block": 0}, "block of 0"),
        ({"scale_dtype": "float8"}, "scale dtype 'float8'"),
    ]:
        with pytest.raises(ValueError, match=problem):
            METHODS["rtn"](w, **{"bits": 4, "block": 8, "symmetric": True, **arguments})
    with pytest.raises(ValueError, match="3 dimensions"):
        METHODS["rtn"](w[None], bits=4, block=8, symmetric=True)


@EVERY
def test_empty_matrices(method):
    for shape in [(0, 8), (3, 0)]:
        codes = METHODS[method](np.zeros(shape, np.float32), bits=4, block=8, symmetric=False)
        assert codes.q.shape == shape
        assert dequantize(codes, 8, shape[1]).shape == shape


def test_float16_scales_at_the_ends_of_their_range():
    assert stored_scale(np.float32([1e-9, -1e-9, 3e-6]), "float16") == pytest.approx(
        [2**-24, -(2**-24), 51 * 2**-24]
    )
    with pytest.raises(ValueError, match="over float16's largest"):
        METHODS["rtn"](
            np.full((1, 8), 1e6, np.float32), bits=4, block=8, symmetric=True, scale_dtype="float16"
        )
    tiny = heavy(4, 64) * np.float32(1e-6)
    for dtype, least in [("float16", 5), ("bfloat16", 15), ("float32", 15)]:
        codes = METHODS["mse"](tiny, bits=4, block=32, symmetric=True, scale_dtype=dtype)
        assert sqnr_db(tiny, dequantize(codes, 32, 64)) > (least if dtype != "float16" else -1)
    huge = np.float32([3e38, -3e38] * 16)[None]
    codes = METHODS["rtn"](huge, bits=8, block=None, symmetric=True, scale_dtype="bfloat16")
    assert np.isfinite(dequantize(codes, None, 32)).all()


@given(st.floats(2.0**-126, 2.0**126, width=32))
def test_bfloat16_scales_match_ml_dtypes(value):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    expected = np.float32([value]).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(stored_scale(np.float32([value]), "bfloat16"), expected)


def test_sqnr_is_defined_everywhere():
    a = np.float32([1, 2, 3])
    assert sqnr_db(a, a) == math.inf
    assert sqnr_db(a * 0, a * 0) == math.inf
    assert sqnr_db(a * 0, a) == -math.inf
    assert sqnr_db(a, a * np.float32(np.nan)) == -math.inf
    assert sqnr_db(a, a * 0.9) == pytest.approx(20, abs=1e-4)
    assert sqnr_db(np.float32([np.nan, 1]), np.float32([np.nan, 0.9])) == pytest.approx(
        20, abs=1e-4
    )
    with pytest.raises(ValueError, match="differ"):
        sqnr_db(a, a[:2])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [1e-38, 1e-9, 1e-6, 1e-3, 1.0, 1e4, 1e8, 1e30])
def test_the_narrowest_scale_holds_every_row(bits, size):
    """numpy's own float16 is the oracle: where it is chosen, no row's scale moves by 1%."""
    rows = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32) * np.float32(size)
    rows[3] = 0  # needs no scale
    peak = np.abs(rows).max(axis=1).astype(np.float64)
    with np.errstate(over="ignore"):
        for steps in (2**bits - 1, 2 ** (bits - 1)):
            exact = peak[peak > 0] / steps
            error = np.abs(exact.astype(np.float16).astype(np.float64) / exact - 1).max()
            if narrowest_scale(rows, bits) == "float16":
                assert error < 0.01
    if 1e-3 <= size <= 1e4:
        assert narrowest_scale(rows, bits) == "float16"
    assert narrowest_scale(np.zeros((2, 8), np.float32), bits) == "float16"
    for method in METHODS:
        scale = narrowest_scale(rows, bits)
        codes = METHODS[method](rows, bits=bits, block=32, symmetric=False, scale_dtype=scale)
        floor = {8: 20, 4: 6}[bits] if size > 1e-37 else -math.inf
        assert sqnr_db(rows, dequantize(codes, 32, 64)) > floor, method
