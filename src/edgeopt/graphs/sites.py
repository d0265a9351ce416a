"""Find every float initializer of a folded graph, and say what kind of arithmetic uses it.

The kind decides which stored forms are possible (see :mod:`edgeopt.graphs.forms`):

=============  ============================================  ==================================
kind           used by                                       seen as a matrix [rows, columns]
=============  ============================================  ==================================
``product``    MatMul or Gemm, second operand                [outputs, inputs]
``table``      Gather along axis 0                           [vocabulary, width]
``tied``       both of the above, one tensor                 [vocabulary, width]
``conv``       Conv, ConvTranspose                           [first axis, everything else]
``recurrent``  LSTM, GRU, RNN                                [directions x gates, inputs]
``other``      anything else with two axes or more           [leading axes, last axis]
=============  ============================================  ==================================

Columns are where blocks run. Vectors and tensors under :data:`MIN_ELEMENTS` are left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.files.onnx import QUANTIZED_OPS
from edgeopt.graphs.fold import constant_array
from edgeopt.numerics.affine import narrowest_scale

__all__ = ["MIN_ELEMENTS", "Site", "Use", "find_sites", "float_initializers", "quantized_ops"]

#: Below this many elements, codes, a scale and the nodes that unpack them save next to nothing.
MIN_ELEMENTS = 512

_FLOATS = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.DOUBLE: "float64",
}

_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})

_KINDS = {
    ("MatMul", 1): "product",
    ("Gemm", 1): "product",
    ("Gather", 0): "table",
    ("Conv", 1): "conv",
    ("ConvTranspose", 1): "conv",
    ("LSTM", 1): "recurrent",
    ("LSTM", 2): "recurrent",
    ("GRU", 1): "recurrent",
    ("GRU", 2): "recurrent",
    ("RNN", 1): "recurrent",
    ("RNN", 2): "recurrent",
}


@dataclass(frozen=True)
class Use:
    """One consumer. ``transposed``: it sees the tensor through ``via``, a Transpose of two axes."""

    node: ir.Node
    slot: int
    transposed: bool = False
    via: ir.Node | None = None


@dataclass(frozen=True)
class Site:
    """One float initializer and everything that uses it.

    ``by_column``: the tensor as stored is the transpose of the matrix described above (a MatMul
    weight is stored ``[inputs, outputs]``).
    """

    value: ir.Value
    kind: str
    by_column: bool
    uses: tuple[Use, ...]
    _scales: dict[int, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        return self.value.name or ""

    @property
    def shape(self) -> tuple[int, ...]:
        assert self.value.const_value is not None
        return tuple(int(d) for d in self.value.const_value.shape.numpy())

    @property
    def dtype(self) -> str:
        assert self.value.const_value is not None
        return _FLOATS[self.value.const_value.dtype]

    @property
    def nbytes(self) -> int:
        assert self.value.const_value is not None
        return int(self.value.const_value.nbytes)

    @property
    def op(self) -> str:
        """The operators that use it, for a person: ``MatMul`` or ``Gather+MatMul``."""
        return "+".join(sorted({use.node.op_type for use in self.uses}))

    @property
    def matrix_shape(self) -> tuple[int, int]:
        shape = self.shape
        if self.by_column:
            return shape[1], shape[0]
        columns = shape[-1]
        if self.kind == "conv":
            columns = math.prod(shape[1:])
        return math.prod(shape) // columns if columns else 0, columns

    def narrowest_scale(self, bits: int) -> str:
        """The narrowest dtype that holds the scales of this tensor's rows."""
        if bits not in self._scales:
            self._scales[bits] = narrowest_scale(self.matrix(), bits)
        return self._scales[bits]

    def matrix(self) -> NDArray[np.float32]:
        """The tensor as float32 ``[rows, columns]``."""
        array = constant_array(self.value)
        assert array is not None
        as_float = np.asarray(array, np.float32)
        if self.by_column:
            as_float = as_float.T
        return np.ascontiguousarray(as_float).reshape(self.matrix_shape)


def float_initializers(graph: ir.Graph) -> list[ir.Value]:
    """Initializers of a float type with at least one element, in the graph's order."""
    return [
        value
        for value in graph.initializers.values()
        if value.const_value is not None
        and value.const_value.dtype in _FLOATS
        and value.const_value.size > 0
    ]


