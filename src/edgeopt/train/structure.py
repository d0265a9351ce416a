"""Which channels must go together: what torch-pruning's dependency graph says, checked.

A layer's output channel is read by every layer after it, added to those of other branches, and
normalised on its way; what is coupled is a :class:`Group`, and can only shrink as one. The graph
is torch-pruning's (Fang et al. 2023, "DepGraph"), traced through autograd, so it sees what ran and
not what was written. What it cannot follow (a reshape that mixes channels, a tensor that is no
parameter) is blocked here where that shows, and by running the model otherwise (``surgery``).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from edgeopt.core.packages import is_installed
from edgeopt.errors import MissingExtraError, SourceError
from edgeopt.train.model import TorchModel

__all__ = [
    "FAILURES",
    "LAYERS",
    "Group",
    "Part",
    "Side",
    "Trace",
    "trace",
    "trainable",
    "width",
]

#: What a module raises when shapes no longer fit, and torch-pruning when it cannot follow.
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)

_CONVS = nn.modules.conv._ConvNd
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)

#: Layers whose output channels are counted, and reported one by one.
LAYERS = (_CONVS, nn.Linear, nn.Embedding, nn.LSTM)

#: Products of two activations: what passes through one is attention.
_PRODUCTS = ("Bmm", "Baddbmm", "ScaledDotProduct")

Side: TypeAlias = Literal["out", "in", "through"]


@dataclass(frozen=True, eq=False)
class Part:
    """One side of one layer: ``target[i]`` is its channel for the group's channel ``root[i]``.

    ``through`` is a layer whose inputs and outputs are the same channels (a normalisation, a
    depthwise convolution, a bare parameter: its last axis).
    """

    name: str
    layer: nn.Module | nn.Parameter
    side: Side
    target: Tensor
    root: Tensor


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that shrink together. ``name`` is the layer that they were followed from.

    ``units[c]`` is the unit of channel c: what goes or stays whole (the channel itself; one
    position in every block of a grouped layer; a head). ``reason`` says why none may go.
    ``counts`` are attributes that say how many there are: module, name, and what one unit takes.
    """

    name: str
    parts: tuple[Part, ...]
    units: Tensor
    kind: Literal["channels", "heads"] = "channels"
    reason: str = ""
    counts: tuple[tuple[str, str, int], ...] = ()

    @property
    def count(self) -> int:
        return int(self.units.max()) + 1

    @property
    def producers(self) -> tuple[str, ...]:
        """The layers whose outputs these channels are."""
        return tuple(p.name for p in self.parts if isinstance(p.layer, LAYERS) and p.side != "in")

    def blocked(self, reason: str) -> Group:
        return self if self.reason else replace(self, reason=reason)

    def channels(self, part: Part, units: Tensor) -> Tensor:
        """The part's own channels that go with these units."""
        return part.target[torch.isin(self.units[part.root], units)]


@dataclass(frozen=True)
class Trace:
    """A model's groups, and for the output of any linear layer the layers that read it."""

    groups: tuple[Group, ...]
    used: frozenset[str]
    readers: Mapping[str, tuple[str, ...]]


@contextmanager
def trainable(module: nn.Module) -> Iterator[None]:
    """Gradients for every floating parameter; afterwards as it was, by name."""
    before = {name: p.requires_grad for name, p in module.named_parameters()}
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    try:
        yield
    finally:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(before[name])
            parameter.grad = None


def width(layer: nn.Module, side: Side = "out") -> int:
    """Channels of a layer that is one of :data:`LAYERS`."""
    names = {
        _CONVS: ("out_channels", "in_channels"),
        nn.Linear: ("out_features", "in_features"),
        nn.Embedding: ("embedding_dim", "embedding_dim"),
        nn.LSTM: ("hidden_size", "input_size"),
    }
    pair = next(pair for kind, pair in names.items() if isinstance(layer, kind))
    return int(getattr(layer, pair[side == "in"]))


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

    return torch_pruning.DependencyGraph().build_dependency(
        model.module, model.tensors(), forward_fn=run, verbose=False
    )


