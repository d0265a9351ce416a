"""``.pt2`` programs: inputs, free dimensions and their limits come from the program itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeopt.core import InputSpec
from edgeopt.graphs.capture.axes import Axis, Inputs
from edgeopt.graphs.capture.loaded import Loaded
from edgeopt.runtimes.torch_modules import ProgramModule, exported
from edgeopt.runtimes.torch_outputs import Flat

__all__ = ["load_program"]


def load_program(path: Path) -> Loaded:
    """Load a program that the user trusts. Raises CaptureError."""
    program, names = exported(path)
    nodes = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    specs: list[InputSpec] = []
    values = [nodes[name].meta["val"] for name in names]
    limits = program.range_constraints
    axes: dict[str, Axis] = {}
    usual: dict[str, str] = {}
    for name, value in zip(names, values, strict=True):
        shape: list[int | str] = []
        for position, size in enumerate(value.shape):
            if isinstance(size, int):
                shape.append(size)
                continue
            expression = size.node.expr
            hint = int(size.node.hint) if size.node.has_hint() else 2
            key = str(expression)
            if key not in usual:
                axis = _axis(_axis_name(key, position, axes), hint, limits.get(expression))
                usual[key] = axis.name
                axes[axis.name] = axis
            shape.append(usual[key])
        dtype = str(value.dtype).removeprefix("torch.")
        specs.append(InputSpec(name, dtype, tuple(shape)))
    module = ProgramModule(program)
    flat = Flat(module, names, positional=True)
    return Loaded(
        call=flat,
        inputs=Inputs(tuple(specs), axes, _vocabulary(program, names), {}),
        module=flat,
        program=program,
    )


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
    """Rows of the smallest table that each integer input looks up; 2 where it looks up none."""
    rows = [
        int(node.args[0].meta["val"].shape[0])
        for node in program.graph.nodes
        if node.op == "call_function" and str(node.target) == "aten.embedding.default"
    ]
    return dict.fromkeys(names, min(rows, default=2))
