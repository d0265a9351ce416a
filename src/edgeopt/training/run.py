"""One training under way: the steps of :func:`edgeopt.training.loop.train`, one method each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgeopt.core import Progress
from edgeopt.errors import InputsError, UsageError
from edgeopt.modules.model import TorchModel
from edgeopt.training import checkpoint, log
from edgeopt.training.batches import Data, MicroBatch
from edgeopt.training.distributed import synchronized
from edgeopt.training.evaluation import MetricFunction, broadcast_buffers, evaluate
from edgeopt.training.log import LogRecord
from edgeopt.training.losses.base import Loss
from edgeopt.training.objective import Objective
from edgeopt.training.randomness import seed_all
from edgeopt.training.resume import save
from edgeopt.training.schedule import multiplier
from edgeopt.training.settings import TrainSettings
from edgeopt.training.state import TrainingState
from edgeopt.training.teacher import Teacher
from edgeopt.training.tensors import to_tensors

__all__ = ["Run", "Task"]

#: Records of a training, where it is not said how often to make one.
_RECORDS = 400

#: Evaluations of a training whose passes have no known length.
_EVALUATIONS = 10


@dataclass(frozen=True, eq=False)
class Task:
    """What is to be trained, on what, and how it is judged: :func:`edgeopt.training.loop.train`.

    ``data`` and ``validation`` are bound to the student's inputs.
    """

    student: TorchModel
    losses: Sequence[Loss]
    data: Data
    settings: TrainSettings
    teacher: TorchModel | None
    validation: Data | None
    metric: MetricFunction | None
    higher_is_better: bool
    after_step: Callable[[], None] | None
    log: Path | None
    progress: Progress


@dataclass(eq=False)
class Run:
    """Everything that one training works with.

    ``judge`` is the teacher for ``task.validation``; ``total`` how many updates there will be.
    ``model`` is what accelerate made of ``objective``; ``upcoming`` the rest of the pass; ``last``
    the last update's learning rate and gradient norm; ``began`` the clock, the seconds and the
    updates that this process began at.
    """

    task: Task
    objective: Objective
    optimizer: Any
    accelerator: Any
    teacher: Teacher
    judge: Teacher
    total: int
    state: TrainingState
    fingerprint: Mapping[str, str]
    model: Any = None
    notes: list[str] = field(default_factory=list)
    upcoming: Iterator[tuple[MicroBatch, ...]] | None = None
    last: tuple[float, float | None] = (0.0, None)
    began: tuple[float, float, int] = (0.0, 0.0, 0)

    # ------------------------------------------------------------------------------------------
    # the whole

    def go(self) -> tuple[TrainingState, list[str]]:
        """Train to the end, and leave the student with its best weights."""
        state = self.state
        self.began = (time.monotonic(), state.seconds, state.step)
        try:
            if not state.step and not state.history:
                self._record(None, metric=self._judge())
            self._rewrite_log()
            while not state.stopped:
                self._step()
                self._after()
        except KeyboardInterrupt:
            if self.accelerator.num_processes > 1:
                raise  # the others cannot know
            state.stopped, state.why = "interrupted", "interrupted by the user"
        self._finish()
        return state, self.notes

    def _finish(self) -> None:
        state = self.state
        broadcast_buffers(self.accelerator, self.objective)
        kept = self.task.validation is not None or state.stopped == "diverged"
        if kept and state.best:
            self.objective.module.load_state_dict(state.best)
        else:
            state.best_step = state.step
        if state.why:
            self.notes.append(
                f"stopped after {state.step} of {self.total} updates: {state.why}; "
                f"kept the weights after {state.best_step}"
            )

    # ------------------------------------------------------------------------------------------
    # one update

    def _step(self) -> None:
        state, settings = self.state, self.task.settings
        seed_all(settings.seed, 1, state.step, self.accelerator.process_index)
        parts = synchronized(self.accelerator, self._next)
        means = self._gradients(parts)
        norm = float(
            self.accelerator.clip_grad_norm_(self.objective.parameters(), settings.clip or math.inf)
        )
        state.why = state.guard.diverged(
            means[0], norm if self.accelerator.scaler is None else None
        )
        if state.why:  # before these gradients have spoilt the weights
            state.stopped = "diverged"
            self.optimizer.zero_grad()
            self._record(norm, [means])
            return
        rate = self.rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.task.after_step is not None:
            self.task.after_step()
        state.step += 1
        state.since_record.add(means)
        state.since_evaluation.add(means[:1])
        self.last = (rate, norm)

    def rate(self) -> float:
        """The learning rate of the next update."""
        s = self.task.settings
        return s.learning_rate * multiplier(self.state.step, self.total, s.warmup, s.hold, s.floor)

    def _gradients(self, parts: Sequence[MicroBatch]) -> list[float]:
        """Accumulate the batch's gradients; its loss and every part of it, over all processes."""
        sums = torch.zeros(1 + len(self.objective.losses), device=self.accelerator.device)
        for part in parts:
            with self.accelerator.accumulate(self.model):
                total, single = self._losses(part)
                if not total.requires_grad:
                    raise UsageError(
                        "no loss depends on what the student can learn; unfreeze parameters, or "
                        "choose another loss"
                    )
                self.accelerator.backward(total * part.share)
            both = torch.cat([total.detach().float().reshape(1), single])
            sums += both * (part.share / len(parts))
        means: list[float] = self.accelerator.reduce(sums, "mean").tolist()
        return means

    def _losses(self, part: MicroBatch) -> tuple[Tensor, Tensor]:
        feed, targets = self.tensors(part)
        answers = self.teacher.answers(part, feed)
        try:
            total, single = self.model(feed, targets, answers)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UsageError(
                f"batch normalization cannot learn from {len(next(iter(feed.values())))} row at a "
                "time; give a larger batch_size, or less accumulation"
            ) from error
        return total, single

    def _next(self) -> tuple[MicroBatch, ...]:
        """This process's parts of the next batch; a pass that is over is followed by the next."""
        state, settings = self.state, self.task.settings
        for _ in range(2):
            if self.upcoming is None:
                pieces, rank = settings.accumulation, self.accelerator.process_index
                self.upcoming = self.task.data.parts(
                    settings.batch_size,
                    pieces * self.accelerator.num_processes,
                    range(rank * pieces, (rank + 1) * pieces),
                    (settings.seed, state.epoch),
                    state.place,
                )
            parts = next(self.upcoming, None)
            if parts is not None:
                state.place += 1
                return tuple(self._augmented(part, i) for i, part in enumerate(parts))
            if not state.place:
                break
            self.upcoming, state.epoch, state.place = None, state.epoch + 1, 0
        raise InputsError(
            f"{self.task.data.label} ran out: pass {state.epoch + 1} yields no batch, and "
            f"{self.total - state.step} updates are still to come; it must yield anew when it is "
            "called again"
        )

    def _augmented(self, part: MicroBatch, piece: int) -> MicroBatch:
        augment = self.task.settings.augment
        if augment is None:
            return part
        rank = self.accelerator.process_index
        rng = np.random.default_rng((self.task.settings.seed, 2, self.state.step, rank, piece))
        return replace(part, inputs=dict(augment(part.inputs, rng)))

    def tensors(self, part: MicroBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return to_tensors(part, self.objective.student, self.accelerator.device)

    # ------------------------------------------------------------------------------------------
    # between updates

    def _after(self) -> None:
        """What is due after an update: evaluation, record, checkpoint, word of it."""
        state, settings = self.state, self.task.settings
        per_pass = self.task.data.count(settings.batch_size)
        every = settings.evaluate_every or per_pass or max(1, self.total // _EVALUATIONS)
        judged = False
        if not state.stopped:
            ended = state.step >= self.total
            judged = ended or state.step % every == 0
            metric = self._judge() if judged else None
            steps = settings.log_every or max(1, self.total // _RECORDS)
            if judged or state.step % steps == 0:
                self._record(self.last[1], metric=metric)
            if ended:
                state.stopped = "finished"
            elif settings.patience is not None and state.waited >= settings.patience:
                state.stopped = "early"
                state.why = f"{state.waited} evaluations brought no gain"
        kept = settings.checkpoint_every
        due = judged if kept is None else state.step % kept == 0
        if settings.checkpoint is not None and (due or state.stopped):
            state.seconds = self._seconds()
            save(
                settings.checkpoint,
                state,
                self.objective,
                self.optimizer,
                self.accelerator,
                self.fingerprint,
            )
        self._tell()

    def _judge(self) -> float | None:
        """Evaluate, and keep the weights if they are the best so far.

        Without data to evaluate on, the training loss decides what a divergence goes back to.
        """
        state = self.state
        metric = None
        if self.task.validation is not None:
            metric = evaluate(
                self.objective,
                self.judge,
                self.task.validation,
                self.task.metric,
                self.task.settings.batch_size,
                self.accelerator,
                self.tensors,
            )
            higher = self.task.metric is not None and self.task.higher_is_better
            gains = state.gains(metric, higher)
            judged = metric
        else:
            judged = state.since_evaluation.take()[0] if state.step else math.inf
            gains = state.gains(judged, False)
        state.waited = 0 if gains else state.waited + 1
        # Of equals the later has learned more: a metric of few rows is soon at its ceiling.
        equal = metric is not None and metric == state.best_metric
        if gains or equal or not state.best:
            state.best_step = state.step
            state.best_metric = None if math.isnan(judged) else judged
            broadcast_buffers(self.accelerator, self.objective)
            state.best = checkpoint.copied(self.objective.module)
        return metric

    def _record(
        self, norm: float | None, means: Sequence[Sequence[float]] = (), metric: float | None = None
    ) -> None:
        state, names = self.state, self.objective.names
        mean = list(means[0]) if means else state.since_record.take()
        per_pass = self.task.data.count(self.task.settings.batch_size)
        record = LogRecord(
            step=state.step,
            epoch=round(state.step / per_pass, 4) if per_pass else float(state.epoch),
            loss=mean[0] if mean else None,
            parts=dict(zip(names, mean[1:], strict=False)),
            lr=self.last[0],
            grad_norm=norm,
            metric=metric,
            seconds=round(self._seconds(), 3),
        )
        state.history.append(record)
        path = self.task.log
        if path is not None:
            self._on_main(lambda: log.append(path, record))

    def _rewrite_log(self) -> None:
        """A run taken up again drops what was logged after its checkpoint."""
        path = self.task.log
        if path is not None:
            self._on_main(lambda: log.rewrite(path, self.state.history))

    def _on_main(self, work: Callable[[], None]) -> None:
        main = self.accelerator.is_main_process
        synchronized(self.accelerator, lambda: work() if main else None)

    def _seconds(self) -> float:
        return self.began[1] + time.monotonic() - self.began[0]

    def _tell(self) -> None:
        if not self.accelerator.is_main_process:
            return
        state = self.state
        done = state.step - self.began[2]
        left = (time.monotonic() - self.began[0]) / max(1, done) * (self.total - state.step)
        loss = state.since_record.mean() or [r.loss for r in state.history[-1:] if r.loss]
        metric = next((r.metric for r in reversed(state.history) if r.metric is not None), None)
        words = [f"step {state.step}/{self.total}"]
        words += [f"loss {value:.4g}" for value in loss[:1]]
        words += [f"metric {metric:.4g}"] if metric is not None else []
        words += [f"{_duration(left)} left"] if state.step < self.total else []
        self.task.progress(", ".join(words), state.step / self.total)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
