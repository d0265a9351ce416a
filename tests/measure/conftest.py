"""Small ONNX files, written with onnx's own helpers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.measure import pair

INPUT, CLASSES = 16, 10


def write_mlp(
    path: Path,
    *,
    hidden: int = 32,
    noise: float = 0.0,
    output: str = "y",
    classes: int = CLASSES,
    tail: tuple[str, ...] = (),
    external: bool = False,
) -> Path:
    """Two dense layers, ``x: float32[batch, 16]`` to ``[batch, classes]``, then ``tail``.

    The same weights every time; ``noise`` disturbs them by that share of their spread.
    """
    rng = np.random.default_rng(0)
    spoil = np.random.default_rng(1)
    arrays = {}
    for name, shape in (("w0", (INPUT, hidden)), ("w1", (hidden, classes))):
        clean = rng.standard_normal(shape) / np.sqrt(shape[0])
        arrays[name] = clean + noise * clean.std() * spoil.standard_normal(shape)
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["h"]),
        helper.make_node("MatMul", ["h", "w1"], ["t0"]),
    ]
    for i, op in enumerate(tail):
        nodes.append(helper.make_node(op, [f"t{i}"], [f"t{i + 1}"]))
    nodes.append(helper.make_node("Identity", [f"t{len(tail)}"], [output]))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", INPUT])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(
        model,
        path,
        save_as_external_data=external,
        location=f"{path.stem}.bin",
        size_threshold=0,
    )
    return path


def write_text(path: Path, body: str, inputs: str, outputs: str) -> Path:
    """A model in onnx's text form: its nodes, inputs and outputs."""
    text = f'<ir_version: 10, opset_import: ["": 21]> g ({inputs}) => ({outputs}) {{ {body} }}'
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.fixture
def mlp(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str = "source.onnx", **options: object) -> Path:
        return write_mlp(tmp_path / name, **options)  # type: ignore[arg-type]

    return write


@pytest.fixture
def graph(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, body: str, inputs: str, outputs: str) -> Path:
        return write_text(tmp_path / name, body, inputs, outputs)

    return write


@pytest.fixture
def side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the six processes that load each file alone: a test of something else."""
    monkeypatch.setattr(pair, "_alone", lambda place, job, progress: ([], []))


@pytest.fixture
def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(7)
    return [{"x": rng.standard_normal((1, INPUT)).astype(np.float32)} for _ in range(5)]
