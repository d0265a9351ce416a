"""Which channels depend on one another: torch-pruning's dependency graph, read as groups.

The graph (Fang et al. 2023, "DepGraph") is traced through autograd, so it sees what ran and not
what was written. What it cannot follow (a reshape that mixes channels, a tensor that is no
parameter) is blocked here where that shows, and by running the model otherwise (``surgery``).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgeopt.core.packages import is_installed
from edgeopt.errors import MissingExtraError, SourceError
from edgeopt.modules.model import TorchModel
from edgeopt.pruning.channels.groups import (
    FAILURES,
    LAYERS,
    ChannelGroup,
    GroupMember,
    Side,
    Trace,
    trainable,
    units_of,
    width,
    with_ties,
)

__all__ = ["trace"]

#: Products of two activations: what passes through one is attention.
_PRODUCTS = ("Bmm", "Baddbmm", "ScaledDotProduct")

#: Nothing between two layers is more times as wide as the first.
_WIDEST = 4096


def trace(model: TorchModel) -> Trace:
    """Follow every channel through one run of the example, in evaluation mode.

    Raises MissingExtraError without torch-pruning, SourceError where the model cannot be followed.
    """
    if not is_installed("torch_pruning"):
        raise MissingExtraError("torch-pruning", "train", "structured pruning")
    module = model.module
    with warnings.catch_warnings(), model.mode(False), trainable(module), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            graph = _graph(model)
            return _read(graph, module)
        except FAILURES as problem:
            line = str(problem).strip().split("\n")[0]
            raise SourceError(
                f"the model's channels cannot be followed ({type(problem).__name__}: {line});"
                " prune its weights instead (--method magnitude)"
            ) from problem


def _graph(model: TorchModel) -> Any:
    import torch_pruning

    def run(_: nn.Module, feed: Mapping[str, Tensor]) -> list[Tensor]:
        # Multiplied by one, so that a layer that makes an output is never mistaken for its end.
        found = [value * 1 for value in model.outputs(feed).values() if value.grad_fn is not None]
        if not found:
            raise ValueError("none of its outputs depends on a parameter")
        return found

    for layer in model.module.modules():
        if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
            # Followed as an input, one slope would hide how many channels there are.
            layer.weight.requires_grad_(False)
    with _reshapes(), _states(model.module):
        return torch_pruning.DependencyGraph().build_dependency(
            model.module, model.tensors(), forward_fn=run, verbose=False
        )


@contextmanager
def _reshapes() -> Iterator[None]:
    """A reshape whose channels torch-pruning miscounts (0 of them, beyond one half of a split)
    loses them, and not the whole graph."""
    from torch_pruning.dependency import index_mapping

    name = "update_reshape_index_mapping"
    update = getattr(index_mapping, name)

    def careful(graph: Any, node: Any) -> None:
        try:
            update(graph, node)
        except ArithmeticError:
            for dependency in node.dependencies:
                dependency.index_mapping[0] = _lost

    setattr(index_mapping, name, careful)
    try:
        yield
    finally:
        setattr(index_mapping, name, update)


@contextmanager
def _states(module: nn.Module) -> Iterator[None]:
    """The last state of an LSTM, taken from its outputs: those alone are followed, and the units
    of one layer are the same in both."""

    def from_outputs(layer: nn.LSTM, args: tuple[Any, ...], given: Any) -> Any:
        outputs, (_, cell) = given
        if not isinstance(outputs, Tensor):  # of sequences that differ in length
            return given
        time = int(layer.batch_first and outputs.dim() == 3)
        last = outputs.select(time, -1).unsqueeze(0)
        return outputs, (last, last * 0 + cell.detach())

    alike = [
        part
        for part in module.modules()
        if isinstance(part, nn.LSTM)
        and (part.num_layers, part.bidirectional, part.proj_size) == (1, False, 0)
    ]
    handles = [part.register_forward_hook(from_outputs) for part in alike]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _lost(channels: Any) -> Any:
    raise LookupError("nothing says which channels these become")


def _read(graph: Any, module: nn.Module) -> Trace:
    names: dict[Any, str] = {layer: name for name, layer in module.named_modules()}
    names.update({p: name for name, p in module.named_parameters()})
    groups: list[ChannelGroup] = []
    used: set[str] = set()
    readers: dict[str, tuple[str, ...]] = {}
    nodes = [layer for layer in graph.module2node if isinstance(layer, LAYERS)]
    # In the module's own order, whatever the order that autograd met them in.
    order = {layer: index for index, layer in enumerate(module.modules())}
    for layer in sorted(nodes, key=order.__getitem__):
        name = names[layer]
        used.add(name)
        if name in readers:  # in a group already
            continue
        group = _group(graph, layer, names)
        groups.append(group)
        reading = tuple(p.name for p in group.parts if p.side == "in")
        for producer in group.producers:
            readers.setdefault(producer, reading)
    return Trace(tuple(with_ties(groups, module)), frozenset(used), readers)


def _group(graph: Any, layer: nn.Module, names: Mapping[Any, str]) -> ChannelGroup:
    size = width(layer)
    parts: list[GroupMember] = []
    walk = _ChannelWalk(graph, layer, size)
    reason = "" if walk.followed else "its channels pass through an operation that moves them about"
    for (node, handler), channels in walk.found.items():
        if not channels:  # the other end of a concatenation, say
            continue
        target, kind = node.module, node.type.name
        if kind == "OUTPUT":
            reason = "its channels are the model's output"
        elif kind == "ELEMENTWISE":
            operator = str(getattr(target, "_grad_fn", ""))
            if not reason and operator.startswith(_PRODUCTS):
                reason = "attention whose heads are not known by their names"
        elif target in names:
            sides = (
                graph.is_out_channel_pruning_fn(handler),
                graph.is_in_channel_pruning_fn(handler),
            )
            side: Side = "through" if all(sides) else "out" if sides[0] else "in"
            if isinstance(target, nn.PReLU) and target.num_parameters == 1:
                continue  # one slope for whatever channels there are
            indices = torch.tensor(sorted(channels), dtype=torch.int64)
            roots = torch.tensor([channels[c] for c in sorted(channels)], dtype=torch.int64)
            part = GroupMember(names[target], target, side, indices, roots)
            parts.append(part)
            reason = reason or _unfit(part)
    units, conflict = units_of(tuple(parts), walk.classes())
    return ChannelGroup(names[layer], tuple(parts), units, "channels", reason or conflict)


class _Channel(NamedTuple):
    """A node's channel and the layer's, under the names by which torch-pruning maps them."""

    idx: int
    root_idx: int


class _ChannelWalk:
    """All that a layer's output channels reach in the graph.

    ``found`` is, by node and the pruning function called for there, the node's channel -> the
    layer's. It goes as torch-pruning's own search does, but remembers channels instead of lists of
    them: that one does not end where a rotary embedding shifts channels round and round. Where two
    of the layer's channels meet (a gate that multiplies one half by the other) they are one class.
    ``followed`` is false where a channel ends up outside of a layer; then only what is reached is
    known, not which channels.
    """

    def __init__(self, graph: Any, layer: nn.Module, size: int) -> None:
        self.found: dict[tuple[Any, Any], dict[int, int]] = {}
        self.followed = True
        self._class = list(range(size))
        start = graph.module2node[layer], graph.get_pruner_of_module(layer).prune_out_channels
        whole = [_Channel(c, c) for c in range(size)]
        self.found[start] = {c: c for c in range(size)}
        waiting = [(start, whole)]
        while waiting and self.followed:
            (node, function), channels = waiting.pop()
            for dependency in node.dependencies:
                if not dependency.is_triggered_by(function):
                    continue
                mapped = channels
                try:
                    for mapping in dependency.index_mapping:
                        mapped = mapped if mapping is None else mapping(mapped)
                except FAILURES:  # more operations read its parts than it knows to take it apart in
                    self.followed = False
                    break
                key = dependency.target, dependency.handler
                if fresh := self._enter(key, mapped, _limit(graph, *key, size)):
                    waiting.append((key, fresh))
        if not self.followed:
            self._reach(start)

    def _enter(self, key: tuple[Any, Any], channels: list[Any], limit: int) -> list[Any]:
        """Those of the channels that are new there."""
        seen = self.found.setdefault(key, {})
        fresh = []
        for channel in channels:
            # Of shared keys and values it is not said whose channels they are.
            if channel.root_idx is None or not 0 <= channel.idx < limit:
                self.followed = False
                return []
            if channel.idx not in seen:
                seen[channel.idx] = channel.root_idx
                fresh.append(channel)
            elif seen[channel.idx] != channel.root_idx:
                self._meet(seen[channel.idx], channel.root_idx)
        return fresh

    def _meet(self, one: int, other: int) -> None:
        first, second = sorted((self._first(one), self._first(other)))
        self._class[second] = first

    def _first(self, channel: int) -> int:
        while self._class[channel] != channel:
            channel = self._class[channel]
        return channel

    def classes(self) -> Tensor:
        """The class of every channel, numbered from 0 in the order of their first channels."""
        firsts = torch.tensor([self._first(c) for c in range(len(self._class))])
        return firsts.unique(return_inverse=True)[1]

    def _reach(self, start: tuple[Any, Any]) -> None:
        self.found = {start: {0: 0}}
        waiting = [start]
        while waiting:
            node, function = waiting.pop()
            for dependency in node.dependencies:
                key = dependency.target, dependency.handler
                if dependency.is_triggered_by(function) and key not in self.found:
                    self.found[key] = {0: 0}
                    waiting.append(key)


def _limit(graph: Any, node: Any, function: Any, size: int) -> int:
    """How many channels the node has on that side; where it does not say, more than it can."""
    into = graph.is_in_channel_pruning_fn(function)
    count = (graph.get_in_channels if into else graph.get_out_channels)(node)
    return size * _WIDEST if count is None or node.type.name == "OUTPUT" else int(count)


def _unfit(part: GroupMember) -> str:
    """Why this layer cannot shrink on that side, or nothing."""
    layer = part.layer
    if isinstance(layer, nn.MultiheadAttention):
        return f"{part.name} keeps its width at heads times head size"
    if isinstance(layer, nn.LSTM):
        if layer.num_layers > 1:
            return f"{part.name} is an LSTM of {layer.num_layers} layers"
        if part.side == "out" and (layer.bidirectional or layer.proj_size):
            return f"{part.name} is an LSTM of two directions, or with a projection"
    if isinstance(layer, nn.Module) and _computed(layer):
        return f"the weight of {part.name} is computed from others"
    return ""


def _computed(layer: nn.Module) -> bool:
    """Whether other tensors are what is trained of its weight (weight_norm, old and new)."""
    held = vars(layer).get("weight")
    return hasattr(layer, "parametrizations") or isinstance(held, Tensor)
