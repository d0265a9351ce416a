"""ONNX: every initializer described in place, without the onnx package and without its data.

A walk over the mapped protobuf, down to what describes tensors. Field numbers are those of
onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). External data is held to
stricter rules than any runtime's: a plain relative path to a regular file inside the model's own
folder, no symbolic link on the way, no second hard link to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.core import InputSpec, Source, Weight, symbolic
from edgeopt.errors import FormatError
from edgeopt.files.onnx_tensors import DATA_TYPES, OnnxTensors
from edgeopt.files.protobuf import LENGTH, VARINT, WireField, fields, top_level
from edgeopt.files.reading import Buffer, FileBytes
from edgeopt.files.roles import role_of

__all__ = ["MAX_DEPTH", "QUANTIZED_OPS", "describe", "matches"]

#: Graphs within graphs; protobuf's own parsers stop at 100 messages, which is 32 graphs.
MAX_DEPTH = 32

#: Operators that only a quantized model has.
QUANTIZED_OPS = frozenset(
    {
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeLinear",
        "DynamicQuantizeMatMul",
        "EmbedLayerNormalizationQuantized",
        "GatherBlockQuantized",
        "MatMulBnb4",
        "MatMulInteger",
        "MatMulInteger16",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QEmbedLayerNormalization",
        "QGemm",
        "QLinearAdd",
        "QLinearAveragePool",
        "QLinearConcat",
        "QLinearConv",
        "QLinearGlobalAveragePool",
        "QLinearLeakyRelu",
        "QLinearMatMul",
        "QLinearMul",
        "QLinearReduceMean",
        "QLinearSigmoid",
        "QLinearSoftmax",
        "QLinearWhere",
        "QMoE",
        "QOrderedMatMul",
        "QuantizeLinear",
    }
)

#: ModelProto: field number -> wire type.
_MODEL = {
    **dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), LENGTH),
    **dict.fromkeys((1, 5), VARINT),
}


def matches(path: Path, head: bytes) -> bool:
    """A ModelProto: known fields only, an IR version, and a graph (or the file is cut short)."""
    first = head[:1]
    # A field that a ModelProto can begin with, before the file is looked at any further.
    if not first or _MODEL.get(first[0] >> 3) != first[0] & 7:
        return False
    found, complete = top_level(path)
    numbers = {number for number, _ in found}
    known = all(_MODEL.get(number) == wire for number, wire in found)
    return known and 1 in numbers and (7 in numbers or not complete)


def describe(path: Path) -> Source:
    """Describe a model: weights, inputs, operators. Reads no tensor data. FormatError if broken.

    ``weights`` are the initializers of the graph and of the graphs inside it, and the tensors of
    Constant nodes (named after the node's output). ``inputs`` leaves out what initializers
    provide. ``details``:

    - ``outputs``: like inputs; ``opset``: version by domain; ``ir_version``; ``producer``;
      ``metadata``: the file's own strings; ``graph``: the graph's name
    - ``ops``: nodes by operator; ``nodes``: how many
    - ``constants``: names of weights that are Constant nodes; ``unused``: names of initializers
      that no node and no output uses
    - ``external``: bytes by name of data files; ``quantized``: whether it has operators that only
      a quantized model has, and ``quantized_ops`` those, counted
    """
    file = FileBytes(path)
    walk = _ModelWalk(path, file.mapped(), OnnxTensors(file))
    walk.model(file.size)
    files = (path, *walk.tensors.external_files())
    quantized = {op: n for op, n in sorted(walk.ops.items()) if op in QUANTIZED_OPS}
    return Source(
        path=path,
        kind="onnx",
        files=files,
        nbytes=file.size + sum(walk.tensors.external.values()),
        weights=tuple(w for w in walk.weights.values() if w.dtype != "string"),
        extras=tuple(w for w in walk.weights.values() if w.dtype == "string"),
        inputs=walk.inputs,
        details={
            "outputs": walk.outputs,
            "opset": walk.opset,
            "ir_version": walk.ir_version,
            "producer": " ".join(filter(None, walk.producer)),
            "metadata": walk.metadata,
            "graph": walk.graph_name,
            "ops": dict(walk.ops.most_common()),
            "nodes": sum(walk.ops.values()),
            "constants": tuple(walk.constants),
            "unused": tuple(walk.unused),
            "external": dict(walk.tensors.external),
            "quantized": bool(quantized),
            "quantized_ops": quantized,
        },
    )


@dataclass
class _GraphNames:
    """What one graph declares and uses; ``used`` includes the graphs inside it."""

    name: str = ""
    inputs: list[InputSpec] = field(default_factory=list)
    outputs: list[InputSpec] = field(default_factory=list)
    initializers: list[str] = field(default_factory=list)
    tensors: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)


@dataclass
class _ModelWalk:
    """One pass over a model; what it finds piles up here."""

    path: Path
    buffer: Buffer
    tensors: OnnxTensors
    weights: dict[str, Weight] = field(default_factory=dict)
    repeated: dict[str, int] = field(default_factory=dict)
    ops: Counter[str] = field(default_factory=Counter)
    constants: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    opset: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    inputs: tuple[InputSpec, ...] = ()
    outputs: tuple[InputSpec, ...] = ()
    producer: tuple[str, str] = ("", "")
    ir_version: int = 0
    graph_name: str = ""

    def model(self, size: int) -> None:
        graphs = []
        for number, wire, lo, hi in self._fields(0, size):
            if _MODEL.get(number, wire) != wire:
                raise FormatError(self.path, f"field {number} of the model has wire type {wire}")
            if number == 1:
                self.ir_version = lo
            elif number == 2:
                self.producer = (self._text(lo, hi), self.producer[1])
            elif number == 3:
                self.producer = (self.producer[0], self._text(lo, hi))
            elif number == 7:
                graphs.append((lo, hi))
            elif number == 8:
                domain, version = self._opset(lo, hi)
                self.opset[domain] = version
            elif number == 14:
                key, value = self._pair(lo, hi)
                self.metadata[key] = value
            elif number == 25:
                self._function(lo, hi)
        if len(graphs) != 1:
            raise FormatError(self.path, f"has {len(graphs)} graphs, a model has one")
        graph = self._graph(*graphs[0], depth=1)
        provided = set(graph.initializers)
        self.inputs = tuple(spec for spec in graph.inputs if spec.name not in provided)
        self.outputs = tuple(graph.outputs)
        self.graph_name = graph.name

    # -- graphs and nodes

    def _graph(self, lo: int, hi: int, depth: int) -> _GraphNames:
        if depth > MAX_DEPTH:
            raise FormatError(
                self.path, f"graphs nested more than {MAX_DEPTH} deep", field="graph", offset=lo
            )
        graph = _GraphNames()
        for number, wire, start, end in self._fields(lo, hi):
            if wire != LENGTH:
                continue
            if number == 1:
                graph.used |= self._node(graph, start, end, depth)
            elif number == 2:
                graph.name = self._text(start, end)
            elif number == 5:
                weight = self.tensors.tensor(start, end)
                self._initializer(graph, weight)
            elif number == 11:
                graph.inputs.append(self._value(start, end))
            elif number == 12:
                graph.outputs.append(self._value(start, end))
                graph.used.add(graph.outputs[-1].name)
            elif number == 15:
                self._sparse(graph, start, end)
        self.unused += [name for name in graph.initializers if name not in graph.used]
        return graph

    def _initializer(self, graph: _GraphNames, weight: Weight) -> None:
        if not weight.name:
            raise FormatError(self.path, "an initializer without a name", field="graph")
        graph.initializers.append(weight.name)
        self._add(graph, weight)

    def _add(self, graph: _GraphNames, weight: Weight) -> str:
        """Keep a tensor under a name of its own, and give that back.

        Names are unique in one graph; branches and functions may use the same one for others.
        """
        if weight.name in graph.tensors:
            raise FormatError(
                self.path,
                "is there twice; names of values are unique",
                field=f"tensor {weight.name[:200]!r}",
            )
        graph.tensors.add(weight.name)
        if weight.name in self.weights:
            stem = weight.name
            number = self.repeated[stem] = self.repeated.get(stem, 1) + 1
            while f"{stem}#{number}" in self.weights:
                number = self.repeated[stem] = number + 1
            weight = _renamed(weight, f"{stem}#{number}")
        self.weights[weight.name] = weight
        return weight.name

    def _sparse(self, graph: _GraphNames, lo: int, hi: int) -> None:
        """SparseTensorProto: the values carry the name, the indices none."""
        parts: dict[int, Weight] = {}
        for number, wire, start, end in self._fields(lo, hi):
            if wire == LENGTH and number in (1, 2):
                parts[number] = self.tensors.tensor(start, end)
        if set(parts) != {1, 2}:
            raise FormatError(self.path, "a sparse tensor without values or indices", offset=lo)
        self._initializer(graph, parts[1])
        self._add(graph, _renamed(parts[2], f"{parts[1].name}.indices"))

    def _node(self, graph: _GraphNames, lo: int, hi: int, depth: int) -> set[str]:
        """Count a node, take what it holds, and return the names it uses."""
        used: set[str] = set()
        output, op = "", ""
        held: list[Weight] = []
        for number, wire, start, end in self._fields(lo, hi):
            if wire != LENGTH:
                continue
            if number == 1:
                used.add(self._text(start, end))
            elif number == 2:
                output = output or self._text(start, end)
            elif number == 4:
                op = self._text(start, end)
            elif number == 5:
                used |= self._attribute(start, end, depth, held)
        self.ops[op] += 1
        if op == "Constant":
            for weight in held:
                self.constants.append(self._add(graph, _renamed(weight, output)))
        return used

    def _attribute(self, lo: int, hi: int, depth: int, held: list[Weight]) -> set[str]:
        used: set[str] = set()
        for number, wire, start, end in self._fields(lo, hi):
            if wire != LENGTH:
                continue
            if number == 5:
                held.append(self.tensors.tensor(start, end))
            elif number in (6, 11):
                used |= self._graph(start, end, depth + 1).used
        return used

    def _function(self, lo: int, hi: int) -> None:
        """A model-local function: nodes that other nodes stand for."""
        body = _GraphNames()
        for number, wire, start, end in self._fields(lo, hi):
            if wire == LENGTH and number == 7:
                self._node(body, start, end, depth=1)

    # -- values

    def _value(self, lo: int, hi: int) -> InputSpec:
        """ValueInfoProto: name and type."""
        name, dtype = "", ""
        dims: tuple[int | str | None, ...] = ()
        for number, wire, start, end in self._fields(lo, hi):
            if wire == LENGTH and number == 1:
                name = self._text(start, end)
            elif wire == LENGTH and number == 2:
                dtype, dims = self._type(start, end)
        shape = tuple(symbolic(dim, name, axis) for axis, dim in enumerate(dims))
        return InputSpec(name, dtype, shape)

    def _type(self, lo: int, hi: int) -> tuple[str, tuple[int | str | None, ...]]:
        """TypeProto: a tensor's dtype and shape, or the kind of what is no tensor."""
        others = {4: "sequence", 5: "map", 7: "opaque", 8: "sparse", 9: "optional"}
        for number, wire, start, end in self._fields(lo, hi):
            if wire == LENGTH and number == 1:
                return self._tensor_type(start, end)
            if number in others:
                return others[number], ()
        return "", ()

    def _tensor_type(self, lo: int, hi: int) -> tuple[str, tuple[int | str | None, ...]]:
        dtype = ""
        shape: tuple[int | str | None, ...] = ()
        for number, wire, start, end in self._fields(lo, hi):
            if number == 1 and wire == VARINT:
                dtype = DATA_TYPES.get(start, f"type {start}")
            elif number == 2 and wire == LENGTH:
                shape = tuple(
                    self._dimension(a, b)
                    for number, wire, a, b in self._fields(start, end)
                    if number == 1 and wire == LENGTH
                )
        return dtype, shape

    def _dimension(self, lo: int, hi: int) -> int | str | None:
        for number, wire, start, end in self._fields(lo, hi):
            if number == 1 and wire == VARINT:
                return _signed(start)
            if number == 2 and wire == LENGTH and end > start:
                return self._text(start, end)
        return None

    def _opset(self, lo: int, hi: int) -> tuple[str, int]:
        domain, version = "", 0
        for number, wire, start, end in self._fields(lo, hi):
            if number == 1 and wire == LENGTH:
                domain = self._text(start, end)
            elif number == 2 and wire == VARINT:
                version = _signed(start)
        return domain, version

    def _pair(self, lo: int, hi: int) -> tuple[str, str]:
        texts: Mapping[int, str] = {
            number: self._text(start, end)
            for number, wire, start, end in self._fields(lo, hi)
            if wire == LENGTH
        }
        return texts.get(1, ""), texts.get(2, "")

    def _fields(self, lo: int, hi: int) -> Iterator[WireField]:
        return fields(self.buffer, lo, hi, self.path)

    def _text(self, lo: int, hi: int) -> str:
        return self.buffer[lo:hi].decode(errors="backslashreplace")


def _signed(value: int) -> int:
    """A varint as the int64 that it stands for."""
    return value - (1 << 64) if value >> 63 else value


def _renamed(weight: Weight, name: str) -> Weight:
    values: dict[str, Any] = {**vars(weight), "name": name, "role": role_of(name, weight.dtype)}
    return Weight(**values)
