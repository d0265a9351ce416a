"""``quantize`` and ``export`` to GGUF as a user calls them: from a folder to a proven file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from models.random_llama import SHAPES, make
from safetensors.numpy import load_file, save_file
from tests.tiny_gguf import without_digests

import edgeopt
from edgeopt.core import Plan
from edgeopt.errors import OutputError, SourceError, UsageError
from edgeopt.files.gguf import read_header
from edgeopt.verbs.quantize import make_plan

ROOT = Path(__file__).parents[2]
TEXT = "the cat sat on the mat and the rain in the morning was warm. " * 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verb") / "tiny-llama"
    make(path, SHAPES["tiny"])
    return path


def test_a_folder_becomes_a_proven_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    proof = edgeopt.quantize(folder, out, type="q4_k_m")
    assert proof.proven, proof.verdict
    assert not proof.verdict.unproven, "llama.cpp is installed: all of the quick proof is had"
    assert [check.name for check in proof.verdict.checks].count("structure") == 1
    assert out.stat().st_size == proof.artifact["nbytes"]
    assert int(proof.plan.choice("file_bytes")) == out.stat().st_size  # type: ignore[union-attr]
    assert proof.artifact["seconds"]["converting"] > 0
    assert {t.tensor_type.name for t in gguf.GGUFReader(out).tensors} == {"Q4_K", "Q6_K", "F32"}
    assert (tmp_path / "a.gguf.plan.json").exists()
    json.dumps(proof.to_json())


def test_names_beside_the_source(folder: Path) -> None:
    proof = edgeopt.export(folder, to="gguf", prove="none")
    f16 = folder.parent / "tiny-llama-F16.gguf"
    assert Path(proof.artifact["path"]) == f16
    again = edgeopt.quantize(f16, prove="none")
    assert Path(again.artifact["path"]) == folder.parent / "tiny-llama-Q4_K_M.gguf"
    for bits, kind in ((8, "Q8_0"), (4, "Q4_K_M")):
        proof = edgeopt.quantize(f16, bits=bits, prove="none", force=True)
        assert Path(proof.artifact["path"]).name == f"tiny-llama-{kind}.gguf"


def test_links_and_dots_in_the_source_s_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download cache has the name in a link and the bytes under a digest, elsewhere."""
    blob, link = tmp_path / "blobs" / "0a1b2c", tmp_path / "snapshot" / "tiny-F16.gguf"
    blob.parent.mkdir()
    link.parent.mkdir()
    edgeopt.export(folder, blob.with_suffix(".gguf"), prove="none")
    link.symlink_to(blob.with_suffix(".gguf").rename(blob))
    proof = edgeopt.quantize(link, type="Q8_0", prove="none")
    assert Path(proof.artifact["path"]) == link.with_name("tiny-Q8_0.gguf")
    copy = tmp_path / "mödel ü"
    shutil.copytree(folder, copy)
    (copy / "inner").mkdir()
    monkeypatch.chdir(copy / "inner")
    proof = edgeopt.quantize("..", type="Q8_0", prove="none")
    assert Path(proof.artifact["path"]) == tmp_path / "mödel ü-Q8_0.gguf"
    assert read_header(Path(proof.artifact["path"])).metadata["general.name"] == "mödel ü"


def test_export_keeps_the_source_s_kind_of_16_bits(folder: Path, tmp_path: Path) -> None:
    import ml_dtypes

    twin = tmp_path / "bf16"
    twin.mkdir()
    for file in folder.iterdir():
        (twin / file.name).write_bytes(file.read_bytes())
    tensors = load_file(twin / "model.safetensors")
    wide = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}
    save_file(wide, twin / "model.safetensors", {"format": "pt"})
    for path, kind in ((folder, "F16"), (twin, "BF16")):
        out = tmp_path / f"{kind}.gguf"
        edgeopt.export(path, out, prove="none")
        types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(out).tensors}
        assert types["blk.0.ffn_up.weight"] == kind
        assert types["blk.0.ffn_norm.weight"] == "F32"
    with pytest.raises(UsageError, match="use edgeopt quantize"):
        edgeopt.export(folder, tmp_path / "no.gguf", type="Q8_0")


