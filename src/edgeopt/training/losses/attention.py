"""Attention: where the student looks follows where the teacher looks.

Two readings, by what a layer gives, both worked out from modules' outputs alone, so that they hold
for every implementation of attention (fused ones never show their probabilities):

* feature maps [batch, channels, space...]: activation-based attention maps (Zagoruyko and Komodakis
  2017, arXiv:1612.03928, equation 1 with p = 2);
* tokens [batch, tokens, width]: relations among tokens, of the projections to queries, keys and
  values where a block has them (MiniLMv2, Wang et al. 2021, arXiv:2012.15828), else of the block's
  output. Neither width nor number of heads need agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd, sqrt
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeopt.errors import InputsError
from edgeopt.training.layer_pairs import Pair, attention_pairs
from edgeopt.training.losses.base import Batch, LossOption, divergence, kept_tokens
from edgeopt.training.losses.layered import LayerLoss, hidden_pair, one_size
from edgeopt.training.losses.options import count

__all__ = ["Attention"]


class Attention(LayerLoss):
    """Mean over the batch, then over pairs of layers, of either reading.

    Maps: the squared distance between the two maps, each the sum over channels of squared
    activations, flattened and scaled to length 1 (so 0 to 2). Relations: KL(teacher || student) in
    nats between softmaxes over tokens of scaled products among tokens, in ``heads`` equal parts of
    the width (or the most, up to that, that divide both widths); padding neither looks nor is
    looked at. Which tokens may see which is left out: relations of a causal model run both ways.
    """

    kind: ClassVar[str] = "attention"
    options: ClassVar[Mapping[str, LossOption]] = {"heads": LossOption("heads", count)}

    def __init__(self, weight: float = 1.0, *, pairs: Sequence[Pair] = (), heads: int = 12) -> None:
        super().__init__(weight, pairs)
        self.heads = heads

    def choose_layers(
        self, teacher: nn.Module, student: nn.Module, pairs: Sequence[Pair] = ()
    ) -> None:
        self.compare(attention_pairs(teacher, student, pairs or self.pairs))

    def forward(self, batch: Batch) -> Tensor:
        terms: list[Tensor] = []
        for pair in self.require_pairs():
            student, teacher = hidden_pair(batch, pair)
            if student.ndim >= 4:
                terms.append(_maps(*one_size(student, teacher)))
            elif student.ndim == 3 and student.shape[1] == teacher.shape[1]:
                heads = _parts(student.shape[-1], teacher.shape[-1], self.heads)
                terms.append(_relations(student, teacher, kept_tokens(batch, student), heads))
            else:
                raise InputsError(
                    f"student layer {pair.student_layer} gives {list(student.shape)}, teacher "
                    f"layer {pair.teacher_layer} {list(teacher.shape)}; attention compares feature "
                    "maps, or as many tokens"
                )
        return torch.stack(terms).mean()


def _maps(student: Tensor, teacher: Tensor) -> Tensor:
    ours, theirs = (F.normalize(t.square().sum(1).flatten(1), dim=1) for t in (student, teacher))
    return (ours - theirs).square().sum(1).mean()


def _parts(ours: int, theirs: int, limit: int) -> int:
    """The largest number up to ``limit`` that divides both widths."""
    common = gcd(ours, theirs)
    return max(n for n in range(1, limit + 1) if common % n == 0)


def _relations(student: Tensor, teacher: Tensor, kept: Tensor | None, heads: int) -> Tensor:
    if kept is not None:  # whatever padding holds, it takes no part in a product
        blank = ~kept[..., None]
        student, teacher = student.masked_fill(blank, 0), teacher.masked_fill(blank, 0)
    ours, theirs = _products(student, heads), _products(teacher, heads)
    if kept is not None:
        unseen = ~kept[:, None, None, :]
        ours, theirs = (t.masked_fill(unseen, -torch.inf) for t in (ours, theirs))
    found = divergence(ours, theirs, 1.0).mean(1)  # over heads
    return (found if kept is None else found[kept]).mean()


def _products(tokens: Tensor, heads: int) -> Tensor:
    """[batch, tokens, width] -> scaled products among tokens [batch, heads, tokens, tokens]."""
    parts = tokens.unflatten(-1, (heads, -1)).transpose(1, 2)
    return parts @ parts.transpose(-1, -2) / sqrt(parts.shape[-1])
