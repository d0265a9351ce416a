"""Every rule is held to the runtime: the kernels it promises are counted, the answers compared."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import static_models as nets
from onnx import numpy_helper
from tests.cpu_arithmetic import ALL, AVX2, VNNI

from edgeopt.graphs.static import integer_kernels, quantize_static
from edgeopt.graphs.static.kernels import optimized_ops
from edgeopt.graphs.static.rules import SEEDS

INT8 = onnx.TensorProto.INT8
WAVES = [{"x": np.random.default_rng(i).standard_normal((1, 1, 256)).astype("f4")} for i in (1, 2)]
ROWS = [{"x": np.random.default_rng(i).standard_normal((1, 32)).astype("f4")} for i in range(8)]

NETS = {
    "residual": (
        nets.residual,
        nets.images(),
        {"QLinearConv": 3, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1},
    ),
    "mobile": (
        nets.mobile,
        nets.images(),
        {
            "QLinearConv": 6,
            "QLinearAdd": 2,
            "QLinearMul": 2,
            "QLinearGlobalAveragePool": 2,
            "QGemm": 1,
        },
    ),
    "silu": (
        nets.silu,
        nets.images(),
        {"QLinearConv": 3, "QLinearSigmoid": 2, "QLinearMul": 2},
    ),
    "unet": (nets.unet, nets.images(), {"QLinearConv": 5, "QLinearConcat": 1}),
    "preactivation": (
        nets.preactivation,
        nets.images(),
        {"QLinearConv": 8, "QLinearAdd": 3, "QLinearLeakyRelu": 1},
    ),
    "audio": (
        nets.audio,
        WAVES,
        {
            "QLinearConv": 5,
            "QLinearLeakyRelu": 1,
            "QLinearAveragePool": 1,
            "QLinearConcat": 1,
            "QLinearGlobalAveragePool": 1,
            "QGemm": 1,
        },
    ),
    "mlp": (nets.mlp, ROWS, {"QGemm": 3}),
}
FLOAT_OPS = {"Relu", "Clip", "Conv", "Gemm", "MatMul", "Sigmoid", "HardSigmoid", "Add", "Mul"}


def made_for(cpu, model, feeds, **options):
    """(the result, how its answers are judged whatever CPU is at hand).

    Weights of 7 bits are for CPUs that add pairs of products in 16 bits: no pair of theirs can
    leave that range, so every CPU answers as those do. Weights of 8 bits are for the others, and
    are judged by exact sums.
    """
    result = quantize_static(model, feeds, reduce_range=cpu is AVX2, **options)
    return result, lambda feed: nets.run(result.model, feed, fused=cpu is AVX2)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("cpu", ALL)
def test_kernels_and_fidelity(name, signed, cpu):
    build, feeds, kernels = NETS[name]
    model = build()
    before = model.SerializeToString()
    result, answers = made_for(cpu, model, feeds, signed=signed, method="minmax")
    assert model.SerializeToString() == before
    onnx.checker.check_model(result.model, full_check=True)
    assert {o.domain for o in result.model.opset_import} == {""}
    if not signed:  # on x86-64 the runtime has no kernels for most operators on signed numbers
        assert integer_kernels(result.model) == Counter(kernels)
        assert not FLOAT_OPS & optimized_ops(result.model).keys()
    for feed in feeds:
        reference, got = nets.run(model, feed)[0], answers(feed)[0]
        assert nets.sqnr(reference, got) > (26 if cpu is VNNI else 22)
        batch = {"x": np.concatenate([feed["x"]] * 3)}  # and at another batch size
        np.testing.assert_allclose(answers(batch)[0][2:], got, atol=1e-4)


@pytest.mark.parametrize("name", NETS)
def test_seven_bits_cannot_saturate(name):
    """Pairs of the largest activation, 255, with the weights: within 16 bits in any order."""
    build, feeds, _ = NETS[name]
    model = quantize_static(build(), feeds, reduce_range=True).model
    codes = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == INT8]
    assert codes
    assert all(2 * 255 * int(np.abs(c.astype(int)).max()) < 2**15 for c in codes if c.size)


@pytest.mark.parametrize("name", NETS)
def test_every_float_constant_has_its_decision(name):
    build, feeds, _ = NETS[name]
    result = quantize_static(build(), feeds, method="minmax")
    decided = {d.tensor: d for d in result.decisions}
    floats = {
        t.name: t
        for t in result.prepared.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT
    }
    assert decided.keys() == floats.keys()
    stored = {t.name: t for t in result.model.graph.initializer}
    for tensor, decision in decided.items():
        assert decision.reason
        assert decision.shape == tuple(floats[tensor].dims)
        if decision.form == "keep":
            assert decision.scheme is None
            assert tensor in stored
            continue
        assert tensor not in stored
        parts = [t for n, t in stored.items() if n.startswith((f"{tensor}/", f"{tensor}."))]
        nbytes = sum(onnx.numpy_helper.to_array(t).nbytes for t in parts)
        assert decision.nbytes == nbytes


def test_weights_per_channel_biases_at_the_products_scale():
    model = nets.residual()
    result = quantize_static(model, nets.images(), method="minmax")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer}
    producer = {n.output[0]: n for n in result.model.graph.node}
    convs = [n for n in result.model.graph.node if n.op_type == "Conv"]
    assert len(convs) == 3
    for conv in convs:
        data, weight, bias = (producer[name] for name in conv.input)
        codes, scale, zero = (stored[name] for name in weight.input)
        assert codes.dtype == np.int8
        assert scale.shape == (codes.shape[0],)
        assert not zero.any()
        assert (np.abs(codes.reshape(len(codes), -1)).max(axis=1) == 127).all()
        bias_codes, bias_scale = (stored[name] for name in bias.input)
        assert bias_codes.dtype == np.int32
        np.testing.assert_array_equal(bias_scale, stored[data.input[1]] * scale)
        assert stored[data.input[2]].dtype == np.uint8


def test_seven_bits_where_the_processor_saturates():
    result = quantize_static(nets.residual(), nets.images(), reduce_range=True)
    codes = [
        onnx.numpy_helper.to_array(t)
        for t in result.model.graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1
    ]
    assert max(np.abs(c.astype(int)).max() for c in codes) == 63


def test_again_uses_the_same_ranges():
    feeds = nets.images()
    result = quantize_static(nets.residual(), feeds)
    signed = result.again(signed=True)
    fresh = quantize_static(nets.residual(), feeds, signed=True)
    assert signed.model.SerializeToString() == fresh.model.SerializeToString()


def test_exclude_and_ops_leave_nodes_in_float_with_the_reason():
    model = nets.residual()
    conv = next(n for n in model.graph.node if n.op_type == "Conv")
    result = quantize_static(model, nets.images(), exclude=[conv.name])
    decided = {d.tensor: d for d in result.decisions}
    assert decided[conv.input[1]].reason == "Conv: left in float as asked"
    assert integer_kernels(result.model)["QLinearConv"] == 2
    result = quantize_static(model, nets.images(), ops=SEEDS - {"Gemm"})
    gemm = next(n for n in model.graph.node if n.op_type == "Gemm")
    decided = {d.tensor: d for d in result.decisions}
    assert "stays in float here" in decided[gemm.input[1]].reason
    assert integer_kernels(result.model)["QGemm"] == 0


def test_nothing_to_do_is_a_model_as_it_was():
    net = nets.Net(("x", ["n", 4]))
    model = net.model(net.op("Mul", "x", net.normal(4), out="y"))
    result = quantize_static(model, [])
    assert not result.selection.nodes
    assert [d.reason for d in result.decisions] == ["Mul stays in float"]
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(*(nets.run(m, {"x": x})[0] for m in (model, result.model)))


def refusals():
    """(net, output, the reason its weight w stays in float)."""

    def net(*shape):
        return nets.Net(("x", ["n", *shape]))

    n = net(3, 8, 8)
    weight = n.op("Mul", n.normal(4, 3, 3, 3, name="w"), n.op("ReduceMax", "x", keepdims=0))
    yield n, n.op("Conv", "x", weight), "Mul stays in float"
    n = net(8)
    n.normal(8, 8, name="w")
    table = n.op("Gather", "w", n.constant(np.array([0])))
    yield n, n.op("Add", n.op("MatMul", "x", "w"), table), "shared with Gather"
    n = net(2, 8)
    yield n, n.op("MatMul", "x", n.normal(1, 8, 4, name="w")), "its weight is no matrix"
    n = net(8)
    yield n, n.op("Gemm", "x", n.normal(8, 4, name="w"), transA=1), "first factor is transposed"
    n = net(8)
    yield n, n.op("Gemm", "x", n.normal(8, 8, name="w"), "x"), "bias is computed"
    n = net(8, 8)
    yield n, n.op("MatMul", n.constant(np.ones((1, 8), "f4")), n.normal(8, 4, name="w")), "constant"
    n = net(1, 8, 8)
    yield n, n.op("Conv", "x", n.normal(4, 1, 3, 3, name="w")), "sums of 9 products"
    n = net(3, 8, 8)
    deep = n.op("ConvTranspose", "x", n.normal(3, 2, 3, 3, name="w"), strides=[2, 2])
    yield n, deep, "ConvTranspose has no integer kernel"
    n = net(8)
    yield n, n.op("LayerNormalization", "x", n.normal(8, name="w")), "normalization stays"


@pytest.mark.parametrize("case", list(refusals()), ids=lambda c: c[2])
def test_what_cannot_be_done_says_why(case):
    net, output, reason = case
    model = net.model(output)
    shape = [8 if d == "n" else d for d in net.inputs[0][1]]
    feed = {"x": np.random.default_rng(0).standard_normal(shape).astype("f4")}
    result = quantize_static(model, [feed])
    kept = {d.tensor: d.reason for d in result.decisions if d.form == "keep"}
    assert reason in kept["w"]
    want = nets.run(model, feed)[0]
    np.testing.assert_allclose(nets.run(result.model, feed)[0], want, atol=0.15)


def test_a_recurrent_layer_whose_first_output_nobody_reads():
    net = nets.Net(("x", [5, 1, 8]))
    for last in (False, True):
        names = ["x", net.normal(1, 16, 8), net.normal(1, 16, 4)]
        net.nodes.append(onnx.helper.make_node("LSTM", names, ["", f"h{last}"], hidden_size=4))
    rows = net.op("Squeeze", net.op("Add", "hFalse", "hTrue"), net.constant(np.array([0])))
    model = net.model(net.gemm(rows, 4, 6, out="y"))
    feed = {"x": np.random.default_rng(0).standard_normal((5, 1, 8)).astype("f4")}
    result = quantize_static(model, [feed])
    assert [d.reason for d in result.decisions[:2]] == ["LSTM has no static integer kernel"] * 2
    assert integer_kernels(result.model) == Counter({"QGemm": 1})
    np.testing.assert_allclose(*(nets.run(m, feed)[0] for m in (model, result.model)), atol=0.05)


@pytest.mark.parametrize("cpu", ALL)
def test_shared_weights_and_graph_outputs(cpu):
    """One weight used twice is stored once; outputs keep their names and are read inside, too."""
    net = nets.Net(("x", ["n", 16, 8, 8]))
    weight = net.normal(16, 16, 3, 3, gain=0.1, name="w")
    first = net.op("Relu", net.op("Conv", "x", weight, pads=[1] * 4), out="first")
    second = net.op("Conv", first, weight, pads=[1] * 4, out="second")
    model = net.model(first, second)
    feeds = nets.images(3, 16, 8)
    result, answers = made_for(cpu, model, feeds, method="minmax")
    assert [o.name for o in result.model.graph.output] == ["first", "second"]
    assert sum(t.name.startswith("w/q") for t in result.model.graph.initializer) == 1
    assert integer_kernels(result.model) == Counter({"QLinearConv": 2})
    for want, got in zip(nets.run(model, feeds[0]), answers(feeds[0]), strict=True):
        assert nets.sqnr(want, got) > (30 if cpu is VNNI else 26)


def test_dead_channels_and_constant_activations_have_defined_codes():
    net = nets.Net(("x", ["n", 4, 8, 8]))
    weight = net.rng.standard_normal((8, 4, 3, 3)).astype(np.float32)
    weight[2] = 0
    weight[3] = 1e-30
    bias = np.full(8, -1e3, np.float32)  # every activation dies in the Relu
    dead = net.op("Relu", net.op("Conv", "x", net.constant(weight), net.constant(bias)))
    last = net.rng.standard_normal((4, 8, 1, 1)).astype(np.float32)
    last[1] = 0
    model = net.model(
        net.op("Conv", dead, net.constant(last), net.constant(np.arange(4, dtype="f4")), out="y")
    )
    feeds = nets.images(2, 4, 8)
    for method in ("minmax", "percentile", "entropy", "mse"):
        result = quantize_static(model, feeds, method=method)
        for tensor in result.model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                values = onnx.numpy_helper.to_array(tensor)
                assert np.isfinite(values).all()
                assert (values > 0).all()
        want, got = (nets.run(m, feeds[0])[0] for m in (model, result.model))
        np.testing.assert_allclose(got, want, atol=0.02)
