"""A detour that torch's exporter takes: ``as_strided`` as a Gather of every element, in order.

An adaptive pooling to 1x1 with a free batch comes out of ``dynamo=True`` (seen on torch 2.13) as
``Reshape([-1]) -> Gather(indices computed from the batch) -> Reshape``: eight small nodes that give
back what they got, and that no integer kernel passes through. Whether they do is found out by
running the model at two sizes: the indices must count 0, 1, 2, ... to the last element.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from edgeopt.core import Array
from edgeopt.graphs.static.graph import Graph, Node, attribute, rename_reads

__all__ = ["remove_strided_copies"]

#: Two sizes for (the leading, any other) free dimension.
_TRIALS = ((2, 64), (3, 96))
_PROTO_LIMIT = (1 << 31) - (1 << 20)
_RUN_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def remove_strided_copies(graph: Graph) -> None:
    """Let the Reshape behind such a Gather read what went in."""
    found = [(n, f) for n in graph.nodes if (f := _flattened(graph, n)) is not None]
    if not found or graph.model.ByteSize() > _PROTO_LIMIT:
        return
    for gather, flat, same_shape in _identities(graph, found):
        last = graph.only_reader(gather.output[0])
        if same_shape and gather.output[0] not in graph.outputs | graph.inner:
            rename_reads(graph, gather.output[0], flat.input[0])
        elif last is not None and last.op_type == "Reshape" and _spells_out(graph, last):
            last.input[0] = flat.input[0]
    _drop_unread(graph)


def _flattened(graph: Graph, node: Node) -> Node | None:
    """The Reshape before the Gather, where the two have the looks of ``as_strided``."""
    if node.op_type != "Gather" or attribute(node, "axis", 0) != 0:
        return None
    flat = graph.producer.get(node.input[0])
    if flat is None or flat.op_type != "Reshape" or node.input[1] not in graph.producer:
        return None
    return flat if _constant_shape(graph, flat) == [-1] else None


def _spells_out(graph: Graph, reshape: Node) -> bool:
    """A 0 in the shape would copy a size from what goes in, and that changes."""
    shape = _constant_shape(graph, reshape)
    return shape is not None and 0 not in shape


def _constant_shape(graph: Graph, node: Node) -> list[int] | None:
    name = node.input[1]
    return [int(d) for d in graph.array(name)] if name in graph.constants else None


def _identities(graph: Graph, found: list[tuple[Node, Node]]) -> list[tuple[Node, Node, bool]]:
    """Those whose indices are 0, 1, 2, ... at both sizes; and whether the shape stays, too."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.node[:], model.graph.output[:], model.graph.initializer[:]
    model.graph.node.extend(graph.nodes)
    model.graph.initializer.extend(graph.constants.values())
    wanted = [name for gather, flat in found for name in (flat.input[0], gather.input[1])]
    model.graph.output.extend(
        helper.make_empty_tensor_value_info(name) for name in dict.fromkeys(wanted)
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    in_order = [True] * len(found)
    same_shape = [True] * len(found)
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for sizes in _TRIALS:
            values = iter(session.run(wanted, _zeros(graph, sizes)))
            for i, (data, indices) in enumerate(zip(values, values, strict=True)):
                in_order[i] &= np.array_equal(indices.ravel(), np.arange(data.size))
                same_shape[i] &= indices.shape == data.shape
    except _RUN_ERRORS:
        return []
    return [(*pair, same_shape[i]) for i, pair in enumerate(found) if in_order[i]]


def _zeros(graph: Graph, sizes: tuple[int, int]) -> dict[str, Array]:
    feed: dict[str, Array] = {}
    for value in graph.model.graph.input:
        if value.name in graph.constants:
            continue
        kind: Any = value.type.tensor_type
        shape = [
            d.dim_value if d.HasField("dim_value") else sizes[min(axis, 1)]
            for axis, d in enumerate(kind.shape.dim)
        ]
        feed[value.name] = np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return feed


def _drop_unread(graph: Graph) -> None:
    """Nodes that nobody reads any more."""
    while True:
        read = {n for node in graph.nodes for n in node.input} | graph.outputs | graph.inner
        kept = [node for node in graph.nodes if read.intersection(node.output)]
        if len(kept) == len(graph.nodes):
            return
        graph.nodes = kept
