"""The same function in a form that quantizes well: constants folded, batch norms merged.

Only standard operators come out, and every weight that is merely rescaled keeps its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeopt.core import Array
from edgeopt.errors import SourceError
from edgeopt.graphs.capture.converting import converted_model
from edgeopt.graphs.static.graph import Graph, Node, attribute, rename_reads
from edgeopt.graphs.static.rules import RULES
from edgeopt.graphs.static.strided import remove_strided_copies

__all__ = ["MIN_OPSET", "prepare"]

#: Per-channel DequantizeLinear came with opset 13.
MIN_OPSET = 13


def prepare(model: Any) -> Any:
    """Rewrite a float model in place (and return it; a newer object where its opset was old).

    Raises:
        SourceError: an opset under 13 that onnx cannot convert.
    """
    model = _modern(model)
    graph = Graph(model)
    for step in _STEPS:
        step(graph)
        graph.index()
    graph.commit()
    return model


def _modern(model: Any) -> Any:
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    if opset >= MIN_OPSET:
        return model
    try:
        return converted_model(model, 17)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(
            f"the model has ONNX opset {opset}, static INT8 needs {MIN_OPSET} or later, and"
            f" converting it failed: {reason}; export it anew with a later opset"
        ) from error


def _replace(graph: Graph, old: Node, new: list[Node]) -> None:
    at = next(i for i, node in enumerate(graph.nodes) if node is old)
    graph.nodes[at : at + 1] = new


def _private(graph: Graph, name: str) -> bool:
    """Nobody outside the main graph's nodes sees this name."""
    return name not in graph.outputs and name not in graph.inner


# ---------------------------------------------------------------------------------------------
# constants


def _constants(graph: Graph) -> None:
    """Constant nodes become initializers; Identity and Transpose of constants are carried out."""
    kept: list[Node] = []
    for node in graph.nodes:
        output = node.output[0] if node.output else ""
        source = node.input[0] if node.input else ""
        folded: Array | None = None
        if node.op_type == "Constant":
            folded = _constant_value(node)
        elif node.op_type == "Transpose" and graph.is_float(source):
            folded = graph.array(source).transpose(attribute(node, "perm"))
        if folded is not None and _private(graph, output):
            graph.set_array(output, np.ascontiguousarray(folded).reshape(folded.shape))
        elif node.op_type == "Identity" and _private(graph, output):
            rename_reads(graph, output, source)
        else:
            kept.append(node)
    graph.nodes = kept


def _constant_value(node: Node) -> Array | None:
    value = node.attribute[0]
    if value.name == "value":
        array: Array = numpy_helper.to_array(value.t)
        return array
    plain = {"value_float": "f", "value_floats": "floats", "value_int": "i", "value_ints": "ints"}
    if value.name not in plain:
        return None
    dtype = np.float32 if "float" in value.name else np.int64
    return np.asarray(getattr(value, plain[value.name]), dtype)


# ---------------------------------------------------------------------------------------------
# batch normalization


def _batch_norms(graph: Graph) -> None:
    ranks: dict[str, int] | None = None
    for node in list(graph.nodes):
        if node.op_type != "BatchNormalization" or attribute(node, "training_mode", 0):
            continue
        if len([o for o in node.output if o]) > 1 or not all(map(graph.is_float, node.input[1:5])):
            continue
        gain, shift = _gain_and_shift(graph, node)
        before = graph.producer.get(node.input[0])
        alone = before is not None and graph.only_reader(node.input[0]) is node
        if before is not None and alone and _fold_into(graph, before, gain, shift):
            before.output[0] = node.output[0]
            graph.producer[node.output[0]] = before
            graph.nodes.remove(node)
        elif before is not None and before.op_type in RULES and _feeds_integers(graph, node):
            ranks = graph.ranks() if ranks is None else ranks
            rank = ranks.get(node.input[0], 0)
            if rank >= 3:
                _replace(graph, node, [_depthwise(graph, node, gain, shift, rank)])


def _gain_and_shift(graph: Graph, node: Node) -> tuple[Array, Array]:
    scale, bias, mean, variance = (graph.array(n).astype(np.float64) for n in node.input[1:5])
    gain = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return gain, bias - mean * gain


