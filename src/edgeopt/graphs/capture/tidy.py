"""What is put right in an exporter's graph before it is written: names, and where bytes lie."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from edgeopt.core import InputSpec

__all__ = ["EXTERNAL_OVER", "load", "save"]

#: Protocol buffers end at 2 GiB: past this many bytes of tensors they go to a file beside it.
EXTERNAL_OVER = 1_900_000_000

_WRAPPER = ("inner.", "module.inner.")


def load(path: Path) -> ir.Model:
    """Read a file, tensors mapped."""
    return ir.load(path)


def save(model: ir.Model, path: Path, specs: Sequence[InputSpec]) -> tuple[str, ...]:
    """Write the graph with torch's parameter names and the specs' names for free dimensions.

    Returns the names of the free dimensions that are free in the graph.
    """
    free = _name_dimensions(model, specs)
    _name_parameters(model)
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
