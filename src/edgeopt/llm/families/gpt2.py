"""gpt2: learned positions, layer norms with biases, and linear layers stored transposed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.core import Source, Weight
from edgeopt.files.gguf_write import Field, f32, u32
from edgeopt.llm.families.changes import transposed
from edgeopt.llm.families.config import Config, Dim
from edgeopt.llm.families.tensors import Spec, collect, per_block, tied, with_prefix

__all__ = ["FAMILY", "Gpt2"]

_DEFAULTS: Mapping[str, Any] = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}

#: What llama.cpp computes for all of them, to within float16.
_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu")

#: Options of the class that change the arithmetic, and the one value that llama.cpp computes.
_FIXED: Mapping[str, bool] = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


class Gpt2:
    name = "gpt2"
    architectures = ("GPT2LMHeadModel",)

    def metadata(self, config: Mapping[str, Any], folder: Path) -> dict[str, Field]:
        read = _config(config, folder)
        read.one_of("activation_function", _GELU)
        for key, only in _FIXED.items():
            if read.flag(key, only) != only:
                raise read.refuse(key, f"llama.cpp's gpt2 computes {str(only).lower()} only")
        sizes = _Gpt2Sizes.of(read)
        fields = {
            "vocab_size": u32(sizes.vocabulary.value),
            "context_length": u32(sizes.positions.value),
            "embedding_length": u32(sizes.width.value),
            "block_count": u32(sizes.blocks),
            "feed_forward_length": u32(sizes.inner.value),
            "attention.head_count": u32(sizes.heads),
            "attention.layer_norm_epsilon": f32(read.number("layer_norm_epsilon")),
        }
        return {f"{self.name}.{key}": field for key, field in fields.items()}

    def tensors(self, config: Mapping[str, Any], source: Source) -> tuple[Weight, ...]:
        read = _config(config, source.path)
        sizes = _Gpt2Sizes.of(read)
        shared = tied(source, read, "wte.weight")
        width, inner = sizes.width, sizes.inner
        table = (sizes.vocabulary, width)
        fused = Dim(3 * width.value, "3 x n_embd")
        layer = "transformer.h.{i}"
        block = [
            *_norm(f"{layer}.ln_1", width),
            *_conv1d(f"{layer}.attn.c_attn", width, fused),
            *_conv1d(f"{layer}.attn.c_proj", width, width),
            *_norm(f"{layer}.ln_2", width),
            *_conv1d(f"{layer}.mlp.c_fc", width, inner),
            *_conv1d(f"{layer}.mlp.c_proj", inner, width),
        ]
        specs = [
            Spec("transformer.wte.weight", table),
            Spec("transformer.wpe.weight", (sizes.positions, width)),
            *per_block(sizes.blocks, block),
            *_norm("transformer.ln_f", width),
            *([] if shared else [Spec("lm_head.weight", table)]),
        ]
        return collect(
            self.name,
            sizes.blocks,
            specs,
            source,
            canonical=with_prefix("transformer."),
            ignored=r"lm_head\.weight" if shared else None,
        )

    def notes(self, config: Mapping[str, Any], source: Source) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True)
class _Gpt2Sizes:
    vocabulary: Dim
    positions: Dim
    width: Dim
    inner: Dim
    blocks: int
    heads: int

    @classmethod
    def of(cls, config: Config) -> _Gpt2Sizes:
        width, heads = config.dim("n_embd"), config.integer("n_head")
        if width.value % heads:
            raise config.wrong("n_embd", f"is {width.value}, no multiple of n_head {heads}")
        inner = Dim(4 * width.value, "4 x n_embd")
        return cls(
            vocabulary=config.dim("vocab_size"),
            positions=config.dim("n_positions" if "n_positions" in config else "n_ctx"),
            width=width,
            inner=config.dim("n_inner") if "n_inner" in config else inner,
            blocks=config.blocks("n_layer"),
            heads=heads,
        )


def _norm(name: str, width: Dim) -> list[Spec]:
    return [Spec(f"{name}.weight", (width,)), Spec(f"{name}.bias", (width,))]


def _conv1d(name: str, into: Dim, out: Dim) -> list[Spec]:
    return [Spec(f"{name}.weight", (into, out), transposed), Spec(f"{name}.bias", (out,))]


def _config(config: Mapping[str, Any], folder: Path) -> Config:
    return Config(config, folder / "config.json", defaults=_DEFAULTS)


FAMILY = Gpt2()
