"""Sum in the place of a residual Add: the same numbers, and no fusion."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from tests.graphs.nets import model, node, normal, ops, optimized_ops, run, to_ir, to_proto

from edgeopt.graphs.tune import TUNES, can_tune, tune

WIDTH = 32


def block(*, shown: bool = False, twice: bool = False) -> Any:
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Add", ["m", "x"], ["r"]),
        node("LayerNormalization", ["r", "gain", "bias"], ["n"]),
        node("MatMul", ["n", "w"], ["m2"]),
        node("Add", ["m2", "r" if twice else "n"], ["r2"]),
        node("LayerNormalization", ["r2", "gain", "bias"], ["y"]),
    ]
    outputs = {"y": ["b", "t", WIDTH]} | ({"r": ["b", "t", WIDTH]} if shown else {})
    weights = {"w": normal(WIDTH, WIDTH, gain=0.2), "gain": normal(WIDTH), "bias": normal(WIDTH)}
    return model(nodes, {"x": ["b", "t", WIDTH]}, outputs, weights)


def tuned(made: Any, value: str) -> Any:
    graph = to_ir(made)
    tune(graph.graph, value)
    return to_proto(graph)


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("shown", [False, True])
def test_sum_computes_the_same(shown: bool, twice: bool) -> None:
    made = block(shown=shown, twice=twice)
    after = tuned(made, "sum")
    assert ops(after)["Sum"] == 2 and "Add" not in ops(after)
    assert [o.name for o in after.graph.output] == [o.name for o in made.graph.output]
    x = normal(2, 3, WIDTH, seed=1)
    for want, got in zip(run(made, x=x), run(after, x=x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_the_runtime_fuses_one_and_not_the_other() -> None:
    fused, _ = optimized_ops(block())
    assert fused["SkipLayerNormalization"] == 2
    apart, _ = optimized_ops(tuned(block(), "sum"))
    assert "SkipLayerNormalization" not in apart and apart["LayerNormalization"] == 2


def test_add_leaves_the_graph_alone() -> None:
    assert tuned(block(), "add").graph == to_proto(to_ir(block())).graph


def test_whether_there_is_a_choice() -> None:
    assert can_tune(to_ir(block()).graph)
    assert not can_tune(to_ir(tuned(block(), "sum")).graph)
    plain = model(
        [node("Add", ["x", "x"], ["a"]), node("Relu", ["a"], ["y"])], {"x": [4]}, {"y": [4]}, {}
    )
    assert not can_tune(to_ir(plain).graph)
    assert set(TUNES) == {"add", "sum"}


def test_an_input_straight_into_the_norm() -> None:
    made = model(
        [node("LayerNormalization", ["x", "gain"], ["y"])],
        {"x": ["n", WIDTH]},
        {"y": ["n", WIDTH]},
        {"gain": normal(WIDTH)},
    )
    graph: ir.Model = to_ir(made)
    tune(graph.graph, "sum")
    assert ops(to_proto(graph)) == {"LayerNormalization": 1}
