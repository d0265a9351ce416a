"""Choices that torch makes while it runs, taken out of an exporter's way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

__all__ = ["plain_attention", "quiet", "quiet_choices"]


def quiet_choices() -> None:
    """Have torch take its plain path where it would choose by looking at values.

    The fused kernel of ``nn.TransformerEncoderLayer`` has no ONNX form. ``nn.Transformer`` compares
    its mask with the causal one, to pass a hint beside the mask: control flow on values, which no
    exporter can follow, for a hint that changes no result since the mask itself is passed as well.
    """
    torch.backends.mha.set_fastpath_enabled(False)
    transformer = torch.nn.modules.transformer
    if hasattr(transformer, "_detect_is_causal_mask"):
        transformer._detect_is_causal_mask = _said_causal


@contextmanager
def quiet() -> Iterator[None]:
    """:func:`quiet_choices` for the time of a block."""
    transformer = torch.nn.modules.transformer
    fast = torch.backends.mha.get_fastpath_enabled()
    detect = getattr(transformer, "_detect_is_causal_mask", None)
    quiet_choices()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        if detect is not None:
            transformer._detect_is_causal_mask = detect


@contextmanager
def plain_attention(module: torch.nn.Module) -> Iterator[None]:
    """Attention in its plain form, for the time of a block, where a part of transformers' offers
    the choice."""
    parts: list[Any] = [
        part for part in module.modules() if hasattr(part, "set_attn_implementation")
    ]
    with ExitStack() as stack:
        # A model passes its choice on to its parts: put back inside out.
        for part in parts:
            stack.callback(part.set_attn_implementation, part.config._attn_implementation)
        for part in parts:
            part.set_attn_implementation("eager")
        yield


def _said_causal(
    mask: torch.Tensor | None, is_causal: bool | None = None, size: int | None = None
) -> bool:
    """What the caller said, never what the mask's values say."""
    del mask, size
    return bool(is_causal)
