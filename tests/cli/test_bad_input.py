"""What the command line does with what it should not be given.

Every case holds the same promise: one line on standard error that begins ``edgeopt: error:``, the
right exit code, nothing written beside, and the input as it was. The cases named in :data:`REAL`
run as a process of their own; the others in this one, through the same entry point.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto
from safetensors.numpy import save_file
from tests.files.test_torch_exported import members, write
from tests.files.test_torch_hostile import archive, gadgets, legacy, state_dict, tensor
from tests.graphs.nets import INT64, model, node, normal, value
from tests.in_process import no_processes

from edgeopt import cli

ROOT = Path(__file__).parents[2]


@dataclass
class Left:
    code: int
    out: str
    err: str


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, by its bytes; folders and links by their kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "special"
    return found


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def in_a_process(*args: str, cwd: Path, **kwargs: Any) -> Left:
    done = subprocess.run(
        [sys.executable, "-m", "edgeopt", *args],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **kwargs,
    )
    return Left(done.returncode, done.stdout, done.stderr)


class Here:
    """The same entry point, in this process; workers too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd = monkeypatch, capfd

    def __call__(self, *args: str, cwd: Path) -> Left:
        no_processes(self.monkeypatch)
        self.monkeypatch.setattr(sys, "argv", ["edgeopt", *args])
        self.monkeypatch.setattr(sys, "path", list(sys.path))
        self.monkeypatch.setattr(signal, "signal", lambda *_: None)
        self.monkeypatch.chdir(cwd)
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = self.capfd.readouterr()
        assert isinstance(left.value.code, int)
        return Left(left.value.code, out, err)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Here:
    return Here(monkeypatch, capfd)


def assert_refused(left: Left, code: int, *words: str) -> None:
    lines = left.err.splitlines()
    assert len(lines) == 1, left.err
    assert lines[0].startswith("edgeopt: error: ")
    assert left.code == code, left.err
    assert "Traceback" not in left.err and len(lines[0]) < 600
    for word in words:
        assert word in lines[0], lines[0]


# ---------------------------------------------------------------------------------------------
# sound files, to be broken


def mlp(**changes: Any) -> Any:
    weights = {"w": normal(64, 128, gain=0.125), "v": normal(128, 64, seed=1, gain=0.09)}
    weights |= {k: v for k, v in changes.items() if k in weights}
    return model(
        [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]),
         node("MatMul", ["r", "v"], ["y"])],
        {"x": ["n", 64]},
        {"y": ["n", 64]},
        weights,
    )  # fmt: skip


def save(path: Path, made: Any) -> str:
    onnx.save(made, path)
    return path.name


