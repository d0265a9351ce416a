"""Bytes by layer group: names cut to as few rows as say something, repeated blocks as one row."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["TensorGroup", "group"]

_SEPARATOR = re.compile(r"[./]")
_GENERATED = re.compile(r"(?<=[_:])\d+$")  # onnx::MatMul_123

_ITSELF = "(itself)"
_MANY = 4  # numbered siblings: more than this are one row even where they differ in size
_SMALL = 0.005  # of all bytes: siblings under this share one row


@dataclass(frozen=True)
class TensorGroup:
    """Tensors whose names begin alike. ``count``: blocks that a ``*`` in the name stands for."""

    name: str
    count: int
    tensors: int
    nbytes: int


@dataclass
class _NameNode:
    """One name in the tree of names. ``direct``: tensors and bytes that are in no child."""

    nbytes: int = 0
    tensors: int = 0
    direct: tuple[int, int] = (0, 0)
    children: dict[str, _NameNode] = field(default_factory=dict)


@dataclass(frozen=True)
class _GroupRow:
    """A row to show: one layer, or several alike under one name with a ``*``."""

    path: tuple[str, ...]
    layers: tuple[_NameNode, ...]

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)

    @property
    def tensors(self) -> int:
        return sum(layer.tensors for layer in self.layers)

    def opened(self, small: float) -> list[_GroupRow]:
        """The rows below; those with fewer than ``small`` bytes together in the last."""
        found: dict[str, list[_NameNode]] = {}
        for layer in self.layers:
            if layer.direct[0]:
                tensors, nbytes = layer.direct
                found.setdefault(_ITSELF, []).append(_NameNode(nbytes, tensors))
            for name, child in layer.children.items():
                found.setdefault(name, []).append(child)
        numbered = {name: layers for name, layers in found.items() if name.isdigit()}
        if len(numbered) > 1 and _alike(numbered):
            # In the place of the first of them.
            merged: dict[str, list[_NameNode]] = {}
            for name, layers in found.items():
                merged.setdefault("*" if name in numbered else name, []).extend(layers)
            found = merged
        rows = [_GroupRow((*self.path, name), tuple(layers)) for name, layers in found.items()]
        few = [row for row in rows if row.nbytes < small]
        if len(few) < 2 or len(few) == len(rows):
            return rows
        rest = tuple(_NameNode(layer.nbytes, layer.tensors) for row in few for layer in row.layers)
        path = (*self.path, f"({len(few)} small ones)")
        return [row for row in rows if row.nbytes >= small] + [_GroupRow(path, rest)]

    def to_group(self) -> TensorGroup:
        stars = "*" in "".join(self.path) and not self.path[-1].startswith("(")
        below = any(layer.children for layer in self.layers)
        return TensorGroup(
            name=".".join(self.path) + (".*" if below else ""),
            count=len(self.layers) if stars else 1,
            tensors=self.tensors,
            nbytes=self.nbytes,
        )


def _alike(numbered: dict[str, list[_NameNode]]) -> bool:
    sizes = {sum(layer.nbytes for layer in layers) for layers in numbered.values()}
    return len(sizes) == 1 or len(numbered) > _MANY


def group(tensors: Iterable[tuple[str, int]], rows: int = 12) -> tuple[TensorGroup, ...]:
    """``(name, bytes)`` pairs -> about ``rows`` groups, in the order of the file.

    Opens the largest group again and again, while there is room and it is worth it. Numbered
    blocks (``layer.0`` to ``layer.11``) are one row when they are many or equal in size.
    """
    root = _GroupRow((), (_tree(tensors),))
    shown: list[_GroupRow] = [root]
    closed: list[_GroupRow] = []
    while True:
        open_ones = [
            row for row in shown if row not in closed and any(x.children for x in row.layers)
        ]
        if not open_ones:
            break
        largest = max(open_ones, key=lambda row: row.nbytes)
        below = largest.opened(root.nbytes * _SMALL)
        worth = largest is root or len(below) == 1 or largest.nbytes >= root.nbytes / 10
        if not worth or (largest is not root and len(shown) - 1 + len(below) > rows):
            closed.append(largest)
            continue
        at = shown.index(largest)
        shown[at : at + 1] = below
    if len(shown) > 2 * rows:
        shown = _largest(shown, rows)
    return tuple(row.to_group() for row in shown if row.tensors)


def _tree(tensors: Iterable[tuple[str, int]]) -> _NameNode:
    root = _NameNode()
    for name, nbytes in tensors:
        parts = [_GENERATED.sub("*", part) for part in _SEPARATOR.split(name) if part]
        # The last part (weight, bias) is no layer; a name of one part stands for itself.
        layer = root
        for part in ["", *(parts[:-1] or parts)]:
            layer = layer.children.setdefault(part, _NameNode()) if part else layer
            layer.nbytes += nbytes
            layer.tensors += 1
        layer.direct = (layer.direct[0] + 1, layer.direct[1] + nbytes)
    return root


def _largest(shown: Sequence[_GroupRow], rows: int) -> list[_GroupRow]:
    """The largest rows, in their order, and one more for all the others."""
    kept = sorted(shown, key=lambda row: -row.nbytes)[: rows - 1]
    others = [row for row in shown if row not in kept]
    rest = tuple(_NameNode(layer.nbytes, layer.tensors) for row in others for layer in row.layers)
    return [row for row in shown if row in kept] + [_GroupRow(("(others)",), rest)]
