"""The training loop: a student, what it is to learn, and how; in one process or in several.

accelerate does what concerns devices, precision and processes. Everything random is a function of
the seed and the step (:mod:`edgeopt.training.randomness`), everything else is in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from edgeopt.core import Progress
from edgeopt.errors import SourceError, UsageError
from edgeopt.modules.model import TorchModel
from edgeopt.training.batches import Data
from edgeopt.training.distributed import accelerator, peers
from edgeopt.training.evaluation import MetricFunction
from edgeopt.training.log import LogRecord
from edgeopt.training.losses.base import Loss
from edgeopt.training.randomness import deterministic, isolated
from edgeopt.training.run import Task
from edgeopt.training.settings import TrainSettings
from edgeopt.training.setup import opened

__all__ = ["Trained", "train"]


@dataclass(frozen=True)
class Trained:
    """How a training went.

    ``steps`` updates were made; the student now has the weights of ``best_step``, whose
    ``best_metric`` is None where nothing was evaluated. ``stopped`` is ``finished``, ``early``
    (patience ran out), ``diverged`` or ``interrupted``. ``writer`` says whether this process is
    the one that writes files.
    """

    steps: int
    best_step: int
    best_metric: float | None
    history: tuple[LogRecord, ...]
    stopped: str
    notes: tuple[str, ...] = ()
    writer: bool = True


def train(
    student: TorchModel,
    losses: Sequence[Loss],
    data: Data,
    *,
    settings: TrainSettings,
    teacher: TorchModel | None = None,
    validation: Data | None = None,
    metric: MetricFunction | None = None,
    higher_is_better: bool = True,
    after_step: Callable[[], None] | None = None,
    log: Path | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train the student in place, with AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101).

    ``losses`` know their layers already (``Loss.choose_layers``). ``validation`` is judged by
    ``metric``, or by the losses where there is none (lower is better then, whatever
    ``higher_is_better`` says); the best weights come back. Without it, the last do.
    ``after_step`` is called after every update (it keeps pruned weights zero).

    Started by torchrun, every process calls this alike, gets the same result, and trains on its
    part of each batch.

    Raises UsageError for settings that do not go together, InputsError for data that cannot be
    trained on, SourceError for a checkpoint of another run, OutputError where nothing can be
    written, WorkerError where another process is gone, MissingExtraError without accelerate.
    """
    _require_sensible(student, losses, teacher, settings, validation)
    together = accelerator(settings)
    with ExitStack() as stack:
        stack.enter_context(peers(together))
        stack.enter_context(deterministic())
        stack.enter_context(isolated(settings.seed))
        stack.enter_context(student.mode(True))
        task = Task(
            student=student,
            losses=losses,
            data=data.bind(student.inputs),
            settings=settings,
            teacher=teacher if any(loss.needs_teacher for loss in losses) else None,
            validation=None if validation is None else validation.bind(student.inputs),
            metric=metric,
            higher_is_better=higher_is_better,
            after_step=after_step,
            log=log,
            progress=progress or _silent,
        )
        run = stack.enter_context(opened(task, together))
        state, notes = run.go()
    judged = validation is not None and state.best_metric is not None
    return Trained(
        state.step,
        state.best_step,
        state.best_metric if judged else None,
        tuple(state.history),
        state.stopped,
        tuple(notes),
        bool(together.is_main_process),
    )


def _silent(text: str, share: float | None) -> None:
    """Nobody listens."""


def _require_sensible(
    student: TorchModel,
    losses: Sequence[Loss],
    teacher: TorchModel | None,
    settings: TrainSettings,
    validation: Data | None,
) -> None:
    if not losses:
        raise UsageError("there is no loss to train on; give at least one")
    for loss in losses:
        if loss.needs_teacher and teacher is None:
            raise UsageError(f"loss {loss.name} compares with a teacher, and there is none")
    if settings.cache_teacher is not None and teacher is None:
        raise UsageError("cache_teacher is for a teacher's answers, and there is no teacher")
    if settings.patience is not None and validation is None:
        raise UsageError("patience needs data to validate on; hold some out")
    if teacher is not None and teacher.module is student.module:
        raise UsageError("teacher and student are one and the same module; copy one of them")
    if teacher is not None:
        given = {spec.name for spec in student.inputs}
        lacking = [spec.name for spec in teacher.inputs if spec.name not in given]
        if lacking:
            raise SourceError(
                f"the teacher takes {', '.join(lacking)}, the student only "
                f"{', '.join(sorted(given))}; they must be fed alike"
            )
