"""Exported programs with something wrong in them: one typed error each."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeopt.errors import FormatError, SourceError
from edgeopt.files import torch_zip

CONFIG = "x/data/weights/model_weights_config.json"
MODEL = "x/models/model.json"


def ints(*values: int) -> list[dict[str, int]]:
    return [{"as_int": v} for v in values]


def members() -> dict[str, Any]:
    """The least that is an exported program: one weight of two floats, one input."""
    meta = {
        "dtype": 7,
        "sizes": ints(2),
        "strides": ints(1),
        "storage_offset": {"as_int": 0},
    }
    symbol = {"as_expr": {"expr_str": "2*Symbol('s0', positive=True, integer=True)"}}
    return {
        "x/archive_format": b"pt2",
        "x/byteorder": b"little",
        "x/data/weights/weight_0": bytes(8),
        CONFIG: {"config": {"w": {"path_name": "weight_0", "is_param": True, "tensor_meta": meta}}},
        MODEL: {
            "graph_module": {
                "graph": {"tensor_values": {"in": {"dtype": 6, "sizes": [symbol, *ints(4)]}}},
                "signature": {
                    "input_specs": [{"user_input": {"arg": {"as_tensor": {"name": "in"}}}}]
                },
            }
        },
    }


def write(path: Path, parts: dict[str, Any], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as out:
        for name, data in parts.items():
            out.writestr(name, data if isinstance(data, (bytes, str)) else json.dumps(data))
    return path


def test_the_least_program(tmp_path: Path) -> None:
    source = torch_zip.describe(write(tmp_path / "x.pt2", members()))
    assert [str(i) for i in source.inputs] == ["in: float16[2*s0, 4]"]
    assert source.weights[0].array().tolist() == [0, 0]


def weight(parts: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = parts[CONFIG]["config"]["w"]
    return found


def program(parts: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = parts[MODEL]["graph_module"]
    return found


Change = Callable[[dict[str, Any]], Any]
BROKEN: dict[str, tuple[str, Change]] = {
    "no JSON": ("no sound JSON", lambda p: p.update({CONFIG: b"{"})),
    "deep JSON": ("no sound JSON", lambda p: p.update({CONFIG: b"[" * 200_000})),
    "a list": ("no JSON object", lambda p: p.update({CONFIG: b"[]"})),
    "many values": ("more than 5", lambda p: p.update({MODEL: b"[" + b"0," * 800_001})),
    "large": ("the limit is 20000000", lambda p: p.update({MODEL: b" " * 20_000_001})),
    "no config": ("no config", lambda p: p.update({CONFIG: b"{}"})),
    "no record": ("the record of w is missing", lambda p: weight(p).update(path_name="y")),
    "no path": ("the record of w is missing", lambda p: weight(p).update(path_name=None)),
    "no meta": ("dtype of w is unknown", lambda p: weight(p).update(tensor_meta=None)),
    "dtype": ("dtype of w is unknown", lambda p: weight(p)["tensor_meta"].update(dtype=99)),
    "dtype list": ("dtype of w is unknown", lambda p: weight(p)["tensor_meta"].update(dtype=[])),
    "past the end": (
        "needs 12 bytes",
        lambda p: weight(p)["tensor_meta"].update(sizes=ints(3)),
    ),
    "negative": (
        "no list of sizes",
        lambda p: weight(p)["tensor_meta"].update(sizes=ints(-1)),
    ),
    "no sizes": ("no list of sizes", lambda p: weight(p)["tensor_meta"].update(sizes=None)),
    "strides": (
        "strides of w do not fit",
        lambda p: weight(p)["tensor_meta"].update(strides=ints(1, 1)),
    ),
    "no weights": ("without weights", lambda p: p.update({CONFIG: {"config": {}}})),
    "no program": ("no program", lambda p: p.pop(MODEL)),
    "no signature": ("no graph signature", lambda p: program(p).pop("signature")),
    "no graph": ("no graph signature", lambda p: program(p).pop("graph")),
    "no value": (
        "input in has no dtype",
        lambda p: program(p)["graph"].update(tensor_values={}),
    ),
    "dimension": (
        "neither number nor symbol",
        lambda p: program(p)["graph"]["tensor_values"]["in"].update(sizes=[{}]),
    ),
    "pickled": (
        "no end record",
        lambda p: weight(p).update(use_pickle=True),
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_programs(tmp_path: Path, case: str) -> None:
    problem, change = BROKEN[case]
    parts = members()
    change(parts)
    with pytest.raises(SourceError, match=problem) as caught:
        torch_zip.describe(write(tmp_path / "x.pt2", parts))
    assert "\n" not in str(caught.value)


def test_compressed_weights(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="compressed weight"):
        torch_zip.describe(write(tmp_path / "x.pt2", members(), zipfile.ZIP_DEFLATED))
    parts = members()
    weight(parts)["use_pickle"] = True
    with pytest.raises(FormatError, match="compressed torch file"):
        torch_zip.describe(write(tmp_path / "x.pt2", parts, zipfile.ZIP_DEFLATED))


def test_pickled_weights_and_custom_objects(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.arange(3.0), tmp_path / "w.pt")
    parts = members()
    parts["x/data/weights/weight_1"] = (tmp_path / "w.pt").read_bytes()
    parts["x/data/constants/custom_obj_0"] = b"never opened"
    parts[CONFIG]["config"]["v"] = {"path_name": "weight_1", "use_pickle": True}
    parts["x/data/constants/model_constants_config.json"] = {
        "config": {"o": {"path_name": "custom_obj_0", "use_pickle": True}}
    }
    source = torch_zip.describe(write(tmp_path / "x.pt2", parts))
    assert [w.name for w in source.weights] == ["w", "v"]
    assert source.weights[1].array().tolist() == [0, 1, 2]


def test_weights_in_one_torch_file(tmp_path: Path) -> None:
    """torch 2.8 kept all weights of a program in one torch file inside the archive."""
    torch = pytest.importorskip("torch")
    torch.save({"module.a": torch.ones(2), "module.b": torch.zeros(1)}, tmp_path / "w.pt")
    parts = members()
    del parts[CONFIG]
    parts["x/data/weights/model.pt"] = (tmp_path / "w.pt").read_bytes()
    parts["x/data/constants/model.pt"] = b""
    source = torch_zip.describe(write(tmp_path / "x.pt2", parts))
    assert [w.name for w in source.weights] == ["module.a", "module.b"]
    assert source.weights[0].array().tolist() == [1, 1]


def test_old_layout_without_weights(tmp_path: Path) -> None:
    parts = {"version": b"8.8", "serialized_exported_program.json": members()[MODEL]}
    with pytest.raises(FormatError, match=r"torch 2\.2 or later"):
        torch_zip.describe(write(tmp_path / "x.pt2", parts))
