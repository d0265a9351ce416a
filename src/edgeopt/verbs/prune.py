"""``edgeopt prune``: fewer weights, and the proof of what is left."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import Progress, Proof
from edgeopt.errors import SourceError, UsageError
from edgeopt.files.open import open_source
from edgeopt.targets.keep import scratch
from edgeopt.targets.onnx.source import Prepared, prepare
from edgeopt.targets.program.module import open_torch, require_torch
from edgeopt.targets.program.shrunk import Requirements
from edgeopt.targets.program.write import Destination, Result, format_for, keep_proven
from edgeopt.tasks.metrics import find_metric
from edgeopt.verbs.calling import verb
from edgeopt.verbs.prune_methods import METHODS, Made, Work
from edgeopt.verbs.prune_options import PRUNE_KEYWORDS, PruneOptions
from edgeopt.verbs.training import (
    TrainOptions,
    first_process,
    held_out,
    lessons,
    same_data,
    teach,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from edgeopt.verbs.prune_options import PruneKeywords

__all__ = ["prune"]


@verb(more=PRUNE_KEYWORDS)
def prune(
    source: str | Path,
    out: str | Path | None = None,
    *,
    method: str,
    to: str | None = None,
    data: str | None = None,
    inputs: Sequence[str] = (),
    model: str | None = None,
    trust_pickle: bool = False,
    recover: str | None = None,
    metrics: Sequence[str] = (),
    max_drop: float | None = None,
    min_sqnr: float | None = None,
    threads: int = 1,
    force: bool = False,
    progress: Progress | None = None,
    **more: Unpack[PruneKeywords],
) -> Proof | None:
    """Take weights out of ``source``, write what is left, and prove the written file.

    Args:
        source: a torch file, or a Hugging Face folder; recognised by content.
        out: what to write; default ``NAME-pruned.pt`` (a folder, ``.safetensors``) beside it.
        method: ``channels``, ``depth``, ``vocabulary``, ``magnitude``, ``wanda``, ``sparsegpt`` or
            ``lottery``.
        to: ``pt`` (an exported program), ``folder`` (in Hugging Face form) or ``safetensors``
            (zeros in one bit each); default: a folder for a folder, else ``pt``.
        data: sample inputs: three quarters are what importance is measured on, the rest is held
            out for the proof; with labels also what ``metrics`` are taken on.
        inputs: shapes as ``name:float32[1,3,224,224]``, where nothing else tells them.
        model: ``package.module:callable`` that returns the ``nn.Module`` of a state dict.
        trust_pickle: the file may run the code it carries.
        recover: data to train on afterwards, the unpruned model being the teacher.
        metrics: task metrics before and after, see :func:`edgeopt.compare`.
        max_drop: how much of the metrics may be lost, in their own units.
        min_sqnr: fidelity floor in dB; none unless given.
        threads: of the runtime, while timing.
        force: keep the artifact although the proof failed.
        more: what methods and training know, see
            :class:`edgeopt.verbs.prune_options.PruneOptions` and
            :class:`edgeopt.verbs.training.TrainOptions`.

    Returns:
        The proof. Where ``proof.proven`` is false and ``force`` was not given, nothing was kept.
        None in processes that torchrun started beside the first: that one writes.

    Raises:
        EdgeoptError: bad input or usage (see :mod:`edgeopt.errors`); nothing is written then.
    """
    training, options = _sorted(dict(more))
    found = tuple(find_metric(name) for name in metrics)
    asked = Requirements(found, data, min_sqnr, max_drop, threads)
    chosen = METHODS[method]
    require_torch("pruning")
    chosen.check(method, options, data)
    if recover is not None and not chosen.recovers:
        raise UsageError(f"--recover has no meaning for --method {method}: answers stay the same")
    if recover is None and chosen.trains:
        raise UsageError(f"--method {method} trains again and again: give --recover DATA")
    if recover is None and training.given:
        raise UsageError(f"{training.given[0]} has no meaning without --recover DATA")
    if options.rewind and training.checkpoint is not None:
        raise UsageError(
            f"--rewind {options.rewind}: a training taken up from a --checkpoint may be past that "
            "step; leave out one of them"
        )
    opened = open_source(source)
    fine = opened.kind == "hf-folder"
    training.check(fine=fine)
    recipe = Destination(opened, out, format_for(opened, method, to, out), "pruned")
    options.check_corpus()
    if method == "vocabulary":
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
            data=data,
            inputs=inputs,
            model=model,
            trust_pickle=trust_pickle,
            shapes=recover,
        )
        from edgeopt.modules.counting import count

        material = None
        if recover is not None:
            hold_out = same_data(recover, data)
            material = lessons(recover, torch_model.model, hold_out=hold_out)
        prepared = prepare(
            opened,
            workdir,
            data=data,
            inputs=inputs,
            model=model,
            trust_pickle=trust_pickle,
            shapes=recover,
            progress=progress,
        )
        if found and data is not None and same_data(recover, data):
            rows = held_out(data, torch_model.model.inputs, workdir)
            asked = dataclasses.replace(asked, data=rows)
        before = count(torch_model.model)
        original = dataclasses.replace(
            torch_model.model, module=copy.deepcopy(torch_model.model.module)
        )
        if progress is not None:
            progress(f"pruning by {method}", None)
        made = chosen.run(
            Work(
                torch_model,
                prepared,
                options,
                training,
                material,
                data,
                workdir,
                threads,
                progress,
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
                progress=progress,
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
            force=force,
            progress=progress,
        )


def _sorted(more: dict[str, Any]) -> tuple[TrainOptions, PruneOptions]:
    """Keywords to the one who knows them; UsageError for one that nobody does."""
    training = {f.name for f in dataclasses.fields(TrainOptions)}
    pruning = {f.name for f in dataclasses.fields(PruneOptions)}
    unknown = sorted(set(more) - training - pruning)
    if unknown:
        raise UsageError(f"prune knows no {unknown[0]}")
    seed = {"seed": more["seed"]} if "seed" in more else {}
    return (
        TrainOptions(**{k: v for k, v in more.items() if k in training}),
        PruneOptions(**{**{k: v for k, v in more.items() if k in pruning}, **seed}),
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