def gguf_file(path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.weight", normal(32, 64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


DATA = normal(4).tobytes()


def sound(kind: str, path: Path) -> Path:
    if kind == "onnx":
        onnx.save(mlp(), path)
    elif kind == "safetensors":
        save_file({"w": normal(64, 128)}, path)
    elif kind == "torch zip":
        archive(path, state_dict(tensor()), {"0": DATA})
    elif kind == "torch legacy":
        legacy(path, state_dict(tensor()), ["0"], (4).to_bytes(8, "little") + DATA)
    elif kind == "pt2":
        write(path, members())
    else:
        gguf_file(path)
    return path


KINDS = ("onnx", "safetensors", "torch zip", "torch legacy", "pt2", "gguf")


# ---------------------------------------------------------------------------------------------
# the cases: what is laid into a folder, and what is said to it

Case = Callable[[Path], tuple[list[str], int, tuple[str, ...]]]
CASES: dict[str, Case] = {}
REAL: set[str] = set()


def case(name: str, *, real: bool = False) -> Callable[[Case], Case]:
    def register(made: Case) -> Case:
        CASES[name] = made
        if real:
            REAL.add(name)
        return made

    return register


def _damaged(kind: str, damage: str) -> Case:
    def made(folder: Path) -> tuple[list[str], int, tuple[str, ...]]:
        path = sound(kind, folder / "m.bin")
        raw = path.read_bytes()
        if damage == "empty":
            raw = b""
        elif damage == "truncated":
            raw = raw[: len(raw) * 2 // 3]
        else:
            raw = b"NOTAMODEL" + raw[9:]
        path.write_bytes(raw)
        return ["m.bin"], 2, ("m.bin",)

    return made


for _kind in KINDS:
    for _damage in ("empty", "truncated", "wrong magic"):
        _real = (_damage == "truncated") or (_kind, _damage) == ("onnx", "empty")
        case(f"{_kind}, {_damage}", real=_real)(_damaged(_kind, _damage))


@case("missing file", real=True)
def _(folder: Path) -> Any:
    return ["nowhere.onnx"], 2, ("nowhere.onnx",)


@case("folder that is no model", real=True)
def _(folder: Path) -> Any:
    (folder / "photos").mkdir()
    (folder / "photos" / "cat.txt").write_text("meow")
    return ["photos"], 2, ("photos",)


@case("empty folder")
def _(folder: Path) -> Any:
    (folder / "nothing").mkdir()
    return ["nothing"], 2, ("nothing",)


@case("folder with a configuration and no weights")
def _(folder: Path) -> Any:
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text('{"model_type": "bert", "architectures": ["X"]}')
    return ["hf"], 2, ("hf",)


@case("folder whose configuration is broken", real=True)
def _(folder: Path) -> Any:
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text("{")
    save_file({"w": normal(64, 64)}, folder / "hf" / "model.safetensors")
    return ["hf"], 2, ("config.json",)


@case("index of shards that are not there")
def _(folder: Path) -> Any:
    (folder / "hf").mkdir()
    (folder / "hf" / "config.json").write_text('{"model_type": "bert"}')
    index = {"metadata": {}, "weight_map": {"w": "model-00001-of-00002.safetensors"}}
    (folder / "hf" / "model.safetensors.index.json").write_text(json.dumps(index))
    return ["hf"], 2, ("model-00001-of-00002.safetensors",)


@case("a text file")
def _(folder: Path) -> Any:
    (folder / "m.pt").write_text("import this\n")
    return ["m.pt"], 2, ("m.pt",)


@case("a file that is read from a pipe")
def _(folder: Path) -> Any:
    os.mkfifo(folder / "m.pt")
    return ["m.pt"], 2, ("m.pt",)


@case("a link to nowhere")
def _(folder: Path) -> Any:
    (folder / "m.pt").symlink_to("nowhere.pt")
    return ["m.pt"], 2, ("m.pt",)


# what would run code


def _gadget(name: str, form: str) -> Case:
    def made(folder: Path) -> tuple[list[str], int, tuple[str, ...]]:
        evil = gadgets(folder / "canary")[name]
        if form == "zip":
            archive(folder / "m.pt", b"\x80\2" + evil + b".")
        elif form == "legacy":
            legacy(folder / "m.pt", b"\x80\2" + evil + b".")
        elif form == "state dict":
            archive(
                folder / "m.pt", b"\x80\2" + evil + b"0" + state_dict(tensor())[2:], {"0": DATA}
            )
        else:
            archive(folder / "e.pt", b"\x80\2" + evil + b".")
            inner = (folder / "e.pt").read_bytes()
            (folder / "e.pt").unlink()
            write(folder / "m.pt", {**members(), "x/data/sample_inputs/model.pt": inner})
        return ["m.pt"], 2, ("m.pt",)

    return made


for _name in ("posix.system", "builtins.eval", "subprocess.Popen", "STACK_GLOBAL", "getattr"):
    for _form in ("zip", "legacy", "pt2"):
        _real = (_name, _form) in {
            ("posix.system", "zip"),
            ("builtins.eval", "legacy"),
            ("posix.system", "pt2"),
        }
        case(f"{_name} in a {_form}", real=_real)(_gadget(_name, _form))


case("posix.system beside a tensor")(_gadget("posix.system", "state dict"))


@case("zip bomb", real=True)
def _(folder: Path) -> Any:
    with zipfile.ZipFile(folder / "m.pt", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a/data.pkl", bytes(100_000_000))
    return ["m.pt"], 2, ("m.pt", "limit")


# weights that nothing can be made of


@case("state dict without float weights", real=True)
def _(folder: Path) -> Any:
    save_file({"ids": np.arange(1000), "mask": np.ones((8, 8), bool)}, folder / "m.safetensors")
    return ["m.safetensors"], 2, ("no float weights",)


@case("graph without float weights")
def _(folder: Path) -> Any:
    made = model(
        [node("Gather", ["t", "i"], ["y"])],
        [value("i", ["n"], INT64)],
        [value("y", ["n", 64], INT64)],
        {"t": np.arange(6400).reshape(100, 64)},
    )
    return [save(folder / "m.onnx", made)], 2, ("no float weights",)


@case("quantized graph", real=True)
def _(folder: Path) -> Any:
    made = model(
        [node("DequantizeLinear", ["q", "s"], ["w"]), node("MatMul", ["x", "w"], ["y"])],
        {"x": ["n", 64]},
        {"y": ["n", 64]},
        {"q": np.ones((64, 64), np.int8), "s": np.float32(0.1)},
    )
    return [save(folder / "m.onnx", made)], 2, ("already quantized", "DequantizeLinear")


@case("quantized weights")
def _(folder: Path) -> Any:
    from edgeopt.verbs.quantize import quantize

    save_file({"w": normal(256, 256)}, folder / "f.safetensors")
    quantize(folder / "f.safetensors", folder / "m.safetensors", force=True)
    for path in folder.iterdir():
        if path.name != "m.safetensors":
            path.unlink()
    return ["m.safetensors"], 2, ("already",)


@case("GGUF, which holds no graph")
def _(folder: Path) -> Any:
    gguf_file(folder / "m.gguf")
    return ["m.gguf", "--to", "onnx"], 2, ("m.gguf",)


def _broken(number: float, *, bare: bool) -> Case:
    def made(folder: Path) -> tuple[list[str], int, tuple[str, ...]]:
        w = normal(64, 128)
        w[3, 5] = number
        what = "NaN" if np.isnan(number) else "Inf"
        if bare:
            save_file({"layer.w": w}, folder / "m.safetensors")
            return ["m.safetensors"], 2, ("layer.w", what)
        return [save(folder / "m.onnx", mlp(w=w))], 2, ("w", what)

    return made


for _number in (np.nan, np.inf, -np.inf):
    case(f"{_number} in a graph", real=_number is np.nan)(_broken(_number, bare=False))
    case(f"{_number} in bare weights", real=_number is np.inf)(_broken(_number, bare=True))


def _constant(number: float) -> Case:
    def made(folder: Path) -> tuple[list[str], int, tuple[str, ...]]:
        w, v = np.full((64, 128), number, np.float32), np.full((128, 64), number, np.float32)
        return [save(folder / "m.onnx", mlp(w=w, v=v))], 3, ("constant",)

    return made


case("all weights zero")(_constant(0.0))


@case("nothing large enough to be quantized")
def _(folder: Path) -> Any:
    made = model(
        [node("MatMul", ["x", "w"], ["y"])], {"x": ["n", 8]}, {"y": ["n", 8]}, {"w": normal(8, 8)}
    )
    return [save(folder / "m.onnx", made), "--prefer", "size"], 3, ("something quantized",)


@case("weights of a graph without elements, or without axes, alone")
def _(folder: Path) -> Any:
    tensors = {"none": np.zeros((0, 64), np.float32), "scalar": np.float32(3.5).reshape(())}
    save_file({k: np.asarray(v) for k, v in tensors.items()}, folder / "m.safetensors")
    return ["m.safetensors"], 2, ("m.safetensors",)


# graphs that no runtime knows


@case("operator of an unknown domain", real=True)
def _(folder: Path) -> Any:
    made = model(
        [node("Sparkle", ["x", "w"], ["y"], domain="com.example")],
        {"x": ["n", 64]},
        {"y": ["n", 64]},
        {"w": normal(64, 64)},
    )
    return [save(folder / "m.onnx", made)], 2, ("Sparkle",)


@case("operator that does not exist")
def _(folder: Path) -> Any:
    made = mlp()
    made.graph.node[1].op_type = "Reluu"
    return [save(folder / "m.onnx", made)], 2, ("Reluu",)


@case("graph that is not connected")
def _(folder: Path) -> Any:
    made = mlp()
    made.graph.node[1].input[0] = "nobody"
    return [save(folder / "m.onnx", made)], 2, ("nobody",)


@case("graph whose shapes contradict each other")
def _(folder: Path) -> Any:
    return [save(folder / "m.onnx", mlp(v=normal(99, 64)))], 2, ("m.onnx",)


@case("external data that is missing", real=True)
def _(folder: Path) -> Any:
    onnx.save(mlp(), folder / "m.onnx", save_as_external_data=True, location="m.data",
              size_threshold=0)  # fmt: skip
    (folder / "m.data").unlink()
    return ["m.onnx"], 2, ("m.data",)


@case("external data outside the folder")
def _(folder: Path) -> Any:
    made = mlp()
    tensor_ = made.graph.initializer[0]
    size = len(tensor_.raw_data)
    tensor_.ClearField("raw_data")
    tensor_.data_location = TensorProto.EXTERNAL
    for key, text in (("location", "../../../../etc/passwd"), ("length", str(size))):
        tensor_.external_data.add(key=key, value=text)
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    return ["m.onnx"], 2, ("m.onnx",)


# options


def _options(words: tuple[str, ...], *options: str, code: int = 2) -> Case:
    def made(folder: Path) -> tuple[list[str], int, tuple[str, ...]]:
        return [save(folder / "m.onnx", mlp()), *options], code, words

    return made


case("block size that is no power of two", real=True)(
    _options(("100", "32, 64 or 128"), "--bits", "4", "--block-size", "100")
)
case("block size that divides nothing")(
    _options(("256", "64, 128"), "--bits", "4", "--block-size", "256")
)
case("bits that are not known")(_options(("5",), "--bits", "5"))
case("floor that is no number")(_options(("--min-sqnr",), "--min-sqnr", "nan"))
case("no threads")(_options(("--threads",), "--threads", "0"))
case("option that does not exist", real=True)(_options(("--fast",), "--fast"))
case("input of no known form")(_options(("--input", "x"), "--input", "x=3"))
case("input of another name")(_options(("z", "x: float32"), "--input", "z:float32[1,64]"))
case("input of another shape")(_options(("63", "64"), "--input", "x:float32[1,63]"))
case("plan that is missing")(_options(("nowhere.json",), "--plan", "nowhere.json"))
case("code for a graph that needs none")(_options(("nowhere",), "--model", "nowhere:make"))
case("output in a folder that is missing", real=True)(
    _options(("no/where",), "-o", "no/where.onnx")
)
case("output that is a folder")(_options(("folder",), "-o", "."))
case("output that is a device", real=True)(_options(("/dev/full",), "-o", "/dev/full"))
case("output that is the input", real=True)(_options(("source",), "-o", "m.onnx"))
case("output that is the input by another name")(_options(("source",), "-o", "./../x/m.onnx"))


@case("output that is a link to the input", real=True)
def _(folder: Path) -> Any:
    save(folder / "m.onnx", mlp())
    (folder / "o.onnx").symlink_to("m.onnx")
    return ["m.onnx", "-o", "o.onnx"], 2, ("source",)


@case("floor that nothing reaches")
def _(folder: Path) -> Any:
    save(folder / "m.onnx", mlp())
    return ["m.onnx", "--min-sqnr", "200", "--prefer", "size"], 3, ("fidelity", "200")


@case("weights alone to ONNX")
def _(folder: Path) -> Any:
    save_file({"w": normal(64, 64)}, folder / "m.safetensors")
    return ["m.safetensors", "--to", "onnx"], 2, ("--model",)


# samples


def _samples(words: tuple[str, ...], lay: Callable[[Path], str], **kw: bool) -> None:
    def made(folder: Path) -> tuple[list[str], int, tuple[str, ...]]:
        return [save(folder / "m.onnx", mlp()), "--data", lay(folder)], 2, words

    case(f"samples: {lay.__doc__}", **kw)(made)


def _lay(doc: str, name: str, **arrays: Any) -> Callable[[Path], str]:
    def lay(folder: Path) -> str:
        if name.endswith(".npz"):
            np.savez(folder / name, **arrays)
        else:
            np.save(folder / name, next(iter(arrays.values())))
        return name

    lay.__doc__ = doc
    return lay


_OBJECTS = np.array([{"a": 1}, None], object)
_samples(("picture", "x"), _lay("wrong names", "d.npz", picture=normal(8, 64)), real=True)
_samples(("63", "64"), _lay("wrong shape", "d.npz", x=normal(8, 63)), real=True)
_samples(
    ("complex",), _lay("wrong dtype", "d.npz", x=normal(8, 64).astype(np.complex64)), real=True
)
_samples(("d.npz",), _lay("text", "d.npz", x=np.array(["a", "b"])))
_samples(("d.npz",), _lay("no samples", "d.npz", x=np.zeros((0, 64), np.float32)))
_samples(("d.npz",), _lay("nothing at all", "d.npz"))
_samples(("d.npy",), _lay("pickled objects", "d.npy", x=_OBJECTS))
_samples(("d.npz",), _lay("NaN", "d.npz", x=np.full((8, 64), np.nan, np.float32)))


def _bytes(doc: str, name: str, raw: bytes | None) -> Callable[[Path], str]:
    def lay(folder: Path) -> str:
        if raw is not None:
            (folder / name).write_bytes(raw)
        return name

    lay.__doc__ = doc
    return lay


_samples(("d.npz",), _bytes("a missing file", "d.npz", None))
_samples(("d.npz",), _bytes("an empty file", "d.npz", b""), real=True)
_samples(("d.npz",), _bytes("a broken archive", "d.npz", b"PK\3\4" + bytes(50)))
_samples(("d.npy",), _bytes("a broken array", "d.npy", b"\x93NUMPY\1\0" + bytes(50)))
_samples(("nowhere",), _bytes("code that is missing", "nowhere:make", None))


@pytest.mark.parametrize("name", CASES)
def test_refused_in_one_line(tmp_path: Path, name: str, here: Here) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    args, code, words = CASES[name](folder)
    before = contents(folder)
    run = in_a_process if name in REAL else here
    left = run("quantize", *args, cwd=folder)
    assert_refused(left, code, *words)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["torch zip, truncated", "posix.system in a pt2", "zip bomb"])
def test_inspect_refuses_or_describes_but_never_breaks(
    tmp_path: Path, name: str, here: Here
) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    args, _, _ = CASES[name](folder)
    before = contents(folder)
    left = here("inspect", args[0], cwd=folder)
    assert contents(folder) == before
    if left.code:
        assert_refused(left, 2)


def test_enough_of_them_are_processes() -> None:
    assert len(REAL) >= 25


# ---------------------------------------------------------------------------------------------
# inputs that look wrong and are not


@pytest.mark.parametrize("bits", ["8", "4"])
def test_odd_tensors_beside_sound_ones(tmp_path: Path, here: Here, bits: str) -> None:
    """Without elements, without axes, all zero, all the same: kept or stored, and proven."""
    made = model(
        [
            node("MatMul", ["x", "w"], ["h"]),
            node("MatMul", ["h", "zeros"], ["z"]),
            node("MatMul", ["h", "same"], ["s"]),
            node("Add", ["z", "s"], ["a"]),
            node("Mul", ["a", "scalar"], ["b"]),
            node("Add", ["b", "h"], ["c"]),
            node("Concat", ["c", "none"], ["y"], axis=0),
        ],
        {"x": ["n", 64]},
        {"y": ["m", 128]},
        {
            "w": normal(64, 128),
            "zeros": np.zeros((128, 128), np.float32),
            "same": np.full((128, 128), 0.01, np.float32),
            "scalar": np.float32(0.1),
            "none": np.zeros((0, 128), np.float32),
        },
    )
    onnx.save(made, tmp_path / "m.onnx")
    left = here("quantize", "m.onnx", "--bits", bits, "--prefer", "size", "--json", cwd=tmp_path)
    assert (left.code, left.err) == (0, "")
    document = json.loads(left.out)
    assert document["verdict"]["proven"] and document["coverage"]["share"] > 0.95


def test_constant_weights_are_proven(tmp_path: Path, here: Here) -> None:
    same = {name: np.full(s, 0.3, np.float32) for name, s in (("w", (64, 128)), ("v", (128, 64)))}
    onnx.save(mlp(**same), tmp_path / "m.onnx")
    left = here("quantize", "m.onnx", "--prefer", "size", "--json", cwd=tmp_path)
    assert (left.code, left.err) == (0, "")


# ---------------------------------------------------------------------------------------------
# the machine's own refusals


def small_files_only() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))


