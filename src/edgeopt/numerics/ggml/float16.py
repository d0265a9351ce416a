"""float16 inside kernels, by its bits: numba has no such type on a processor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.numerics.ggml.jit import kernel

__all__ = ["from_half", "to_half"]

Array = NDArray[Any]


@kernel
def to_half(scratch: Array, value: np.float32) -> Any:
    """Bits of the nearest float16, ties to even; infinity's past 65504. ``scratch`` float32 [1]."""
    scratch[0] = value
    bits = scratch.view(np.uint32)[0]
    sign = (bits >> np.uint32(16)) & np.uint32(0x8000)
    size = bits & np.uint32(0x7FFFFFFF)
    if size < np.uint32(0x38800000):
        # Below 2**-14 float16 has steps of 2**-24: those of float32 between 0.5 and 1.
        scratch.view(np.uint32)[0] = size
        scratch[0] += np.float32(0.5)
        return np.uint16(sign | (scratch.view(np.uint32)[0] - np.uint32(0x3F000000)))
    if size >= np.uint32(0x477FF000):
        return np.uint16(sign | np.uint32(0x7C00))
    odd = (size >> np.uint32(13)) & np.uint32(1)
    rounded = (size + np.uint32(0xFFF) + odd) >> np.uint32(13)
    return np.uint16(sign | (rounded - np.uint32(0x1C000)))


@kernel
def from_half(scratch: Array, half: np.uint16) -> Any:
    """The float32 of a finite float16's bits. ``scratch`` float32 [1]."""
    sign, size = (np.uint32(half) & np.uint32(0x8000)), np.uint32(half) & np.uint32(0x7FFF)
    if size < np.uint32(0x400):
        scratch.view(np.uint32)[0] = size | np.uint32(0x3F000000)
        value = scratch[0] - np.float32(0.5)
    else:
        scratch.view(np.uint32)[0] = (size << np.uint32(13)) + np.uint32(0x38000000)
        value = scratch[0]
    return -value if sign else value
