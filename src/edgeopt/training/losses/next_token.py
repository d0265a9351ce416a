"""Next token: a causal language model's distribution over its vocabulary follows the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from edgeopt.errors import InputsError, UsageError
from edgeopt.training.losses.base import (
    Batch,
    Loss,
    LossOption,
    choose_output,
    divergence,
    output_pair,
    precise,
)
from edgeopt.training.losses.hard_labels import IGNORED, class_ids
from edgeopt.training.losses.options import above_zero, word, zero_or_more

__all__ = ["NextToken"]


class NextToken(Loss):
    """``kl`` times KL(teacher || student) at temperature ``T`` (times T squared) plus ``ce`` times
    the cross-entropy with the token that follows; in nats, mean over positions.

    Logits are [batch, tokens, vocabulary]. Position i counts where tokens i and i + 1 are both no
    padding: what follows is known. Token ids are the feed's ``input_ids``; a target ``labels`` of
    their shape takes their place, and where it is -100 (a prompt) nothing counts. ``kl=0,ce=1``
    trains without a teacher.
    """

    kind: ClassVar[str] = "next_token"
    options: ClassVar[Mapping[str, LossOption]] = {
        "T": LossOption("temperature", above_zero),
        "kl": LossOption("kl", zero_or_more),
        "ce": LossOption("ce", zero_or_more),
        "output": LossOption("output", word),
    }

    def __init__(
        self,
        weight: float = 1.0,
        *,
        temperature: float = 1.0,
        kl: float = 1.0,
        ce: float = 0.0,
        output: str | None = None,
    ) -> None:
        if kl == ce == 0:
            raise UsageError("next_token with kl=0 and ce=0 learns nothing; give one of them")
        super().__init__(weight, needs_teacher=kl > 0)
        self.temperature = temperature
        self.kl = kl
        self.ce = ce
        self.output = output

    def forward(self, batch: Batch) -> Tensor:
        name = choose_output(batch.student, self.output, ("logits",), "student")
        logits = precise(batch.student[name])
        following, counts = _following(batch, name, logits)
        chosen = logits[:, :-1][counts]
        terms: list[Tensor] = []
        if self.kl:
            _, teacher = output_pair(batch, name, ("logits",))
            terms.append(
                self.kl * divergence(chosen, teacher[:, :-1][counts], self.temperature).mean()
            )
        if self.ce:
            ids = class_ids(following[counts], logits.shape[-1], "input_ids", ignored=False)
            terms.append(self.ce * F.cross_entropy(chosen, ids))
        return sum(terms[1:], terms[0])


def _following(batch: Batch, name: str, logits: Tensor) -> tuple[Tensor, Tensor]:
    """(the token that follows, whether the position counts), both [batch, tokens - 1].

    Raises InputsError where there are no ids of the logits' shape, or no position counts.
    """
    ids = batch.feed.get("input_ids")
    if ids is None:
        raise InputsError("next_token needs input_ids, which the model is not fed")
    if logits.ndim != 3 or logits.shape[:2] != ids.shape:
        raise InputsError(
            f"output {name} is {list(logits.shape)}, input_ids is {list(ids.shape)}; next_token "
            "needs logits [batch, tokens, vocabulary]"
        )
    labels = batch.targets.get("labels")
    if labels is not None and labels.shape == ids.shape:
        ids = labels
    following = ids[:, 1:].to(logits.device)
    counts = following != IGNORED
    mask = batch.feed.get("attention_mask")
    if mask is not None and mask.shape == ids.shape:
        kept = mask.to(logits.device) != 0
        counts = counts & kept[:, :-1] & kept[:, 1:]
    if not bool(counts.any()):
        raise InputsError(
            f"no token of a batch of {list(ids.shape)} is followed by one that counts: give texts "
            "of two tokens or more"
        )
    return following, counts
