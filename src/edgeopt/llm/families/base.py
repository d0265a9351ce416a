"""What a family is, and the few ways in which tensors differ between the two formats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from edgeopt.core import Source, Weight
from edgeopt.files.gguf_write import Field

__all__ = ["Family"]


class Family(Protocol):
    """One architecture of GGUF and the Hugging Face classes that it stands for."""

    #: GGUF's name: ``llama``.
    name: str
    #: What ``config.json`` lists under ``architectures``: ``LlamaForCausalLM``, ...
    architectures: tuple[str, ...]

    def metadata(self, config: Mapping[str, Any], folder: Path) -> dict[str, Field]:
        """The architecture's own keys, without ``general.*`` and the tokenizer's."""
        ...

    def tensors(self, config: Mapping[str, Any], source: Source) -> tuple[Weight, ...]:
        """Every tensor under its GGUF name. SourceError where one is missing or has another shape
        than the configuration says, naming both."""
        ...
