"""``.pt2`` programs: inputs, free dimensions and their limits come from the program itself."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeopt.core import InputSpec
from edgeopt.graphs.capture.axes import Axis, Inputs
from edgeopt.graphs.capture.loaded import Loaded
from edgeopt.modules.exported import ProgramModule, exported
from edgeopt.modules.outputs import Flat

__all__ = ["load_program"]


def load_program(path: Path, trust: bool = False) -> Loaded:
    """Load a program that the user trusts, or that can only compute.

    Raises UnsafeError, FormatError or CaptureError as
    :func:`edgeopt.modules.exported.exported`.
    """
    found = exported(path, trust)
    limits = found.program.range_constraints
    axes: dict[str, Axis] = {}
    usual: dict[str, str] = {}
    specs: list[InputSpec] = []
    values = _values(found.program)
    for spec, symbols in zip(found.inputs, found.symbols, strict=True):
        shape: list[int | str] = []
        for position, (size, symbol) in enumerate(zip(spec.shape, symbols, strict=True)):
            if isinstance(symbol, int):
                shape.append(symbol)
                continue
            key = str(symbol)
            if key not in usual:
                told = size if isinstance(size, str) and size != key else ""
                name = told or _axis_name(key, position, axes)
                node = values[spec.name].shape[position].node
                hint = int(node.hint) if node.has_hint() else 2
                usual[key] = name
                # Two symbols of one name, which torch never had to tell apart, move together.
                axes.setdefault(name, _axis(name, hint, limits.get(symbol)))
            shape.append(usual[key])
        specs.append(InputSpec(spec.name, spec.dtype, tuple(shape)))
    module = ProgramModule(found.program)
    flat = Flat(module, found.names, positional=True)
    return Loaded(
        call=flat,
        inputs=Inputs(tuple(specs), axes, _vocabulary(found.program, found.names), {}),
        module=flat,
        program=found.program,
    )


def _values(program: Any) -> dict[str, Any]:
    return {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}


def _axis_name(key: str, position: int, taken: dict[str, Axis]) -> str:
    """torch saves no names of dimensions, only symbols: the first axis is called batch."""
    name = "batch" if position == 0 and "batch" not in taken else f"dim_{position}"
    while name in taken:
        name += "_"
    return name


def _axis(name: str, hint: int, limits: Any) -> Axis:
    low, high = 2, math.inf
    if limits is not None:
        # torch's own infinity is no sympy Integer, and cannot be made an int.
        low = max(2, int(limits.lower)) if limits.lower.is_Integer else 2
        high = int(limits.upper) if limits.upper.is_Integer else math.inf
    first = max(hint, low)
    for second in (first + max(1, first // 4), first + 1, first - max(1, first // 4), first - 1):
        if low <= second <= high and second != first:
            return Axis(name, first, second)
    return Axis(name, first, first)


def _vocabulary(program: Any, names: Sequence[str]) -> dict[str, int]:
    """Rows of the smallest table that each integer input looks up, of any table where it looks up
    none by itself; 2 where there is none."""
    rows: dict[str, int] = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target) == "aten.embedding.default":
            table, index = node.args[0].meta["val"], node.args[1].name
            rows[index] = min(rows.get(index, sys.maxsize), int(table.shape[0]))
    least = min(rows.values(), default=2)
    return {name: rows.get(name, least) for name in names}
