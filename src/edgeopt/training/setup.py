"""Everything that a training needs, made ready: devices, losses, the teacher, a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from edgeopt.errors import UsageError
from edgeopt.files.atomic import checked_output
from edgeopt.modules.model import TorchModel
from edgeopt.training.batches import Data
from edgeopt.training.distributed import from_main
from edgeopt.training.divergence import DivergenceGuard
from edgeopt.training.losses.base import Loss
from edgeopt.training.objective import Objective, layers_of
from edgeopt.training.randomness import seed_all
from edgeopt.training.resume import resume
from edgeopt.training.run import Run, Task
from edgeopt.training.state import TrainingState
from edgeopt.training.teacher import LiveTeacher, NoTeacher, Teacher
from edgeopt.training.teacher_cache import CachedTeacher, cached_answers, weights_digest
from edgeopt.training.tensors import to_tensors

__all__ = ["opened"]


@contextmanager
def opened(task: Task, accelerator: Any) -> Iterator[Run]:
    """The run at its start, or where its checkpoint left it. All modules are on the CPU again, and
    nothing watches them, when the block is left."""
    settings, student = task.settings, task.student
    if task.log is not None:
        checked_output(task.log)
    fingerprint = _fingerprint(task) if settings.checkpoint is not None else {}
    with ExitStack() as stack:
        for model in (student, task.teacher):
            if model is not None:
                model.module.to(accelerator.device)
                stack.callback(model.module.to, torch.device("cpu"))
        objective = Objective(student, task.losses)
        stack.enter_context(objective.watching())
        teacher, judge = _teachers(task, objective, accelerator, stack)
        _prepare_losses(task, objective, teacher, accelerator.device)
        objective.train()
        optimizer = torch.optim.AdamW(
            objective.parameter_groups(settings.weight_decay), lr=settings.learning_rate
        )
        run = Run(
            task,
            objective,
            optimizer,
            accelerator,
            teacher,
            judge,
            _total(task),
            TrainingState(DivergenceGuard(settings.diverged_factor, settings.diverged_steps)),
            fingerprint,
        )
        if accelerator.num_processes > 1 and _normalizes(student):
            run.notes.append(
                f"batch normalization sees the rows of one of {accelerator.num_processes} "
                "processes at a time; its statistics are the first one's"
            )
        if settings.checkpoint is not None:
            resumed = resume(settings.checkpoint, objective, optimizer, accelerator, fingerprint)
            if resumed is not None:
                run.state, notes = resumed
                run.notes += notes
        # Wrapped last: what wraps a module hands the main process's state to the others.
        run.model, run.optimizer = accelerator.prepare(objective, optimizer)
        yield run


def _normalizes(model: TorchModel) -> bool:
    kinds = torch.nn.modules.batchnorm._BatchNorm
    return any(isinstance(part, kinds) for part in model.module.modules())


def _total(task: Task) -> int:
    settings = task.settings
    if settings.steps is not None:
        return settings.steps
    batches = task.data.count(settings.batch_size)
    if batches is None or settings.epochs is None:
        raise UsageError(
            f"{task.data.label} does not say how long a pass is; give steps, not epochs"
        )
    return settings.epochs * batches


def _prepare_losses(
    task: Task, objective: Objective, teacher: Teacher, device: torch.device
) -> None:
    """Losses see the first rows once, to make what depends on sizes."""
    (part,) = next(task.data.parts(task.settings.batch_size, 1, (0,), None, 0))
    feed, targets = to_tensors(part, task.student, device)
    with task.student.mode(False), torch.no_grad():
        batch = objective.batch(feed, targets, teacher.answers(part, feed))
        for number, loss in enumerate(task.losses):
            seed_all(task.settings.seed, 0, number)
            loss.prepare(batch)


def _teachers(
    task: Task, objective: Objective, accelerator: Any, stack: ExitStack
) -> tuple[Teacher, Teacher]:
    """For training, and for judging by the losses."""
    model, folder = task.teacher, task.settings.cache_teacher
    if model is None:
        return NoTeacher(), NoTeacher()
    layers = layers_of(task.losses, "teacher")
    if folder is None:
        live = LiveTeacher.opened(model, layers, accelerator.autocast)
        teacher = stack.enter_context(live)
        return teacher, teacher

    def cached(data: Data) -> Teacher:
        made = from_main(
            accelerator,
            lambda: cached_answers(
                folder,
                model,
                data,
                layers,
                accelerator.autocast,
                lambda part: to_tensors(part, task.student, accelerator.device)[0],
                task.progress,
            ),
        )
        return CachedTeacher.open(made, data)

    judged = task.validation is not None and task.metric is None
    return cached(task.data), cached(task.validation) if judged and task.validation else NoTeacher()


def _fingerprint(task: Task) -> Mapping[str, str]:
    """Everything that the course of the training depends on, by name."""
    metric = task.metric
    found = {
        **task.settings.describe(),
        "data": task.data.fingerprint()[:16],
        "validation": "none" if task.validation is None else task.validation.fingerprint()[:16],
        # two runs that differ in what they begin with (a ratio, a round) are not one another's
        "what the student began with": weights_digest(task.student.module)[:16],
        "teacher": "none" if task.teacher is None else weights_digest(task.teacher.module)[:16],
        "metric": "none" if metric is None else getattr(metric, "__qualname__", "given"),
    }
    for number, loss in enumerate(task.losses, 1):
        found[f"loss {number}"] = _described(loss)
    return found


def _described(loss: Loss) -> str:
    """A loss by its class and whatever plain values it was made with."""
    plain = {
        name: value
        for name, value in sorted(vars(loss).items())
        if not name.startswith("_")
        and name != "training"
        and isinstance(value, (str, bool, int, float, tuple, type(None)))
    }
    return f"{type(loss).__name__}({', '.join(f'{k}={v!r}' for k, v in plain.items())})"
