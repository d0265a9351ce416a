"""Names of dtypes, their bits, and the few aliases that every signature uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from numpy.typing import NDArray

__all__ = ["DTYPE_BITS", "FLOAT_DTYPES", "Array", "Progress", "format_bytes", "tensor_nbytes"]

Array: TypeAlias = NDArray[Any]

#: Called with a step's name and, where it is known, how far along it is (0 to 1).
Progress: TypeAlias = Callable[[str, float | None], None]

#: Bits per element of every plain dtype that a file can hold (GGUF block types are not plain).
DTYPE_BITS: Mapping[str, int] = {
    "float64": 64,
    "float32": 32,
    "float16": 16,
    "bfloat16": 16,
    "float8_e4m3fn": 8,
    "float8_e4m3fnuz": 8,
    "float8_e5m2": 8,
    "float8_e5m2fnuz": 8,
    "float8_e8m0fnu": 8,
    "float6_e2m3fn": 6,
    "float6_e3m2fn": 6,
    "float4_e2m1fn": 4,
    "complex64": 64,
    "complex128": 128,
    "int64": 64,
    "int32": 32,
    "int16": 16,
    "int8": 8,
    "int4": 4,
    "int2": 2,
    "uint64": 64,
    "uint32": 32,
    "uint16": 16,
    "uint8": 8,
    "uint4": 4,
    "uint2": 2,
    "bool": 8,
}

FLOAT_DTYPES = frozenset({"float64", "float32", "float16", "bfloat16"})


def tensor_nbytes(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a tensor of plain ``dtype`` stored densely; sub-byte types round up to a byte."""
    return (math.prod(shape) * DTYPE_BITS[dtype] + 7) // 8


def format_bytes(n: float) -> str:
    """Bytes for a person, in powers of 1000, as file managers and published sizes count them."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(n) < 999.5 or unit == "TB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.3g} {unit}"
        n /= 1000
    raise AssertionError("unreachable")
