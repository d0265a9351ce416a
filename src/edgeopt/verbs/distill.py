"""``edgeopt distill``: a smaller model that learned to answer as a larger one does, with proof."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.core import Proof, Source
from edgeopt.core.calls import part
from edgeopt.errors import UsageError
from edgeopt.files.open import open_source
from edgeopt.options.table import Distill
from edgeopt.targets.keep import scratch
from edgeopt.targets.onnx.source import prepare
from edgeopt.targets.program.module import Opened, open_torch, require_torch
from edgeopt.targets.program.shrunk import Requirements
from edgeopt.targets.program.write import Destination, Result, format_for, keep_proven
from edgeopt.tasks.metrics import find_metric
from edgeopt.verbs.calling import asking
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


@asking(Distill)
def distill(teacher: str | Path, told: Distill) -> Proof | None:
    """Train a student to give the teacher's answers, write it, and prove the written file.

    It is trained on ``data``, with its labels where there are some.

    Args:
        teacher: a torch file, or a Hugging Face folder; recognised by content.
        {options}

    Returns:
        The proof. Where it is not proven and ``force`` was not given, nothing was kept. None in
        processes that torchrun started beside the first: that one writes.

    Raises:
        EdgeoptError: bad input or usage (see :mod:`edgeopt.errors`); nothing is written then.
    """
    if told.data is None:
        raise UsageError("distill trains on something: give --data")
    if (told.student is None) == (told.shrink is None):
        raise UsageError("give one of --student and --shrink")
    options = part(TrainOptions, told)
    options.settings(fine=False)  # what is wrong with them is said first
    found = tuple(find_metric(name) for name in told.metrics)
    asked = Requirements(
        found, told.evaluation or told.data, told.min_sqnr, told.max_drop, told.threads
    )
    hold_out = told.evaluation is None or same_data(told.evaluation, told.data)
    require_torch("distilling")
    source = open_source(teacher)
    options.check(fine=source.kind == "hf-folder")
    recipe = Destination(source, told.out, _format(source, told.student, told.out), "student")
    first = first_process()
    if first:
        recipe.check()
    with scratch() as workdir:
        from edgeopt.training.randomness import isolated

        sha256 = source.sha256()
        opened = open_torch(
            source,
            workdir,
            data=told.data,
            inputs=told.inputs,
            model=told.model,
            trust_pickle=told.trust_pickle,
            purpose="distilling",
        )
        with isolated(options.seed):  # a student's first weights are drawn
            small, prunings = _student(
                opened, told.student, told.shrink, told.model, told.trust_pickle, options.seed
            )
        material = lessons(told.data, opened.model, hold_out=hold_out)
        _, said = teach(
            small,
            opened.model,
            material,
            options,
            fine=source.kind == "hf-folder",
            progress=told.progress,
        )
        if not first:
            return None
        from edgeopt.modules.counting import count

        if found and hold_out:
            asked = dataclasses.replace(
                asked, data=held_out(told.data, opened.model.inputs, workdir)
            )
        prepared = prepare(
            source,
            workdir,
            data=told.evaluation or told.data,
            inputs=told.inputs,
            model=told.model,
            trust_pickle=told.trust_pickle,
            progress=told.progress,
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
            force=told.force,
            progress=told.progress,
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