@pytest.mark.parametrize("kind", ["graph", "graph to be converted", "weights"])
def test_disk_full(tmp_path: Path, kind: str) -> None:
    if kind != "weights":
        made = mlp()
        made.opset_import[0].version = 21 if kind == "graph" else 17
        onnx.save(made, tmp_path / "m.onnx")
    else:
        save_file({"w": normal(512, 512)}, tmp_path / "m.onnx")
    before = contents(tmp_path)
    left = in_a_process("quantize", "m.onnx", cwd=tmp_path, preexec_fn=small_files_only)
    assert_refused(left, 2)
    assert contents(tmp_path) == before


def test_read_only_folder(tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(mlp(), tmp_path / "m.onnx")
    locked = tmp_path / "locked"
    locked.mkdir()
    if os.geteuid() == 0:  # nothing is read-only to root
        real = os.access
        monkeypatch.setattr(
            os, "access", lambda path, mode: Path(path) != locked and real(path, mode)
        )
    else:
        locked.chmod(0o555)
    before = contents(tmp_path)
    assert_refused(here("quantize", "m.onnx", "-o", "locked/q.onnx", cwd=tmp_path), 2, "read-only")
    assert contents(tmp_path) == before


DEPENDS = """
import torch

class Branches(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(64, 64)

    def forward(self, x):
        h = self.fc(x)
        steps = int(h.abs().sum().item())
        for _ in range(steps % 7):
            h = self.fc(h)
        return h[: max(1, steps % h.shape[0])]

def make():
    return Branches()
"""


def test_control_flow_that_cannot_be_exported(here: Here, tmp_path: Path) -> None:
    (tmp_path / "branches.py").write_text(DEPENDS)
    save_file({"fc.weight": normal(64, 64), "fc.bias": normal(64)}, tmp_path / "m.safetensors")
    before = contents(tmp_path)
    args = ["m.safetensors", "--model", "branches:make", "--input", "x:float32[8,64]"]
    # Nothing of the user's code is compiled into his folder either.
    left = here("quantize", *args, cwd=tmp_path)
    after = {k: v for k, v in contents(tmp_path).items() if "__pycache__" not in k}
    assert_refused(left, 2)
    assert "data-dependent" in left.err or "unbacked" in left.err or "symbolic" in left.err
    assert after == before


# ---------------------------------------------------------------------------------------------
# Ctrl-C


def _children(process: psutil.Process) -> Iterator[psutil.Process]:
    try:
        yield from process.children(recursive=True)
    except psutil.NoSuchProcess:
        return


@pytest.mark.parametrize("moment", ["capture", "measuring"])
def test_interrupted(tmp_path: Path, moment: str) -> None:
    onnx.save(mlp(w=normal(64, 128), v=normal(128, 64)), tmp_path / "m.onnx")
    before = contents(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeopt", "quantize", "m.onnx"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wanted = {"capture": "capture", "measuring": "edgeopt.measure.worker"}[moment]
    watched, born = psutil.Process(process.pid), set[psutil.Process]()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for child in _children(watched):
            born.add(child)
            try:
                line = " ".join(child.cmdline())
            except psutil.Error:
                continue
            if wanted in line:
                break
        else:
            time.sleep(0.005)
            continue
        break
    assert process.poll() is None, "it ended before it could be interrupted"
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert_refused(Left(process.returncode, out, err), 130, "interrupted")
    assert contents(tmp_path) == before
    psutil.wait_procs(list(born), timeout=5)
    assert not [p for p in born if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
