"""Operators of a graph that draw at random, and what turns them off."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from edgeopt.graphs.ranges import all_nodes

__all__ = ["Draws", "draws"]

_RANDOM = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)

#: Inputs that scale what is drawn, by the names that models give them.
_SCALE = re.compile(r"noise|temperature|sigma|random|dropout|scales?$", re.IGNORECASE)


@dataclass(frozen=True)
class Draws:
    """``nodes``: operators that draw at random, each kind once, with a name. ``seeded``: all have
    a seed, so that every fresh session draws the same. ``inputs`` are named for how much is drawn.
    """

    nodes: tuple[str, ...]
    seeded: bool
    inputs: tuple[str, ...]

    @property
    def remedy(self) -> str:
        """What to do about it."""
        setting = ""
        if self.inputs:
            named = ", ".join(self.inputs)
            setting = f"set {named} in --data so that nothing is drawn (0 for noise), or "
        return (
            f"{setting}export the model without its random draws (evaluation mode, noise as an"
            " input, or a seed in the file)"
        )


def draws(model: Path) -> Draws:
    """What draws at random in a file, its branches and functions; a Dropout does where it trains.

    Weights kept in other files are not read.
    """
    proto = onnx.load(str(model), load_external_data=False)
    constants = {t.name: t for t in proto.graph.initializer}
    found: dict[str, str] = {}
    seeds: list[bool] = []
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for node in all_nodes(nodes):
            if node.op_type == "Constant":
                constants.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
            if node.op_type in _RANDOM or _trains(node, constants):
                found.setdefault(node.op_type, node.name)
                seeds.append(any(a.name == "seed" for a in node.attribute))
    named = tuple(op + (f" ({name})" if name else "") for op, name in found.items())
    inputs = tuple(v.name for v in proto.graph.input if v.name not in constants)
    scales = tuple(name for name in inputs if _SCALE.search(name))
    return Draws(named, bool(seeds) and all(seeds), scales if named else ())


def _trains(node: Any, constants: Mapping[str, Any]) -> bool:
    """A Dropout that drops: its third input is true."""
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return False
    held = constants.get(node.input[2])
    return held is None or bool(numpy_helper.to_array(held).any())
