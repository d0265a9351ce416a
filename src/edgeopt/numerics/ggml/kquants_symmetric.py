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
from edgeopt.numerics.ggml.jit import kernel
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


@dataclass(frozen=True)
class _Type:
    """Numbers of a type, and how it is searched.

    ``codes`` and ``subs`` are the magnitudes of the lowest code and ``s``. ``windows`` and
    ``grids``: see :func:`search_block`. ``blend`` are the weights of a value's squared error:
    without importance ``1 + blend[0] x^2 / mean(x^2)``; with importance ``i``
    ``i (blend[1] + blend[2] sqrt(2 + x^2 / mean(x^2))) / mean(i) + blend[3]``.
    """

    name: str
    codes: int
    subs: int
    windows: Floats
    grids: Floats
    blend: Floats

    @property
    def limit(self) -> int:
        """The largest magnitude that a code can stand for."""
        return _HALF_MAX * self.subs * self.codes


def _windows(below: NDArray[np.floating], above: NDArray[np.floating]) -> Floats:
    return np.concatenate([-below, above]).astype(np.float32)


_Q6_K = _Type(
    "Q6_K",
    32,
    128,
    _windows(np.arange(29.75, 33.5, 0.5), np.arange(28.75, 32.5, 0.5)),
    (-128 / np.linspace(1, 1.25, 8)).astype(np.float32),
    np.array([1.5, 1, 0, 0.1], np.float32),
)
_Q3_K = _Type(
    "Q3_K",
    4,
    32,
    _windows(np.arange(2.7, 5.1, 0.2), np.arange(2.2, 4.6, 0.2)),
    (-32 / np.linspace(1, 1.4, 12)).astype(np.float32),
    np.array([1.5, 0.3, 1, 0.4], np.float32),
)


@kernel
def _load(row: Floats, x: Floats) -> tuple[np.float32, np.float32]:
    """Transpose a super-block; its largest magnitude and the mean of its squares."""
    for j in range(16):
        for i in range(16):
            x[i * 16 + j] = row[j * 16 + i]
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


@kernel
def _weigh(
    x: Floats, importance: Floats, mean_square: np.float32, blend: Floats, w: Floats
) -> None:
    """The weight of every value's squared error, transposed like ``x``."""
    squares = _ONE / mean_square
    if len(importance) == 0:
        for i in range(256):
            w[i] = _ONE + blend[0] * (squares * x[i]) * x[i]
        return
    for j in range(16):
        for i in range(16):
            w[i * 16 + j] = importance[j * 16 + i]
    for i in range(256):
        rule = blend[1] + blend[2] * np.sqrt(_TWO + squares * x[i] * x[i])
        w[i] = w[i] * rule + blend[3]


@kernel
def _search(
    rows: Floats,
    importance: Floats,
    limit: np.float32,
    codes: Range,
    subs: Range,
    windows: Floats,
    grids: Floats,
    blend: Floats,
    found: tuple[NDArray[np.uint16], NDArray[np.int8], NDArray[np.uint8]],
) -> None:
    """Scale (float16's bits), sub-scales and codes (from 0) of every super-block."""
    half, sub, code = found
    tries = len(windows)
    x = np.empty(256, np.float32)
    w = np.empty(256, np.float32)
    q = np.empty(256, np.float32)
    chosen = np.empty(16, np.float32)
    kept = (
        np.empty((tries, 16), np.float32),
        np.empty((tries, 16), np.float32),
        np.empty((tries, 16), np.float32),
    )
    lanes = (
        np.empty(16, np.float32),
        np.empty(16, np.float32),
        np.empty(16, np.float32),
        np.empty(16, np.float32),
        np.empty(16, np.float32),
        np.empty(16, np.float32),
    )
    blocks = rows.shape[1] // 256
    for r in range(rows.shape[0]):
        for b in range(blocks):
            at = b * 256
            largest, mean_square = _load(rows[r, at : at + 256], x)
            if largest < _SMALLEST or largest > limit:
                half[r, b] = 0
                sub[r, b] = 0
                code[r, b] = np.uint8(-codes[0])
                continue
            _weigh(x, importance[at : at + 256], mean_square, blend, w)
            d = search_block(x, w, codes, subs, windows, grids, kept, lanes, chosen, q)
            half[r, b] = half_bits(d)
            for j in range(16):
                sub[r, b, j] = np.int8(chosen[j])
                for i in range(16):
                    code[r, b, j * 16 + i] = np.uint8(q[i * 16 + j] - codes[0])


