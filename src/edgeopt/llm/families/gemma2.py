"""gemma2: four norms a block, stored as their distance from 1; soft caps; every other layer
slides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.core import Source, Weight
from edgeopt.errors import SourceError
from edgeopt.files.gguf_write import Field, array, f32, u32
from edgeopt.llm.families.changes import shifted
from edgeopt.llm.families.config import Config
from edgeopt.llm.families.decoder import Decoder
from edgeopt.llm.families.rope import Rope
from edgeopt.llm.families.tensors import Spec, collect, per_block, tied, with_prefix
from edgeopt.llm.families.windows import sliding_layers

__all__ = ["FAMILY", "Gemma2", "check_gemma", "gemma_block", "pattern"]

_DEFAULTS: Mapping[str, Any] = {
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
}

#: Blocks of the 27 B model: from their number llama.cpp knows that its attention scale is another.
_BLOCKS_27B = 46


class Gemma2:
    name = "gemma2"
    architectures = ("Gemma2ForCausalLM",)

    def metadata(self, config: Mapping[str, Any], folder: Path) -> dict[str, Field]:
        read = _config(config, folder)
        sizes = Decoder.of(read)
        check_gemma(read, sizes, blocks_27b=_BLOCKS_27B)
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            if config.get(key, 0) is None:
                raise SourceError(f"{read.file}: {key} is null; llama.cpp's gemma2 always caps")
        rope = Rope.of(read, ("default", "linear")).whole()
        slides = sliding_layers(read, sizes.blocks)
        return {
            **sizes.metadata(self.name, rope),
            f"{self.name}.attn_logit_softcapping": f32(read.number("attn_logit_softcapping")),
            f"{self.name}.final_logit_softcapping": f32(read.number("final_logit_softcapping")),
            f"{self.name}.attention.sliding_window": u32(read.integer("sliding_window")),
            **pattern(self.name, slides, usual=2),
        }

    def tensors(self, config: Mapping[str, Any], source: Source) -> tuple[Weight, ...]:
        read = _config(config, source.path)
        sizes = Decoder.of(read)
        if not tied(source, read):
            raise read.refuse("tie_word_embeddings", "llama.cpp's gemma2 has no output of its own")
        first, last = sizes.ends(True, shifted)
        return collect(
            self.name,
            sizes.blocks,
            [*first, *per_block(sizes.blocks, gemma_block(sizes)), *last],
            source,
            canonical=with_prefix("model."),
            ignored=r"lm_head\.weight",
        )

    def notes(self, config: Mapping[str, Any], source: Source) -> tuple[str, ...]:
        return ()


def _config(config: Mapping[str, Any], folder: Path) -> Config:
    return Config(config, folder / "config.json", defaults=_DEFAULTS)


def gemma_block(sizes: Decoder, norms: list[Spec] | None = None) -> list[Spec]:
    """A block of gemma2; with ``norms`` of queries and keys one of gemma3."""
    names = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    before, after, feed, fed = (
        sizes.norm(f"model.layers.{{i}}.{name}_layernorm", shifted) for name in names
    )
    return [before, *sizes.attention(), *(norms or ()), after, feed, *sizes.feed_forward(), fed]


def check_gemma(config: Config, sizes: Decoder, *, blocks_27b: int) -> None:
    """Raise SourceError for what the gemma architectures of llama.cpp take for granted."""
    config.one_of("hidden_activation", ("gelu_pytorch_tanh",))
    for key in ("attention_bias", "use_bidirectional_attention"):
        if config.flag(key, False):
            raise config.refuse(key, "llama.cpp has no such attention in this architecture")
    scalar = sizes.head.value
    if sizes.blocks == blocks_27b:
        scalar = sizes.width.value // sizes.heads
    if config.number("query_pre_attn_scalar") != scalar:
        raise config.refuse(
            "query_pre_attn_scalar",
            f"llama.cpp takes {scalar} for a gemma of {sizes.blocks} layers",
        )


def pattern(architecture: str, slides: list[bool] | None, usual: int) -> dict[str, Field]:
    """``attention.sliding_window_pattern``, where not every ``usual``-th layer and only that one
    sees everything, which is what llama.cpp assumes."""
    if slides is None or slides == [bool((i + 1) % usual) for i in range(len(slides))]:
        return {}
    return {f"{architecture}.attention.sliding_window_pattern": array("bool", slides)}


FAMILY = Gemma2()
