"""Which arithmetic uses a float initializer, and how it is seen as a matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.graphs.nets import FLOAT, INT64, Array, model, node, normal, to_ir, value

from edgeopt.graphs.sites import MIN_ELEMENTS, Site, find_sites, quantized_ops

W = normal(32, 48)


def sites_of(made: Any) -> dict[str, Site]:
    sites, left = find_sites(to_ir(made).graph)
    names = [s.name for s in sites] + [v.name for v, _ in left]
    floats = [t.name for t in made.graph.initializer if t.data_type in (1, 10, 11, 16)]
    assert sorted(names) == sorted(n for n in floats)
    return {site.name: site for site in sites}


def left_of(made: Any) -> dict[str, str]:
    return {v.name or "": reason for v, reason in find_sites(to_ir(made).graph)[1]}


def product(op: str, w: Array, **attributes: Any) -> Any:
    return model(
        [node(op, ["x", "w"], ["y"], **attributes)], {"x": ["n", "k"]}, {"y": ["n", "m"]}, {"w": w}
    )


CASES: list[tuple[str, Any, str, tuple[int, int], Array]] = [
    ("MatMul", product("MatMul", W), "product", (48, 32), W.T),
    ("Gemm", product("Gemm", W), "product", (48, 32), W.T),
    ("Gemm transB", product("Gemm", W, transB=1), "product", (32, 48), W),
    (
        "MatMul through Transpose",
        model(
            [node("Transpose", ["w"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"], ["y"])],
            {"x": ["n", 48]},
            {"y": ["n", 32]},
            {"w": W},
        ),
        "product",
        (32, 48),
        W,
    ),
    (
        "Gather",
        model(
            [node("Gather", ["w", "i"], ["y"])],
            [value("i", ["n"], INT64)],
            {"y": ["n", 48]},
            {"w": W},
        ),
        "table",
        (32, 48),
        W,
    ),
    (
        "Gather along axis 1",
        model(
            [node("Gather", ["w", "i"], ["y"], axis=1)],
            [value("i", ["n"], INT64)],
            {"y": [32, "n"]},
            {"w": W},
        ),
        "other",
        (32, 48),
        W,
    ),
    (
        "tied",
        model(
            [
                node("Gather", ["w", "i"], ["h"]),
                node("Transpose", ["w"], ["t"]),
                node("MatMul", ["h", "t"], ["y"]),
            ],
            [value("i", ["n"], INT64)],
            {"y": ["n", 32]},
            {"w": W},
        ),
        "tied",
        (32, 48),
        W,
    ),
    (
        "Conv",
        model(
            [node("Conv", ["x", "w"], ["y"])],
            {"x": ["n", 8, "t"]},
            {"y": ["n", 32, "u"]},
            {"w": W.reshape(32, 8, 6)},
        ),
        "conv",
        (32, 48),
        W,
    ),
    (
        "LSTM",
        model(
            [node("LSTM", ["x", "w", "r"], ["y"], hidden_size=8)],
            {"x": ["t", "n", 48]},
            {"y": ["t", 1, "n", 8]},
            {"w": W.reshape(1, 32, 48), "r": normal(1, 32, 8)},
        ),
        "recurrent",
        (32, 48),
        W,
    ),
    (
        "first operand of MatMul",
        model([node("MatMul", ["w", "x"], ["y"])], {"x": [48, "m"]}, {"y": [32, "m"]}, {"w": W}),
        "other",
        (32, 48),
        W,
    ),
    ("Gemm transA", product("Gemm", W, transA=1), "other", (32, 48), W),
    (
        "batched MatMul",
        model(
            [node("MatMul", ["x", "w"], ["y"])],
            {"x": [4, "n", 8]},
            {"y": [4, "n", 48]},
            {"w": W.reshape(4, 8, 48)},
        ),
        "other",
        (32, 48),
        W,
    ),
    (
        "stored both ways round",
        model(
            [
                node("MatMul", ["x", "w"], ["a"]),
                node("Gemm", ["a", "w"], ["y"], transB=1),
            ],
            {"x": ["n", 32]},
            {"y": ["n", 32]},
            {"w": W},
        ),
        "other",
        (32, 48),
        W,
    ),
    (
        "Gather and something else",
        model(
            [node("Gather", ["w", "i"], ["y"]), node("Neg", ["w"], ["z"])],
            [value("i", ["n"], INT64)],
            {"y": ["n", 48], "z": [32, 48]},
            {"w": W},
        ),
        "other",
        (32, 48),
        W,
    ),
]


@pytest.mark.parametrize(
    ("made", "kind", "shape", "matrix"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_kinds(made: Any, kind: str, shape: tuple[int, int], matrix: Array) -> None:
    site = sites_of(made)["w"]
    assert (site.kind, site.matrix_shape) == (kind, shape)
    np.testing.assert_array_equal(site.matrix(), matrix)
    assert site.matrix().flags.c_contiguous and site.matrix().dtype == np.float32
    assert site.nbytes == W.nbytes and site.dtype == "float32"
    assert site.shape == tuple(made.graph.initializer[0].dims)


def test_operators_for_a_person() -> None:
    assert sites_of({c[0]: c[1] for c in CASES}["tied"])["w"].op == "Gather+MatMul"


def test_what_is_left_alone_says_why() -> None:
    made = model(
        [
            node("MatMul", ["x", "w"], ["m"]),
            node("Add", ["m", "bias"], ["a"]),
            node("Mul", ["a", "gain"], ["b"]),
            node("MatMul", ["b", "little"], ["y"]),
        ],
        {"x": ["n", 32]},
        {"y": ["n", 2], "shown": [32, 32]},
        {
            "w": W,
            "bias": normal(48),
            "gain": normal(1, 48, gain=2),
            "little": normal(48, 2),
            "shown": normal(32, 32),
            "nobody": normal(32, 33),
        },
    )
    reasons = left_of(made)
    assert set(sites_of(made)) == {"w"}
    assert "vector" in reasons["bias"] and "vector" in reasons["gain"]
    assert str(MIN_ELEMENTS) in reasons["little"]
    assert "output" in reasons["shown"]
    assert "no node" in reasons["nobody"]


def test_long_vectors_are_no_matrices() -> None:
    made = model(
        [node("Mul", ["x", "gain"], ["y"])],
        {"x": ["n", 1024, 3, 3]},
        {"y": ["n", 1024, 3, 3]},
        {"gain": normal(1, 1024, 1, 1)},
    )
    assert "vector" in left_of(made)["gain"]


def test_integers_and_empty_tensors_are_not_listed() -> None:
    made = model(
        [node("Gather", ["table", "i"], ["y"]), node("Concat", ["y", "none"], ["z"], axis=0)],
        [value("i", ["n"], INT64)],
        {"z": ["m", 32]},
        {"table": W.T.copy(), "none": np.zeros((0, 32), np.float32)},
    )
    sites, left = find_sites(to_ir(made).graph)
    assert [s.name for s in sites] == ["table"] and not left


def test_half_precision_weights_are_found() -> None:
    made = model(
        [node("MatMul", ["x", "w"], ["y"])],
        {"x": ["n", 32]},
        {"y": ["n", 48]},
        {"w": W.astype(np.float16)},
        dtype=TensorProto.FLOAT16,
    )
    assert sites_of(made)["w"].dtype == "float16"


def test_a_consumer_in_a_subgraph_counts() -> None:
    def branch(name: str, op: str) -> Any:
        return helper.make_graph([node(op, ["h", "w"], [name])], name, [], [value(name, ["n", 48])])

    made = model(
        [
            node("Relu", ["x"], ["h"]),
            node(
                "If",
                ["flag"],
                ["y"],
                then_branch=branch("a", "MatMul"),
                else_branch=branch("b", "Gemm"),
            ),
        ],
        [value("x", ["n", 32]), value("flag", [], TensorProto.BOOL)],
        [value("y", ["n", 48], FLOAT)],
        {"w": W},
    )
    site = sites_of(made)["w"]
    assert site.kind == "product" and len(site.uses) == 2 and site.op == "Gemm+MatMul"


def test_other_domains_are_not_taken_for_the_standard_operator() -> None:
    made = model(
        [node("MatMul", ["x", "w"], ["y"], domain="com.example")],
        {"x": ["n", 32]},
        {"y": ["n", 48]},
        {"w": W},
    )
    assert sites_of(made)["w"].kind == "other"


def test_quantized_operators_are_recognised() -> None:
    made = model(
        [node("DequantizeLinear", ["q", "s"], ["w"]), node("MatMul", ["x", "w"], ["y"])],
        {"x": ["n", 32]},
        {"y": ["n", 48]},
        {"q": np.ones((32, 48), np.int8), "s": np.float32(0.1)},
    )
    assert quantized_ops(to_ir(made)) == {"DequantizeLinear": 1}
    assert quantized_ops(to_ir(product("MatMul", W))) == {}
