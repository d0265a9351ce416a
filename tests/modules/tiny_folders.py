"""Small Hugging Face folders with random weights, opened as prune opens them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeopt.files.open import open_source
from edgeopt.modules.model import TorchModel
from edgeopt.targets.program.module import open_torch

transformers = pytest.importorskip("transformers")

#: What every small decoder has; names as in most of transformers' configurations.
SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VIT = {"image_size": 16, "patch_size": 8, "num_channels": 3}

#: Class -> what its configuration takes.
KINDS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": SMALL,
    "Qwen3ForCausalLM": {
        **SMALL,
        "head_dim": 8,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 2,
    },
    "Gemma2ForCausalLM": {**SMALL, "head_dim": 8, "sliding_window": 4},
    "GPT2LMHeadModel": {
        "vocab_size": 64,
        "n_embd": 16,
        "n_layer": 4,
        "n_head": 2,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "BertModel": {**SMALL, "pad_token_id": 0},
    "DistilBertModel": {
        "vocab_size": 64,
        "dim": 16,
        "n_layers": 4,
        "n_heads": 2,
        "hidden_dim": 24,
        "max_position_embeddings": 64,
    },
    "ViTModel": {**SMALL, **_VIT},
    "T5EncoderModel": {
        "vocab_size": 64,
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 24,
        "num_layers": 4,
        "num_heads": 2,
    },
}


def folder_of(name: str, folder: Path, seed: int = 0, **config: Any) -> Path:
    """A saved model of that class; weights are large enough that every block does something."""
    cls = getattr(transformers, name)
    torch.manual_seed(seed)
    model = cls(cls.config_class(**{**KINDS[name], **config})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)
    return folder


def sentence_folder(folder: Path, *, dense: bool = False) -> Path:
    """A BERT with mean pooling (and a dense layer) as sentence-transformers keeps them."""
    from safetensors.torch import save_file

    folder_of("BertModel", folder)
    modules = ["Transformer", "Pooling", *(["Dense"] if dense else []), "Normalize"]
    listed = [
        {
            "idx": at,
            "name": str(at),
            "path": "" if at == 0 else f"{at}_{name}",
            "type": f"sentence_transformers.models.{name}",
        }
        for at, name in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if dense:
        (folder / "2_Dense").mkdir()
        head = {"in_features": 16, "out_features": 8, "bias": True}
        (folder / "2_Dense" / "config.json").write_text(json.dumps(head))
        state = {"linear.weight": torch.randn(8, 16), "linear.bias": torch.randn(8)}
        save_file(state, str(folder / "2_Dense" / "model.safetensors"))
    return folder


def opened(folder: Path) -> TorchModel:
    with tempfile.TemporaryDirectory() as work:
        return open_torch(open_source(folder), Path(work)).model
