"""qwen2: Qwen2 and Qwen2.5, whose queries, keys and values have biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.core import Source, Weight
from edgeopt.files.gguf_write import Field
from edgeopt.llm.families.config import Config
from edgeopt.llm.families.decoder import Decoder
from edgeopt.llm.families.rope import Rope
from edgeopt.llm.families.tensors import Spec, collect, per_block, tied, with_prefix
from edgeopt.llm.families.windows import sliding_layers, unseen_window

__all__ = ["FAMILY", "Qwen2"]


class Qwen2:
    """Rows stay as they are: ggml rotates halves here, as transformers does."""

    name = "qwen2"
    architectures: tuple[str, ...] = ("Qwen2ForCausalLM",)
    defaults: Mapping[str, Any] = {
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "max_window_layers": 28,
    }

    def metadata(self, config: Mapping[str, Any], folder: Path) -> dict[str, Field]:
        read = self.config(config, folder)
        read.one_of("hidden_act", ("silu",))
        return self.sizes(read).metadata(self.name, _rope(read))

    def tensors(self, config: Mapping[str, Any], source: Source) -> tuple[Weight, ...]:
        read = self.config(config, source.path)
        sizes = self.sizes(read)
        shared = tied(source, read)
        first, last = sizes.ends(shared)
        block = [
            sizes.norm("model.layers.{i}.input_layernorm"),
            *self.attention(sizes),
            sizes.norm("model.layers.{i}.post_attention_layernorm"),
            *sizes.feed_forward(),
        ]
        return collect(
            self.name,
            sizes.blocks,
            [*first, *per_block(sizes.blocks, block), *last],
            source,
            canonical=with_prefix("model."),
            ignored=r"lm_head\.weight" if shared else None,
        )

    def notes(self, config: Mapping[str, Any], source: Source) -> tuple[str, ...]:
        read = self.config(config, source.path)
        sizes = self.sizes(read)
        slides = sliding_layers(read, sizes.blocks)
        if slides is None:
            first = read.integer("max_window_layers", least=0)
            slides = [read.flag("use_sliding_window", False) and first < sizes.blocks]
        return unseen_window(read, sizes.context) if any(slides) else ()

    def config(self, config: Mapping[str, Any], folder: Path) -> Config:
        return Config(config, folder / "config.json", defaults=self.defaults)

    def sizes(self, config: Config) -> Decoder:
        sizes = Decoder.of(config)
        sizes.square(config)
        return sizes

    def attention(self, sizes: Decoder) -> list[Spec]:
        return sizes.attention(bias="qkv")


def _rope(config: Config) -> Rope:
    return Rope.of(config, ("default", "linear", "dynamic", "yarn")).whole()


FAMILY = Qwen2()
