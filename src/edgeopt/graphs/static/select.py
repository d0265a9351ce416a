"""Which nodes compute in integers, which tensors get Q/DQ pairs, and why the rest does not."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeopt.graphs.static.graph import Graph, Node, attribute
from edgeopt.graphs.static.rules import DEFAULT_REASON, REASONS, RULES, SEEDS, IntegerRule

__all__ = ["Selection", "data_inputs", "select"]


#: Operators whose third input is added to the result.
_BIASED = frozenset({"Conv", "ConvTranspose", "Gemm"})


@dataclass(frozen=True)
class Selection:
    """What :func:`select` found in one graph.

    ``nodes``: positions of the nodes done in integers. ``ranges``: activations whose range has to
    be observed. ``tied``: tensor -> the one whose scale it shares. ``unit``: tensors known to lie
    in 0 to 1. ``kept``: float constant -> why it stays.
    """

    nodes: frozenset[int]
    ranges: tuple[str, ...]
    tied: Mapping[str, str]
    unit: frozenset[str]
    kept: Mapping[str, str]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Every activation that gets a Q/DQ pair."""
        return (*self.ranges, *sorted(self.unit), *self.tied)


def select(model: Any, ops: Collection[str] = SEEDS, exclude: Collection[str] = ()) -> Selection:
    """Apply :data:`~edgeopt.graphs.static.rules.RULES` to a prepared model.

    Nodes with weights (those of ``ops``) are done in integers where their rule allows; nodes
    without where they stand between integer nodes. ``exclude`` names nodes, or constants, that
    are left in float.
    """
    return _Selector(Graph(model), ops, exclude).run()


def data_inputs(rule: IntegerRule, node: Node) -> list[str]:
    """The activations (and constant operands) that a node takes."""
    names = list(node.input)
    picked = names if rule.data is None else [names[i] for i in rule.data if i < len(names)]
    return [name for name in picked if name]


