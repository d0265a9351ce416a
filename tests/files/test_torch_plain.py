"""Exported programs without trust: what is let through computes the same, what is doctored runs
nothing."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import edgeopt
from edgeopt.errors import UnsafeError
from edgeopt.files.open import open_source
from edgeopt.files.torch_symbols import is_arithmetic
from edgeopt.modules.exported import exported

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"


class Net(nn.Module):
    """Sizes in the graph, a constant, a buffer and a dictionary of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, ids: Any) -> Any:
        x = self.table(ids) * self.scale + torch.tensor([1.0, 2.0, 3.0, 4.0])
        return {"flat": x.reshape(ids.shape[0] * ids.shape[1], 4), "mean": x.mean(1)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    torch.manual_seed(0)
    module = Net().eval()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    ids = torch.randint(0, 9, (2, 5))
    program = torch.export.export(module, (ids,), dynamic_shapes={"ids": {0: batch, 1: length}})
    path = tmp_path_factory.mktemp("plain") / "m.pt2"
    torch.export.save(program, path)
    return path, module


Doctor = Callable[[dict[str, Any], Path], None]


def doctored(path: Path, change: Doctor, out: Path, canary: Path) -> Path:
    """The archive with some members changed; ``change`` is given them by name, JSON parsed."""
    with zipfile.ZipFile(path) as archive:
        members: dict[str, Any] = {
            name.partition("/")[2]: archive.read(name) for name in archive.namelist()
        }
    for name in (MODEL, WEIGHTS, CONSTANTS):
        members[name] = json.loads(members[name])
    change(members, canary)
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            raw = data if isinstance(data, (bytes, str)) else json.dumps(data)
            archive.writestr(f"m/{name}", raw)
    return out


class Gadget:
    def __init__(self, canary: Path) -> None:
        self.canary = str(canary)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.canary,)


def pickled(canary: Path) -> bytes:
    """A torch file that makes a folder when it is unpickled in full."""
    buffer = io.BytesIO()
    torch.save((((Gadget(canary),)), {}), buffer)
    return buffer.getvalue()


def graph(members: dict[str, Any]) -> Any:
    return members[MODEL]["graph_module"]["graph"]


def signature(members: dict[str, Any]) -> Any:
    return members[MODEL]["graph_module"]["signature"]


def call(members: dict[str, Any]) -> Any:
    return members[MODEL]["graph_module"]["module_call_graph"][0]["signature"]


def code(canary: Path) -> str:
    return f"__import__('os').mkdir('{canary}')"


# Each puts code where torch would run it.


def samples(members: dict[str, Any], canary: Path) -> None:
    members[SAMPLES] = pickled(canary)


def raw_samples(members: dict[str, Any], canary: Path) -> None:
    members[SAMPLES] = pickle.dumps(Gadget(canary))


def weight(members: dict[str, Any], canary: Path) -> None:
    entry = members[WEIGHTS]["config"]["table.weight"]
    entry["use_pickle"] = True
    members[f"data/weights/{entry['path_name']}"] = pickled(canary)


def old_weights(members: dict[str, Any], canary: Path) -> None:
    members["data/weights/model.pt"] = pickled(canary)


def constant(members: dict[str, Any], canary: Path) -> None:
    entry = next(iter(members[CONSTANTS]["config"].values()))
    entry["use_pickle"] = True
    members[f"data/constants/{entry['path_name']}"] = pickled(canary)


def opaque(members: dict[str, Any], canary: Path) -> None:
    members["data/constants/opaque_obj_0"] = pickle.dumps(Gadget(canary))
    members[CONSTANTS]["config"]["thing"] = {
        "path_name": "opaque_obj_0",
        "is_param": False,
        "use_pickle": True,
        "tensor_meta": None,
    }


def expression(members: dict[str, Any], canary: Path) -> None:
    for value in graph(members)["tensor_values"].values():
        for size in value["sizes"]:
            if "as_expr" in size:
                size["as_expr"]["expr_str"] = f"{code(canary)} or Integer(2)"
                return


RUN_AT_LOAD = [samples, raw_samples, weight, old_weights, constant, opaque, expression]


def target(members: dict[str, Any], canary: Path) -> None:
    graph(members)["nodes"][0]["target"] = "torch.os.mkdir"
    graph(members)["nodes"][0]["inputs"] = [
        {"name": "", "arg": {"as_string": str(canary)}, "kind": 1}
    ]


def attribute(members: dict[str, Any], canary: Path) -> None:
    graph(members)["nodes"][0]["target"] = "torch.ops.aten.__class__.mro"


