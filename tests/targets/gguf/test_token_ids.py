"""A folder's own tokenizer against llama.cpp's: ids that differ fail the proof, or are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from models.random_llama import SHAPES, make
from tests.in_process import no_processes
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

import edgeopt
from edgeopt.core import Check, Proof
from edgeopt.files.open import open_source
from edgeopt.llm.read import read_model
from edgeopt.runtimes.llamacpp import LlamaSession
from edgeopt.targets.gguf import token_ids

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    no_processes(monkeypatch)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LLaMA with SentencePiece's file alone."""
    folder = tmp_path_factory.mktemp("ids") / "llama"
    make(folder, SHAPES["tiny"])
    return folder


def byte_level(pieces: Path, folder: Path, *added: AddedToken, merges: Any = ()) -> Path:
    """The model with ``tokenizer.json`` in its place."""
    shutil.copytree(pieces, folder)
    (folder / "tokenizer.model").unlink()
    letters = sorted(ByteLevel.alphabet())
    letters += ["".join(pair) for pair in merges]
    inner = Tokenizer(BPE({letter: i for i, letter in enumerate(letters)}, list(merges)))
    inner.pre_tokenizer = ByteLevel(add_prefix_space=False)
    inner.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    inner.add_tokens(list(added))
    inner.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


def quantized(folder: Path, **options: Any) -> Proof:
    return edgeopt.quantize(folder, folder.parent / "a.gguf", type="Q8_0", **options)


def of_ids(proof: Proof) -> Check:
    (check,) = [check for check in proof.verdict.checks if check.name == "token ids"]
    return check


def test_same_ids_are_proven_by_default_and_verified(pieces: Path, tmp_path: Path) -> None:
    folder = byte_level(pieces, tmp_path / "f", AddedToken("<tool>"))
    proof = quantized(folder)
    assert proof.proven and of_ids(proof).passed and not proof.verdict.unproven
    # What the proof says was asked of llama.cpp is what llama.cpp says, and what the library says.
    inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
    with LlamaSession.open(tmp_path / "a.gguf", threads=1, context=64) as session:
        for text in ("x  y\n<tool>é", "1234 🙂"):
            ids = session.tokenize(text, special=False, control=True).tolist()
            assert ids == inner.encode(text, add_special_tokens=False).ids
    assert of_ids(edgeopt.verify(folder, tmp_path / "a.gguf")).passed


def test_another_rule_fails_the_proof_unless_the_user_named_it(
    pieces: Path, tmp_path: Path
) -> None:
    """GPT-2 splits no digits: "34" merges in "1234", which LLaMA 3's rule cuts after the "3"."""
    folder = byte_level(pieces, tmp_path / "f", merges=[("3", "4")])
    named = quantized(folder, pre_tokenizer="llama-bpe")
    assert named.proven
    (line,) = named.verdict.unproven
    assert line.startswith("token ids: with the given --pre-tokenizer")
    proof = edgeopt.verify(folder, tmp_path / "a.gguf")
    check = of_ids(proof)
    assert not proof.proven and not check.passed
    # The ids that are said to differ are the library's and llama.cpp's own.
    inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = next(t for t in token_ids._PLAIN if "1234 " in t)
    want = inner.encode(text, add_special_tokens=False).ids
    with LlamaSession.open(tmp_path / "a.gguf", threads=1, context=64) as session:
        got = session.tokenize(text, special=False, control=True).tolist()
    at = next(i for i, (a, b) in enumerate(zip(want, got, strict=False)) if a != b)
    said = (" ".join(map(str, ids[at : at + 4])) for ids in (got, want))
    assert f"{' in place of '.join(said)} at token {at}" in check.found


def test_what_stands_around_added_tokens_is_named(pieces: Path, tmp_path: Path) -> None:
    folder = byte_level(pieces, tmp_path / "f", AddedToken("<left>", lstrip=True))
    proof = quantized(folder)
    assert proof.proven and of_ids(proof).passed
    (line,) = proof.verdict.unproven
    assert "added tokens" in line and "<left>" in line


def test_sentencepiece_s_own_file_is_asked_too(
    pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sentencepiece")
    folder = Path(shutil.copytree(pieces, tmp_path / "f"))
    proof = quantized(folder)
    assert of_ids(proof).passed and not proof.verdict.unproven
    # remove_extra_whitespaces, which is on unless it is said to be off: the last two bytes.
    file = folder / "tokenizer.model"
    data = file.read_bytes()
    assert data.endswith(b"\x18\x01\x20\x00")
    file.write_bytes(data[:-1] + b"\x01")
    again = quantized(folder, force=True)
    assert again.proven and of_ids(again).passed
    assert "runs of spaces" in again.verdict.unproven[0]


def test_without_the_library_it_says_what_it_could_not_do(
    pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_ids, "is_installed", lambda package: False)
    source = open_source(byte_level(pieces, tmp_path / "f"))
    asked = token_ids.token_texts(source, read_model(source))
    (line,) = asked.unproven
    assert "needs tokenizers" in line and "[torch]" in line and not asked.texts
