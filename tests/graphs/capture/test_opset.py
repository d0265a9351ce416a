from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import CaptureError
from edgeopt.graphs.capture.opset import opset_of, raise_opset


def _save(path, opset, nodes, domains=()):
    w = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, "w")],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def _product(path, opset):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Softmax", ["h"], ["y"], axis=1),
    ]
    return _save(path, opset, nodes)


FEED = {"x": np.random.default_rng(1).standard_normal((2, 8)).astype(np.float32)}


def test_an_old_file_is_raised_beside_it_and_left_alone(tmp_path):
    path = _product(tmp_path / "old.onnx", 13)
    before = path.read_bytes()
    reached, notes = raise_opset(path, 21, [FEED], tmp_path / "new.onnx")
    assert (reached, notes) == (21, ())
    assert opset_of(tmp_path / "new.onnx") == 21
    assert path.read_bytes() == before


def test_a_new_file_is_not_touched(tmp_path):
    path = _product(tmp_path / "new.onnx", 22)
    assert raise_opset(path, 21, [FEED]) == (22, ())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.onnx"]


def test_what_the_converter_cannot_take_keeps_its_opset_with_a_note(tmp_path):
    nodes = [helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft")]
    path = _save(tmp_path / "own.onnx", 13, nodes, ["com.microsoft"])
    reached, notes = raise_opset(path, 21, [FEED], tmp_path / "out.onnx")
    if reached == 13:
        assert notes[0].startswith("the file keeps opset 13 (4-bit types need 21): ")
        assert not (tmp_path / "out.onnx").exists()
    else:
        assert opset_of(tmp_path / "out.onnx") == 21


def test_a_conversion_that_answers_otherwise_is_thrown_away(tmp_path, monkeypatch):
    path = _product(tmp_path / "old.onnx", 13)

    def wrong(model, opset):
        other = onnx.ModelProto()
        other.CopyFrom(model)
        w = numpy_helper.to_array(model.graph.initializer[0])
        other.graph.initializer[0].CopyFrom(numpy_helper.from_array(w[::-1].copy(), "w"))
        return other

    monkeypatch.setattr(onnx.version_converter, "convert_version", wrong)
    reached, notes = raise_opset(path, 21, [FEED], tmp_path / "out.onnx")
    assert reached == 13
    assert "answers otherwise" in notes[0]
    assert [p.name for p in tmp_path.iterdir()] == ["old.onnx"]


def test_an_onnx_source_is_used_where_it_lies(tmp_path, work):
    path = _product(tmp_path / "m.onnx", 21)
    answer = work(path)
    assert answer["model"] == str(path)
    assert answer["rung"] == "onnx as given"
    assert answer["agreement_db"] is None
    assert answer["inputs"] == [["x", "float32", ["batch", 8]]]


def test_an_older_onnx_source_is_raised(tmp_path, work):
    answer = work(_product(tmp_path / "m.onnx", 13), example=FEED)
    assert answer["opset"] == 21
    assert answer["model"] != str(tmp_path / "m.onnx")


def test_an_unknown_operator_is_named(tmp_path, work):
    path = _save(tmp_path / "m.onnx", 21, [helper.make_node("Frobnicate", ["x"], ["y"])])
    with pytest.raises(CaptureError, match=r"onnxruntime cannot load it.*Frobnicate"):
        work(path)


def test_a_file_that_does_not_run_on_any_size(tmp_path, work):
    nodes = [
        helper.make_node("Constant", [], ["s"], value_ints=[77, 77]),
        helper.make_node("Reshape", ["x", "s"], ["y"]),
    ]
    with pytest.raises(CaptureError, match="does not run it on synthetic inputs"):
        work(_save(tmp_path / "m.onnx", 21, nodes))
