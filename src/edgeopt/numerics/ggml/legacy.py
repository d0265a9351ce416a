"""Q8_0, Q4_0, Q4_1, Q5_0, Q5_1: blocks of 32 values with a float16 scale, or scale and minimum.

Without importance the bytes are those of gguf-py's encoders
(https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/quants.py), which are ggml's own:
the scale follows from the block's extremes. With importance a search finds scale and minimum
(:mod:`edgeopt.numerics.ggml.legacy_search`); Q8_0 has nothing to gain from one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core.ggml import TYPES_BY_NAME
from edgeopt.numerics.ggml import legacy_search
from edgeopt.numerics.ggml.float16 import to_half
from edgeopt.numerics.ggml.jit import inlined, kernel

__all__ = ["encode_q4_0", "encode_q4_1", "encode_q5_0", "encode_q5_1", "encode_q8_0"]

Array = NDArray[Any]

_BLOCK = 32
_SIZE = np.int32(0x7FFFFFFF)
_INF = np.float32(np.inf)
#: The float before 0.5: adding it and cutting off rounds to nearest, halves away from zero, where
#: adding 0.5 would lift 0.49999997 to 1.
_BELOW_HALF = np.float32(0.49999997)


def encode_q8_0(
    rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """ValueError where a block's scale is past float16."""
    coded = _room("Q8_0", rows)
    _check("Q8_0", rows, _q8_0(rows.reshape(-1), coded.reshape(-1), _BLOCK))
    return coded


