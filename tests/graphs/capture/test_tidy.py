from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.core import InputSpec
from edgeopt.graphs.capture import tidy
from edgeopt.graphs.capture.tidy import load, save

RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((40, 32)).astype(np.float32)
SPEC = InputSpec("ids", "int64", ("batch", "sequence"))


def _model(path, table_name="table", dims=("s0", "s1")):
    nodes = [
        helper.make_node("Gather", [table_name, "ids"], ["h"]),
        helper.make_node("MatMul", ["h", "val_7"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["s0", "made_up", 40])],
        [
            numpy_helper.from_array(TABLE, table_name),
            numpy_helper.from_array(np.ascontiguousarray(TABLE.T), "val_7"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


def _run(path):
    ids = np.array([[1, 2, 3]])
    return onnxruntime.InferenceSession(path).run(None, {"ids": ids})[0]


def test_a_tied_table_is_stored_once_and_the_answer_stays(tmp_path):
    raw = _model(tmp_path / "raw.onnx", "inner.table")
    before = _run(raw)
    free = save(load(raw), tmp_path / "m.onnx", [SPEC], {"alias": TABLE, "table": TABLE})
    assert free == ("batch", "sequence")
    model = onnx.load(tmp_path / "m.onnx")
    assert [i.name for i in model.graph.initializer] == ["table"]
    assert [n.op_type for n in model.graph.node] == ["Gather", "Transpose", "MatMul"]
    np.testing.assert_array_equal(_run(tmp_path / "m.onnx"), before)


def test_a_transposed_weight_gets_its_parameters_name(tmp_path):
    raw = _model(tmp_path / "raw.onnx", "other")
    before = _run(raw)
    save(load(raw), tmp_path / "m.onnx", [SPEC], {"head.weight": TABLE})
    names = {i.name for i in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert names == {"other", "head.weight"}
    np.testing.assert_array_equal(_run(tmp_path / "m.onnx"), before)


def test_a_layer_used_twice_is_stored_once(tmp_path):
    square = RNG.standard_normal((32, 32)).astype(np.float32)
    copies = [numpy_helper.from_array(np.ascontiguousarray(square.T), f"val_{i}") for i in (1, 2)]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "val_1"], ["h"]),
            helper.make_node("MatMul", ["h", "val_2"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 32])],
        copies,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save(model, tmp_path / "raw.onnx")
    save(load(tmp_path / "raw.onnx"), tmp_path / "m.onnx", [], {"layer.weight": square})
    assert [i.name for i in onnx.load(tmp_path / "m.onnx").graph.initializer] == ["layer.weight"]
    x = RNG.standard_normal((3, 32)).astype(np.float32)
    got = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": x})[0]
    np.testing.assert_allclose(got, x @ square.T @ square.T, rtol=1e-4, atol=1e-3)


def test_dimensions_carry_the_names_of_the_specs(tmp_path):
    raw = _model(tmp_path / "raw.onnx")
    save(load(raw), tmp_path / "m.onnx", [SPEC], {}, [("batch", "sequence", None)])
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert session.get_inputs()[0].shape == ["batch", "sequence"]
    assert session.get_outputs()[0].shape == ["batch", "sequence", 40]


def test_a_dimension_that_came_out_fixed_is_not_free(tmp_path):
    raw = _model(tmp_path / "raw.onnx", dims=("s0", "3"))
    assert save(load(raw), tmp_path / "m.onnx", [SPEC], {}) == ("batch",)
    assert onnxruntime.InferenceSession(tmp_path / "m.onnx").get_inputs()[0].shape == ["batch", 3]


def test_recurrent_weights_get_the_name_of_their_layer(tmp_path):
    w, r = (RNG.standard_normal((1, 32, n)).astype(np.float32) for n in (4, 8))
    node = helper.make_node(
        "LSTM", ["x", "onnx::1", "onnx::2"], ["y"], name="/inner/encoder/LSTM", hidden_size=8
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", "b", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, "onnx::1"), numpy_helper.from_array(r, "onnx::2")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save(model, tmp_path / "raw.onnx")
    save(load(tmp_path / "raw.onnx"), tmp_path / "m.onnx", [], {})
    names = [i.name for i in onnx.load(tmp_path / "m.onnx").graph.initializer]
    assert names == ["encoder.LSTM.W", "encoder.LSTM.R"]


@pytest.mark.parametrize(("limit", "external"), [(10**9, False), (1000, True)])
def test_past_the_limit_tensors_go_beside_the_file(tmp_path, monkeypatch, limit, external):
    raw = _model(tmp_path / "raw.onnx")
    before = _run(raw)
    monkeypatch.setattr(tidy, "EXTERNAL_OVER", limit)
    save(load(raw), tmp_path / "m.onnx", [SPEC], {})
    assert (tmp_path / "m.onnx.data").exists() == external
    np.testing.assert_array_equal(_run(tmp_path / "m.onnx"), before)