def file_reader(members: dict[str, Any], canary: Path) -> None:
    graph(members)["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


def other_namespace(members: dict[str, Any], canary: Path) -> None:
    graph(members)["nodes"][0]["target"] = "torch.ops.mine.op.default"


def node_name(members: dict[str, Any], canary: Path) -> None:
    graph(members)["nodes"][0]["name"] = f"x = {code(canary)}\n    y"


def input_name(members: dict[str, Any], canary: Path) -> None:
    text = json.dumps(members[MODEL]).replace('"ids"', json.dumps(f"ids={code(canary)}"))
    members[MODEL] = json.loads(text)


def keyword(members: dict[str, Any], canary: Path) -> None:
    graph(members)["nodes"][0]["name"] = "lambda"


def parameter(members: dict[str, Any], canary: Path) -> None:
    name = f'table"), {code(canary)}, getattr(self, "table.weight'
    for spec in signature(members)["input_specs"]:
        if "parameter" in spec:
            spec["parameter"]["parameter_name"] = name


def dunder(members: dict[str, Any], canary: Path) -> None:
    for spec in signature(members)["input_specs"]:
        if "buffer" in spec:
            spec["buffer"]["buffer_name"] = "table.__class__"


def tree_type(members: dict[str, Any], canary: Path) -> None:
    call(members)["in_spec"] = call(members)["in_spec"].replace("builtins.dict", "os.path")


def tree_enum(members: dict[str, Any], canary: Path) -> None:
    spec = json.loads(call(members)["out_spec"])
    spec[1]["context"] = json.dumps([{"__enum__": True, "fqn": "os:getcwd", "name": "x"}])
    call(members)["out_spec"] = json.dumps(spec)


def tree_no_json(members: dict[str, Any], canary: Path) -> None:
    call(members)["out_spec"] = "("


def verifier(members: dict[str, Any], canary: Path) -> None:
    members[MODEL]["verifiers"] = ["MINE"]


def library(members: dict[str, Any], canary: Path) -> None:
    members["data/aotinductor/model/model.so"] = b"\x7fELF"


def second_model(members: dict[str, Any], canary: Path) -> None:
    members["models/other.json"] = b"{}"


def script_object(members: dict[str, Any], canary: Path) -> None:
    graph(members)["custom_obj_values"] = {"obj": {"name": "obj", "class_fqn": "x"}}


def unknown_argument(members: dict[str, Any], canary: Path) -> None:
    graph(members)["nodes"][0]["inputs"][0]["arg"] = {"as_operator": "torch.os.mkdir"}


def unknown_field(members: dict[str, Any], canary: Path) -> None:
    members[MODEL]["graph_module"]["hooks"] = [code(canary)]


def number_as_text(members: dict[str, Any], canary: Path) -> None:
    first = next(iter(graph(members)["tensor_values"].values()))
    first["strides"][0] = {"as_int": code(canary)}


def many_symbols(members: dict[str, Any], canary: Path) -> None:
    members[MODEL]["range_constraints"]["u9999999999"] = {"min_val": 0, "max_val": 9}


def no_record(members: dict[str, Any], canary: Path) -> None:
    members[CONSTANTS]["config"]["c"] = {
        "path_name": "custom_obj_0",
        "is_param": False,
        "use_pickle": False,
        "tensor_meta": next(iter(members[WEIGHTS]["config"].values()))["tensor_meta"],
    }
    members["data/constants/custom_obj_0"] = pickled(canary)


def deep(members: dict[str, Any], canary: Path) -> None:
    inner: Any = {"nodes": []}
    for _ in range(110):
        arg = {"as_graph": {"name": "g", "graph": inner}}
        node = {"target": "torch.ops.higher_order.cond", "inputs": [{"name": "", "arg": arg}]}
        inner = {"nodes": [node]}
    graph(members)["nodes"][0]["inputs"][0]["arg"] = {"as_graph": {"name": "g", "graph": inner}}


REFUSED = [
    *RUN_AT_LOAD,
    *(target, attribute, file_reader, other_namespace, node_name, input_name, keyword),
    *(parameter, dunder, tree_type, tree_enum, tree_no_json, verifier, library, second_model),
    *(script_object, unknown_argument, unknown_field, number_as_text, many_symbols),
    *(no_record, deep),
]


@pytest.mark.parametrize("change", REFUSED)
def test_a_doctored_program_is_refused_and_runs_nothing(
    tmp_path: Path, made: tuple[Path, nn.Module], change: Doctor
) -> None:
    canary = tmp_path / "canary"
    path = doctored(made[0], change, tmp_path / "bad.pt2", canary)
    with pytest.raises(UnsafeError, match="--trust-pickle"):
        exported(path)
    if change is not no_record:  # its tensor is no torch file: what it is cannot be told
        source = open_source(path)
        assert source.kind == "torch-exported"
        assert source.needs_trust and "not a plain exported program" in source.needs_trust
    assert not canary.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", [samples, weight, expression, opaque])
def test_torch_itself_would_run_it(
    tmp_path: Path, made: tuple[Path, nn.Module], change: Doctor
) -> None:
    """The doctored files above do work: with the user's word, torch runs what is in them."""
    canary = tmp_path / "canary"
    path = doctored(made[0], change, tmp_path / "bad.pt2", canary)
    with contextlib.suppress(edgeopt.EdgeoptError):  # it may fail after it has run
        exported(path, trust=True)
    assert canary.exists()


def guards(members: dict[str, Any], canary: Path) -> None:
    members[MODEL]["guards_code"] = [f"{code(canary)} or True"]
    graph(members)["nodes"][0]["metadata"] = {"stack_trace": f"\n{code(canary)}"}


@pytest.mark.filterwarnings("ignore")
def test_guards_and_traces_are_left_out(tmp_path: Path, made: tuple[Path, nn.Module]) -> None:
    """torch makes Python source of guards when the module is asked for."""
    canary = tmp_path / "canary"
    path = doctored(made[0], guards, tmp_path / "m.pt2", canary)
    ids = torch.randint(0, 9, (3, 4))
    answer = exported(path).program.module()(ids)
    assert torch.equal(answer["mean"], made[1](ids)["mean"]) and not canary.exists()
    torch.export.load(str(path)).module()(torch.randint(0, 9, (2, 5)))
    assert canary.exists()  # so this does run, without us


def test_a_clean_program_is_loaded_without_any_unpickling(
    made: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, module = made
    assert open_source(path).needs_trust is None

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("unpickled")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    found = exported(path)
    ids = torch.randint(0, 9, (4, 7))
    for name, tensor in module(ids).items():
        assert torch.equal(found.program.module()(ids)[name], tensor)
    assert found.names == ("ids",) and found.inputs[0].dtype == "int64"


def test_torch_loads_the_copy_itself_and_it_is_the_same_each_time(
    made: tuple[Path, nn.Module],
) -> None:
    path, module = made
    copies = []
    for _ in range(2):
        with edgeopt.plain_program(path) as copy:
            copies.append(copy.stream.read())
            copy.stream.seek(0)
            program = torch.export.load(copy.stream)
    assert copies[0] == copies[1] and b"ids" in copies[0]
    ids = torch.randint(0, 9, (2, 3))
    assert torch.equal(program.module()(ids)["flat"], module(ids)["flat"])
    with zipfile.ZipFile(io.BytesIO(copies[0])) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            # Where the data of a member begins: what a mapping needs.
            header = copies[0][info.header_offset : info.header_offset + 30]
            sizes = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
            assert (info.header_offset + 30 + sum(sizes)) % 64 == 0


def test_a_weight_that_is_damaged_is_an_error(tmp_path: Path, made: tuple[Path, nn.Module]) -> None:
    raw = bytearray(made[0].read_bytes())
    with zipfile.ZipFile(made[0]) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("weight_0"))
        data = archive.read(info)
    raw[raw.index(data) + 3] ^= 1
    (tmp_path / "m.pt2").write_bytes(raw)
    with pytest.raises(edgeopt.EdgeoptError, match="CRC-32"):
        exported(tmp_path / "m.pt2")


SYMBOL = "Symbol('s0', positive=True, integer=True)"


@pytest.mark.parametrize(
    "text",
    [
        SYMBOL,
        f"Mul(Integer(2), {SYMBOL})",
        f"Add(Integer(-1), Pow({SYMBOL}, Integer(2)))",
        f"FloorDiv({SYMBOL}, Integer(4))",
        f"Equality({SYMBOL}, Integer(1))",
        "Float('0.5', precision=53)",
        "Rational(1, 2)",
        "true",
    ],
)
def test_arithmetic_is_let_through_and_is_what_sympy_reads(text: str) -> None:
    import sympy
    from torch.utils._sympy.functions import FloorDiv

    assert is_arithmetic(text)
    value = sympy.sympify(text, locals={"FloorDiv": FloorDiv})
    if text != "true":
        assert sympy.sympify(sympy.srepr(value), locals={"FloorDiv": FloorDiv}) == value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "Integer(2).__class__",
        "Symbol('s0; import os')",
        "Symbol('s0', integer=print)",
        "Symbol('s0', **{})",
        "Symbol(*'s0')",
        "eval('1')",
        "Integer(eval('1'))",
        "Add(*[1])",
        "[Integer(1)]",
        "Integer(1) if True else 2",
        "lambda: 0",
        "Float('0.5', evil=1)",
        "Float(__import__('os'))",
        "Integer(1, base=2)",
        "Pow(Integer(9), Integer(99))",
        "Pow(Pow(Integer(9), Integer(8)), Integer(8))",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "Integer(99999999999999999999999)",
        "s0",
        "Add(" * 500 + ")" * 500,
        "x" * 5000,
        "1 +",
        "",
        "ſ",
        None,
        7,
    ],
)
def test_anything_else_is_not(text: object) -> None:
    assert not is_arithmetic(text)
