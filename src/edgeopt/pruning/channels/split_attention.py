"""torch.nn.MultiheadAttention as four linear layers, so that its heads and width can shrink.

The module of torch insists that heads times head size is its width. Taken apart it need not be;
put together again it is torch's own wherever that still holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Split", "SplitAttention", "split"]


class SplitAttention(nn.Module):
    """What nn.MultiheadAttention computes, and takes, with a width of its own for the heads.

    Arguments, masks and results are those of torch's module, but for a mask of its own for every
    head. Weights are ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``.
    """

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        super().__init__()
        # As torch's layers ask: the last two keep them off a path that takes one joint weight.
        self.batch_first = whole.batch_first
        self.in_proj_bias: Tensor | None = None
        self._qkv_same_embed_dim = False
        self.num_heads = whole.num_heads
        self.head_dim = whole.head_dim
        self.dropout = whole.dropout
        if whole.in_proj_weight is not None:
            weights = whole.in_proj_weight.detach().chunk(3)
        else:
            joint = (whole.q_proj_weight, whole.k_proj_weight, whole.v_proj_weight)
            weights = tuple(weight.detach() for weight in joint)
        bias = whole.in_proj_bias
        biases = (None, None, None) if bias is None else bias.detach().chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        out = whole.out_proj
        self.out_proj = _linear(
            out.weight.detach(), None if out.bias is None else out.bias.detach()
        )
        self.train(whole.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        batched = query.dim() == 3
        if not batched:
            query, key, value = query[None], key[None], value[None]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = (
            layer(t).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for layer, t in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        mask = _additive(attn_mask, q)
        padding = _additive(key_padding_mask, q)
        if padding is not None:
            padding = padding[:, None, None, :]
            mask = padding if mask is None else mask + padding
        dropped = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) * self.head_dim**-0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = functional.dropout(weights, dropped)
            heads = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            heads = functional.scaled_dot_product_attention(q, k, v, mask, dropped)
        answer = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not batched:
            return answer[0], None if weights is None else weights[0]
        return answer if self.batch_first else answer.transpose(0, 1), weights


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    return layer


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask that is added to scores; true means left out."""
    if mask is None or mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


@dataclass(frozen=True)
class Split:
    """What was taken apart, by name, and the encoders that were kept from nested tensors for it."""

    originals: Mapping[str, nn.MultiheadAttention]
    stacks: tuple[nn.TransformerEncoder, ...]

    def join(self, module: nn.Module) -> int:
        """Put together again what torch's module can hold; how many it cannot."""
        for name, whole in self.originals.items():
            part = module.get_submodule(name)
            assert isinstance(part, SplitAttention)
            joined = _joined(part, whole)
            if joined is not None:
                module.set_submodule(name, joined)
        for stack in self.stacks:
            stack.use_nested_tensor = not any(
                isinstance(m, SplitAttention) for m in stack.modules()
            )
        left = (module.get_submodule(name) for name in self.originals)
        return sum(isinstance(part, SplitAttention) for part in left)


def split(module: nn.Module) -> Split:
    """Take every nn.MultiheadAttention apart, in place.

    Those with extra keys (``add_bias_kv``, ``add_zero_attn``) stay.
    """
    found = {
        name: part
        for name, part in module.named_modules()
        if type(part) is nn.MultiheadAttention
        and name
        and part.bias_k is None
        and not part.add_zero_attn
    }
    stacks = tuple(
        part
        for part in module.modules()
        if found and isinstance(part, nn.TransformerEncoder) and part.use_nested_tensor
    )
    for name, part in found.items():
        module.set_submodule(name, SplitAttention(part))
    for stack in stacks:
        stack.use_nested_tensor = False
    return Split(found, stacks)


def _joined(part: SplitAttention, original: nn.MultiheadAttention) -> nn.MultiheadAttention | None:
    """The original where nothing changed, a smaller one where heads still make up the width."""
    layers = (part.q_proj, part.k_proj, part.v_proj)
    width = part.out_proj.out_features
    if not part.q_proj.out_features == part.q_proj.in_features == width:
        return None
    if width == original.embed_dim and part.k_proj.in_features == original.kdim:
        return original
    whole = nn.MultiheadAttention(
        width,
        part.num_heads,
        part.dropout,
        part.q_proj.bias is not None,
        kdim=part.k_proj.in_features,
        vdim=part.v_proj.in_features,
        batch_first=part.batch_first,
        device=part.out_proj.weight.device,
    )
    weights = [layer.weight.detach() for layer in layers]
    if whole.in_proj_weight is not None:
        whole.in_proj_weight = nn.Parameter(torch.cat(weights))
    else:
        names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
        for name, weight in zip(names, weights, strict=True):
            setattr(whole, name, nn.Parameter(weight))
    if whole.in_proj_bias is not None:
        whole.in_proj_bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in layers]))
    whole.out_proj.weight, whole.out_proj.bias = part.out_proj.weight, part.out_proj.bias
    return whole.train(part.training)