def test_a_floor_that_the_user_gives(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.gguf"
    proof = edgeopt.quantize(folder, out, type="Q4_0", min_sqnr=60.0)
    assert not proof.proven
    assert "60 dB" in proof.verdict.checks[0].limit
    assert not out.exists()


def test_unproven_files_are_described_all_the_same(folder: Path, tmp_path: Path) -> None:
    bare = edgeopt.quantize(folder, tmp_path / "a.gguf", type="Q5_0", prove="none")
    seen = edgeopt.quantize(folder, tmp_path / "b.gguf", type="Q5_0")
    assert bare.artifact["bits_per_weight"] == seen.artifact["bits_per_weight"] > 5
    sizes = [
        {kind: found["nbytes"] for kind, found in proof.artifact["types"].items()}
        for proof in (bare, seen)
    ]
    assert sizes[0] == sizes[1]
    assert bare.coverage == seen.coverage


def test_what_the_user_should_know_stands_in_the_proof(folder: Path, tmp_path: Path) -> None:
    twin = tmp_path / "windowed"
    shutil.copytree(folder, twin)
    config = json.loads((twin / "config.json").read_text())
    (twin / "config.json").write_text(json.dumps({**config, "sliding_window": 16}))
    out = tmp_path / "a.gguf"
    proof = edgeopt.quantize(twin, out, type="Q8_0", prove="none")
    assert any("past 16 tokens" in note for note in proof.notes)
    assert edgeopt.verify(twin, out).notes == proof.notes


def test_what_decides_for_gguf(folder: Path, tmp_path: Path) -> None:
    for options in ({"to": "gguf"}, {"type": "Q8_0"}, {"out": tmp_path / "x.gguf"}):
        assert make_plan(folder, **options).options["to"] == "gguf"  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--type is for --to gguf"):
        make_plan(folder, to="onnx", type="Q4_K_M")
    with pytest.raises(UsageError, match="--tensor-type"):
        make_plan(folder, to="gguf", tensor_types=["no sign"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prove": "full"}, "--text"),
        ({"prove": "much"}, "none, quick, full"),
        ({"chunks": 0, "prove": "full", "text": "t"}, "--chunks 0"),
        ({"context": 4, "prove": "full", "text": "t"}, "--context 4"),
        ({"type": "Q4_X"}, "Q4_X"),
        ({"tensor_types": ["ffn_(=Q8_0"]}, "ffn_("),
        ({"tensor_types": ["no_such_name=Q8_0"]}, "no_such_name"),
        ({"tensor_types": ["ffn_up=Q99"]}, "Q99"),
        ({"imatrix": "/nonexistent"}, "/nonexistent"),
        ({"type": "Q8_0", "bits": 8}, "one of the two"),
        ({"data": "samples.npz"}, "--data"),
        ({"inputs": ["x:float32[1]"]}, "--input"),
        ({"block_size": 32}, "--block-size"),
        ({"prefer": "speed"}, "--prefer"),
    ],
)
def test_options_that_cannot_be_honoured(
    folder: Path, tmp_path: Path, options: dict[str, object], said: str
) -> None:
    out = tmp_path / "a.gguf"
    with pytest.raises((UsageError, SourceError)) as raised:
        edgeopt.quantize(folder, out, to="gguf", **options)  # type: ignore[arg-type]
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_same_plan_same_bytes(folder: Path, tmp_path: Path) -> None:
    """In processes with other hash seeds and thread counts; and from the plan that was kept."""
    code = "import sys, edgeopt; edgeopt.quantize(*sys.argv[1:3], type='Q5_K_S', prove='none')"
    for at, threads in (("1", "1"), ("2", "4")):
        subprocess.run(
            [sys.executable, "-c", code, str(folder), str(tmp_path / f"{at}.gguf")],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT / "src"),
                "PYTHONHASHSEED": at,
                "OMP_NUM_THREADS": threads,
                "NUMBA_NUM_THREADS": threads,
            },
            check=True,
        )
    first = (tmp_path / "1.gguf").read_bytes()
    assert first == (tmp_path / "2.gguf").read_bytes()
    kept = tmp_path / "1.gguf.plan.json"
    edgeopt.quantize(folder, tmp_path / "3.gguf", to="gguf", plan=kept, prove="none")
    assert first == (tmp_path / "3.gguf").read_bytes()
    for more in ({"type": "Q4_0"}, {"type": "Q5_K_S", "tensor_types": ["ffn_up=Q8_0"]}):
        with pytest.raises(UsageError, match="the plan"):
            edgeopt.quantize(folder, tmp_path / "4.gguf", plan=kept, **more)  # type: ignore[arg-type]
    edited = json.loads(kept.read_text())
    edited["decisions"][2]["scheme"]["name"] = "Q8_0"
    kept.write_text(json.dumps(edited))
    with pytest.raises(UsageError, match="make it anew"):
        edgeopt.quantize(folder, tmp_path / "4.gguf", to="gguf", plan=kept, prove="none")
    assert not (tmp_path / "4.gguf").exists()


def test_a_plan_reads_no_weights(folder: Path, tmp_path: Path) -> None:
    """Holes in place of the weights: the plan is the same, to the byte."""
    twin = tmp_path / folder.name
    twin.mkdir()
    for file in folder.iterdir():
        (twin / file.name).write_bytes(file.read_bytes())
    weights = twin / "model.safetensors"
    header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    size = weights.stat().st_size
    os.truncate(weights, header)
    os.truncate(weights, size)
    made = make_plan(folder, type="Q4_K_M")
    assert make_plan(twin, type="Q4_K_M") == made
    assert Plan.from_json(made.to_json()) == made


