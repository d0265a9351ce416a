"""An ONNX graph as lists and look-ups: who makes a tensor, who reads it, what is constant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeAlias

import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeopt.core import Array

__all__ = ["Graph", "Node", "attribute", "op_counts", "rename_reads"]

Node: TypeAlias = Any  # onnx.NodeProto; protobuf's generated classes carry no types


def attribute(node: Node, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, or ``default``."""
    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return default


class Graph:
    """The main graph of a model, indexed. ``nodes`` may be edited; then :meth:`commit`.

    ``inner`` holds the names that subgraphs (If, Loop) read from outside: whoever renames a
    tensor must leave those be.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.nodes: list[Node] = list(model.graph.node)
        self.constants: dict[str, Any] = {t.name: t for t in model.graph.initializer}
        self.outputs = {o.name for o in model.graph.output}
        self.inputs = [i.name for i in model.graph.input if i.name not in self.constants]
        self.inner = {name for node in self.nodes for name in _read_inside(node)}
        self.index()

    def index(self) -> None:
        """Bring ``producer`` and ``consumers`` (tensor -> node, nodes) up to date with nodes."""
        self.producer: dict[str, Node] = {}
        self.consumers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.output:
                if name:
                    self.producer[name] = node
            for name in dict.fromkeys(node.input):
                if name:
                    self.consumers.setdefault(name, []).append(node)
        self._taken = {*self.producer, *self.consumers, *self.constants, *self.inputs}
        self._taken |= self.inner | self.outputs

    def fresh(self, name: str) -> str:
        """A tensor name that nobody has, from this one; taken from now on."""
        candidate, n = name, 1
        while candidate in self._taken:
            candidate, n = f"{name}.{n}", n + 1
        self._taken.add(candidate)
        return candidate

    def array(self, name: str) -> Array:
        """A constant's value (read anew each time: nothing is kept)."""
        value: Array = numpy_helper.to_array(self.constants[name])
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        """A constant's shape."""
        return tuple(self.constants[name].dims)

    def is_float(self, name: str) -> bool:
        """Whether the name is a float32 constant."""
        found = self.constants.get(name)
        return found is not None and found.data_type == TensorProto.FLOAT

    def set_array(self, name: str, value: Array) -> None:
        """Add a constant, or give one another value."""
        tensor = numpy_helper.from_array(value, name)
        if name in self.constants:
            self.constants[name].CopyFrom(tensor)
        else:
            self.constants[name] = tensor
            self._taken.add(name)

    def only_reader(self, name: str) -> Node | None:
        """The one node that reads this tensor, None where others do or it leaves the graph."""
        readers = self.consumers.get(name, [])
        private = name not in self.outputs and name not in self.inner
        return readers[0] if private and len(readers) == 1 else None

    def commit(self) -> None:
        """Write nodes and constants back to the model; unread constants go."""
        graph = self.model.graph
        kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in self.nodes]
        del graph.node[:]
        graph.node.extend(kept)
        self.nodes = list(graph.node)
        used = {n for node in self.nodes for n in node.input} | self.outputs | self.inner
        stored = {t.name for t in graph.initializer}
        for position in range(len(graph.initializer) - 1, -1, -1):
            if graph.initializer[position].name not in used:
                del graph.initializer[position]
        for name, tensor in self.constants.items():
            if name not in stored and name in used:
                graph.initializer.append(tensor)
        for position in range(len(graph.input) - 1, -1, -1):  # IR 3 lists constants there too
            if graph.input[position].name in self.constants:
                del graph.input[position]
        self.constants = {t.name: t for t in graph.initializer}
        self.index()

    def ranks(self) -> dict[str, int]:
        """Tensor -> number of axes, as far as shape inference knows."""
        return {name: len(shape) for name, shape in self.shapes().items()}

    def shapes(self) -> dict[str, tuple[int | str | None, ...]]:
        """Tensor -> sizes (a number, a symbol, or None), as far as shape inference knows."""
        # without the weights' data: inference needs their shapes only
        light = onnx.ModelProto()
        light.ir_version = self.model.ir_version
        light.opset_import.extend(self.model.opset_import)
        light.functions.extend(self.model.functions)
        light.graph.name = "shapes"
        light.graph.input.extend(self.model.graph.input)
        light.graph.output.extend(self.model.graph.output)
        light.graph.value_info.extend(self.model.graph.value_info)
        light.graph.node.extend(self.nodes)
        for name, tensor in self.constants.items():
            small = tensor.data_type in (TensorProto.INT64, TensorProto.INT32)
            if small and sum(tensor.dims) <= 64:
                light.graph.initializer.append(tensor)
            else:
                info = helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims))
                light.graph.input.append(info)
        try:
            inferred = onnx.shape_inference.infer_shapes(light)
        except onnx.shape_inference.InferenceError:
            inferred = light
        found = inferred.graph
        return {
            v.name: tuple(
                d.dim_value if d.HasField("dim_value") else d.dim_param or None
                for d in v.type.tensor_type.shape.dim
            )
            for v in (*found.input, *found.value_info, *found.output)
            if v.type.tensor_type.HasField("shape")
        }


def rename_reads(graph: Graph, old: str, new: str) -> None:
    """Whoever of the main graph's nodes reads ``old`` reads ``new``."""
    for node in graph.consumers.get(old, []):
        for position, name in enumerate(node.input):
            if name == old:
                node.input[position] = new
    graph.consumers.setdefault(new, []).extend(graph.consumers.pop(old, []))


def _read_inside(node: Node) -> Iterator[str]:
    for item in node.attribute:
        for graph in [item.g] if item.type == onnx.AttributeProto.GRAPH else item.graphs:
            for inside in graph.node:
                yield from (name for name in inside.input if name)
                yield from _read_inside(inside)
            yield from (o.name for o in graph.output)


def op_counts(graph: Any) -> Counter[str]:
    """Operators by type."""
    return Counter(node.op_type for node in graph.node)
