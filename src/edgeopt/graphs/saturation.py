"""Which products of a written ONNX file saturate on x86-64 before VNNI.

There ``vpmaddubsw`` adds two products of uint8 by int8 in 16 bits: with the largest activation,
255, two weights of one sign leave that range once they sum to 129 and more (Intel 64 and IA-32
Architectures Software Developer's Manual, vol. 2C). Weights of 7 bits, -64 to 64, and uint8 ones
never do. The file is read as anybody's: what it says of itself is not asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

__all__ = ["saturating_products"]

INT8 = onnx.TensorProto.INT8
#: Operator -> the input that takes codes of a weight.
_WEIGHT: Mapping[str, int] = {
    "MatMulInteger": 1,
    "ConvInteger": 1,
    "DynamicQuantizeMatMul": 1,
    "MatMulIntegerToFloat": 1,
    "QLinearConv": 3,
    "QLinearMatMul": 3,
    "QGemm": 3,
    "QAttention": 1,
    "DynamicQuantizeLSTM": 1,
}
#: Products that the runtime computes in integers when a quantized weight is decoded before them.
_DECODED: Mapping[str, int] = {"Conv": 1, "MatMul": 1, "Gemm": 1}
#: What leaves codes as they are.
_CARRIERS = frozenset({"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity"})
_LARGEST_PAIR = (2**15 - 1) // 255


def saturating_products(artifact: Path) -> int:
    """Tensors of int8 weights in integer products that could leave 16 bits in pairs.

    Codes that are made when the session loads, by a cast to int8 before an integer product, count:
    such chains use all 8 bits.
    """
    model = onnx.load(str(artifact), load_external_data=False)
    return len(_in_graph(model.graph, artifact.parent, {}, {}))


def _in_graph(
    graph: Any, folder: Path, outer: Mapping[str, Any], above: Mapping[str, Any]
) -> set[str]:
    """Names, in this graph and the branches inside it; ``outer`` are int8 tensors and ``above``
    nodes by what they give, both of the graphs around it."""
    stored = {**outer, **{t.name: t for t in graph.initializer if t.data_type == INT8}}
    producer = {**above, **{name: node for node in graph.node for name in node.output if name}}
    found = set()
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found |= _in_graph(attribute.g, folder, stored, producer)
        for name, made_at_load in _weights(node, producer):
            name = _origin(name, producer)
            tensor = stored.get(name)
            if _wide(tensor, folder) if tensor is not None else made_at_load:
                found.add(name)
    return found


def _weights(node: Any, producer: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """(what holds the codes of a weight of this product, whether a chain may make them at load)."""
    slot = _WEIGHT.get(node.op_type)
    if slot is not None and slot < len(node.input):
        name = node.input[slot]
        yield name, _cast_to_int8(producer.get(_origin(name, producer)))
    slot = _DECODED.get(node.op_type)
    if slot is None or slot >= len(node.input):
        return
    decoding, activation = (producer.get(node.input[i]) for i in (slot, 0))
    if decoding is None or activation is None:
        return
    if decoding.op_type == activation.op_type == "DequantizeLinear":
        yield decoding.input[0], False


def _origin(name: str, producer: Mapping[str, Any]) -> str:
    node = producer.get(name)
    while node is not None and node.op_type in _CARRIERS:
        name = node.input[0]
        node = producer.get(name)
    return name


def _cast_to_int8(node: Any) -> bool:
    return (
        node is not None
        and node.op_type == "Cast"
        and any(a.name == "to" and a.i == INT8 for a in node.attribute)
    )


def _wide(tensor: Any, folder: Path) -> bool:
    """Whether two of its codes of one sign sum to more than a pair of products may."""
    if math.prod(tensor.dims) < 2:
        return False
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        tensor = _copy(tensor)
        load_external_data_for_tensor(tensor, str(folder))
    codes = numpy_helper.to_array(tensor).reshape(-1)
    high = np.partition(codes, -2)[-2:].astype(int)
    low = np.partition(codes, 1)[:2].astype(int)
    return bool(high.sum() > _LARGEST_PAIR or -low.sum() > _LARGEST_PAIR)


def _copy(tensor: Any) -> Any:
    copied = onnx.TensorProto()
    copied.CopyFrom(tensor)
    return copied
