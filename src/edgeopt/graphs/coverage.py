"""What share of a model's weights an artifact really stores in few bits, read from the file.

An independent reader: plain protobuf, no shared code with what wrote the file. It asks of every
float initializer in the artifact whether it is a scale (it multiplies or divides stored codes, or
stands in a scale's place of a quantized operator); what is left was kept in float. Coverage is one
minus those bytes over the float bytes of the source after folding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from edgeopt.core import Change

__all__ = ["Coverage", "float_bytes", "misplaced", "read_coverage", "read_half"]

_FLOATS = {
    onnx.TensorProto.FLOAT: 4,
    onnx.TensorProto.FLOAT16: 2,
    onnx.TensorProto.BFLOAT16: 2,
    onnx.TensorProto.DOUBLE: 8,
}
_CODES = {
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
    onnx.TensorProto.INT4,
    onnx.TensorProto.UINT4,
}

#: Operator -> the inputs that are scales.
_SCALE_SLOTS = {
    "DequantizeLinear": {1},
    "QuantizeLinear": {1},
    "MatMulNBits": {2},
    "GatherBlockQuantized": {2},
    "QLinearConv": {1, 4, 6},
    "QLinearMatMul": {1, 4, 6},
    "QGemm": {1, 4, 7},
}

#: Operators that codes pass through on their way to a kernel.
_CARRIERS = frozenset(
    {
        "Add",
        "BitShift",
        "BitwiseAnd",
        "Cast",
        "Concat",
        "Div",
        "Mul",
        "Reshape",
        "Round",
        "Slice",
        "Sub",
        "Transpose",
        "Unsqueeze",
    }
)

#: Of these, the ones that leave a code a code, whatever else they take.
_CODE_KEEPERS = frozenset({"BitShift", "BitwiseAnd", "Cast", "Concat", "Reshape", "Sub"})


@dataclass(frozen=True)
class Coverage:
    """Bytes of float weights in the source, those kept in float by the artifact, and their names.

    ``codes`` counts the tensors that hold the others: integers for quantized weights, or what
    ``stored`` says. ``bits`` are weights (elements) by how they are stored, ``4``, ``8`` or
    ``float``, the most bits first; ``tensors`` are (bits, elements) of each tensor of codes.
    """

    source_bytes: int
    kept_bytes: int
    kept: tuple[tuple[str, int], ...]
    codes: int
    stored: str = "quantized"
    bits: Mapping[str, int] = field(default_factory=dict)
    tensors: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """0 to 1; 0 for a source without float weights."""
        if self.source_bytes == 0:
            return 0.0
        return max(0.0, 1.0 - self.kept_bytes / self.source_bytes)

    def to_json(self) -> dict[str, Any]:
        return {
            "share": self.share,
            "source_bytes": self.source_bytes,
            "kept_bytes": self.kept_bytes,
            "kept": [{"tensor": n, "nbytes": b} for n, b in self.kept],
            "quantized_tensors": self.codes,
            "stored": self.stored,
            "bits": dict(self.bits),
        }


def _nbytes(tensor: onnx.TensorProto) -> int:
    return int(math.prod(tensor.dims) * _FLOATS[tensor.data_type])


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initializers and constants, by the name that nodes know them under."""
    yield from graph.initializer
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    named = onnx.TensorProto()
                    named.CopyFrom(attribute.t)
                    named.name = node.output[0]
                    yield named


def float_bytes(path: Path) -> int:
    """Bytes of all float initializers and constants of a model."""
    model = onnx.load(str(path), load_external_data=False)
    return sum(
        _nbytes(t) for g in _graphs(model.graph) for t in _tensors(g) if t.data_type in _FLOATS
    )


