"""What a family is: one architecture of GGUF, and the Hugging Face classes that it stands for."""

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
        """The architecture's own keys, without ``general.*`` and the tokenizer's.

        ``folder`` is where ``config.json`` lies. FormatError names a key that is missing or holds
        another type of value; SourceError what llama.cpp's architecture cannot express.
        """
        ...

    def tensors(self, config: Mapping[str, Any], source: Source) -> tuple[Weight, ...]:
        """Every tensor under its GGUF name, in the order in which they stand in the file:
        embeddings, what the rotations need, block after block, the last norm, the output.

        SourceError where one is missing, unknown, or of another shape than the configuration
        says, naming both.
        """
        ...

    def notes(self, config: Mapping[str, Any], source: Source) -> tuple[str, ...]:
        """What a user should know of this conversion: where llama.cpp computes differently, and
        what of the folder stays behind. One sentence each; most models have none."""
        ...
