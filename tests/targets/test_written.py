"""An artifact is held against the digests in its plan: any byte that changed is found."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from gguf import GGUFReader
from onnx import helper, numpy_helper
from safetensors import safe_open
from safetensors.numpy import save_file

import edgeopt
from edgeopt.core import Weight
from edgeopt.errors import ProofFailed, SourceError, UsageError
from edgeopt.files.open import open_source
from edgeopt.files.seal import read_seal, seal
from edgeopt.files.sparse_write import write_sparse
from edgeopt.targets.written import as_written, check_file, sign_document

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
    # low bits in the weights: near the end, in a graph inside one of its tensors
    _flip(here, len(data) * 3 // 8 if name == "onnx" else len(data) - 700, 0)
    proof = edgeopt.verify(source, here, **options)
    failed = [c.name for c in proof.verdict.checks if not c.passed]
    assert failed == ["file as it was written"]
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
    assert failed == ["q.onnx.plan.json as it was written", "plan as it was written"]
    document["decisions"][0]["nbytes"] -= 1
    document["source_sha256"] = "0" * 64
    (tmp_path / plan.name).write_text(json.dumps(document))
    failed = [c.name for c in check_file(tmp_path / artifact.name).checks if not c.passed]
    assert failed == ["q.onnx.plan.json as it was written", "plan as it was written"]


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


def test_a_file_that_nobody_signed(made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    source, artifact = made["onnx"]
    with pytest.raises(UsageError, match=r"no digest of edgeopt's inside.*to prove a file without"):
        check_file(source)
    assert as_written(source) == ()
    with pytest.raises(SourceError, match="no such file"):
        check_file(tmp_path / "gone.onnx")
    ran = _command(str(artifact), "--threads", "1")
    assert ran.returncode == 2
    assert "give both" in ran.stderr
    with pytest.raises(UsageError, match=r"--threads: for comparing with a source"):
        edgeopt.verify(artifact, threads=1)


def test_weights_beside_that_are_gone(made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    _, artifact = made["onnx beside"]
    for file in artifact.parent.glob(f"{artifact.name}*"):
        if not file.name.endswith(".data"):
            shutil.copy(file, tmp_path / file.name)
    assert not all(check.passed for check in as_written(tmp_path / artifact.name))


# ---------------------------------------------------------------------------------------------
# the digest inside: whatever verb wrote the file, wherever it was moved


@pytest.fixture(scope="module")
def sealed(made: dict[str, tuple[Path, Path]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of file that has its digest inside, moved away from its plan."""
    folder = tmp_path_factory.mktemp("sealed")
    for _, artifact in made.values():
        for file in artifact.parent.glob(f"{artifact.name}*"):
            if not file.name.endswith("plan.json"):
                shutil.copy(file, folder / file.name)
    graph, llama = made["onnx"][0], made["gguf"][0]
    edgeopt.export(graph, folder / "fp32.onnx", prefer="size")
    edgeopt.export(graph, folder / "half.onnx", half=True, prefer="size")
    edgeopt.export(graph, folder / "far.onnx", external_data="always", prefer="size")
    edgeopt.export(llama, folder / "f16.gguf", to="gguf", prove="none")
    weights = _few()
    write_sparse([weights], folder / "sparse.safetensors")
    for plan in folder.glob("*.plan.json"):
        plan.unlink()
    return folder


def _few() -> Weight:
    array = np.zeros((64, 64), np.float32)
    array[::4] = 1.5
    return Weight("w", (64, 64), "float32", array.nbytes, lambda lo, hi: array[lo:hi])


SEALED = [
    "q.onnx",
    "e.onnx",
    "fp32.onnx",
    "half.onnx",
    "far.onnx",
    "q.safetensors",
    "sparse.safetensors",
    "q.gguf",
    "f16.gguf",
]


