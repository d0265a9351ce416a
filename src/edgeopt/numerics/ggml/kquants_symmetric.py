"""Q6_K and Q3_K: signed scales, no minimums, in super-blocks of 256 values.

A value is ``d * s * q``: ``d`` a float16 of the super-block, ``s`` a signed integer of its
sub-block of 16, ``q`` a signed code. Layouts from ggml's ``block_q6_K`` and ``block_q3_K``
(https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h).

The weight of a value's squared error blends the plain error with ggml's own rule for the type, each
relative to its mean, so that neither is bought with the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeopt.core.ggml import TYPES_BY_NAME
from edgeopt.numerics.ggml.jit import inlined, kernel
from edgeopt.numerics.ggml.symmetric_search import Floats, Range, half_bits, search_block

__all__ = ["encode_q3_k", "encode_q6_k"]

_Bytes = NDArray[np.uint8]

_F32 = np.float32
_ZERO = np.float32(0)
_ONE = np.float32(1)
_TWO = np.float32(2)
_HALF_MAX = 65504
#: No code of a nonzero scale stands for less than float16's smallest step; under half of it all
#: are 0.
_SMALLEST = np.float32(2.0**-25)
_ROUND = np.float32(12582912.0)
#: Super-blocks whose codes are held before they are packed: they stay in the cache.
_CHUNK = 512
#: How much more the plain error may count where importance is uneven.
_MOST_PLAIN = 1.9


@dataclass(frozen=True)
class _Type:
    """Numbers of a type, and how it is searched.

    ``codes`` and ``subs`` are the magnitudes of the lowest code and ``s``. ``windows`` (without
    importance, and with it) and ``grids``: see :func:`search_block`.

    ``blend`` makes the weight of a value ``x`` from ``r = x^2 / mean(x^2)`` of its super-block:
    ``1 + blend[0] r``, and with an importance ``i``, relative to the mean of all columns,
    ``i (blend[1] + blend[2] sqrt(2 + r)) + blend[3]``. ggml's own weights are ``x^2`` without
    importance; with it ``i`` for Q6_K and ``i sqrt(2 mean(x^2) + x^2)`` for Q3_K.
    """

    name: str
    codes: int
    subs: int
    windows: Floats
    weighted_windows: Floats
    grids: Floats
    blend: Floats
    pack: Callable[[NDArray[np.uint16], NDArray[np.int8], _Bytes, _Bytes], None]

    @property
    def limit(self) -> int:
        """The largest magnitude that a code can stand for."""
        return _HALF_MAX * self.subs * self.codes


def _windows(below: list[float], above: list[float]) -> Floats:
    return np.array([-code for code in below] + above, np.float32)


def _grids(lowest: int, spread: float) -> Floats:
    """Four ``s`` from the lowest one up, within ``spread`` of it."""
    return (-lowest / np.linspace(1, spread, 4)).astype(np.float32)


@kernel
def _pack_q6_k(
    halves: NDArray[np.uint16], subs: NDArray[np.int8], codes: _Bytes, out: _Bytes
) -> None:
    """Low 4 bits of the codes, high 2 bits, sub-scales, scale."""
    for k in range(len(out)):
        for h in range(2):
            for i in range(32):
                c0 = codes[k, h * 128 + i]
                c1 = codes[k, h * 128 + 32 + i]
                c2 = codes[k, h * 128 + 64 + i]
                c3 = codes[k, h * 128 + 96 + i]
                out[k, h * 64 + i] = np.uint8((c0 & 15) | (c2 << 4))
                out[k, h * 64 + 32 + i] = np.uint8((c1 & 15) | (c3 << 4))
                high = (c0 >> 4) | (c1 >> 4 << 2) | (c2 >> 4 << 4) | (c3 >> 4 << 6)
                out[k, 128 + h * 32 + i] = np.uint8(high)
        for j in range(16):
            out[k, 192 + j] = np.uint8(subs[k, j])
        out[k, 208] = np.uint8(halves[k])
        out[k, 209] = np.uint8(halves[k] >> 8)


@kernel
def _pack_q3_k(
    halves: NDArray[np.uint16], subs: NDArray[np.int8], codes: _Bytes, out: _Bytes
) -> None:
    """High bit of the codes, low 2 bits, sub-scales in 6 bits from 0, scale."""
    for k in range(len(out)):
        for i in range(32):
            bits = 0
            for h in range(8):
                bits |= (codes[k, h * 32 + i] >> 2) << h
            out[k, i] = np.uint8(bits)
        for h in range(2):
            for i in range(32):
                low = 0
                for part in range(4):
                    low |= (codes[k, h * 128 + part * 32 + i] & 3) << (2 * part)
                out[k, 32 + h * 32 + i] = np.uint8(low)
        for j in range(8):
            below = subs[k, j] + 32
            above = subs[k, 8 + j] + 32
            out[k, 96 + j] = np.uint8((below & 15) | ((above & 15) << 4))
        for j in range(4):
            top = 0
            for part in range(4):
                top |= ((subs[k, part * 4 + j] + 32) >> 4) << (2 * part)
            out[k, 104 + j] = np.uint8(top)
        out[k, 108] = np.uint8(halves[k])
        out[k, 109] = np.uint8(halves[k] >> 8)


# Windows, spreads and blends were chosen on the weights of a sentence embedder and of a small
# language model, on Gaussian and heavy-tailed noise, with measured importance and made-up ones, so
# that both errors end below those of ggml. A whole-number window puts the largest value on a code.
# With importance the largest value may be one of no weight, to be cut off: hence windows past the
# range of codes.
_Q6_K = _Type(
    name="Q6_K",
    codes=32,
    subs=128,
    windows=_windows([26, 28, 30, 32], [25, 27, 29, 31]),
    weighted_windows=_windows([26, 28, 30, 32, 35], [25, 27, 29, 31, 34]),
    grids=_grids(128, 1.05),
    blend=np.array([0.75, 1, 0, 0.06], np.float32),
    pack=_pack_q6_k,
)
_Q3_K = _Type(
    name="Q3_K",
    codes=4,
    subs=32,
    windows=_windows([3.8, 4.3], [2.9, 3.4]),
    weighted_windows=_windows([3, 3.5, 4, 4.5, 5, 5.75, 6.75], [2.5, 3, 3.5, 4, 4.5, 5.25, 6.25]),
    grids=_grids(32, 1.1),
    blend=np.array([0.4, 0.05, 1, 0.33], np.float32),
    pack=_pack_q3_k,
)


@inlined
def _load(blocks: Floats, block: int, x: Floats) -> tuple[np.float32, np.float32]:
    """Transpose a super-block; its largest magnitude and the mean of its squares."""
    for j in range(16):
        for i in range(16):
            x[i * 16 + j] = blocks[block, j * 16 + i]
    largest = _ZERO
    total = _ZERO
    for j in range(16):
        peak = _ZERO
        square = _ZERO
        for i in range(16):
            peak = max(peak, abs(x[i * 16 + j]))
            square += x[i * 16 + j] * x[i * 16 + j]
        largest = max(largest, peak)
        total += square
    return largest, total / _F32(256)


@inlined
def _weigh(
    x: Floats, importance: Floats, block: int, mean_square: np.float32, blend: Floats, w: Floats
) -> None:
    """The weight of every value's squared error, transposed like ``x``."""
    squares = _ONE / mean_square
    if len(importance) == 0:
        for i in range(256):
            w[i] = _ONE + blend[0] * (squares * x[i]) * x[i]
        return
    for i in range(16):
        for j in range(16):
            w[i * 16 + j] = importance[block, j * 16 + i]
    for i in range(256):
        rule = blend[1] + blend[2] * np.sqrt(_TWO + squares * x[i] * x[i])
        w[i] = w[i] * rule + blend[3]


