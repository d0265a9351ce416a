"""From one opset to another by onnx's converter, with what that leaves wrong put right.

It is sound for nearly every operator (``tests/graphs/capture/test_converting.py`` holds each one
that changed against ONNX Runtime, before and after). What it leaves wrong is rewritten at the opset
where that can be said: before it begins (:data:`_BEFORE`), or on the way (:data:`_AT`), where every
node of a kind still is of the old kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from onnx import helper, numpy_helper

__all__ = ["converted_model", "opset_in"]

Node = Any  # onnx.NodeProto


@dataclass(frozen=True)
class _Around:
    """What a node's rewrite has to know of the graphs around it: small constants, names read."""

    constants: Mapping[str, Any]
    read: frozenset[str]


Rewrite = Callable[[Node, _Around], Sequence[Node]]

#: A domain that the converter does not know: what is in it stays as it is.
_HELD = "edgeopt.held"

#: Initializers over this many bytes are not given to the converter, which reads small ones only.
_LARGE = 4096

#: A rewrite looks at constants of no more elements than this.
_FEW = 16

#: The IR version since which weights need not be inputs too; the converter wants one or the other.
_FREE_WEIGHTS = 4

#: The IR version that came with opset 21.
_IR = 10


def opset_in(model: onnx.ModelProto) -> int:
    """The opset of ONNX's own domain."""
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    return max(versions, default=1)


def converted_model(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model at another opset; the one given is left as it is.

    Local functions, which the converter does not know, are inlined. Whatever onnx raises is raised.
    """
    taken = onnx.ModelProto()
    taken.CopyFrom(model)
    if taken.functions:
        taken = onnx.inliner.inline_local_functions(taken)
    taken.ir_version = max(taken.ir_version, _FREE_WEIGHTS)
    weights = _without_weights(taken)
    have = opset_in(taken)
    if have < opset:
        for last, op, rewrite in _BEFORE:
            if have <= last < opset:
                _each(taken.graph, op, rewrite)
    taken.opset_import.append(helper.make_opsetid(_HELD, 1))
    for step, op, rewrite in _AT:
        if have < step <= opset:
            taken = onnx.version_converter.convert_version(taken, step)
            _each(taken.graph, op, rewrite)
    taken = onnx.version_converter.convert_version(taken, opset)
    domains = [o for o in taken.opset_import if o.domain != _HELD]
    del taken.opset_import[:]
    taken.opset_import.extend(domains)
    for node in _nodes(taken.graph):
        node.domain = "" if node.domain == _HELD else node.domain
    for tensor in taken.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(weights[tensor.name])
    if opset >= 21:
        taken.ir_version = max(taken.ir_version, _IR)
    return taken


def _without_weights(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Take the data out of large initializers; what they were, by name."""
    taken = {}
    for tensor in model.graph.initializer:
        if tensor.ByteSize() > _LARGE:
            whole = onnx.TensorProto()
            whole.CopyFrom(tensor)
            taken[tensor.name] = whole
            bare = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            bare.raw_data = b""
            tensor.CopyFrom(bare)
    return taken


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _nodes(graph: onnx.GraphProto) -> Iterator[Node]:
    for inner in _graphs(graph):
        yield from inner.node


def _each(graph: onnx.GraphProto, op: str, rewrite: Rewrite) -> None:
    """Replace every node of an operator, in branches too."""
    if not any(node.op_type == op for node in _nodes(graph)):
        return
    around = _around(graph)
    for inner in reversed(list(_graphs(graph))):  # a graph is copied after those inside it
        nodes: list[Node] = []
        for node in inner.node:
            ours = node.op_type == op and node.domain in ("", "ai.onnx", _HELD)
            nodes += rewrite(node, around) if ours else [node]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del inner.node[:]
        inner.node.extend(copies)


def _around(graph: onnx.GraphProto) -> _Around:
    constants: dict[str, Any] = {}
    read: set[str] = set()
    for inner in _graphs(graph):
        read |= {value.name for value in inner.output}
        tensors = {tensor.name: tensor for tensor in inner.initializer}
        for node in inner.node:
            read |= set(node.input)
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                tensors[node.output[0]] = node.attribute[0].t
        small = {n: t for n, t in tensors.items() if math.prod(t.dims) <= _FEW}
        constants |= {n: numpy_helper.to_array(t) for n, t in small.items()}
    return _Around(constants, frozenset(read))


def _attributes(node: Node) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _constant(name: str, array: Any) -> Node:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))


