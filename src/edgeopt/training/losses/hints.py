"""Hints: the student's features follow the teacher's (FitNets, Romero et al. 2015, 1412.6550)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from edgeopt.errors import InputsError
from edgeopt.training.layer_pairs import Pair, propose_pairs
from edgeopt.training.losses.base import Batch, LossOption, kept_tokens
from edgeopt.training.losses.layered import LayerLoss, hidden_pair, one_size
from edgeopt.training.losses.options import count

__all__ = ["Hints"]


class Hints(LayerLoss):
    """Mean squared difference of paired layers' features, mean over elements, then over pairs.

    Features are [batch, width], [batch, tokens, width] (padding left out) or [batch, channels,
    space...]. Where widths differ, a learned linear map takes the student's to the teacher's: over
    channels, that is the 1x1 convolution of FitNets. Where spatial sizes differ, the larger is
    average-pooled. ``seed`` draws the maps.
    """

    kind: ClassVar[str] = "hints"
    options: ClassVar[Mapping[str, LossOption]] = {"seed": LossOption("seed", count)}

    def __init__(self, weight: float = 1.0, *, pairs: Sequence[Pair] = (), seed: int = 1) -> None:
        super().__init__(weight, pairs)
        self.seed = seed
        self.maps = nn.ModuleDict()  # by the pair's place: names of layers have dots

    def choose_layers(
        self, teacher: nn.Module, student: nn.Module, pairs: Sequence[Pair] = ()
    ) -> None:
        self.compare(pairs or self.pairs or propose_pairs(teacher, student))

    def prepare(self, batch: Batch) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        for index, pair in enumerate(self.require_pairs()):
            student, teacher, _ = _features(batch, pair)
            ours, theirs = student.shape[-1], teacher.shape[-1]
            if ours == theirs:
                continue
            linear = nn.utils.skip_init(nn.Linear, ours, theirs)
            with torch.no_grad():
                linear.weight.normal_(0, 1 / math.sqrt(ours), generator=generator)
                linear.bias.zero_()
            self.maps[str(index)] = linear.to(student.device, student.dtype)

    def forward(self, batch: Batch) -> Tensor:
        terms: list[Tensor] = []
        for index, pair in enumerate(self.require_pairs()):
            student, teacher, kept = _features(batch, pair)
            if str(index) in self.maps:
                student = self.maps[str(index)](student)
            if student.shape != teacher.shape:
                raise InputsError(
                    f"student layer {pair.student_layer} gives features {list(student.shape)}, "
                    f"teacher layer {pair.teacher_layer} {list(teacher.shape)}; only widths and "
                    "spatial sizes may differ, and widths only as in the first batch"
                )
            difference = student - teacher
            terms.append((difference if kept is None else difference[kept]).square().mean())
        return torch.stack(terms).mean()


def _features(batch: Batch, pair: Pair) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both layers' features with the width last and one spatial size, and which tokens are kept.

    Three axes are tokens where the second agrees, else one axis of space with channels first.
    """
    student, teacher = hidden_pair(batch, pair)
    tokens = student.ndim == 3 and student.shape[1] == teacher.shape[1]
    if student.ndim == 2 or tokens:
        return student, teacher, kept_tokens(batch, student)
    student, teacher = one_size(student, teacher)
    return student.movedim(1, -1), teacher.movedim(1, -1), None
