"""``edgeopt distill``: a smaller model that learned to answer as a larger one does, with proof."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import Progress, Proof, Source
from edgeopt.errors import UsageError
from edgeopt.files.open import open_source
from edgeopt.targets.keep import scratch
from edgeopt.targets.onnx.source import prepare
from edgeopt.targets.program.module import Opened, open_torch, require_torch
from edgeopt.targets.program.shrunk import Requirements
from edgeopt.targets.program.write import Destination, Result, format_for, keep_proven
from edgeopt.tasks.metrics import find_metric
from edgeopt.verbs.calling import verb
from edgeopt.verbs.training import (
    TrainOptions,
    first_process,
    held_out,
    lessons,
    same_data,
    teach,
)

if TYPE_CHECKING:
    from edgeopt.modules.model import TorchModel
    from edgeopt.pruning.result import Pruning

__all__ = ["distill"]


@verb(more=[f.name for f in dataclasses.fields(TrainOptions)])
def distill(
    teacher: str | Path,
    out: str | Path | None = None,
    *,
    data: str | None = None,
    student: str | None = None,
    shrink: str | None = None,
    evaluation: str | None = None,
    inputs: Sequence[str] = (),
    model: str | None = None,
    trust_pickle: bool = False,
    metrics: Sequence[str] = (),
    max_drop: float | None = None,
    min_sqnr: float | None = None,
    threads: int = 1,
    force: bool = False,
    progress: Progress | None = None,
    **training: Any,
) -> Proof | None:
    """Train a student to give the teacher's answers, write it, and prove the written file.

    Args:
        teacher: a torch file, or a Hugging Face folder; recognised by content.
        out: what to write; default ``NAME-student.pt`` (or a folder) beside the teacher.
        data: what is trained on: inputs, and labels where there are some.
        student: ``package.module:callable`` that returns an ``nn.Module``, or a pruned ``.pt``.
        shrink: in its place ``width=0.5,depth=0.5``: the shares of the teacher that are left.
        evaluation: what the proof is made on; default: every fourth row of ``data``, held out.
        inputs, model, trust_pickle: of the teacher, see :func:`edgeopt.quantize`.
        metrics, max_drop, min_sqnr, threads, force: see :func:`edgeopt.prune`.
        training: see :class:`edgeopt.verbs.training.TrainOptions`.

    Returns:
        The proof. Where it is not proven and ``force`` was not given, nothing was kept. None in
        processes that torchrun started beside the first: that one writes.

    Raises:
        EdgeoptError: bad input or usage (see :mod:`edgeopt.errors`); nothing is written then.
    """
    if data is None:
        raise UsageError("distill trains on something: give --data")
    if (student is None) == (shrink is None):
        raise UsageError("give one of --student and --shrink")
    known = {f.name for f in dataclasses.fields(TrainOptions)}
    if unknown := sorted(set(training) - known):
        raise UsageError(f"distill knows no {unknown[0]}")
    options = TrainOptions(**training)
    options.settings(fine=False)  # what is wrong with them is said first
    found = tuple(find_metric(name) for name in metrics)
    asked = Requirements(found, evaluation or data, min_sqnr, max_drop, threads)
    hold_out = evaluation is None or same_data(evaluation, data)
    require_torch("distilling")
    source = open_source(teacher)
    options.check(fine=source.kind == "hf-folder")
    recipe = Destination(source, out, _format(source, student, out), "student")
    first = first_process()
    if first:
        recipe.check()
    with scratch() as workdir:
        from edgeopt.training.randomness import isolated

        sha256 = source.sha256()
        opened = open_torch(
            source,
            workdir,
            data=data,
            inputs=inputs,
            model=model,
            trust_pickle=trust_pickle,
            purpose="distilling",
        )
        with isolated(options.seed):  # a student's first weights are drawn
            small, prunings = _student(opened, student, shrink, model, trust_pickle, options.seed)
        material = lessons(data, opened.model, hold_out=hold_out)
        _, said = teach(
            small,
            opened.model,
            material,
            options,
            fine=source.kind == "hf-folder",
            progress=progress,
        )
        if not first:
            return None
        from edgeopt.modules.counting import count

        if found and hold_out:
            asked = dataclasses.replace(asked, data=held_out(data, opened.model.inputs, workdir))
        prepared = prepare(
            source,
            workdir,
            data=evaluation or data,
            inputs=inputs,
            model=model,
            trust_pickle=trust_pickle,
            progress=progress,
        )
        return keep_proven(
            "distill",
            recipe,
            Result(small, prunings, training=said),
            prepared,
            workdir,
            asked,
            before=count(opened.model),
            sha256=sha256,
            force=force,
            progress=progress,
        )


def _format(source: Source, student: str | None, out: str | Path | None) -> str:
    """A folder of the teacher's kind, where the student is of its family; else a program."""
    if student is not None:
        return format_for(source, "student", "pt", out)
    return format_for(source, "shrink", None, out)


def _student(
    opened: Opened,
    student: str | None,
    shrink: str | None,
    model: str | None,
    trust: bool,
    seed: int,
) -> tuple[TorchModel, tuple[Pruning, ...]]:
    from edgeopt.distilling.students import load_student, make_student, parse_shrink

    if student is not None:
        return load_student(student, opened.model, code=model, trust=trust), ()
    assert shrink is not None
    width, depth = parse_shrink(shrink)
    feeds = opened.samples if opened.samples is not None else opened.synthetic
    made, pruning = make_student(
        opened.model, width=width, depth=depth, feeds=feeds.take(64), seed=seed
    )
    return made, (pruning,)
