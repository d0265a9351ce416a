"""What torch files hold, held against torch.load itself."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import pytest

from edgeopt.core import Source, Weight
from edgeopt.errors import FormatError, SourceError
from edgeopt.files import torch_legacy, torch_zip
from edgeopt.files.mapped import Stretch, StridedReader
from edgeopt.files.reading import FileBytes

torch = pytest.importorskip("torch")
nn = torch.nn

LAYOUTS = ["zip", "legacy"]


def save(obj: Any, path: Path, layout: str = "zip", **options: Any) -> Path:
    torch.save(obj, path, _use_new_zipfile_serialization=layout == "zip", **options)
    return path


def describe(path: Path) -> Source:
    head = path.read_bytes()[:64]
    found = [m for m in (torch_zip, torch_legacy) if m.matches(path, head)]
    assert len(found) == 1
    return found[0].describe(path)


def as_torch(array: np.ndarray[Any, Any], like: Any) -> Any:
    """The array as a tensor; what numpy has no dtype for travels as plain bytes."""
    if array.dtype.kind == "V" or array.dtype.name.startswith(("bfloat", "float8")):
        raw = torch.from_numpy(array.copy().view(f"u{array.dtype.itemsize}"))
        return raw.view(like.dtype)
    return torch.from_numpy(array.copy())


def assert_same(weight: Weight, tensor: Any) -> None:
    assert weight.shape == tuple(tensor.shape)
    assert f"torch.{weight.dtype}" == str(tensor.dtype)
    assert weight.nbytes == tensor.numel() * tensor.element_size()
    tensor = tensor.detach().resolve_conj().resolve_neg()
    got = as_torch(weight.array(), tensor)
    assert got.shape == tensor.shape
    raw = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(got.element_size())
    if raw is not None and not got.is_complex() and got.ndim:
        assert torch.equal(got.view(raw), tensor.contiguous().view(raw))  # NaN and all
    else:
        assert torch.equal(got, tensor)
    rows = weight.shape[0] if weight.shape else 1
    if weight.shape and rows > 1:
        assert torch.equal(
            as_torch(weight.rows(1, rows), tensor).to(torch.complex128),
            tensor[1:].to(torch.complex128),
        )
    with pytest.raises(IndexError):
        weight.rows(0, rows + 1)


def assert_state_dict(source: Source, expected: dict[str, Any]) -> None:
    assert [w.name for w in source.weights] == list(expected)
    for weight in source.weights:
        assert_same(weight, expected[weight.name])


def small_model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))


def every_dtype() -> dict[str, Any]:
    names = (
        "float64 float32 float16 bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 "
        "float8_e5m2fnuz float8_e8m0fnu int64 int32 int16 int8 uint8 uint16 uint32 uint64"
    )
    base = torch.arange(1.0, 13.0).reshape(3, 4)
    made = {name: base.to(getattr(torch, name)) for name in names.split()}
    made["bool"] = base > 4
    made["complex64"] = torch.complex(base, -base)
    made["complex128"] = made["complex64"].to(torch.complex128)
    return made


def views() -> dict[str, Any]:
    base = torch.arange(60.0).reshape(3, 4, 5)
    return {
        "base": base,
        "slice": base[1:, ::2],
        "transposed": base.transpose(0, 2),
        "expanded": base[0, 0].expand(7, 5),
        "row": base[2, 3],
        "scalar": base[1, 1, 1],
        "steps": base.flatten()[3::7],
        "one": base[:1, :, :1],
    }


def odd() -> dict[str, Any]:
    tied = nn.Parameter(torch.randn(4, 3))
    z = torch.complex(torch.ones(2, 2), torch.arange(4.0).reshape(2, 2))
    return {
        "zero_dim": torch.tensor(3.5),
        "empty": torch.zeros(0),
        "empty_rows": torch.zeros(0, 3),
        "empty_columns": torch.zeros(3, 0),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        "parameter": nn.Parameter(torch.randn(2, 2)),
        "tied.a": tied,
        "tied.b": tied,
        "conj": z.conj(),
        "neg": z.clone().conj().imag,
    }


def ordered() -> Any:
    state = OrderedDict(small_model().state_dict())
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    return state


STATE_DICTS: dict[str, Callable[[], dict[str, Any]]] = {
    "dtypes": every_dtype,
    "views": views,
    "odd": odd,
    "ordered": ordered,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", STATE_DICTS)
def test_equals_torch_load(tmp_path: Path, case: str, layout: str) -> None:
    state = STATE_DICTS[case]()
    path = save(state, tmp_path / "x.pt", layout)
    source = describe(path)
    assert source.kind == "torch-state-dict"
    assert source.needs_trust is None and source.extras == ()
    # torch writes its newest dtypes into legacy files, and cannot load them
    lost = (case, layout) == ("dtypes", "legacy")
    assert_state_dict(source, state if lost else torch.load(path, weights_only=True))


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_protocol(tmp_path: Path, protocol: int, layout: str) -> None:
    state = {"größe": torch.ones(2), **small_model().state_dict(), "n": torch.tensor(7)}
    path = save(state, tmp_path / "x.pt", layout, pickle_protocol=protocol)
    assert_state_dict(describe(path), torch.load(path, weights_only=False))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shared_storages_are_told(tmp_path: Path, layout: str) -> None:
    found = {w.name: w for w in describe(save(views(), tmp_path / "x.pt", layout)).weights}
    storages = [found[name].storage for name in ("base", "slice", "scalar")]
    assert len({s.key for s in storages if s}) == 1
    assert [s.offset for s in storages if s] == [0, 80, 26 * 4 + 0]
    assert {s.nbytes for s in storages if s} == {240}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_are_windows_on_the_file(tmp_path: Path, layout: str) -> None:
    path = save({"w": torch.zeros(8, 8)}, tmp_path / "x.pt", layout)
    array = describe(path).weights[0].array()
    assert not array.flags.owndata and not array.flags.writeable


def test_legacy_storage_views(tmp_path: Path) -> None:
    """Files from before 0.4 mention a storage as a view of another, in their persistent ids."""
    import pickle
    import struct

    class Storage:
        def __init__(self, key: str, view: Any) -> None:
            self.pid = ("storage", torch.FloatStorage, key, "cpu", 10, view)

    class Tensor:
        def __init__(self, storage: Storage, size: int) -> None:
            self.args = (storage, 1, (size,), (1,))

        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor, self.args

    class Writer(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return obj.pid if isinstance(obj, Storage) else None

    path = tmp_path / "x.pt"
    with path.open("wb") as stream:
        for obj in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(obj, stream, 2)
        whole, part = Storage("1", None), Storage("1", ("2", 4, 5))
        Writer(stream, 2).dump({"whole": Tensor(whole, 9), "part": Tensor(part, 4)})
        pickle.dump(["1"], stream, 2)
        stream.write(struct.pack("<q", 10) + np.arange(10, dtype="<f4").tobytes())
    source = describe(path)
    assert_state_dict(source, torch.load(path, weights_only=False))
    np.testing.assert_array_equal(source.weights[1].array(), [5, 6, 7, 8])
    storage = source.weights[1].storage
    assert storage and (storage.key, storage.offset, storage.nbytes) == ("1", 20, 40)


def as_python2(data: bytes) -> bytes:
    """A legacy file's five pickles with every text as Python 2 wrote it: a string of bytes."""
    import pickletools

    stream, out = io.BytesIO(data), b""
    for _ in range(5):
        begin = stream.tell()
        found = [(op.name, arg, at) for op, arg, at in pickletools.genops(stream)]
        ends = [at for _, _, at in found[1:]] + [stream.tell()]
        for (name, arg, at), end in zip(found, ends, strict=True):
            if name == "BINUNICODE":
                raw = arg.encode()
                head = b"U" + bytes([len(raw)]) if len(raw) < 256 else b"T" + pack("<i", len(raw))
                out += head + raw
            else:
                out += data[at:end]
        assert stream.tell() > begin
    return out + stream.read()