def encode_q4_0(
    rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """ValueError where a block's scale is past float16."""
    return _encode("Q4_0", _q4_0, legacy_search.q4_0, rows, importance)


def encode_q5_0(
    rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """ValueError where a block's scale is past float16."""
    return _encode("Q5_0", _q5_0, legacy_search.q5_0, rows, importance)


def encode_q4_1(
    rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """ValueError where a block's scale or minimum is past float16."""
    return _encode("Q4_1", _q4_1, legacy_search.q4_1, rows, importance)


def encode_q5_1(
    rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """ValueError where a block's scale or minimum is past float16."""
    return _encode("Q5_1", _q5_1, legacy_search.q5_1, rows, importance)


def _encode(
    name: str,
    direct: Callable[..., int],
    search: Callable[..., int],
    rows: NDArray[np.float32],
    importance: NDArray[np.float32] | None,
) -> NDArray[np.uint8]:
    coded = _room(name, rows)
    if importance is None:
        bad = direct(rows.reshape(-1), coded.reshape(-1), _BLOCK)
    else:
        bad = search(rows, importance, coded)
    _check(name, rows, bad)
    return coded


def _room(name: str, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.empty((len(rows), TYPES_BY_NAME[name].row_bytes(rows.shape[1])), np.uint8)


def _check(name: str, rows: NDArray[np.float32], bad: int) -> None:
    """A kernel gives the number of the first block with a scale past float16, or -1."""
    if bad >= 0:
        block = rows.reshape(-1, _BLOCK)[bad]
        largest = float(block[np.abs(block).argmax()])
        raise ValueError(
            f"a weight of {largest:.6g} needs a {name} scale past float16's 65504; use BF16 or F32"
        )


# ---------------------------------------------------------------------------------------------
# kernels
#
# The block's length is an argument where it could be a constant: loops of a known short length are
# unrolled before the compiler looks for vectors, and never become any. Extremes are found on the
# bits, as integers: that order is the floats' own, and a maximum of floats is no vector operation
# without fast-math.


@inlined
def _extremes(bits: Array, scratch: Array, block: int) -> tuple[Any, Any]:
    least, most = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
    for j in range(block):
        # Two's complement from sign and size: integers in the floats' order.
        key = bits[j] ^ ((bits[j] >> np.int32(31)) & _SIZE)
        least = key if key < least else least
        most = key if key > most else most
    scratch.view(np.int32)[0] = least ^ ((least >> np.int32(31)) & _SIZE)
    smallest = scratch[0]
    scratch.view(np.int32)[0] = most ^ ((most >> np.int32(31)) & _SIZE)
    return smallest, scratch[0]


@kernel
def _q8_0(values: Array, coded: Array, block: int) -> int:
    bits, scratch = values.view(np.int32), np.empty(1, np.float32)
    bad = -1
    for b in range(values.size // block):
        x, xbits = values[b * block : (b + 1) * block], bits[b * block : (b + 1) * block]
        out = coded[b * (block + 2) : (b + 1) * (block + 2)]
        largest = np.int32(0)
        for j in range(block):
            size = xbits[j] & _SIZE
            largest = size if size > largest else largest
        scratch.view(np.int32)[0] = largest
        scale = scratch[0] / np.float32(127)
        inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
        if inverse == _INF:
            inverse = np.float32(0)
        half = to_half(scratch, scale)
        if half & 0x7FFF == 0x7C00 and bad < 0:
            bad = b
        out[0], out[1] = half & 0xFF, half >> 8
        codes = out[2:]
        for j in range(block):
            t = x[j] * inverse
            codes[j] = np.uint8(np.int32(t + (_BELOW_HALF if t >= 0 else -_BELOW_HALF)))
    return bad


@inlined
def _quantize(
    x: Array,
    minimum: np.float32,
    inverse: np.float32,
    offset: np.float32,
    top: int,
    out: Array,
    block: int,
    five: bool,
) -> None:
    """Codes of a block: nibbles, those of both halves side by side, after fifth bits if any."""
    middle = block // 2
    low, upper = x[:middle], x[middle:]
    limit = np.int32(top)
    if five:
        nibbles = out[4:]
        high = np.uint32(0)
        for j in range(middle):
            p = np.int32((low[j] - minimum) * inverse + offset)
            q = np.int32((upper[j] - minimum) * inverse + offset)
            p = p if p < limit else limit
            q = q if q < limit else limit
            nibbles[j] = np.uint8((p & np.int32(15)) | ((q & np.int32(15)) << np.int32(4)))
            both = (p >> np.int32(4)) | ((q >> np.int32(4)) << np.int32(16))
            high |= np.uint32(both) << np.uint32(j)
        for k in range(4):
            out[k] = (high >> np.uint32(8 * k)) & np.uint32(0xFF)
    else:
        for j in range(middle):
            p = np.int32((low[j] - minimum) * inverse + offset)
            q = np.int32((upper[j] - minimum) * inverse + offset)
            p = p if p < limit else limit
            q = q if q < limit else limit
            out[j] = np.uint8(p | (q << np.int32(4)))


@inlined
def _symmetric(values: Array, coded: Array, block: int, middle: int, five: bool) -> int:
    """Codes 0 to ``2 * middle - 1`` around ``middle``; the largest value gets code 0."""
    bits, scratch = values.view(np.int32), np.empty(1, np.float32)
    nbytes = 22 if five else 18
    low, top = np.float32(-middle), 2 * middle - 1
    bad = -1
    for b in range(values.size // block):
        x, xbits = values[b * block : (b + 1) * block], bits[b * block : (b + 1) * block]
        out = coded[b * nbytes : (b + 1) * nbytes]
        least, most = _extremes(xbits, scratch, block)
        largest = most if most > -least else least
        if most == -least:
            # Of two that are as large the first counts.
            for j in range(block):
                if abs(x[j]) == most:
                    largest = x[j]
                    break
        scale = largest / low
        inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
        offset = np.float32(middle) + np.float32(0.5)
        if abs(inverse) == _INF:
            inverse = offset = np.float32(0)
        half = to_half(scratch, scale)
        if half & 0x7FFF == 0x7C00 and bad < 0:
            bad = b
        out[0], out[1] = half & 0xFF, half >> 8
        _quantize(x, np.float32(0), inverse, offset, top, out[2:], block, five)
    return bad


@inlined
def _affine(values: Array, coded: Array, block: int, top: int, five: bool) -> int:
    """Codes 0 to ``top`` from the smallest value to the largest."""
    bits, scratch = values.view(np.int32), np.empty(1, np.float32)
    nbytes = 24 if five else 20
    steps = np.float32(top)
    bad = -1
    for b in range(values.size // block):
        x, xbits = values[b * block : (b + 1) * block], bits[b * block : (b + 1) * block]
        out = coded[b * nbytes : (b + 1) * nbytes]
        minimum, maximum = _extremes(xbits, scratch, block)
        scale = (maximum - minimum) / steps
        if minimum == 0:
            # Of zeros of both signs the first counts, as in ggml.
            for j in range(block):
                if x[j] == 0:
                    minimum = x[j]
                    break
        inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
        if inverse == _INF:
            inverse = np.float32(0)
        half, half_minimum = to_half(scratch, scale), to_half(scratch, minimum)
        if (half & 0x7FFF == 0x7C00 or half_minimum & 0x7FFF == 0x7C00) and bad < 0:
            bad = b
        out[0], out[1] = half & 0xFF, half >> 8
        out[2], out[3] = half_minimum & 0xFF, half_minimum >> 8
        _quantize(x, minimum, inverse, np.float32(0.5), top, out[4:], block, five)
    return bad


# A kernel for each type, not one for all: with a choice inside the loop over blocks, the loops in
# it take twice the time.


@kernel
def _q4_0(values: Array, coded: Array, block: int) -> int:
    return _symmetric(values, coded, block, 8, False)


@kernel
def _q5_0(values: Array, coded: Array, block: int) -> int:
    return _symmetric(values, coded, block, 16, True)


@kernel
def _q4_1(values: Array, coded: Array, block: int) -> int:
    return _affine(values, coded, block, 15, False)


@kernel
def _q5_1(values: Array, coded: Array, block: int) -> int:
    return _affine(values, coded, block, 31, True)
