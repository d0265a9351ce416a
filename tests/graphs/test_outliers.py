"""Outlier channels: found from inputs, taken out exactly, and worth several decibels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.graphs.nets import (
    Array,
    close_db,
    model,
    node,
    normal,
    optimized_ops,
    run,
    to_ir,
    to_proto,
)

from edgeopt.core import Decision
from edgeopt.graphs.forms import FORMS, Placing
from edgeopt.graphs.outliers import Outliers, find_outliers, split_outliers
from edgeopt.graphs.sites import find_sites
from edgeopt.graphs.transform import apply_decisions

WIDTH, MASSIVE = 128, (7, 90)


def gains(factor: float = 60.0) -> Array:
    gain = np.ones(WIDTH, np.float32)
    gain[list(MASSIVE)] = factor
    return gain


def transformer_like(factor: float = 60.0, **gemm: Any) -> Any:
    """h has two massive channels and feeds a MatMul and a Gemm; their product feeds another."""
    # The rows behind the massive channels are small, as training makes them.
    weights = {
        name: normal(WIDTH, 96, seed=i) / np.sqrt(gains(factor))[:, None]
        for i, name in enumerate(("wq", "wk"))
    }
    wk = weights["wk"].T.copy() if gemm.get("transB") else weights["wk"]
    return model(
        [
            node("Relu", ["x"], ["r"]),
            node("Mul", ["r", "gain"], ["h"]),
            node("MatMul", ["h", "wq"], ["q"]),
            node("Gemm", ["h", "wk", "bias"], ["k"], **gemm),
            node("Tanh", ["q"], ["t"]),
            node("MatMul", ["t", "wo"], ["y"]),
        ],
        {"x": ["n", WIDTH]},
        {"q": ["n", 96], "k": ["n", 96], "y": ["n", 64]},
        {
            "gain": gains(factor),
            "wq": weights["wq"],
            "wk": wk,
            "bias": normal(96),
            "wo": normal(96, 64, seed=3),
        },
    )


def feeds(count: int = 3) -> list[dict[str, Array]]:
    return [{"x": normal(16, WIDTH, seed=100 + i)} for i in range(count)]


def found(made: Any, folder: Path) -> tuple[Outliers, ...]:
    path = folder / "base.onnx"
    onnx.save(made, path)
    return find_outliers(path, feeds(), folder)


def split(made: Any, splits: dict[str, Any]) -> Any:
    graph = to_ir(made)
    split_outliers(graph.graph, splits)
    return to_proto(graph)


def quantized(made: Any) -> Any:
    graph = to_ir(made)
    form = FORMS["matmul-integer"]
    decisions = {}
    for site in find_sites(graph.graph)[0]:
        if site.kind == "product":
            scheme = form.scheme(site, 8, 64, True, "float32")
            decisions[site.name] = Decision(
                site.name, site.op, "rtn", form.name, scheme, "", 0, site.shape
            )
    apply_decisions(graph, decisions, Placing())
    return to_proto(graph)


def test_the_massive_channels_are_found(tmp_path: Path) -> None:
    best = found(transformer_like(), tmp_path)[0]
    assert best.activation == "h" and best.channels == MASSIVE
    assert set(best.tensors) == {"wq", "wk"} and best.benefit > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base.onnx"], "nothing is left behind"


def test_even_activations_are_left_alone(tmp_path: Path) -> None:
    assert found(transformer_like(1.0), tmp_path) == ()


def test_taking_them_out_gains_several_decibels(tmp_path: Path) -> None:
    made = transformer_like()
    splits = {o.activation: o.channels for o in found(made, tmp_path)}
    before, after = quantized(made), quantized(split(made, splits))
    x = feeds()[0]["x"]
    want = run(made, x=x)
    plain = [close_db(w, g) for w, g in zip(want, run(before, x=x), strict=True)]
    better = [close_db(w, g) for w, g in zip(want, run(after, x=x), strict=True)]
    assert all(b > p + 5 for b, p in zip(better[:2], plain[:2], strict=True)), (plain, better)
    kinds, _ = optimized_ops(after)
    assert kinds["DynamicQuantizeMatMul"] + kinds["MatMulIntegerToFloat"] == 3


@pytest.mark.parametrize("channels", [(7, 90), (0,), (1, 2, 3, 127)])
@pytest.mark.parametrize("gemm", [{}, {"transB": 1}, {"beta": 0.5}])
def test_the_split_is_exact_whatever_the_channels(
    channels: tuple[int, ...], gemm: dict[str, Any]
) -> None:
    made = transformer_like(**gemm)
    after = split(made, {"h": channels})
    x = normal(5, WIDTH, seed=9)
    assert [o.name for o in after.graph.output] == ["q", "k", "y"]
    for want, got in zip(run(made, x=x), run(after, x=x), strict=True):
        # The rows taken out are stored in float16: 11 bits of precision, some 60 dB.
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-3 * float(np.abs(want).max()))


def test_the_mask_and_the_rows_are_shared_by_the_group() -> None:
    after = split(transformer_like(), {"h": MASSIVE})
    gathers = [n for n in after.graph.node if n.op_type == "Gather"]
    masks = [n for n in after.graph.node if n.op_type == "Mul" and n.input[0] == "h"]
    assert len(gathers) == 1 and len(masks) == 1


def test_a_split_behind_a_split() -> None:
    """The output of one product is the activation of the next."""
    made = model(
        [node("MatMul", ["x", "a"], ["h"]), node("MatMul", ["h", "b"], ["y"])],
        {"x": ["n", 2, WIDTH]},
        {"y": ["n", 2, WIDTH], "h": ["n", 2, WIDTH]},
        {"a": normal(WIDTH, WIDTH), "b": normal(WIDTH, WIDTH, seed=1, gain=0.1)},
    )
    after = split(made, {"x": [3], "h": [5, 6]})
    x = normal(4, 2, WIDTH, seed=2)
    for want, got in zip(run(made, x=x), run(after, x=x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-3 * float(np.abs(want).max()))


def test_what_cannot_be_split_is_not(tmp_path: Path) -> None:
    """Weights seen through a Transpose, narrow products, scaled Gemms, weights used twice."""
    made = model(
        [
            node("Mul", ["x", "gain"], ["h"]),
            node("Transpose", ["w"], ["wt"]),
            node("MatMul", ["h", "wt"], ["a"]),
            node("Gemm", ["h", "v"], ["b"], alpha=0.5),
            node("MatMul", ["h", "u"], ["c"]),
            node("MatMul", ["c", "u"], ["d"]),
            node("Slice", ["h", "zero", "few", "one"], ["s"]),
            node("MatMul", ["s", "narrow"], ["e"]),
        ],
        {"x": ["n", WIDTH]},
        {"a": ["n", 64], "b": ["n", 64], "d": ["n", WIDTH], "e": ["n", 64]},
        {
            "gain": gains(),
            "w": normal(64, WIDTH),
            "v": normal(WIDTH, 64),
            "u": normal(WIDTH, WIDTH),
            "narrow": normal(32, 64),
            "zero": np.array([0]),
            "few": np.array([32]),
            "one": np.array([1]),
        },
    )
    assert found(made, tmp_path) == ()
    assert split(made, {"h": [7]}).graph == to_proto(to_ir(made)).graph


def test_an_activation_that_is_a_constant(tmp_path: Path) -> None:
    """Learned queries times a weight: nothing to watch, and no reason to fail."""
    made = model(
        [
            node("MatMul", ["queries", "w"], ["q"]),
            node("Mul", ["x", "gain"], ["h"]),
            node("MatMul", ["h", "v"], ["k"]),
            node("Add", ["q", "k"], ["y"]),
        ],
        {"x": [300, WIDTH]},
        {"y": [300, 512]},
        {
            "queries": normal(300, WIDTH),
            "w": normal(WIDTH, 512),
            "gain": gains(),
            "v": normal(WIDTH, 512),
        },
    )
    path = tmp_path / "base.onnx"
    onnx.save(made, path)
    best = find_outliers(path, [{"x": normal(300, WIDTH)}], tmp_path)
    assert [o.activation for o in best] == ["h"]


def test_no_products_at_all(tmp_path: Path) -> None:
    made = model([node("Relu", ["x"], ["y"])], {"x": ["n", WIDTH]}, {"y": ["n", WIDTH]}, {})
    assert found(made, tmp_path) == ()


def test_inputs_of_zero_rows_tell_nothing(tmp_path: Path) -> None:
    path = tmp_path / "base.onnx"
    onnx.save(transformer_like(), path)
    assert find_outliers(path, [{"x": np.zeros((0, WIDTH), np.float32)}], tmp_path) == ()
