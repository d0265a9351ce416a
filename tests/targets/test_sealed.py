"""A file that carries its own digest is checked without a plan: any change is found."""

from __future__ import annotations

import hashlib
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
from safetensors import safe_open
from safetensors.numpy import save_file

import edgeopt
from edgeopt.errors import EdgeoptError
from edgeopt.targets.written import as_written, check_file

FLIPS = 200
FORMS = ["export", "export beside", "export half", "quantize", "packed"]


def _onnx(path: Path) -> Path:
    drawn = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32) / 16
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    values = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 256]) for name in "xy"
    ]
    graph = helper.make_graph(
        nodes, "g", values[:1], values[1:], [numpy_helper.from_array(drawn, "w")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {"author": "somebody"})
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Source and artifact of everything that carries its digest."""
    folder = tmp_path_factory.mktemp("sealed")
    graph = _onnx(folder / "model.onnx")
    weights = folder / "weights.safetensors"
    drawn = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    save_file({"a.weight": drawn}, weights)
    edgeopt.export(graph, out=folder / "e.onnx")
    edgeopt.export(graph, out=folder / "b.onnx", external_data="always")
    edgeopt.export(graph, out=folder / "h.onnx", half=True)
    edgeopt.quantize(graph, out=folder / "q.onnx", prefer="size")
    edgeopt.quantize(weights, out=folder / "q.safetensors")
    names = ["e.onnx", "b.onnx", "h.onnx", "q.onnx", "q.safetensors"]
    sources = [graph, graph, graph, graph, weights]
    return {
        form: (source, folder / name)
        for form, source, name in zip(FORMS, sources, names, strict=True)
    }


def _moved(artifact: Path, folder: Path) -> Path:
    """The artifact in a folder of its own: its weights' file with it, and no plan."""
    data = artifact.with_name(f"{artifact.name}.data")
    for file in (artifact, data):
        if file.exists():
            shutil.copy(file, folder / file.name)
    return folder / artifact.name


def _flip(path: Path, at: int, bit: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 1 << bit]))


def _recomputed(path: Path) -> tuple[str, str]:
    """The digest that the file carries and the one that it has, as docs/formats.md says."""
    if path.suffix == ".onnx":
        model = onnx.load(path, load_external_data=False)
        said = {p.key: p.value for p in model.metadata_props}["edgeopt.sha256"]
    else:
        with safe_open(path, "numpy") as opened:
            said = opened.metadata()["edgeopt.sha256"]
    data = path.read_bytes().replace(said.encode(), b"0" * 64)
    beside = path.with_name(f"{path.name}.data")
    if beside.exists():
        data += beside.read_bytes()
    return said, hashlib.sha256(data).hexdigest()


def _unchanged(path: Path) -> bool:
    try:
        return check_file(path).unchanged
    except EdgeoptError:
        return False


@pytest.mark.parametrize("form", FORMS)
def test_anybody_can_recompute_it(form: str, made: dict[str, tuple[Path, Path]]) -> None:
    said, found = _recomputed(made[form][1])
    assert said == found


@pytest.mark.parametrize("form", FORMS)
def test_every_flipped_bit_is_found_without_a_plan(
    form: str, made: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    here = _moved(made[form][1], tmp_path)
    assert _unchanged(here)
    files = sorted(tmp_path.iterdir())
    assert len(files) == (2 if form == "export beside" else 1)
    drawn = random.Random(1)
    places = [(file, drawn.randrange(file.stat().st_size)) for file in files for _ in range(FLIPS)]
    # where the digest stands, and the key before it: every byte
    at = here.read_bytes().index(b"edgeopt.sha256")
    places += [(here, at + offset) for offset in range(len("edgeopt.sha256") + 66)]
    for index, (file, at) in enumerate(places):
        bit = drawn.randrange(8)
        _flip(file, at, bit)
        assert not _unchanged(here), (file.name, at, bit)
        if index % 8 == 0:  # the other way asks the same
            assert not all(check.passed for check in as_written(here)), (file.name, at, bit)
        _flip(file, at, bit)
    for file in files:
        whole = file.read_bytes()
        for other in (whole + b"\0", whole[:-1], whole[: len(whole) // 2]):
            file.write_bytes(other)
            assert not _unchanged(here)
            assert not all(check.passed for check in as_written(here))
        file.write_bytes(whole)
    assert _unchanged(here)


def test_a_renamed_file_is_the_same(made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    other = _moved(made["export"][1], tmp_path).rename(tmp_path / "another.onnx")
    command = [sys.executable, "-m", "edgeopt", "verify", str(other)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "by the digest inside it" in ran.stdout
    _flip(other, other.stat().st_size // 2, 0)
    ran = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert ran.returncode == 3
    assert json.loads(ran.stdout)["plan"] is None


def test_alike_is_not_enough(made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """A low bit of a weight of an exported file, with no plan anywhere: not proven."""
    source, artifact = made["export"]
    here = _moved(artifact, tmp_path)
    assert edgeopt.verify(source, here).proven
    weights = numpy_helper.to_array(onnx.load(source).graph.initializer[0]).tobytes()
    _flip(here, here.read_bytes().index(weights), 0)
    failed = [c.name for c in edgeopt.verify(source, here).verdict.checks if not c.passed]
    assert failed == ["digest that the file carries"]


def test_what_is_made_of_an_artifact_has_its_own(
    made: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    out = tmp_path / "again.onnx"
    edgeopt.quantize(made["export"][1], out=out, prefer="size")
    assert check_file(out).unchanged
    said, found = _recomputed(out)
    assert said == found != _recomputed(made["export"][1])[0]
    props = {p.key: p.value for p in onnx.load(out).metadata_props}
    assert props["author"] == "somebody"
    again = tmp_path / "other.onnx"
    edgeopt.quantize(made["export"][1], out=again, prefer="size")
    assert again.read_bytes() == out.read_bytes()


def test_a_strangers_file_carries_none(made: dict[str, tuple[Path, Path]]) -> None:
    source, _ = made["export"]
    assert as_written(source) == ()
    with pytest.raises(EdgeoptError, match="has no digest inside"):
        check_file(source)
