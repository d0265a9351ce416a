"""qwen3: Qwen2 with norms on queries and keys instead of biases, and heads of any length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeopt.llm.families.config import Config
from edgeopt.llm.families.decoder import Decoder
from edgeopt.llm.families.qwen2 import Qwen2
from edgeopt.llm.families.tensors import Spec

__all__ = ["FAMILY", "Qwen3"]


class Qwen3(Qwen2):
    name = "qwen3"
    architectures = ("Qwen3ForCausalLM",)
    defaults: Mapping[str, Any] = {**Qwen2.defaults, "head_dim": 128}

    def sizes(self, config: Config) -> Decoder:
        if config.flag("attention_bias", False):
            raise config.refuse("attention_bias", "llama.cpp's qwen3 has no biases")
        return Decoder.of(config)

    def attention(self, sizes: Decoder) -> list[Spec]:
        return [*sizes.attention(), *sizes.head_norms()]


FAMILY = Qwen3()
