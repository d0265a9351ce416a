"""``edgeopt prune``: fewer weights, and the proof of what is left."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgeopt.core import Proof
from edgeopt.core.calls import part
from edgeopt.errors import SourceError, UsageError
from edgeopt.files.open import open_source
from edgeopt.options.table import Prune
from edgeopt.targets.keep import scratch
from edgeopt.targets.onnx.source import Prepared, prepare
from edgeopt.targets.program.module import open_torch, require_torch
from edgeopt.targets.program.shrunk import Requirements
from edgeopt.targets.program.write import Destination, Result, format_for, keep_proven
from edgeopt.tasks.metrics import find_metric
from edgeopt.verbs.calling import asking
from edgeopt.verbs.prune_methods import METHODS, Made, Work
from edgeopt.verbs.prune_options import PruneOptions
from edgeopt.verbs.training import (
    TrainOptions,
    first_process,
    held_out,
    lessons,
    same_data,
    teach,
)

__all__ = ["prune"]


@asking(Prune)
def prune(source: str | Path, told: Prune) -> Proof | None:
    """Take weights out of ``source``, write what is left, and prove the written file.

    Of ``data`` three quarters are what importance is measured on, the rest is held out for the
    proof; with labels it is also what ``metrics`` are taken on.

    Args:
        source: a torch file, or a Hugging Face folder; recognised by content.
        {options}

    Returns:
        The proof. Where ``proof.proven`` is false and ``force`` was not given, nothing was kept.
        None in processes that torchrun started beside the first: that one writes.

    Raises:
        EdgeoptError: bad input or usage (see :mod:`edgeopt.errors`); nothing is written then.
    """
    training, options = part(TrainOptions, told), part(PruneOptions, told)
    found = tuple(find_metric(name) for name in told.metrics)
    asked = Requirements(found, told.data, told.min_sqnr, told.max_drop, told.threads)
    chosen = METHODS[told.method]
    require_torch("pruning")
    chosen.check(told.method, options, told.data)
    if told.recover is not None and not chosen.recovers:
        raise UsageError(
            f"--recover has no meaning for --method {told.method}: answers stay the same"
        )
    if told.recover is None and chosen.trains:
        raise UsageError(f"--method {told.method} trains again and again: give --recover DATA")
    if told.recover is None and training.given:
        raise UsageError(f"{training.given[0]} has no meaning without --recover DATA")
    if options.rewind and training.checkpoint is not None:
        raise UsageError(
            f"--rewind {options.rewind}: a training taken up from a --checkpoint may be past that "
            "step; leave out one of them"
        )
    opened = open_source(source)
    fine = opened.kind == "hf-folder"
    training.check(fine=fine)
    recipe = Destination(
        opened, told.out, format_for(opened, told.method, told.to, told.out), "pruned"
    )
    options.check_corpus()
    if told.method == "vocabulary":
        from edgeopt.pruning.vocabulary.prune import tokenizer_folder

        tokenizer_folder(opened.path)
    first = first_process()
    if first:
        recipe.check()
    with scratch() as workdir:
        sha256 = opened.sha256()
        torch_model = open_torch(
            opened,
            workdir,
            data=told.data,
            inputs=told.inputs,
            model=told.model,
            trust_pickle=told.trust_pickle,
            shapes=told.recover,
        )
        from edgeopt.modules.counting import count

        material = None
        if told.recover is not None:
            hold_out = same_data(told.recover, told.data)
            material = lessons(told.recover, torch_model.model, hold_out=hold_out)
        prepared = prepare(
            opened,
            workdir,
            data=told.data,
            inputs=told.inputs,
            model=told.model,
            trust_pickle=told.trust_pickle,
            shapes=told.recover,
            progress=told.progress,
        )
        if found and told.data is not None and same_data(told.recover, told.data):
            rows = held_out(told.data, torch_model.model.inputs, workdir)
            asked = dataclasses.replace(asked, data=rows)
        before = count(torch_model.model)
        original = dataclasses.replace(
            torch_model.model, module=copy.deepcopy(torch_model.model.module)
        )
        if told.progress is not None:
            told.progress(f"pruning by {told.method}", None)
        made = chosen.run(
            Work(
                torch_model,
                prepared,
                options,
                training,
                material,
                told.data,
                workdir,
                told.threads,
                told.progress,
            )
        )
        if not made.pruning.changed:
            raise SourceError(f"{opened.path}: nothing was pruned: {_why(made.pruning.cuts)}")
        made = _refitted(made, prepared)
        said = made.training
        if material is not None and not chosen.trains:
            _, said = teach(
                made.model,
                original,
                material,
                training,
                fine=fine,
                after_step=made.after_step,
                progress=told.progress,
            )
        if not first:
            return None
        return keep_proven(
            "prune",
            recipe,
            Result(made.model, (made.pruning,), made.vocabulary, said, made.details),
            prepared,
            workdir,
            asked,
            before=before,
            sha256=sha256,
            force=told.force,
            progress=told.progress,
        )


def _refitted(made: Made, prepared: Prepared) -> Made:
    """With the statistics of BatchNorm taken anew, where there is data to take them from."""
    from edgeopt.pruning.batchnorm import refit_batchnorm

    if prepared.calibration is None or made.vocabulary is not None:
        return made
    count = refit_batchnorm(made.model, prepared.calibration)
    if not count:
        return made
    note = f"statistics of {count} BatchNorm layers taken anew from {prepared.calibration.label}"
    pruning = dataclasses.replace(made.pruning, notes=(*made.pruning.notes, note))
    return dataclasses.replace(made, pruning=pruning)


def _why(cuts: Sequence[Any]) -> str:
    reasons = list(dict.fromkeys(cut.reason for cut in cuts if cut.reason))
    return "; ".join(reasons[:3]) or "no layer that the method knows"
