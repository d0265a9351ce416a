"""Mean squared error: outputs as numbers, against the teacher's or against the data's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from edgeopt.errors import InputsError
from edgeopt.training.losses.base import (
    Batch,
    Loss,
    LossOption,
    choose_output,
    kept_tokens,
    output_pair,
    precise,
    target_of,
)
from edgeopt.training.losses.options import one_of, word

__all__ = ["MeanSquared"]


class MeanSquared(Loss):
    """Mean over the batch and all axes of the squared difference, in the output's own unit squared.

    ``against`` the teacher's output (regressors, or logits as in Ba and Caruana 2014,
    arXiv:1312.6184), or ``targets``: the data's numbers. Of [batch, tokens, width], padding is
    left out.
    """

    kind: ClassVar[str] = "mse"
    options: ClassVar[Mapping[str, LossOption]] = {
        "output": LossOption("output", word),
        "against": LossOption("against", one_of("teacher", "targets")),
        "target": LossOption("target", word),
    }

    def __init__(
        self,
        weight: float = 1.0,
        *,
        output: str | None = None,
        against: str = "teacher",
        target: str | None = None,
    ) -> None:
        labelled = against == "targets"
        super().__init__(weight, needs_teacher=not labelled, needs_targets=labelled)
        if labelled:
            self.name = f"{self.kind}-targets"
        self.output = output
        self.target = target

    def forward(self, batch: Batch) -> Tensor:
        if self.needs_targets:
            student, wanted = self._with_target(batch)
        else:
            student, wanted = output_pair(batch, self.output, ("logits",))
        kept = kept_tokens(batch, student)
        difference = student - wanted
        return (difference if kept is None else difference[kept]).square().mean()

    def _with_target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        name = choose_output(batch.student, self.output, ("logits",), "student")
        student = precise(batch.student[name])
        target, values = target_of(batch, self.target)
        if student.shape == (*values.shape, 1):
            student = student.squeeze(-1)
        if student.shape != values.shape:
            raise InputsError(
                f"{target} is {list(values.shape)}, output {name} is {list(student.shape)}; "
                "give one number for each"
            )
        return student, values.to(student.dtype)
