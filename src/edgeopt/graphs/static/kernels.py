"""What the runtime made of a graph: its own optimized copy, counted."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from edgeopt.graphs.static.graph import op_counts

__all__ = ["integer_kernels", "optimized_ops"]

#: Operators of ONNX Runtime's CPU provider that compute in integers, by name.
_INTEGER = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QGemm",
        "QLinearAdd",
        "QLinearAveragePool",
        "QLinearConcat",
        "QLinearConv",
        "QLinearGlobalAveragePool",
        "QLinearLeakyRelu",
        "QLinearMatMul",
        "QLinearMul",
        "QLinearSigmoid",
        "QLinearSoftmax",
        "QLinearWhere",
    }
)


def optimized_ops(model: Path | Any) -> Counter[str]:
    """Every operator of the graph that ONNX Runtime's CPU provider runs after optimizing it."""
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        return op_counts(onnx.load(path, load_external_data=False).graph)


def integer_kernels(model: Path | Any) -> Counter[str]:
    """The integer operators among :func:`optimized_ops`; ``model`` is a path or a ModelProto."""
    return Counter({op: n for op, n in optimized_ops(model).items() if op in _INTEGER})
