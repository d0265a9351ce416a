"""Q/DQ pairs written around the nodes that compute in integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeopt.core import Affine, Array, Decision
from edgeopt.graphs.static.graph import Graph, Node, attribute
from edgeopt.graphs.static.params import (
    Activation,
    activation,
    bias_codes,
    bias_floor,
    weight_codes,
)
from edgeopt.graphs.static.rules import RULES, IntegerRule
from edgeopt.graphs.static.select import Selection, data_inputs

__all__ = ["Placed", "place"]

Range = tuple[float, float]


@dataclass(frozen=True)
class Placed:
    """A new model with Q/DQ pairs, and one decision for each float constant of the old one.

    ``codes``: for each weight, (name of its int8 codes, name of their scales), once for each scale
    that a product asked for.
    """

    model: Any = field(repr=False)
    decisions: tuple[Decision, ...]
    codes: Mapping[str, tuple[tuple[str, str], ...]]


def place(
    model: Any,
    selection: Selection,
    ranges: Mapping[str, Range],
    *,
    signed: bool = False,
    reduce_range: bool = False,
) -> Placed:
    """A new model with Q/DQ pairs, and one decision for each float constant of ``model``.

    Activations become uint8 (int8 when ``signed``), asymmetric, one scale a tensor; weights int8,
    symmetric, one scale an output channel; biases int32 at the product of the two. With
    ``reduce_range`` weights use 7 bits, for processors whose 8-bit multiply-add saturates at 16
    bits (x86-64 before VNNI). ``model`` (prepared, and the one ``selection`` was made from) is
    not changed.
    """
    return _Placer(model, selection, ranges, signed, 63 if reduce_range else 127).run()


def _channel_axis(node: Node) -> int:
    """The weight's output channels."""
    if node.op_type == "Conv":
        return 0
    return 0 if attribute(node, "transB", 0) else 1