def _encode(
    kind: _Type,
    rows: Floats,
    importance: Floats | None,
    pack: Callable[[_Bytes, NDArray[np.int8], NDArray[np.uint16], _Bytes], None],
) -> _Bytes:
    n, columns = rows.shape
    blocks = columns // 256
    out = np.empty((n, TYPES_BY_NAME[kind.name].row_bytes(columns)), np.uint8)
    if not out.size:
        return out
    largest = float(max(rows.max(), -rows.min()))
    if largest > kind.limit:
        raise ValueError(
            f"a weight of {largest:.6g} is past {kind.name}'s {kind.limit}; use BF16 or F32"
        )
    relative = np.empty(0, np.float32)
    if importance is not None:
        mean = float(importance.mean(dtype=np.float64))
        if not np.isfinite(mean) or importance.min() < 0:
            raise ValueError("importance holds a negative, NaN or infinite value")
        if mean > 0:
            relative = (importance / mean).astype(np.float32)
    halves = np.empty((n, blocks), np.uint16)
    subs = np.empty((n, blocks, 16), np.int8)
    codes = np.empty((n, blocks, 256), np.uint8)
    _search(
        rows,
        relative,
        _F32(kind.limit),
        (_F32(-kind.codes), _F32(kind.codes - 1)),
        (_F32(-kind.subs), _F32(kind.subs - 1)),
        kind.windows,
        kind.grids,
        kind.blend,
        (halves, subs, codes),
    )
    pack(
        codes.reshape(-1, 256),
        subs.reshape(-1, 16),
        halves.reshape(-1),
        out.reshape(n * blocks, -1),
    )
    return out


def _pack_q6_k(
    codes: _Bytes, subs: NDArray[np.int8], halves: NDArray[np.uint16], out: _Bytes
) -> None:
    """Low 4 bits, high 2 bits, sub-scales, scale."""
    quarters = codes.reshape(-1, 2, 4, 32)
    low = out[:, :128].reshape(-1, 2, 2, 32)
    np.bitwise_or(quarters[:, :, :2] & 15, quarters[:, :, 2:] << 4, out=low)
    high = (quarters >> 4) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    out[:, 128:192] = np.bitwise_or.reduce(high, axis=2).reshape(-1, 64)
    out[:, 192:208] = subs.view(np.uint8)
    out[:, 208:] = halves.astype("<u2").view(np.uint8).reshape(-1, 2)


def _pack_q3_k(
    codes: _Bytes, subs: NDArray[np.int8], halves: NDArray[np.uint16], out: _Bytes
) -> None:
    """High bit (set for codes from 0 up), low 2 bits, sub-scales in 6 bits, scale."""
    bits = (codes >> 2).reshape(-1, 8, 32) << np.arange(8, dtype=np.uint8)[:, None]
    out[:, :32] = np.bitwise_or.reduce(bits, axis=1)
    low = (codes & 3).reshape(-1, 2, 4, 32) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    out[:, 32:96] = np.bitwise_or.reduce(low, axis=2).reshape(-1, 64)
    six = (subs + 32).astype(np.uint8)
    out[:, 96:104] = (six[:, :8] & 15) | (six[:, 8:] << 4)
    top = (six >> 4).reshape(-1, 4, 4) << np.array([0, 2, 4, 6], np.uint8)[:, None]
    out[:, 104:108] = np.bitwise_or.reduce(top, axis=1)
    out[:, 108:] = halves.astype("<u2").view(np.uint8).reshape(-1, 2)


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
    return _encode(_Q6_K, rows, importance, _pack_q6_k)


def encode_q3_k(rows: Floats, importance: Floats | None = None) -> _Bytes:
    """3-bit codes, 6-bit sub-scales: 110 bytes for 256 values. See :func:`encode_q6_k`."""
    return _encode(_Q3_K, rows, importance, _pack_q3_k)
