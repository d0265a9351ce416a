"""Which operators compute in integers, and how: one row an operator.

The rows say what ONNX Runtime's CPU provider fuses Q/DQ pairs around into an integer kernel
(measured on 1.32: each row has a test that counts kernels). An operator without a row stays in
float, and its weights carry the reason. Not every integer kernel is worth a row: Resize on uint8
took 392 us where float took 60.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeopt.graphs.static.graph import Graph, Node, attribute

__all__ = ["DEFAULT_REASON", "REASONS", "RULES", "SEEDS", "IntegerRule"]

#: A first convolution of so few products a sum (3x3 on three channels: 27) gains nothing from
#: integers: its time goes into laying out the picture. Kept in float, nets ran 2 to 35% faster, at
#: 1 to 3 dB more; 7x7 on three channels is the other way round.
SHORT = 32

Output = Literal["own", "same", "unit", "free"]


@dataclass(frozen=True)
class IntegerRule:
    """How one operator is done in integers.

    ``data``: positions of its activations (None: all its inputs). ``weight``, ``bias``: positions
    of its constants. ``output``: ``own`` range; the ``same`` scale as its input; the ``unit``
    interval, known beforehand; or ``free``: float, unless an integer operator reads it.
    ``refuse`` says why this node cannot be, or nothing.
    """

    data: tuple[int, ...] | None
    output: Output
    weight: int | None = None
    bias: int | None = None
    refuse: Callable[[Graph, Node], str | None] | None = None


def _conv(graph: Graph, node: Node) -> str | None:
    if not graph.is_float(node.input[1]):
        return "its weight is computed, or not float32"
    if len(node.input) > 2 and node.input[2] and not graph.is_float(node.input[2]):
        return "its bias is computed, or not float32"
    length = int(np.prod(graph.shape(node.input[1])[1:]))
    if node.input[0] in graph.inputs and attribute(node, "group", 1) == 1 and length <= SHORT:
        return f"first layer with sums of {length} products: float is as fast, and exact"
    return None


def _gemm(graph: Graph, node: Node) -> str | None:
    if not graph.is_float(node.input[1]):
        return "its second factor is computed, or not float32"
    if attribute(node, "transA", 0):
        return "its first factor is transposed"
    if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
        return "alpha or beta is not 1"
    bias = node.input[2] if len(node.input) > 2 else ""
    columns = graph.shape(node.input[1])[0 if attribute(node, "transB", 0) else 1]
    if bias and not (graph.is_float(bias) and graph.shape(bias) in ((columns,), (1, columns))):
        return "its bias is computed, or not one number a column"
    return None


def _matmul(graph: Graph, node: Node) -> str | None:
    if not graph.is_float(node.input[1]):
        return "its second factor is computed, or not float32"
    if len(graph.shape(node.input[1])) != 2:
        return "its weight is no matrix"
    return None


def _one_output(_: Graph, node: Node) -> str | None:
    return "its indices are used" if len([o for o in node.output if o]) > 1 else None


_SAME = IntegerRule((0,), "same")
_OWN = IntegerRule((0,), "own")

RULES: dict[str, IntegerRule] = {
    # with weights: these are what integer arithmetic is for
    "Conv": IntegerRule((0,), "own", weight=1, bias=2, refuse=_conv),
    "Gemm": IntegerRule((0,), "free", weight=1, bias=2, refuse=_gemm),
    "MatMul": IntegerRule((0,), "free", weight=1, refuse=_matmul),
    # without: in integers where they stand between those
    "Add": IntegerRule(None, "own"),
    "Mul": IntegerRule(None, "own"),
    "Concat": IntegerRule(None, "own"),
    "AveragePool": _OWN,
    "GlobalAveragePool": _OWN,
    "LeakyRelu": _OWN,
    "Relu": _OWN,  # only where it cannot be merged into its input's range: as LeakyRelu(0)
    "Sigmoid": IntegerRule((0,), "unit"),
    "HardSigmoid": IntegerRule((0,), "unit"),  # as an Add that saturates
    "MaxPool": IntegerRule((0,), "same", refuse=_one_output),
    "Reshape": _SAME,
    "Flatten": _SAME,
    "Transpose": _SAME,
    "Squeeze": _SAME,
    "Unsqueeze": _SAME,
    "Slice": _SAME,
    "Split": _SAME,
    "Expand": _SAME,
    "DepthToSpace": _SAME,
    "SpaceToDepth": _SAME,
}

#: The operators with weights.
SEEDS = frozenset(op for op, rule in RULES.items() if rule.weight is not None)

#: Why an operator's weights stay in float.
REASONS: dict[str, str] = {
    "ConvTranspose": "ConvTranspose has no integer kernel",
    "LSTM": "LSTM has no static integer kernel",
    "GRU": "GRU has no static integer kernel",
    "RNN": "RNN has no static integer kernel",
    "Gather": "a table that is looked up in, not multiplied",
    "LayerNormalization": "normalization stays in float",
    "SimplifiedLayerNormalization": "normalization stays in float",
    "RMSNormalization": "normalization stays in float",
    "GroupNormalization": "normalization stays in float",
    "InstanceNormalization": "normalization stays in float",
    "BatchNormalization": "normalization with no convolution before it to fold into",
    "PRelu": "PRelu has no integer kernel",
}
DEFAULT_REASON = "{op} stays in float"