@pytest.mark.parametrize("long", [False, True])
def test_legacy_file_of_python_2(tmp_path: Path, long: bool) -> None:
    """Names, keys of storages and system information are strings of bytes there. torch's safe way
    does not know the opcode of those longer than 255 bytes; ours does."""
    held = {"conv.weight": torch.randn(4, 3, 2), "größe": torch.arange(6)}
    if long:
        held["features." + "deep." * 60 + "weight"] = torch.ones(2)
    path = save(OrderedDict(held), tmp_path / "x.pth", "legacy", pickle_protocol=2)
    path.write_bytes(as_python2(path.read_bytes()))
    assert b"U\x0bconv.weight" in path.read_bytes()
    loaded = torch.load(path, weights_only=not long)
    assert list(loaded) == list(held)
    assert_state_dict(describe(path), loaded)


def test_big_endian(tmp_path: Path) -> None:
    """A byteorder record that says big: turn the bytes round, as torch.load does.

    (torch turns neither unsigned integers nor complex numbers; the latter have their own test.)
    """
    state = {k: v for k, v in every_dtype().items() if not k.startswith(("complex", "uint"))}
    save(state, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"big" if name.endswith("byteorder") else old.read(name))
    source = describe(tmp_path / "b.pt")
    assert source.details["byteorder"] == "big"
    assert_state_dict(source, torch.load(tmp_path / "b.pt", weights_only=True))