def _flat_hardmax(node: Node, around: _Around) -> list[Node]:
    """Opset 13 took Hardmax from "all axes from ``axis`` on, as one" to one axis."""
    source, result = node.input[0], node.output[0]
    flat, hard, shape = (f"{result}/{end}" for end in ("flat", "hard", "shape"))
    return [
        helper.make_node("Flatten", [source], [flat], axis=_attributes(node).get("axis", 1)),
        helper.make_node("Hardmax", [flat], [hard], axis=1),
        helper.make_node("Shape", [source], [shape]),
        helper.make_node("Reshape", [hard, shape], [result]),
    ]


def _each_position_norm(node: Node, around: _Around) -> list[Node]:
    """BatchNormalization with statistics for every position, as opsets under 9 had it."""
    said = _attributes(node)
    if said.get("spatial", 1) or len([o for o in node.output if o]) > 1:
        return [node]
    source, scale, shift, mean, variance = node.input
    result = node.output[0]
    names = ("epsilon", "safe", "deviation", "centred", "unit", "scaled")
    epsilon, safe, deviation, centred, unit, scaled = (f"{result}/{end}" for end in names)
    make = helper.make_node
    return [
        _constant(epsilon, np.array(said.get("epsilon", 1e-5), np.float32)),
        make("Add", [variance, epsilon], [safe]),
        make("Sqrt", [safe], [deviation]),
        make("Sub", [source, mean], [centred]),
        make("Div", [centred, deviation], [unit]),
        make("Mul", [unit, scale], [scaled]),
        make("Add", [scaled, shift], [result]),
    ]


def _threshold(node: Node, around: _Around) -> list[Node]:
    """ThresholdedRelu before it was ONNX's, at opset 10; ONNX Runtime knows it from Caffe2."""
    source, result = node.input[0], node.output[0]
    limit, over, passed = (f"{result}/{end}" for end in ("limit", "over", "passed"))
    alpha = _attributes(node).get("alpha", 1.0)
    return [
        _constant(limit, np.array(alpha, np.float32)),
        helper.make_node("Greater", [source, limit], [over]),
        helper.make_node("Cast", [over], [passed], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [source, passed], [result]),
    ]


def _held(node: Node, around: _Around) -> list[Node]:
    """Out of the converter's sight, which takes a Scan with a batch for one without."""
    kept = onnx.NodeProto.FromString(node.SerializeToString())
    kept.domain = _HELD
    return [kept]


def _batched_scan(node: Node, around: _Around) -> list[Node]:
    """Opset 9 took the batch away from Scan: it is scanned over by another one around it.

    Scan of opset 8 takes (lengths, states, sequences), all with a batch in front, and scans axis 1.
    """
    said = _attributes(node)
    if node.input[0]:
        return [node]  # sequences of different lengths: nothing that followed has them
    body, count = said["body"], said["num_scan_inputs"]
    taken, result = list(node.input[1:]), list(node.output)
    states = len(taken) - count
    stem = next(name for name in result if name)
    inner = [f"{stem}/{n}/one" for n in range(len(taken))]
    given = [f"{stem}/{n}/made" for n in range(len(body.output))]
    more = {"scan_input_directions": said["directions"]} if "directions" in said else {}
    once = helper.make_node("Scan", inner, given, num_scan_inputs=count, body=body, **more)
    kinds = [value.type.tensor_type.elem_type for value in body.input]
    made = [value.type.tensor_type.elem_type for value in body.output]
    assert states >= 0
    sample = helper.make_graph(
        [once],
        f"{stem}/sample",
        [_untyped(name, kind) for name, kind in zip(inner, kinds, strict=True)],
        [_untyped(name, kind) for name, kind in zip(given, made, strict=True)],
    )
    return [helper.make_node("Scan", taken, result, num_scan_inputs=len(taken), body=sample)]


