"""What of a folder does not reach llama.cpp is said; what does, does: asked of its own readers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models.random_llama import SHAPES, make
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, BertNormalizer, Lowercase, Sequence, StripAccents
from tokenizers.pre_tokenizers import ByteLevel

import edgeopt
from edgeopt.errors import EdgeoptError
from edgeopt.files.gguf import read_header
from edgeopt.files.gguf_write import array
from edgeopt.files.open import open_source
from edgeopt.llm.read import read_model
from edgeopt.llm.tokenizers.notes import token_notes

ENDS = ["<END-A>", "<END-B>", "<END-C>", "<END-D>", "<|im_end|>"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LLaMA with a byte-level tokenizer of transformers' own kind."""
    folder = tmp_path_factory.mktemp("plain") / "llama"
    make(folder, SHAPES["tiny"])
    (folder / "tokenizer.model").unlink()
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    letters = sorted(ByteLevel.alphabet())
    inner = Tokenizer(BPE({letter: i for i, letter in enumerate(letters)}, []))
    inner.pre_tokenizer = ByteLevel(add_prefix_space=False)
    inner.add_special_tokens([AddedToken(text, special=True) for text in ["<s>", *ENDS]])
    inner.add_tokens(
        [
            AddedToken("lefty", lstrip=True),
            AddedToken("righty", rstrip=True),
            AddedToken("alone", single_word=True),
            AddedToken("usual"),
        ]
    )
    assert inner.get_vocab_size() <= rows
    inner.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": ENDS[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    change(folder, "config.json", eos_token_id=[number(inner, text) for text in ENDS[:2]])
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [number(inner, text) for text in ENDS[1:]]})
    )
    return folder


def number(inner: Any, text: str) -> int:
    found = inner.token_to_id(text)
    assert found is not None
    return int(found)


