"""Choices that torch makes while it runs, taken out of an exporter's way."""

from __future__ import annotations

import torch

__all__ = ["quiet_choices"]


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


def _said_causal(
    mask: torch.Tensor | None, is_causal: bool | None = None, size: int | None = None
) -> bool:
    """What the caller said, never what the mask's values say."""
    del mask, size
    return bool(is_causal)
