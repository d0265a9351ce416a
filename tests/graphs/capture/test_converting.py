"""A model raised to another opset answers as it did: ONNX Runtime says, before and after."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidGraph, RuntimeException
from tests.graphs.capture.operator_cases import CASES, Held, OperatorCase, opsets

from edgeopt.graphs.capture.converting import converted_model
from edgeopt.graphs.capture.opset import raise_opset

BY_OP = {
    op: list(cases) for op, cases in groupby(sorted(CASES, key=lambda c: c.op), lambda c: c.op)
}

#: Operators that onnx's converter leaves wrong, which are put right beside it.
REWRITTEN = (
    "BatchNormalization",
    "Dropout",
    "GroupNormalization",
    "Hardmax",
    "Resize",
    "ThresholdedRelu",
    "Upsample",
)


def _run(model: onnx.ModelProto, feed: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feed))


def _as_it_is(model: onnx.ModelProto) -> onnx.ModelProto:
    return model


def _free(model: onnx.ModelProto) -> onnx.ModelProto:
    """No size is known before it runs."""
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"{value.name}_{axis}"
    return model


def _in_a_branch(model: onnx.ModelProto) -> onnx.ModelProto:
    """Both branches do what the graph did, one with weights of its own, one with outer ones."""
    graph = model.graph
    names = [value.name for value in graph.output]
    then = helper.make_graph(
        list(graph.node), "then", [], list(graph.output), list(graph.initializer)
    )
    weights = {tensor.name for tensor in graph.initializer}
    for tensor in then.initializer:
        tensor.name = f"t_{tensor.name}"
    for node in then.node:
        node.input[:] = [f"t_{name}" if name in weights else name for name in node.input]
    other = helper.make_graph(list(graph.node), "other", [], list(graph.output))
    for node in other.node:
        node.output[:] = [f"o_{name}" if name else "" for name in node.output]
    for value in other.output:
        value.name = f"o_{value.name}"
    results = [f"r_{name}" for name in names]
    node = helper.make_node("If", ["go"], results, then_branch=then, else_branch=other)
    go = helper.make_tensor_value_info("go", TensorProto.BOOL, [])
    made = helper.make_graph(
        [node],
        "g",
        [go, *graph.input],
        [helper.make_empty_tensor_value_info(name) for name in results],
        list(graph.initializer),
    )
    return helper.make_model(made, opset_imports=model.opset_import, ir_version=8)


def _hold(cases: list[OperatorCase], form: Callable[[onnx.ModelProto], onnx.ModelProto]) -> int:
    ran = 0
    for case in cases:
        for opset in opsets(case):
            model, feed = case.build(opset)
            model = form(model)
            if form is _in_a_branch:
                feed["go"] = np.array(case.outputs == 1)
            try:
                wanted = _run(model, feed)
            except (
                Fail,
                InvalidGraph,
                RuntimeException,
            ):  # an operator that ONNX Runtime lacks at this opset
                continue
            before = model.SerializeToString()
            got = _run(converted_model(model, 21), feed)
            assert model.SerializeToString() == before
            for a, b in zip(wanted, got, strict=True):
                where = f"{case.op} of opset {opset}, {case.attributes}"
                assert (a.shape, a.dtype) == (b.shape, b.dtype), where
                if a.dtype == object:
                    assert a.tolist() == b.tolist(), where
                else:
                    np.testing.assert_allclose(a, b, 1e-4, 1e-5, err_msg=where)
            ran += 1
    return ran


@pytest.mark.parametrize("op", BY_OP)
def test_an_operator_answers_as_before(op: str) -> None:
    assert _hold(BY_OP[op], _as_it_is)


@pytest.mark.parametrize("op", REWRITTEN)
@pytest.mark.parametrize("form", [_free, _in_a_branch])
def test_what_is_put_right_is_so_everywhere(
    op: str, form: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> None:
    assert _hold(BY_OP[op], form)


@pytest.mark.slow
@pytest.mark.parametrize("op", BY_OP)
@pytest.mark.parametrize("form", [_free, _in_a_branch])
def test_every_operator_everywhere(
    op: str, form: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> None:
    assert _hold(BY_OP[op], form)


def test_a_mask_of_dropout_that_is_read_keeps_the_file_as_it_is(tmp_path: Path) -> None:
    """Its type and its values changed, and nothing says the old ones."""
    x = np.ones((2, 3), np.float32)
    model, feed = OperatorCase("Dropout", 10, 10, (x,), 2, {}).build(10)
    onnx.save(model, tmp_path / "old.onnx")
    reached, notes = raise_opset(tmp_path / "old.onnx", 21, [feed], tmp_path / "new.onnx")
    assert reached == 10 and "answers otherwise" in notes[0]
    assert not (tmp_path / "new.onnx").exists()


def test_weights_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the converter is given has none of the bytes: it copies all that it sees."""
    weight = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)
    x = np.ones((1, 256), np.float32)
    model, feed = OperatorCase("MatMul", 7, 20, (x, Held(weight)), 1, {}).build(13)
    real, seen = onnx.version_converter.convert_version, []

    def convert(given: onnx.ModelProto, opset: int) -> onnx.ModelProto:
        seen.append(given.ByteSize())
        return real(given, opset)

    monkeypatch.setattr(onnx.version_converter, "convert_version", convert)
    made = converted_model(model, 21)
    assert seen and max(seen) < 4096 < weight.nbytes
    np.testing.assert_array_equal(_run(model, feed)[0], _run(made, feed)[0])


def test_sequences_of_an_old_scan_are_scanned_one_by_one() -> None:
    text = """<ir_version: 4, opset_import: ["" : 8]>
    agraph (float[b,5,3] x, float[b,4] s) => (float[b,4] last, float[b,5,4] all) {
      last, all = Scan<num_scan_inputs=1, directions=[1], body = step
        (float[4] state, float[3] v) => (float[4] next, float[4] each)
        { p = MatMul(v, W)  q = Add(p, state)  next = Tanh(q)  each = Identity(next) }>(none, s, x)
    }"""
    model = onnx.parser.parse_model(text)
    model.graph.node[0].input[0] = ""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((3, 4)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "W"))
    feed = {
        "x": rng.standard_normal((2, 5, 3)).astype(np.float32),
        "s": rng.standard_normal((2, 4)).astype(np.float32),
    }
    for a, b in zip(_run(model, feed), _run(converted_model(model, 21), feed), strict=True):
        np.testing.assert_allclose(a, b, 1e-5, 1e-6)
