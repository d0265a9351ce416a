"""The few ways in which a tensor of a Hugging Face folder differs from GGUF's.

Each takes a weight and gives one whose ``rows`` read no more of the source than they need: row
indices for a permutation, a column slice for a transpose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Weight

__all__ = ["WeightChange", "made", "permuted", "renamed", "shifted", "transposed"]

#: Makes the weight that GGUF wants; the name is set later.
WeightChange: TypeAlias = Callable[[Weight], Weight]


def renamed(weight: Weight, name: str) -> Weight:
    return replace(weight, name=name, role="weight")


def made(name: str, values: NDArray[np.float32]) -> Weight:
    """A small tensor that the folder does not hold: it follows from the configuration."""
    return Weight(name, values.shape, "float32", values.nbytes, lambda lo, hi: values[lo:hi])


def permuted(heads: int) -> WeightChange:
    """Rows of queries or keys, for RoPE on neighbours.

    transformers rotates value ``j`` of a head with value ``j + d/2``; ggml's "normal" rotation
    takes ``2j`` and ``2j + 1``. Works on weights ``[heads * d, columns]`` and biases
    ``[heads * d]``.
    """

    def change(weight: Weight) -> Weight:
        head = weight.shape[0] // heads
        return replace(weight, reader=_Permuted(weight, head), storage=None)

    return change


@dataclass(frozen=True)
class _Permuted:
    weight: Weight
    head: int

    def __call__(self, lo: int, hi: int) -> NDArray[Any]:
        first, last = lo // self.head, -(-hi // self.head)
        # Row r of a head is value r // 2 of its first half (r even) or second half (r odd).
        rows = np.arange(lo, hi) - first * self.head
        head, row = np.divmod(rows, self.head)
        source = head * self.head + row % 2 * (self.head // 2) + row // 2
        taken: NDArray[Any] = self.weight.rows(first * self.head, last * self.head)[source]
        return taken


def transposed(weight: Weight) -> Weight:
    """``[in, out]`` (GPT-2's Conv1D) as ``[out, in]``: a view of the mapped columns, no copy."""
    inputs, outputs = weight.shape

    def rows(lo: int, hi: int) -> NDArray[Any]:
        view: NDArray[Any] = weight.rows(0, inputs)[:, lo:hi].T
        return view

    return replace(weight, shape=(outputs, inputs), reader=rows, storage=None)


def shifted(weight: Weight) -> Weight:
    """Plus one, in float32: Gemma stores its norms' distance from 1."""

    def rows(lo: int, hi: int) -> NDArray[Any]:
        values: NDArray[Any] = weight.rows(lo, hi).astype(np.float32) + np.float32(1)
        return values

    return replace(weight, dtype="float32", nbytes=4 * weight.size, reader=rows, storage=None)