def test_the_full_proof_compares_predictions(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text(TEXT)
    proof = edgeopt.quantize(
        folder, tmp_path / "a.gguf", type="Q8_0", prove="full", text=text, chunks=2, context=64
    )
    assert proof.proven, proof.verdict
    document = json.dumps(proof.to_json())
    assert "Mean KLD" in document
    assert [file.name for file in tmp_path.iterdir() if file.suffix == ".gguf"] == ["a.gguf"]


def test_a_disk_without_room_is_told_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OutputError, match="1 kB are free"):
        edgeopt.quantize(folder, tmp_path / "a.gguf", type="Q8_0", prove="none")
    assert list(tmp_path.iterdir()) == []


def test_a_tied_model_has_one_table(folder: Path, tmp_path: Path) -> None:
    tied = tmp_path / "tied"
    tied.mkdir()
    for file in folder.iterdir():
        (tied / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tied / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tied / "model.safetensors", {"format": "pt"})
    config = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    proof = edgeopt.quantize(tied, tmp_path / "a.gguf", type="Q4_K_M")
    assert proof.proven
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert "output.weight" not in types
    assert types["token_embd.weight"] == "Q6_K"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"method": "copy"}, "method 'copy'"),
        ({"shape": [512, 128]}, r"shape \[512, 128\]"),
        ({"nbytes": 7}, "7 bytes"),
        ({"scheme": {"type": "ggml", "name": "BF16"}}, "bytes, BF16 takes"),
    ],
)
def test_a_plan_that_somebody_edited(
    folder: Path, tmp_path: Path, edit: dict[str, object], said: str
) -> None:
    """What a decision repeats of the source is held against the source, not believed."""
    document = make_plan(folder, type="Q8_0").to_json()
    decision = next(d for d in document["decisions"] if d["tensor"] == "blk.0.attn_q.weight")
    decision.update(edit)
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(document))
    with pytest.raises(UsageError, match=said):
        edgeopt.quantize(folder, tmp_path / "a.gguf", to="gguf", plan=plan, prove="none")
    document["options"].pop("type")
    plan.write_text(json.dumps(document))
    with pytest.raises(UsageError):
        edgeopt.quantize(folder, tmp_path / "a.gguf", to="gguf", plan=plan, prove="none")
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_model_bin_is_a_source_too(folder: Path, tmp_path: Path, zipped: bool) -> None:
    """Through our own reader of torch files: the same bytes as from safetensors, but for the
    name of the source."""
    torch = pytest.importorskip("torch", reason="writes the file that is read")
    twin = tmp_path / folder.name
    twin.mkdir()
    for file in folder.iterdir():
        if file.suffix != ".safetensors":
            (twin / file.name).write_bytes(file.read_bytes())
    tensors = {n: torch.from_numpy(a) for n, a in load_file(folder / "model.safetensors").items()}
    torch.save(tensors, twin / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    for path, out in ((folder, "a.gguf"), (twin, "b.gguf")):
        edgeopt.quantize(path, tmp_path / out, type="Q4_0", prove="none")
    assert without_digests(tmp_path / "a.gguf") == without_digests(tmp_path / "b.gguf")


@pytest.mark.parametrize(
    ("name", "phi3", "expected"),
    [
        ("my-phi3", True, "my-phi3"),
        ("mine", True, "Phi-3 mine"),
        ("tiny-phi-3", False, "tiny-phi"),
        ("llama-from-Phi3", False, "llama-from-phi"),
    ],
)
def test_the_name_decides_whether_spaces_are_taken(name: str, phi3: bool, expected: str) -> None:
    """llama.cpp takes "phi3" in the name of any model as a sign of what its tokens are."""
    from edgeopt.llm.read import _name

    assert _name(Path(name), phi3) == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_half_way_nothing_is_left(
    tmp_path: Path, folder: Path, number: signal.Signals
) -> None:
    """A sparse model that takes seconds; the signal comes once the temporary file is there."""
    model = tmp_path / "slow"
    model.mkdir()
    for file in folder.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    rows, columns = 1 << 20, 256
    tensors = {n: (a.shape, "F16") for n, a in load_file(model / "model.safetensors").items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = ((rows, columns), "F16")
    header, at = {}, 0
    for name, (shape, dtype) in tensors.items():
        nbytes = 2 * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    raw = json.dumps(header).encode()
    with (model / "model.safetensors").open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        stream.truncate(8 + len(raw) + at)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.gguf").write_text("what was there before")
    command = [sys.executable, "-m", "edgeopt", "quantize"]
    process = subprocess.Popen(
        [*command, str(model), "--type", "Q6_K", "-o", str(out / "a.gguf"), "--prove", "none"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while len(list(out.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 143), said
    assert [file.name for file in out.iterdir()] == ["a.gguf"]
    assert (out / "a.gguf").read_text() == "what was there before"
    assert "Traceback" not in said
