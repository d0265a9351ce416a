"""Small ONNX graphs from a few lines, and ways to run and to look into them."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
Shape = Sequence[int | str]

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64

node = helper.make_node


def value(name: str, shape: Shape | None, dtype: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: Sequence[Any],
    inputs: Mapping[str, Shape] | Sequence[Any],
    outputs: Mapping[str, Shape | None] | Sequence[Any],
    weights: Mapping[str, Array],
    *,
    opset: int = 21,
    dtype: int = FLOAT,
) -> Any:
    """A checked ModelProto; ``inputs`` and ``outputs`` are of ``dtype`` unless given as protos."""

    def infos(values: Any) -> list[Any]:
        if isinstance(values, Mapping):
            return [value(name, shape, dtype) for name, shape in values.items()]
        return list(values)

    graph = helper.make_graph(
        list(nodes),
        "net",
        infos(inputs),
        infos(outputs),
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    domains = {n.domain for n in nodes} - {""}
    opsets += [helper.make_opsetid(domain, 1) for domain in sorted(domains)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if not domains:
        onnx.checker.check_model(made)
    return made


def normal(*shape: int, seed: int = 0, gain: float = 1.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(shape) * gain).astype(np.float32)


def session(made: Any, *, optimized: Path | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    data = str(made) if isinstance(made, Path) else made.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(made: Any, **feeds: Array) -> list[Array]:
    """What ONNX Runtime computes, in the order of the outputs."""
    return list(session(made).run(None, feeds))


def to_ir(made: Any) -> ir.Model:
    return ir.from_proto(made)


def to_proto(made: ir.Model) -> Any:
    proto = ir.to_proto(made)
    onnx.checker.check_model(proto)
    return proto


def ops(made: Any) -> Counter[str]:
    """Operators of the main graph, counted."""
    return Counter(n.op_type for n in made.graph.node)


def optimized_ops(made: Any) -> tuple[Counter[str], Any]:
    """Operators that are left once ONNX Runtime has opened a session, and the graph itself."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        session(made, optimized=path)
        loaded = onnx.load(path)
    return ops(loaded), loaded


def arrays(made: Any) -> dict[str, Array]:
    return {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}


def close_db(reference: Array, got: Array) -> float:
    """SQNR in decibels; inf when equal."""
    ref, new = np.asarray(reference, np.float64), np.asarray(got, np.float64)
    assert ref.shape == new.shape
    noise = float(np.square(ref - new).sum())
    return float("inf") if noise == 0 else 10 * np.log10(float(np.square(ref).sum()) / noise)
