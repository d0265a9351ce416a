"""Model families: how a Hugging Face folder's tensors and configuration become GGUF's.

One file a family. To add one: write ``families/NAME.py`` with a ``FAMILY`` that is a
:class:`~.base.Family`, and add its line to ``FAMILIES``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.errors import FormatError, SourceError
from edgeopt.llm.families.base import Family

__all__ = ["FAMILIES", "families", "family_of"]

#: Modules, one a family, imported when somebody asks for one.
FAMILIES: tuple[str, ...] = (
    "llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt2",
    "bert",
)


def families() -> tuple[Family, ...]:
    """All of them, in the order of ``FAMILIES``."""
    modules = (importlib.import_module(f"{__name__}.{name}") for name in FAMILIES)
    return tuple(module.FAMILY for module in modules)


def family_of(config: Mapping[str, Any], path: Path) -> Family:
    """The family that ``config.json`` of the folder ``path`` names under ``architectures``.

    Raises FormatError where it names none, SourceError where edgeopt does not know it.
    """
    named = config.get("architectures")
    if not isinstance(named, list) or not named or not all(isinstance(n, str) for n in named):
        raise FormatError(
            path / "config.json",
            'names no model class; a list with one was expected, ["LlamaForCausalLM"]',
            field="architectures",
        )
    known = {name: family for family in families() for name in family.architectures}
    family = next((known[name] for name in named if name in known), None)
    if family is None:
        raise SourceError(
            f"{path / 'config.json'}: edgeopt has no family for {', '.join(named)[:200]}; it "
            f"knows {', '.join(known)}. To add one: a file in edgeopt/llm/families/ and its line "
            "in FAMILIES (CONTRIBUTING.md)"
        )
    return family
