"""Every family: a tiny random model of transformers, converted at F32, gives llama.cpp the same
logits. No key has its default value, so that one left out shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.llm.gguf_of import embedding, logits, opened, sentence_transformer, write_gguf

pytest.importorskip("llama_cpp")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY = 96

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 0.02,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
THETA = {"rope_type": "default", "rope_theta": 500.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 2.2],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 7.0],
    "partial_rotary_factor": 0.75,
}


@dataclass(frozen=True)
class Case:
    """A configuration of transformers; ``tokens`` to ask, in a context of ``n_ctx``."""

    config: str
    options: Mapping[str, Any]
    tokens: int = 40
    n_ctx: int = 256
    #: llama.cpp takes GELU from a table in float16; everything else is float32.
    limit: float = 5e-5
    #: 1 where norms are stored as themselves, 0 where as their distance from 1.
    norm: float = 1.0
    sizes: Mapping[str, Any] = field(default_factory=lambda: SIZES)


GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}

CASES = {
    "llama": Case("LlamaConfig", {"rope_parameters": THETA}),
    "llama-biases-llama3": Case(
        "LlamaConfig",
        {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True, "head_dim": 32},
    ),
    "llama-linear-tied": Case(
        "LlamaConfig",
        {"rope_parameters": {**THETA, "rope_type": "linear", "factor": 3.0}}
        | {"tie_word_embeddings": True},
    ),
    "llama-yarn": Case("LlamaConfig", {"rope_parameters": YARN}),
    "llama-yarn-attention": Case(
        "LlamaConfig", {"rope_parameters": {**YARN, "attention_factor": 0.7}}
    ),
    "mistral": Case(
        "MistralConfig", {"rope_parameters": THETA, "head_dim": 32, "sliding_window": 48}
    ),
    "qwen2": Case("Qwen2Config", {"rope_parameters": THETA}),
    "qwen2-yarn-tied": Case("Qwen2Config", {"rope_parameters": YARN, "tie_word_embeddings": True}),
    "qwen3": Case("Qwen3Config", {"rope_parameters": THETA, "head_dim": 32}),
    "gemma2": Case(
        "Gemma2Config",
        GEMMA
        | {"rope_parameters": THETA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
        norm=0.0,
        limit=1e-3,
    ),
    "gemma2-27b": Case(
        "Gemma2Config",
        GEMMA
        | {"rope_parameters": THETA, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0}
        | {"num_hidden_layers": 46, "query_pre_attn_scalar": 16},
        norm=0.0,
        # 46 times GELU from the table add up; another scale of attention is off by far more.
        limit=5e-3,
    ),
    "gemma3": Case(
        "Gemma3TextConfig",
        GEMMA | {"rope_parameters": GEMMA3_ROPE, "num_hidden_layers": 7},
        norm=0.0,
        limit=1e-3,
    ),
    "gemma3-pattern-cap": Case(
        "Gemma3TextConfig",
        GEMMA
        | {"rope_parameters": GEMMA3_ROPE, "final_logit_softcapping": 5.0}
        | {"num_hidden_layers": 3, "tie_word_embeddings": False}
        | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
        norm=0.0,
        limit=1e-3,
    ),
    "phi3": Case("Phi3Config", {"rope_parameters": THETA}),
    "phi3-short-factors": Case(
        "Phi3Config",
        # llama.cpp rounds a context up to 256, and goes by that.
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256}
        | {"max_position_embeddings": 1024},
    ),
    "phi3-long-factors": Case(
        "Phi3Config",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16},
    ),
    "gpt2": Case(
        "GPT2Config",
        {"layer_norm_epsilon": 0.02, "n_inner": 96},
        sizes={"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 64, "n_layer": 2}
        | {"n_head": 4},
        limit=1e-3,
    ),
    "gpt2-untied": Case(
        "GPT2Config",
        {"layer_norm_epsilon": 0.02, "tie_word_embeddings": False},
        sizes={"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 64, "n_layer": 2}
        | {"n_head": 4},
        limit=1e-3,
    ),
}


def randomise(model: Any, norm: float) -> Any:
    """Weights large enough that every part of the model shows in its output."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                spread = 1.0 if "emb" in name or "wte" in name else 1.5 / parameter.shape[-1] ** 0.5
                parameter.normal_(0, spread)
            else:
                parameter.normal_(norm if "weight" in name else 0.0, 0.3)
    return model.eval()


def built(case: Case) -> Any:
    config = getattr(transformers, case.config)(**{**case.sizes, **case.options})
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return randomise(model, case.norm)


def difference(got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest error, relative to the largest value."""
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = built(case)
    model.save_pretrained(tmp_path)
    tokens = torch.randint(0, VOCABULARY, (case.tokens,)).tolist()
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0].numpy()
    path = write_gguf(tmp_path, tmp_path / "model.gguf")
    got = logits(path, tokens, VOCABULARY, n_ctx=case.n_ctx)
    assert difference(got, wanted) < case.limit


@pytest.mark.parametrize(
    "name", ["llama", "llama-yarn-attention", "gemma2", "gemma3-pattern-cap", "phi3-short-factors"]
)
def test_every_number_of_the_metadata_counts(name: str, tmp_path: Path) -> None:
    """Half a key's value, and llama.cpp computes something else or does not load the file."""
    case = CASES[name]
    built(case).save_pretrained(tmp_path)
    config, _, family = opened(tmp_path)
    tokens = torch.randint(0, VOCABULARY, (case.tokens,)).tolist()
    wanted = logits(write_gguf(tmp_path, tmp_path / "whole.gguf"), tokens, VOCABULARY)
    for key, entry in family.metadata(config, tmp_path).items():
        if entry.type != "float32":
            continue
        changed = {key: replace(entry, value=entry.value / 2)}
        path = write_gguf(tmp_path, tmp_path / "half.gguf", changed)
        assert difference(logits(path, tokens, VOCABULARY), wanted) > 1e-3, key


def test_the_text_part_of_a_gemma3_that_sees(tmp_path: Path) -> None:
    text = {**SIZES, **GEMMA, "rope_parameters": GEMMA3_ROPE, "num_hidden_layers": 7}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, image_token_index=95, mm_tokens_per_image=4
    )
    model = randomise(transformers.Gemma3ForConditionalGeneration(config), 0.0)
    model.save_pretrained(tmp_path)
    tokens = torch.randint(0, 90, (40,)).tolist()
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0].numpy()
    found, source, family = opened(tmp_path)
    assert "vision part stays behind" in family.notes(found, source)[0]
    path = write_gguf(tmp_path, tmp_path / "model.gguf")
    assert difference(logits(path, tokens, VOCABULARY), wanted) < 1e-3


def test_embeddings_of_bert(tmp_path: Path) -> None:
    options = {**SIZES, "layer_norm_eps": 0.02, "hidden_act": "gelu_new", "num_hidden_layers": 3}
    model = randomise(transformers.BertModel(transformers.BertConfig(**options)), 1.0)
    model.save_pretrained(tmp_path)
    sentence_transformer(tmp_path, "mean")
    tokens = torch.randint(0, VOCABULARY, (20,)).tolist()
    with torch.no_grad():
        hidden = model(torch.tensor([tokens])).last_hidden_state[0].numpy()
    path = write_gguf(tmp_path, tmp_path / "model.gguf")
    assert difference(embedding(path, tokens, 64), hidden.mean(0)) < 1e-3
    sentence_transformer(tmp_path, "cls")
    path = write_gguf(tmp_path, tmp_path / "model.gguf")
    assert difference(embedding(path, tokens, 64), hidden[0]) < 1e-3
