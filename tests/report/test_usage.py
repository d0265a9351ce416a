"""The five lines, executed as they stand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.core import InputSpec
from edgeopt.report.usage import usage_lines
from edgeopt.runtimes.onnxruntime import OnnxSession


def save(path: Path, body: str, inputs: str, outputs: str) -> Path:
    text = f'<ir_version: 10, opset_import: ["": 21]> g ({inputs}) => ({outputs}) {{ {body} }}'
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def lines_of(path: Path, **options: object) -> str:
    session = OnnxSession.open(path)
    return usage_lines(path, session.inputs, session.outputs, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "inputs", "outputs", "shapes"),
    [
        ("y = Neg(x)", "float[batch, 3] x", "float[batch, 3] y", [(1, 3)]),
        ("y = Neg(x)", "float16[N, C, H, W] x", "float16[N, C, H, W] y", [(1, 224, 224, 224)]),
        ("y = Neg(x)", "float x", "float y", [()]),
        (
            "y = Gather(w, ids) k = Not(mask)",
            "int64[batch, seq] ids, bool[batch] mask, float[4, 2] w",
            "float[batch, seq, 2] y, bool[batch] k",
            [(1, 16, 2), (1,)],
        ),
    ],
)
def test_they_run(
    tmp_path: Path, body: str, inputs: str, outputs: str, shapes: list[tuple[int, ...]]
) -> None:
    path = save(tmp_path / "odd \"name's.onnx", body, inputs, outputs)
    code = lines_of(path)
    assert len(code.splitlines()) == 5
    scope: dict[str, object] = {}
    exec(code, scope)
    results = scope["outputs"]
    assert isinstance(results, list)
    assert [np.shape(value) for value in results] == shapes
    for spec in OnnxSession.open(path).inputs:
        assert str(spec) in code


def test_known_shapes_are_taken(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", "y = Neg(x)", "float[N, T] x", "float[N, T] y")
    scope: dict[str, object] = {}
    exec(lines_of(path, shapes={"x": (2, 7)}), scope)
    assert np.shape(scope["outputs"][0]) == (2, 7)  # type: ignore[index]


def test_names_from_a_file_stay_in_their_place() -> None:
    evil = InputSpec("x\nimport os", "float32", (1,))
    code = usage_lines(Path("m.onnx"), [evil], [evil])
    assert len(code.splitlines()) == 5
    compile(code, "usage", "exec")


def test_strings_are_given_as_objects() -> None:
    code = usage_lines(Path("m.onnx"), [InputSpec("s", "str", ("N",))], [])
    assert 'np.full((1,), "text", object)' in code
    compile(code, "usage", "exec")
