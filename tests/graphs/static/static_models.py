"""Small float graphs with random weights, one for each shape of network that matters."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


class Net:
    """Nodes in a row; every method returns the name of its output."""

    def __init__(self, *inputs: tuple[str, list[int | str]], seed: int = 0) -> None:
        self.inputs = inputs
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.rng = np.random.default_rng(seed)

    def constant(self, array: Any, name: str = "") -> str:
        name = name or f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def op(self, op: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        out = out or f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], f"n_{out}", **attributes))
        return out

    def normal(self, *shape: int, gain: float = 1.0, name: str = "") -> str:
        values = self.rng.standard_normal(shape) * gain
        return self.constant(values.astype(np.float32), name)

    def conv(self, x: str, cin: int, cout: int, k: int = 3, group: int = 1, rank: int = 2, **kw):
        fan = cin // group * k**rank
        weight = self.normal(cout, cin // group, *[k] * rank, gain=(2 / fan) ** 0.5)
        bias = self.normal(cout, gain=0.1)
        return self.op("Conv", x, weight, bias, pads=[k // 2] * (2 * rank), group=group, **kw)

    def gemm(self, x: str, n: int, m: int, **kw: Any) -> str:
        weight = self.normal(m, n, gain=n**-0.5)
        return self.op("Gemm", x, weight, self.normal(m, gain=0.1), transB=1, **kw)

    def batch_norm(self, x: str, c: int) -> str:
        parts = [
            self.constant((self.rng.uniform(0.5, 1.5, c) * (-1) ** i).astype(np.float32))
            for i in range(3)
        ]
        variance = self.constant(self.rng.uniform(0.5, 2, c).astype(np.float32))
        return self.op("BatchNormalization", x, *parts, variance)

    def model(self, *outputs: str, opset: int = 20) -> Any:
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "net",
            [value(name, TensorProto.FLOAT, shape) for name, shape in self.inputs],
            [value(name, TensorProto.FLOAT, None) for name in outputs],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = 10
        model = onnx.shape_inference.infer_shapes(model)  # outputs need shapes
        del model.graph.value_info[:]
        onnx.checker.check_model(model)
        return model


def run(model: Any, feed: dict[str, Array], *, fused: bool = True) -> list[Array]:
    """What the runtime answers. Not ``fused``: codes are decoded and multiplied in float32, whose
    sums are those of the integers on a CPU that keeps them exactly.
    """
    options = ort.SessionOptions()
    if not fused:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


def sqnr(reference: Array, got: Array) -> float:
    noise = np.square(reference.astype(np.float64) - got).sum()
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / noise))


def images(n: int = 4, channels: int = 3, size: int = 16, seed: int = 1) -> list[dict[str, Array]]:
    rng = np.random.default_rng(seed)
    return [
        {"x": rng.standard_normal((1, channels, size, size)).astype(np.float32)} for _ in range(n)
    ]


def residual() -> Any:
    net = Net(("x", ["n", 3, 16, 16]))
    a = net.op("Relu", net.conv("x", 3, 16, k=5))
    b = net.op("Relu", net.batch_norm(net.conv(a, 16, 16), 16))
    y = net.op("Relu", net.op("Add", net.conv(b, 16, 16), a))
    y = net.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    y = net.op("ReduceMean", y, net.constant(np.array([-1, -2])), keepdims=0)
    return net.model(net.gemm(y, 16, 10, out="y"))


def mobile() -> Any:
    """Depthwise convolutions, Clip, HardSwish, squeeze and excitation."""
    net = Net(("x", ["n", 3, 16, 16]))
    y = net.op("HardSwish", net.conv("x", 3, 16, k=5))
    low, high = net.constant(np.float32(0)), net.constant(np.float32(6))
    y = net.op("Clip", net.conv(y, 16, 32, k=1), low, high)
    y = net.op("Clip", net.conv(y, 32, 32, group=32), low, high)
    gate = net.op("GlobalAveragePool", y)
    gate = net.op("Relu", net.conv(gate, 32, 8, k=1))
    gate = net.op("HardSigmoid", net.conv(gate, 8, 32, k=1), alpha=1 / 6, beta=0.5)
    y = net.op("Mul", y, gate)
    y = net.op("Flatten", net.op("GlobalAveragePool", net.conv(y, 32, 16, k=1)))
    return net.model(net.gemm(y, 16, 10, out="y"))


def silu() -> Any:
    net = Net(("x", ["n", 3, 16, 16]))
    y = "x"
    for cin, k in ((3, 5), (16, 3)):
        y = net.conv(y, cin, 16, k=k)
        y = net.op("Mul", y, net.op("Sigmoid", y))
    return net.model(net.conv(y, 16, 4, out="y"))


def unet() -> Any:
    net = Net(("x", ["n", 3, 16, 16]))
    a = net.op("Relu", net.conv("x", 3, 8, k=5))
    b = net.op("MaxPool", a, kernel_shape=[2, 2], strides=[2, 2])
    b = net.op("Relu", net.conv(b, 8, 16))
    up = net.op("ConvTranspose", b, net.normal(16, 8, 2, 2, name="up.weight"), strides=[2, 2])
    y = net.op("Concat", up, a, axis=1)
    y = net.op("Relu", net.conv(y, 16, 8))
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    y = net.op("Resize", y, "", scales, mode="nearest", nearest_mode="floor",
               coordinate_transformation_mode="asymmetric")  # fmt: skip
    return net.model(net.conv(y, 8, 2, k=1, out="y"))


def preactivation() -> Any:
    """Batch norms that follow an Add, and a Relu whose input is read beside it."""
    net = Net(("x", ["n", 3, 16, 16]))
    y = net.conv("x", 3, 16, k=5)
    for _ in range(2):
        z = net.op("Relu", net.batch_norm(y, 16))
        y = net.op("Add", y, net.conv(z, 16, 16))
    z = net.op("Relu", y)
    y = net.op("Add", net.conv(z, 16, 16), net.conv(y, 16, 16, k=1))
    return net.model(net.conv(y, 16, 4, out="y"))


def audio() -> Any:
    net = Net(("x", ["n", 1, 256]))
    y = net.op("Relu", net.conv("x", 1, 16, k=33, rank=1))
    y = net.op("LeakyRelu", net.conv(y, 16, 32, rank=1, strides=[2]), alpha=0.1)
    y = net.op("AveragePool", y, kernel_shape=[2], strides=[2])
    y = net.op("Concat", net.conv(y, 32, 16, rank=1), net.conv(y, 32, 8, rank=1), axis=1)
    y = net.op("ReduceMean", net.conv(y, 24, 16, rank=1), net.constant(np.array([2])), keepdims=0)
    return net.model(net.gemm(y, 16, 5, out="y"))


def mlp() -> Any:
    net = Net(("x", ["n", 32]))
    y = net.op("Relu", net.gemm("x", 32, 64))
    y = net.op(
        "Gelu", net.op("Add", net.op("MatMul", y, net.normal(64, 64, gain=0.12)), net.normal(64))
    )
    return net.model(net.gemm(y, 64, 8, out="y"))