def read_coverage(artifact: Path, source_bytes: int) -> Coverage:
    """Coverage of ``artifact`` against the float bytes of the folded source."""
    model = onnx.load(str(artifact), load_external_data=False)
    graphs = list(_graphs(model.graph))
    tensors = [t for g in graphs for t in _tensors(g)]
    codes = {t.name for t in tensors if t.data_type in _CODES and math.prod(t.dims) > 1}
    floats = {t.name: _nbytes(t) for t in tensors if t.data_type in _FLOATS}
    scales = _scales(graphs, codes, set(floats))
    kept = sorted(
        ((name, size) for name, size in floats.items() if name not in scales),
        key=lambda item: (-item[1], item[0]),
    )
    stored = _stored_codes(graphs, tensors)
    elements = {t.name: math.prod(t.dims) for t in tensors}
    bits = {"float": sum(elements[name] for name, _ in kept)}
    for width, count in stored.values():
        bits[str(width)] = bits.get(str(width), 0) + count
    return Coverage(
        source_bytes,
        sum(size for _, size in kept),
        tuple(kept),
        len(codes),
        bits=dict(sorted((k, n) for k, n in bits.items() if n)),
        tensors=stored,
    )


#: Operator -> the inputs that are zero points.
_ZERO_SLOTS: Mapping[str, frozenset[int]] = {
    "DequantizeLinear": frozenset({2}),
    "QuantizeLinear": frozenset({2}),
    "MatMulNBits": frozenset({3, 4}),
    "GatherBlockQuantized": frozenset({3}),
    "MatMulInteger": frozenset({2, 3}),
    "ConvInteger": frozenset({2, 3}),
    "QLinearConv": frozenset({2, 5, 7}),
    "QLinearMatMul": frozenset({2, 5, 7}),
    "QGemm": frozenset({2, 5, 8}),
}

#: Operator -> the input whose bytes hold several codes, as many as its attribute ``bits`` says.
_PACKED_SLOTS: Mapping[str, int] = {"MatMulNBits": 1, "GatherBlockQuantized": 0}
_WIDTHS = {
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.UINT8: 8,
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.UINT4: 4,
}


def _stored_codes(graphs: list[Any], tensors: list[Any]) -> dict[str, tuple[int, int]]:
    """(bits, elements) of every initializer that holds codes of weights, by what reads it.

    A byte that is masked or shifted before it is a number holds two codes.
    """
    origin = {t.name: t.name for t in tensors if t.data_type in _CODES}
    zeros: set[str] = set()
    widths: dict[str, int] = {}
    for graph in graphs:
        for node in graph.node:
            for slot, name in enumerate(node.input):
                root = origin.get(name)
                if root is None:
                    continue
                if slot in _ZERO_SLOTS.get(node.op_type, ()):
                    zeros.add(root)
                if node.op_type == "Sub" and slot == 1:
                    zeros.add(root)
                if _PACKED_SLOTS.get(node.op_type) == slot:
                    widths[root] = next((a.i for a in node.attribute if a.name == "bits"), 4)
                if node.op_type in ("BitwiseAnd", "BitShift") and slot == 0:
                    widths[root] = 4
            if node.op_type in ("Cast", "Gather", "Reshape", "Transpose") and node.input:
                root = origin.get(node.input[0])
                if root is not None:
                    origin[node.output[0]] = root
    found = {}
    for tensor in tensors:
        count = math.prod(tensor.dims)
        if tensor.data_type not in _WIDTHS or tensor.name in zeros or count < 2:
            continue
        width = widths.get(tensor.name, _WIDTHS[tensor.data_type])
        found[tensor.name] = width, count * _WIDTHS[tensor.data_type] // width
    return found


def misplaced(stored: Mapping[str, tuple[int, int]], changes: Sequence[Change]) -> tuple[str, ...]:
    """Tensors of which the file does not hold what was said of them, each with what it holds.

    ``stored`` is :attr:`Coverage.tensors`. Codes stand under their tensor's name and an ending.
    """
    wanted = {
        c.decision.tensor: (c.decision.affine.bits, math.prod(c.decision.shape))
        for c in changes
        if c.decision.affine is not None
    }
    found: dict[str, dict[int, int]] = {}
    for name, (width, count) in stored.items():
        owner = _owner(name, wanted)
        if owner is not None:
            held = found.setdefault(owner, {})
            held[width] = held.get(width, 0) + count
    wrong = []
    for tensor, (bits, count) in wanted.items():
        held = found.get(tensor, {})
        if set(held) == {bits} and held[bits] >= count:
            continue
        shown = ", ".join(f"{n} weights in {b} bits" for b, n in sorted(held.items()))
        wrong.append(f"{tensor}: {shown or 'no codes'}, said to be {count} in {bits}")
    return tuple(wrong)


