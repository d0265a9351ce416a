"""What losses over inner layers share: their pairs of layers, and what these gave in a forward."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from edgeopt.errors import InputsError
from edgeopt.training.layer_pairs import Pair
from edgeopt.training.losses.base import Batch, Loss, precise

__all__ = ["LayerLoss", "hidden_pair", "one_size"]

#: Pooling by the number of spatial axes.
_POOL = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


class LayerLoss(Loss):
    """A loss over ``pairs`` of layers. Without pairs, ``choose_layers`` has to find them."""

    def __init__(self, weight: float, pairs: Sequence[Pair]) -> None:
        super().__init__(weight)
        self.compare(pairs)

    def compare(self, pairs: Sequence[Pair]) -> None:
        """Take these pairs instead of those so far."""
        self.pairs = tuple(pairs)
        self.student_layers = tuple(dict.fromkeys(p.student_layer for p in self.pairs))
        self.teacher_layers = tuple(dict.fromkeys(p.teacher_layer for p in self.pairs))

    def require_pairs(self) -> tuple[Pair, ...]:
        """The pairs. Raises InputsError where there are none."""
        if not self.pairs:
            raise InputsError(f"{self.name} has no layers to compare; name pairs of them")
        return self.pairs


def hidden_pair(batch: Batch, pair: Pair) -> tuple[Tensor, Tensor]:
    """What the student's and the teacher's layer gave, in the student's precision.

    Raises InputsError where one did not run, or the two give another number of rows or axes.
    """
    found: list[Tensor] = []
    for side, name, hidden in (
        ("student", pair.student_layer, batch.student_hidden),
        ("teacher", pair.teacher_layer, batch.teacher_hidden),
    ):
        if name not in hidden:
            raise InputsError(f"{side} layer {name} did not run in this forward; choose another")
        found.append(precise(hidden[name]))
    student, teacher = found
    if student.ndim != teacher.ndim or student.ndim < 2 or len(student) != len(teacher):
        raise InputsError(
            f"student layer {pair.student_layer} gives {list(student.shape)}, teacher layer "
            f"{pair.teacher_layer} {list(teacher.shape)}; pair layers of one kind"
        )
    return student, teacher.detach().to(student.dtype)


def one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both [batch, channels, space...] average-pooled to the smaller size on each spatial axis."""
    size = [min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    pool = _POOL.get(len(size))
    if pool is None:
        raise InputsError(f"features of {student.ndim} axes are not known; up to 5 are")
    ours, theirs = (t if list(t.shape[2:]) == size else pool(t, size) for t in (student, teacher))
    return ours, theirs
