"""The proof of a GGUF file: what passes, and every way in which a file can be wrong."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tests import tiny_gguf
from tests.in_process import no_processes

from edgeopt.core import Plan, Proof, Source
from edgeopt.errors import OutputError, SourceError, UsageError, WorkerError
from edgeopt.files.gguf_header import read_header
from edgeopt.files.open import open_source
from edgeopt.llm.model import LanguageModel
from edgeopt.llm.plan import GgufAsked, make_gguf_plan
from edgeopt.llm.read import read_model
from edgeopt.measure import process
from edgeopt.report.text import render
from edgeopt.runtimes import llamacpp
from edgeopt.targets.gguf import checks as gguf_checks
from edgeopt.targets.gguf import prove as module
from edgeopt.targets.gguf.prove import prove_gguf

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")

WORDS = "The weather there is thin, and then the heather thickens.\n" * 30


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    no_processes(monkeypatch)


@dataclass
class Made:
    """A source, and a file made of it."""

    source: Source
    model: LanguageModel
    plan: Plan
    path: Path

    def prove(self, **options: Any) -> Proof:
        final = self.path.with_name("final.gguf")
        given = {"threads": 1, **options}
        return prove_gguf("quantize", self.source, self.model, self.plan, self.path, final, **given)

    def place(self, tensor: str) -> tuple[int, int]:
        """Where the tensor lies in the file: first byte, bytes."""
        header = read_header(self.path)
        info = next(t for t in header.tensors if t.name == tensor)
        return header.data_offset + info.offset, info.nbytes


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Made]:
    def made(kind: str = "Q8_0", model: LanguageModel | None = None) -> Made:
        given = model or tiny_gguf.llama(layers=1)
        source = open_source(tiny_gguf.write(given, tmp_path / "source.gguf"))
        # ggml's own encoder and gguf-py's writer: what is proven here is not also what proves.
        path = tiny_gguf.write(given, tmp_path / "made.gguf", kind)
        asked = GgufAsked(kind, (("output.weight", kind),) if kind == "Q4_0" else ())
        read = read_model(source)
        return Made(source, read, make_gguf_plan(source, read, asked), path)

    return made


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(WORDS)
    return path


def failed(proof: Proof) -> list[str]:
    return [check.name for check in proof.verdict.checks if not check.passed]


def found(proof: Proof, name: str) -> str:
    return next(check.found for check in proof.verdict.checks if check.name == name)


def rendered(proof: Proof) -> str:
    console = Console(width=100, file=io.StringIO())
    render(proof, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_a_sound_file_is_proven(make: Callable[..., Made]) -> None:
    made = make("Q4_0")
    proof = made.prove()
    assert proof.proven
    names = ["tensors", "structure", "runs", "something quantized", "file smaller"]
    assert [check.name for check in proof.verdict.checks] == names
    assert proof.verdict.unproven == ()
    artifact = proof.artifact
    assert artifact["path"].endswith("final.gguf")
    assert artifact["nbytes"] == made.path.stat().st_size
    assert artifact["types"]["Q4_0"]["lowest_db"] == pytest.approx(21, abs=2)
    assert artifact["types"]["F32"]["lowest_db"] == float("inf")
    assert 4.5 < artifact["bits_per_weight"] < 5.5
    assert artifact["session"]["pages_shared"] is True
    assert artifact["seconds"]["proving"] > 0
    assert artifact["proof_disk"] == 0
    ratios = {change.decision.tensor: change.sqnr_db for change in proof.changes}
    assert ratios["output_norm.weight"] is None  # copied
    assert ratios["blk.0.attn_q.weight"] == pytest.approx(21, abs=2)
    assert 0.9 < proof.coverage["share"] < 1
    json.dumps(proof.to_json())
    compile(proof.usage, "usage", "exec")
    text = rendered(proof)
    assert "PROVEN" in text
    assert "pages shared with every process" in " ".join(text.split())
    assert "Bits a weight" in text


def test_the_errors_are_those_of_the_written_bytes(make: Callable[..., Made]) -> None:
    made = make()
    at, nbytes = made.place("blk.0.ffn_gate.weight")
    raw = bytearray(made.path.read_bytes())
    raw[at + nbytes // 2 : at + nbytes] = bytes(nbytes - nbytes // 2)
    made.path.write_bytes(raw)
    proof = made.prove()
    assert failed(proof) == ["tensors"]
    assert "3.0 dB in blk.0.ffn_gate.weight (Q8_0)" in found(proof, "tensors")
    assert "NOT PROVEN" in rendered(proof)


def test_a_spoiled_stretch_is_named(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeopt.measure import tensor_errors

    monkeypatch.setattr(tensor_errors, "_CHUNK", 8 * 256)
    made = make("Q4_0")
    at, nbytes = made.place("blk.0.ffn_gate.weight")
    raw = bytearray(made.path.read_bytes())
    raw[at : at + nbytes // 64] = bytes(nbytes // 64)  # 8 of 512 rows
    made.path.write_bytes(raw)
    proof = made.prove()
    assert failed(proof) == ["tensors"]
    assert " dB in its rows 0 to 7" in found(proof, "tensors")


def test_nan_among_the_scales(make: Callable[..., Made]) -> None:
    made = make()
    at, _ = made.place("output.weight")
    raw = bytearray(made.path.read_bytes())
    raw[at : at + 2] = np.float16(np.nan).tobytes()
    made.path.write_bytes(raw)
    proof = made.prove()
    assert failed(proof) == ["tensors", "runs"]
    assert "NaN or Inf in output.weight" in found(proof, "tensors")
    json.dumps(proof.to_json())


def test_other_metadata_than_planned(make: Callable[..., Made]) -> None:
    made = make()
    raw = made.path.read_bytes()
    made.path.write_bytes(raw.replace(b"\x04\0\0\0\0\0\0\0tiny", b"\x04\0\0\0\0\0\0\0tony", 1))
    proof = made.prove()
    assert failed(proof) == ["structure"]
    assert found(proof, "structure") == "metadata general.name is another than planned"
    made.path.write_bytes(raw.replace(b"general.name", b"general.nome", 1))
    assert "general.name is missing and 1 more" in found(made.prove(), "structure")


def test_other_types_than_planned(make: Callable[..., Made]) -> None:
    made = make()
    plan = make_gguf_plan(made.source, made.model, GgufAsked("Q8_0", (("attn_q", "Q4_0"),)))
    proof = dataclasses.replace(made, plan=plan).prove()
    assert failed(proof) == ["structure"]
    assert "Q8_0 of 69632 bytes where blk.0.attn_q.weight" in found(proof, "structure")
    fewer = dataclasses.replace(made.plan, decisions=made.plan.decisions[:-1])
    proof = dataclasses.replace(made, plan=fewer).prove()
    assert found(proof, "structure") == "12 tensors, 11 planned"


def test_places_that_are_none() -> None:
    expected = [gguf_checks.Expected(name, (4,), "F32", 16) for name in "ab"]
    sound = [["a", [4], "F32", 64, 16], ["b", [4], "F32", 96, 16]]
    assert gguf_checks._wrong_tensors(sound, expected, 32, 128) == []
    gap = [sound[0], ["b", [4], "F32", 128, 16]]
    assert "b at byte 128, the tensor before it ends at 80" in gguf_checks._wrong_tensors(
        gap, expected, 32, 160
    )
    assert "the file at 130" in gguf_checks._wrong_tensors(sound, expected, 32, 130)[0]


def test_a_file_cut_short(make: Callable[..., Made]) -> None:
    made = make()
    made.path.write_bytes(made.path.read_bytes()[:-100_000])
    proof = made.prove()
    assert failed(proof) == ["structure"]
    assert "cut short" in found(proof, "structure")
    json.dumps(proof.to_json())
    rendered(proof)


def test_a_tensor_that_is_not_the_sources(make: Callable[..., Made]) -> None:
    made = make()
    weights = made.model.tensors
    for other, says in (
        (weights[1:], "token_embd.weight is in the file and not in the source"),
        ((*weights, dataclasses.replace(weights[0], name="more")), "more is not in the file"),
        (
            (dataclasses.replace(weights[0], shape=(1, 256)), *weights[1:]),
            "token_embd.weight has shape [258, 256], the source's has [1, 256]",
        ),
    ):
        model = dataclasses.replace(made.model, tensors=other)
        proof = dataclasses.replace(made, model=model).prove()
        assert found(proof, "tensors") == says


def test_a_worker_that_dies_is_a_check_that_fails(
    make: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = process.Workplace.run
    made = make()
    path = str(made.path.resolve())

    def run(self: process.Workplace, job: Any, **options: Any) -> process.Outcome:
        if job["kind"] != "generate":
            return plain(self, job, **options)
        died = WorkerError(f"the worker died from SIGILL while running {path}")
        return process.Outcome(None, died, subject)

    monkeypatch.setattr(process.Workplace, "run", run)
    subject = "artifact"
    proof = made.prove()
    assert failed(proof) == ["runs"]
    assert found(proof, "runs") == "the worker died from SIGILL while running final.gguf"
    assert proof.usage == ""
    subject = "llama.cpp"
    proof = made.prove()
    assert failed(proof) == []
    assert proof.verdict.unproven[0].startswith("runs: the worker died")


def test_what_is_not_installed_is_not_proven(
    make: Callable[..., Made], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamacpp, "installed", lambda: False)
    monkeypatch.setattr(gguf_checks, "is_installed", lambda name: False)
    proof = make().prove(depth="full", text=text)
    assert proof.proven
    names = ["tensors", "something quantized", "file smaller"]
    assert [check.name for check in proof.verdict.checks] == names
    assert [line[line.rindex("[") :] for line in proof.verdict.unproven] == [
        "[gguf]'",
        "[llama]'",
        "[llama]'",
    ]
    assert "Not checked: loading and running the file needs llama-cpp-python" in rendered(proof)


def test_nothing_proven(make: Callable[..., Made]) -> None:
    made = make()
    made.path.write_bytes(made.path.read_bytes()[:-100_000])
    proof = made.prove(depth="none")
    assert proof.verdict.checks == ()
    assert "NOT CHECKED" in rendered(proof)
    assert "PROVEN" not in rendered(proof)


# -- full


def test_predictions_against_a_gguf_source(make: Callable[..., Made], text: Path) -> None:
    proof = make("Q4_0").prove(depth="full", text=text, chunks=2, context=64)
    assert proof.proven
    divergence = proof.artifact["divergence"]
    assert (divergence["text"], divergence["chunks"], divergence["tokens"]) == ("words.txt", 2, 62)
    values = {each["name"]: each["value"] for each in divergence["statistics"]}
    assert 0 < values["Mean KLD"] < 1
    assert "KL divergence" in found(proof, "next tokens")
    shown = rendered(proof)
    for name in ("Mean PPL(Q)", "Cor(ln(PPL(Q)), ln(PPL(base)))", "99.9% KLD", "RMS Δp"):
        assert name in shown
    json.dumps(proof.to_json())


def of_a_folder(made: Made) -> Made:
    return dataclasses.replace(made, source=dataclasses.replace(made.source, kind="hf-folder"))


def test_the_reference_is_temporary(make: Callable[..., Made], text: Path) -> None:
    made = of_a_folder(make())
    kept: list[Path] = []
    steps: list[str] = []

    def write(path: Path) -> int:
        kept.append(path)
        shutil.copyfile(made.source.path, path)
        return path.stat().st_size

    before = sorted(text.parent.iterdir())
    options: dict[str, Any] = {"depth": "full", "text": text, "chunks": 1, "context": 64}
    proof = made.prove(
        **options, write_reference=write, progress=lambda step, part: steps.append(step)
    )
    assert proof.proven
    assert proof.artifact["proof_disk"] == made.source.path.stat().st_size
    assert "of that, writing the reference" in proof.artifact["seconds"]
    assert not kept[0].exists()
    assert sorted(text.parent.iterdir()) == before
    assert any(step.startswith("writing the reference, ") for step in steps)
    assert "of disk for a while" in rendered(proof)
    with pytest.raises(SourceError, match="nothing to make one"):
        made.prove(**options)


def test_no_room_for_the_reference(
    make: Callable[..., Made], text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(text.parent)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    made = of_a_folder(make())
    with pytest.raises(OutputError, match=r"for a while, 1 kB are free; .* --prove quick"):
        made.prove(depth="full", text=text, write_reference=lambda path: 0)


def test_predictions_that_are_far_off(
    make: Callable[..., Made], text: Path, tmp_path: Path
) -> None:
    made = make()
    other = tiny_gguf.write(tiny_gguf.llama(seed=9, layers=1), tmp_path / "other.gguf")
    source = dataclasses.replace(made.source, path=other)
    proof = dataclasses.replace(made, source=source).prove(
        depth="full", text=text, chunks=2, context=64
    )
    assert failed(proof) == ["next tokens"]


def test_texts_that_will_not_do(make: Callable[..., Made], text: Path) -> None:
    made = make()
    with pytest.raises(UsageError, match="--text"):
        made.prove(depth="full")
    with pytest.raises(SourceError, match="no such file"):
        made.prove(depth="full", text=text.with_name("missing.txt"))
    text.write_text("  \n")
    with pytest.raises(SourceError, match="is empty"):
        made.prove(depth="full", text=text)
    text.write_text("short")
    proof = made.prove(depth="full", text=text)
    assert failed(proof) == ["next tokens"]
    assert "a chunk takes 256" in found(proof, "next tokens")  # no more than the model knows


def test_an_embedder(make: Callable[..., Made], text: Path) -> None:
    text.write_text("a quick fox\n\nsomething else\nx y z\n")
    made = make("Q8_0", tiny_gguf.bert())
    proof = made.prove(depth="full", text=text)
    assert proof.proven
    assert [check.name for check in proof.verdict.checks][-3] == "embeddings"
    embeddings = proof.artifact["embeddings"]
    assert embeddings["texts"] == 3
    assert 0.999 < embeddings["least_cosine"] <= embeddings["mean_cosine"] < 1
    assert "model.embed(" in proof.usage
    assert "How close the embeddings are, on 3 texts of words.txt" in rendered(proof)
    other = tiny_gguf.write(tiny_gguf.bert(seed=4), text.with_name("other.gguf"))
    source = dataclasses.replace(made.source, path=other)
    proof = dataclasses.replace(made, source=source).prove(depth="full", text=text)
    assert failed(proof) == ["embeddings"]
