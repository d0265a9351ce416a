"""How good a student is on data held out: a metric of all its answers, or its mean loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from edgeopt.core import Array
from edgeopt.errors import InputsError
from edgeopt.training.batches import Data, MicroBatch
from edgeopt.training.objective import Objective
from edgeopt.training.teacher import Teacher

__all__ = ["MetricFunction", "broadcast_buffers", "evaluate"]

#: (outputs by name, targets by name) of all samples, in order -> how good they are.
MetricFunction: TypeAlias = Callable[[Mapping[str, Array], Mapping[str, Array]], float]

_BatchAnswers: TypeAlias = tuple[dict[str, Array], dict[str, Array]]


def broadcast_buffers(accelerator: Any, objective: Objective) -> None:
    """Running statistics as the main process has them: each saw rows of its own."""
    if accelerator.num_processes > 1:
        for buffer in objective.buffers():
            torch.distributed.broadcast(buffer, 0)


def evaluate(
    objective: Objective,
    teacher: Teacher,
    data: Data,
    metric: MetricFunction | None,
    batch_size: int,
    accelerator: Any,
    tensors: Callable[[MicroBatch], tuple[Mapping[str, Tensor], Mapping[str, Tensor]]],
) -> float:
    """The metric over all the data, the same number in every process, each of which runs a part.

    Without a metric: the mean loss, weighed by rows.
    """
    broadcast_buffers(accelerator, objective)
    of, rank = accelerator.num_processes, accelerator.process_index
    answers: list[_BatchAnswers] = []
    summed, rows = 0.0, 0.0
    objective.eval()
    with torch.no_grad(), accelerator.autocast():
        for (part,) in data.parts(batch_size, of, (rank,), None, 0):
            feed, targets = tensors(part)
            if metric is None:
                total, _ = objective(feed, targets, teacher.answers(part, feed))
                # The share is a multiple of an even part; what counts is rows.
                size = len(next(iter(part.inputs.values()))) if part.share else 0
                summed, rows = summed + float(total) * size, rows + size
            elif part.share:
                outputs = objective.student.outputs(feed)
                answers.append(({n: _array(t) for n, t in outputs.items()}, dict(part.targets)))
            else:
                answers.append(({}, {}))
    objective.train()
    if metric is None:
        sums = torch.tensor([summed, rows], dtype=torch.float32, device=accelerator.device)
        whole, count = accelerator.reduce(sums, "sum").tolist()
        return whole / count if count else float("nan")
    outputs, targets_of = _joined(_gathered(answers, of), data.label)
    return float(metric(outputs, targets_of))


def _array(tensor: Tensor) -> Array:
    wide = tensor.float() if tensor.is_floating_point() else tensor
    array: Array = wide.cpu().numpy()
    return array


def _gathered(answers: list[_BatchAnswers], of: int) -> Iterable[_BatchAnswers]:
    """The answers of all processes, in the order of the samples."""
    if of == 1:
        return answers
    from accelerate.utils import gather_object

    by_process = gather_object([answers])
    return [one for batch in zip(*by_process, strict=True) for one in batch]


def _joined(parts: Iterable[_BatchAnswers], label: str) -> _BatchAnswers:
    outputs: dict[str, list[Array]] = {}
    targets: dict[str, list[Array]] = {}
    for part in parts:
        for side, arrays in zip((outputs, targets), part, strict=True):
            for name, array in arrays.items():
                side.setdefault(name, []).append(array)
    return _whole(outputs, label), _whole(targets, label)


def _whole(pieces: Mapping[str, list[Array]], label: str) -> dict[str, Array]:
    for name, arrays in pieces.items():
        if len({array.shape[1:] for array in arrays}) > 1 or not arrays[0].ndim:
            raise InputsError(
                f"{label}: {name} changes its shape from batch to batch, and cannot be judged by a "
                "metric of all; judge by the loss, or pad to one length"
            )
    return {name: np.concatenate(arrays) for name, arrays in pieces.items()}
