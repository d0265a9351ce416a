"""Rows of float32, float16 or bfloat16 as float32, and whether all of them are finite, in one pass.

numpy converts float16 one value at a time: that alone would take longer than most block types.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from edgeopt.numerics.ggml.jit import kernel

__all__ = ["widen"]

Array = NDArray[Any]

#: Values at a time that stay in the nearest cache.
_TILE = 2048
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_SIZE = np.int32(0x7FFFFFFF)


def widen(rows: Array) -> tuple[NDArray[np.float32], bool]:
    """``rows`` as contiguous float32 (themselves, where they are), and whether all are finite."""
    if rows.dtype not in (np.float16, _BFLOAT16):
        floats = np.ascontiguousarray(rows, np.float32)
        return floats, bool(_largest(floats.reshape(-1)) < 0x7F800000)
    floats = np.empty(rows.shape, np.float32)
    bits = np.ascontiguousarray(rows).view(np.uint16).reshape(-1)
    convert = _from_float16 if rows.dtype == np.float16 else _from_bfloat16
    return floats, bool(convert(bits, floats.reshape(-1)))


@kernel
def _largest(values: Array) -> int:
    """The largest size, as bits: floats without their sign are ordered as integers."""
    bits = values.view(np.int32)
    largest = np.int32(0)
    for i in range(bits.size):
        size = bits[i] & _SIZE
        largest = size if size > largest else largest
    return int(largest)


@kernel
def _from_bfloat16(bits: Array, values: Array) -> bool:
    wide = values.view(np.int32)
    largest = np.int32(0)
    for i in range(bits.size):
        wide[i] = np.int32(np.uint32(bits[i]) << np.uint32(16))
        size = np.int32(bits[i]) & np.int32(0x7FFF)
        largest = size if size > largest else largest
    return bool(largest < 0x7F80)


@kernel
def _from_float16(bits: Array, values: Array) -> bool:
    wide = values.view(np.int32)
    largest = np.int32(0)
    for lo in range(0, bits.size, _TILE):
        half, whole, value = bits[lo : lo + _TILE], wide[lo : lo + _TILE], values[lo : lo + _TILE]
        for i in range(half.size):
            size = np.int32(half[i]) & np.int32(0x7FFF)
            largest = size if size > largest else largest
            # A subnormal counts steps of 2**-24, which are float32's between 0.5 and 1: with that
            # exponent set, and 0.5 taken off, it is itself.
            small = size | np.int32(0x3F000000)
            normal = (size << np.int32(13)) + np.int32(0x38000000)
            whole[i] = small if size < np.int32(0x400) else normal
        for i in range(half.size):
            size = np.int32(half[i]) & np.int32(0x7FFF)
            value[i] -= np.float32(0.5) if size < np.int32(0x400) else np.float32(0)
        for i in range(half.size):
            whole[i] |= (np.int32(half[i]) & np.int32(0x8000)) << np.int32(16)
    return bool(largest < 0x7C00)