class _Placer:
    def __init__(
        self,
        model: Any,
        selection: Selection,
        ranges: Mapping[str, Range],
        signed: bool,
        top: int,
    ) -> None:
        self.graph = Graph(model)
        self.selection = selection
        self.signed = signed
        self.top = top
        self.params = self._parameters(ranges)
        self.stored = {name: self.graph.fresh(f"{name}/dq") for name in self.params}
        self.raw: dict[str, str] = {}
        for name in self.params:
            if name in self.graph.outputs and name in self.graph.producer:
                # the graph's output keeps its name, behind the pair
                self.raw[name] = self.graph.fresh(f"{name}/raw")
                self.stored[name] = name
        self.nodes: list[Node] = []
        self.added: list[Any] = []
        self.codes: dict[tuple[str, str], tuple[str, Array]] = {}
        self.named: dict[str, list[tuple[str, str]]] = {}
        self.decisions: dict[str, Decision] = {}

    def run(self) -> Placed:
        graph = self.graph
        for name in graph.inputs:
            if name in self.params:
                self._pair(name, name)
        for i, original in enumerate(graph.nodes):
            node = onnx.NodeProto.FromString(original.SerializeToString())
            if i in self.selection.nodes:
                self._weights(node, RULES[node.op_type])
            for position, name in enumerate(node.input):
                if name in self.params:
                    node.input[position] = self.stored[name]
            for position, name in enumerate(node.output):
                if name in self.raw:
                    node.output[position] = self.raw[name]
            if i in self.selection.nodes:
                node = self._rewritten(original, node)
            self.nodes.append(node)
            for name in original.output:
                if name in self.params:
                    self._pair(name, self.raw.get(name, name))
        named = {name: tuple(parts) for name, parts in self.named.items()}
        return Placed(self._model(), self._all_decisions(), named)

    def _parameters(self, ranges: Mapping[str, Range]) -> dict[str, Activation]:
        params = {name: activation(*ranges[name], self.signed) for name in self.selection.ranges}
        zero = -128 if self.signed else 0
        unit = Activation(1 / 256, zero, self.signed)
        params |= dict.fromkeys(self.selection.unit, unit)
        for node in self.graph.nodes:
            if node.op_type == "HardSigmoid" and node.output[0] in self.selection.unit:
                params[node.output[0]] = replace(unit, scale=float(np.float32(1 / 255)))
        return params | {name: params[root] for name, root in self.selection.tied.items()}

    # -- pieces of graph

    def _constant(self, name: str, value: Array | np.generic) -> str:
        name = self.graph.fresh(name)
        self.added.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _pair(self, name: str, source: str, quantize_scale: float | None = None) -> None:
        """QuantizeLinear and DequantizeLinear behind a tensor."""
        param = self.params[name]
        maker = self.graph.producer.get(name)
        scale = self._constant(f"{name}/scale", np.float32(param.scale))
        zero = self._constant(f"{name}/zero", param.dtype(param.zero))
        q_scale = scale
        if maker is not None and maker.op_type == "HardSigmoid" and name in self.selection.unit:
            # Add(x, beta / alpha) saturates at 1 / alpha; read back at another scale it is
            # alpha times that: the hard sigmoid, at no cost
            alpha = attribute(maker, "alpha", 0.2)
            q_scale = self._constant(f"{name}/q_scale", np.float32(param.scale / alpha))
        codes = self.graph.fresh(f"{name}/q")
        self._node("QuantizeLinear", [source, q_scale, zero], codes)
        self._node("DequantizeLinear", [codes, scale, zero], self.stored[name])

    def _node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> None:
        node = helper.make_node(op, inputs, [output], f"{output}/{op}", **attributes)
        self.nodes.append(node)

    def _rewritten(self, original: Node, node: Node) -> Node:
        """Two operators have no integer kernel of their own and borrow one."""
        if original.op_type == "Relu":
            return helper.make_node(
                "LeakyRelu", list(node.input), list(node.output), node.name, alpha=0.0
            )
        if original.op_type == "HardSigmoid":
            shift = attribute(original, "beta", 0.5) / attribute(original, "alpha", 0.2)
            operand = self._operand(f"{original.output[0]}/shift", np.float32(shift))
            return helper.make_node("Add", [node.input[0], operand], list(node.output), node.name)
        return node

    # -- constants

    def _weights(self, node: Node, rule: IntegerRule) -> None:
        if rule.weight is None:
            for position, name in enumerate(node.input):
                if self.graph.is_float(name) and name in data_inputs(rule, node):
                    node.input[position] = self._operand(name, self.graph.array(name))
                    self._decide(name, node, Affine(8, -1, symmetric=False), "operand")
            return
        source = self.params[node.input[0]]
        name = node.input[rule.weight]
        bias = node.input[rule.bias] if rule.bias is not None and len(node.input) > 2 else ""
        values = self.graph.array(bias).reshape(-1) if bias else None
        axis = _channel_axis(node)
        node.input[rule.weight], scale = self._weight(name, axis, values, source.scale)
        self._decide(name, node, Affine(8, None, axis=1 - axis), f"{node.op_type} in integers")
        if bias and values is not None:
            codes, bias_scale = bias_codes(values, source.scale, scale)
            stem = self.graph.fresh(f"{bias}/bias")
            inputs = [
                self._constant(f"{stem}/q", codes),
                self._constant(f"{stem}/scale", bias_scale),
            ]
            node.input[2] = self.graph.fresh(f"{stem}/dq")
            self._node("DequantizeLinear", inputs, node.input[2], axis=0)
            self._decide(bias, node, None, "bias: int32 at the scale of the product")

    def _weight(
        self, name: str, axis: int, bias: Array | None, input_scale: float
    ) -> tuple[str, Array]:
        weight = self.graph.array(name)
        floor = None if bias is None else bias_floor(bias, input_scale)
        codes, scale = weight_codes(weight, axis, self.top, floor)
        key = name, scale.tobytes().hex()
        if key not in self.codes:
            inputs = [
                self._constant(f"{name}/q", codes),
                self._constant(f"{name}/scale", scale),
                self._constant(f"{name}/zero", np.zeros(scale.shape, np.int8)),
            ]
            output = self.graph.fresh(f"{name}/dq")
            self._node("DequantizeLinear", inputs, output, axis=axis)
            self.codes[key] = output, scale
            self.named.setdefault(name, []).append((inputs[0], inputs[1]))
        return self.codes[key]

    def _operand(self, name: str, values: Array | np.generic) -> str:
        """A constant that takes part in integer arithmetic as activations do."""
        low, high = float(np.min(values, initial=0.0)), float(np.max(values, initial=0.0))
        param = activation(low, high, self.signed)
        inputs = [
            self._constant(f"{name}/q", param.quantize(np.asarray(values))),
            self._constant(f"{name}/scale", np.float32(param.scale)),
            self._constant(f"{name}/zero", param.dtype(param.zero)),
        ]
        output = self.graph.fresh(f"{name}/dq")
        self._node("DequantizeLinear", inputs, output)
        return output

    # -- the result

    def _decide(self, name: str, node: Node, scheme: Affine | None, reason: str) -> None:
        shape = self.graph.shape(name)
        size = int(np.prod(shape))
        if scheme is None:
            nbytes = 4 * size + 4 * size  # codes, and their scales
        elif scheme.block == -1:
            nbytes = size + 5
        else:
            channels = shape[_channel_axis(node)]
            nbytes = size + 5 * channels  # codes; a float32 scale and an int8 zero a channel
        self.decisions[name] = Decision(
            name, node.op_type, "rtn", "qdq", scheme, reason, nbytes, shape
        )

    def _all_decisions(self) -> tuple[Decision, ...]:
        for name, reason in self.selection.kept.items():
            shape = self.graph.shape(name)
            readers = self.graph.consumers.get(name, [])
            op = readers[0].op_type if readers else ""
            nbytes = 4 * int(np.prod(shape))
            self.decisions[name] = Decision(name, op, "", "keep", None, reason, nbytes, shape)
        order = [name for name in self.graph.constants if name in self.decisions]
        return tuple(self.decisions[name] for name in order)

    def _model(self) -> Any:
        source = self.graph.model
        model = onnx.ModelProto()
        model.ir_version = source.ir_version
        model.producer_name, model.producer_version = source.producer_name, source.producer_version
        model.opset_import.extend(source.opset_import)
        model.domain, model.model_version = source.domain, source.model_version
        model.doc_string = source.doc_string
        model.metadata_props.extend(source.metadata_props)
        model.functions.extend(source.functions)
        graph = model.graph
        graph.name = source.graph.name
        graph.doc_string = source.graph.doc_string
        graph.metadata_props.extend(source.graph.metadata_props)
        graph.input.extend(source.graph.input)
        graph.output.extend(source.graph.output)
        graph.node.extend(self.nodes)
        used = {n for node in self.nodes for n in node.input}
        used |= self.graph.inner | self.graph.outputs
        for name, tensor in self.graph.constants.items():
            if name in used:
                graph.initializer.append(tensor)
        graph.initializer.extend(self.added)
        return model