@inlined
def _code(
    blocks: Floats,
    block: int,
    d: np.float32,
    subs: Floats,
    low: np.float32,
    high: np.float32,
    inverse: Floats,
    codes: _Bytes,
    at: int,
) -> None:
    """The nearest codes, counted from the lowest. ``inverse`` is a working array ``[256]``."""
    for j in range(16):
        scale = d * subs[j]
        inverse[j * 16 : j * 16 + 16] = _ONE / scale if scale != _ZERO else _ZERO
    for i in range(256):
        code = max(low, min(high, blocks[block, i] * inverse[i]))
        codes[at, i] = np.uint8(np.int32(((code + _ROUND) - _ROUND) - low))


@kernel
def _search(
    blocks: Floats,
    first: int,
    importance: Floats,
    ranges: tuple[Range, Range],
    windows: Floats,
    grids: Floats,
    blend: Floats,
    halves: NDArray[np.uint16],
    subs: NDArray[np.int8],
    codes: _Bytes,
) -> None:
    """Scale (float16's bits), sub-scales and codes (from 0) of some super-blocks."""
    tries = len(windows)
    x = np.empty(256, np.float32)
    w = np.empty(256, np.float32)
    chosen = np.empty(16, np.float32)
    along = np.empty((tries, 16), np.float32)
    square = np.empty((tries, 16), np.float32)
    free = np.empty((tries, 16), np.float32)
    start = np.empty(16, np.float32)
    gains = np.empty(16, np.float32)
    tried = np.empty(16, np.float32)
    around = max(1, len(importance))
    for k in range(len(halves)):
        block = first + k
        largest, mean_square = _load(blocks, block, x)
        d = _ZERO
        for j in range(16):
            chosen[j] = _ZERO
        if largest > _SMALLEST:
            _weigh(x, importance, block % around, mean_square, blend, w)
            d = search_block(
                x,
                w,
                ranges[0],
                ranges[1],
                windows,
                grids,
                along,
                square,
                free,
                start,
                gains,
                tried,
                chosen,
            )
        halves[k] = half_bits(d)
        for j in range(16):
            subs[k, j] = np.int8(chosen[j])
        _code(blocks, block, d, chosen, ranges[0][0], ranges[0][1], w, codes, k)