def _fold_into(graph: Graph, node: Node, gain: Array, shift: Array) -> bool:
    """Multiply a layer's output channels; False where the layer is none that can be."""
    if node.op_type not in ("Conv", "ConvTranspose") or node.domain not in ("", "ai.onnx"):
        return False
    weight = node.input[1]
    bias = node.input[2] if len(node.input) > 2 else ""
    mine = all(graph.only_reader(n) is node for n in (weight, bias) if n)
    if not (mine and graph.is_float(weight) and (not bias or graph.is_float(bias))):
        return False
    values = graph.array(weight).astype(np.float64)
    if node.op_type == "Conv":
        values = values * gain.reshape(-1, *[1] * (values.ndim - 1))
    else:  # [in, out / groups, ...]: a group's inputs go to its own outputs
        groups = attribute(node, "group", 1)
        grouped = values.reshape(groups, -1, *values.shape[1:])
        factors = gain.reshape(groups, 1, values.shape[1], *[1] * (values.ndim - 2))
        values = (grouped * factors).reshape(values.shape)
    old = graph.array(bias).astype(np.float64) if bias else 0.0
    graph.set_array(weight, values.astype(np.float32))
    if not bias:
        bias = graph.fresh(f"{weight}/bias")
        del node.input[2:]
        node.input.append(bias)
        graph.consumers[bias] = [node]
    graph.set_array(bias, (old * gain + shift).astype(np.float32))
    return True


def _feeds_integers(graph: Graph, node: Node) -> bool:
    name = node.output[0]
    reader = graph.only_reader(name)
    if reader is not None and reader.op_type in ("Relu", "Clip"):
        name = reader.output[0]
    return any(r.op_type in RULES for r in graph.consumers.get(name, []))


def _depthwise(graph: Graph, node: Node, gain: Array, shift: Array, rank: int) -> Node:
    """A batch norm that stands alone, as a convolution: one weight a channel, exact at 8 bits."""
    weight = graph.fresh(f"{node.input[1]}/gain")
    bias = graph.fresh(f"{node.input[2]}/shift")
    graph.set_array(weight, gain.astype(np.float32).reshape(-1, *[1] * (rank - 1)))
    graph.set_array(bias, shift.astype(np.float32))
    inputs, outputs = [node.input[0], weight, bias], list(node.output[:1])
    return helper.make_node("Conv", inputs, outputs, node.name, group=gain.size)


# ---------------------------------------------------------------------------------------------
# operators that have a sibling with an integer kernel


def _means(graph: Graph) -> None:
    """ReduceMean over all spatial axes is GlobalAveragePool."""
    nodes = [n for n in graph.nodes if n.op_type == "ReduceMean"]
    ranks = graph.ranks() if nodes else {}
    for node in nodes:
        rank = ranks.get(node.input[0], 0)
        if len(node.input) > 1 and node.input[1]:
            if node.input[1] not in graph.constants:
                continue
            axes = graph.array(node.input[1]).tolist()
        else:
            axes = attribute(node, "axes", [])
        if rank < 3 or sorted(a % rank for a in axes) != list(range(2, rank)):
            continue
        source, output = node.input[0], node.output[0]
        if attribute(node, "keepdims", 1):
            new = [helper.make_node("GlobalAveragePool", [source], [output], node.name)]
        else:
            pooled = graph.fresh(f"{output}/pooled")
            new = [
                helper.make_node("GlobalAveragePool", [source], [pooled], node.name),
                helper.make_node("Flatten", [pooled], [output], f"{node.name}/flat", axis=1),
            ]
        _replace(graph, node, new)