def _owner(name: str, tensors: Mapping[str, Any]) -> str | None:
    """The longest tensor's name that this one goes on from, behind a dot or a slash."""
    for end in range(len(name), 0, -1):
        if (end == len(name) or name[end] in "./") and name[:end] in tensors:
            return name[:end]
    return None


def read_half(artifact: Path, source_bytes: int) -> Coverage:
    """The same for weights stored in float16: what was kept is every wider float."""
    model = onnx.load(str(artifact), load_external_data=False)
    tensors = [t for g in _graphs(model.graph) for t in _tensors(g) if t.data_type in _FLOATS]
    wide = [(t.name, _nbytes(t)) for t in tensors if _FLOATS[t.data_type] > 2]
    kept = tuple(sorted(wide, key=lambda item: (-item[1], item[0])))
    halves = len(tensors) - len(wide)
    bits: dict[str, int] = {}
    for tensor in tensors:
        name = f"float{8 * _FLOATS[tensor.data_type]}"
        bits[name] = bits.get(name, 0) + math.prod(tensor.dims)
    return Coverage(source_bytes, sum(size for _, size in kept), kept, halves, "in float16", bits)


def _scales(graphs: list[onnx.GraphProto], codes: set[str], floats: set[str]) -> set[str]:
    """Float initializers that scale codes; nodes are in topological order, so one pass does it."""
    carried = set(codes)  # codes, and what is computed from codes and constants alone
    decoded: set[str] = set()  # of these, what a scale has made numbers of
    factors = set(floats)  # float constants, and what is computed from them alone
    origin = {name: {name} for name in floats}  # which initializers a factor comes from
    sums: set[str] = set()  # integer products that a scale has yet to turn into numbers
    live: set[str] = set()  # scales of activations, known only at run time
    scales: set[str] = set()
    for graph in graphs:
        for node in graph.node:
            for slot in _SCALE_SLOTS.get(node.op_type, ()):
                if slot < len(node.input):
                    scales |= origin.get(node.input[slot], set())
            inputs = [name for name in node.input if name]
            out = node.output[0] if node.output else ""
            if node.op_type == "DynamicQuantizeLinear":
                live.add(node.output[1])
            elif node.op_type in ("MatMulInteger", "ConvInteger"):
                sums.add(out)
            elif node.op_type == "Gather" and inputs[0] in carried:
                if inputs[0] not in decoded:
                    carried.add(out)
                    sums.add(out)
            elif node.op_type == "Gather" and inputs[0] in factors:
                origin[out] = origin.get(inputs[0], set())
            elif node.op_type in _CARRIERS and inputs:
                quantized = [n for n in inputs if n in carried or n in sums or n in live]
                others = [n for n in inputs if n in origin]
                if quantized and others and node.op_type in ("Mul", "Div"):
                    for name in others:
                        scales |= origin[name]
                if all(n in carried or n in factors or n in codes for n in inputs):
                    (carried if quantized else factors).add(out)
                    if quantized and _is_decoded(node, decoded, bool(others)):
                        decoded.add(out)
                    if not quantized:
                        origin[out] = set().union(*(origin.get(n, set()) for n in inputs))
                elif quantized and node.op_type in _CODE_KEEPERS:
                    sums.add(out)
                elif node.op_type == "Mul" and all(n in live or n in origin for n in inputs):
                    live.add(out)
                elif node.op_type in ("Unsqueeze", "Cast") and inputs[0] in origin:
                    origin[out] = origin[inputs[0]]
    return scales


def _is_decoded(node: Any, decoded: set[str], scaled: bool) -> bool:
    """Whether a node over codes and constants gives numbers: codes times a scale, until they are
    cast to codes again."""
    if node.op_type == "Cast":
        to = next(a.i for a in node.attribute if a.name == "to")
        return to not in _CODES and node.input[0] in decoded
    return (node.op_type == "Mul" and scaled) or any(name in decoded for name in node.input)
