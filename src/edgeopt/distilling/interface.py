"""Whether a student takes what its teacher takes, and gives what its teacher gives."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeopt.core.names import listed
from edgeopt.errors import InputsError
from edgeopt.modules.model import TorchModel
from edgeopt.modules.reasons import attempt, one_line

__all__ = ["differences", "require_alike"]


def require_alike(teacher: TorchModel, student: TorchModel) -> None:
    """Run both on the teacher's example.

    Raises InputsError where the student does not take it, or their outputs differ in names, shapes
    or kind of number (naming both). A lone output may have another name.
    """
    found = differences(teacher, student)
    if found:
        raise InputsError(f"{found}; a student takes and gives what its teacher does")


def differences(teacher: TorchModel, student: TorchModel) -> str:
    """The first difference, in words; empty where there is none."""
    wanted = sorted(spec.name for spec in teacher.inputs)
    given = sorted(spec.name for spec in student.inputs)
    if wanted != given:
        return f"the student takes {listed(given)}, the teacher {listed(wanted)}"
    theirs = _run(teacher, teacher)
    ours, error = attempt(lambda: _run(student, teacher))
    if ours is None:
        why = one_line(error) if error is not None else "nothing"
        return f"the student ({type(student.module).__name__}) on {listed(wanted)}: {why}"
    names = [(name, name) for name in theirs]
    if len(theirs) == len(ours) == 1:
        names = [(next(iter(theirs)), next(iter(ours)))]
    elif set(theirs) != set(ours):
        return f"the student gives {listed(ours) or 'no tensor'}, the teacher {listed(theirs)}"
    for a, b in names:
        if theirs[a].shape != ours[b].shape:
            return (
                f"the student's output {b} is {list(ours[b].shape)}, the teacher's output {a} is "
                f"{list(theirs[a].shape)}"
            )
        if theirs[a].is_floating_point() != ours[b].is_floating_point():
            return (
                f"the student's output {b} is {_dtype(ours[b])}, the teacher's output {a} is "
                f"{_dtype(theirs[a])}"
            )
    return ""


def _run(model: TorchModel, teacher: TorchModel) -> dict[str, Tensor]:
    with model.mode(False), torch.no_grad():
        return model.outputs(model.tensors(teacher.example))


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