def test_big_endian_complex(tmp_path: Path) -> None:
    (tmp_path / "z").write_bytes(np.array([1 + 2j, 3 - 4j], ">c8").tobytes())
    reader = StridedReader(
        Stretch(FileBytes(tmp_path / "z"), "s", 0, 16),
        "z",
        "complex64",
        0,
        (2,),
        (1,),
        big_endian=True,
    )
    assert reader(0, 2).tolist() == [1 + 2j, 3 - 4j]


# ------------------------------------------------------------------------------- which weights


def trained(model: Any) -> Any:
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoint(tmp_path: Path, layout: str) -> None:
    model = small_model()
    optimizer = trained(model)
    state = model.state_dict()
    checkpoint = {
        "epoch": 3,
        "note": "best so far",
        "model_state_dict": state,
        "optimizer_state_dict": optimizer.state_dict(),
        "lr_scheduler": {"last": torch.tensor(1.0)},
        "ema": {k: v.clone() for k, v in state.items()},
        "rng": torch.get_rng_state(),
    }
    source = describe(save(checkpoint, tmp_path / "x.pt", layout))
    assert source.kind == "torch-checkpoint" and source.needs_trust is None
    assert_state_dict(source, state)
    assert source.details["checkpoint_key"] == "model_state_dict"
    assert source.details["metadata"] == {"epoch": 3, "note": "best so far"}
    roles = {w.name: w.role for w in source.extras}
    assert roles["ema.3.weight"] == "ema" and roles["rng"] == "other"
    assert roles["lr_scheduler.last"] == "optimizer"
    moments = [n for n, role in roles.items() if role == "optimizer" and "exp_avg" in n]
    assert len(moments) == 2 * len(list(model.parameters()))
    assert sum(role == "ema" for role in roles.values()) == len(state)


def t() -> Any:
    return torch.randn(2, 2)


NESTED: dict[str, tuple[Any, list[str], list[tuple[str, str]]]] = {
    "lightning": (
        {
            "state_dict": {"model.w": t()},
            "optimizer_states": [{"state": {0: {"exp_avg": t()}}}],
            "callbacks": {},
        },
        ["model.w"],
        [("optimizer_states.0.state.0.exp_avg", "optimizer")],
    ),
    "keys inside keys": ({"model": {"state_dict": {"w": t()}}, "x": 1}, ["w"], []),
    "opt": (
        {"model": {"w": t()}, "opt": {"state": {0: {"exp_avg": t(), "step": torch.tensor(1.0)}}}},
        ["w"],
        [("opt.state.0.exp_avg", "optimizer"), ("opt.state.0.step", "optimizer")],
    ),
    "a model called opt": ({"opt": {"w": t()}}, ["opt.w"], []),
    "two networks": ({"gen": {"w": t()}, "disc": {"w": t()}}, ["gen.w", "disc.w"], []),
    "best of several": (
        {"net": {"w": t()}, "state_dict": {"v": t()}},
        ["v"],
        [("net.w", "other")],
    ),
    "only an average": ({"ema": {"w": t()}, "step": 1}, ["ema.w"], []),
    "averages by name": (
        {"state_dict": {"model.w": t(), "model_ema.w": t()}},
        ["model.w"],
        [("model_ema.w", "ema")],
    ),
    "list": ([t(), t()], ["0", "1"], []),
    "one tensor": (t(), ["tensor"], []),
    "alike": ({"a.b": t(), "a": {"b": t()}}, ["a.b", "a.b#2"], []),
    "optimizer alone": ({"optimizer": {"m": t()}}, [], [("optimizer.m", "optimizer")]),
    "parallel": ({"module.a": t(), "module.b.c": t()}, ["a", "b.c"], []),
    "compiled and parallel": ({"state_dict": {"_orig_mod.module.a": t()}}, ["a"], []),
    "not all wrapped": ({"module.a": t(), "b": t()}, ["module.a", "b"], []),
}


