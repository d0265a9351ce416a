"""phi3: Phi-3 and Phi-4: fused projections, and longrope's two lists of factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeopt.core import Source, Weight
from edgeopt.files.gguf_write import Field, f32, u32
from edgeopt.llm.families.changes import made
from edgeopt.llm.families.config import Config, Dim
from edgeopt.llm.families.decoder import Decoder
from edgeopt.llm.families.rope import Rope
from edgeopt.llm.families.tensors import Spec, collect, per_block, tied, with_prefix
from edgeopt.llm.families.windows import unseen_window

__all__ = ["FAMILY", "Phi3"]

_DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": False}

#: Older configurations call it by these names.
_LONGROPE = ("longrope", "su", "yarn")


class Phi3:
    name = "phi3"
    architectures = ("Phi3ForCausalLM",)

    def metadata(self, config: Mapping[str, Any], folder: Path) -> dict[str, Field]:
        read = _config(config, folder)
        read.one_of("hidden_act", ("silu",))
        sizes, rope = _sizes(read), _rope(read)
        fields = {
            **sizes.metadata(self.name, rope),
            f"{self.name}.rope.scaling.original_context_length": u32(rope.context),
            # Where there is none, llama.cpp tells by the zero that this is Phi-4.
            f"{self.name}.attention.sliding_window": u32(
                read.integer("sliding_window", 0, least=0)
            ),
        }
        if rope.kind == "longrope":
            fields[f"{self.name}.rope.scaling.attn_factor"] = f32(rope.longrope_attention())
        return fields

    def tensors(self, config: Mapping[str, Any], source: Source) -> tuple[Weight, ...]:
        read = _config(config, source.path)
        sizes, rope = _sizes(read), _rope(read)
        shared = tied(source, read)
        first, last = sizes.ends(shared)
        fused = Dim(
            sizes.queries.value + 2 * sizes.keys.value,
            "(num_attention_heads + 2 x num_key_value_heads) x head_dim",
        )
        layer = "model.layers.{i}"
        block = [
            sizes.norm(f"{layer}.input_layernorm"),
            Spec(f"{layer}.self_attn.qkv_proj.weight", (fused, sizes.width)),
            Spec(f"{layer}.self_attn.o_proj.weight", (sizes.width, sizes.queries)),
            sizes.norm(f"{layer}.post_attention_layernorm"),
            Spec(
                f"{layer}.mlp.gate_up_proj.weight",
                (Dim(2 * sizes.inner.value, "2 x intermediate_size"), sizes.width),
            ),
            Spec(f"{layer}.mlp.down_proj.weight", (sizes.width, sizes.inner)),
        ]
        weights = collect(
            self.name,
            sizes.blocks,
            [*first, *per_block(sizes.blocks, block), *last],
            source,
            canonical=with_prefix("model."),
            ignored=r"lm_head\.weight" if shared else None,
        )
        if rope.kind != "longrope":
            return weights
        turned = int(sizes.head.value * rope.partial) // 2
        factors = (
            made(
                f"rope_factors_{kind}.weight",
                np.array(rope.scaling.numbers(f"{kind}_factor", turned), np.float32),
            )
            for kind in ("long", "short")
        )
        return (weights[0], *factors, *weights[1:])

    def notes(self, config: Mapping[str, Any], source: Source) -> tuple[str, ...]:
        read = _config(config, source.path)
        sizes, rope = _sizes(read), _rope(read)
        notes = unseen_window(read, sizes.context)
        if rope.kind == "longrope":
            notes += (
                f"llama.cpp takes the long factors for every prompt when its context is set above "
                f"{rope.context} tokens, transformers only for prompts longer than that",
            )
        return notes


def _config(config: Mapping[str, Any], folder: Path) -> Config:
    return Config(config, folder / "config.json", defaults=_DEFAULTS)


def _sizes(config: Config) -> Decoder:
    sizes = Decoder.of(config)
    sizes.square(config)
    return sizes


def _rope(config: Config) -> Rope:
    rope = Rope.of(config, ("default", *_LONGROPE))
    return replace(rope, kind="longrope") if rope.kind in _LONGROPE else rope


FAMILY = Phi3()
