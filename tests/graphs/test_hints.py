from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeopt.data.synthetic import Hint
from edgeopt.graphs.hints import input_hints


def model(nodes, constants, **inputs):
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, **kw) for op, ins, outs, kw in nodes],
        "g",
        [helper.make_tensor_value_info(n, t, ["b", "s"]) for n, t in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


TABLE = np.zeros((50, 4), np.float32)


@pytest.mark.parametrize(
    ("nodes", "constants", "hint"),
    [
        ([("Gather", ["t", "i"], ["y"], {})], {"t": TABLE}, Hint(0, 50)),
        ([("Gather", ["t", "i"], ["y"], {"axis": 1})], {"t": TABLE}, Hint(0, 4)),
        (
            [
                ("Cast", ["i"], ["c"], {"to": TensorProto.INT32}),
                ("Reshape", ["c", "m"], ["r"], {}),
                ("Gather", ["t", "r"], ["y"], {}),
            ],
            {"t": TABLE, "m": np.array([-1])},
            Hint(0, 50),
        ),
        (
            [("Add", ["i", "k"], ["a"], {}), ("Gather", ["t", "a"], ["y"], {})],
            {"t": TABLE, "k": np.array(2)},
            Hint(0, 48),
        ),
        (
            [("Sub", ["i", "k"], ["a"], {}), ("Gather", ["t", "a"], ["y"], {})],
            {"t": TABLE, "k": np.array(2)},
            Hint(2, 52),
        ),
        (
            [
                ("Gather", ["t", "i"], ["g"], {}),
                ("Gather", ["u", "i"], ["h"], {}),
                ("Add", ["g", "h"], ["y"], {}),
            ],
            {"t": TABLE, "u": TABLE[:7]},
            Hint(0, 7),
        ),
        (
            [("OneHot", ["i", "d", "v"], ["y"], {})],
            {"d": np.array(9), "v": np.array([0, 1], np.float32)},
            Hint(0, 9),
        ),
        (
            [
                ("Constant", [], ["t"], {"value": numpy_helper.from_array(TABLE)}),
                ("Gather", ["t", "i"], ["y"], {}),
            ],
            {},
            Hint(0, 50),
        ),
    ],
)
def test_ids_stay_below_their_table(nodes, constants, hint):
    proto = model(nodes, constants, i=TensorProto.INT64)
    assert input_hints(proto) == {"i": hint}


def test_masks_floats_and_what_tells_nothing(tmp_path):
    proto = model(
        [
            ("Cast", ["attention_mask"], ["m"], {"to": TensorProto.FLOAT}),
            ("Cast", ["n"], ["c"], {"to": TensorProto.FLOAT}),
            ("Add", ["n", "n"], ["unused"], {}),
            ("Add", ["m", "c"], ["s"], {}),
            ("Add", ["s", "x"], ["y"], {}),
        ],
        {},
        attention_mask=TensorProto.INT64,
        n=TensorProto.INT64,
        x=TensorProto.FLOAT,
    )
    assert input_hints(proto) == {"attention_mask": Hint(0, 2, "mask")}
    table = {"t": TABLE}
    outside = model([("Gather", ["t", "i"], ["y"], {})], table, i=TensorProto.INT64)
    path = tmp_path / "m.onnx"
    onnx.save(outside, path, save_as_external_data=True, location="w", size_threshold=0)
    (tmp_path / "w").unlink()
    assert input_hints(path) == {"i": Hint(0, 50)}
