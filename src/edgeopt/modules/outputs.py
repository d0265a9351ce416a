"""What a model returns, flattened to named tensors in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Flat", "flatten"]


def flatten(value: Any, name: str = "") -> list[tuple[str, Tensor]]:
    """Tensors in ``value`` with their names: dict keys, field names, or ``output_0``, ``output_1``.

    None and everything that is no tensor is dropped. A lone tensor is ``output``.
    """
    if isinstance(value, Tensor):
        return [(name or "output", value)]
    items: list[tuple[str, Any]]
    if isinstance(value, Mapping):
        items = [(f"{name}_{k}" if name else str(k), v) for k, v in value.items()]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        items = [(f"{name}_{k}" if name else k, getattr(value, k)) for k in value._fields]
    elif isinstance(value, (tuple, list)):
        if len(value) == 1 and not name:
            return flatten(value[0])
        items = [(f"{name or 'output'}_{i}", v) for i, v in enumerate(value)]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = [
            (f"{name}_{f.name}" if name else f.name, getattr(value, f.name))
            for f in dataclasses.fields(value)
        ]
    else:
        return []
    return [pair for key, item in items for pair in flatten(item, key)]


class Flat(nn.Module):
    """A module called with positional tensors, that returns a flat tuple of tensors.

    ``names`` are the inner module's argument names, in order; ``fixed`` its constant arguments.
    """

    def __init__(
        self,
        inner: nn.Module,
        names: Sequence[str],
        fixed: Mapping[str, Any] | None = None,
        *,
        positional: bool = False,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.names = tuple(names)
        self.fixed = dict(fixed or {})
        self.positional = positional

    def named(self, *tensors: Tensor) -> list[tuple[str, Tensor]]:
        """Run, and give the outputs with their names; an input's name is never used again."""
        if self.positional:
            value = self.inner(*tensors, **self.fixed)
        else:
            value = self.inner(**dict(zip(self.names, tensors, strict=True)), **self.fixed)
        taken = set(self.names)
        pairs: list[tuple[str, Tensor]] = []
        for name, tensor in flatten(value):
            unique = name
            while unique in taken:
                unique += "_out"
            taken.add(unique)
            pairs.append((unique, tensor))
        return pairs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        # A tensor handed out twice, or handed through, would lose one of its two names.
        seen = {id(t) for t in tensors}
        result: list[Tensor] = []
        for _, tensor in self.named(*tensors):
            result.append(tensor.clone() if id(tensor) in seen else tensor)
            seen.add(id(tensor))
        return tuple(result)

    def names_out(self, *tensors: Tensor) -> tuple[str, ...]:
        with torch.no_grad():
            return tuple(name for name, _ in self.named(*tensors))
