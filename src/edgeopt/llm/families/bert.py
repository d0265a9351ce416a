"""bert: encoders that make sentence embeddings.

What follows the last hidden state (the pooler, heads for masked words) has no place in GGUF: the
runtime pools, in the way that ``pooling_type`` says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.core import Source, Weight
from edgeopt.files.gguf_write import Field, boolean, f32, u32
from edgeopt.llm.families.config import Config, Dim
from edgeopt.llm.families.pooling import pooling_of
from edgeopt.llm.families.tensors import Spec, collect, per_block

__all__ = ["FAMILY", "Bert"]

_DEFAULTS: Mapping[str, Any] = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "position_embedding_type": "absolute",
}

_HEADS = r"(pooler|cls)\..*"


class Bert:
    name = "bert"
    architectures = ("BertModel", "BertForMaskedLM", "BertForPreTraining")

    def metadata(self, config: Mapping[str, Any], folder: Path) -> dict[str, Field]:
        read = _config(config, folder)
        read.one_of("hidden_act", ("gelu", "gelu_new", "gelu_pytorch_tanh"))
        read.one_of("position_embedding_type", ("absolute",))
        if read.flag("is_decoder", False):
            raise read.refuse("is_decoder", "llama.cpp's bert looks both ways")
        width, heads = read.dim("hidden_size"), read.integer("num_attention_heads")
        if width.value % heads:
            raise read.wrong(
                "hidden_size", f"is {width.value}, no multiple of num_attention_heads {heads}"
            )
        fields: dict[str, Field] = {
            "vocab_size": u32(read.integer("vocab_size")),
            "context_length": u32(read.integer("max_position_embeddings")),
            "embedding_length": u32(width.value),
            "block_count": u32(read.blocks("num_hidden_layers")),
            "feed_forward_length": u32(read.integer("intermediate_size")),
            "attention.head_count": u32(heads),
            "attention.layer_norm_epsilon": f32(read.number("layer_norm_eps")),
            "attention.causal": boolean(False),
        }
        pooling = pooling_of(folder)
        if pooling is not None:
            fields["pooling_type"] = u32(pooling)
        return {
            **{f"{self.name}.{key}": field for key, field in fields.items()},
            # The tokenizer's by its name, the embedding table's by what it counts.
            "tokenizer.ggml.token_type_count": u32(read.integer("type_vocab_size")),
        }

    def tensors(self, config: Mapping[str, Any], source: Source) -> tuple[Weight, ...]:
        read = _config(config, source.path)
        width, inner = read.dim("hidden_size"), read.dim("intermediate_size")
        blocks = read.blocks("num_hidden_layers")
        layer = "encoder.layer.{i}"
        block = [
            *_linear(f"{layer}.attention.self.query", width, width),
            *_linear(f"{layer}.attention.self.key", width, width),
            *_linear(f"{layer}.attention.self.value", width, width),
            *_linear(f"{layer}.attention.output.dense", width, width),
            *_norm(f"{layer}.attention.output.LayerNorm", width),
            *_linear(f"{layer}.intermediate.dense", inner, width),
            *_linear(f"{layer}.output.dense", width, inner),
            *_norm(f"{layer}.output.LayerNorm", width),
        ]
        tables = {
            "word": read.dim("vocab_size"),
            "token_type": read.dim("type_vocab_size"),
            "position": read.dim("max_position_embeddings"),
        }
        specs = [
            *(Spec(f"embeddings.{n}_embeddings.weight", (d, width)) for n, d in tables.items()),
            *_norm("embeddings.LayerNorm", width),
            *per_block(blocks, block),
        ]
        return collect(self.name, blocks, specs, source, canonical=_canonical, ignored=_HEADS)

    def notes(self, config: Mapping[str, Any], source: Source) -> tuple[str, ...]:
        names = [_canonical(w.name) for w in source.weights]
        left = sorted({name.split(".")[0] for name in names if re.fullmatch(_HEADS, name)})
        notes = []
        if left:
            notes.append(f"left behind, as GGUF's bert ends at the embedding: {', '.join(left)}")
        if pooling_of(source.path) is None:
            notes.append("no modules.json says how to pool: choose it where the file is run")
        return tuple(notes)


def _norm(name: str, width: Dim) -> list[Spec]:
    return [Spec(f"{name}.weight", (width,)), Spec(f"{name}.bias", (width,))]


def _linear(name: str, out: Dim, into: Dim) -> list[Spec]:
    return [Spec(f"{name}.weight", (out, into)), Spec(f"{name}.bias", (out,))]


def _canonical(name: str) -> str:
    """Without ``bert.``, and with the names that layer norms had in TensorFlow made ours."""
    bare = name.removeprefix("bert.")
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if bare.endswith(f"LayerNorm{old}"):
            bare = bare.removesuffix(old) + new
    return bare


def _config(config: Mapping[str, Any], folder: Path) -> Config:
    return Config(config, folder / "config.json", defaults=_DEFAULTS)


FAMILY = Bert()