def _transposed(graph: Graph) -> None:
    """ConvTranspose whose kernel is its stride is a 1x1 Conv and DepthToSpace.

    Every output pixel then depends on one input pixel: each of the kernel's positions is a set of
    output channels, which DepthToSpace lays out in space.
    """
    for node in [n for n in graph.nodes if n.op_type == "ConvTranspose"]:
        weight = node.input[1]
        bias = node.input[2] if len(node.input) > 2 else ""
        constants = [n for n in (weight, bias) if n]
        if not all(graph.is_float(n) and graph.only_reader(n) is node for n in constants):
            continue
        shape = graph.shape(weight)
        kernel = list(shape[2:])
        plain = (
            len(kernel) == 2
            and kernel[0] == kernel[1]
            and attribute(node, "strides", [1, 1]) == kernel
            and attribute(node, "group", 1) == 1
            and attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
            and attribute(node, "output_shape") is None
            and not any(attribute(node, "pads", [0]))
            and not any(attribute(node, "output_padding", [0]))
            and all(d == 1 for d in attribute(node, "dilations", [1, 1]))
        )
        if not plain:
            continue
        size = kernel[0]
        # [in, out, ky, kx] -> [out * ky * kx, in, 1, 1], the order that DepthToSpace calls CRD
        values = graph.array(weight).reshape(shape[0], -1).T
        graph.set_array(weight, np.ascontiguousarray(values)[:, :, None, None])
        if bias:
            graph.set_array(bias, np.repeat(graph.array(bias), size * size))
        deep = graph.fresh(f"{node.output[0]}/deep")
        new = [
            helper.make_node("Conv", list(node.input), [deep], node.name, kernel_shape=[1, 1]),
            helper.make_node(
                "DepthToSpace",
                [deep],
                list(node.output),
                f"{node.name}/space",
                blocksize=size,
                mode="CRD",
            ),
        ]
        _replace(graph, node, new)


def _hard_swish(graph: Graph) -> None:
    """HardSwish is x * HardSigmoid(x) by its definition (alpha 1/6, beta 1/2)."""
    for node in list(graph.nodes):
        if node.op_type != "HardSwish":
            continue
        gate = graph.fresh(f"{node.output[0]}/gate")
        source = node.input[0]
        _replace(
            graph,
            node,
            [
                helper.make_node(
                    "HardSigmoid", [source], [gate], f"{node.name}/gate", alpha=1 / 6, beta=0.5
                ),
                helper.make_node("Mul", [source, gate], list(node.output), node.name),
            ],
        )


def _gemms(graph: Graph) -> None:
    """MatMul and Add of a bias make one Gemm; factors of a Gemm go into its constants."""
    pairs = [(n, _bias_add(graph, n)) for n in graph.nodes if n.op_type == "MatMul"]
    ranks = graph.ranks() if any(add for _, add in pairs) else {}
    for node, add in pairs:
        if add is None or ranks.get(node.input[0]) != 2:
            continue
        bias = next(n for n in add.input if n != node.output[0])
        inputs = [*node.input, bias]
        _replace(graph, add, [helper.make_node("Gemm", inputs, list(add.output), node.name)])
        graph.nodes.remove(node)
    for node in (n for n in graph.nodes if n.op_type == "Gemm"):
        constants = [n for n in node.input[1:3] if n]
        names = ("alpha", "beta")
        factors = [attribute(node, name, 1.0) for name in names]
        mine = all(graph.is_float(n) and graph.only_reader(n) is node for n in constants)
        if factors == [1.0, 1.0] or not mine:
            continue
        for name, factor in zip(constants, factors, strict=False):
            graph.set_array(name, (graph.array(name) * np.float32(factor)).astype(np.float32))
        kept = [a for a in node.attribute if a.name not in names]
        del node.attribute[:]
        node.attribute.extend(kept)


def _bias_add(graph: Graph, node: Node) -> Node | None:
    if not graph.is_float(node.input[1]) or len(graph.shape(node.input[1])) != 2:
        return None
    add = graph.only_reader(node.output[0])
    if add is None or add.op_type != "Add":
        return None
    bias = next((n for n in add.input if n != node.output[0]), "")
    columns = graph.shape(node.input[1])[1]
    if not graph.is_float(bias) or graph.shape(bias) != (columns,):
        return None
    # An infinity has no code: what adds it stays in float, and the product before it need not.
    return add if bool(np.isfinite(graph.array(bias)).all()) else None


_STEPS: tuple[Callable[[Graph], None], ...] = (
    _constants,
    remove_strided_copies,
    _means,
    _batch_norms,
    _transposed,
    _hard_swish,
    _gemms,
)
