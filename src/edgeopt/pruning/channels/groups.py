"""Channels that must shrink together, and what may go of them at a time.

A layer's output channel is read by every layer after it, added to those of other branches, and
normalised on its way; what is coupled is a :class:`ChannelGroup`, and can only shrink as one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

__all__ = [
    "FAILURES",
    "LAYERS",
    "ChannelGroup",
    "GroupMember",
    "Side",
    "Trace",
    "channel_axis",
    "trainable",
    "units_of",
    "width",
    "with_ties",
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
#: Layers whose output channels are counted, and reported one by one.
LAYERS = (_CONVS, nn.Linear, nn.Embedding, nn.LSTM)

Side: TypeAlias = Literal["out", "in", "through"]


@dataclass(frozen=True, eq=False)
class GroupMember:
    """One side of one layer: ``target[i]`` is its channel for the group's channel ``root[i]``.

    ``through`` is a layer whose inputs and outputs are the same channels (a normalisation, a
    depthwise convolution, a bare parameter: see :func:`channel_axis`).
    """

    name: str
    layer: nn.Module | nn.Parameter
    side: Side
    target: Tensor
    root: Tensor


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that shrink together. ``name`` is the layer that they were followed from.

    ``units[c]`` is the unit of channel c: what goes or stays whole (the channel itself; one
    position in every block of a grouped layer; a head). ``reason`` says why none may go.
    ``counts`` are attributes that say how many there are: module, name, and what one unit takes.
    """

    name: str
    parts: tuple[GroupMember, ...]
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

    def blocked(self, reason: str) -> ChannelGroup:
        return self if self.reason else replace(self, reason=reason)

    def channels(self, part: GroupMember, units: Tensor) -> Tensor:
        """The part's own channels that go with these units."""
        return part.target[torch.isin(self.units[part.root], units)]


@dataclass(frozen=True)
class Trace:
    """A model's groups, the layers that ran, and for each the layers that its group is read by."""

    groups: tuple[ChannelGroup, ...]
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


def channel_axis(parameter: Tensor) -> int:
    """Which axis of a bare parameter its channels are: the last that is longer than one, as
    torch-pruning takes it; a scale of images is ``[channels, 1, 1]``."""
    return max((axis for axis, size in enumerate(parameter.shape) if size > 1), default=-1)


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


def _blocks(part: GroupMember) -> int:
    """Blocks of channels that must stay of one size; 1 where any channel may go."""
    layer = part.layer
    if isinstance(layer, _CONVS) and part.side != "through":
        return int(layer.groups)
    return layer.num_groups if isinstance(layer, nn.GroupNorm) else 1


def units_of(parts: tuple[GroupMember, ...], classes: Tensor) -> tuple[Tensor, str]:
    """The unit of every channel, and why there are none: in blocks, the same position of each goes.

    ``classes`` are those of the channels that meet one another: they go together.
    """
    size = len(classes)
    blocks = 1
    for part in parts:
        here = _blocks(part)
        if here == 1:
            continue
        whole = len(part.target) == size and bool((part.target == part.root).all())
        if not whole or (isinstance(part.layer, _CONVS) and width(part.layer, part.side) != size):
            why = f"{part.name} works in {here} blocks of channels, and gets only some here"
            return classes, why
        blocks = math.lcm(blocks, here)
    if blocks == 1:
        return classes, "its channels all meet one another" * (int(classes.max()) == 0 < size - 1)
    if size % blocks or size == blocks or int(classes.max()) + 1 < size:
        return classes, f"{size} channels in {blocks} blocks: no block can lose one alone"
    return classes % (size // blocks), ""


def with_ties(groups: list[ChannelGroup], module: nn.Module) -> list[ChannelGroup]:
    """Groups that meet in a shared weight are one; a weight shared unequally cannot shrink."""
    holders: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        path, _, leaf = name.rpartition(".")
        if leaf == "weight":
            holders.setdefault(id(parameter), []).append(path)
    for names in (found for found in holders.values() if len(found) > 1):
        for axis in (0, 1):
            groups = _tied(groups, names, axis)
    return groups


def _tied(groups: list[ChannelGroup], names: list[str], axis: int) -> list[ChannelGroup]:
    meeting = [
        (group, part)
        for group in groups
        for part in group.parts
        if part.name in names and _axis(part) == axis
    ]
    concerned = list(dict.fromkeys(group for group, _ in meeting))
    if not concerned or (len(concerned) == 1 and len(meeting) == len(names)):
        return groups
    first = concerned[0]
    rest = [group for group in groups if group not in concerned]
    whole = all(
        len(part.target) == len(group.units) == len(first.units)
        and torch.equal(part.target, part.root)
        and torch.equal(group.units, first.units)
        for group, part in meeting
    )
    if len(meeting) == len(names) and whole:
        parts = tuple(part for group in concerned for part in group.parts)
        reason = next((group.reason for group in concerned if group.reason), "")
        return [*rest, replace(first, parts=parts, reason=reason)]
    reason = f"{' and '.join(names)} are one weight, and do not shrink alike"
    return [*rest, *(group.blocked(reason) for group in concerned)]


def _axis(part: GroupMember) -> int:
    """The axis of a weight that this side of its layer is."""
    if isinstance(part.layer, nn.Embedding):
        return 1
    transposed = isinstance(part.layer, _CONVS) and part.layer.transposed
    return int((part.side == "in") != transposed)
