"""ggml itself, through llama-cpp-python's shared library: the oracle of every block type."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core.ggml import TYPE_NUMBERS, TYPES_BY_NAME


@cache
def library() -> Any:
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    base = ctypes.CDLL(str(folder / "libggml-base.so"))
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    base.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return base


def encode(
    name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """What ggml makes of rows ``[n, columns]``: uint8 ``[n, bytes per row]``."""
    rows = np.ascontiguousarray(rows, np.float32)
    n, columns = rows.shape
    out = np.zeros((n, TYPES_BY_NAME[name].row_bytes(columns)), np.uint8)
    weights = None
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
        weights = importance.ctypes.data
    written = library().ggml_quantize_chunk(
        TYPE_NUMBERS[name], rows.ctypes.data, out.ctypes.data, 0, n, columns, weights
    )
    assert written == out.nbytes
    return out


def decode(name: str, raw: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
    """What ggml's ``dequantize_row_*`` gives for uint8 ``[n, bytes per row]``."""
    raw = np.ascontiguousarray(raw)
    out = np.empty((len(raw), columns), np.float32)
    function = getattr(library(), f"dequantize_row_{name.lower().replace('_k', '_K')}")
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    for source, target in zip(raw, out, strict=True):
        function(source.ctypes.data, target.ctypes.data, columns)
    return out
