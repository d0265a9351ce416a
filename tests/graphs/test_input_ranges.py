"""What a graph tells of the floats it takes, against the numbers it was made from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.core import InputSpec
from edgeopt.data.synthetic import synthetic
from edgeopt.graphs.hints import input_hints

RNG = np.random.default_rng(0)
MEAN, STD = np.float32([123, 116, 103]), np.float32([58, 57, 60])


def model(nodes: list[Any], arrays: dict[str, Any], dtype: int = TensorProto.FLOAT) -> Any:
    graph = helper.make_graph(
        [helper.make_node(op, ins.split(), outs.split(), **kw) for op, ins, outs, kw in nodes],
        "g",
        [helper.make_tensor_value_info("x", dtype, ["n", 3, "h", "w"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()],
    )
    return helper.make_model(graph)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def channels(values: Any) -> Any:
    return np.reshape(values, (1, 3, 1, 1))


CONV = ("Conv", "b w", "y", {})
W = {"w": normal(16, 3, 3, 3)}


@pytest.mark.parametrize(
    ("nodes", "arrays", "mean", "std"),
    [
        (
            [("Sub", "x m", "a", {}), ("Div", "a s", "b", {}), CONV],
            {"m": channels(MEAN), "s": channels(STD), **W},
            MEAN,
            STD,
        ),
        (
            [("Mul", "x k", "a", {}), ("Add", "a c", "b", {}), CONV],
            {"k": np.float32(2 / 255), "c": np.float32(-1), **W},
            [127.5],
            [127.5],
        ),
        ([("Div", "x k", "b", {}), CONV], {"k": np.float32(255), **W}, [127.5], [63.75]),
        (
            [("BatchNormalization", "x g c m v", "b", {}), CONV],
            {"g": np.ones(3, "f4"), "c": np.ones(3, "f4"), "m": MEAN, "v": STD**2, **W},
            MEAN,
            STD,
        ),
        (
            [("Div", "x k", "a", {}), ("BatchNormalization", "a g c m v", "b", {}), CONV],
            {
                "k": np.float32(255),
                "g": np.ones(3, "f4"),
                "c": np.ones(3, "f4"),
                "m": MEAN / 255,
                "v": (STD / 255) ** 2,
                **W,
            },
            MEAN,
            STD,
        ),
    ],
    ids=["mean and deviation", "to -1 and 1", "to 0 and 1", "first norm", "scaled, then norm"],
)
def test_a_normalisation_tells_what_it_normalises(nodes, arrays, mean, std):
    hint = input_hints(model(nodes, arrays))["x"]
    np.testing.assert_allclose(hint.mean, np.broadcast_to(mean, len(hint.mean)), rtol=1e-5)
    np.testing.assert_allclose(hint.std, np.broadcast_to(std, len(hint.std)), rtol=1e-5)
    made = synthetic([InputSpec("x", "float32", (1, 3, 64, 64))], {"x": hint}, count=16)
    images = np.concatenate([feed["x"] for feed in made])
    np.testing.assert_allclose(images.mean((0, 2, 3)), np.broadcast_to(mean, 3), rtol=0.15)
    np.testing.assert_allclose(images.std((0, 2, 3)), np.broadcast_to(std, 3), rtol=0.15)


def test_the_norm_behind_the_first_convolution_tells_it_too():
    weight = normal(16, 3, 3, 3)
    coarse = RNG.standard_normal((8, 3, 16, 16)).repeat(4, 2).repeat(4, 3)
    images = channels(MEAN) + 57 * coarse
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(2, 3))
    after = np.einsum("nchwij,ocij->onhw", windows, weight).reshape(16, -1)
    nodes = [("Conv", "x w", "a", {}), ("BatchNormalization", "a g c m v", "y", {})]
    ones = np.ones(16, np.float32)
    stats = {"m": after.mean(1).astype("f4"), "v": after.var(1).astype("f4")}
    hint = input_hints(model(nodes, {"w": weight, "g": ones, "c": ones, **stats}))["x"]
    np.testing.assert_allclose(hint.mean, images.mean((0, 2, 3)), rtol=0.02)
    assert hint.std[0] == pytest.approx(57, rel=0.2)


@pytest.mark.parametrize(
    ("nodes", "arrays"),
    [
        ([("Conv", "x w", "y", {})], W),
        ([("Mul", "x x", "y", {})], {}),
        ([("Div", "k x", "y", {})], {"k": np.float32(1)}),
        ([("Mul", "x k", "y", {})], {"k": np.float32(0)}),
        ([("Add", "x k", "a", {}), ("Add", "x a", "y", {})], {"k": normal(1, 3, 64, 64)}),
    ],
)
def test_what_tells_nothing_is_left_out(nodes, arrays):
    assert input_hints(model(nodes, arrays)) == {}


def test_bytes_are_all_of_their_range():
    made = next(iter(synthetic([InputSpec("x", "uint8", (1, 3, 64, 64))])))["x"]
    assert (made.dtype, int(made.min()), int(made.max())) == (np.uint8, 0, 255)


def test_how_coarse_the_coarsest_map_is():
    down = {"strides": [2, 2], "pads": [1] * 4}
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        ("Conv", "x w", "a", down),
        ("MaxPool", "a", "b", pool),
        ("Conv", "b v", "c", down),
        ("ConvTranspose", "c v", "d", {"strides": [2, 2]}),
        ("Identity", "b", "y", {}),
    ]
    proto = model(nodes, {"w": normal(8, 3, 3, 3), "v": normal(8, 8, 3, 3)})
    assert input_hints(proto)["x"].stride == 8


def test_lone_integers_know_what_they_are_compared_with():
    then = helper.make_graph(
        [helper.make_node("Equal", ["sr", "other"], ["q2"])],
        "then",
        [],
        [helper.make_tensor_value_info("q2", TensorProto.BOOL, [])],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["sr"], ["c"], to=TensorProto.INT64),
            helper.make_node("Equal", ["c", "rate"], ["q"]),
            helper.make_node("If", ["q"], ["y"], then_branch=then, else_branch=then),
        ],
        "g",
        [helper.make_tensor_value_info("sr", TensorProto.INT64, [])],
        [helper.make_tensor_value_info("y", TensorProto.BOOL, [])],
        [
            numpy_helper.from_array(np.array(16000), "rate"),
            numpy_helper.from_array(np.array(8000), "other"),
        ],
    )
    assert set(input_hints(helper.make_model(graph))["sr"].values) == {16000, 8000}


@pytest.mark.parametrize(
    ("node", "weight", "known"),
    [
        (("MatMul", "x w", "y", {}), (77, 8), ((-1, 77),)),
        (("Gemm", "x w", "y", {"transB": 1}), (8, 77), ((-1, 77),)),
        (("Conv", "x w", "y", {"group": 2}), (8, 3, 3, 3), ()),  # the file says 3 itself
        (("Add", "x w", "y", {}), (77, 8), ()),
    ],
)
def test_products_ask_for_sizes(node, weight, known):
    proto = model([node], {"w": normal(*weight)})
    hint = input_hints(proto).get("x")
    assert (hint.known if hint else ()) == known
