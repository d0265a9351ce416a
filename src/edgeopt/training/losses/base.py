"""What a loss is, what it sees of a step, and what all of them share: outputs, padding, KL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgeopt.core.names import listed, near
from edgeopt.errors import InputsError, UsageError
from edgeopt.training.layer_pairs import Pair

__all__ = [
    "Batch",
    "Loss",
    "LossOption",
    "alike",
    "choose_output",
    "divergence",
    "kept_tokens",
    "output_pair",
    "precise",
    "target_of",
]

#: Names that targets go by, the likeliest first.
_TARGETS = ("labels", "label", "targets", "target", "scores", "score", "y")


@dataclass(frozen=True, eq=False)
class Batch:
    """What a loss sees of one step; every mapping is by name, batch first.

    ``student`` and ``teacher`` are outputs, the teacher's without gradient ({} where no loss wants
    them). ``targets`` are labels, and may be empty. ``feed`` is what both were run on: its
    ``attention_mask`` [batch, tokens] tells padding. ``student_hidden`` and ``teacher_hidden`` are
    outputs of the modules that losses asked for, by the modules' names.
    """

    student: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor] = field(default_factory=dict)
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    feed: Mapping[str, Tensor] = field(default_factory=dict)
    student_hidden: Mapping[str, Tensor] = field(default_factory=dict)
    teacher_hidden: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LossOption:
    """One option of a loss on the command line: the argument it sets, and how its text is read.

    ``read`` raises ValueError, saying what is wanted.
    """

    argument: str
    read: Callable[[str], Any]


class Loss(nn.Module):
    """One term of what a student is trained on.

    A subclass sets ``kind``, its name on the command line, and ``options``; its constructor takes
    ``weight`` and the options' arguments. Its parameters (learned projections) are trained beside
    the student. ``name`` tells it from other losses of the same kind. ``student_layers`` and
    ``teacher_layers`` are modules whose outputs are to be captured in each forward.
    """

    kind: ClassVar[str]
    options: ClassVar[Mapping[str, LossOption]] = {}

    def __init__(
        self, weight: float = 1.0, *, needs_teacher: bool = True, needs_targets: bool = False
    ) -> None:
        super().__init__()
        self.name = self.kind
        self.weight = weight
        self.needs_teacher = needs_teacher
        self.needs_targets = needs_targets
        self.student_layers: tuple[str, ...] = ()
        self.teacher_layers: tuple[str, ...] = ()

    def choose_layers(
        self, teacher: nn.Module, student: nn.Module, pairs: Sequence[Pair] = ()
    ) -> None:
        """Say which layers are compared: ``pairs``, or what the two modules suggest. Before the
        first step; does nothing where a loss sees outputs alone."""

    def prepare(self, batch: Batch) -> None:
        """Make the parameters that depend on sizes; once, on the first batch. Seeded."""

    def forward(self, batch: Batch) -> Tensor:
        """The loss as a scalar: its mean over the batch, ``weight`` not yet in it."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.name}, weight={self.weight:g}"


def precise(tensor: Tensor) -> Tensor:
    """Half precision as float32, in which losses are computed; other floats as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def choose_output(
    outputs: Mapping[str, Tensor], wanted: str | None, preferred: Sequence[str], side: str
) -> str:
    """The output that is meant: ``wanted``, else the first of ``preferred`` that there is, else the
    only floating-point one.

    Raises UsageError where ``wanted`` is not there, InputsError where there is no telling.
    """
    if wanted is not None:
        if wanted not in outputs:
            raise UsageError(f"the {side} has no output {wanted}; {near(wanted, outputs)}")
        return wanted
    floats = [name for name, tensor in outputs.items() if tensor.is_floating_point()]
    found = [name for name in preferred if name in floats] or floats[:2]
    if len(found) == 1 or (found and found[0] in preferred):
        return found[0]
    given = listed(floats) or "none of floating point"
    raise InputsError(f"the {side}'s outputs are {given}: choose one with output=NAME")


def output_pair(
    batch: Batch, wanted: str | None, preferred: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """(student's, teacher's) output, of one shape, in the student's precision.

    The teacher's is the one of the same name, else its only one. Raises InputsError naming both
    outputs where they differ in shape, and what :func:`choose_output` raises.
    """
    name = choose_output(batch.student, wanted, preferred, "student")
    other = name
    if name not in batch.teacher:
        other = choose_output(batch.teacher, None, preferred, "teacher")
    student, teacher = precise(batch.student[name]), batch.teacher[other]
    alike(f"output {name}", student, f"output {other}", teacher)
    return student, teacher.detach().to(student.dtype)


def alike(student_name: str, student: Tensor, teacher_name: str, teacher: Tensor) -> None:
    """Raises InputsError where the two differ in shape, naming both."""
    if student.shape != teacher.shape:
        raise InputsError(
            f"the student's {student_name} is {list(student.shape)}, the teacher's {teacher_name} "
            f"is {list(teacher.shape)}; this loss needs both of one shape"
        )


def kept_tokens(batch: Batch, tensor: Tensor) -> Tensor | None:
    """Which of a [batch, tokens, width] tensor's tokens are no padding, as booleans [batch,
    tokens]; None where the tensor is no such thing, or nothing is padded.

    Raises InputsError where all is padding.
    """
    mask = batch.feed.get("attention_mask")
    if mask is None or tensor.ndim != 3 or mask.shape != tensor.shape[:2]:
        return None
    kept = mask.to(tensor.device) != 0
    if not bool(kept.any()):
        raise InputsError("attention_mask is 0 throughout a batch: nothing is left to learn from")
    return None if bool(kept.all()) else kept


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of logits [..., classes] in nats at ``temperature``, as [...].

    Times the temperature squared, so that gradients keep their size whatever it is (Hinton,
    Vinyals and Dean 2015, arXiv:1503.02531, section 2). A class that the teacher rules out (-inf)
    adds nothing.
    """
    ours = torch.log_softmax(student / temperature, -1)
    theirs = torch.log_softmax(teacher / temperature, -1)
    share = theirs.exp()
    # A share of 0 would give 0 * inf, NaN. A NaN that was there is not 0, and stays.
    terms = torch.where(share == 0, torch.zeros_like(share), share * (theirs - ours))
    return terms.sum(-1) * temperature**2


def target_of(batch: Batch, wanted: str | None) -> tuple[str, Tensor]:
    """The target that is meant: ``wanted``, the only one, or one of the usual names.

    Raises UsageError where ``wanted`` is not there, InputsError where there is none or no telling.
    """
    names = tuple(batch.targets)
    if wanted is not None and wanted not in names:
        raise UsageError(f"the data has no {wanted}; {near(wanted, names)}")
    found = wanted or (names[0] if len(names) == 1 else None)
    found = found or next((name for name in _TARGETS if name in names), None)
    if found is None:
        given = f"several ({listed(names)}): choose one with target=NAME" if names else "none"
        raise InputsError(f"labels are needed beside the inputs, the data has {given}")
    return found, batch.targets[found]
