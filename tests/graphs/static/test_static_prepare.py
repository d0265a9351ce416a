"""Preparing never changes what a model computes: held to ONNX Runtime before and after."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import static_models as nets

from edgeopt.errors import SourceError
from edgeopt.graphs.static import prepare


def check(model, ops=None, feed=None):
    feed = feed or nets.images(1)[0]
    want = nets.run(model, feed)
    prepared = prepare(onnx.ModelProto.FromString(model.SerializeToString()))
    onnx.checker.check_model(prepared)
    for a, b in zip(want, nets.run(prepared, feed), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    found = Counter(n.op_type for n in prepared.graph.node)
    if ops is not None:
        assert found == Counter(ops)
    return prepared


@pytest.mark.parametrize(
    "build", [nets.residual, nets.mobile, nets.silu, nets.unet, nets.preactivation]
)
def test_nets_compute_the_same(build):
    prepared = check(build())
    ops = {n.op_type for n in prepared.graph.node}
    assert not ops & {"BatchNormalization", "HardSwish", "ReduceMean"}


def test_batch_norm_behind_a_transposed_convolution_in_groups():
    net = nets.Net(("x", ["n", 4, 6, 6]))
    y = net.op("ConvTranspose", "x", net.normal(4, 3, 2, 2), group=2, strides=[2, 2])
    feed = nets.images(1, 4, 6)[0]
    prepared = check(net.model(net.batch_norm(y, 6)), ["ConvTranspose"], feed)
    assert prepared.graph.initializer[0].name == "c0"  # the weight keeps its name


def test_batch_norms_that_stay():
    """Read by others, shared weights, or nothing to gain: left as they are."""
    net = nets.Net(("x", ["n", 3, 16, 16]))
    a = net.conv("x", 3, 4)
    y = net.op("Tanh", net.batch_norm(a, 4))
    check(net.model(y, a), ["Conv", "BatchNormalization", "Tanh"])
    net = nets.Net(("x", ["n", 3, 16, 16]))
    weight = net.normal(3, 3, 1, 1)
    y = net.op("Conv", net.batch_norm(net.op("Conv", "x", weight), 3), weight)
    check(net.model(y), ["Conv", "Conv", "Conv"])  # as a depthwise convolution between


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("kernel", "pads", "becomes"), [(2, 0, True), (3, 0, True), (2, 1, False)])
def test_transposed_convolutions_without_overlap(bias, kernel, pads, becomes):
    net = nets.Net(("x", ["n", 4, 6, 6]))
    inputs = ["x", net.normal(4, 5, kernel, kernel)] + ([net.normal(5)] if bias else [])
    y = net.op("ConvTranspose", *inputs, strides=[kernel] * 2, pads=[pads] * 4)
    ops = ["Conv", "DepthToSpace"] if becomes else ["ConvTranspose"]
    check(net.model(y), ops, nets.images(1, 4, 6)[0])


def test_constants_identities_and_transposed_weights():
    net = nets.Net(("x", ["n", 8]))
    value = onnx.numpy_helper.from_array(np.full(5, 2, np.float32))
    bias = net.op("Constant", value=value)
    weight = net.op("Transpose", net.normal(5, 8), perm=[1, 0])
    y = net.op("Add", net.op("Identity", net.op("MatMul", "x", weight)), bias)
    power = net.op("Constant", value_float=2.0)
    axes = net.op("Constant", value_ints=[1])
    y = net.op("Pow", net.op("Unsqueeze", y, axes), power)
    feed = {"x": np.random.default_rng(0).standard_normal((3, 8)).astype("f4")}
    check(net.model(net.op("Identity", y, out="y")), ["Gemm", "Unsqueeze", "Pow", "Identity"], feed)


def test_factors_of_gemm_go_into_its_constants():
    net = nets.Net(("x", ["n", 8]))
    y = net.op("Gemm", "x", net.normal(8, 4), net.normal(4), alpha=0.5, beta=3.0)
    feed = {"x": np.ones((2, 8), np.float32)}
    prepared = check(net.model(y), ["Gemm"], feed)
    assert not {a.name for a in prepared.graph.node[0].attribute} & {"alpha", "beta"}


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[2, 3], [-1, -2], [1, 2], [3]])
def test_means_over_all_of_space_only(axes, keepdims):
    net = nets.Net(("x", ["n", 3, 16, 16]))
    y = net.op("ReduceMean", "x", net.constant(np.array(axes)), keepdims=keepdims)
    prepared = check(net.model(y))
    pooled = "GlobalAveragePool" in {n.op_type for n in prepared.graph.node}
    assert pooled == (axes in ([2, 3], [-1, -2]))


def strided(count):
    """As torch exports a 1x1 adaptive pooling with a free batch; indices times ``count``."""
    net = nets.Net(("x", ["n", 6, 16, 16]))
    net.nodes.append(onnx.helper.make_node("Shape", ["x"], ["s"], start=0, end=1))
    batch = net.op("Squeeze", "s")
    pooled = net.op("ReduceMean", "x", net.constant(np.array([2, 3])))
    flat = net.op("Reshape", pooled, net.constant(np.array([-1])))
    zero, one = net.constant(np.array(0)), net.constant(np.array(1))
    rows = net.op("Mul", net.op("Range", zero, batch, one), net.constant(np.array(6)))
    rows = net.op("Unsqueeze", rows, net.constant(np.array([1, 2, 3])))
    columns = net.constant(np.arange(6).reshape(1, 6, 1, 1) * count)
    return net, net.op("Gather", flat, net.op("Add", rows, columns))


def test_strided_copies_in_order_are_seen_through():
    feed = {"x": np.random.default_rng(0).standard_normal((3, 6, 16, 16)).astype("f4")}
    net, copy = strided(1)
    check(net.model(net.conv(copy, 6, 4, k=1)), ["GlobalAveragePool", "Conv"], feed)
    net, copy = strided(1)
    flat = net.op("Reshape", copy, net.constant(np.array([-1, 2])))
    check(net.model(flat), ["GlobalAveragePool", "Reshape"], feed)
    net, copy = strided(0)  # one element again and again is no copy
    prepared = check(net.model(net.op("Relu", copy)), None, feed)
    assert "Gather" in {n.op_type for n in prepared.graph.node}


def test_old_opsets_are_converted():
    net = nets.Net(("x", ["n", 3, 16, 16]))
    model = net.model(net.op("Relu", net.conv("x", 3, 4)), opset=11)
    prepared = check(model)
    assert prepared.opset_import[0].version >= 13
    net = nets.Net(("x", ["n", 3, 16, 16]))
    model = net.model(net.op("Relu", "x"), opset=11)
    model.graph.node[0].op_type = "Unheard"
    with pytest.raises(SourceError, match="opset 11, static INT8 needs 13"):
        prepare(model)


def test_names_that_subgraphs_read_stay():
    net = nets.Net(("x", ["n", 3, 16, 16]))
    a = net.op("Relu", net.conv("x", 3, 4), out="a")
    inner = net.op("Identity", a, out="inner")
    make = onnx.helper
    value = make.make_tensor_value_info("r", 1, None)
    branches = [
        make.make_graph([make.make_node(op, ["inner"], ["r"])], op, [], [value])
        for op in ("Neg", "Abs")
    ]
    y = net.op("If", net.constant(np.array(True)), then_branch=branches[0], else_branch=branches[1])
    check(net.model(net.op("Add", y, inner, out="y")))