def _read(graph: Any, module: nn.Module) -> Trace:
    names: dict[Any, str] = {layer: name for name, layer in module.named_modules()}
    names.update({p: name for name, p in module.named_parameters()})
    groups: list[Group] = []
    used: set[str] = set()
    readers: dict[str, tuple[str, ...]] = {}
    seen: set[str] = set()
    nodes = [layer for layer in graph.module2node if isinstance(layer, LAYERS)]
    # In the module's own order, whatever the order that autograd met them in.
    order = {layer: index for index, layer in enumerate(module.modules())}
    for layer in sorted(nodes, key=order.__getitem__):
        name = names[layer]
        used.add(name)
        if isinstance(layer, nn.Linear) or name not in seen:
            group = _group(graph, layer, names)
            readers[name] = tuple(p.name for p in group.parts if p.side == "in")
            if name not in seen:
                seen.update(group.producers)
                groups.append(group)
    return Trace(tuple(groups), frozenset(used), readers)


def _group(graph: Any, layer: nn.Module, names: Mapping[Any, str]) -> Group:
    pruner = graph.get_pruner_of_module(layer)
    size = width(layer)
    found = graph.get_pruning_group(layer, pruner.prune_out_channels, list(range(size)))
    parts: list[Part] = []
    reason = ""
    for item in found:
        node, handler = item.dep.target, item.dep.handler
        target, kind = node.module, node.type.name
        if kind == "OUTPUT":
            reason = "its channels are the model's output"
        elif kind == "ELEMENTWISE":
            operator = str(getattr(target, "_grad_fn", ""))
            if not reason and operator.startswith(_PRODUCTS):
                reason = "attention whose heads are not known by their names"
        elif target in names:
            out, into = (
                graph.is_out_channel_pruning_fn(handler),
                graph.is_in_channel_pruning_fn(handler),
            )
            side: Side = "through" if out and into else "out" if out else "in"
            roots = list(item.root_idxs)
            if any(root is None for root in roots):
                reason = reason or f"{names[target]} shares its channels in a way not followed"
                continue
            part = Part(
                names[target], target, side, torch.tensor(list(item.idxs)), torch.tensor(roots)
            )
            parts.append(part)
            reason = reason or _unfit(graph, part)
    units, conflict = _units(tuple(parts), size)
    return Group(names[layer], tuple(parts), units, "channels", reason or conflict)


def _unfit(graph: Any, part: Part) -> str:
    """Why this layer cannot shrink on that side, or nothing."""
    layer = part.layer
    count = graph.get_in_channels if part.side == "in" else graph.get_out_channels
    size = count(layer)
    if size is None or int(part.target.max()) >= size or int(part.target.min()) < 0:
        return f"{part.name} has {size} channels where {int(part.target.max()) + 1} are expected"
    if isinstance(layer, nn.MultiheadAttention):
        return f"{part.name} keeps its width at heads times head size"
    if isinstance(layer, nn.LSTM) and layer.num_layers > 1:
        return f"{part.name} is an LSTM of {layer.num_layers} layers"
    if isinstance(layer, nn.Module) and hasattr(layer, "parametrizations"):
        return f"the weight of {part.name} is computed from others"
    return ""


def _blocks(part: Part) -> int:
    """Blocks of channels that must stay of one size; 1 where any channel may go."""
    layer = part.layer
    if isinstance(layer, _CONVS) and part.side != "through":
        return int(layer.groups)
    return layer.num_groups if isinstance(layer, nn.GroupNorm) else 1


def _units(parts: tuple[Part, ...], size: int) -> tuple[Tensor, str]:
    """The unit of every channel: in blocks, the same position of all of them goes."""
    every = torch.arange(size)
    blocks = 1
    for part in parts:
        here = _blocks(part)
        if here == 1:
            continue
        whole = len(part.target) == size and bool((part.target == part.root).all())
        if not whole or (isinstance(part.layer, _CONVS) and width(part.layer, part.side) != size):
            return every, f"{part.name} works in {here} blocks of channels, and gets only some here"
        blocks = math.lcm(blocks, here)
    if size % blocks or size == blocks:
        return every, f"{size} channels in {blocks} blocks: no block can lose one" * (size > 1)
    return every % (size // blocks), ""
