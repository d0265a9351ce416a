"""Small helpers to add nodes and initializers to a graph without losing track of names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graphs.fold import set_constant

__all__ = ["Builder"]


@dataclass
class Builder:
    """Adds nodes to one model; remembers what several sites can share.

    ``prefix`` chains (from stored codes to a usable weight) stand at the graph's beginning and
    depend on initializers alone, so the runtime computes them once, at load.
    """

    model: ir.Model
    _scalars: dict[str, ir.Value] = field(default_factory=dict)
    _first: ir.Node | None = None
    _names: set[str] = field(default_factory=set)

    @property
    def graph(self) -> ir.Graph:
        return self.model.graph

    def __post_init__(self) -> None:
        self._first = next(iter(self.graph), None)
        for node in self.graph.all_nodes():
            self._names.update(v.name for v in node.outputs if v.name)
        self._names.update(v.name for v in self.graph.inputs if v.name)

    def name(self, wanted: str) -> str:
        unique, n = wanted, 1
        while unique in self._names or unique in self.graph.initializers:
            unique, n = f"{wanted}.{n}", n + 1
        self._names.add(unique)
        return unique

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        return set_constant(self.graph, self.name(name), np.ascontiguousarray(array))

    def packed(
        self, name: str, packed: NDArray[np.uint8], dtype: ir.DataType, shape: Sequence[int]
    ) -> ir.Value:
        """A 4-bit initializer from its packed bytes (two a byte, low nibble first)."""
        unique = self.name(name)
        tensor = ir.PackedTensor(packed, dtype, shape=ir.Shape(shape), name=unique)
        value = ir.Value(
            name=unique, shape=tensor.shape, type=ir.TensorType(dtype), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def shared(self, name: str, array: NDArray[Any]) -> ir.Value:
        """A small constant that many sites use; one initializer for all of them."""
        if name not in self._scalars:
            self._scalars[name] = self.constant(name, array)
        return self._scalars[name]

    def _node(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None,
        names: Sequence[str],
        domain: str,
    ) -> ir.Node:
        node = ir.node(op, list(inputs), attributes or {}, domain=domain, num_outputs=len(names))
        for out, name in zip(node.outputs, names, strict=True):
            out.name = self.name(name)
        node.name = f"{node.outputs[0].name}/{op}"
        if domain and domain not in self.model.opset_imports:
            self.model.opset_imports[domain] = 1
        return node

    def at_load(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        name: str,
    ) -> ir.Value:
        """A node of initializers alone, at the beginning of the graph."""
        node = self._node(op, inputs, attributes, [name], "")
        assert self._first is not None
        self.graph.insert_before(self._first, node)
        return node.outputs[0]

    def before(
        self,
        anchor: ir.Node,
        op: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        name: str,
        domain: str = "",
        outputs: int = 1,
    ) -> tuple[ir.Value, ...]:
        """A node just before ``anchor``, in the graph (or subgraph) that anchor stands in."""
        names = [name] if outputs == 1 else [f"{name}.{i}" for i in range(outputs)]
        node = self._node(op, inputs, attributes, names, domain)
        owner = anchor.graph
        assert isinstance(owner, ir.Graph)
        if anchor is self._first:
            # What computes at load must stay in front of everything that may use it.
            owner.insert_before(anchor, node)
            self._first = node if owner is self.graph else self._first
        else:
            owner.insert_before(anchor, node)
        return tuple(node.outputs)

    def quantized(self, anchor: ir.Node, x: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """(codes uint8, scale, zero point) of an activation, computed once for all who need it.

        Once for each graph: what a branch of an If computes is not seen outside of it.
        """
        for user, _ in x.uses():
            if user.op_type == "DynamicQuantizeLinear" and user.graph is anchor.graph:
                xq, scale, zero = user.outputs
                return xq, scale, zero
        first = _first_user(x, anchor)
        xq, scale, zero = self.before(
            first, "DynamicQuantizeLinear", [x], name=f"{x.name}.q", outputs=3
        )
        return xq, scale, zero

    def replace(self, node: ir.Node, new: ir.Value) -> None:
        """Let ``new`` stand for the node's only output, keep its name, and remove the node."""
        old = node.outputs[0]
        new.shape, new.type = old.shape, old.type
        name, old.name = old.name, f"{old.name}.replaced"
        owner = node.graph
        assert isinstance(owner, ir.Graph)
        if old.is_graph_output():
            for i, value in enumerate(owner.outputs):
                if value is old:
                    owner.outputs[i] = new
        old.replace_all_uses_with(new)
        new.name = name
        if node is self._first:
            following = list(owner)
            self._first = following[following.index(node) + 1]
        owner.remove(node, safe=True)

    def drop(self, value: ir.Value, vias: Sequence[ir.Node | None] = ()) -> None:
        """Remove an initializer nobody uses any more, and the transposes it was seen through."""
        for via in {id(v): v for v in vias if v is not None}.values():
            if via.graph is not None and not via.outputs[0].uses():
                if via is self._first:
                    following = list(self.graph)
                    self._first = following[following.index(via) + 1]
                via.graph.remove(via, safe=True)
        if not value.uses() and value.name in self.graph.initializers:
            del self.graph.initializers[value.name]


def _first_user(x: ir.Value, anchor: ir.Node) -> ir.Node:
    """The first node of the anchor's graph that uses ``x``.

    A value quantized once for three products must be quantized before the first of them.
    """
    users = {id(node) for node, _ in x.uses()}
    assert anchor.graph is not None
    return next((node for node in anchor.graph if id(node) in users), anchor)