@pytest.mark.parametrize("case", NESTED)
def test_which_tensors_are_the_model(tmp_path: Path, case: str) -> None:
    obj, weights, extras = NESTED[case]
    source = describe(save(obj, tmp_path / "x.pt"))
    assert [w.name for w in source.weights] == weights
    assert [(w.name, w.role) for w in source.extras] == extras
    assert source.details.get("prefix", "") == {
        "parallel": "module.",
        "compiled and parallel": "_orig_mod.module.",
    }.get(case, "")


def test_roles(tmp_path: Path) -> None:
    state = {**small_model().state_dict(), "e.position_ids": torch.arange(4), "mask": torch.ones(2)}
    source = describe(save(state, tmp_path / "x.pt"))
    assert {w.name for w in source.weights if w.role == "buffer"} == {
        "1.running_mean",
        "1.running_var",
        "1.num_batches_tracked",
        "e.position_ids",
    }
    assert {w.role for w in source.weights} == {"weight", "buffer"}


@pytest.mark.filterwarnings("ignore")
def test_what_is_no_plain_tensor(tmp_path: Path) -> None:
    state = {
        "w": torch.randn(3, 3),
        "q": torch.quantize_per_tensor(torch.arange(3.0), 0.5, 1, torch.qint8),
        "coo": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "meta": torch.empty(3, device="meta"),
        "array": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        "big": np.arange(5000, dtype=">f8"),
        "strings": np.array(["a", "b"]),
        "storage": torch.arange(3.0).storage(),
        "bytes": torch.arange(3, dtype=torch.uint8).untyped_storage(),
        "float": np.float32(1.5),
    }
    for protocol in (2, 4):
        source = describe(save(state, tmp_path / "x.pt", pickle_protocol=protocol))
        found = {w.name: w for w in source.weights}
        assert found["q"].dtype == "int8" and found["q"].array().tolist() == [1, 3, 5]
        assert source.details["quantized"] == ("q",)
        assert source.details["no_data"] == ("meta", "strings")
        assert source.details["composites"]["coo"] == {
            "layout": "torch.sparse_coo",
            "shape": (3, 3),
        }
        assert found["csr.crow_indices"].array().tolist() == [0, 1, 2, 3]
        assert found["coo.values"].array().tolist() == [1, 1, 1]
        for name in ("array", "fortran", "big"):
            np.testing.assert_array_equal(found[name].array(), state[name])
            assert found[name].dtype == np.dtype(state[name].dtype).newbyteorder("=").name
        np.testing.assert_array_equal(found["array"].rows(1, 2), state["array"][1:2])
        assert found["storage"].array().tolist() == found["bytes"].array().tolist() == [0, 1, 2]
        assert source.details["metadata"] == {"float": 1.5}


class Tagged(torch.Tensor):
    pass


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_with_attributes_and_subclasses(tmp_path: Path, layout: str) -> None:
    plain, parameter = torch.randn(2), nn.Parameter(torch.randn(2))
    plain.tag = parameter.tag = "kept"
    sub = torch.randn(3).as_subclass(Tagged)
    sub.scale = torch.ones(1)
    path = save({"a": plain, "b": parameter, "c": sub}, tmp_path / "x.pt", layout)
    source = describe(path)
    assert [w.name for w in source.weights] == ["a", "b", "c.data", "c.scale"]
    np.testing.assert_array_equal(source.weights[0].array(), plain.numpy())


# ----------------------------------------------------------------------------------- modules


