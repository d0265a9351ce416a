"""Outputs of a graph that are sets: their rows may come in another order, or in another number."""

from __future__ import annotations

from pathlib import Path

import onnx

__all__ = ["loose_outputs"]

#: Operators that give a set, and which of their outputs are one.
_SETS = {"NonMaxSuppression": (0,), "TopK": (0, 1), "Unique": (0, 1), "NonZero": (0,)}

#: Operators that keep rows apart: what they make of a set is one. Behind products, sums over rows
#: and the like, an output is an answer of its own again, whatever chose its operands.
_KEEP = frozenset(
    {
        *(
            "Abs",
            "Add",
            "Cast",
            "Ceil",
            "Clip",
            "Concat",
            "Div",
            "Equal",
            "Exp",
            "Flatten",
            "Floor",
        ),
        *("Gather", "GatherElements", "GatherND", "Greater", "Identity", "Less", "Max", "Min"),
        *("Mod", "Mul", "Neg", "Reshape", "Round", "Sigmoid", "Slice", "Split", "Squeeze", "Sub"),
        *("Transpose", "Unsqueeze", "Where"),
    }
)


def loose_outputs(model: Path) -> tuple[str, ...]:
    """Names of the outputs that come from NonMaxSuppression, TopK, Unique or NonZero through
    nothing but operators that keep rows apart. Weights kept in other files are not read."""
    graph = onnx.load(str(model), load_external_data=False).graph
    sets: set[str] = set()
    for node in graph.node:
        if node.op_type in _SETS:
            sets.update(node.output[i] for i in _SETS[node.op_type] if i < len(node.output))
        elif node.op_type in _KEEP and sets.intersection(node.input):
            sets.update(node.output)
    return tuple(value.name for value in graph.output if value.name in sets)