class _Selector:
    def __init__(self, graph: Graph, ops: Collection[str], exclude: Collection[str]) -> None:
        self.graph = graph
        self.ops = ops
        self.exclude = frozenset(exclude)
        # an output may be left out: LSTM names its first "" where only the last state is read
        self.position = {o: i for i, n in enumerate(graph.nodes) for o in n.output if o}
        self.refused: dict[int, str] = {}

    def run(self) -> Selection:
        hot = self._forward()
        chosen = self._backward(hot)
        merged = {i: t for i in chosen if (t := self._merged(i)) is not None}
        tied: dict[str, str] = {}
        unit: set[str] = set()
        ranges: dict[str, None] = {}

        def root(name: str) -> str:
            while name in tied:
                name = tied[name]
            return name

        for i in sorted(chosen):
            node, rule = self.graph.nodes[i], RULES[self.graph.nodes[i].op_type]
            inputs = [n for n in data_inputs(rule, node) if n not in self.graph.constants]
            for name in inputs:
                if name not in tied and name not in unit:
                    ranges[name] = None
            for out in (o for o in node.output if o):
                if rule.output == "same":
                    ranges.pop(out, None)
                    tied[out] = root(inputs[0])
                elif rule.output == "unit":
                    unit.add(out)
                elif rule.output == "own":
                    ranges[merged.get(i, out)] = None
        return Selection(
            frozenset(chosen), tuple(ranges), tied, frozenset(unit), self._kept(chosen)
        )

    def _rule(self, i: int) -> IntegerRule | None:
        """The node's rule, when it can be done in integers; else the reason is noted."""
        node = self.graph.nodes[i]
        rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is None:
            return None
        if rule.weight is not None:
            why = self._weight_problem(node, rule)
        else:
            why = rule.refuse(self.graph, node) if rule.refuse else None
            if why is None and all(n in self.graph.constants for n in data_inputs(rule, node)):
                why = "it is constant"
            if why is None and not self._finite_constants(node, rule):
                why = "its constant holds infinities"
        if {node.name, *node.input} & self.exclude - {""}:
            why = "left in float as asked"
        if why is not None:
            self.refused[i] = why
            return None
        return rule

    def _finite_constants(self, node: Node, rule: IntegerRule) -> bool:
        """A mask's infinities have no code."""
        return all(
            bool(np.isfinite(self.graph.array(name)).all())
            for name in data_inputs(rule, node)
            if name in self.graph.constants and self.graph.is_float(name)
        )

    def _weight_problem(self, node: Node, rule: IntegerRule) -> str | None:
        assert rule.weight is not None
        if node.op_type not in self.ops:
            return f"{node.op_type} stays in float here"
        if node.input[rule.data[0] if rule.data else 0] in self.graph.constants:
            return "its first input is constant"
        why = rule.refuse(self.graph, node) if rule.refuse else None
        if why is not None:
            return why
        name = node.input[rule.weight]
        if name in self.graph.outputs or name in self.graph.inner:
            return "its weight is read elsewhere too"
        for other in self.graph.consumers[name]:
            rival = RULES.get(other.op_type)
            places = [p for p, n in enumerate(other.input) if n == name]
            if rival is None or places != [rival.weight]:
                return f"its weight is shared with {other.op_type}, which reads floats"
        if not np.prod(self.graph.shape(name)):
            return "its weight is empty"
        bias = node.input[2] if node.op_type in _BIASED and len(node.input) > 2 else ""
        if self.graph.is_float(bias) and not np.isfinite(self.graph.array(bias)).all():
            return "its bias holds infinities"
        return None

    def _forward(self) -> dict[int, IntegerRule]:
        """Nodes that could be integer: those with weights, and those fed by integer nodes."""
        able: dict[int, IntegerRule] = {}
        hot: set[str] = set()
        for i, node in enumerate(self.graph.nodes):
            rule = self._rule(i)
            if rule is not None and rule.weight is not None:
                able[i] = rule
                if rule.output == "own":
                    hot.update(node.output)
            elif node.input and node.input[0] in hot and self._merges(node, able):
                hot.update(node.output)
            elif rule is not None and not hot.isdisjoint(data_inputs(rule, node)):
                if rule.data is None and not self._all_float(node):
                    continue
                able[i] = rule
                hot.update(node.output)
        return able

    def _all_float(self, node: Node) -> bool:
        constants = [n for n in node.input if n in self.graph.constants]
        return all(self.graph.is_float(n) for n in constants)

    def _backward(self, able: Mapping[int, IntegerRule]) -> set[int]:
        """Of those, the ones with weights, and those whose result an integer node reads."""
        chosen: set[int] = set()
        for i in sorted(able, reverse=True):
            rule = able[i]
            if rule.weight is not None or any(
                j in chosen and name in data_inputs(RULES[self.graph.nodes[j].op_type], reader)
                for name, j, reader in self._readers(i)
            ):
                chosen.add(i)
        return chosen

    def _index(self, node: Node) -> int:
        return self.position[next(o for o in node.output if o)]

    def _readers(self, i: int) -> Iterator[tuple[str, int, Node]]:
        merged = self._merged(i)
        names = [merged] if merged is not None else list(self.graph.nodes[i].output)
        for name in names:
            for reader in self.graph.consumers.get(name, []):
                yield name, self._index(reader), reader

    def _merged(self, i: int) -> str | None:
        """The output of the Relu or Clip that merges into this node's range, if one follows."""
        node = self.graph.nodes[i]
        if RULES[node.op_type].output not in ("own", "free") or len(node.output) != 1:
            return None
        reader = self.graph.only_reader(node.output[0])
        if reader is None or not _is_clamp(self.graph, reader):
            return None
        name: str = reader.output[0]
        return name

    def _merges(self, node: Node, able: Mapping[int, IntegerRule]) -> bool:
        maker = self.graph.producer.get(node.input[0])
        if maker is None or not _is_clamp(self.graph, node):
            return False
        i = self._index(maker)
        return i in able and self._merged(i) == node.output[0]

    def _kept(self, chosen: Collection[int]) -> dict[str, str]:
        kept: dict[str, str] = {}
        for name in self.graph.constants:
            if not self.graph.is_float(name):
                continue
            readers = [self._index(r) for r in self.graph.consumers.get(name, [])]
            reasons = [why for i in readers if (why := self._reason(i, name, i in chosen))]
            if not readers:
                kept[name] = "read inside a subgraph, or an output itself"
            elif reasons:  # a node that could have been integer has the most to tell
                kept[name] = max(reasons)[1]
        return kept

    def _reason(self, i: int, name: str, chosen: bool) -> tuple[bool, str] | None:
        """(whether it was refused, why this node reads the constant as floats)."""
        node = self.graph.nodes[i]
        rule = RULES.get(node.op_type)
        if chosen and rule is not None:
            places = {p for p, n in enumerate(node.input) if n == name}
            if name in data_inputs(rule, node) or places & {rule.weight, rule.bias}:
                return None
            return False, f"a parameter of {node.op_type}"
        if i in self.refused and node.op_type in SEEDS:
            return True, f"{node.op_type}: {self.refused[i]}"
        return False, REASONS.get(node.op_type, DEFAULT_REASON.format(op=node.op_type))


def _is_clamp(graph: Graph, node: Node) -> bool:
    """A Relu, or a Clip to constants around zero: a range that saturates does the same."""
    if node.op_type == "Relu":
        return True
    if node.op_type != "Clip":
        return False
    low = high = None
    if len(node.input) > 1:
        bounds = [*node.input, ""][1:3]
        if any(name and name not in graph.constants for name in bounds):
            return False
        low, high = (graph.array(name).item() if name else None for name in bounds)
    else:
        low, high = attribute(node, "min"), attribute(node, "max")
    return (low is None or low <= 0) and (high is None or high >= 0)
