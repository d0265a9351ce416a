"""A language model as GGUF will hold it, before anybody chose a type or read a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeopt.core import Weight
from edgeopt.files.gguf_write import Field

__all__ = ["LanguageModel"]


@dataclass(frozen=True)
class LanguageModel:
    """Everything of a GGUF file but the types of its tensors.

    ``architecture`` is GGUF's name (``llama``). ``metadata`` is in the order it will be written,
    tokenizer included, without ``general.file_type`` and ``general.quantization_version``, which
    depend on the types. ``tensors`` have GGUF's names (``blk.0.attn_q.weight``) and shapes (rows
    first), in the order they will stand in the file; their ``rows`` give the values as GGUF wants
    them (permuted, transposed, shifted) in any float dtype, straight from the mapped source, in
    memory bounded by the rows asked for. ``notes`` are what somebody who uses the file should
    know: what of the source stays behind, and where llama.cpp's arithmetic is another.
    """

    architecture: str
    metadata: Mapping[str, Field]
    tensors: tuple[Weight, ...]
    notes: tuple[str, ...] = ()

    def number(self, key: str, default: int = 0) -> int:
        """An integer of the architecture's metadata: ``block_count``, ``attention.head_count``."""
        field = self.metadata.get(f"{self.architecture}.{key}")
        if field is None or field.type == "array":
            return default
        return int(field.value)