def quantized_ops(model: ir.Model) -> dict[str, int]:
    """Operators found that only a quantized graph has, with how many there are."""
    found: dict[str, int] = {}
    for node in model.graph.all_nodes():
        if node.op_type in QUANTIZED_OPS:
            found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


def find_sites(graph: ir.Graph) -> tuple[list[Site], list[tuple[ir.Value, str]]]:
    """(what can be quantized, what is left alone and why); together every float initializer."""
    sites: list[Site] = []
    left: list[tuple[ir.Value, str]] = []
    for value in float_initializers(graph):
        tensor = value.const_value
        assert tensor is not None
        if len(tensor.shape) < 2 or _is_vector(tensor):
            left.append((value, "vector (bias, norm or scale): few bytes, precision matters"))
        elif tensor.size < MIN_ELEMENTS:
            left.append((value, f"under {MIN_ELEMENTS} elements: too few to save anything"))
        elif _is_recurrent_bias(value):
            left.append((value, "bias of a recurrent layer: few bytes, precision matters"))
        elif value.is_graph_output():
            left.append((value, "is itself an output of the model"))
        elif not value.uses():
            left.append((value, "used by no node"))
        else:
            site = _site(value)
            if site.kind in ("table", "other") and _is_mask(value):
                left.append((value, "a mask: infinities, or numbers far beyond all others in it"))
            else:
                sites.append(site)
    return sites, left


#: A number this large, and this many times the median, is there to win against all others.
_MASKING = 1e4


def _is_mask(value: ir.Value) -> bool:
    """Whether it holds infinities, or what stands for them: one scale cannot hold both."""
    array = constant_array(value)
    assert array is not None
    sizes = np.abs(np.asarray(array, np.float32))
    peak = sizes.max()
    if not np.isfinite(peak):
        return True
    return bool(peak >= _MASKING and peak >= _MASKING * np.median(sizes))


def _is_recurrent_bias(value: ir.Value) -> bool:
    """The third tensor of an LSTM, GRU or RNN: [directions, gates], two axes for one vector."""
    return any(node.op_type in _RECURRENT and slot == 3 for node, slot in value.uses())


def _is_vector(tensor: ir.TensorProtocol) -> bool:
    """A bias or scale with broadcasting axes, such as [1, C, 1, 1]."""
    return bool(max(int(d) for d in tensor.shape.numpy()) == tensor.size)


def _site(value: ir.Value) -> Site:
    uses: list[Use] = []
    for node, slot in value.uses():
        if _swaps_two_axes(node, value):
            uses += [Use(n, s, True, node) for n, s in node.outputs[0].uses()]
            if node.outputs[0].is_graph_output():
                uses.append(Use(node, slot))
        else:
            uses.append(Use(node, slot))
    assert value.const_value is not None
    rank = len(value.const_value.shape)
    views = {_view(use, rank) for use in uses}
    if len(views) == 1:
        kind, by_column = views.pop()
    elif views == {("table", False), ("product", False)}:
        kind, by_column = "tied", False
    else:
        kind, by_column = "other", False
    return Site(value, kind, by_column, tuple(uses))


def _swaps_two_axes(node: ir.Node, value: ir.Value) -> bool:
    assert value.const_value is not None
    if node.op_type != "Transpose" or len(value.const_value.shape) != 2:
        return False
    perm = node.attributes.get("perm")
    return perm is None or list(perm.as_ints()) == [1, 0]


def _view(use: Use, rank: int) -> tuple[str, bool]:
    """(kind, stored by column) as one consumer sees the tensor."""
    kind = _KINDS.get((use.node.op_type, use.slot), "other")
    if use.node.domain not in ("", "ai.onnx"):
        kind = "other"
    if kind == "product":
        if rank != 2 or _int(use.node, "transA"):
            return "other", False
        outputs_first = use.transposed != bool(_int(use.node, "transB"))
        return "product", not outputs_first
    if kind == "table" and (rank != 2 or use.transposed or _int(use.node, "axis")):
        return "other", False
    if use.transposed:
        return "other", False
    return kind, False


def _int(node: ir.Node, name: str) -> int:
    attr = node.attributes.get(name)
    return int(attr.as_int()) if attr is not None else 0
