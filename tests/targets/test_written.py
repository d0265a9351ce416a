"""An artifact is held against the digests in its plan: any byte that changed is found."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from safetensors.numpy import save_file

import edgeopt
from edgeopt.errors import SourceError, UsageError
from edgeopt.targets.written import as_written, check_file

FLIPS = 200


def _command(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgeopt", "verify", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _onnx(path: Path) -> Path:
    drawn = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for index in range(2):
        weights.append(
            numpy_helper.from_array(
                drawn.standard_normal((512, 512)).astype(np.float32) / 22, f"w{index}"
            )
        )
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"y{index}"]))
        last = f"y{index}"
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 512])
        for name in ("x", last)
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, path)
    return path


def _safetensors(path: Path) -> Path:
    drawn = np.random.default_rng(0)
    save_file({"a.weight": drawn.standard_normal((256, 256)).astype(np.float32)}, path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Source and artifact of every format that quantize writes."""
    from models.random_llama import SHAPES, make

    folder = tmp_path_factory.mktemp("written")
    graph = _onnx(folder / "model.onnx")
    weights = _safetensors(folder / "weights.safetensors")
    make(folder / "llama", SHAPES["tiny"])
    pairs = {
        "onnx": (graph, folder / "q.onnx", {"prefer": "size"}),
        "onnx beside": (
            graph,
            folder / "e.onnx",
            {"prefer": "size", "external_data": "always"},
        ),
        "safetensors": (weights, folder / "q.safetensors", {}),
        "gguf": (folder / "llama", folder / "q.gguf", {"to": "gguf", "prove": "none"}),
    }
    for source, out, options in pairs.values():
        edgeopt.quantize(source, out=out, **options)
    return {name: (source, out) for name, (source, out, _) in pairs.items()}


FORMATS = ["onnx", "onnx beside", "safetensors", "gguf"]


def _flip(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 1 << bit]))


@pytest.mark.parametrize("name", FORMATS)
def test_an_artifact_is_as_it_was_written(name: str, made: dict[str, tuple[Path, Path]]) -> None:
    _, artifact = made[name]
    found = check_file(artifact)
    assert found.unchanged
    named = {check.name for check in found.checks}
    assert {"file as it was written", "plan as it was written"} <= named
    if name != "gguf":  # GGUF files are as llama.cpp's own tools write them
        assert {"source that the file names", "plan that the file names"} <= named
    ran = _command(str(artifact))
    assert ran.returncode == 0, ran.stderr
    assert "AS WRITTEN" in ran.stdout
    assert json.loads(_command(str(artifact), "--json").stdout)["unchanged"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_flipped_bit_is_found(
    name: str, made: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    _, artifact = made[name]
    for file in artifact.parent.glob(f"{artifact.name}*"):
        shutil.copy(file, tmp_path / file.name)
    here = tmp_path / artifact.name
    beside = [p for p in tmp_path.iterdir() if not p.name.endswith(".plan.json")]
    assert len(beside) == (2 if name == "onnx beside" else 1)
    drawn = random.Random(1)
    for _ in range(FLIPS):
        file = drawn.choice(beside)
        at, bit = drawn.randrange(file.stat().st_size), drawn.randrange(8)
        _flip(file, at, bit)
        assert not check_file(here).unchanged
        assert not all(check.passed for check in as_written(here))
        _flip(file, at, bit)
    assert check_file(here).unchanged
    with beside[0].open("ab") as stream:
        stream.write(b"\0")
    assert not check_file(here).unchanged


@pytest.mark.parametrize("name", ["onnx", "safetensors", "gguf"])
def test_alike_is_not_enough(name: str, made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """A changed bit deep in the weights leaves the answers alike, and is not proven."""
    source, artifact = made[name]
    shutil.copy(artifact, tmp_path / artifact.name)
    plan = artifact.with_name(f"{artifact.name}.plan.json")
    shutil.copy(plan, tmp_path / plan.name)
    here = tmp_path / artifact.name
    options = {"prefer": "size"} if name == "onnx" else {}
    assert all(c.passed for c in edgeopt.verify(source, here, **options).verdict.checks)
    data = here.read_bytes()
    # low bits in the weights: near the end, in a graph within the largest of them
    at = len(data) - 700
    if name == "onnx":
        largest = max((t.raw_data for t in onnx.load(here).graph.initializer), key=len)
        at = data.index(largest) + len(largest) // 2
    _flip(here, at, 0)
    proof = edgeopt.verify(source, here, **options)
    failed = [c.name for c in proof.verdict.checks if not c.passed]
    inside = [] if name == "gguf" else ["digest that the file carries"]
    assert failed == ["file as it was written", *inside]
    ran = _command(str(here))
    assert ran.returncode == 3
    assert "make it anew" in ran.stderr


def test_an_edited_plan_is_found(made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    _, artifact = made["onnx"]
    shutil.copy(artifact, tmp_path / artifact.name)
    plan = artifact.with_name(f"{artifact.name}.plan.json")
    document = json.loads(plan.read_text())
    document["decisions"][0]["nbytes"] += 1
    (tmp_path / plan.name).write_text(json.dumps(document))
    failed = [c.name for c in check_file(tmp_path / artifact.name).checks if not c.passed]
    assert failed == ["plan as it was written"]
    document["decisions"][0]["nbytes"] -= 1
    document["source_sha256"] = "0" * 64
    (tmp_path / plan.name).write_text(json.dumps(document))
    failed = [c.name for c in check_file(tmp_path / artifact.name).checks if not c.passed]
    assert failed == ["plan as it was written", "source that the file names"]


def test_a_damaged_plan_is_not_a_missing_one(
    made: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    """Where the digests lie, a byte changes: found, or what it said does not matter."""
    _, artifact = made["onnx beside"]
    for file in artifact.parent.glob(f"{artifact.name}*"):
        shutil.copy(file, tmp_path / file.name)
    here = tmp_path / artifact.name
    plan = tmp_path / f"{artifact.name}.plan.json"
    text = plan.read_bytes()
    for at in range(text.index(b'"artifact"'), len(text) - 1):
        if text[at : at + 1].isspace():
            continue
        _flip(plan, at, 0)
        assert not all(check.passed for check in as_written(here)), text[at - 9 : at + 9]
        assert not check_file(here).unchanged
        _flip(plan, at, 0)
    assert check_file(here).unchanged
    for other in (b"{}", b"", b"[1]"):
        plan.write_bytes(other)
        assert not all(check.passed for check in as_written(here))
        assert _command(str(here)).returncode == 3


def test_without_a_plan_beside_it(made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    _, artifact = made["gguf"]
    shutil.copy(artifact, tmp_path / "alone.gguf")
    with pytest.raises(UsageError, match="to prove a file without one, give its source"):
        check_file(tmp_path / "alone.gguf")
    assert as_written(tmp_path / "alone.gguf") == ()
    with pytest.raises(SourceError, match="no such file"):
        check_file(tmp_path / "gone.onnx")
    ran = _command(str(artifact), "--threads", "1")
    assert ran.returncode == 2
    assert "give both" in ran.stderr


def test_weights_beside_that_are_gone(made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    _, artifact = made["onnx beside"]
    for file in artifact.parent.glob(f"{artifact.name}*"):
        if not file.name.endswith(".data"):
            shutil.copy(file, tmp_path / file.name)
    assert not all(check.passed for check in as_written(tmp_path / artifact.name))