def _untyped(name: str, kind: int) -> Any:
    """A value of that element type, of any shape."""
    return helper.make_tensor_value_info(name, kind, None)


def _without_mask(node: Node, around: _Around) -> list[Node]:
    """Dropout's mask is named in many files and read in hardly any; its type and values changed."""
    kept = onnx.NodeProto.FromString(node.SerializeToString())
    if not around.read & set(node.output[1:]):
        del kept.output[1:]
    return [kept]


def _asymmetric(node: Node, around: _Around) -> list[Node]:
    """Resize and Upsample knew one way before opset 11, for which the converter says another.

    ONNX Runtime takes the next position up in an axis that shrinks, the next down in one that
    grows. Where there are both, growing comes first: axes are independent of one another.
    """
    said = _attributes(node)
    scales = around.constants.get(node.input[2]) if len(node.input) > 2 else None
    down = scales is not None and bool(np.any(scales < 1))
    if scales is None or not (down and np.any(scales > 1)) or said.get("mode") == b"linear":
        return [_resized(node, "ceil" if down else "floor")]
    between, grow, shrink = (f"{node.output[0]}/{end}" for end in ("grown", "up", "down"))
    first, second = (onnx.NodeProto.FromString(node.SerializeToString()) for _ in range(2))
    first.input[2], first.output[0] = grow, between
    second.input[0], second.input[2] = between, shrink
    return [
        _constant(grow, np.maximum(scales, 1).astype(np.float32)),
        _constant(shrink, np.minimum(scales, 1).astype(np.float32)),
        _resized(first, "floor"),
        _resized(second, "ceil"),
    ]


def _resized(node: Node, nearest: str) -> Node:
    made = {**_attributes(node), "coordinate_transformation_mode": "asymmetric"}
    return helper.make_node(
        "Resize", node.input, node.output, node.name, **{**made, "nearest_mode": nearest}
    )


def _scale_every_channel(node: Node, around: _Around) -> list[Node]:
    """GroupNormalization scaled groups at opset 18, and scales channels since 21."""
    source, *grouped = node.input
    result = node.output[0]
    groups = _attributes(node)["num_groups"]
    channels, each, wide, column = (
        f"{result}/{end}" for end in ("channels", "each", "wide", "column")
    )
    make = helper.make_node
    nodes = [
        make("Shape", [source], [channels], start=1, end=2),
        _constant(f"{result}/groups", np.array([groups], np.int64)),
        _constant(column, np.array([groups, 1], np.int64)),
        make("Div", [channels, f"{result}/groups"], [each]),
        make("Concat", [f"{result}/groups", each], [wide], axis=0),
    ]
    every = []
    for number, name in enumerate(grouped):
        parts = [f"{result}/{number}/{end}" for end in ("column", "wide", "flat")]
        every.append(parts[2])
        nodes += [
            make("Reshape", [name, column], [parts[0]]),
            make("Expand", [parts[0], wide], [parts[1]]),
            make("Reshape", [parts[1], channels], [parts[2]]),
        ]
    kept = onnx.NodeProto.FromString(node.SerializeToString())
    kept.input[:] = [source, *every]
    kept.domain = _HELD
    return [*nodes, kept]


#: (the last opset that has it so, operator, what says the same there).
_BEFORE: tuple[tuple[int, str, Rewrite], ...] = (
    (8, "BatchNormalization", _each_position_norm),
    (8, "Scan", _held),
    (9, "ThresholdedRelu", _threshold),
    (11, "Dropout", _without_mask),
    (12, "Hardmax", _flat_hardmax),
    (20, "GroupNormalization", _scale_every_channel),
)

#: (opset, operator, what all its nodes are to be once the converter has come there), in order.
_AT: tuple[tuple[int, str, Rewrite], ...] = (
    (9, "Scan", _batched_scan),
    (11, "Resize", _asymmetric),
)
