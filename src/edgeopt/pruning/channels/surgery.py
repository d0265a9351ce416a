"""Cut channels out of a module, and know that what is left still computes the same.

Layers are cut by torch-pruning's functions. Whether the right channels went is not believed but
seen: the pruned module must answer as the whole one does when nobody reads those channels (and
norms over channels leave them out). A module that mixes channels on a way that the dependency
graph did not see (a channel shuffle, a fixed view) fails that, and gets its weights back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.core import Array
from edgeopt.modules.model import TorchModel
from edgeopt.pruning.channels.groups import FAILURES, ChannelGroup, GroupMember, channel_axis

__all__ = [
    "ModuleOutputs",
    "ModuleSnapshot",
    "Removal",
    "cut",
    "feeds_of_two_sizes",
    "masked",
    "run",
    "unlike",
]

#: A group, and those of its units that go.
Removal: TypeAlias = tuple[ChannelGroup, Tensor]
ModuleOutputs: TypeAlias = list[dict[str, Tensor]]

#: Of an output's largest value: float32 sums of another length differ by far less.
_TOLERANCE = 1e-3


class ModuleSnapshot:
    """A module's attributes as they are now, to be put back. Tensors are shared, not copied."""

    def __init__(self, module: nn.Module) -> None:
        self._saved = {part: _shallow(part.__dict__) for part in module.modules()}

    def restore(self) -> None:
        for part, saved in self._saved.items():
            part.__dict__.clear()
            part.__dict__.update(_shallow(saved))


