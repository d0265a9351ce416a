"""Every byte on disk answers to exactly one tensor, or to the way the file is written.

Tensors may share storage (tied weights), overlap, or use only part of one. A byte that several
tensors cover is counted once, for the most important of them: a weight before a buffer, both
before averaged copies and optimizer state. What no tensor covers is slack.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgeopt.core import Source, Weight

__all__ = ["ROLES", "Attribution", "attribute"]

#: What a tensor is there for, the most important first.
ROLES = ("weight", "buffer", "ema", "other", "optimizer")


@dataclass(frozen=True)
class Attribution:
    """``own[i]``: bytes that ``tensors[i]`` alone answers for. ``slack``: bytes of storages that
    no tensor uses, by the name of a tensor that keeps the storage alive."""

    tensors: tuple[Weight, ...]
    own: tuple[int, ...]
    slack: dict[str, int]

    @property
    def total(self) -> int:
        """All bytes of all storages."""
        return sum(self.own) + sum(self.slack.values())


def attribute(source: Source) -> Attribution:
    """Share out the bytes of all tensors of ``source``, without reading any."""
    tensors = (*source.weights, *source.extras)
    own = [0] * len(tensors)
    slack: dict[str, int] = {}
    stored: dict[str, list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        if tensor.storage is None:
            own[index] = tensor.nbytes
        else:
            stored[tensor.storage.key].append(index)
    for members in stored.values():
        size = max(s.nbytes for i in members if (s := tensors[i].storage))
        for index, covered in zip(members, _cover([tensors[i] for i in members]), strict=True):
            own[index] = covered
        unused = size - sum(own[i] for i in members)
        if unused > 0:
            slack[tensors[members[0]].name] = unused
    return Attribution(tensors, tuple(own), slack)


def _cover(tensors: Sequence[Weight]) -> list[int]:
    """Bytes for each tensor of one storage: every covered byte goes to one of them."""
    spans = []
    for index, tensor in enumerate(tensors):
        storage = tensor.storage
        assert storage is not None
        end = min(storage.offset + tensor.nbytes, storage.nbytes)
        if end > storage.offset:
            rank = ROLES.index(tensor.role) if tensor.role in ROLES else len(ROLES)
            spans.append((storage.offset, end, rank, index))
    covered = [0] * len(tensors)
    spans.sort()
    edges = sorted({edge for start, end, _, _ in spans for edge in (start, end)})
    active: list[tuple[int, int, int]] = []  # (rank, index, end): the first one gets the byte
    waiting = iter(spans)
    following = next(waiting, None)
    for here, there in pairwise(edges):
        while following is not None and following[0] <= here:
            heapq.heappush(active, (following[2], following[3], following[1]))
            following = next(waiting, None)
        while active and active[0][2] <= here:
            heapq.heappop(active)
        if active:
            covered[active[0][1]] += there - here
    return covered
