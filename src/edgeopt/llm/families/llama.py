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

__all__ = ["FAMILY", "Llama"]

_KINDS = ("default", "linear", "dynamic", "yarn", "llama3")


class Llama:
    """Queries and keys are permuted for ggml's rotation of neighbours; Llama 3's stretched
    frequencies become the tensor ``rope_freqs.weight``."""

    name = "llama"
    architectures = ("LlamaForCausalLM", "MistralForCausalLM")

    def metadata(self, config: Mapping[str, Any], folder: Path) -> dict[str, Field]:
        read = Config(config, folder / "config.json")
        read.one_of("hidden_act", ("silu",), "silu")
        fields = _decoder(read).metadata(self.name, _rope(read))
        if "sliding_window" in read:
            # llama.cpp does not read it here; the file says what the model was made for.
            window = read.integer("sliding_window")
            fields[f"{self.name}.attention.sliding_window"] = u32(window)
        return fields

    def tensors(self, config: Mapping[str, Any], source: Source) -> tuple[Weight, ...]:
        read = Config(config, source.path / "config.json")
        sizes, rope = _decoder(read), _rope(read)
        shared = tied(source, read, "embed_tokens.weight", "lm_head.weight", default=False)
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
        specs = [*first, *per_block(sizes.blocks, block), *last]
        weights = collect(
            self.name,
            sizes.blocks,
            specs,
            source,
            canonical=with_prefix("model."),
            ignored=r"lm_head\.weight" if shared else None,
        )
        if rope.kind != "llama3":
            return weights
        factors = made("rope_freqs.weight", rope.llama3_factors(sizes.head.value))
        return (weights[0], factors, *weights[1:])

    def notes(self, config: Mapping[str, Any], source: Source) -> tuple[str, ...]:
        read = Config(config, source.path / "config.json")
        if "sliding_window" not in read:
            return ()
        window, context = read.integer("sliding_window"), _decoder(read).context
        if window >= context:
            return ()
        return (
            f"llama.cpp attends to everything where this model sees {window} tokens back: past "
            f"{window} tokens (of {context}) answers differ from the source's",
        )


def _decoder(config: Config) -> Decoder:
    # Files from before these keys were written rely on the class's defaults.
    return Decoder.of(config, epsilon=1e-6)


def _rope(config: Config) -> Rope:
    return Rope.of(config, kinds=_KINDS).whole()


FAMILY = Llama()
