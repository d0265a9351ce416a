"""Small ONNX sources, written with onnx's own helpers: one for every kind of weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["conv_net", "mlp", "tied", "weights", "write"]

Arrays = Mapping[str, NDArray[Any]]


def weights(**shapes: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
    """Normal weights of variance 1 / fan-in, the same every time."""
    rng = np.random.default_rng(0)
    return {
        name: (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)
        for name, shape in shapes.items()
    }


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    arrays: Arrays,
    x: tuple[int, list[int | str]],
    *,
    opset: int = 21,
) -> Path:
    """A model with one input ``x`` (dtype, shape) and one float output ``y``."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", *x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    ids = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=ids, ir_version=10), path)
    return path


def mlp(path: Path, *, opset: int = 21, arrays: Arrays | None = None, act: str = "Relu") -> Path:
    """MatMul and Gemm."""
    arrays = {**weights(w0=(64, 128), w1=(32, 128), b=(32,)), **(arrays or {})}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node(act, ["a"], ["h"]),
        helper.make_node("Gemm", ["h", "w1", "b"], ["y"], transB=1),
    ]
    return write(path, nodes, arrays, (TensorProto.FLOAT, ["batch", 64]), opset=opset)


def conv_net(path: Path, *, opset: int = 17) -> Path:
    """Conv with batch normalisation behind it, then a Gemm."""
    arrays = weights(k=(32, 8, 3, 3), g=(32,), be=(32,), m=(32,), w=(32, 40), c=(40,))
    arrays["v"] = np.linspace(0.5, 2, 32, dtype=np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "g", "be", "m", "v"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "c"], ["y"]),
    ]
    return write(path, nodes, arrays, (TensorProto.FLOAT, ["batch", 8, 12, 12]), opset=opset)


def tied(path: Path) -> Path:
    """Two tables, one of them also the output's weight, and a GRU between them."""
    arrays = weights(t=(96, 64), s=(96, 64), W=(1, 192, 64), R=(1, 192, 64))
    for name in ("W", "R"):
        arrays[name] /= 16  # a recurrence that forgets: rounding must not grow from step to step
    arrays["zero"] = np.array([1], np.int64)  # type: ignore[assignment]
    nodes = [
        helper.make_node("Gather", ["t", "x"], ["e0"]),
        helper.make_node("Gather", ["s", "x"], ["e1"]),
        helper.make_node("Add", ["e0", "e1"], ["e"]),
        helper.make_node("GRU", ["e", "W", "R"], ["hs"], hidden_size=64),
        helper.make_node("Squeeze", ["hs", "zero"], ["h"]),
        helper.make_node("Transpose", ["t"], ["tt"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "tt"], ["y"]),
    ]
    return write(path, nodes, arrays, (TensorProto.INT64, ["sequence", "batch"]))
