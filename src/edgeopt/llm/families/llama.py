"""llama: also Mistral, SmolLM, TinyLlama, and everything else that is built the same way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.core import Source, Weight
from edgeopt.files.gguf_write import Field, u32
from edgeopt.llm.families.changes import made, permuted
from edgeopt.llm.families.config import Config
from edgeopt.llm.families.decoder import Decoder
from edgeopt.llm.families.rope import Rope
from edgeopt.llm.families.tensors import collect, per_block, tied, with_prefix
from edgeopt.llm.families.windows import unseen_window

__all__ = ["FAMILY", "Llama"]

_DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}


class Llama:
    """Queries and keys are permuted for ggml's rotation of neighbours; Llama 3's stretched
    frequencies become the tensor ``rope_freqs.weight``."""

    name = "llama"
    architectures = ("LlamaForCausalLM", "MistralForCausalLM")

    def metadata(self, config: Mapping[str, Any], folder: Path) -> dict[str, Field]:
        read = _config(config, folder)
        read.one_of("hidden_act", ("silu",))
        fields = Decoder.of(read).metadata(self.name, _rope(read))
        if "sliding_window" in read:
            # llama.cpp does not read it here; the file says what the model was made for.
            window = read.integer("sliding_window")
            fields[f"{self.name}.attention.sliding_window"] = u32(window)
        return fields

    def tensors(self, config: Mapping[str, Any], source: Source) -> tuple[Weight, ...]:
        read = _config(config, source.path)
        sizes, rope = Decoder.of(read), _rope(read)
        shared = tied(source, read)
        first, last = sizes.ends(shared)
        block = [
            sizes.norm("model.layers.{i}.input_layernorm"),
            *sizes.attention(
                change=permuted(sizes.heads),
                kv_change=permuted(sizes.kv_heads),
                bias="qkvo" if read.flag("attention_bias", False) else "",
            ),
            sizes.norm("model.layers.{i}.post_attention_layernorm"),
            *sizes.feed_forward(bias=read.flag("mlp_bias", False)),
        ]
        weights = collect(
            self.name,
            sizes.blocks,
            [*first, *per_block(sizes.blocks, block), *last],
            source,
            canonical=with_prefix("model."),
            ignored=r"lm_head\.weight" if shared else None,
        )
        if rope.kind != "llama3":
            return weights
        factors = made("rope_freqs.weight", rope.llama3_factors(sizes.head.value))
        return (weights[0], factors, *weights[1:])

    def notes(self, config: Mapping[str, Any], source: Source) -> tuple[str, ...]:
        read = _config(config, source.path)
        return unseen_window(read, Decoder.of(read).context)


def _config(config: Mapping[str, Any], folder: Path) -> Config:
    return Config(config, folder / "config.json", defaults=_DEFAULTS)


def _rope(config: Config) -> Rope:
    return Rope.of(config, ("default", "linear", "dynamic", "yarn", "llama3")).whole()


FAMILY = Llama()
