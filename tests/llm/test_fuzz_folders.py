"""Configurations and tokenizers that no tool would write: a model or a typed error of one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tests.files.test_fuzz_readers import Draw, fuzzed, mostly, twisted, within_bounds
from tests.llm.test_families import LLAMA, llama_tensors

from edgeopt.errors import SourceError
from edgeopt.files.gguf_write import GgufLayout
from edgeopt.files.open import open_source
from edgeopt.llm.families import family_of
from edgeopt.llm.read import read_model
from edgeopt.llm.tokenizers import read_tokenizer

pytest.importorskip("gguf")

ROPES: list[Any] = [
    None,
    {"rope_type": "linear", "factor": 2.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    {"type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [2.0, 2.0]},
]
FAMILIES = [
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Phi3ForCausalLM",
    "GPT2LMHeadModel",
    "BertModel",
]
CONFIG = {
    **LLAMA,
    "n_layer": 2,
    "n_embd": 8,
    "n_head": 2,
    "n_positions": 128,
    "layer_norm_epsilon": 1e-5,
    "layer_norm_eps": 1e-12,
    "head_dim": 4,
    "sliding_window": 16,
    "layer_types": ["full_attention", "sliding_attention"],
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 4,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "type_vocab_size": 2,
    "activation_function": "gelu_new",
    "position_embedding_type": "absolute",
    "partial_rotary_factor": 1.0,
}

TOKENIZER = {
    "model": {
        "type": "BPE",
        "vocab": {"a": 0, "b": 1, "ab": 2, "<s>": 3, "</s>": 4},
        "merges": ["a b", ["a", "b"]],
        "byte_fallback": False,
        "unk_token": "<s>",
        "unk_id": 0,
        "ignore_merges": False,
    },
    "added_tokens": [
        {"id": 3, "content": "<s>", "special": True, "lstrip": False, "normalized": False},
        {"id": 4, "content": "</s>", "special": True},
    ],
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": "\\d{1,3}"},
                "behavior": "Isolated",
                "invert": False,
            },
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        ],
    },
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
    "decoder": {"type": "ByteLevel"},
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]},
}
TOKENIZER_CONFIG = {
    "bos_token": {"content": "<s>"},
    "eos_token": "</s>",
    "add_bos_token": True,
    "chat_template": [{"name": "default", "template": "{{ x }}"}],
    "added_tokens_decoder": {"3": {"content": "<s>", "special": True}},
    "tokenizer_class": "LlamaTokenizer",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder")
    save_file(llama_tensors(), path / "model.safetensors")
    return path


@st.composite
def configuration(draw: Draw) -> dict[str, Any]:
    family = "LlamaForCausalLM" if mostly(draw, 3) else draw(st.sampled_from(FAMILIES))
    config = {**CONFIG, "architectures": [family], "rope_scaling": draw(st.sampled_from(ROPES))}
    for key in draw(st.sets(st.sampled_from(sorted(CONFIG)), max_size=2)):
        del config[key]
    value = twisted(draw, config)
    return value if isinstance(value, dict) else config


@settings(fuzzed, max_examples=50)
@given(configuration())
def test_configurations(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
        (folder / file).unlink(missing_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    with within_bounds():
        model = read_model(open_source(folder))
        GgufLayout.of(model.metadata, [(w.name, w.shape, "F32") for w in model.tensors])
        for weight in model.tensors:
            assert np.isfinite(weight.array().astype(np.float32)).all()


@st.composite
def tokenizer_files(draw: Draw) -> dict[str, Any]:
    kind = draw(st.sampled_from(["BPE", "BPE", "Unigram", "WordPiece", "WordLevel"]))
    tokenizer = json.loads(json.dumps(TOKENIZER))
    if mostly(draw, 4):
        tokenizer["normalizer"] = None
        tokenizer["pre_tokenizer"] = tokenizer["pre_tokenizer"]["pretokenizers"][1]
    tokenizer["model"]["type"] = kind
    if kind == "Unigram":
        tokenizer["model"]["vocab"] = [[t, -1.0] for t in tokenizer["model"]["vocab"]]
        tokenizer["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁"}
        tokenizer["decoder"] = {"type": "Metaspace", "replacement": "▁"}
    if kind == "WordPiece":
        tokenizer["model"] |= {"continuing_subword_prefix": "##", "unk_token": "a"}
        tokenizer["pre_tokenizer"] = {"type": "BertPreTokenizer"}
        tokenizer["normalizer"] = {"type": "BertNormalizer", "lowercase": True}
    files = {"tokenizer.json": tokenizer, "tokenizer_config.json": TOKENIZER_CONFIG}
    return {
        **{name: twisted(draw, value) for name, value in files.items()},
        "special_tokens_map.json": twisted(
            draw, {"cls_token": "<s>", "sep_token": "</s>", "unk_token": "a", "pad_token": "b"}
        ),
    }


@settings(fuzzed, max_examples=50)
@given(
    tokenizer_files(),
    st.sampled_from(["llama", "qwen2", "gemma3", "gpt2", "bert"]),
    st.sampled_from([5, 5, 4, 6, 0]),
    st.sampled_from([{}, {"eos_token_id": [4]}, {"bos_token_id": 99}, {"pad_token_id": "x"}]),
)
def test_tokenizers(
    folder: Path, files: dict[str, Any], architecture: str, rows: int, config: dict[str, Any]
) -> None:
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    with within_bounds():
        fields = read_tokenizer(folder, config, architecture, rows)
        GgufLayout.of(fields, [])


def test_some_of_both_are_sound(folder: Path) -> None:
    """A fuzzer whose every file is refused at the door tests the door."""
    outcomes: dict[str, list[bool]] = {"config": [], "tokenizer": []}

    def noted(kind: str, attempt: Callable[[], object]) -> None:
        try:
            attempt()
        except SourceError:
            outcomes[kind].append(False)
        else:
            outcomes[kind].append(True)

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(configuration(), tokenizer_files())
    def tried(config: dict[str, Any], files: dict[str, Any]) -> None:
        for name, value in {"config.json": config, **files}.items():
            (folder / name).write_text(json.dumps(value))
        noted("tokenizer", lambda: read_tokenizer(folder, {}, "llama", 5))
        if config["architectures"] == ["LlamaForCausalLM"]:
            family = family_of(config, folder / "config.json")
            noted("config", lambda: family.tensors(config, open_source(folder)))

    tried()
    assert all(0.05 < sum(found) / len(found) < 1.0 for found in outcomes.values()), outcomes
