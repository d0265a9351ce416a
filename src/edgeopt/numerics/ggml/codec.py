"""The tables of encoders and decoders, and the two functions that everybody calls.

Encoders need numba (the ``gguf`` extra) and are imported where one is first used; decoders are
plain numpy.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core.ggml import TYPES_BY_NAME
from edgeopt.errors import MissingExtraError

__all__ = ["decode", "decodes", "encode", "encodes"]

_NOT_FINITE = "weights hold NaN or Inf"
#: Values turned to float32 at a time: they stay in a core's cache until they are coded.
_SLICE = 1 << 17

#: type -> module that has ``encode_TYPE(rows, importance)``, the type in lower case. ``rows`` are
#: finite float32, contiguous; ``importance`` contiguous float32 or None.
_ENCODERS: Mapping[str, str] = {
    "F32": "plain",
    "F16": "plain",
    "BF16": "plain",
    "Q8_0": "legacy",
    "Q4_0": "legacy",
    "Q4_1": "legacy",
    "Q5_0": "legacy",
    "Q5_1": "legacy",
    "Q2_K": "kquants_min",
    "Q4_K": "kquants_min",
    "Q5_K": "kquants_min",
    "Q3_K": "kquants_symmetric",
    "Q6_K": "kquants_symmetric",
}

#: type -> module that has ``decode_TYPE(raw, columns)``.
_DECODERS: Mapping[str, str] = {
    "F32": "decode_legacy",
    "F16": "decode_legacy",
    "BF16": "decode_legacy",
    "Q8_0": "decode_legacy",
    "Q4_0": "decode_legacy",
    "Q4_1": "decode_legacy",
    "Q5_0": "decode_legacy",
    "Q5_1": "decode_legacy",
    "Q2_K": "decode_k",
    "Q3_K": "decode_k",
    "Q4_K": "decode_k",
    "Q5_K": "decode_k",
    "Q6_K": "decode_k",
}


def encodes() -> tuple[str, ...]:
    """The types that :func:`encode` knows."""
    return tuple(_ENCODERS)


def decodes() -> tuple[str, ...]:
    """The types that :func:`decode` knows."""
    return tuple(_DECODERS)


def encode(
    type_name: str, rows: NDArray[Any], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Rows of floats as blocks of bytes.

    Args:
        type_name: ggml's name, ``Q4_K``.
        rows: ``[n, columns]`` of float32, float16 or bfloat16; columns a multiple of the block.
        importance: float32 ``[columns]``, not negative: the weight of each column's squared error
            (an importance matrix's mean square of the column's input); None: the type's own rule.

    Returns:
        uint8 ``[n, bytes per row]``, the same for any split of the rows.

    Raises:
        ValueError: a value is NaN or infinite, or columns do not fill whole blocks.
        MissingExtraError: numba is not installed.
    """
    columns = rows.shape[-1]
    _check_columns(type_name, columns)
    if importance is not None and importance.shape != (columns,):
        raise ValueError(f"{importance.shape[0]} values of importance for {columns} columns")
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
        if not (np.isfinite(importance) & (importance >= 0)).all():
            raise ValueError("importance holds NaN, Inf or a negative value; make it anew")
    module = _ENCODERS[type_name]
    if module == "plain":
        return _encoder(module, type_name)(_finite(rows), importance)
    try:
        widen = importlib.import_module("edgeopt.numerics.ggml.widen").widen
        encoder = _encoder(module, type_name)
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        raise MissingExtraError("numba", "gguf", f"quantizing to {type_name}") from error
    coded = np.empty((len(rows), TYPES_BY_NAME[type_name].row_bytes(columns)), np.uint8)
    step = max(1, _SLICE // max(1, columns))
    for lo in range(0, len(rows), step):
        floats, finite = widen(rows[lo : lo + step])
        if not finite:
            raise ValueError(_NOT_FINITE)
        coded[lo : lo + step] = encoder(floats, importance)
    return coded


def _encoder(module: str, type_name: str) -> Callable[..., NDArray[np.uint8]]:
    """The function of a type; its family's module is imported here, and numba with it."""
    found = importlib.import_module(f"edgeopt.numerics.ggml.{module}")
    encoder: Callable[..., NDArray[np.uint8]] = getattr(found, f"encode_{type_name.lower()}")
    return encoder


def _finite(rows: NDArray[Any]) -> NDArray[np.float32]:
    floats: NDArray[np.float32] = np.ascontiguousarray(rows, np.float32)
    # One pass where all is well: a sum is finite only if its terms are (in double precision
    # finite float32 cannot overflow it).
    if not np.isfinite(floats.sum(dtype=np.float64)):
        raise ValueError(_NOT_FINITE)
    return floats


def decode(type_name: str, raw: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
    """What blocks of bytes stand for.

    Args:
        type_name: ggml's name, ``Q4_K``.
        raw: uint8 ``[n, bytes per row]``.
        columns: values in a row.

    Returns:
        float32 ``[n, columns]``, bit for bit what ggml's own ``dequantize_row_*`` gives.

    Raises:
        ValueError: columns do not fill whole blocks, or ``raw`` has another width than they take.
    """
    _check_columns(type_name, columns)
    expected = TYPES_BY_NAME[type_name].row_bytes(columns)
    if raw.ndim != 2 or raw.shape[1] != expected:
        raise ValueError(f"rows of {raw.shape[1:]} bytes, {columns} {type_name} take {expected}")
    module = importlib.import_module(f"edgeopt.numerics.ggml.{_DECODERS[type_name]}")
    decoder = getattr(module, f"decode_{type_name.lower()}")
    values: NDArray[np.float32] = decoder(raw, columns)
    return values


def _check_columns(type_name: str, columns: int) -> None:
    block = TYPES_BY_NAME[type_name].block
    if columns % block:
        raise ValueError(f"{columns} columns are no whole number of {type_name} blocks of {block}")
