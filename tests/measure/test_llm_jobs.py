"""Jobs on GGUF files: perplexity against an independent one, and workers that die."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tests import tiny_gguf
from tests.in_process import no_processes

from edgeopt.errors import InputsError, SourceError, WorkerError
from edgeopt.files.gguf_header import read_header
from edgeopt.files.gguf_write import fields_of, string
from edgeopt.llm.model import LanguageModel
from edgeopt.measure import gguf_structure
from edgeopt.measure.language import (
    blames_file,
    compare_embeddings,
    compare_next_tokens,
    read_with_gguf,
    try_out,
)
from edgeopt.runtimes import llamacpp

llama_cpp = pytest.importorskip("llama_cpp")

TEXT = b"The weather there is thin, and then the heather thickens; " * 20
CONTEXT = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_gguf.write(tiny_gguf.llama(), folder / "a.gguf")
    tiny_gguf.write(tiny_gguf.llama(), folder / "q.gguf", "Q4_0")
    tiny_gguf.write(tiny_gguf.llama(noise=0.2), folder / "noisy.gguf")
    tiny_gguf.write(tiny_gguf.bert(), folder / "bert.gguf")
    tiny_gguf.write(tiny_gguf.bert(noise=0.05), folder / "bert2.gguf")
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    no_processes(monkeypatch)


def compare(a: Path, b: Path, text: bytes = TEXT, **options: Any) -> dict[str, Any]:
    outcome = compare_next_tokens(a, b, text, **{"chunks": 3, "context": CONTEXT, **options})
    if outcome.error is not None:
        raise outcome.error
    assert outcome.result is not None
    return dict(outcome.result)


def statistics(result: dict[str, Any]) -> dict[str, float]:
    return {each["name"]: each["value"] for each in result["statistics"]}


def independent(path: Path) -> np.ndarray:
    """Negative log likelihoods by the high-level class, chunk by chunk."""
    llama = llama_cpp.Llama(
        str(path), n_ctx=CONTEXT, n_threads=1, logits_all=True, verbose=False, flash_attn=True
    )
    tokens = llama.tokenize(TEXT)
    found = []
    for chunk in range(3):
        part = tokens[chunk * CONTEXT : (chunk + 1) * CONTEXT]
        part[0] = llama.token_bos()
        llama.reset()
        llama.eval(part)
        logits = np.array(llama.scores[:CONTEXT], np.float64)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        for at in range(CONTEXT // 2, CONTEXT - 1):
            found.append(-logits[at, part[at + 1]])
    llama.close()
    return np.array(found)


def test_perplexity_is_that_of_the_high_level_class(folder: Path, here: None) -> None:
    # Both in F32: the high-level class repacks block types, for kernels that round otherwise.
    result = compare(folder / "a.gguf", folder / "noisy.gguf")
    assert (result["chunks"], result["context"], result["tokens"]) == (3, CONTEXT, 93)
    assert result["finite"]
    values = statistics(result)
    for name, file in (("base", "a.gguf"), ("Q", "noisy.gguf")):
        likelihoods = independent(folder / file)
        assert len(likelihoods) == 93
        expected = math.exp(likelihoods.mean())
        assert values[f"Mean PPL({name})"] == pytest.approx(expected, rel=2e-3)
    assert values["Mean KLD"] > 0


def test_a_file_against_itself(folder: Path, here: None) -> None:
    values = statistics(compare(folder / "a.gguf", folder / "a.gguf"))
    assert values["Mean KLD"] == values["Maximum KLD"] == values["RMS Δp"] == 0.0
    assert values["Same top p"] == 100.0


def test_more_noise_diverges_more(folder: Path, here: None) -> None:
    near = statistics(compare(folder / "a.gguf", folder / "q.gguf"))
    far = statistics(compare(folder / "a.gguf", folder / "noisy.gguf"))
    assert far["Mean KLD"] > 2 * near["Mean KLD"] > 0
    assert far["Same top p"] < near["Same top p"] < 100


def test_chunks_are_those_that_the_text_has(folder: Path, here: None) -> None:
    result = compare(folder / "a.gguf", folder / "a.gguf", TEXT[:150], chunks=9)
    assert result["chunks"] == 2
    with pytest.raises(InputsError, match="gives 31 tokens, a chunk takes 64"):
        compare(folder / "a.gguf", folder / "a.gguf", b"x" * 30)
    with pytest.raises(InputsError, match="texts of up to 256 tokens, asked: 300"):
        compare(folder / "a.gguf", folder / "a.gguf", context=300)


def test_other_tokens_are_no_pair(folder: Path, tmp_path: Path, here: None) -> None:
    model = tiny_gguf.llama()
    metadata = {**model.metadata}
    metadata["tokenizer.ggml.merges"] = tiny_gguf.array("string", ["x y"])
    other = LanguageModel("llama", metadata, model.tensors)
    path = tiny_gguf.write(other, tmp_path / "other.gguf")
    with pytest.raises(SourceError, match="cuts the text into other tokens"):
        compare(folder / "a.gguf", path)


def test_embeddings(folder: Path, here: None) -> None:
    texts = [b"a quick fox", b"x y z", b"word " * 400]
    a, b = folder / "bert.gguf", folder / "bert2.gguf"
    same = compare_embeddings(a, a, texts, context=128).result
    assert same is not None
    assert same["cosines"] == pytest.approx([1.0, 1.0, 1.0], abs=1e-9)
    close = compare_embeddings(a, b, texts, context=128).result
    assert close is not None
    assert all(0.5 < cosine < 0.99999 for cosine in close["cosines"])
    refused = compare_embeddings(a, b, texts, context=512)
    assert "texts of up to 256" in str(refused.error)


def test_trying_out(folder: Path, here: None) -> None:
    result = try_out(folder / "a.gguf", ["th", "a"], tokens=6).result
    assert result is not None
    assert [one["finite"] for one in result["generated"]] == [True, True]
    assert all(1 <= len(one["tokens"]) <= 6 for one in result["generated"])
    assert result["session"]["pages_shared"] is True
    assert result["load"] > 0
    embedded = try_out(folder / "bert.gguf", ["a"], tokens=6, embedder=True).result
    assert embedded is not None
    assert [one["finite"] for one in embedded["generated"]] == [True]


def test_without_a_tokenizer_numbers_will_do(tmp_path: Path, here: None) -> None:
    model = tiny_gguf.llama()
    metadata = {k: v for k, v in model.metadata.items() if not k.startswith("tokenizer.")}
    metadata["tokenizer.ggml.model"] = string("no_vocab")
    path = tiny_gguf.write(LanguageModel("llama", metadata, model.tensors), tmp_path / "n.gguf")
    result = try_out(path, ["th"], tokens=4).result
    assert result is not None
    assert result["generated"][0]["finite"]
    assert result["generated"][0]["text"] == ""


def test_a_broken_file_is_named(folder: Path, tmp_path: Path, here: None) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes((folder / "a.gguf").read_bytes()[:100_000])
    outcome = try_out(path, ["th"], tokens=4)
    assert "llama.cpp cannot load it" in str(outcome.error)
    assert blames_file(outcome)
    outcome = read_with_gguf(path)
    assert "gguf-py cannot read it" in str(outcome.error)
    assert blames_file(outcome)


def test_a_runtime_that_does_not_load_blames_no_file(
    folder: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise WorkerError("libgomp.so is missing")

    monkeypatch.setattr(llamacpp, "_library", broken)
    outcome = try_out(folder / "a.gguf", ["th"], tokens=4)
    assert "libgomp" in str(outcome.error)
    assert not blames_file(outcome)


def test_what_gguf_py_sees(folder: Path) -> None:
    result = read_with_gguf(folder / "q.gguf").result  # in a process of its own
    assert result is not None
    header = read_header(folder / "q.gguf")
    assert result["tensors"] == [
        [t.name, list(t.shape), t.type.name, header.data_offset + t.offset, t.nbytes]
        for t in header.tensors
    ]
    fields = fields_of(header)
    assert set(result["metadata"]) == set(fields)
    assert result["metadata"]["tokenizer.ggml.merges"]["count"] == 1
    assert result["metadata"]["llama.block_count"]["type"] == "uint32"
    json.dumps(result)


def test_gguf_py_with_and_without_its_arrays_apart(
    folder: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = read_with_gguf(folder / "a.gguf").result
    monkeypatch.setattr(gguf_structure, "_reader", lambda: gguf.GGUFReader)
    assert read_with_gguf(folder / "a.gguf").result == together


@pytest.mark.parametrize("key", [b"tokenizer.ggml.tokens", b"tokenizer.ggml.token_type"])
def test_arrays_longer_than_the_file(folder: Path, tmp_path: Path, here: None, key: bytes) -> None:
    raw = bytearray((folder / "a.gguf").read_bytes())
    at = raw.index(key) + len(key) + 8  # type and element type
    raw[at : at + 8] = (1 << 60).to_bytes(8, "little")
    (tmp_path / "long.gguf").write_bytes(raw)
    outcome = read_with_gguf(tmp_path / "long.gguf")
    assert "gguf-py cannot read it" in str(outcome.error)


SABOTAGE = """
import os, signal, sys
if "edgeopt.measure.worker" in " ".join(sys.orig_argv):
    from edgeopt.runtimes.llamacpp import LlamaSession
    plain = LlamaSession._decode
    def decode(self, *rest):
        if self.path.name.startswith("noisy"):
            os.kill(os.getpid(), signal.SIGILL)
        return plain(self, *rest)
    LlamaSession._decode = decode
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_crash_while_running_is_named_and_survived(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    outcome = compare_next_tokens(
        folder / "a.gguf", folder / "noisy.gguf", TEXT, chunks=1, context=CONTEXT
    )
    assert isinstance(outcome.error, WorkerError)
    assert "SIGILL" in str(outcome.error)
    assert "running" in str(outcome.error)
    assert outcome.subject == "artifact"
    assert blames_file(outcome)
