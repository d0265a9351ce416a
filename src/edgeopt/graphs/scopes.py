"""Graphs inside graphs (branches, loop bodies) brought to a form that values can be moved in.

A branch may use a name that another branch, or the graph around it, uses for something else; it may
return an initializer of its own. onnx-ir's passes that lift values into the main graph look at the
main graph's names alone, and leave a returned initializer where it is.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

__all__ = ["infer_types", "plain_strings", "separate", "strings_inside"]

#: Operators whose results are, or may be, no tensors.
_OTHER = frozenset(
    {
        "Optional",
        "OptionalGetElement",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceMap",
        "SplitToSequence",
    }
)

#: Operators that pass on what they are given, tensors or not.
_PASSING = frozenset({"Identity", "If", "Loop"})


def separate(model: ir.Model) -> None:
    """Every value has a name of its own, and no inner graph returns an initializer, in place."""
    counts = Counter(name for graph in model.graphs() for name in _names(graph))
    for graph in model.graphs():
        if graph is model.graph:
            continue
        for value in _values(graph):
            if value.name and counts[value.name] > 1:
                counts[value.name] -= 1
                value.name = _unique(value.name, counts)
        _return_copies(graph, counts)


def plain_strings(model: ir.Model) -> None:
    """Constants of texts as tensors of UTF-8; onnx-ir's pass that lifts them knows ASCII alone."""
    for node in list(model.graph.all_nodes()):
        for name in ("value_string", "value_strings"):
            said = node.attributes.get(name) if node.op_type == "Constant" else None
            if said is None:
                continue
            one = name == "value_string"
            texts = [said.as_string()] if one else list(said.as_strings())
            shape = ir.Shape([] if one else [len(texts)])
            held = np.empty(shape.numpy(), object)
            held.reshape(-1)[:] = [text.encode() for text in texts]
            tensor = ir.StringTensor(held, shape=shape)
            node.attributes.pop(name)
            node.attributes["value"] = ir.AttrTensor("value", tensor)


def strings_inside(graph: ir.Graph) -> None:
    """Initializers of texts as Constant nodes, in place: no file beside a model can hold them."""
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        outside = value.is_graph_input() or value.is_graph_output()
        if tensor is None or tensor.dtype != ir.DataType.STRING or outside:
            continue
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)])
        value.replace_all_uses_with(node.outputs[0])
        del graph.initializers[name]
        node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(ir.DataType.STRING)
        node.outputs[0].shape = value.shape
        if len(graph):
            graph.insert_before(graph[0], node)
        else:
            graph.append(node)


def infer_types(model: ir.Model) -> None:
    """Types and shapes by onnx's inference, in place; what is no tensor is said to be none.

    onnx-ir's pass writes the element type of a sequence down as if it were a tensor's.
    """
    untyped = {v for graph in model.graphs() for v in _values(graph) if v.type is None}
    with _quiet():
        if not common.ShapeInferencePass()(model).modified:
            # One type missing in the file, and the strict way says nothing of all others.
            common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    others: set[ir.Value] = set()
    grown = True
    while grown:
        found = {v for graph in model.graphs() for node in graph for v in _others(node, others)}
        grown = not found <= others
        others |= found
    for value in others & untyped:
        value.type, value.shape = None, None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnx-ir logs a traceback where inference fails, which is no news to a user."""
    log = logging.getLogger("onnx_ir")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _others(node: ir.Node, known: set[ir.Value]) -> tuple[ir.Value, ...]:
    """The outputs of a node, where they may be no tensors."""
    if node.op_type in _OTHER or node.domain == "ai.onnx.ml":
        return tuple(node.outputs)
    if node.op_type not in _PASSING:
        return ()
    returned = {v for graph in _inner(node) for v in graph.outputs}
    return tuple(node.outputs) if known & (returned | set(node.inputs)) else ()


def _inner(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Everything that a graph itself declares, once each."""
    seen: set[ir.Value] = set()
    outputs = (value for node in graph for value in node.outputs)
    for value in (*graph.inputs, *graph.initializers.values(), *outputs):
        if value not in seen:
            seen.add(value)
            yield value


def _names(graph: ir.Graph) -> Iterator[str]:
    return (value.name for value in _values(graph) if value.name)


def _unique(name: str, counts: Counter[str]) -> str:
    number = 1
    while f"{name}.{number}" in counts:
        number += 1
    counts[f"{name}.{number}"] = 1
    return f"{name}.{number}"


def _return_copies(graph: ir.Graph, counts: Counter[str]) -> None:
    for place, value in enumerate(graph.outputs):
        if not value.is_initializer() or value.is_graph_input():
            continue
        node = ir.node("Identity", [value])
        copy = node.outputs[0]
        copy.name = _unique(f"{value.name}.returned", counts)
        copy.type, copy.shape = value.type, value.shape
        graph.append(node)
        graph.outputs[place] = copy
