"""Outputs of a graph that are probabilities: between 0 and 1, whatever goes in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx

__all__ = ["probability_outputs"]

#: Operators whose output lies between 0 and 1.
_BOUNDED = frozenset({"Sigmoid", "Softmax", "HardSigmoid"})

#: Operators that give values from 0 to 1 where all that they are given (but constants, which say
#: where from and what shape) is so.
_KEEP = frozenset(
    {
        *("Cast", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Max"),
        *("Min", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
        *("ReduceMean", "ReduceMax", "ReduceMin", "AveragePool", "GlobalAveragePool", "MaxPool"),
        *("GlobalMaxPool", "Upsample"),
    }
)

#: Those of them whose operands all are values; of the others only the first is.
_ALL = frozenset({"Concat", "Max", "Min"})


def probability_outputs(model: Path) -> tuple[str, ...]:
    """Names of the outputs that come from a Sigmoid or Softmax through nothing but operators that
    keep what lies between 0 and 1 there. Weights kept in other files are not read."""
    graph = onnx.load(str(model), load_external_data=False).graph
    bounded = _bounded(graph.node, set())
    return tuple(value.name for value in graph.output if value.name in bounded)


def _bounded(nodes: Iterable[Any], known: set[str]) -> set[str]:
    """``known`` values and those that these nodes bound; of an If, what both branches do."""
    found = set(known)
    for node in nodes:
        if node.op_type in _BOUNDED:
            found.update(node.output)
        elif node.op_type == "If":
            branches = [a.g for a in node.attribute if a.g.node or a.g.output]
            inside = [_bounded(g.node, found) for g in branches]
            for place, output in enumerate(node.output):
                names = [g.output[place].name for g in branches if place < len(g.output)]
                if names and all(n in b for n, b in zip(names, inside, strict=True)):
                    found.add(output)
        elif node.op_type in _KEEP and node.input:
            operands = node.input if node.op_type in _ALL else node.input[:1]
            if all(name in found for name in operands):
                found.update(node.output)
    return found
