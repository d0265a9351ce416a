"""Training as prune and distill ask for it: data read once, what judges kept out, the loop run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Array, InputSpec, Progress
from edgeopt.core.calls import given_of
from edgeopt.errors import InputsError, UsageError
from edgeopt.options.table import TrainingOptions, flag_of
from edgeopt.tasks.class_labels import class_numbers, label_of
from edgeopt.tasks.labelled import SECOND, Labelled, read_labelled

if TYPE_CHECKING:
    from edgeopt.modules.model import TorchModel
    from edgeopt.training.batches import ArrayData, Data
    from edgeopt.training.loop import Trained
    from edgeopt.training.losses.base import Loss
    from edgeopt.training.settings import TrainSettings

__all__ = [
    "HELD",
    "Lessons",
    "TrainOptions",
    "first_process",
    "held_out",
    "lessons",
    "same_data",
    "teach",
]

#: Every n-th row is held out for the proof, as :func:`edgeopt.data.split.split` has it.
HELD = 4

#: The share of what is trained on that chooses the best weights, and nothing else.
_VALIDATION = 0.125

_EPOCHS, _BATCH = 10, 32

#: Updates that a training has at least: few data are gone through more often.
_UPDATES = 1000
_MOST_EPOCHS = 100

#: Peak learning rates of AdamW: of pretrained transformers, and of everything else.
_FINE, _COARSE = 1e-4, 1e-3


@dataclass(frozen=True)
class TrainOptions(TrainingOptions):
    """What the user says of training, see :mod:`edgeopt.options.table`."""

    def check(self, *, fine: bool) -> None:
        """Raises UsageError for what no training can be told, before any model is opened."""
        from edgeopt.training.losses import parse_losses

        self.settings(fine=fine)
        parse_losses(self.losses)

    def settings(self, *, fine: bool, batches: int | None = None) -> TrainSettings:
        """``batches`` of one pass, where they are known. Raises UsageError for a value out of its
        range."""
        from edgeopt.training.settings import TrainSettings

        if self.epochs is not None and self.steps is not None:
            raise UsageError("--epochs and --steps: give one of them")
        rate = self.learning_rate
        if rate is None:
            rate = _FINE if fine else _COARSE
        return TrainSettings(
            epochs=None if self.steps is not None else self.passes(batches),
            steps=self.steps,
            batch_size=_or(self.batch_size, _BATCH),
            learning_rate=rate,
            seed=self.seed,
            patience=self.patience,
            precision=self.precision,
            accumulation=self.accumulation,
            checkpoint=None if self.checkpoint is None else Path(self.checkpoint),
            cache_teacher=None if self.cache_teacher is None else Path(self.cache_teacher),
        )

    def passes(self, batches: int | None) -> int:
        """Over the data: as asked, else ten, and more where ten are too few updates."""
        enough = -(-_UPDATES // batches) if batches else _EPOCHS
        return _or(self.epochs, min(max(_EPOCHS, enough), _MOST_EPOCHS))

    def after(self, start: int, material: Lessons) -> TrainOptions:
        """The same training with its first ``start`` steps left out."""
        if start == 0:
            return self
        batches = material.train.count(_or(self.batch_size, _BATCH)) or 1
        steps = _or(self.steps, self.passes(batches) * batches)
        if start >= steps:
            raise UsageError(f"--rewind {start}: the training has {steps} steps; give fewer")
        return replace(self, epochs=None, steps=steps - start)

    def of_round(self, number: int) -> TrainOptions:
        """The same for one of several trainings: each has a checkpoint of its own."""
        if self.checkpoint is None:
            return self
        return replace(self, checkpoint=str(Path(self.checkpoint) / f"round-{number}"))

    @property
    def given(self) -> tuple[str, ...]:
        """Options that mean nothing without training."""
        return tuple(map(flag_of, sorted(given_of(self) - {"seed"})))


def _or(given: int | None, default: int) -> int:
    return default if given is None else given


def first_process() -> bool:
    """Whether this process writes: the first of those that torchrun started, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def same_data(one: str | None, other: str | None) -> bool:
    """Whether both are the same data: what the proof judges by must not be trained on."""
    if one is None or other is None:
        return False
    return one == other or (
        Path(one).exists() and Path(other).exists() and Path(one).samefile(other)
    )


@dataclass(frozen=True)
class Lessons:
    """What is trained on, what chooses the best weights, and where both come from."""

    train: Data
    validation: ArrayData | None
    label: str
    count: int | None


