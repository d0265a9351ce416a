"""What an ONNX file may declare and few tools read: put into the form that all of them do.

Sparse tensors become dense ones (onnx-ir drops them), and functions that name another opset than
the model's, where their operators are the same ones, name the model's (onnx-ir's inliner refuses
them; where they differ, ONNX Runtime does not run the model).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgeopt.graphs.capture.limits import EXTERNAL_OVER

__all__ = ["plain_file"]


def plain_file(path: Path, workdir: Path) -> Path:
    """The file itself, or one in ``workdir`` that says the same in plainer words."""
    bare = onnx.load(str(path), load_external_data=False)
    sparse = any(graph.sparse_initializer or _sparse_nodes(graph) for graph in _graphs(bare.graph))
    if not sparse and not _foreign_functions(bare):
        return path
    model = onnx.load(str(path))
    _adopt_functions(model)
    for graph in _graphs(model.graph):
        _densify(graph)
    made = workdir / "plain.onnx"
    over = sum(t.ByteSize() for t in model.graph.initializer) > EXTERNAL_OVER
    onnx.save(model, str(made), save_as_external_data=over, location="plain.onnx.data")
    return made


def _foreign_functions(model: onnx.ModelProto) -> bool:
    """Whether a function asks for another version of a domain than the model."""
    have = {_domain(o.domain): o.version for o in model.opset_import}
    return any(
        have.get(_domain(o.domain), o.version) != o.version
        for function in model.functions
        for o in function.opset_import
    )


def _adopt_functions(model: onnx.ModelProto) -> None:
    """The model's opset for functions whose operators are the same there."""
    have = next((o.version for o in model.opset_import if not _domain(o.domain)), None)
    for function in model.functions:
        for asked in function.opset_import:
            if have is None or _domain(asked.domain):
                continue
            graph = onnx.GraphProto(node=function.node)
            nodes = (node for inner in _graphs(graph) for node in inner.node)
            plain = {node.op_type for node in nodes if not _domain(node.domain)}
            if all(_since(op, have) == _since(op, asked.version) for op in plain):
                asked.version = have


def _since(op: str, opset: int) -> int:
    """The opset that brought an operator as it is at ``opset``."""
    try:
        return int(onnx.defs.get_schema(op, opset).since_version)
    except onnx.defs.SchemaError:
        return -opset


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _sparse_nodes(graph: onnx.GraphProto) -> list[Any]:
    return [n for n in graph.node if any(a.name == "sparse_value" for a in n.attribute)]


def _densify(graph: onnx.GraphProto) -> None:
    for sparse in graph.sparse_initializer:
        graph.initializer.append(_dense(sparse, sparse.values.name))
    del graph.sparse_initializer[:]
    for node in _sparse_nodes(graph):
        dense = _dense(node.attribute[0].sparse_tensor, node.output[0])
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("value", dense))


def _dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = np.zeros(tuple(sparse.dims), values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return numpy_helper.from_array(dense, name)
