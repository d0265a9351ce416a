"""Cosine: embeddings that point where the teacher's do, and are as alike to one another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from edgeopt.training.losses.base import Batch, Loss, LossOption, kept_tokens, output_pair
from edgeopt.training.losses.options import word, zero_or_more

__all__ = ["PREFERRED", "Cosine"]

#: What embeddings are called, the likeliest first.
PREFERRED = ("sentence_embedding", "embeddings", "embedding", "last_hidden_state")


class Cosine(Loss):
    """1 - cosine of the student's and the teacher's embeddings, mean over the batch; plus
    ``similarity`` times the mean squared difference of the two matrices of cosines among the
    batch's own embeddings.

    Embeddings are [batch, width], or [batch, tokens, width] with padding left out; only the former
    have a matrix (Reimers and Gurevych 2020, arXiv:2004.09813, train on embeddings; matrices are
    those of Tung and Mori 2019, arXiv:1907.09682, on cosines).
    """

    kind: ClassVar[str] = "cosine"
    options: ClassVar[Mapping[str, LossOption]] = {
        "output": LossOption("output", word),
        "similarity": LossOption("similarity", zero_or_more),
    }

    def __init__(
        self, weight: float = 1.0, *, output: str | None = None, similarity: float = 0.0
    ) -> None:
        super().__init__(weight)
        self.output = output
        self.similarity = similarity

    def forward(self, batch: Batch) -> Tensor:
        student, teacher = output_pair(batch, self.output, PREFERRED)
        vectors = student.ndim == 2
        kept = kept_tokens(batch, student)
        if kept is not None:
            student, teacher = student[kept], teacher[kept]
        ours, theirs = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
        loss = (1 - (ours * theirs).sum(-1)).mean()
        if self.similarity and vectors and len(ours) > 1:
            difference = ours @ ours.T - theirs @ theirs.T
            loss = loss + self.similarity * difference.square().mean()
        return loss
