"""What is put right in an exporter's graph before it is written: names, ties, where bytes lie.

Exporters fold the transpose of a linear layer's weight into a new initializer with a name of their
own. Such an initializer gets its parameter's name back; and where the parameter itself is in the
graph too (an embedding table tied to the output), it becomes a ``Transpose`` of the parameter, so
that the table is stored once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeopt.core import Array, InputSpec
from edgeopt.graphs.capture.limits import EXTERNAL_OVER

__all__ = ["load", "save"]

_WRAPPER = ("inner.", "module.inner.")


def load(path: Path) -> ir.Model:
    """Read a file, tensors mapped."""
    return ir.load(path)


def save(
    model: ir.Model,
    path: Path,
    specs: Sequence[InputSpec],
    parameters: Mapping[str, Array],
    output_axes: Sequence[Sequence[str | None]] = (),
) -> tuple[str, ...]:
    """Write the graph with torch's parameter names and the specs' names for free dimensions.

    ``parameters`` are torch's two-dimensional ones, that exporters store transposed;
    ``output_axes`` the free dimension that each dimension of an output equals, if any.

    Returns the names of the free dimensions that are free in the graph.
    """
    free = _name_dimensions(model, specs)
    _name_outputs(model, frozenset(free), output_axes)
    _name_parameters(model)
    _undo_transposes(model, parameters)
    _name_recurrent(model)
    nbytes = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    external = f"{path.name}.data" if nbytes > EXTERNAL_OVER else None
    ir.save(model, path, external_data=external)
    return free


def _name_dimensions(model: ir.Model, specs: Sequence[InputSpec]) -> tuple[str, ...]:
    by_name = {spec.name: spec for spec in specs}
    renamed: dict[str, str] = {}
    fixed: set[str] = set()
    for value in model.graph.inputs:
        spec = by_name.get(value.name or "")
        if spec is None or value.shape is None:
            continue
        for given, dim in zip(spec.shape, value.shape, strict=True):
            if not isinstance(given, str):
                continue
            symbol = dim.value if isinstance(dim, ir.SymbolicDim) else None
            # A dimension that torch pinned while tracing is sometimes named by its number.
            if symbol is not None and not symbol.isdigit():
                renamed.setdefault(symbol, given)
            else:
                fixed.add(given)
    for value in _values(model.graph):
        if value.shape is not None:
            value.shape = ir.Shape([_rename(dim, renamed) for dim in value.shape])
    return tuple(n for n in dict.fromkeys(renamed.values()) if n not in fixed)


def _name_outputs(
    model: ir.Model, free: frozenset[str], output_axes: Sequence[Sequence[str | None]]
) -> None:
    """Names for free dimensions of outputs, in place of those that an exporter made up."""
    for value, names in zip(model.graph.outputs, output_axes, strict=False):
        if value.shape is None or len(value.shape) != len(names):
            continue
        value.shape = ir.Shape(
            [
                name if name in free and isinstance(dim, ir.SymbolicDim) else dim
                for dim, name in zip(value.shape, names, strict=True)
            ]
        )


def _rename(dim: int | ir.SymbolicDim, renamed: dict[str, str]) -> int | str | None:
    if not isinstance(dim, ir.SymbolicDim):
        return dim
    if dim.value is None:
        return None
    if dim.value.isdigit():
        return int(dim.value)
    return re.sub(r"[A-Za-z_]\w*", lambda m: renamed.get(m.group(), m.group()), dim.value)


def _values(graph: ir.Graph) -> list[ir.Value]:
    nodes = [output for node in graph.all_nodes() for output in node.outputs]
    return [*graph.inputs, *nodes]


def _name_parameters(model: ir.Model) -> None:
    """Take off the prefix that the wrapper put before the module's own names."""
    taken = set(model.graph.initializers)
    for name, value in list(model.graph.initializers.items()):
        for prefix in _WRAPPER:
            short = name.removeprefix(prefix)
            if short != name and short not in taken:
                taken.add(short)
                value.name = short
                break


#: Copies below this many bytes are not worth a node.
_TIE_OVER = 4096


def _undo_transposes(model: ir.Model, parameters: Mapping[str, Array]) -> None:
    by_shape: dict[tuple[int, ...], list[tuple[str, Array]]] = {}
    for name, array in parameters.items():
        by_shape.setdefault(array.shape[::-1], []).append((name, array))
    initializers = model.graph.initializers
    renamed: dict[str, ir.Value] = {}
    for name, value in list(initializers.items()):
        tensor = value.const_value
        if name in parameters or tensor is None or len(tensor.shape) != 2:
            continue
        candidates = by_shape.get(tuple(tensor.shape.numpy()), [])
        if not candidates or tensor.dtype != ir.DataType.FLOAT:
            continue
        stored = tensor.numpy()
        # A tied parameter has several names, of which exporters keep one.
        names = [n for n, array in candidates if _is_transpose(stored, array)]
        original = next((n for n in names if n in initializers and n not in renamed), None)
        unused = next((n for n in names if n not in renamed), None)
        if original is not None:
            if tensor.nbytes > _TIE_OVER:
                _tie(model.graph, value, initializers[original])
        elif unused is not None:
            value.name = unused
            renamed[unused] = value
        elif names:  # a layer used twice has its transpose stored twice
            ir.convenience.replace_all_uses_with(value, renamed[names[0]])
            del initializers[name]


def _is_transpose(stored: Array, array: Array) -> bool:
    # The first row tells nearly all of them apart without reading the rest.
    return bool(np.array_equal(stored[0], array[:, 0]) and np.array_equal(stored, array.T))


def _tie(graph: ir.Graph, copy: ir.Value, original: ir.Value) -> None:
    node = ir.node("Transpose", [original], attributes={"perm": [1, 0]}, name=f"{original.name}.T")
    output = node.outputs[0]
    output.name, output.shape, output.dtype = f"{original.name}.T", copy.shape, copy.dtype
    users = [use.node for use in copy.uses()]
    graph.insert_before(_first_of(graph, users), node)
    ir.convenience.replace_all_uses_with(copy, output)
    del graph.initializers[copy.name or ""]


def _first_of(graph: ir.Graph, users: Sequence[ir.Node]) -> ir.Node:
    """The node of the main graph before which a value must stand for all of its users."""
    wanted = set(users)
    for node in graph:
        inside = any(n in wanted for n in _within(node))
        if node in wanted or inside:
            return node
    return next(iter(graph))


def _within(node: ir.Node) -> list[ir.Node]:
    found: list[ir.Node] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found += list(attribute.as_graph().all_nodes())
    return found


#: The weight inputs of recurrent operators by position, named as in ONNX's specification.
_RECURRENT_INPUTS = {1: "W", 2: "R", 3: "B"}


def _name_recurrent(model: ir.Model) -> None:
    """Weights of a recurrent operator, which exporters rearrange, get the name of their layer."""
    initializers = model.graph.initializers
    for node in model.graph.all_nodes():
        if node.op_type not in ("LSTM", "GRU", "RNN"):
            continue
        layer = (node.name or "").strip("/").removeprefix("inner/").replace("/", ".")
        for position, letter in _RECURRENT_INPUTS.items():
            value = node.inputs[position] if position < len(node.inputs) else None
            name = f"{layer or node.op_type}.{letter}"
            if value is not None and value.is_initializer() and name not in initializers:
                value.name = name
