"""A graph that cannot be brought to the opset that 4-bit types need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeopt
from edgeopt.errors import SourceError
from edgeopt.targets.onnx import target as verb


def test_four_bits_need_the_opset_that_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    # As if the converter had failed: no model at hand makes it fail on purpose.
    monkeypatch.setattr(verb, "FOUR_BIT_OPSET", 22)
    with pytest.raises(SourceError, match=r"opset 21, 4-bit types need 22.*use --bits 8"):
        edgeopt.quantize(path, bits=4)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
