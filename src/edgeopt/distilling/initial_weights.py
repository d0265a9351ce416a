"""A smaller transformer's first weights, taken from the larger one that it comes from.

Whole blocks keep their weights, as in DistilBERT (Sanh et al. 2019, arXiv:1910.01108, section 2);
of narrower matrices, the rows and columns that weigh most, as in weight subcloning (Samragh et al.
2023, arXiv:2312.09299): the same hidden dimensions throughout the network, heads and feed-forward
neurons by block. A student that begins so needs fewer steps than one drawn afresh.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgeopt.distilling.smaller_configuration import Sizes
from edgeopt.training.layer_pairs import projection_of

__all__ = ["Inheritance", "Shapes", "inherit"]

Shapes = Mapping[str, tuple[int, ...]]

#: What attention's output projection is called, by the end of its name.
_OUT = re.compile(r"(\.(o_proj|out_proj|out_lin|wo|o)|attention\.(output\.)?dense|attn\.c_proj)$")

#: The fused projection whose rows go head by head: query, key and value of one, then of the next.
_BY_HEAD = "query_key_value"


@dataclass(frozen=True)
class Inheritance:
    """How a student relates to its teacher.

    ``hidden`` and ``inner`` are shapes that the teacher's parameters would have with only the
    hidden states and heads, or only the feed-forward width, at the student's sizes: what an axis
    stands for is told by which of them differs. ``lists`` are the names of the lists of blocks,
    ``kept`` the teacher's blocks that the student has, in order.
    """

    teacher: Sizes
    student: Sizes
    hidden: Shapes
    inner: Shapes
    lists: tuple[str, ...]
    kept: tuple[int, ...]


@dataclass(frozen=True)
class _ShorterAxis:
    """An axis of a teacher's parameter that gets shorter. ``kind`` is what it stands for: hidden,
    inner, heads, groups (of keys and values), fused (all three, one after the other) or by-head;
    ``block`` whose block it is ('' outside of blocks)."""

    axis: int
    kind: str
    block: str


def inherit(student: nn.Module, teacher: nn.Module, how: Inheritance) -> tuple[str, ...]:
    """Copy into the student what it takes of the teacher's weights, in place.

    Returns the names of its parameters that nothing in the teacher matches, whose values stay.
    """
    given = {n: t.detach() for n, t in teacher.state_dict().items() if t.is_floating_point()}
    axes = {name: _axes(name, tensor, teacher, how) for name, tensor in given.items()}
    indices = _Indices(given, axes, how)
    left: list[str] = []
    with torch.no_grad():
        for name, target in student.state_dict().items():
            if not target.is_floating_point():
                continue
            source = _source(name, how)
            taken = indices.take(source) if source in given else None
            if taken is None or taken.shape != target.shape:
                left.append(name)
            else:
                target.copy_(taken)
    return tuple(left)


def _source(name: str, how: Inheritance) -> str:
    """The teacher's name for a student's parameter: its block's number as it was."""
    for prefix in how.lists:
        found = re.match(rf"({re.escape(prefix)}\.)(\d+)(\..*)$", name)
        if found:
            return f"{found[1]}{how.kept[int(found[2])]}{found[3]}"
    return name


def _block(name: str, how: Inheritance) -> str:
    for prefix in how.lists:
        found = re.match(rf"{re.escape(prefix)}\.\d+(?=\.)", name)
        if found:
            return found[0]
    return ""


def _axes(
    name: str, tensor: Tensor, teacher: nn.Module, how: Inheritance
) -> tuple[_ShorterAxis, ...]:
    if name not in how.hidden or name not in how.inner:
        return ()
    owner, _, _ = name.rpartition(".")
    # transformers' Conv1D has its weight as [inputs, outputs].
    turned = type(teacher.get_submodule(owner)).__name__ == "Conv1D" and tensor.ndim == 2
    found: list[_ShorterAxis] = []
    for axis, size in enumerate(tensor.shape):
        gives = axis == (1 if turned else 0)
        if how.inner[name][axis] != size:
            kind = "inner"
        elif how.hidden[name][axis] != size:
            kind = _kind(owner, gives, how.teacher)
        else:
            continue
        found.append(_ShorterAxis(axis, kind, _block(name, how)))
    return tuple(found)


def _kind(owner: str, gives: bool, sizes: Sizes) -> str:
    """What the hidden states' axis of a parameter stands for; ``gives``: its outputs."""
    role = projection_of(owner) if gives else None
    if role == "fused":
        return "by-head" if owner.endswith(_BY_HEAD) else "fused"
    if role is not None:
        return "heads" if role == "query" else "groups"
    return "heads" if not gives and _OUT.search(owner) else "hidden"


