"""gemma3: gemma2 with norms on queries and keys instead of caps, and two kinds of rotation.

Of ``Gemma3ForConditionalGeneration`` the language model is converted; the vision tower is none of
this file's business and stays behind (llama.cpp wants it in a file of its own).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.core import Source, Weight, format_bytes
from edgeopt.files.gguf_write import Field, f32, u32
from edgeopt.llm.families.changes import shifted
from edgeopt.llm.families.config import Config
from edgeopt.llm.families.decoder import Decoder
from edgeopt.llm.families.gemma2 import check_gemma, gemma_block, pattern
from edgeopt.llm.families.rope import Rope
from edgeopt.llm.families.tensors import collect, per_block, tied, with_prefix
from edgeopt.llm.families.windows import sliding_layers

__all__ = ["FAMILY", "Gemma3"]

_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "tie_word_embeddings": True,
}

_BLOCKS_27B = 62

#: Tensors of the part that sees.
_VISION = r"(model\.)?(vision_tower|multi_modal_projector)\..*"


class Gemma3:
    name = "gemma3"
    architectures = ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")

    def metadata(self, config: Mapping[str, Any], folder: Path) -> dict[str, Field]:
        read = _config(config, folder)
        sizes = Decoder.of(read)
        check_gemma(read, sizes, blocks_27b=_BLOCKS_27B)
        if "attn_logit_softcapping" in read:
            raise read.refuse("attn_logit_softcapping", "llama.cpp's gemma3 does not cap there")
        rope = Rope.of(read, ("default", "linear")).whole()
        fields = sizes.metadata(self.name, rope)
        slides = _slides(read, sizes.blocks)
        if any(slides):
            fields[f"{self.name}.attention.sliding_window"] = u32(read.integer("sliding_window"))
            fields[f"{self.name}.rope.freq_base_swa"] = f32(_local_base(read))
            fields.update(pattern(self.name, slides, usual=6))
        if "final_logit_softcapping" in read:
            cap = read.number("final_logit_softcapping")
            fields[f"{self.name}.final_logit_softcapping"] = f32(cap)
        return fields

    def tensors(self, config: Mapping[str, Any], source: Source) -> tuple[Weight, ...]:
        read = _config(config, source.path)
        sizes = Decoder.of(read)
        shared = tied(source, read)
        first, last = sizes.ends(shared, shifted)
        block = gemma_block(sizes, sizes.head_norms(shifted))
        ignored = [_VISION] if "text_config" in config else []
        return collect(
            self.name,
            sizes.blocks,
            [*first, *per_block(sizes.blocks, block), *last],
            source,
            canonical=_canonical,
            ignored="|".join([*ignored, *([r"lm_head\.weight"] if shared else [])]) or None,
        )

    def notes(self, config: Mapping[str, Any], source: Source) -> tuple[str, ...]:
        seeing = [w for w in source.weights if re.fullmatch(_VISION, w.name)]
        if not seeing:
            return ()
        size = format_bytes(sum(w.nbytes for w in seeing))
        return (f"the vision part stays behind ({len(seeing)} tensors, {size}): text only",)


def _config(config: Mapping[str, Any], folder: Path) -> Config:
    """The text model's part of it."""
    whole = Config(config, folder / "config.json", defaults=_DEFAULTS)
    return whole.inner("text_config", defaults=_DEFAULTS) if "text_config" in whole else whole


_text_name = with_prefix("model.", ("lm_head.", "vision_tower.", "multi_modal_projector."))


def _canonical(name: str) -> str:
    """``language_model.`` stands before or behind ``model.``, by the version that saved it."""
    return _text_name(
        name.replace("language_model.model.", "model.").replace("language_model.", "")
    )


def _slides(config: Config, blocks: int) -> list[bool]:
    listed = sliding_layers(config, blocks)
    if listed is not None:
        return listed
    every = config.integer("sliding_window_pattern")
    return [bool((i + 1) % every) for i in range(blocks)]


def _local_base(config: Config) -> float:
    """The theta of the layers that slide."""
    if "rope_parameters" not in config:
        return config.number("rope_local_base_freq")
    local = config.inner("rope_parameters")
    if "sliding_attention" not in local:
        return config.number("rope_local_base_freq")
    local = local.inner("sliding_attention")
    if local.text("rope_type", "default") != "default":
        raise local.refuse("rope_type", "llama.cpp's gemma3 scales only the layers that see all")
    return local.number("rope_theta", config.number("rope_local_base_freq"))


FAMILY = Gemma3()
