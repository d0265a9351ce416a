"""How much each unit of a group matters: four measures, the least important go first.

========== ====================================================================================
magnitude  L2 norm of all weights that a channel has, in every layer that shares it (the group
           norm of Fang et al. 2023, "DepGraph")
bn         |gamma| of its batch normalisations (Liu et al. 2017, "network slimming", section 3)
taylor     the squared first-order change of the loss when it goes, (sum of weight x gradient)^2,
           averaged over feeds (Molchanov et al. 2019, equation 8)
activation mean |activation| of it, as the layers that read it see it, over feeds
========== ====================================================================================

Taylor's loss is the cross-entropy against whole-number labels, or the squared error against
others. Without labels there is none to take: a model's own answers are a minimum, where every
gradient is zero. Then the outputs are projected on random signs, which makes the squared gradient
an unbiased estimate of the squared change of the outputs (Hutchinson's estimator of the
Gauss-Newton diagonal), and asks nothing about what the outputs mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeopt.core import Array, Progress
from edgeopt.errors import InputsError, UsageError
from edgeopt.modules.model import TorchModel
from edgeopt.pruning.channels.groups import ChannelGroup, GroupMember, Side, channel_axis, trainable

__all__ = ["Importance", "Scores", "measure"]

Importance: TypeAlias = Literal["magnitude", "bn", "taylor", "activation"]
FeedStream: TypeAlias = Iterable[Mapping[str, Array]]

#: Layer name and side -> a score for each of its channels, on that side.
_SideScores: TypeAlias = dict[tuple[str, Side], Tensor]

#: Whether scores of different groups are on one scale as they are.
_COMPARABLE: Mapping[str, bool] = {
    "magnitude": False,
    "bn": True,
    "taylor": True,
    "activation": False,
}

_CONVS = nn.modules.conv._ConvNd
_BATCHNORM = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Scores:
    """What was measured: score a group with :meth:`of`, in any order, as often as wanted."""

    kind: Importance
    table: Mapping[tuple[str, Side], Tensor]

    def of(self, group: ChannelGroup) -> Tensor | None:
        """A score for every unit, float64, larger is more important; None where there is none.

        The mean over the group's layers: a chain of layers measures one thing several times.
        """
        total = torch.zeros(group.count, dtype=torch.float64)
        found = 0
        for part in group.parts:
            scores = self.table.get((part.name, part.side))
            if scores is not None:
                total.index_add_(0, group.units[part.root], scores[part.target])
                found += 1
        if not found:
            return None
        return (total / found).sqrt() if self.kind == "magnitude" else total / found

    def compared(self, group: ChannelGroup) -> Tensor | None:
        """The same, on a scale that groups can be compared on."""
        scores = self.of(group)
        if scores is None or _COMPARABLE[self.kind]:
            return scores
        mean = scores.mean()
        return scores / mean if mean > 0 else scores


def measure(
    kind: Importance,
    model: TorchModel,
    groups: Iterable[ChannelGroup],
    feeds: FeedStream = (),
    labels: NDArray[Any] | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Scores:
    """Measure what ``kind`` needs of the layers of these groups. The module stays as it is.

    ``labels`` are those of all rows of ``feeds``, in order (taylor); ``seed`` draws the signs
    where there are none.

    Raises UsageError for a kind that is not there, or ``bn`` without batch normalisation;
    InputsError where feeds are needed and none are given, or a label does not fit.
    """
    parts = {(p.name, p.side): p for group in groups for p in group.parts}
    if kind == "magnitude":
        table = _weights(parts, lambda p: p.detach().double() ** 2)
    elif kind == "bn":
        table = _gammas(parts)
    elif kind == "taylor":
        table = _taylor(model, parts, feeds, labels, seed, progress)
    elif kind == "activation":
        table = _activations(model, parts, feeds, progress)
    else:
        raise UsageError(f"importance {kind!r}; use one of {', '.join(get_args(Importance))}")
    return Scores(kind, table)


def _weights(
    parts: Mapping[tuple[str, Side], GroupMember],
    value: Callable[[nn.Parameter], Tensor],
    biases: bool = False,
) -> _SideScores:
    table = {key: _by_channel(part, value, biases) for key, part in parts.items()}
    return {key: found for key, found in table.items() if found is not None}


def _by_channel(
    part: GroupMember, value: Callable[[nn.Parameter], Tensor], biases: bool
) -> Tensor | None:
    """The sum of ``value`` over all of a layer's weights that belong to one channel, for each."""
    layer, inside = part.layer, part.side == "in"
    if isinstance(layer, nn.Parameter):
        return _sum(value(layer), channel_axis(layer))
    weight = getattr(layer, "weight", None)
    if isinstance(layer, nn.LSTM):
        return _by_state(layer, value, inside)
    if not isinstance(weight, nn.Parameter):
        return None
    values = value(weight)
    if isinstance(layer, nn.Embedding):
        return _sum(values, 1)
    if isinstance(layer, _CONVS):
        groups = layer.groups
        if inside == layer.transposed or part.side == "through":
            total = _sum(values, 0)
        elif groups == 1:
            total = _sum(values, 1)
        else:  # the second axis counts within a block
            rows, inner = values.shape[:2]
            total = values.reshape(groups, rows // groups, inner, -1).sum((1, 3)).flatten()
    else:
        total = _sum(values, 1 if inside and values.dim() > 1 else 0)
    bias = getattr(layer, "bias", None)
    if biases and not inside and isinstance(bias, nn.Parameter):
        total = total + value(bias)
    return total


def _by_state(layer: nn.LSTM, value: Callable[[nn.Parameter], Tensor], inside: bool) -> Tensor:
    """Of an LSTM of one layer: what reads an input, or the gates of a unit and what reads it."""
    given, own = value(layer.weight_ih_l0), value(layer.weight_hh_l0)
    if inside:
        back = getattr(layer, "weight_ih_l0_reverse", None)
        return given.sum(0) if back is None else given.sum(0) + value(back).sum(0)
    gates = own.reshape(4, layer.hidden_size, layer.hidden_size)
    rows = given.reshape(4, layer.hidden_size, -1).sum((0, 2)) + gates.sum((0, 2))
    return rows + gates.sum((0, 1)) - gates.diagonal(dim1=1, dim2=2).sum(0)


def _sum(values: Tensor, axis: int) -> Tensor:
    """Over all axes but one."""
    return values.movedim(axis, 0).flatten(1).sum(1) if values.dim() > 1 else values


def _gammas(parts: Mapping[tuple[str, Side], GroupMember]) -> _SideScores:
    table = {
        key: part.layer.weight.detach().double().abs()
        for key, part in parts.items()
        if isinstance(part.layer, _BATCHNORM) and part.layer.affine
    }
    if not table:
        raise UsageError(
            "importance bn ranks channels by their batch normalisation, and there is none here;"
            " use magnitude, or taylor with --data"
        )
    return table


def _taylor(
    model: TorchModel,
    parts: Mapping[tuple[str, Side], GroupMember],
    feeds: FeedStream,
    labels: NDArray[Any] | None,
    seed: int,
    progress: Progress | None,
) -> _SideScores:
    table: _SideScores = {}
    signs = torch.Generator().manual_seed(seed)
    done = row = 0

    def change(parameter: nn.Parameter) -> Tensor:
        value = parameter.detach().double()
        return torch.zeros_like(value) if parameter.grad is None else value * parameter.grad

    with model.mode(False), trainable(model.module), torch.enable_grad():
        for feed in feeds:
            outputs = model.outputs(model.tensors(feed))
            if labels is None:
                loss = _projected(outputs, signs)
            else:
                loss, row = _labelled(outputs, labels, row)
            model.module.zero_grad(set_to_none=True)
            loss.backward()
            for key, found in _weights(parts, change, biases=True).items():
                table[key] = table.get(key, torch.zeros_like(found)) + found**2
            done += 1
            if progress is not None:
                progress(f"importance, feed {done}", None)
    _need(done, "taylor")
    return {key: total / done for key, total in table.items()}


def _need(done: int, kind: str) -> None:
    if not done:
        raise InputsError(f"importance {kind} is measured on data, and none is given; use --data")


def _projected(outputs: Mapping[str, Tensor], signs: torch.Generator) -> Tensor:
    """Every output on random signs, each output on the scale of its own size."""
    total = torch.zeros(())
    for value in outputs.values():
        if value.is_floating_point() and value.grad_fn is not None:
            drawn = torch.randint(0, 2, value.shape, generator=signs).to(value) * 2 - 1
            size = value.detach().pow(2).mean().sqrt().clamp_min(1e-12)
            total = total.to(value.device) + (value * drawn).sum() / size
    return total


def _labelled(outputs: Mapping[str, Tensor], labels: NDArray[Any], row: int) -> tuple[Tensor, int]:
    """The loss of the first output against its rows' labels, and the row after them."""
    name, value = next(iter(outputs.items()))
    end = row + len(value)
    if end > len(labels):
        raise InputsError(f"{len(labels)} labels for {end} rows or more; give one each")
    wanted = torch.from_numpy(np.ascontiguousarray(labels[row:end])).to(value.device)
    if wanted.is_floating_point():
        if wanted.numel() != value.numel():
            raise InputsError(
                f"labels of shape {list(wanted.shape)} for output {name} {list(value.shape)}"
            )
        return nn.functional.mse_loss(value, wanted.reshape(value.shape).to(value.dtype)), end
    classes = value.shape[-1]
    if value.dim() != 2 or wanted.dim() != 1:
        raise InputsError(
            f"labels of shape {list(wanted.shape)} for output {name} {list(value.shape)}; whole"
            " numbers [rows] go with [rows, classes]"
        )
    worst = int(wanted.max()) if int(wanted.min()) >= 0 else int(wanted.min())
    if not 0 <= worst < classes:
        raise InputsError(f"label {worst} is out of range: output {name} has {classes} classes")
    return nn.functional.cross_entropy(value, wanted.long()), end


def _activations(
    model: TorchModel,
    parts: Mapping[tuple[str, Side], GroupMember],
    feeds: FeedStream,
    progress: Progress | None,
) -> _SideScores:
    sums: _SideScores = {}
    rows: dict[tuple[str, Side], int] = {}
    handles = []

    def watch(key: tuple[str, Side], axis: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            value = args[0].detach().double().abs()
            flat = value.movedim(axis, 0).flatten(1)
            sums[key] = sums.get(key, torch.zeros(len(flat), dtype=torch.float64)) + flat.sum(1)
            rows[key] = rows.get(key, 0) + flat.shape[1]

        return hook

    for key, part in parts.items():
        if part.side == "in" and isinstance(part.layer, nn.Module):
            # From the end for images without a batch; linear layers and LSTMs have theirs last.
            spatial = part.layer.weight.dim() - 2 if isinstance(part.layer, _CONVS) else 0
            handles.append(part.layer.register_forward_pre_hook(watch(key, -1 - spatial)))
    done = 0
    try:
        with model.mode(False), torch.no_grad():
            for feed in feeds:
                model.outputs(model.tensors(feed))
                done += 1
                if progress is not None:
                    progress(f"importance, feed {done}", None)
    finally:
        for handle in handles:
            handle.remove()
    _need(done, "activation")
    return {key: total / rows[key] for key, total in sums.items()}
