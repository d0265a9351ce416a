"""How an embedder makes one vector of a text: what sentence-transformers says, as GGUF has it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgeopt.errors import SourceError
from edgeopt.files.gguf_write import Field, u32
from edgeopt.files.hf_folder import sentence_transformers

__all__ = ["pooling_fields", "pooling_of"]

#: How sentence-transformers pools -> GGUF's number.
_POOLING = {"mean": 1, "cls": 2, "lasttoken": 3}


def pooling_fields(
    architecture: str, folder: Path, metadata: Mapping[str, Field]
) -> dict[str, Field]:
    """``ARCH.pooling_type`` of a model in a sentence-transformers folder, a decoder too; nothing
    where the folder is none, or the family has said it."""
    key = f"{architecture}.pooling_type"
    number = None if key in metadata else pooling_of(folder)
    return {} if number is None else {key: u32(number)}


def pooling_of(folder: Path) -> int | None:
    """GGUF's number for what sentence-transformers' list beside the model says; None: no list."""
    for root in (folder, folder.parent):
        if not (root / "modules.json").is_file():
            continue
        modules = sentence_transformers(root)
        if root / modules.transformer != folder and root != folder:
            continue
        if modules.heads:
            raise SourceError(
                f"{root}: a dense layer ({modules.heads[0]}) follows the pooling; GGUF has no "
                "place for it"
            )
        if modules.pooling not in _POOLING:
            raise SourceError(
                f"{root}: pools by {modules.pooling}; llama.cpp pools by {', '.join(_POOLING)}"
            )
        return _POOLING[modules.pooling]
    return None