class _Indices:
    """Which places along each kind of axis are kept: those of most weight."""

    def __init__(
        self,
        given: Mapping[str, Tensor],
        axes: Mapping[str, tuple[_ShorterAxis, ...]],
        how: Inheritance,
    ) -> None:
        self.given, self.axes, self.how = given, axes, how
        self.weights: dict[tuple[str, str], Tensor] = {}
        for name, found in axes.items():
            for axis in found:
                self._weigh(given[name], axis)
        self.found = {key: self._choose(*key) for key in self.weights}

    def take(self, name: str) -> Tensor | None:
        """What is kept of a teacher's tensor; None where an axis is of no known size."""
        tensor = self.given[name]
        for axis in self.axes[name]:
            index = self._index(axis, tensor.shape[axis.axis])
            if index is None:
                return None
            tensor = tensor.index_select(axis.axis, index.to(tensor.device))
        return tensor

    def _weigh(self, tensor: Tensor, axis: _ShorterAxis) -> None:
        """Add the squared weights along an axis to its kind's; each tensor has an equal vote."""
        energy = tensor.movedim(axis.axis, 0).reshape(tensor.shape[axis.axis], -1).square().sum(1)
        energy = energy.cpu().double() / max(float(energy.mean()), 1e-30)
        for key, part in self._parts(axis, energy):
            self.weights[key] = self.weights[key] + part if key in self.weights else part

    def _parts(self, axis: _ShorterAxis, energy: Tensor) -> list[tuple[tuple[str, str], Tensor]]:
        sizes, block = self.how.teacher, axis.block
        queries, keys = sizes.heads * sizes.head, sizes.groups * sizes.head
        size = len(energy)
        if axis.kind == "hidden" and size == sizes.hidden:
            return [(("hidden", ""), energy)]
        if axis.kind == "inner" and sizes.inner is not None and size % sizes.inner == 0:
            return [(("inner", block), energy.unflatten(0, (-1, sizes.inner)).sum(0))]
        if axis.kind == "by-head" and size == 3 * queries:
            return [(("heads", block), energy.unflatten(0, (sizes.heads, -1)).sum(1))]
        known = {"heads": [queries], "groups": [keys], "fused": [queries, keys, keys]}
        pieces = known.get(axis.kind, [])
        if size != sum(pieces):
            return []
        roles = ["heads", "groups", "groups"] if axis.kind == "fused" else [axis.kind]
        return [
            ((role, block), part.unflatten(0, (-1, sizes.head)).sum(1))
            for role, part in zip(roles, energy.split(pieces), strict=True)
        ]

    def _choose(self, kind: str, block: str) -> Tensor:
        teacher, student = self.how.teacher, self.how.student
        weight = self.weights[kind, block]
        if kind == "hidden":
            return _most(weight, student.hidden)
        if kind == "inner":
            return _most(weight, student.inner or 0)
        heads = self.weights.get(("heads", block), torch.zeros(teacher.heads, dtype=torch.float64))
        shared = heads.unflatten(0, (teacher.groups, -1))
        own = self.weights.get(("groups", block), torch.zeros(teacher.groups, dtype=torch.float64))
        groups = _most(shared.sum(1) + own, student.groups)
        if kind == "groups":
            return groups
        share, kept = shared.shape[1], student.heads // student.groups
        return torch.cat([g * share + _most(shared[g], kept) for g in groups.tolist()])

    def _index(self, axis: _ShorterAxis, size: int) -> Tensor | None:
        sizes, block = self.how.teacher, axis.block
        if not self._parts(axis, torch.zeros(size)):
            return None
        if axis.kind == "hidden":
            return self.found["hidden", ""]
        if axis.kind == "inner":
            starts = range(0, size, sizes.inner or size)  # gate and up in one
            return torch.cat([self.found["inner", block] + start for start in starts])
        if axis.kind == "by-head":
            return _spread(self.found["heads", block], 3 * sizes.head)
        if axis.kind == "fused":
            queries, keys = sizes.heads * sizes.head, sizes.groups * sizes.head
            kept = _spread(self.found["groups", block], sizes.head)
            heads = _spread(self.found["heads", block], sizes.head)
            return torch.cat([heads, queries + kept, queries + keys + kept])
        return _spread(self.found[axis.kind, block], sizes.head)


def _most(weight: Tensor, count: int) -> Tensor:
    """Places of the largest ``count``, in order; of equals the first."""
    return torch.sort(weight, descending=True, stable=True).indices[:count].sort().values


def _spread(units: Tensor, size: int) -> Tensor:
    """Units of ``size`` places each, as places."""
    return (units[:, None] * size + torch.arange(size)).flatten()