def _said(path: Path) -> str:
    """The digest that a file names, read by its format's own library."""
    if path.suffix == ".onnx":
        model = onnx.load(path, load_external_data=False)
        return next(p.value for p in model.metadata_props if p.key == "edgeopt.sha256")
    if path.suffix == ".gguf":
        field = GGUFReader(path).fields["edgeopt.sha256"]
        return bytes(field.parts[field.data[0]]).decode()
    with safe_open(path, "numpy") as opened:
        return opened.metadata()["edgeopt.sha256"]


@pytest.mark.parametrize("name", SEALED)
def test_anybody_can_recompute_the_digest(name: str, sealed: Path) -> None:
    """The recipe of docs/formats.md as it stands there: Python alone."""
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```py\n(import hashlib.*?)```", page, re.DOTALL)
    path = sealed / name
    assert path.read_bytes().count(_said(path).encode()) == 1
    run = [sys.executable, "-I", "-c", recipe, str(path)]
    assert subprocess.check_output(run, text=True) == "as written\n"


@pytest.mark.parametrize("name", SEALED)
def test_every_flip_is_found_without_a_plan(name: str, sealed: Path, tmp_path: Path) -> None:
    for file in sealed.glob(f"{name}*"):
        shutil.copy(file, tmp_path / file.name)
    here = tmp_path / name
    assert edgeopt.verify(here).unchanged
    assert edgeopt.verify(here).plan is None
    files = sorted(tmp_path.iterdir())
    drawn = random.Random(2)
    raw = here.read_bytes()
    around = raw.index(b"edgeopt.sha256")
    places = [(here, at) for at in range(around - 8, min(around + 96, len(raw)))]
    while len(places) < FLIPS:
        file = drawn.choice(files)
        places.append((file, drawn.randrange(file.stat().st_size)))
    for file, at in places:
        bit = drawn.randrange(8)
        _flip(file, at, bit)
        assert not check_file(here).unchanged, (file.name, at, bit)
        assert not all(check.passed for check in as_written(here))
        _flip(file, at, bit)
    here.write_bytes(raw[:-1])
    assert not check_file(here).unchanged
    here.write_bytes(raw + b"0")
    assert not check_file(here).unchanged
    here.write_bytes(raw)
    assert _command(str(here)).returncode == 0


def test_a_renamed_file_is_the_same(sealed: Path, tmp_path: Path) -> None:
    """A graph that was renamed still names its weights' file."""
    for name in ("half.onnx", "far.onnx", "q.gguf"):
        here = Path(shutil.copy(sealed / name, tmp_path / f"another-{name}"))
        if name == "far.onnx":
            shutil.copy(sealed / "far.onnx.data", tmp_path)
        assert edgeopt.verify(here).unchanged
    _flip(tmp_path / "far.onnx.data", 5000, 0)
    assert not edgeopt.verify(tmp_path / "another-far.onnx").unchanged
    (tmp_path / "far.onnx.data").unlink()
    assert not edgeopt.verify(tmp_path / "another-far.onnx").unchanged


def test_gguf_names_its_source_and_plan(made: dict[str, tuple[Path, Path]]) -> None:
    source, artifact = made["gguf"]
    fields = GGUFReader(artifact).fields
    said = {
        key: bytes(field.parts[field.data[0]]).decode()
        for key, field in fields.items()
        if key.startswith("edgeopt.")
    }
    assert said.keys() == {
        "edgeopt.version",
        "edgeopt.sha256",
        "edgeopt.source_sha256",
        "edgeopt.plan_sha256",
    }
    plan = json.loads(artifact.with_name("q.gguf.plan.json").read_text())
    assert said["edgeopt.plan_sha256"] == plan["digest"]
    assert said["edgeopt.source_sha256"] == open_source(source).sha256()
    import llama_cpp

    assert llama_cpp.Llama(str(artifact), vocab_only=True, verbose=False).metadata[
        "edgeopt.version"
    ]


