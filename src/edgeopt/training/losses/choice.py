"""Which losses suit a task, where nobody has said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from edgeopt.core.names import listed, near
from edgeopt.errors import InputsError, UsageError
from edgeopt.training.losses.base import Loss
from edgeopt.training.losses.cosine import PREFERRED, Cosine
from edgeopt.training.losses.hard_labels import HardLabels
from edgeopt.training.losses.mse import MeanSquared
from edgeopt.training.losses.next_token import NextToken
from edgeopt.training.losses.soft_labels import SoftLabels

__all__ = ["KINDS", "default_losses", "kind_of"]

#: Tasks that losses are chosen for.
KINDS = ("classifier", "embedder", "regressor", "causal-lm", "other")

#: Ends of transformers' class names, and what such a model is.
_CLASSES = {
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "ForSequenceClassification": "classifier",
    "ForTokenClassification": "classifier",
    "ForImageClassification": "classifier",
    "Classification": "classifier",
    "SentenceModel": "embedder",
}


def kind_of(
    module: Any, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor] | None = None
) -> str:
    """What a model is for, one of ``KINDS``: by its class's name, its outputs' names and shapes
    and the targets that come with its data (whole numbers are classes)."""
    floats = _floats(outputs)
    for end, kind in _CLASSES.items():
        if type(module).__name__.endswith(end):
            regressor = kind == "classifier" and all(t.shape[-1] == 1 for t in floats.values())
            return "regressor" if regressor else kind
    if any(name in floats for name in PREFERRED):
        return "embedder"
    if len(floats) != 1 and "logits" not in floats:
        return "other"
    output = floats.get("logits", next(iter(floats.values())))
    labels = list((targets or {}).values())
    if any(t.is_floating_point() and output.shape in (t.shape, (*t.shape, 1)) for t in labels):
        return "regressor"
    return "classifier" if output.ndim >= 2 and output.shape[-1] > 1 else "regressor"


def default_losses(
    student_outputs: Mapping[str, Tensor],
    teacher_outputs: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    kind: str,
) -> tuple[tuple[Loss, ...], str]:
    """Losses for a task of ``kind`` (one of ``KINDS``), and why, in a line.

    Raises UsageError for another kind, InputsError naming outputs and shapes where teacher and
    student do not agree.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no task {kind!r}; {near(kind, KINDS)}")
    shared = _shared(_floats(student_outputs), _floats(teacher_outputs))
    labelled = bool(targets)
    if kind == "causal-lm":
        return (NextToken(),), "a language model: KL over the vocabulary at every next token"
    if kind == "embedder":
        name = next((n for n in PREFERRED if n in shared), None)
        why = "an embedder: directions of the teacher's embeddings, and how alike they are"
        return (Cosine(output=name, similarity=1.0),), why
    if kind == "classifier":
        if any(not target.is_floating_point() for target in targets.values()):
            why = "a classifier with labels: mostly the teacher's soft labels, some of the data's"
            return (SoftLabels(0.9), HardLabels(0.1)), why
        return (SoftLabels(),), "a classifier without labels: the teacher's soft labels"
    if kind == "regressor":
        if labelled:
            why = "a regressor with targets: half the teacher's numbers, half the data's"
            return (MeanSquared(0.5), MeanSquared(0.5, against="targets")), why
        return (MeanSquared(),), "a regressor without targets: the teacher's numbers"
    losses = tuple(MeanSquared(1 / len(shared), output=name) for name in shared)
    for loss, name in zip(losses, shared, strict=True):
        loss.name = f"{loss.kind}:{name}"
    return losses, f"outputs of some other kind ({listed(shared)}): all as numbers"


def _floats(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in outputs.items() if tensor.is_floating_point()}


def _shared(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Names of the student's outputs that the teacher has too, of one shape each."""
    if len(student) == len(teacher) == 1:
        pairs = [(next(iter(student)), next(iter(teacher)))]
    else:
        pairs = [(name, name) for name in student if name in teacher]
    for ours, theirs in pairs:
        a, b = list(student[ours].shape), list(teacher[theirs].shape)
        if a != b:
            raise InputsError(
                f"the student's output {ours} is {a}, the teacher's output {theirs} is {b}; "
                "a student gives what its teacher gives"
            )
    if not pairs:
        raise InputsError(
            f"the student gives {listed(student) or 'nothing'}, the teacher "
            f"{listed(teacher) or 'nothing'}: no output that both have"
        )
    return tuple(ours for ours, _ in pairs)
