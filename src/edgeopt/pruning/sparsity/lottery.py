"""Iterative magnitude pruning with rewinding: the lottery-ticket procedure.

Frankle and Carbin 2019 (arXiv:1803.03635): train, prune the smallest of the surviving weights of
all layers together, set the survivors back to what they were at the start, and again. Frankle et
al. 2020 (arXiv:1912.05671) set them back to an early step instead, which larger networks need.
Each round leaves the same share of what the one before left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeopt.core import Progress
from edgeopt.errors import SourceError, UsageError
from edgeopt.modules.model import TorchModel
from edgeopt.numerics import masks
from edgeopt.pruning.result import Cut, Pruning
from edgeopt.pruning.sparsity.masks import SparsityMask
from edgeopt.pruning.sparsity.matrices import WeightMatrix
from edgeopt.pruning.sparsity.prune import check_ratio, selected

__all__ = ["Train", "lottery", "sparsities"]

#: ``train(module, after_step, start_step)``: trains in place from a step to the schedule's end,
#: and calls ``after_step()`` after each step of the optimizer.
Train = Callable[[nn.Module, Callable[[], None], int], None]


def sparsities(ratio: float, rounds: int) -> tuple[float, ...]:
    """The share pruned after each round: ``1 - (1 - ratio)^(i / rounds)``, and in the end ratio."""
    check_ratio(ratio)
    if rounds < 1:
        raise UsageError(f"{rounds} rounds prune nothing; give 1 or more")
    return (*(1 - (1 - ratio) ** (i / rounds) for i in range(1, rounds)), ratio)


def lottery(
    model: TorchModel,
    train: Train,
    *,
    ratio: float,
    rounds: int,
    rewind_step: int = 0,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
) -> Pruning:
    """Find a sparse network in ``model.module`` that trains well, and leave it there, trained.

    The module is trained ``rounds + 1`` times: whole from step 0, then after each pruning from
    ``rewind_step``, where parameters and buffers are as they were after that many steps of the
    first training (0: as they were given). Exactly ``round(ratio * size)`` weights of the layers
    that :func:`~edgeopt.pruning.sparsity.prune.prune_weights` would take go in the end, and once
    gone stay.

    Raises UsageError for a ratio out of range, fewer than one round, or a rewind step that the
    first training does not reach; SourceError where there is no layer to prune, or weights that a
    training left are not finite.
    """
    steps = sparsities(ratio, rounds)
    if rewind_step < 0:
        raise UsageError(f"rewind step {rewind_step} is before the first; give 0 or more")
    module = model.module
    layers, cuts = selected(model, include, exclude)
    before = {layer.name: int(np.count_nonzero(layer.matrix())) for layer in layers}
    names = {id(parameter): name for name, parameter in module.named_parameters()}

    if progress:
        progress(f"training whole, 1 of {rounds + 1}", 0.0)
    early = _train_whole(module, train, rewind_step)
    kept = [np.ones(layer.shape, np.bool_) for layer in layers]
    for number, share in enumerate(steps, 1):
        kept = _smallest_gone(layers, kept, share)
        module.load_state_dict(early)
        for layer, mask in zip(layers, kept, strict=True):
            layer.store(np.where(mask, layer.matrix(), 0))
        if progress:
            progress(
                f"training at {share:.1%}, {number + 1} of {rounds + 1}", number / (rounds + 1)
            )
        wanted = {
            names[id(layer.weight)]: _as_weight(layer, mask)
            for layer, mask in zip(layers, kept, strict=True)
        }
        with SparsityMask(module, wanted) as holding:
            train(module, holding, rewind_step)
            holding()
    for layer in layers:
        after = int(np.count_nonzero(layer.matrix()))
        reason = "all its weights are among the largest" if after == before[layer.name] else ""
        cuts.append(Cut(layer.name, "weights", before[layer.name], after, reason))
    shares = ", ".join(f"{share:.1%}" for share in steps)
    note = f"pruned in {rounds} rounds to {shares}, rewound to step {rewind_step} after each"
    pruning = Pruning("lottery", tuple(cuts), (note,))
    if not pruning.changed:
        raise SourceError(f"nothing was pruned: ratio {ratio:g} is less than one weight")
    return pruning


def _train_whole(module: nn.Module, train: Train, rewind_step: int) -> dict[str, Any]:
    """Train, and give the state as it was after ``rewind_step`` steps."""
    taken = 0
    early = _copy(module) if rewind_step == 0 else None

    def after_step() -> None:
        nonlocal taken, early
        taken += 1
        if taken == rewind_step:
            early = _copy(module)

    train(module, after_step, 0)
    if early is None:
        raise UsageError(
            f"rewind step {rewind_step} is beyond the training's {taken} steps; give fewer"
        )
    return early


def _copy(module: nn.Module) -> dict[str, Any]:
    return {
        name: value.detach().clone() if isinstance(value, torch.Tensor) else value
        for name, value in module.state_dict().items()
    }


def _smallest_gone(
    layers: Sequence[WeightMatrix], kept: Sequence[masks.Mask], share: float
) -> list[masks.Mask]:
    """Masks of ``share`` pruned in all; what was pruned before goes first."""
    scores = []
    for layer, mask in zip(layers, kept, strict=True):
        w = np.abs(layer.matrix())
        if not np.isfinite(w).all():
            raise SourceError(
                f"training left {layer.name} with weights that are not finite; a lower learning "
                "rate may keep it from diverging"
            )
        scores.append(np.where(mask, w, -1))
    return masks.globally(scores, share)


def _as_weight(layer: WeightMatrix, mask: masks.Mask) -> torch.Tensor:
    given = torch.from_numpy(np.ascontiguousarray(mask.T if layer.turned else mask))
    return given.reshape(layer.weight.shape)