def lessons(spec: str, model: TorchModel, *, hold_out: bool) -> Lessons:
    """``--data`` to train on. ``hold_out``: every fourth row is kept for the proof.

    Rows of one shape become arrays; what changes its shape from sample to sample is gone through
    as it comes. Raises InputsError where it does not fit the model.
    """
    from edgeopt.training.batches import ArrayData, StreamData

    read = read_labelled(spec, model.inputs)
    names = tuple(spec.name for spec in model.inputs)
    feeds = list(read.feeds())
    per_row = 2 if read.paired else 1
    if not feeds:
        raise InputsError(f"{read.label} does not fill one batch of the model; give more samples")
    keep = [i for i in range(len(feeds)) if not hold_out or not _held(i, len(feeds), per_row)]
    label = f"{read.label}{': all rows but every 4th' if len(keep) < len(feeds) else ''}"
    # of pairs there are no targets for a single row
    targets = {} if read.paired else read.targets
    alike = all(
        {name: array.shape[1:] for name, array in feed.items()}
        == {name: array.shape[1:] for name, array in feeds[0].items()}
        for feed in feeds
    )
    if not alike:
        parts = {name: _shared_out(read, target) for name, target in targets.items()}

        def opener() -> Iterator[Mapping[str, Array]]:
            for index in keep:
                yield {**feeds[index], **{name: given[index] for name, given in parts.items()}}

        return Lessons(StreamData(opener, names, label, batches=len(keep)), None, label, None)
    inputs = {name: np.concatenate([feed[name] for feed in feeds]) for name in names}
    ends = np.cumsum([len(feed[names[0]]) for feed in feeds])[:-1]
    places = np.split(np.arange(len(inputs[names[0]])), ends)
    # chosen by their places: what is wrong with a sample is said by its own number
    rows = np.concatenate([places[index] for index in keep]) if len(keep) < len(feeds) else None
    data = ArrayData(inputs, targets, label, rows=rows)
    if len(data) < 16:
        return Lessons(data, None, label, len(data))
    train, validation = data.split(_VALIDATION)
    return Lessons(train, validation, label, len(data))


