"""What a graph says about what it takes: ids stay below the rows of their table, and the like."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgeopt.data.hint import Hint
from edgeopt.graphs.ranges import (
    all_nodes,
    asked_sizes,
    coarsest,
    compared_with,
    is_wave,
    statistics,
)

__all__ = ["input_hints"]

_INTEGERS = frozenset(
    {
        TensorProto.INT64,
        TensorProto.INT32,
        TensorProto.INT16,
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.BOOL,
    }
)

#: Operators through which an index passes with its value unchanged.
_TRANSPARENT = frozenset(
    {
        "Cast",
        "Clip",
        "Concat",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
_MASK = re.compile(r"mask", re.IGNORECASE)


def input_hints(model: Path | Any) -> dict[str, Hint]:
    """What a graph tells of its inputs' values, by input name.

    ``model``: a path (weights kept in other files are not read) or a ModelProto. An input that
    reaches the indices of a Gather or GatherElements, through casts, reshapes and additions of
    constants, gets ``0 <= value < rows`` of the smallest table (less what is added on the way);
    a OneHot counts by its depth. Inputs with a mask's name, that index nothing, get kind
    ``mask``; integers of one element what they are compared with. Of floats, what a normalisation
    in front tells (:func:`~edgeopt.graphs.ranges.statistics`), kind ``sound`` where a spectrum is
    taken of them, and of all, how coarse the
    coarsest map made of them is. Inputs that tell nothing are left out.
    """
    proto = onnx.load(str(model), load_external_data=False) if isinstance(model, Path) else model
    graph = proto.graph
    constants = {t.name: t for t in graph.initializer}
    nodes = list(all_nodes(graph.node))
    for node in nodes:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in set(node.input):
            readers.setdefault(name, []).append(node)
    hints: dict[str, Hint] = {}
    for value in graph.input:
        if value.name in constants:
            continue
        hint = Hint(
            stride=coarsest(value.name, graph.node),
            known=tuple(
                (axis, size)
                for axis, size in asked_sizes(value.name, readers, constants)
                if _is_free(value, axis)
            ),
        )
        if value.type.tensor_type.elem_type not in _INTEGERS:
            told = statistics(value.name, readers, constants)
            hint = hint if told is None else replace(hint, mean=told[0], std=told[1])
            if is_wave(value.name, readers, constants):
                hint = replace(hint, kind="sound")
            if hint != Hint():
                hints[value.name] = hint
            continue
        bounds = list(_bounds(value.name, 0, readers, constants, set()))
        if bounds:
            low = max(low for low, _ in bounds)
            high = max(low + 1, min(high for _, high in bounds))
            hints[value.name] = replace(hint, low=low, high=high)
        elif _MASK.search(value.name):
            hints[value.name] = replace(hint, low=0, high=2, kind="mask")
        elif _is_lone(value):
            hint = replace(hint, values=compared_with(value.name, readers, constants))
        if hint != Hint():
            hints.setdefault(value.name, hint)
    return hints


def _bounds(
    name: str,
    added: int,
    readers: Mapping[str, list[Any]],
    constants: Mapping[str, Any],
    seen: set[str],
) -> Iterator[tuple[int, int]]:
    """(low, high) from every table that ``name + added`` indexes."""
    if name in seen:
        return
    seen.add(name)
    for node in readers.get(name, []):
        if node.op_type in ("Gather", "GatherElements") and name == node.input[1]:
            table = constants.get(node.input[0])
            if table is not None and table.dims:
                rows = table.dims[_axis(node)]
                yield max(0, -added), rows - added
        elif node.op_type == "OneHot" and name == node.input[0]:
            depth = _scalar(constants.get(node.input[1]))
            if depth is not None:
                yield max(0, -added), depth - added
        elif (node.op_type in _TRANSPARENT and name == node.input[0]) or node.op_type == "Concat":
            for output in node.output:
                yield from _bounds(output, added, readers, constants, seen)
        elif node.op_type in ("Add", "Sub"):
            other = _scalar(constants.get(next((n for n in node.input if n != name), "")))
            if other is not None and (node.op_type == "Add" or node.input[0] == name):
                step = other if node.op_type == "Add" else -other
                yield from _bounds(node.output[0], added + step, readers, constants, seen)


def _is_free(value: Any, axis: int) -> bool:
    """Whether that axis is there, and has no size."""
    dims = value.type.tensor_type.shape.dim
    return -len(dims) <= axis < len(dims) and dims[axis].dim_value <= 0


def _is_lone(value: Any) -> bool:
    """One element: every dimension is one."""
    return all(dim.dim_value == 1 for dim in value.type.tensor_type.shape.dim)


def _axis(node: Any) -> int:
    return next((a.i for a in node.attribute if a.name == "axis"), 0)


def _scalar(tensor: Any) -> int | None:
    """The one integer that a constant holds (or the largest of a few)."""
    if tensor is None or tensor.data_type not in _INTEGERS or int(np.prod(tensor.dims)) > 4096:
        return None
    if tensor.data_location == TensorProto.EXTERNAL:
        return None
    values = numpy_helper.to_array(tensor)
    return int(values.max()) if values.size else None
