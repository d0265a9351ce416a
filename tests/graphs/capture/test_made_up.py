"""Inputs that nobody gave, on ONNX files: what they run on, and what is said where none will do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import CaptureError, InputsError
from edgeopt.graphs.capture.feeds_file import read_feed

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
RNG = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def save(path: Path, nodes: list[Any], inputs: dict[str, Any], **arrays: Any) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, *how) for name, how in inputs.items()],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()],
    )
    ids = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=ids, ir_version=10), path)
    return path


node = helper.make_node


def branch(name: str, weight: str) -> Any:
    made = helper.make_tensor_value_info(name, FLOAT, None)
    return helper.make_graph([node("MatMul", ["x", weight], [name])], name, [], [made])


def shapes(answer: dict[str, Any]) -> dict[str, Any]:
    feed = read_feed(Path(answer["example"]))
    return {name: array.shape for name, array in feed.items()}


@pytest.mark.parametrize("side", [28, 32, 224])
def test_a_picture_of_the_one_size_that_a_product_allows(tmp_path, work, side):
    cells = (side // 4) ** 2
    nodes = [
        node("Conv", ["x", "w"], ["a"], strides=[4, 4]),
        node("Flatten", ["a"], ["f"]),
        node("MatMul", ["f", "g"], ["y"]),
    ]
    arrays = {"w": normal(2, 3, 4, 4), "g": normal(2 * cells, 4)}
    path = save(tmp_path / "m.onnx", nodes, {"x": (FLOAT, [None, 3, None, None])}, **arrays)
    answer = work(path)
    assert shapes(answer) == {"x": (1, 3, side, side)}
    assert answer["batches"]


def test_ids_and_their_mask_agree_without_names(tmp_path, work):
    nodes = [
        node("Mul", ["ids", "mask"], ["a"]),
        node("Gather", ["t", "a"], ["y"]),
    ]
    inputs = {"ids": (INT64, [None, None]), "mask": (INT64, [None, None])}
    found = shapes(work(save(tmp_path / "m.onnx", nodes, inputs, t=normal(50, 8))))
    assert found == {"ids": (1, 32), "mask": (1, 32)}


@pytest.mark.parametrize(("rate", "size"), [(16000, 512), (8000, 256)])
def test_a_rate_is_one_that_the_graph_knows(tmp_path, work, rate, size):
    """As voice detectors have it: another branch, and another size, for each rate."""
    nodes = [
        node("Equal", ["sr", "c"], ["q"]),
        node("If", ["q"], ["y"], then_branch=branch("a", "wa"), else_branch=branch("b", "wb")),
    ]
    arrays = {"c": np.array(rate), "wa": normal(size, 4), "wb": normal(7777, 4)}
    inputs = {"x": (FLOAT, [None, None]), "sr": (INT64, [])}
    answer = work(save(tmp_path / "m.onnx", nodes, inputs, **arrays))
    assert shapes(answer) == {"x": (1, size), "sr": ()}
    assert int(read_feed(Path(answer["example"]))["sr"]) == rate


def test_a_batch_that_is_stuck_at_one_is_found_out(tmp_path, work):
    nodes = [node("Reshape", ["x", "s"], ["y"])]
    path = save(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["n", 4])}, s=np.array([1, 4]))
    assert not work(path)["batches"]


@pytest.mark.parametrize("dims", [["n"], [None, 2]])
def test_strings_are_asked_for_by_name(tmp_path, work, dims):
    nodes = [node("StringConcat", ["text", "text"], ["t"]), node("Size", ["t"], ["n"])]
    nodes.append(node("Cast", ["n"], ["y"], to=FLOAT))
    path = save(tmp_path / "m.onnx", nodes, {"text": (STRING, dims)})
    with pytest.raises(InputsError, match=r"input text takes str.*give --data"):
        work(path)


def test_given_strings_are_run_on(tmp_path, work):
    nodes = [node("StringConcat", ["text", "text"], ["t"]), node("Size", ["t"], ["n"])]
    nodes.append(node("Cast", ["n"], ["y"], to=FLOAT))
    path = save(tmp_path / "m.onnx", nodes, {"text": (STRING, ["n"])})
    assert shapes(work(path, example={"text": np.array(["a", "bc"])})) == {"text": (2,)}


def test_a_first_row_is_laid_out_as_every_row_is(tmp_path, work):
    nodes = [node("ReduceSum", ["h"], ["s"]), node("Mul", ["s", "scales"], ["a"])]
    nodes.append(node("ReduceMax", ["x"], ["m"]))
    nodes.append(node("Add", ["a", "m"], ["y"]))
    inputs = {
        "x": (FLOAT, ["n", "t"]),
        "h": (FLOAT, [2, "n", 4]),
        "scales": (FLOAT, [3]),
    }
    path = save(tmp_path / "m.onnx", nodes, inputs)
    rows = {"x": normal(1, 5), "h": normal(1, 2, 1, 4), "scales": normal(1, 3)}
    assert shapes(work(path, example=rows)) == {"x": (1, 5), "h": (2, 1, 4), "scales": (3,)}


# ---------------------------------------------------------------------------------------------
# answers that differ from run to run


def drop(name: str) -> list[Any]:
    return [
        node("Constant", [], ["p"], value_float=0.5),
        node("Constant", [], ["on"], value=numpy_helper.from_array(np.array(True))),
        node("Dropout", ["x", "p", "on"], ["y"], name=name),
    ]


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([node("RandomNormalLike", ["x"], ["y"], name="z")], r"RandomNormalLike \(z\) draws"),
        ([node("RandomUniform", [], ["r"], shape=[1]), node("Mul", ["x", "r"], ["y"])], "Uniform"),
        ([node("Bernoulli", ["half"], ["b"], dtype=FLOAT), node("Mul", ["x", "b"], ["y"])], "Bern"),
        (drop("d"), r"Dropout \(d\) draws"),
    ],
    ids=["normal", "uniform", "bernoulli", "dropout in training"],
)
def test_noise_inside_is_refused_for_what_it_is(tmp_path, work, nodes, said):
    path = save(
        tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["n", 64])}, half=np.full((1, 64), 0.5, "f4")
    )
    with pytest.raises(CaptureError, match=f"differ from run to run.*{said}.*no file can answer"):
        work(path)


def test_noise_in_a_branch_or_a_function_is_named_too(tmp_path, work):
    body = [node("RandomNormalLike", ["v"], ["r"]), node("Add", ["v", "r"], ["w"])]
    function = helper.make_function(
        "my", "Noisy", ["v"], ["w"], body, [helper.make_opsetid("", 21)]
    )
    made = helper.make_tensor_value_info("b", FLOAT, None)
    noisy = helper.make_graph([node("Noisy", ["x"], ["b"], domain="my")], "b", [], [made])
    nodes = [
        node("Constant", [], ["q"], value=numpy_helper.from_array(np.array(True))),
        node("If", ["q"], ["y"], then_branch=noisy, else_branch=noisy),
    ]
    path = save(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["n", 64])})
    whole = onnx.load(path)
    whole.functions.append(function)
    whole.opset_import.append(helper.make_opsetid("my", 1))
    onnx.save(whole, path)
    with pytest.raises(CaptureError, match=r"differ from run to run.*RandomNormalLike"):
        work(path)


def test_noise_that_an_input_turns_off_is_no_reason(tmp_path, work):
    nodes = [
        node("RandomNormalLike", ["x"], ["r"]),
        node("Mul", ["r", "noise_scale"], ["s"]),
        node("Add", ["x", "s"], ["y"]),
    ]
    inputs = {"x": (FLOAT, ["n", 64]), "noise_scale": (FLOAT, [1])}
    path = save(tmp_path / "m.onnx", nodes, inputs)
    feed = {"x": normal(1, 64), "noise_scale": np.zeros(1, "f4")}
    assert work(path, example=feed)["notes"] == []
    small = {**feed, "noise_scale": np.full(1, 0.005, "f4")}
    (tmp_path / "room").rename(tmp_path / "before")
    (note,) = work(path, example=small)["notes"]
    assert "differ from run to run" in note
    (tmp_path / "room").rename(tmp_path / "then")
    loud = {**feed, "noise_scale": np.ones(1, "f4")}
    with pytest.raises(CaptureError, match="set noise_scale in --data so that nothing is drawn"):
        work(path, example=loud)


def test_noise_that_no_output_shows_is_no_reason(tmp_path, work):
    nodes = [node("RandomNormalLike", ["x"], ["r"]), node("Relu", ["x"], ["y"])]
    assert work(save(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["n", 8])}))["notes"] == []


def test_a_seed_of_its_own_is_noted(tmp_path, work):
    nodes = [
        node("RandomNormalLike", ["x"], ["r"], seed=3.0),
        node("Add", ["x", "r"], ["y"]),
    ]
    (note,) = work(save(tmp_path / "m.onnx", nodes, {"x": (FLOAT, ["n", 8])}))["notes"]
    assert note == "the source draws at random (RandomNormalLike), from a seed of its own"


class Careless(torch.nn.Module):
    """Dropout whose author forgot self.training: on in evaluation, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(self.a(x))


def test_a_torch_model_that_draws_at_random_is_refused_for_what_it_is(tmp_path, work):
    torch.save(Careless().state_dict(), tmp_path / "m.pt")
    with pytest.raises(CaptureError, match=r"differ from run to run.*self\.training"):
        work(tmp_path / "m.pt", model=f"{__name__}:Careless")