def test_what_is_made_from_an_artifact_has_digests_of_its_own(sealed: Path, tmp_path: Path) -> None:
    edgeopt.quantize(sealed / "f16.gguf", tmp_path / "again.gguf", type="Q8_0", prove="none")
    edgeopt.export(sealed / "fp32.onnx", tmp_path / "again.onnx", half=True, prefer="size")
    for old, new in (("f16.gguf", "again.gguf"), ("fp32.onnx", "again.onnx")):
        assert edgeopt.verify(tmp_path / new).unchanged
        assert _said(tmp_path / new) != _said(sealed / old)
        (tmp_path / f"{new}.plan.json").unlink(missing_ok=True)
        assert edgeopt.verify(tmp_path / new).unchanged


def test_alike_is_not_enough_without_a_plan(
    made: dict[str, tuple[Path, Path]], sealed: Path, tmp_path: Path
) -> None:
    source, _ = made["onnx"]
    here = Path(shutil.copy(sealed / "half.onnx", tmp_path))
    _flip(here, here.stat().st_size * 3 // 8, 0)
    failed = [c.name for c in edgeopt.verify(source, here).verdict.checks if not c.passed]
    assert failed == ["file as it was written"]


@pytest.mark.parametrize("name", ["half.onnx", "q.safetensors", "q.gguf"])
def test_too_damaged_to_be_read_is_not_proven(
    name: str, made: dict[str, tuple[Path, Path]], sealed: Path, tmp_path: Path
) -> None:
    """A broken header, which readers refuse, is a changed file all the same: exit 3."""
    source = made["onnx" if name == "half.onnx" else name.partition(".")[2]][0]
    here = Path(shutil.copy(sealed / name, tmp_path))
    raw = bytearray(here.read_bytes())
    raw[8:16] = b"\xff" * 8
    here.write_bytes(raw)
    with pytest.raises(ProofFailed, match="changed since it was written"):
        edgeopt.verify(source, here)
    ran = _command(str(source), str(here))
    assert ran.returncode == 3
    assert ran.stderr.count("\n") == 1


def test_programs_and_folders_have_their_digests_beside_them(tmp_path: Path) -> None:
    program, state = tmp_path / "m.pt", tmp_path / "m.state.safetensors"
    about, folder = tmp_path / "m.json", tmp_path / "folder"
    program.write_bytes(b"program" * 99)
    state.write_bytes(b"state" * 99)
    about.write_text(json.dumps({"edgeopt_pruned": 1, "sizes": {"a": [1, 2]}}))
    sign_document(program, about, [state])
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text(name * 50)
    inside = folder / "edgeopt.json"
    inside.write_text(json.dumps({"edgeopt_pruned": 1}))
    sign_document(folder, inside, sorted(folder.iterdir()))
    for artifact, files in (
        (program, (program, state, about)),
        (folder, tuple(sorted(folder.iterdir()))),
    ):
        assert edgeopt.verify(artifact).unchanged
        assert _command(str(artifact)).returncode == 0
        drawn = random.Random(3)
        for _ in range(FLIPS):
            file = drawn.choice(files)
            text = file.read_bytes()
            at = drawn.randrange(len(text))
            if text[at : at + 1].isspace():
                continue  # between the words of JSON
            _flip(file, at, drawn.randrange(8))
            assert not check_file(artifact).unchanged, (file.name, at)
            file.write_bytes(text)


def test_the_digest_is_found_wherever_pieces_end(tmp_path: Path) -> None:
    """The file is looked through a piece at a time; its place may lie across two of them."""
    place = b'edgeopt.sha256":"' + b"0" * 64
    for before in range((1 << 20) - len(place) - 2, (1 << 20) + 3):
        path = tmp_path / "x.bin"
        path.write_bytes(b"z" * before + place + b"z" * 5)
        digits = seal(path)
        found = read_seal(path)
        assert (found.written, found.whole) == (digits, True)
