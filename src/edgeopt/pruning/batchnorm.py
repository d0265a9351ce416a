"""BatchNorm's statistics anew: what pruning shifts most in a network that has them.

Running means and variances belong to the weights that they were taken with; once weights are gone,
the old ones scale and shift what is left wrongly. "PreciseBN" (Wu and Johnson 2021,
arXiv:2105.07576, section 3): run the data with every layer normalising by its batch, and keep the
mean of the batches' statistics. No gradient, no label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from edgeopt.core import Array
from edgeopt.errors import InputsError
from edgeopt.modules.model import TorchModel
from edgeopt.modules.reasons import attempt, one_line
from edgeopt.pruning.collate import collate, row_count

__all__ = ["refit_batchnorm"]

#: Rows that are normalised together, where the model takes them: single samples say nothing.
_ROWS = 64


def refit_batchnorm(
    model: TorchModel, feeds: Iterable[Mapping[str, Array]], *, rows: int = _ROWS
) -> int:
    """Take the statistics of every BatchNorm layer in ``model.module`` from ``feeds``, in place.

    Feeds are joined to batches of ``rows`` where shapes allow. Returns how many layers
    were refitted: 0 where there are none, or where no two rows can be joined. Weights and modes
    stay as they are. Raises InputsError where a feed does not run or leads to statistics that are
    not finite; all is as before then.
    """
    layers = [m for m in model.module.modules() if _is_refitted(m)]
    before = [{k: v.clone() for k, v in layer.state_dict().items()} for layer in layers]
    complaint = _run_all(model, layers, collate(model, feeds, rows)) if layers else ""
    seen = [layer for layer in layers if int(layer.num_batches_tracked)]
    if not complaint and not all(_is_finite(layer) for layer in seen):
        complaint = "it leads to statistics that are not finite"
    for layer, state in zip(layers, before, strict=True):
        if complaint or layer not in seen:
            layer.load_state_dict(state)
    if complaint:
        raise InputsError(f"BatchNorm cannot be refitted on this data: {complaint}")
    return len(seen)


def _run_all(
    model: TorchModel, layers: Sequence[_BatchNorm], batches: Iterable[Mapping[str, Array]]
) -> str:
    """Run the batches, ``layers`` normalising by each; why one does not run, if one does not."""
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(model.mode(training=False))
        for layer in layers:
            stack.callback(setattr, layer, "momentum", layer.momentum)
            layer.momentum = None  # the mean of all batches, rather than a decaying one
            layer.reset_running_stats()
            layer.train()
        for batch in batches:
            if row_count(batch) < 2:  # no spread, which torch refuses to normalise by
                continue
            args, kwargs = model.arguments(model.tensors(batch))
            _, error = attempt(partial(model.module, *args, **kwargs))
            if error is not None:
                return one_line(error)
    return ""


def _is_refitted(module: object) -> bool:
    return (
        isinstance(module, _BatchNorm)
        and module.track_running_stats
        and module.running_mean is not None
        and module.num_batches_tracked is not None
    )


def _is_finite(layer: _BatchNorm) -> bool:
    return bool(torch.isfinite(layer.running_mean).all() & torch.isfinite(layer.running_var).all())
