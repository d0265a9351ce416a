"""Soft labels: the student follows the teacher's shares (Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from edgeopt.errors import InputsError
from edgeopt.training.losses.base import (
    Batch,
    Loss,
    LossOption,
    divergence,
    kept_tokens,
    output_pair,
)
from edgeopt.training.losses.options import above_zero, word

__all__ = ["SoftLabels"]


class SoftLabels(Loss):
    """KL(teacher || student) in nats at temperature ``T``, times T squared.

    The output is logits [batch, classes] or [batch, tokens, classes], where padding is left out;
    from four axes on classes are on axis 1, as convolutions have their channels. Mean over all
    positions. Without ``output``, ``logits`` or the only output.
    """

    kind: ClassVar[str] = "soft"
    options: ClassVar[Mapping[str, LossOption]] = {
        "T": LossOption("temperature", above_zero),
        "output": LossOption("output", word),
    }

    def __init__(
        self, weight: float = 1.0, *, temperature: float = 4.0, output: str | None = None
    ) -> None:
        super().__init__(weight)
        self.temperature = temperature
        self.output = output

    def forward(self, batch: Batch) -> Tensor:
        student, teacher = output_pair(batch, self.output, ("logits",))
        if student.ndim >= 4:
            student, teacher = student.movedim(1, -1), teacher.movedim(1, -1)
        if student.ndim < 2 or student.shape[-1] < 2:
            raise InputsError(
                f"soft labels need two classes or more, the output is {list(student.shape)}; "
                "use mse for one number"
            )
        kept = kept_tokens(batch, student)
        if kept is not None:
            student, teacher = student[kept], teacher[kept]
        return divergence(student, teacher, self.temperature).mean()
