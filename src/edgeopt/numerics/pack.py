"""Codes as bytes, in the layouts that ONNX and ONNX Runtime's contrib operators read.

Two 4-bit codes share a byte, the first in the low half (ONNX IR, "int4 and uint4").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Codes

__all__ = [
    "PackedCodes",
    "gather_block_quantized",
    "matmul_nbits",
    "pack_flat",
    "pack_rows",
    "unpack_flat",
    "unpack_rows",
    "unsigned",
]

Bytes = NDArray[np.uint8]

_BLOCKS_OF_CODES = (4, 8)


@dataclass(frozen=True)
class PackedCodes:
    """The initializers of one operator: packed codes, float32 scales, packed zero points.

    ``zeros`` None means the operator's default, ``2**(bits-1)``, which is what symmetric codes
    mean once stored unsigned.
    """

    data: Bytes
    scales: NDArray[np.float32]
    zeros: Bytes | None


def pack_flat(q: NDArray[Any]) -> Bytes:
    """4-bit codes of any shape as ONNX stores an int4 or uint4 tensor: flattened, then paired.

    An odd count is padded with a zero half byte. Returns uint8 ``[ceil(size / 2)]``.
    """
    return pack_rows(q.reshape(1, -1), 4).reshape(-1)


def unpack_flat(packed: Bytes, count: int, *, signed: bool) -> NDArray[Any]:
    """The first ``count`` codes of :func:`pack_flat`: int8 where ``signed``, else uint8."""
    return unpack_rows(packed.reshape(1, -1), count, 4, signed=signed).reshape(-1)


def pack_rows(q: NDArray[Any], bits: int) -> Bytes:
    """Codes ``[rows, columns]`` (int8 or uint8) as uint8 ``[rows, ceil(columns * bits / 8)]``.

    Each row begins on a byte of its own. Signed codes keep their two's complement bits.
    """
    _check_bits(bits)
    columns = q.shape[1]
    codes: Bytes = np.ascontiguousarray(q).view(np.uint8)
    if bits == 8:
        return codes
    packed: Bytes = codes[:, 0::2] & np.uint8(0x0F)
    packed[:, : columns // 2] |= codes[:, 1::2] << np.uint8(4)
    return packed


def unpack_rows(packed: Bytes, columns: int, bits: int, *, signed: bool) -> NDArray[Any]:
    """The codes of :func:`pack_rows`, ``[rows, columns]``: int8 where ``signed``, else uint8."""
    _check_bits(bits)
    if packed.shape[1] != (columns * bits + 7) // 8:
        raise ValueError(
            f"{packed.shape[1]} bytes a row, {columns} codes of {bits} bits take "
            f"{(columns * bits + 7) // 8}"
        )
    if bits == 8:
        return packed.view(np.int8) if signed else packed
    codes: NDArray[Any] = np.empty((packed.shape[0], columns), np.uint8)
    codes[:, 0::2] = packed & np.uint8(0x0F)
    codes[:, 1::2] = packed[:, : columns // 2] >> np.uint8(4)
    if signed:
        # Sign extension of four bits: flip the sign bit, take its weight away again.
        codes = ((codes ^ np.uint8(8)) - np.uint8(8)).view(np.int8)
    return codes


def unsigned(codes: Codes, bits: int) -> Bytes:
    """The codes as operators without signed types store them: symmetric ones moved up to
    ``0 .. 2**bits - 1`` around ``2**(bits-1)``, asymmetric ones as they are."""
    q: Bytes = codes.q.view(np.uint8)
    return q + np.uint8(2 ** (bits - 1)) if codes.zero is None else q


def matmul_nbits(codes: Codes, *, bits: int, block: int) -> PackedCodes:
    """``com.microsoft.MatMulNBits``: ``y = x @ w.T`` for ``w`` ``[N, K]``, blocks along K.

    Returns data uint8 ``[N, blocks, block * bits / 8]``, scales float32 ``[N, blocks]``, zeros
    uint8 ``[N, ceil(blocks * bits / 8)]`` or None. A short last block is filled with its zero
    point. The operator wants a power of two from 16 to 256 as ``block``, and 4 or 8 as ``bits``.
    """
    q = unsigned(codes, bits)
    rows, columns = q.shape
    blocks = codes.scale.shape[1]
    missing = blocks * block - columns
    if missing:
        filling = np.empty((rows, missing), np.uint8)
        filling[:] = 2 ** (bits - 1) if codes.zero is None else codes.zero[:, -1:]
        q = np.concatenate([q, filling], axis=1)
    data = pack_rows(q, bits).reshape(rows, blocks, block * bits // 8)
    return PackedCodes(data, codes.scale, _zeros(codes, bits))


def gather_block_quantized(codes: Codes, *, bits: int) -> PackedCodes:
    """``com.microsoft.GatherBlockQuantized`` over uint8 with its ``bits`` attribute.

    For ``w`` ``[rows, columns]`` with ``gather_axis`` 0 and ``quantize_axis`` 1: data uint8
    ``[rows, columns * bits / 8]``, scales float32 ``[rows, blocks]``, zeros uint8
    ``[rows, ceil(blocks * bits / 8)]`` or None. Raises ValueError where a row does not fill its
    last byte: the operator has no way to say how long it is.
    """
    columns = codes.q.shape[1]
    if columns * bits % 8:
        raise ValueError(f"rows of {columns} codes of {bits} bits do not fill whole bytes")
    return PackedCodes(pack_rows(unsigned(codes, bits), bits), codes.scale, _zeros(codes, bits))


def _zeros(codes: Codes, bits: int) -> Bytes | None:
    return None if codes.zero is None else pack_rows(codes.zero, bits)


def _check_bits(bits: int) -> None:
    if bits not in _BLOCKS_OF_CODES:
        raise ValueError(f"{bits} bits a code, packing knows 4 and 8")