class Odd(nn.Module):
    """Shared modules, a buffer that is not saved, and a way back to the parent."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(2, 2)
        self.again = self.one
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("left", torch.ones(2), persistent=False)
        self.own = nn.Parameter(torch.ones(1))
        self.nothing = None
        object.__setattr__(self.one, "parent", self)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.filterwarnings("ignore")
def test_pickled_module(tmp_path: Path, layout: str) -> None:
    for model in (small_model(), Odd(), nn.LSTM(3, 4), nn.DataParallel(small_model())):
        source = describe(save(model, tmp_path / "x.pt", layout))
        name = f"{type(model).__module__}.{type(model).__qualname__}"
        assert source.kind == "torch-module" and name in str(source.needs_trust)
        assert source.details["module_class"] == name
        assert_state_dict(source, model.state_dict())
        buffers = {n for n, _ in model.named_buffers(remove_duplicate=False)}
        assert {w.name for w in source.weights if w.role == "buffer"} == buffers - {"left"}
        if isinstance(model, Odd):
            assert [(w.name, w.role) for w in source.extras] == [("left", "other")]


def test_module_inside_a_checkpoint(tmp_path: Path) -> None:
    checkpoint = {"epoch": 1, "model": small_model(), "ema": small_model(), "optimizer": None}
    source = describe(save(checkpoint, tmp_path / "x.pt"))
    assert source.kind == "torch-module"
    assert "torch.nn.modules.container.Sequential" in str(source.needs_trust)
    assert source.details["checkpoint_key"] == "model"
    assert_state_dict(source, checkpoint["model"].state_dict())
    assert {w.role for w in source.extras} == {"ema"}


def test_traced_by_fx(tmp_path: Path) -> None:
    model = torch.fx.symbolic_trace(small_model())
    source = describe(save(model, tmp_path / "x.pt"))
    assert source.kind == "torch-module" and "torch.fx" in str(source.needs_trust)
    assert [w.name for w in source.weights] == list(model.state_dict())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for model in (small_model().eval(), nn.LSTM(3, 4), nn.Sequential(Odd().one)):
        script = torch.jit.script(model)
        script.save(path)
        source = describe(path)
        assert source.kind == "torchscript" and source.needs_trust is None
        assert_state_dict(source, script.state_dict())
        buffers = {n for n, _ in model.named_buffers()}
        assert {w.name for w in source.weights if w.role == "buffer"} == buffers


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("instead", ["x", "/"], ids=["renamed", "a_folder"])
@pytest.mark.parametrize(
    ("member", "says"),
    [
        ("constants.pkl", "constants.pkl"),
        ("data.pkl", "data.pkl"),
        ("data/0", "storage 0: .*no record"),
    ],
)
def test_torchscript_that_lacks_a_member(
    tmp_path: Path, member: str, says: str, instead: str
) -> None:
    """An error that names what is missing, never a KeyError."""
    whole, path = tmp_path / "whole.pt", tmp_path / "x.pt"
    torch.jit.script(nn.Linear(8, 4)).save(whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            name = info.filename
            if name.endswith(f"/{member}"):
                name += instead
            new.writestr(name, b"" if name.endswith("/") else old.read(info))
    with pytest.raises(FormatError, match=says):
        describe(path)


@pytest.mark.filterwarnings("ignore")
def test_frozen_torchscript(tmp_path: Path) -> None:
    """Freezing folds the normalisation and moves every weight among the constants."""
    model = small_model().eval()
    torch.jit.freeze(torch.jit.script(model)).save(tmp_path / "x.pt")
    source = describe(tmp_path / "x.pt")
    assert source.kind == "torchscript"
    assert sorted(w.size for w in source.weights) == [4, 5, 80, 108]
    assert_same(next(w for w in source.weights if w.size == 80), model[3].weight)


@pytest.mark.filterwarnings("ignore")
def test_quantized_torchscript_shows_its_packed_weights(tmp_path: Path) -> None:
    if not torch.backends.quantized.supported_engines:
        pytest.skip("this torch has no quantized kernels")
    dynamic = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)).eval())
    torch.jit.script(dynamic).save(tmp_path / "x.pt")
    source = describe(tmp_path / "x.pt")
    assert source.kind == "torchscript"
    (packed,) = (w for w in source.weights if w.name in source.details["quantized"])
    assert packed.shape == (3, 4) and packed.dtype == "int8"


# ------------------------------------------------------------------------- exported programs


def exported(model: Any, *args: Any, shapes: Any = None) -> Any:
    return torch.export.export(model.eval(), args, dynamic_shapes=shapes)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.out = nn.Linear(4, 10, bias=False)
        self.out.weight = self.table.weight
        self.register_buffer("left", torch.ones(4), persistent=False)

    def forward(self, ids: Any, mask: Any) -> Any:
        return self.out(self.table(ids) * mask.unsqueeze(-1) + self.left + torch.tensor([1.0]))


def test_exported_program(tmp_path: Path) -> None:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2, max=64)
    program = exported(
        TwoInputs(),
        torch.ones(2, 3, dtype=torch.int64),
        torch.ones(2, 3),
        shapes={"ids": {0: batch, 1: length}, "mask": {0: batch, 1: length}},
    )
    path = tmp_path / "x.pt2"
    torch.export.save(program, path)
    source = describe(path)
    assert source.kind == "torch-exported" and source.needs_trust is None
    ids, mask = source.inputs
    assert (ids.name, ids.dtype, mask.name, mask.dtype) == ("ids", "int64", "mask", "float32")
    assert ids.shape == mask.shape and len(set(ids.shape)) == 2
    assert all(isinstance(d, str) and d.isidentifier() for d in ids.shape)
    found = {w.name: w for w in source.weights}
    state = {**program.state_dict, **program.constants}
    assert set(found) == set(state)
    for name, tensor in state.items():
        assert_same(found[name], tensor)
    roles = {name: w.role for name, w in found.items()}
    assert roles.pop("table.weight") == roles.pop("out.weight") == "weight"
    assert set(roles.values()) == {"buffer"}
    one, other = found["table.weight"].storage, found["out.weight"].storage
    assert one and other and one == other


def test_exported_program_with_every_dtype(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, value in every_dtype().items():
                self.register_buffer(f"b_{name}", value)

        def forward(self, x: Any) -> Any:
            return x + self.b_float32 + self.b_int8

    path = tmp_path / "x.pt2"
    torch.export.save(exported(Model(), torch.ones(3, 4)), path)
    source = describe(path)
    assert_state_dict(source, {f"b_{k}": v for k, v in every_dtype().items()})
    assert [str(i) for i in source.inputs] == ["x: float32[3, 4]"]


def old_export(program: Any, path: Path) -> None:
    """The layout of torch 2.7 and before, whose writer torch no longer has."""
    from torch._export.serde.serialize import serialize

    artifact = serialize(program)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_exported_program.json", artifact.exported_program)
        archive.writestr("serialized_state_dict.pt", artifact.state_dict)
        archive.writestr("serialized_constants.pt", artifact.constants)
        archive.writestr("serialized_example_inputs.pt", artifact.example_inputs)


def test_exported_program_of_old(tmp_path: Path) -> None:
    program = exported(
        small_model(), torch.ones(2, 3, 4, 4), shapes=({0: torch.export.Dim("batch")},)
    )
    path = tmp_path / "x.pt2"
    old_export(program, path)
    source = describe(path)
    assert source.kind == "torch-exported" and "torch 2.7 or before" in str(source.needs_trust)
    assert source.details["container"] == "torch-export"
    assert_state_dict(source, program.state_dict)
    (taken,) = source.inputs
    assert taken.shape[1:] == (3, 4, 4) and isinstance(taken.shape[0], str)
    assert {w.name for w in source.weights if w.role == "buffer"} == {
        n for n, _ in small_model().named_buffers()
    }


# ---------------------------------------------------------------------------------- refusals


def test_tar_of_torch_0_1(tmp_path: Path) -> None:
    import tarfile

    path = tmp_path / "x.pt"
    with tarfile.open(path, "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"abcd"))
    with pytest.raises(FormatError, match=r"torch\.save\(torch\.load"):
        describe(path)


def test_no_tensors(tmp_path: Path) -> None:
    for obj in ({}, {"epoch": 1}, [], None, "text", {"m": torch.empty(2, device="meta")}):
        with pytest.raises(SourceError, match="holds no tensors"):
            describe(save(obj, tmp_path / "x.pt"))


def test_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, a=np.ones(3))
    assert not torch_zip.matches(path, path.read_bytes()[:64])
    with pytest.raises(FormatError, match="not one that torch wrote"):
        torch_zip.describe(path)
    missing = tmp_path / "gone.pt"
    assert not torch_zip.matches(missing, b"PK\3\4" + bytes(60))
    with pytest.raises(SourceError, match="no such file"):
        torch_zip.describe(missing)
    os.mkfifo(tmp_path / "pipe")
    for there in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(SourceError, match=r"is a (folder|FIFO)"):
            torch_zip.describe(there)
    path.write_bytes(b"")
    for module in (torch_zip, torch_legacy):
        assert not module.matches(path, b"")
        with pytest.raises(SourceError, match="empty"):
            module.describe(path)


def test_a_file_that_shrinks_while_mapped(tmp_path: Path) -> None:
    """Reading the lost pages would end the process by a signal."""
    path = save({"w": torch.zeros(100_000)}, tmp_path / "x.pt")
    weight = describe(path).weights[0]
    with path.open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(SourceError, match="shrank"):
        weight.array()


def test_needs_no_torch(tmp_path: Path) -> None:
    import subprocess

    path = save(small_model().state_dict(), tmp_path / "x.pt")
    code = (
        "import sys; from pathlib import Path; from edgeopt.files import torch_zip;"
        "s = torch_zip.describe(Path(sys.argv[1])); s.weights[0].array();"
        "bad = {'torch', 'onnx', 'onnxruntime'} & set(sys.modules); assert not bad, bad"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
