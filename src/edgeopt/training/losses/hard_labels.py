"""Hard labels: cross-entropy with the classes that the data names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from edgeopt.errors import InputsError
from edgeopt.training.losses.base import (
    Batch,
    Loss,
    LossOption,
    choose_output,
    kept_tokens,
    precise,
    target_of,
)
from edgeopt.training.losses.options import word

__all__ = ["IGNORED", "HardLabels", "class_ids"]

#: The label of a position that counts for nothing, by torch's and transformers' convention.
IGNORED = -100


class HardLabels(Loss):
    """Cross-entropy in nats of logits with labels, mean over the batch.

    Logits [batch, classes] with labels [batch]; [batch, tokens, classes] with [batch, tokens],
    where padding and labels of -100 are left out; [batch, classes, ...] with [batch, ...].
    """

    kind: ClassVar[str] = "hard"
    options: ClassVar[Mapping[str, LossOption]] = {
        "output": LossOption("output", word),
        "target": LossOption("target", word),
    }

    def __init__(
        self, weight: float = 1.0, *, output: str | None = None, target: str | None = None
    ) -> None:
        super().__init__(weight, needs_teacher=False, needs_targets=True)
        self.output = output
        self.target = target

    def forward(self, batch: Batch) -> Tensor:
        name = choose_output(batch.student, self.output, ("logits",), "student")
        logits = precise(batch.student[name])
        target, labels = target_of(batch, self.target)
        if labels.ndim == logits.ndim:  # an axis of one, where logits have their classes
            pixels = labels.shape[1:2] == (1,) and labels.shape[2:] == logits.shape[2:]
            labels = labels.squeeze(1 if pixels else -1)
        if labels.shape != logits.shape[:-1]:
            if labels.shape != (*logits.shape[:1], *logits.shape[2:]):
                raise InputsError(
                    f"{target} is {list(labels.shape)}, output {name} is {list(logits.shape)}; "
                    "give one label for each row of logits"
                )
            logits = logits.movedim(1, -1)
        kept = kept_tokens(batch, logits)
        if kept is not None:
            logits, labels = logits[kept], labels[kept]
        several = len(labels.shape) > 1 or kept is not None
        labels = class_ids(labels, logits.shape[-1], target, ignored=several)
        return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED)


def class_ids(labels: Tensor, classes: int, name: str, *, ignored: bool) -> Tensor:
    """Labels as int64, each within 0..classes - 1, or -100 where that is allowed.

    Raises InputsError naming the first label that is out of range or no whole number, and where
    none is left.
    """
    whole = labels.long()
    left_out = (whole == IGNORED) & ignored
    wrong = (whole != labels) | (((whole < 0) | (whole >= classes)) & ~left_out)
    if bool(wrong.any()):
        first = labels[wrong].flatten()[0].item()
        raise InputsError(
            f"{name} holds the label {first}; the model has {classes} classes, so labels are whole "
            f"numbers from 0 to {classes - 1}"
        )
    if bool(torch.all(left_out)):
        raise InputsError(f"{name} is {IGNORED} throughout a batch: nothing is left to learn from")
    return whole
