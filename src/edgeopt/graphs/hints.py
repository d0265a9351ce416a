"""What a graph says about the integers it takes: ids stay below the rows of their table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgeopt.data.hint import Hint

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
    """Bounds for integer inputs that end up as indices, by input name.

    ``model``: a path (weights kept in other files are not read) or a ModelProto. An input that
    reaches the indices of a Gather or GatherElements, through casts, reshapes and additions of
    constants, gets ``0 <= value < rows`` of the smallest table (less what is added on the way);
    a OneHot counts by its depth. Inputs with a mask's name, that index nothing, get kind
    ``mask``. Inputs that tell nothing are left out.
    """
    proto = onnx.load(str(model), load_external_data=False) if isinstance(model, Path) else model
    graph = proto.graph
    constants = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in set(node.input):
            readers.setdefault(name, []).append(node)
    hints: dict[str, Hint] = {}
    for value in graph.input:
        if value.name in constants or value.type.tensor_type.elem_type not in _INTEGERS:
            continue
        bounds = list(_bounds(value.name, 0, readers, constants, set()))
        if bounds:
            low = max(low for low, _ in bounds)
            hints[value.name] = Hint(low, max(low + 1, min(high for _, high in bounds)))
        elif _MASK.search(value.name):
            hints[value.name] = Hint(0, 2, "mask")
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
