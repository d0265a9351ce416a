"""Which outputs lie between 0 and 1 whatever goes in."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from edgeopt.graphs.chances import probability_outputs


def found(tmp_path, nodes, output="y"):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    out = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [value, flag], [out])
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return probability_outputs(path)


def node(op, inputs, output, **more):
    return helper.make_node(op, inputs.split(), [output], **more)


def branch(op):
    out = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    return helper.make_graph([node(op, "x", "b")], op, [], [out])


@pytest.mark.parametrize(
    ("nodes", "bounded"),
    [
        ([node("Sigmoid", "x", "y")], True),
        ([node("Softmax", "x", "a"), node("Reshape", "a x", "y")], True),
        ([node("Sigmoid", "x", "a"), node("ReduceMean", "a", "y")], True),
        ([node("Sigmoid", "x", "a"), node("Concat", "a a", "y", axis=0)], True),
        ([node("Sigmoid", "x", "a"), node("Concat", "a x", "y", axis=0)], False),
        ([node("Sigmoid", "x", "a"), node("Mul", "a x", "y")], False),
        ([node("Relu", "x", "y")], False),
        ([node("Tanh", "x", "y")], False),
    ],
)
def test_bounded_by_what_made_it(tmp_path, nodes, bounded):
    assert found(tmp_path, nodes) == (("y",) if bounded else ())


@pytest.mark.parametrize(("other", "bounded"), [("Sigmoid", True), ("Relu", False)])
def test_both_branches_count(tmp_path, other, bounded):
    parts = {"then_branch": branch("Sigmoid"), "else_branch": branch(other)}
    nodes = [helper.make_node("If", ["flag"], ["y"], **parts)]
    assert found(tmp_path, nodes) == (("y",) if bounded else ())
