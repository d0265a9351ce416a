"""What plain values and blocks of 32 stand for: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1.

Plain numpy. A product of a float16 scale and a code of at most 8 bits is exact in float32, so the
result does not depend on how a compiler orders or fuses it.

Layout of the blocks: ggml's ``block_q*`` structs
(https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgeopt.core.ggml import TYPES_BY_NAME

__all__ = [
    "decode_bf16",
    "decode_blocks",
    "decode_f16",
    "decode_f32",
    "decode_q4_0",
    "decode_q4_1",
    "decode_q5_0",
    "decode_q5_1",
    "decode_q8_0",
    "halves",
]

#: Values decoded at a time: what is made on the way stays in a core's cache.
_CHUNK = 1 << 16

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def decode_f32(raw: Bytes, columns: int) -> Floats:
    return np.ascontiguousarray(raw).view("<f4").astype(np.float32)


def decode_f16(raw: Bytes, columns: int) -> Floats:
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def decode_bf16(raw: Bytes, columns: int) -> Floats:
    bits = np.ascontiguousarray(raw).view("<u2").astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def decode_q8_0(raw: Bytes, columns: int) -> Floats:
    return decode_blocks("Q8_0", _q8_0, raw, columns)


def decode_q4_0(raw: Bytes, columns: int) -> Floats:
    return decode_blocks("Q4_0", _q4_0, raw, columns)


def decode_q4_1(raw: Bytes, columns: int) -> Floats:
    return decode_blocks("Q4_1", _q4_1, raw, columns)


def decode_q5_0(raw: Bytes, columns: int) -> Floats:
    return decode_blocks("Q5_0", _q5_0, raw, columns)


def decode_q5_1(raw: Bytes, columns: int) -> Floats:
    return decode_blocks("Q5_1", _q5_1, raw, columns)


def decode_blocks(
    name: str, decoder: Callable[[Bytes, Floats], None], raw: Bytes, columns: int
) -> Floats:
    """Rows ``[n, bytes]`` as ``[n, columns]``, some blocks at a time.

    ``decoder`` fills float32 ``[blocks, values]`` from uint8 ``[blocks, bytes]``.
    """
    stored = TYPES_BY_NAME[name]
    values = np.empty((len(raw), columns), np.float32)
    source, target = raw.reshape(-1, stored.nbytes), values.reshape(-1, stored.block)
    step = _CHUNK // stored.block
    # A damaged file may have infinite scales: what they give is given back without a warning.
    with np.errstate(invalid="ignore", over="ignore"):
        for lo in range(0, len(source), step):
            decoder(source[lo : lo + step], target[lo : lo + step])
    return values


def halves(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte ``at`` of each block, as float32 ``[blocks, 1]``."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _q8_0(blocks: Bytes, values: Floats) -> None:
    np.multiply(blocks[:, 2:].view(np.int8), halves(blocks, 0), out=values)


def _nibbles(packed: Bytes, values: Floats) -> None:
    """Low nibbles are the first 16 codes, high ones the last."""
    values[:, :16] = packed & 15
    values[:, 16:] = packed >> 4


def _fives(high: Bytes, packed: Bytes, values: Floats) -> None:
    """Nibbles with a fifth bit from ``high``, code 0's the lowest of its first byte."""
    # As one string of bits: row by row of 4 bytes takes several times as long.
    bits = np.unpackbits(np.ascontiguousarray(high).reshape(-1), bitorder="little")
    bits <<= 4
    fifth = bits.reshape(-1, 32)
    values[:, :16] = (packed & 15) | fifth[:, :16]
    values[:, 16:] = (packed >> 4) | fifth[:, 16:]


def _q4_0(blocks: Bytes, values: Floats) -> None:
    _nibbles(blocks[:, 2:], values)
    values -= np.float32(8)
    values *= halves(blocks, 0)


def _q4_1(blocks: Bytes, values: Floats) -> None:
    _nibbles(blocks[:, 4:], values)
    values *= halves(blocks, 0)
    values += halves(blocks, 2)


def _q5_0(blocks: Bytes, values: Floats) -> None:
    _fives(blocks[:, 2:6], blocks[:, 6:], values)
    values -= np.float32(16)
    values *= halves(blocks, 0)


def _q5_1(blocks: Bytes, values: Floats) -> None:
    _fives(blocks[:, 4:8], blocks[:, 8:], values)
    values *= halves(blocks, 0)
    values += halves(blocks, 2)