def _relative(importance: Floats | None, blend: Floats) -> tuple[Floats, Floats]:
    """Importance ``[blocks, 256]`` relative to its mean, and the blend for it.

    Few columns that outweigh all others would leave the plain error of their neighbours to chance:
    there it counts for more. No importance at all is ``[0, 256]``.
    """
    if importance is None:
        return np.empty((0, 256), np.float32), blend
    mean = float(importance.mean(dtype=np.float64))
    if not np.isfinite(mean) or importance.min() < 0:
        raise ValueError("importance holds a negative, NaN or infinite value")
    if mean == 0:
        return np.empty((0, 256), np.float32), blend
    relative = (importance / mean).astype(np.float32)
    evenness = float(np.sqrt(relative).mean(dtype=np.float64))
    blend = blend.copy()
    blend[3] *= min(_MOST_PLAIN, evenness**-1.5)
    return relative.reshape(-1, 256), blend


def _encode(kind: _Type, rows: Floats, importance: Floats | None) -> _Bytes:
    n, columns = rows.shape
    stored = TYPES_BY_NAME[kind.name]
    out = np.empty((n * columns // 256, stored.nbytes), np.uint8)
    whole = out.reshape(n, stored.row_bytes(columns))
    if not out.size:
        return whole
    largest = float(max(rows.max(), -rows.min()))
    if largest > kind.limit:
        raise ValueError(
            f"a weight of {largest:.6g} is past {kind.name}'s {kind.limit}; use BF16 or F32"
        )
    relative, blend = _relative(importance, kind.blend)
    windows = kind.weighted_windows if len(relative) else kind.windows
    blocks = rows.reshape(-1, 256)
    ranges = (
        (_F32(-kind.codes), _F32(kind.codes - 1)),
        (_F32(-kind.subs), _F32(kind.subs - 1)),
    )
    some = min(_CHUNK, len(out))
    halves = np.empty(some, np.uint16)
    subs = np.empty((some, 16), np.int8)
    codes = np.empty((some, 256), np.uint8)
    for first in range(0, len(out), some):
        count = min(some, len(out) - first)
        found = halves[:count], subs[:count], codes[:count]
        _search(blocks, first, relative, ranges, windows, kind.grids, blend, *found)
        kind.pack(*found, out[first : first + count])
    return whole


def encode_q6_k(rows: Floats, importance: Floats | None = None) -> _Bytes:
    """6-bit codes, 8-bit sub-scales: 210 bytes for 256 values.

    Args:
        rows: finite float32 ``[n, columns]``, columns a multiple of 256.
        importance: float32 ``[columns]``, not negative, or None.

    Returns:
        uint8 ``[n, columns / 256 * 210]``.

    Raises:
        ValueError: a weight is past what the float16 scale can reach, or importance is no weight.
    """
    return _encode(_Q6_K, rows, importance)


def encode_q3_k(rows: Floats, importance: Floats | None = None) -> _Bytes:
    """3-bit codes, 6-bit sub-scales: 110 bytes for 256 values. See :func:`encode_q6_k`."""
    return _encode(_Q3_K, rows, importance)
