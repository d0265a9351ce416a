"""Packed bytes, against ONNX's own types and against the kernels that read them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeopt.numerics.affine import dequantize
from edgeopt.numerics.methods import METHODS
from edgeopt.numerics.pack import (
    gather_block_quantized,
    matmul_nbits,
    pack_flat,
    pack_rows,
    unpack_flat,
    unpack_rows,
    unsigned,
)

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
h, nh, T = onnx.helper, onnx.numpy_helper, onnx.TensorProto


def run(op: str, initializers: dict[str, np.ndarray], x: np.ndarray, **attributes) -> np.ndarray:
    """Run one contrib operator; ``x`` is its input, or its indices."""
    node = h.make_node(op, list(initializers), ["y"], domain="com.microsoft", **attributes)
    kind = h.np_dtype_to_tensor_dtype(x.dtype)
    graph = h.make_graph(
        [node],
        "one",
        [h.make_tensor_value_info("x", kind, list(x.shape))],
        [h.make_tensor_value_info("y", T.FLOAT, None)],
        [nh.from_array(a, name) for name, a in initializers.items() if name != "x"],
    )
    opsets = [h.make_opsetid("", 21), h.make_opsetid("com.microsoft", 1)]
    model = h.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    providers = ["CPUExecutionProvider"]
    session = ort.InferenceSession(model.SerializeToString(), options, providers=providers)
    return session.run(None, {"x": x})[0]


def weights(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(rows * columns).standard_normal((rows, columns)).astype(np.float32)


@given(
    arrays(np.uint8, st.tuples(st.integers(0, 5), st.integers(0, 9)), elements=st.integers(0, 15))
)
def test_unsigned_codes_survive(q):
    np.testing.assert_array_equal(unpack_rows(pack_rows(q, 4), q.shape[1], 4, signed=False), q)
    np.testing.assert_array_equal(unpack_flat(pack_flat(q), q.size, signed=False), q.reshape(-1))


@given(
    arrays(np.int8, st.tuples(st.integers(0, 5), st.integers(0, 9)), elements=st.integers(-8, 7))
)
def test_signed_codes_survive(q):
    np.testing.assert_array_equal(unpack_rows(pack_rows(q, 4), q.shape[1], 4, signed=True), q)
    np.testing.assert_array_equal(unpack_flat(pack_flat(q), q.size, signed=True), q.reshape(-1))
    np.testing.assert_array_equal(unpack_rows(pack_rows(q, 8), q.shape[1], 8, signed=True), q)


@pytest.mark.parametrize("kind", ["INT4", "UINT4"])
@pytest.mark.parametrize("shape", [(4, 6), (3, 5), (1, 1), (2, 3, 5)])
def test_flat_packing_is_onnx(kind, shape):
    signed = kind == "INT4"
    q = np.random.default_rng(0).integers(-8 * signed, 16 - 8 * signed, shape)
    q = q.astype(np.int8 if signed else np.uint8)
    ours = pack_flat(q).tobytes()
    assert ours == h.make_tensor("q", getattr(T, kind), shape, q.reshape(-1)).raw_data or (
        ours == bytes(h.make_tensor("q", getattr(T, kind), shape, q.reshape(-1)).int32_data)
    )
    tensor = h.make_tensor("q", getattr(T, kind), shape, ours, raw=True)
    np.testing.assert_array_equal(nh.to_array(tensor).astype(q.dtype), q)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="3 bytes a row, 7 codes of 4 bits take 4"):
        unpack_rows(np.zeros((2, 3), np.uint8), 7, 4, signed=False)
    with pytest.raises(ValueError, match="5 bits a code"):
        pack_rows(np.zeros((2, 3), np.uint8), 5)
    codes = METHODS["rtn"](weights(2, 33), bits=4, block=16, symmetric=True)
    with pytest.raises(ValueError, match="do not fill whole bytes"):
        gather_block_quantized(codes, bits=4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
def test_matmul_nbits_computes_with_our_weights(method, bits, symmetric, block):
    """Negative scales (4 bits, symmetric) and short last blocks included."""
    for columns in (256, 200):
        w = weights(24, columns)
        codes = METHODS[method](w, bits=bits, block=block, symmetric=symmetric)
        if bits == 4 and symmetric:
            assert (codes.scale < 0).any()
        blob = matmul_nbits(codes, bits=bits, block=block)
        assert blob.data.shape == (24, -(-columns // block), block * bits // 8)
        inputs = {"x": np.empty(0), "B": blob.data, "scales": blob.scales}
        if blob.zeros is not None:
            inputs["zeros"] = blob.zeros
        for batch in (1, 7):
            x = np.random.default_rng(1).standard_normal((batch, columns)).astype(np.float32)
            got = run("MatMulNBits", inputs, x, K=columns, N=24, bits=bits, block_size=block)
            want = x.astype(np.float64) @ dequantize(codes, block, columns).T.astype(np.float64)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_matmul_nbits_at_accuracy_level_4_takes_negative_scales():
    """There activations are rounded to 8 bits: within a percent, not within float rounding."""
    w = weights(16, 128)
    codes = METHODS["rtn"](w, bits=4, block=32, symmetric=True)
    blob = matmul_nbits(codes, bits=4, block=32)
    inputs = {"x": np.empty(0), "B": blob.data, "scales": blob.scales}
    x = weights(5, 128)
    attributes = {"K": 128, "N": 16, "bits": 4, "block_size": 32, "accuracy_level": 4}
    got = run("MatMulNBits", inputs, x, **attributes)
    want = x @ dequantize(codes, 32, 128).T
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
def test_gather_block_quantized_gives_our_rows(bits, symmetric, block):
    indices = np.array([[3, 0], [8, 3]])
    for columns in (256, 200):
        codes = METHODS["mse"](weights(9, columns), bits=bits, block=block, symmetric=symmetric)
        blob = gather_block_quantized(codes, bits=bits)
        inputs = {"data": blob.data, "x": np.empty(0), "scales": blob.scales}
        if blob.zeros is not None:
            inputs["zeros"] = blob.zeros
        axes = {"gather_axis": 0, "quantize_axis": 1, "block_size": block, "bits": bits}
        got = run("GatherBlockQuantized", inputs, indices, **axes)
        np.testing.assert_array_equal(got, dequantize(codes, block, columns)[indices])


def test_gather_and_matmul_share_their_bytes():
    """What lets a tied embedding be stored once: one blob is a reshape of the other."""
    codes = METHODS["rtn"](weights(10, 128), bits=4, block=32, symmetric=False)
    product = matmul_nbits(codes, bits=4, block=32)
    table = gather_block_quantized(codes, bits=4)
    np.testing.assert_array_equal(product.data.reshape(table.data.shape), table.data)
    np.testing.assert_array_equal(product.scales, table.scales)
    np.testing.assert_array_equal(product.zeros, table.zeros)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_layout_is_that_of_onnxruntimes_own_tool(bits, symmetric):
    """Its tool packs its codes; unpacked and repacked by ours they are the same bytes."""
    quantizer = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    w = weights(24, 128)
    graph = h.make_graph(
        [h.make_node("MatMul", ["x", "w"], ["y"], name="m")],
        "g",
        [h.make_tensor_value_info("x", T.FLOAT, [1, 128])],
        [h.make_tensor_value_info("y", T.FLOAT, [1, 24])],
        [nh.from_array(np.ascontiguousarray(w.T), "w")],
    )
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)], ir_version=10)
    tool = quantizer.MatMulNBitsQuantizer(model, bits=bits, block_size=32, is_symmetric=symmetric)
    tool.process()
    node = next(n for n in tool.model.model.graph.node if n.op_type == "MatMulNBits")
    found = {i.name: nh.to_array(i) for i in tool.model.model.graph.initializer}
    data, scales, *zeros = (found[name] for name in node.input[1:])
    q = unpack_rows(data.reshape(24, -1), 128, bits, signed=False)
    zero = np.full((24, 4), 2 ** (bits - 1), np.uint8)
    if zeros:
        zero = unpack_rows(zeros[0].reshape(24, -1), 4, bits, signed=False)
    shifted = q.reshape(24, 4, 32).astype(np.float32) - zero[:, :, None]
    back = (shifted * scales.reshape(24, 4, 1)).reshape(24, 128)
    steps = np.repeat(np.abs(scales.reshape(24, 4)), 32, axis=1)
    # Half a step, and a little more where its range is clipped at the end with one code fewer.
    assert np.all(np.abs(back - w) <= steps * 1.02)
    assert np.mean(np.abs(back - w) <= steps * 0.51) > 0.97
    ours = METHODS["rtn"](w, bits=bits, block=32, symmetric=symmetric)
    blob = matmul_nbits(ours, bits=bits, block=32)
    assert blob.data.shape == data.shape
    assert blob.scales.size == scales.size
    assert np.mean(np.abs(unsigned(ours, bits).astype(int) - q) <= 1) > (0.4 if symmetric else 0.97)
