"""How numbers are stored: sizes without data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeopt.core.dtypes import DTYPE_BITS, tensor_nbytes

__all__ = ["Affine", "Codes", "Scheme", "Sparse"]


class Scheme(Protocol):
    """How numbers are stored: sizes without data."""

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes that a tensor of this shape takes: codes, scales and zero points."""
        ...

    def accepts(self, shape: Sequence[int]) -> str | None:
        """None when the shape can be stored so, else the reason why not, in a few words."""
        ...

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Affine:
    """``w ~ (q - zero) * scale`` with one scale per block (or per channel, or per tensor).

    ``axis`` is the tensor's reduction axis, along which blocks run; every other axis is kept
    apart (each row its own scales). ``block`` is the number of elements that share a scale along
    that axis: None means the whole axis (per channel), -1 the whole tensor. ``symmetric`` schemes
    store no zero point. ``scale`` is the dtype scales are stored in; zero points are stored as
    unsigned codes of ``bits``.
    """

    bits: int
    block: int | None = None
    symmetric: bool = True
    axis: int = -1
    scale: str = "float32"

    def blocks(self, shape: Sequence[int]) -> tuple[int, int]:
        """(rows, blocks per row) for a tensor of this shape."""
        if self.block == -1:
            return 1, 1
        columns = shape[self.axis] if shape else 1
        rows = math.prod(shape) // columns if columns else 0
        if self.block is None:
            return rows, 1
        return rows, -(-columns // self.block)

    def nbytes(self, shape: Sequence[int]) -> int:
        rows, per_row = self.blocks(shape)
        codes = (math.prod(shape) * self.bits + 7) // 8
        scales = rows * per_row * DTYPE_BITS[self.scale] // 8
        zeros = 0 if self.symmetric else (rows * per_row * self.bits + 7) // 8
        return codes + scales + zeros

    def accepts(self, shape: Sequence[int]) -> str | None:
        if math.prod(shape) == 0:
            return "no elements"
        return None

    def to_json(self) -> dict[str, Any]:
        return {"type": "affine", **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Affine:
        return cls(**{f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data})


@dataclass(frozen=True)
class Sparse:
    """The values that are not zero, and a mask of one bit an element that says where they are.

    Nothing is lost: ``nonzero`` counts the elements of which any bit is set, so that -0.0 is a
    value. The mask is the same for patterns (2:4, 4:8): six ways to keep two of four would fit
    into 3 bits in place of the mask's 4, which is under 2% of a float32 tensor at half its values,
    and would hold nothing but that pattern.
    """

    nonzero: int
    dtype: str = "float32"

    def nbytes(self, shape: Sequence[int]) -> int:
        """Bytes of the mask (``ceil(elements / 8)``) and of the values."""
        return self.mask_nbytes(shape) + tensor_nbytes((self.nonzero,), self.dtype)

    @staticmethod
    def mask_nbytes(shape: Sequence[int]) -> int:
        return (math.prod(shape) + 7) // 8

    def accepts(self, shape: Sequence[int]) -> str | None:
        """None where it takes fewer bytes than the tensor stored densely."""
        size = math.prod(shape)
        if size == 0:
            return "no elements"
        if DTYPE_BITS[self.dtype] % 8:
            return f"{self.dtype} has no whole bytes"
        dense, stored = tensor_nbytes(shape, self.dtype), self.nbytes(shape)
        if stored >= dense:
            zeros = size - self.nonzero
            return f"{zeros} of {size} values are zero: {stored} bytes sparse, {dense} as it is"
        return None

    def to_json(self) -> dict[str, Any]:
        return {"type": "sparse", **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sparse:
        return cls(**{f.name: data[f.name] for f in dataclasses.fields(cls) if f.name in data})


@dataclass(frozen=True)
class Codes:
    """What an affine method returns for a matrix ``[rows, columns]``, blocks along the columns.

    ``q``: integer codes, int8 when symmetric (``-2**(bits-1) .. 2**(bits-1)-1``), uint8 otherwise
    (``0 .. 2**bits-1``), shape ``[rows, columns]``. ``scale``: float32, ``[rows, blocks]``.
    ``zero``: uint8 ``[rows, blocks]``, or None when symmetric.
    """

    q: NDArray[np.int8] | NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero: NDArray[np.uint8] | None = None
