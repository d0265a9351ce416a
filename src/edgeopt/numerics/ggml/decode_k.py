"""What blocks of 256 values stand for: Q2_K, Q3_K, Q4_K, Q5_K, Q6_K.

Plain numpy. A block's float16 scale times a sub-block's integer scale times a code fits float32's
24 bits exactly, and so does a minimum: only their difference is rounded, once.

Layout of the blocks: ggml's ``block_q*_K`` structs
(https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeopt.numerics.ggml.decode_legacy import decode_blocks, halves

__all__ = ["decode_q2_k", "decode_q3_k", "decode_q4_k", "decode_q5_k", "decode_q6_k"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def decode_q2_k(raw: Bytes, columns: int) -> Floats:
    return decode_blocks("Q2_K", _q2_k, raw, columns)


def decode_q3_k(raw: Bytes, columns: int) -> Floats:
    return decode_blocks("Q3_K", _q3_k, raw, columns)


def decode_q4_k(raw: Bytes, columns: int) -> Floats:
    return decode_blocks("Q4_K", _q4_k, raw, columns)


def decode_q5_k(raw: Bytes, columns: int) -> Floats:
    return decode_blocks("Q5_K", _q5_k, raw, columns)


def decode_q6_k(raw: Bytes, columns: int) -> Floats:
    return decode_blocks("Q6_K", _q6_k, raw, columns)


def _q2_k(blocks: Bytes, values: Floats) -> None:
    """16 bytes of 4-bit scale and minimum; 64 of codes; float16 scale and minimum."""
    n = len(blocks)
    scales = halves(blocks, 80) * (blocks[:, :16] & 15)
    minimums = halves(blocks, 82) * (blocks[:, :16] >> 4)
    # A byte holds four codes that lie 32 apart, for each half of 128.
    packed, out = blocks[:, 16:80].reshape(n, 2, 32), values.reshape(n, 2, 4, 32)
    for k in range(4):
        out[:, :, k] = (packed >> (2 * k)) & 3
    by_scale = values.reshape(n, 16, 16)
    by_scale *= scales[:, :, None]
    by_scale -= minimums[:, :, None]


def _q3_k(blocks: Bytes, values: Floats) -> None:
    """32 bytes of third bits; 64 of low bits; 12 of 6-bit scales; float16 scale."""
    n = len(blocks)
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    scales = np.concatenate([low & 15, low >> 4], axis=1)
    for k in range(4):
        scales[:, 4 * k : 4 * k + 4] |= ((high >> (2 * k)) & 3) << 4
    steps = halves(blocks, 108) * (scales.view(np.int8) - np.int8(32))
    packed, third = blocks[:, 32:96].reshape(n, 2, 32), blocks[:, :32]
    out = values.reshape(n, 2, 4, 32)
    for k in range(8):
        code = (packed[:, k // 4] >> (2 * (k % 4))) & 3
        code |= ((third >> k) & 1) << 2
        out[:, k // 4, k % 4] = code
    # A third bit that is not set takes 4 off.
    values -= np.float32(4)
    by_scale = values.reshape(n, 16, 16)
    by_scale *= steps[:, :, None]


def _scales_and_minimums(blocks: Bytes) -> tuple[Floats, Floats]:
    """Of Q4_K and Q5_K, [blocks, 8, 1]: 6 bits each in 12 bytes, from byte 4 on."""
    first, second, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 63, (rest & 15) | ((first >> 6) << 4)], axis=1)
    minimums = np.concatenate([second & 63, (rest >> 4) | ((second >> 6) << 4)], axis=1)
    scale, minimum = halves(blocks, 0) * scales, halves(blocks, 2) * minimums
    return scale[:, :, None], minimum[:, :, None]


def _q4_k(blocks: Bytes, values: Floats) -> None:
    """float16 scale and minimum; 12 bytes of scales; 128 of nibbles that lie 32 apart."""
    n = len(blocks)
    packed, out = blocks[:, 16:].reshape(n, 4, 32), values.reshape(n, 4, 2, 32)
    out[:, :, 0] = packed & 15
    out[:, :, 1] = packed >> 4
    _scale(blocks, values)


def _q5_k(blocks: Bytes, values: Floats) -> None:
    """As Q4_K, with 32 bytes of fifth bits before the nibbles: bit k belongs to sub-block k."""
    n = len(blocks)
    fifth, packed = blocks[:, 16:48], blocks[:, 48:].reshape(n, 4, 32)
    out = values.reshape(n, 4, 2, 32)
    for k in range(4):
        out[:, k, 0] = (packed[:, k] & 15) | (((fifth >> (2 * k)) & 1) << 4)
        out[:, k, 1] = (packed[:, k] >> 4) | (((fifth >> (2 * k + 1)) & 1) << 4)
    _scale(blocks, values)


def _scale(blocks: Bytes, values: Floats) -> None:
    scale, minimum = _scales_and_minimums(blocks)
    out = values.reshape(len(blocks), 8, 32)
    out *= scale
    out -= minimum


def _q6_k(blocks: Bytes, values: Floats) -> None:
    """128 bytes of nibbles; 64 of upper 2 bits; 16 int8 scales; float16 scale."""
    n = len(blocks)
    nibbles, upper = blocks[:, :128].reshape(n, 2, 2, 32), blocks[:, 128:192].reshape(n, 2, 32)
    out = values.reshape(n, 2, 4, 32)
    for k in range(4):
        # Of each 128: the low nibbles of 64 bytes, then the high ones; upper bits 32 apart.
        nibble = nibbles[:, :, k % 2]
        code = (nibble & 15) if k < 2 else (nibble >> 4)
        out[:, :, k] = code | (((upper >> (2 * k)) & 3) << 4)
    values -= np.float32(32)
    by_scale = values.reshape(n, 16, 16)
    by_scale *= (halves(blocks, 208) * blocks[:, 192:208].view(np.int8))[:, :, None]
