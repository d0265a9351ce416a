"""The methods of ``edgeopt prune``, one entry each: what they take, and how they are called."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Array, Progress
from edgeopt.errors import InputsError, SourceError, UsageError
from edgeopt.targets.onnx.source import Prepared
from edgeopt.tasks.labelled import read_labelled
from edgeopt.verbs.prune_options import PruneOptions, flag, read_pattern, read_ratios
from edgeopt.verbs.training import HELD, teach

if TYPE_CHECKING:
    from torch import nn

    from edgeopt.modules.model import TorchModel
    from edgeopt.pruning.result import Pruning
    from edgeopt.pruning.vocabulary.prune import VocabularyPlan
    from edgeopt.targets.program.module import Opened
    from edgeopt.verbs.training import Lessons, TrainOptions

__all__ = ["METHODS", "Made", "PruneMethod", "Work"]


@dataclass(frozen=True)
class Work:
    """What a method works with."""

    opened: Opened
    prepared: Prepared
    options: PruneOptions
    training: TrainOptions
    material: Lessons | None
    data: str | None
    workdir: Path
    threads: int = 1
    progress: Progress | None = None

    @property
    def feeds(self) -> Iterable[Mapping[str, Array]]:
        """Samples that importance is measured on; none where nobody gave any."""
        return self.prepared.calibration or ()


@dataclass(frozen=True)
class Made:
    """What a method made. ``after_step`` keeps zeros zero in training; ``vocabulary`` is how tokens
    are numbered now, where that has changed."""

    model: TorchModel
    pruning: Pruning
    after_step: Callable[[], None] | None = None
    training: dict[str, Any] | None = None
    vocabulary: VocabularyPlan | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PruneMethod:
    """One method: the options it takes, those one of which it needs, and how it is run.

    ``sparse``: weights become zero, shapes stay. ``trains``: it trains by itself, on --recover.
    ``recovers``: --recover has a meaning. ``activations``: it needs --data.
    """

    run: Callable[[Work], Made]
    takes: frozenset[str]
    needs: tuple[str, ...] = ()
    sparse: bool = False
    trains: bool = False
    recovers: bool = True
    activations: bool = False

    def check(self, name: str, options: PruneOptions, data: str | None) -> None:
        """Raises UsageError for an option that the method has no use for, or lacks, and for values
        that fit no model; InputsError where it cannot do without data."""
        foreign = sorted(options.given - self.takes)
        if foreign:
            raise UsageError(f"{flag(foreign[0])} has no meaning for --method {name}")
        given = [need for need in self.needs if need in options.given]
        if self.needs and not given:
            listed = " or ".join(map(flag, self.needs))
            raise UsageError(f"--method {name} needs {listed}")
        if len(given) > 1:
            raise UsageError(f"{flag(given[0])} and {flag(given[1])}: give one of them")
        options.check()
        if options.target is not None:
            from edgeopt.pruning.size_search import parse_target

            parse_target(options.target)
        if self.sparse and options.scope == "global" and (name != "magnitude" or options.pattern):
            raise UsageError(
                "--scope global compares weights of all layers: it goes with --method magnitude "
                "and --ratio"
            )
        if data is None and self.activations:
            raise InputsError(f"--method {name} weighs activations; give samples with --data")
        if data is None and options.importance in _ON_DATA:
            raise InputsError(
                f"--importance {options.importance} is measured on samples; give some with --data"
            )


# ---------------------------------------------------------------------------------------------
# channels

#: Importance that is measured on samples.
_ON_DATA = frozenset({"taylor", "activation"})

#: Channels that kernels of CPUs compute at once, at least.
_BLOCK = 8


def _channels(work: Work) -> Made:
    from edgeopt.pruning.channels.prune import prune_channels
    from edgeopt.pruning.size_search import parse_target, search_target

    options, model = work.options, work.opened.model
    feeds, labels = _with_labels(work)
    settings: dict[str, Any] = {
        "scope": options.scope,
        "importance": options.importance,
        "feeds": feeds,
        "labels": labels,
        "seed": options.seed,
        "ratios": read_ratios(options.layer_ratios),
        "ignore": options.ignore,
        "heads": options.heads,
        "round_to": 1 if options.round_to is None else options.round_to,
    }

    def cut(changed: TorchModel, ratio: float) -> Pruning:
        made = prune_channels(changed, ratio=ratio, progress=None, **settings)
        if options.heads and not any(cut.kind == "heads" for cut in made.cuts):
            note = "--heads: no attention was found by the names that its layers go by"
            made = dataclasses.replace(made, notes=(*made.notes, note))
        return made

    if options.target is None:
        assert options.ratio is not None
        return Made(model, cut(model, options.ratio))
    target = parse_target(options.target)
    blocks: tuple[str, ...] = ()
    if target.kind == "latency" and options.round_to is None:
        # Between multiples time goes up as channels go down: no search finds its way through that.
        settings["round_to"] = _BLOCK
        blocks = (f"multiples of {_BLOCK} channels are left; --round-to says another number",)
    from edgeopt.verbs.prune_latency import latency_meter

    latency = latency_meter(work.opened, work.workdir, work.progress, threads=work.threads)
    found = search_target(model, target, cut, latency=latency, progress=work.progress)
    pruning = cut(model, found.ratio)
    notes = (*pruning.notes, *blocks, *found.notes)
    return Made(model, dataclasses.replace(pruning, notes=notes))


def _with_labels(work: Work) -> tuple[Sequence[Mapping[str, Array]], NDArray[Any] | None]:
    """Calibration feeds, and their labels where the data has some (importance by gradient)."""
    feeds = list(work.feeds)
    if work.options.importance != "taylor" or work.data is None or not feeds:
        return feeds, None
    read = read_labelled(work.data, work.opened.model.inputs)
    if read.target is None or read.paired:
        return feeds, None
    # Of rows that calibrate and are not held out, in the order that the split leaves them in.
    kept = np.arange(len(read.target)) % HELD != HELD - 1
    return (feeds, read.target[kept]) if int(kept.sum()) == len(feeds) else (feeds, None)


# ---------------------------------------------------------------------------------------------
# depth, vocabulary


def _depth(work: Work) -> Made:
    from edgeopt.pruning.depth.prune import prune_depth

    options = work.options
    feeds = work.feeds or work.prepared.trial
    pruning = prune_depth(
        work.opened.model,
        ratio=options.ratio,
        keep=options.keep,
        remove=options.remove,
        feeds=feeds,
        progress=work.progress,
    )
    if not work.feeds and not options.remove:
        note = "blocks were ranked on made-up inputs: give --data for better ones"
        pruning = dataclasses.replace(pruning, notes=(*pruning.notes, note))
    return Made(work.opened.model, pruning)


def _vocabulary(work: Work) -> Made:
    from edgeopt.pruning.vocabulary.corpus import Corpus
    from edgeopt.pruning.vocabulary.prune import plan_vocabulary, prune_vocabulary

    model = work.opened.model
    if model.folder is None:
        raise SourceError(
            f"{work.opened.source.path}: --method vocabulary rewrites a tokenizer too; give a "
            "Hugging Face folder"
        )
    plan = plan_vocabulary(
        model.folder,
        Corpus([Path(path) for path in work.options.corpus]),
        min_count=work.options.min_count,
        progress=work.progress,
    )
    pruning = prune_vocabulary(model, plan)
    return Made(plan.refit(model), pruning, vocabulary=plan)


# ---------------------------------------------------------------------------------------------
# single weights


def _weights(method: str) -> Callable[[Work], Made]:
    def run(work: Work) -> Made:
        from edgeopt.pruning.sparsity.masks import SparsityMask, masks_of
        from edgeopt.pruning.sparsity.prune import prune_weights

        options, model = work.options, work.opened.model
        pruning = prune_weights(
            model,
            method=method,
            ratio=options.ratio,
            pattern=read_pattern(options.pattern),
            scope=options.scope,
            feeds=work.feeds,
            include=options.include,
            exclude=options.ignore,
            progress=work.progress,
        )
        return Made(model, pruning, SparsityMask(model.module, masks_of(model.module, pruning)))

    return run


def _lottery(work: Work) -> Made:
    from edgeopt.pruning.sparsity.lottery import lottery
    from edgeopt.pruning.sparsity.masks import SparsityMask, masks_of

    options, model, material = work.options, work.opened.model, work.material
    assert options.ratio is not None and material is not None
    work.training.after(options.rewind, material)  # refused before the first training
    teacher = dataclasses.replace(model, module=copy.deepcopy(model.module))
    said: dict[str, Any] = {}
    rounds = itertools.count()

    def train(module: nn.Module, after_step: Callable[[], None], start: int) -> None:
        _, found = teach(
            dataclasses.replace(model, module=module),
            teacher,
            material,
            work.training.after(start, material).of_round(next(rounds)),
            fine=work.opened.source.kind == "hf-folder",
            after_step=after_step,
            progress=work.progress,
        )
        said.update(found)

    pruning = lottery(
        model,
        train,
        ratio=options.ratio,
        rounds=options.rounds,
        rewind_step=options.rewind,
        include=options.include,
        exclude=options.ignore,
        progress=work.progress,
    )
    return Made(model, pruning, SparsityMask(model.module, masks_of(model.module, pruning)), said)


_SPARSE = frozenset({"ratio", "pattern", "scope", "include", "ignore"})

METHODS: Mapping[str, PruneMethod] = {
    "channels": PruneMethod(
        _channels,
        frozenset(
            {
                "ratio",
                "target",
                "scope",
                "importance",
                "heads",
                "layer_ratios",
                "ignore",
                "round_to",
            }
        ),
        needs=("ratio", "target"),
    ),
    "depth": PruneMethod(
        _depth, frozenset({"ratio", "keep", "remove"}), needs=("ratio", "keep", "remove")
    ),
    "vocabulary": PruneMethod(
        _vocabulary, frozenset({"corpus", "min_count"}), needs=("corpus",), recovers=False
    ),
    "magnitude": PruneMethod(_weights("magnitude"), _SPARSE, ("ratio", "pattern"), sparse=True),
    "wanda": PruneMethod(
        _weights("wanda"), _SPARSE, ("ratio", "pattern"), sparse=True, activations=True
    ),
    "sparsegpt": PruneMethod(
        _weights("sparsegpt"), _SPARSE, ("ratio", "pattern"), sparse=True, activations=True
    ),
    "lottery": PruneMethod(
        _lottery,
        frozenset({"ratio", "rounds", "rewind", "include", "ignore"}),
        needs=("ratio",),
        sparse=True,
        trains=True,
    ),
}