def change(folder: Path, name: str, **keys: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def copied(plain: Path, folder: Path) -> Path:
    return Path(shutil.copytree(plain, folder))


def read(folder: Path) -> Any:
    return read_model(open_source(folder), pre_tokenizer="gpt-2")


def test_every_end_ends_an_answer_or_is_named(plain: Path) -> None:
    model = read(plain)
    inner = Tokenizer.from_file(str(plain / "tokenizer.json"))
    held = {model.metadata[f"tokenizer.ggml.{r}_token_id"].value for r in ("eos", "eot", "eom")}
    assert held == {number(inner, text) for text in ENDS[:3]}
    (note,) = [note for note in model.notes if "end an answer" in note]
    assert "<END-D>" in note
    assert "<|im_end|>" not in note, "llama.cpp knows it by its text"
    assert not any(text in note for text in ENDS[:3])


def test_tokens_that_take_spaces_are_named(plain: Path) -> None:
    (note,) = [note for note in read(plain).notes if "lstrip" in note]
    assert all(text in note for text in ("lefty", "righty", "alone")) and "usual" not in note


@pytest.mark.parametrize(
    ("normalizer", "named"),
    [
        (None, False),
        (NFC(), False),
        (Lowercase(), True),
        (Sequence([NFC(), StripAccents(), Lowercase()]), True),
        (BertNormalizer(lowercase=True), True),
        (BertNormalizer(lowercase=False, strip_accents=False), False),
    ],
)
def test_tokens_found_in_normalized_text_are_named(
    tmp_path: Path, normalizer: Any, named: bool
) -> None:
    """Named where the library itself finds the token in a text that spells it otherwise."""
    inner = Tokenizer(BPE({letter: i for i, letter in enumerate("abcdTOL")}, []))
    if normalizer is not None:
        inner.normalizer = normalizer
    inner.add_tokens([AddedToken("Tool", normalized=True), AddedToken("Cold", normalized=False)])
    inner.save(str(tmp_path / "tokenizer.json"))
    number = inner.token_to_id("Tool")
    assert (inner.encode("TOOL").ids == [number]) is named
    tokens = {"tokenizer.ggml.tokens": array("string", [""] * inner.get_vocab_size())}
    notes = [n for n in token_notes(tmp_path, {}, tokens, False) if "normalized" in n]
    assert bool(notes) is named
    assert not named or ("Tool" in notes[0] and "Cold" not in notes[0])


def test_an_adapter_beside_the_weights_is_named(plain: Path, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path / "both")
    (folder / "adapter_config.json").write_text("{}")
    assert any("adapter" in note for note in read(folder).notes)


def test_folders_are_what_they_hold(plain: Path, tmp_path: Path) -> None:
    tensors = load_file(plain / "model.safetensors")

    def refused(name: str, change_tensors: Any, said: str) -> None:
        folder = copied(plain, tmp_path / name)
        save_file(change_tensors(dict(tensors)), folder / "model.safetensors")
        with pytest.raises(EdgeoptError, match=said):
            read(folder)

    first = "model.layers.0.mlp.up_proj.weight"

    def renamed(end: str) -> Any:
        return lambda t: {(n.replace(first, end) if n == first else n): a for n, a in t.items()}

    bare = first.removesuffix(".weight")
    refused("quanto", renamed(f"{first}._data"), "quantized already .*quanto")
    refused("gptq", renamed(f"{bare}.qweight"), "quantized already .*GPTQ")
    refused("bnb", lambda t: {**t, f"{first}.absmax": np.ones(4, np.float32)}, "bitsandbytes")
    refused("mlx", lambda t: {**t, f"{bare}.scales": np.ones(4, np.float32)}, "MLX")
    folder = copied(plain, tmp_path / "told")
    change(folder, "config.json", quantization={"group_size": 64, "bits": 4})
    with pytest.raises(EdgeoptError, match=r"quantized already .*MLX"):
        read(folder)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_wrappers_are_read_through(plain: Path, tmp_path: Path, prefix: str) -> None:
    folder = copied(plain, tmp_path / "wrapped")
    tensors = load_file(plain / "model.safetensors")
    save_file({prefix + n: a for n, a in tensors.items()}, folder / "model.safetensors")
    want, got = read(plain), read(folder)
    assert [t.name for t in got.tensors] == [t.name for t in want.tensors]


def test_shards_without_an_index(plain: Path, tmp_path: Path) -> None:
    folder = copied(plain, tmp_path / "shards")
    (folder / "model.safetensors").unlink()
    tensors = list(load_file(plain / "model.safetensors").items())
    half = len(tensors) // 2
    for i, some in enumerate((tensors[:half], tensors[half:]), 1):
        save_file(dict(some), folder / f"model-{i:05}-of-00002.safetensors")
    assert [t.name for t in read(folder).tensors] == [t.name for t in read(plain).tensors]
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(EdgeoptError, match="1 of 2 shards"):
        read(folder)


def test_what_is_no_whole_model_is_told(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    save_file({"lora_A": np.ones((2, 2), np.float32)}, adapter / "adapter_model.safetensors")
    with pytest.raises(EdgeoptError, match="LoRA adapter"):
        open_source(adapter)
    with pytest.raises(EdgeoptError, match="name on a hub"):
        open_source("some-owner/Some-Model-1B")
    words = tmp_path / "words"
    words.mkdir()
    (words / "tokenizer.json").write_text("{}")
    with pytest.raises(EdgeoptError, match="a tokenizer and no weights"):
        open_source(words)


def test_a_language_model_becomes_gguf_unless_onnx_is_asked_for(
    plain: Path, tmp_path: Path
) -> None:
    from edgeopt.targets.gguf.options import GgufOptions, lacks_cache, wants_gguf

    source, nothing = open_source(plain), GgufOptions()
    assert wants_gguf(source, None, None, nothing)
    assert not wants_gguf(source, "onnx", None, nothing)
    assert not wants_gguf(source, None, "out.onnx", nothing)
    (note,) = lacks_cache(source)
    assert "no cache" in note and "--to gguf" in note
    out = tmp_path / "o.gguf"
    edgeopt.quantize(plain, out, type="Q8_0", pre_tokenizer="gpt-2", prove="none")
    assert read_header(out).metadata["general.architecture"] == "llama"
