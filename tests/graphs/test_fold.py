"""Folding changes the graph, never the function: ONNX Runtime runs both, before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.graphs.nets import (
    FLOAT,
    INT64,
    Array,
    arrays,
    model,
    node,
    normal,
    ops,
    run,
    to_ir,
    to_proto,
    value,
)

from edgeopt.errors import FormatError
from edgeopt.graphs.fold import _merge_equal, constant_array, fold, load_model, set_constant


def folded(made: Any) -> Any:
    return to_proto(fold(to_ir(made)))


def assert_same(made: Any, *, tolerance: float = 1e-5, **feeds: Array) -> Any:
    """Fold, and compare every output on the same feeds; gives the folded model."""
    after = folded(made)
    assert [o.name for o in after.graph.output] == [o.name for o in made.graph.output]
    assert [i.name for i in after.graph.input] == [i.name for i in made.graph.input]
    for want, got in zip(run(made, **feeds), run(after, **feeds), strict=True):
        assert want.dtype == got.dtype
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
    return after


def constant(name: str, array: Array) -> Any:
    return node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(array)))


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


# ---------------------------------------------------------------------------------------------
# what depends on constants alone


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_weights_that_come_as_slices(op: str, gates: int) -> None:
    """As the exporter writes them: one flat initializer, sliced, reordered, unsqueezed."""
    width, hidden = 6, 8
    flat = normal(gates * hidden, width + hidden, gain=0.3)
    nodes = [
        node("Slice", ["flat", "zero", "width", "one"], ["w2"]),
        node("Slice", ["flat", "width", "end", "one"], ["r2"]),
        node("Slice", ["w2", "zero", "half", "zero"], ["w_head"]),
        node("Slice", ["w2", "half", "many", "zero"], ["w_tail"]),
        node("Concat", ["w_tail", "w_head"], ["w_order"], axis=0),
        node("Unsqueeze", ["w_order", "zero"], ["w"]),
        node("Unsqueeze", ["r2", "zero"], ["r"]),
        node(op, ["x", "w", "r"], ["y", "h"], hidden_size=hidden),
    ]
    made = model(
        nodes,
        {"x": ["t", "n", width]},
        {"y": ["t", 1, "n", hidden], "h": [1, "n", hidden]},
        {
            "flat": flat,
            "zero": ints(0),
            "one": ints(1),
            "width": ints(width),
            "end": ints(width + hidden),
            "half": ints(hidden),
            "many": ints(1 << 40),
        },
    )
    after = assert_same(made, x=normal(5, 2, width, seed=1))
    assert ops(after) == {op: 1}
    shapes = {array.shape for array in arrays(after).values()}
    assert (1, gates * hidden, width) in shapes and (1, gates * hidden, hidden) in shapes
    assert len(shapes) == 2 and len(arrays(after)) == 2, "the flat one is gone"


def test_weight_behind_a_transpose_keeps_its_name() -> None:
    made = model(
        [node("Transpose", ["fc.weight"], ["wt"], perm=[1, 0]), node("MatMul", ["x", "wt"], ["y"])],
        {"x": ["n", 16]},
        {"y": ["n", 32]},
        {"fc.weight": normal(32, 16)},
    )
    after = assert_same(made, x=normal(3, 16, seed=1))
    assert ops(after) == {"MatMul": 1}
    assert arrays(after)["fc.weight"].shape == (16, 32)


def test_tied_weight_behind_a_transpose_stays_one_tensor() -> None:
    made = model(
        [
            node("Gather", ["table", "ids"], ["rows"]),
            node("Transpose", ["table"], ["columns"], perm=[1, 0]),
            node("MatMul", ["rows", "columns"], ["y"]),
        ],
        [value("ids", ["n"], INT64)],
        {"y": ["n", 100]},
        {"table": normal(100, 32)},
    )
    after = assert_same(made, ids=ints(3, 99, 0))
    assert ops(after) == {"Gather": 1, "Transpose": 1, "MatMul": 1}
    assert [a.shape for a in arrays(after).values()] == [(100, 32)]


def test_small_shared_tensor_is_folded_all_the_same() -> None:
    made = model(
        [node("Transpose", ["w"], ["wt"]), node("MatMul", ["x", "wt"], ["a"]),
         node("MatMul", ["a", "w"], ["y"])],
        {"x": ["n", 4]},
        {"y": ["n", 4]},
        {"w": normal(4, 4)},
    )  # fmt: skip
    assert ops(assert_same(made, x=normal(2, 4))) == {"MatMul": 2}


def test_expand_of_a_scalar_is_not_written_out() -> None:
    made = model(
        [node("Expand", ["scalar", "shape"], ["mask"]), node("Add", ["x", "mask"], ["y"])],
        {"x": [64, 64]},
        {"y": [64, 64]},
        {"scalar": np.float32([[2.5]]), "shape": ints(64, 64)},
    )
    after = assert_same(made, x=normal(64, 64))
    assert ops(after)["Expand"] == 1
    assert sum(a.nbytes for a in arrays(after).values()) < 100


def test_small_expand_is_folded() -> None:
    made = model(
        [node("Expand", ["scalar", "shape"], ["mask"]), node("Add", ["x", "mask"], ["y"])],
        {"x": [8, 8]},
        {"y": [8, 8]},
        {"scalar": np.float32([[2.5]]), "shape": ints(8, 8)},
    )
    assert ops(assert_same(made, x=normal(8, 8))) == {"Add": 1}


@pytest.mark.parametrize("bounds", [{}, {"start": 1}, {"start": -2}, {"end": 2}, {"end": -1}])
def test_shape_of_static_dimensions(bounds: dict[str, int]) -> None:
    made = model(
        [node("Shape", ["x"], ["s"], **bounds), node("Cast", ["s"], ["y"], to=FLOAT),
         node("Relu", ["x"], ["z"])],
        {"x": [2, 3, 4]},
        {"y": ["n"], "z": [2, 3, 4]},
        {},
    )  # fmt: skip
    after = assert_same(made, x=normal(2, 3, 4))
    assert "Shape" not in ops(after)


def test_shape_of_free_dimensions_stays() -> None:
    made = model(
        [node("Shape", ["x"], ["s"], end=1), node("Cast", ["s"], ["y"], to=FLOAT)],
        {"x": ["n", 3]},
        {"y": [1]},
        {},
    )
    after = assert_same(made, x=normal(7, 3))
    assert ops(after)["Shape"] == 1


def test_constants_nodes_become_initializers() -> None:
    made = model(
        [constant("w", normal(8, 8)), node("MatMul", ["x", "w"], ["y"])],
        {"x": ["n", 8]},
        {"y": ["n", 8]},
        {},
    )
    after = assert_same(made, x=normal(2, 8, seed=1))
    assert ops(after) == {"MatMul": 1} and next(iter(arrays(after).values())).shape == (8, 8)


def test_equal_initializers_become_one() -> None:
    w = normal(40, 40)
    made = model(
        [node("MatMul", ["x", "a"], ["m"]), node("MatMul", ["m", "b"], ["y"])],
        {"x": ["n", 40]},
        {"y": ["n", 40]},
        {"a": w, "b": w.copy()},
    )
    assert len(arrays(assert_same(made, tolerance=1e-4, x=normal(2, 40, seed=1)))) == 1


def test_unused_initializers_and_nodes_go() -> None:
    made = model(
        [node("MatMul", ["x", "w"], ["y"]), node("MatMul", ["x", "dead"], ["nowhere"])],
        {"x": ["n", 8]},
        {"y": ["n", 8]},
        {"w": normal(8, 8), "dead": normal(8, 8, seed=1), "unused": normal(100, 100)},
    )
    after = assert_same(made, x=normal(2, 8, seed=2))
    assert list(arrays(after)) == ["w"]


def test_random_numbers_are_left_to_the_runtime() -> None:
    made = model(
        [node("RandomNormalLike", ["w"], ["noise"]), node("Mul", ["noise", "zero"], ["none"]),
         node("Add", ["x", "none"], ["y"])],
        {"x": [4, 4]},
        {"y": [4, 4]},
        {"w": normal(4, 4), "zero": np.float32(0)},
    )  # fmt: skip
    after = assert_same(made, x=normal(4, 4))
    assert ops(after)["RandomNormalLike"] == 1


def test_an_operator_without_reference_is_left_alone() -> None:
    made = model(
        [node("FusedThing", ["w"], ["v"], domain="com.example"), node("Add", ["x", "v"], ["y"])],
        {"x": [4]},
        {"y": [4]},
        {"w": normal(4)},
    )
    after = ir.to_proto(fold(to_ir(made)))
    assert ops(after) == {"FusedThing": 1, "Add": 1}


def test_constant_output_of_the_model_keeps_its_node() -> None:
    made = model(
        [node("Neg", ["w"], ["const"]), node("Relu", ["x"], ["y"])],
        {"x": [4]},
        {"y": [4], "const": [4]},
        {"w": normal(4)},
    )
    assert_same(made, x=normal(4))


def test_initializers_that_are_also_inputs() -> None:
    """The old way (IR 3): every initializer is listed as an input, and may be overridden."""
    made = model(
        [node("MatMul", ["x", "w"], ["y"])],
        {"x": ["n", 8], "w": [8, 8]},
        {"y": ["n", 8]},
        {"w": normal(8, 8)},
    )
    after = folded(made)
    assert [i.name for i in after.graph.input] == ["x"]
    x = normal(2, 8, seed=1)
    np.testing.assert_allclose(run(after, x=x)[0], run(made, x=x)[0], rtol=1e-6)


def test_function_bodies_are_inlined() -> None:
    body = helper.make_function(
        "local",
        "Twice",
        ["a", "b"],
        ["c"],
        [node("MatMul", ["a", "b"], ["t"]), node("MatMul", ["t", "b"], ["c"])],
        [helper.make_opsetid("", 21)],
    )
    graph = helper.make_graph(
        [node("Twice", ["x", "w"], ["y"], domain="local")],
        "net",
        [value("x", ["n", 8])],
        [value("y", ["n", 8])],
        [numpy_helper.from_array(normal(8, 8), "w")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    made = helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=10)
    after = assert_same(made, x=normal(2, 8, seed=1))
    assert ops(after) == {"MatMul": 2} and not after.functions


# ---------------------------------------------------------------------------------------------
# batch normalisation


def batch_norm(channels: int, seed: int = 5) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "gamma": rng.uniform(-1.5, 1.5, channels).astype(np.float32),
        "beta": rng.standard_normal(channels).astype(np.float32),
        "mean": rng.standard_normal(channels).astype(np.float32),
        "var": rng.uniform(0.1, 2, channels).astype(np.float32),
    }


_NORM = ["gamma", "beta", "mean", "var"]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group", [1, 2, 6])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_batch_norm_goes_into_the_convolution(op: str, group: int, bias: bool) -> None:
    cin, cout = 6, 12
    shape = (cout, cin // group, 3, 3) if op == "Conv" else (cin, cout // group, 3, 3)
    weights = {"w": normal(*shape), **batch_norm(cout)}
    if bias:
        weights["b"] = normal(cout, seed=2)
    made = model(
        [
            node(op, ["x", "w", *(["b"] if bias else [])], ["c"], group=group, strides=[2, 2]),
            node("BatchNormalization", ["c", *_NORM], ["y"], epsilon=1e-3),
        ],
        {"x": ["n", cin, 9, 9]},
        {"y": ["n", cout, "h", "w"]},
        weights,
    )
    after = assert_same(made, tolerance=2e-4, x=normal(2, cin, 9, 9, seed=3))
    assert ops(after) == {op: 1}
    assert len(arrays(after)) == 2, "the old weights and statistics are gone"


def test_batch_norm_between_a_one_dimensional_convolution_and_relu() -> None:
    made = model(
        [
            node("Conv", ["x", "w"], ["c"]),
            node("BatchNormalization", ["c", *_NORM], ["n"]),
            node("Relu", ["n"], ["y"]),
        ],
        {"x": ["b", 4, "t"]},
        {"y": ["b", 8, "u"]},
        {"w": normal(8, 4, 5), **batch_norm(8)},
    )
    after = assert_same(made, tolerance=1e-4, x=normal(2, 4, 20, seed=1))
    assert ops(after) == {"Conv": 1, "Relu": 1}


def test_batch_norm_stays_where_the_convolution_is_used_twice() -> None:
    made = model(
        [
            node("Conv", ["x", "w"], ["c"]),
            node("BatchNormalization", ["c", *_NORM], ["y"]),
            node("Relu", ["c"], ["z"]),
        ],
        {"x": ["b", 4, "t"]},
        {"y": ["b", 8, "u"], "z": ["b", 8, "u"]},
        {"w": normal(8, 4, 5), **batch_norm(8)},
    )
    after = assert_same(made, tolerance=1e-4, x=normal(2, 4, 20, seed=1))
    assert ops(after)["BatchNormalization"] == 1


def test_batch_norm_that_trains_stays() -> None:
    """Its statistics are those of the batch, whatever the initializers say."""
    made = model(
        [
            node("Conv", ["x", "w"], ["c"]),
            node("BatchNormalization", ["c", *_NORM], ["y", "m", "v"], training_mode=1),
        ],
        {"x": ["b", 4, "t"]},
        {"y": ["b", 8, "u"]},
        {"w": normal(8, 4, 5), **batch_norm(8)},
    )
    assert ops(folded(made))["BatchNormalization"] == 1


def test_shared_kernel_under_two_norms_is_left_alone() -> None:
    first, second = batch_norm(8), {f"{k}2": v for k, v in batch_norm(8, 6).items()}
    made = model(
        [
            node("Conv", ["x", "w"], ["c"]),
            node("BatchNormalization", ["c", *_NORM], ["y"]),
            node("Conv", ["x", "w"], ["d"]),
            node("BatchNormalization", ["d", *(f"{n}2" for n in _NORM)], ["z"]),
        ],
        {"x": ["b", 4, "t"]},
        {"y": ["b", 8, "u"], "z": ["b", 8, "u"]},
        {"w": normal(8, 4, 5), **first, **second},
    )
    assert_same(made, tolerance=1e-4, x=normal(2, 4, 20, seed=1))


def test_batch_norm_in_front_of_a_convolution_is_not_folded_backwards() -> None:
    made = model(
        [node("BatchNormalization", ["x", *_NORM], ["n"]), node("Conv", ["n", "w"], ["y"])],
        {"x": ["b", 4, "t"]},
        {"y": ["b", 8, "u"]},
        {"w": normal(8, 4, 5), **batch_norm(4)},
    )
    assert_same(made, tolerance=1e-4, x=normal(2, 4, 20, seed=1))


# ---------------------------------------------------------------------------------------------
# dropout and subgraphs


@pytest.mark.parametrize("mode", [None, False])
def test_dropout_goes(mode: bool | None) -> None:
    inputs = ["h", "ratio"] if mode is None else ["h", "ratio", "mode"]
    weights = {"w": normal(8, 8), "ratio": np.float32(0.5)}
    if mode is not None:
        weights["mode"] = np.array(mode)
    made = model(
        [
            node("MatMul", ["x", "w"], ["h"]),
            node("Dropout", inputs, ["d"]),
            node("Relu", ["d"], ["y"]),
        ],
        {"x": ["n", 8]},
        {"y": ["n", 8]},
        weights,
    )
    after = assert_same(made, x=normal(2, 8, seed=1))
    assert ops(after) == {"MatMul": 1, "Relu": 1}


def test_dropout_with_a_mask_in_use_stays() -> None:
    made = model(
        [node("Dropout", ["x"], ["d", "mask"]), node("Cast", ["mask"], ["y"], to=FLOAT),
         node("Relu", ["d"], ["z"])],
        {"x": ["n", 8]},
        {"y": ["n", 8], "z": ["n", 8]},
        {},
    )  # fmt: skip
    assert ops(assert_same(made, x=normal(2, 8)))["Dropout"] == 1


def test_dropout_that_trains_stays() -> None:
    made = model(
        [node("Dropout", ["x", "ratio", "mode"], ["d"], seed=1), node("Relu", ["d"], ["y"])],
        {"x": ["n", 8]},
        {"y": ["n", 8]},
        {"ratio": np.float32(0.5), "mode": np.array(True)},
    )
    assert ops(folded(made))["Dropout"] == 1


def branches() -> tuple[Any, Any]:
    """Branches of an If that use a weight of the outer graph, and one of their own."""
    then = helper.make_graph([node("MatMul", ["h", "w"], ["t"])], "then", [], [value("t", None)])
    other = helper.make_graph(
        [node("Transpose", ["own"], ["ot"]), node("MatMul", ["h", "ot"], ["e"])],
        "else",
        [],
        [value("e", None)],
        [numpy_helper.from_array(normal(24, 16, seed=9), "own")],
    )
    return then, other


@pytest.mark.parametrize("flag", [True, False])
def test_subgraphs_compute_what_they_did(flag: bool) -> None:
    then, other = branches()
    made = model(
        [
            node("Relu", ["x"], ["h"]),
            node("If", ["flag"], ["y"], then_branch=then, else_branch=other),
        ],
        [value("x", ["n", 16]), value("flag", [], TensorProto.BOOL)],
        {"y": ["n", 24]},
        {"w": normal(16, 24)},
    )
    after = assert_same(made, x=normal(3, 16, seed=1), flag=np.array(flag))
    assert ops(after)["If"] == 1


# ---------------------------------------------------------------------------------------------
# reading and registering


@pytest.mark.parametrize("content", [b"not a model at all", b"\x08\x0a\xff\xff\xff"])
def test_unreadable_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"m\.onnx") as error:
        load_model(path)
    assert "\n" not in str(error.value)


def test_set_constant_makes_names_unique() -> None:
    graph = to_ir(model([node("Relu", ["x"], ["y"])], {"x": [1]}, {"y": [1]}, {})).graph
    first = set_constant(graph, "c", np.float32([1]))
    second = set_constant(graph, "c", np.float32([2]))
    assert first.name != second.name
    array = constant_array(second)
    assert array is not None and array[0] == 2
    assert constant_array(None) is None
    assert constant_array(graph.inputs[0]) is None


def test_float16_and_double_weights_keep_their_type(tmp_path: Path) -> None:
    for dtype, onnx_type in ((np.float16, TensorProto.FLOAT16), (np.float64, TensorProto.DOUBLE)):
        made = model(
            [node("Transpose", ["w"], ["wt"]), node("MatMul", ["x", "wt"], ["y"])],
            {"x": ["n", 40]},
            {"y": ["n", 30]},
            {"w": normal(30, 40).astype(dtype)},
            dtype=onnx_type,
        )
        path = tmp_path / "m.onnx"
        onnx.save(made, path)
        after = to_proto(fold(load_model(path)))
        assert arrays(after)["w"].dtype == dtype and arrays(after)["w"].shape == (40, 30)


def test_equal_initializers_become_one_by_their_bytes() -> None:
    rng = np.random.default_rng(0)
    long = rng.standard_normal(100_000).astype(np.float32)
    middle = long.copy()
    middle[50_000] += 1
    arrays = {
        "a": long,
        "b": long.copy(),
        "c": middle,
        "zero": np.float32([0.0]),
        "minus": np.float32([-0.0]),
        "nan": np.float32([np.nan]),
        "nan2": np.float32([np.nan]),
        "int": np.int32([0]),
        "empty": np.zeros((0, 3), np.float32),
        "empty2": np.zeros((0, 3), np.float32),
    }
    nodes = [
        helper.make_node("Add", ["x", name], [f"y{i}"])
        for i, name in enumerate(arrays)
        if arrays[name].dtype == np.float32
    ]
    nodes.append(helper.make_node("Cast", ["int"], ["y7"], to=TensorProto.FLOAT))
    before = {f"y{i}": array for i, array in enumerate(arrays.values())}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, None) for i in range(10)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    ids = [helper.make_opsetid("", 21)]
    model = ir.from_proto(helper.make_model(graph, opset_imports=ids, ir_version=10))
    _merge_equal(model.graph)
    assert set(model.graph.initializers) == {"a", "c", "zero", "minus", "nan", "int", "empty"}
    for left in model.graph:
        array = left.inputs[-1].const_value.numpy()
        assert array.tobytes() == before[left.outputs[0].name].tobytes()
