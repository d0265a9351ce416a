"""Types that are stored value by value: F32, F16, BF16. Rounds to nearest, ties to even."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["encode_bf16", "encode_f16", "encode_f32"]


def _bytes(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values).view(np.uint8)


def encode_f32(
    rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    return _bytes(rows.astype("<f4", copy=False))


def encode_f16(
    rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """ValueError where a value is too large for float16."""
    with np.errstate(over="ignore"):
        halves = rows.astype("<f2")
    if rows.size and not np.isfinite(halves).all():
        largest = float(np.abs(rows).max())
        raise ValueError(f"a weight of {largest:.6g} is past float16's 65504; use BF16 or F32")
    return _bytes(halves)


def encode_bf16(
    rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    bits = rows.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return _bytes(rounded.astype("<u2"))