def held_out(spec: str, inputs: Sequence[InputSpec], workdir: Path) -> str:
    """The rows of ``--data`` that :func:`lessons` leaves out, as a file that metrics are taken on.

    Raises InputsError where there are none, or where rows differ in shape: then the judge needs
    data of its own.
    """
    own = "give other data to judge by"
    read = read_labelled(spec, inputs)
    feeds = list(read.feeds())
    per_row = 2 if read.paired else 1
    held = [index for index in range(len(feeds)) if _held(index, len(feeds), per_row)]
    if not held:
        raise InputsError(f"{read.label}: too few rows to hold one out; {own}")
    if len({tuple((n, a.shape[1:]) for n, a in feeds[index].items()) for index in held}) > 1:
        raise InputsError(f"{read.label}: rows change their shape; {own}")
    sides = {"": held[::2], SECOND: held[1::2]} if read.paired else {"": held}
    arrays = {
        f"{input_.name}{side}": np.concatenate([feeds[index][input_.name] for index in chosen])
        for side, chosen in sides.items()
        for input_ in inputs
    }
    rows = [index // per_row for index in held[::per_row]]
    for name, target in read.targets.items():
        parts = _shared_out(read, target)
        arrays[name] = np.concatenate([parts[index] for index in rows])
    path = workdir / "held-out.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return str(path)


def _held(index: int, feeds: int, per_row: int) -> bool:
    """Whether a feed is kept for the proof; ``per_row`` feeds are one row of the data."""
    return feeds >= HELD * per_row and (index // per_row) % HELD == HELD - 1


def _shared_out(read: Labelled, target: NDArray[Any]) -> list[NDArray[Any]]:
    """The rows of a target that belong to each feed, or pair of feeds."""
    return np.split(target, np.cumsum(read.sizes)[:-1])


def teach(
    student: TorchModel,
    teacher: TorchModel,
    material: Lessons,
    options: TrainOptions,
    *,
    fine: bool,
    after_step: Callable[[], None] | None = None,
    progress: Progress | None = None,
) -> tuple[Trained, dict[str, Any]]:
    """Train ``student`` in place; also what a proof says of it.

    Raises UsageError or InputsError before the first step for what cannot be trained on.
    """
    from edgeopt.training.loop import train

    batches = material.train.count(_or(options.batch_size, _BATCH))
    settings = options.settings(fine=fine, batches=batches)
    material = _as_classes(material, _classes(student))
    losses, reason = _losses(student, teacher, material, options)
    metric, name = _metric(student, material)
    trained = train(
        student,
        losses,
        _with_classes(material.train, _classes(student), losses),
        teacher=teacher if any(loss.needs_teacher for loss in losses) else None,
        settings=settings,
        validation=material.validation,
        metric=metric,
        higher_is_better=True,
        after_step=after_step,
        log=None if options.history is None else Path(options.history),
        progress=progress,
    )
    said = {
        "stopped": trained.stopped,
        "steps": trained.steps,
        "best_step": trained.best_step,
        "metric": name,
        "best_metric": trained.best_metric,
        "validation": "" if material.validation is None else f"{len(material.validation)} held out",
        "samples": material.label,
        "rows": material.count,
        "losses": f"{', '.join(f'{loss.name} {loss.weight:g}' for loss in losses)}{reason}",
        "settings": settings.describe(),
        "notes": list(trained.notes),
        "history": [record.to_json() for record in trained.history],
    }
    return trained, said


def _losses(
    student: TorchModel, teacher: TorchModel, material: Lessons, options: TrainOptions
) -> tuple[Sequence[Loss], str]:
    import torch

    from edgeopt.training.layer_pairs import parse_pairs
    from edgeopt.training.losses import parse_losses
    from edgeopt.training.losses.choice import default_losses, kind_of
    from edgeopt.training.losses.layered import LayerLoss

    pairs = parse_pairs(options.pairs, teacher.module, student.module) if options.pairs else ()
    if options.losses:
        losses: Sequence[Loss] = parse_losses(options.losses)
        reason = ""
    else:
        with torch.no_grad(), student.mode(False), teacher.mode(False):
            ours = student.outputs(student.tensors())
            theirs = teacher.outputs(teacher.tensors())
        targets = _target_tensors(material)
        kind = kind_of(teacher.module, theirs, targets)
        losses, why = default_losses(ours, theirs, targets, kind)
        reason = f" ({why})"
    if pairs and not any(isinstance(loss, LayerLoss) for loss in losses):
        raise UsageError("--pairs has no meaning without --loss hints or --loss attention")
    for loss in losses:
        loss.choose_layers(teacher.module, student.module, pairs)
    return losses, reason


def _target_tensors(material: Lessons) -> dict[str, Any]:
    import torch

    first = next(material.train.parts(2, 1, (0,), None, 0), ())
    return {
        name: torch.from_numpy(np.array(array[:2]))
        for part in first
        for name, array in part.targets.items()
    }


def _as_classes(material: Lessons, classes: int | None) -> Lessons:
    """The same with labels as class numbers, where they are some in another form: whole numbers
    kept as floats, one column, one-hot rows."""
    from edgeopt.training.batches import ArrayData

    train, validation = material.train, material.validation
    if classes is None or not isinstance(train, ArrayData):
        return material
    targets = {n: class_numbers(n, array, classes) for n, array in train.targets.items()}
    if validation is not None:
        validation = replace(validation, targets=targets)
    return replace(material, train=replace(train, targets=targets), validation=validation)


def _with_classes(data: Data, classes: int | None, losses: Sequence[Loss]) -> Data:
    """The same data, with the number of classes that labels may be of, where losses learn them."""
    from edgeopt.training.batches import ArrayData
    from edgeopt.training.losses.hard_labels import HardLabels

    if not isinstance(data, ArrayData) or classes is None:
        return data
    meant = {label_of(data.targets, loss.target) for loss in losses if isinstance(loss, HardLabels)}
    integer = {n: classes for n in meant if n is not None and data.targets[n].dtype.kind in "iu"}
    return replace(data, classes=integer)


def _classes(model: TorchModel) -> int | None:
    """The last size of the model's only [batch, classes] output; one number is no class."""
    import torch

    with torch.no_grad(), model.mode(False):
        outputs = list(model.outputs(model.tensors()).values())
    found = outputs[0].shape[-1] if len(outputs) == 1 and outputs[0].ndim == 2 else 1
    return found if found > 1 else None


def _metric(
    student: TorchModel, material: Lessons
) -> tuple[Callable[[Mapping[str, Any], Mapping[str, Any]], float] | None, str]:
    """Accuracy, where there are labels for it; else the loss itself chooses the best weights."""
    validation = material.validation
    if validation is None or _classes(student) is None:
        return None, "loss"
    name = label_of(validation.targets)
    if name is None or validation.targets[name].dtype.kind not in "iu":
        return None, "loss"

    def accuracy(outputs: Mapping[str, Any], targets: Mapping[str, Any]) -> float:
        answers = next(iter(outputs.values())).argmax(-1)
        return float((answers == targets[name]).mean())

    return accuracy, "accuracy"
