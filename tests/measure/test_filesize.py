"""File sizes: against onnx's own idea of where tensors are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.errors import FormatError, SourceError
from edgeopt.measure.filesize import external_files, model_nbytes


def test_one_file(mlp: Callable[..., Path]) -> None:
    path = mlp()
    assert external_files(path) == frozenset()
    assert model_nbytes(path) == path.stat().st_size


def test_tensors_beside_it_in_subgraphs_and_attributes(tmp_path: Path) -> None:
    def away(name: str) -> TensorProto:
        array = np.arange(8, dtype=np.float32)
        (tmp_path / f"{name}.bin").write_bytes(array.tobytes())
        tensor = numpy_helper.from_array(array, name)
        onnx.external_data_helper.set_external_data(tensor, location=f"{name}.bin")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        return tensor

    def branch(name: str, tensor: TensorProto) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        node = helper.make_node("Identity", [tensor.name], [name])
        return helper.make_graph([node], name, [], [out], [tensor])

    constant = helper.make_node("Constant", [], ["k"])
    constant.attribute.append(helper.make_attribute("value", away("in_attribute")))
    choose = helper.make_node(
        "If",
        ["c"],
        ["y"],
        then_branch=branch("t", away("in_then")),
        else_branch=branch("e", away("in_else")),
    )
    graph = helper.make_graph(
        [constant, choose],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [away("top"), numpy_helper.from_array(np.ones(4, np.float32), "inside")],
    )
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    names = {"in_attribute.bin", "in_then.bin", "in_else.bin", "top.bin"}
    assert external_files(path) == names
    assert model_nbytes(path) == path.stat().st_size + 4 * 32
    (tmp_path / "top.bin").unlink()
    assert model_nbytes(path) == path.stat().st_size + 3 * 32


def test_no_model_has_the_size_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"\x3a\xff")  # a graph that is said to be longer than the file
    assert model_nbytes(path) == 2
    with pytest.raises(FormatError):
        external_files(path)
    with pytest.raises(SourceError, match="no such file"):
        model_nbytes(tmp_path / "none.onnx")