def _shallow(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Containers copied, as ``setattr`` changes them in place; what they hold is not."""
    return {
        name: copy.copy(value) if isinstance(value, (dict, list, set)) else value
        for name, value in attributes.items()
    }


def feeds_of_two_sizes(model: TorchModel) -> list[Mapping[str, Array]]:
    """The example, and the same with one row less or more where the batch is free."""
    free = {spec.shape[0] for spec in model.inputs if spec.shape and isinstance(spec.shape[0], str)}
    if len(free) != 1:  # no batch, or none that is surely one
        return [model.example]
    (batch,) = free
    other: dict[str, Array] = {}
    for spec in model.inputs:
        array = np.asarray(model.example[spec.name])
        if spec.shape and spec.shape[0] == batch:
            rows = 1 if len(array) > 1 else 2
            array = np.concatenate([array, array])[:rows]
        other[spec.name] = array
    return [model.example, other]


def run(model: TorchModel, feeds: Iterable[Mapping[str, Array]]) -> ModuleOutputs:
    """What the model answers to the feeds, in evaluation mode."""
    with model.mode(False), torch.no_grad():
        return [dict(model.outputs(model.tensors(feed))) for feed in feeds]


def unlike(wanted: ModuleOutputs, got: ModuleOutputs) -> str:
    """Where two runs differ, in a few words, or nothing."""
    for one, other in zip(wanted, got, strict=True):
        for name, value in one.items():
            seen = other.get(name)
            if seen is None or seen.shape != value.shape:
                return f"output {name} changes its shape"
            if not value.is_floating_point():
                continue
            scale = float(value.abs().max()) if value.numel() else 0.0
            if not torch.allclose(seen, value, 0.0, _TOLERANCE * scale + 1e-6, equal_nan=True):
                return f"output {name} is not that of the whole model without those channels"
    return ""


def _gone(removals: Sequence[Removal]) -> dict[tuple[str, str], tuple[GroupMember, list[int]]]:
    """Every side of every layer that loses channels, and which; groups may share a layer."""
    found: dict[tuple[str, str], tuple[GroupMember, list[int]]] = {}
    for group, units in removals:
        for part in group.parts:
            channels = group.channels(part, units).tolist()
            if channels:
                found.setdefault((part.name, part.side), (part, []))[1].extend(channels)
    return {key: (part, sorted(set(channels))) for key, (part, channels) in found.items()}


def cut(model: TorchModel, removals: Sequence[Removal]) -> None:
    """Cut these units out of the module, in place; tied weights stay tied, attributes follow.

    Raises one of FAILURES, half done, where a layer cannot be cut so: take a Snapshot before.
    """
    from torch_pruning import ops
    from torch_pruning.pruner.function import PrunerBox

    module = model.module
    ties = _ties(module)
    asked = {name: p.requires_grad for name, p in module.named_parameters()}
    for (name, side), (part, channels) in _gone(removals).items():
        if isinstance(part.layer, nn.Parameter):
            owner, leaf = _owner(module, name)
            setattr(owner, leaf, nn.Parameter(_narrowed(part.layer, channels)))
            continue
        if isinstance(part.layer, nn.LSTM) and side == "out":
            _cut_state(part.layer, channels)
            continue
        pruner = PrunerBox[ops.module2type(part.layer)]
        act = pruner.prune_in_channels if side == "in" else pruner.prune_out_channels
        act(part.layer, channels)
    for names in ties:
        _tie(module, names)
    for group, units in removals:
        for path, attribute, each in group.counts:
            owner = module.get_submodule(path)
            setattr(owner, attribute, getattr(owner, attribute) - each * len(units))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(asked[name])


def _cut_state(layer: nn.LSTM, channels: Sequence[int]) -> None:
    """Units of an LSTM of one layer: a row of each of its four gates, and a column of its state.

    torch-pruning 1.6.1 cuts the wrong axes here.
    """
    size = layer.hidden_size
    keep = _kept(size, channels).to(layer.weight_hh_l0.device)
    rows = torch.cat([keep + gate * size for gate in range(4)])
    for name, parameter in list(layer.named_parameters()):
        value = parameter.detach()[rows]
        setattr(layer, name, nn.Parameter(value[:, keep] if name == "weight_hh_l0" else value))
    layer.hidden_size = len(keep)


def _kept(size: int, gone: Sequence[int]) -> Tensor:
    keep = torch.ones(size, dtype=torch.bool)
    keep[list(gone)] = False
    return keep.nonzero().flatten()


def _narrowed(parameter: nn.Parameter, channels: Sequence[int]) -> Tensor:
    """A bare parameter without those channels."""
    axis = channel_axis(parameter)
    keep = _kept(parameter.shape[axis], channels)
    return parameter.detach().index_select(axis, keep.to(parameter.device))


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


def _ties(module: nn.Module) -> list[list[str]]:
    """Names of parameters that are one tensor."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [found for found in names.values() if len(found) > 1]


def _tie(module: nn.Module, names: Sequence[str]) -> None:
    first = module.get_parameter(names[0])
    for name in names[1:]:
        other = module.get_parameter(name)
        if other is first:
            continue
        if other.shape != first.shape or not torch.equal(other, first):
            raise ValueError(f"{names[0]} and {name} are one weight, and would lose different ones")
        owner, leaf = _owner(module, name)
        setattr(owner, leaf, first)


@contextmanager
def masked(model: TorchModel, removals: Sequence[Removal]) -> Iterator[None]:
    """The whole model, with nobody reading the channels that are to go."""
    snapshot = ModuleSnapshot(model.module)
    handles = []
    try:
        for (name, side), (part, channels) in _gone(removals).items():
            if isinstance(part.layer, nn.Parameter):
                owner, _ = _owner(model.module, name)
                if next(owner.children(), None) is None:  # a norm of someone's own
                    full = part.layer.shape[channel_axis(part.layer)]
                    hook = _leaving_out(owner, full, channels)
                    handles.append(owner.register_forward_hook(hook))
            elif isinstance(part.layer, nn.LayerNorm):
                hook = _leaving_out(part.layer, part.layer.normalized_shape[-1], channels)
                handles.append(part.layer.register_forward_hook(hook))
            elif isinstance(part.layer, nn.GroupNorm):
                hook = _leaving_out(part.layer, part.layer.num_channels, channels)
                handles.append(part.layer.register_forward_hook(hook))
            elif side == "in" or isinstance(part.layer, nn.LSTM):
                _unread(part.layer, side, channels)
        yield
    finally:
        for handle in handles:
            handle.remove()
        snapshot.restore()


def _unread(layer: nn.Module, side: str, channels: list[int]) -> None:
    """Zero the weights by which a layer reads channels: its inputs, or an LSTM's own state."""
    names = ["weight"]
    if isinstance(layer, nn.LSTM):
        kind = "weight_ih" if side == "in" else "weight_hh"
        names = [name for name, _ in layer.named_parameters() if name.startswith(kind)]
    for name in names:
        weight = getattr(layer, name).detach().clone()
        if isinstance(layer, nn.modules.conv._ConvNd) and not layer.transposed:
            inside = weight.shape[1]  # of one block
            outs = weight.shape[0] // layer.groups
            for channel in channels:
                block, position = divmod(channel, inside)
                weight[block * outs : (block + 1) * outs, position] = 0
        else:
            weight[channels if isinstance(layer, nn.modules.conv._ConvNd) else (..., channels)] = 0
        setattr(layer, name, nn.Parameter(weight))


def _leaving_out(
    layer: nn.Module, full: int, channels: Sequence[int]
) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    """A hook: the layer's answer from its other channels alone, zero at these.

    What is no norm (it gives another shape than it takes) answers as it does.
    """
    keep = _kept(full, channels)
    small = copy.deepcopy(layer)
    small._forward_hooks.clear()
    for name, parameter in list(small.named_parameters()):
        if parameter.numel() > 1:  # one number is of all channels
            setattr(small, name, nn.Parameter(_narrowed(parameter, channels)))
    if isinstance(small, nn.LayerNorm):
        small.normalized_shape = (len(keep),)
    elif isinstance(small, nn.GroupNorm):
        small.num_channels = len(keep)

    def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        value = args[0] if args else None
        if not isinstance(value, Tensor) or getattr(output, "shape", None) != value.shape:
            return output
        axes = (1,) if isinstance(layer, nn.GroupNorm) else (value.dim() - 1, 1)
        for axis in axes:
            # An image may be as wide as it has channels: then only one of the two runs.
            if axis < value.dim() and value.shape[axis] == full:
                try:
                    made = small(value.index_select(axis, keep))
                except FAILURES:
                    continue
                return torch.zeros_like(output).index_copy_(axis, keep, made)
        return output

    return hook


def first_line(problem: BaseException) -> str:
    """The problem in one line."""
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]


def attempt(model: TorchModel, removals: Sequence[Removal]) -> str:
    """Cut; where the result does not answer as it must, put all back and say why."""
    feeds = feeds_of_two_sizes(model)
    snapshot = ModuleSnapshot(model.module)
    try:
        with masked(model, removals):
            wanted = run(model, feeds)
        cut(model, removals)
        problem = unlike(wanted, run(model, feeds))
    except FAILURES as error:
        problem = f"the model does not run without them ({first_line(error)})"
    if problem:
        snapshot.restore()
    return problem
