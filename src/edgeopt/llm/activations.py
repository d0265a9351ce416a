"""What flows into a torch model's matrix products, summed up by input column."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeopt.errors import SourceError
from edgeopt.files.imatrix import ImatrixEntry

__all__ = ["LEAST_ROWS", "SquareSums", "products"]

#: Batches of fewer inputs are left out, as llama.cpp does: they are no part of reading a text.
LEAST_ROWS = 16


def products(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that multiply their input by a weight matrix, by name: ``nn.Linear``, and
    transformers' ``Conv1D``, which stores the matrix the other way round."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            yield name, module


class SquareSums:
    """Sums of squares of every input column of the products it is told to watch.

    Memory: a float64 for every input column, whatever is run.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    @contextmanager
    def watching(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """Add up whatever flows into ``modules`` (by the name to store it under) meanwhile."""
        handles = [m.register_forward_pre_hook(self._hook(name)) for name, m in modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            del module
            rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
            if len(rows) < LEAST_ROWS:
                return
            sums = rows.float().square().sum(0, dtype=torch.float64)
            self._sums[name] = self._sums[name] + sums if name in self._sums else sums
            self._counts[name] = self._counts.get(name, 0) + len(rows)

        return add

    def entries(self) -> dict[str, ImatrixEntry]:
        """What was summed so far. SourceError where a sum is infinite or no number."""
        found = {}
        for name, sums in self._sums.items():
            values = sums.cpu().numpy().astype(np.float32)
            if not np.isfinite(values).all():
                raise SourceError(
                    f"the inputs of {name!r} are infinite or no numbers on this text: the model "
                    "overflows, so nothing can be learnt from it"
                )
            found[name] = ImatrixEntry(values, np.array([self._counts[name]]))
        return found
