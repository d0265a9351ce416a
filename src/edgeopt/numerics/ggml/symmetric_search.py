"""The search behind the K-quants without minimums: Q3_K and Q6_K.

A super-block of 256 values is 16 sub-blocks of 16. A value stands for ``d * s * q``: ``d`` a
float16 of the super-block, ``s`` a signed integer of the sub-block, ``q`` a signed code. For any
weighting of the squared error the best code is the nearest one, so what is searched is only ``d``
and the 16 ``s``:

1. Every sub-block tries a window of free scales around the one that just holds its largest
   magnitude, with either sign (codes reach one further below zero than above). The codes of each
   try are kept as two sums, ``a = sum(w x q)`` and ``b = sum(w q q)``: they give the error of
   those codes under any scale ``e`` as ``const - e (2 a - e b)``.
2. Several ``d`` are tried; each rounds the best scale of every kept try to its own grid of ``s``,
   and is judged by the sums alone, without a pass over the values.
3. The neighbours of every ``s`` are judged with codes chosen anew, and ``d`` is fitted to what
   was chosen. The codes that are stored are the nearest under that ``d``.

Values lie transposed, ``x[i * 16 + j]`` being value ``i`` of sub-block ``j``: the 16 sub-blocks
stand side by side in vector lanes, and every sum runs in a fixed order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeopt.numerics.ggml.jit import inlined, kernel

__all__ = ["Floats", "Range", "half_bits", "search_block"]

Floats = NDArray[np.float32]
Range = tuple[np.float32, np.float32]

_F32 = np.float32
#: Added and taken away again, it rounds a float32 below 2^22 to the nearest integer.
_ROUND = np.float32(12582912.0)
_ZERO = np.float32(0)
_ONE = np.float32(1)
#: Below this a sub-block is zero: its reciprocal must stay finite.
_TINY = np.float32(1e-30)
_HALF_MAX = np.float32(65504)
_HALF_NORMAL = np.float32(2.0**-14)
_HALF_STEP = np.float32(2.0**-24)
_HALF_STEPS = np.float32(2.0**24)


@inlined
def _half(value: np.float32) -> np.float32:
    """The float16 nearest to a float32, as a float32; past the largest: the largest."""
    value = max(-_HALF_MAX, min(_HALF_MAX, value))
    bits = _F32(value).view(np.uint32)
    odd = (bits >> np.uint32(13)) & np.uint32(1)
    normal = np.uint32((bits + np.uint32(0xFFF) + odd) & np.uint32(0xFFFFE000)).view(np.float32)
    small = _F32(np.rint(value * _HALF_STEPS)) * _HALF_STEP
    rounded: np.float32 = small if abs(value) < _HALF_NORMAL else normal
    return rounded


@inlined
def half_bits(value: np.float32) -> np.uint16:
    """The bits of a float32 that is a float16's value."""
    bits = _F32(value).view(np.uint32)
    sign = np.uint32((bits >> np.uint32(16)) & np.uint32(0x8000))
    small = np.uint32(abs(value) * _HALF_STEPS)
    normal = np.uint32(((bits >> np.uint32(13)) & np.uint32(0x3FFFF)) - np.uint32(0x1C000))
    magnitude: np.uint16 = np.uint16(sign | (small if abs(value) < _HALF_NORMAL else normal))
    return magnitude


@inlined
def _peaks(x: Floats, reciprocals: Floats, gains: Floats, scales: Floats) -> None:
    """One over every sub-block's value of the largest magnitude, 0 where there is none."""
    for j in range(16):
        peak = _ZERO
        for i in range(16):
            value = x[i * 16 + j]
            peak = value if abs(value) > abs(peak) else peak
        reciprocals[j] = _ONE / peak if abs(peak) > _TINY else _ZERO
        gains[j] = _ZERO
        scales[j] = _ZERO


@inlined
def _try_window(
    x: Floats,
    w: Floats,
    window: np.float32,
    low: np.float32,
    high: np.float32,
    peaks: Floats,
    along: Floats,
    square: Floats,
    free: Floats,
    c: int,
    gains: Floats,
    scales: Floats,
) -> None:
    """Keep the two sums and the best scale of the codes that put the largest value at ``window``.

    ``gains`` and ``scales`` follow the best try so far.
    """
    for j in range(16):
        inverse = window * peaks[j]
        a = _ZERO
        b = _ZERO
        for i in range(16):
            value = x[i * 16 + j]
            code = (max(low, min(high, value * inverse)) + _ROUND) - _ROUND
            weighted = w[i * 16 + j] * code
            a += weighted * value
            b += weighted * code
        scale = a / max(b, _TINY)
        gain = scale * a
        along[c, j] = a
        square[c, j] = b
        free[c, j] = scale
        before = gains[j]
        best = scales[j]
        gains[j] = max(gain, before)
        scales[j] = scale if gain > before else best


@inlined
def _try_grid(
    along: Floats,
    square: Floats,
    free: Floats,
    d: np.float32,
    lowest: np.float32,
    highest: np.float32,
    gains: Floats,
    subs: Floats,
) -> np.float32:
    """Best ``s`` of every sub-block for one ``d`` by the kept sums; their gain together."""
    inverse = _ONE / d
    for j in range(16):
        gains[j] = _ZERO
        subs[j] = _ZERO
    for c in range(len(along)):
        for j in range(16):
            s = (max(lowest, min(highest, free[c, j] * inverse)) + _ROUND) - _ROUND
            scale = s * d
            gain = scale * (along[c, j] + along[c, j] - scale * square[c, j])
            before = gains[j]
            best = subs[j]
            gains[j] = max(gain, before)
            subs[j] = s if gain > before else best
    total: np.float32 = _ZERO
    for j in range(16):
        total += gains[j]
    return total


@inlined
def _try_step(
    x: Floats,
    w: Floats,
    move: np.float32,
    low: np.float32,
    high: np.float32,
    lowest: np.float32,
    highest: np.float32,
    d: np.float32,
    start: Floats,
    subs: Floats,
    gains: Floats,
    along: Floats,
    square: Floats,
) -> None:
    """Judge ``start + move`` of every sub-block with codes chosen for it; keep it where it wins."""
    for j in range(16):
        s = max(lowest, min(highest, start[j] + move))
        scale = s * d
        inverse = _ONE / scale if scale != _ZERO else _ZERO
        a = _ZERO
        b = _ZERO
        for i in range(16):
            value = x[i * 16 + j]
            code = (max(low, min(high, value * inverse)) + _ROUND) - _ROUND
            weighted = w[i * 16 + j] * code
            a += weighted * value
            b += weighted * code
        gain = scale * (a + a - scale * b)
        before = gains[j]
        best = subs[j]
        kept_along = along[0, j]
        kept_square = square[0, j]
        more = gain > before
        gains[j] = gain if more else before
        subs[j] = s if more else best
        along[0, j] = a if more else kept_along
        square[0, j] = b if more else kept_square


@kernel
def search_block(
    x: Floats,
    w: Floats,
    codes: Range,
    subs: Range,
    windows: Floats,
    grids: Floats,
    along: Floats,
    square: Floats,
    free: Floats,
    start: Floats,
    gains: Floats,
    tried: Floats,
    chosen: Floats,
) -> np.float32:
    """Choose a super-block's scale and sub-scales.

    Args:
        x: the values, transposed (see above), none past what ``d`` can reach.
        w: their weights, not negative.
        codes: lowest and highest code.
        subs: lowest and highest ``s``.
        windows: the codes that a sub-block's largest magnitude is tried at, before they are cut to
            the range of codes.
        grids: the ``s`` that the largest scale is tried at.
        along, square, free: working arrays ``[len(windows), 16]``.
        start, gains, tried: working arrays ``[16]``.
        chosen: takes the 16 ``s``.

    Returns:
        ``d``, a float16's value; 0 where every ``s`` is 0.
    """
    low, high = codes
    lowest, highest = subs
    _peaks(x, start, gains, tried)
    for c in range(len(windows)):
        _try_window(x, w, windows[c], low, high, start, along, square, free, c, gains, tried)
    largest = _ZERO
    for j in range(16):
        largest = tried[j] if abs(tried[j]) > abs(largest) else largest
        chosen[j] = _ZERO
    d: np.float32 = _ZERO
    most = _ZERO
    for k in range(len(grids)):
        step = _half(largest / grids[k])
        # Tiny weights: the smallest step there is, which larger s make up for.
        step = step if step != _ZERO else _HALF_STEP
        gain = _try_grid(along, square, free, step, lowest, highest, gains, tried)
        if gain > most:
            most = gain
            d = step
            for j in range(16):
                chosen[j] = tried[j]
    for j in range(16):
        start[j] = chosen[j]
        chosen[j] = _ZERO
        gains[j] = _ZERO
        along[0, j] = _ZERO
        square[0, j] = _ZERO
    for move in range(-1, 2):
        _try_step(
            x,
            w,
            _F32(move),
            low,
            high,
            lowest,
            highest,
            d,
            start,
            chosen,
            gains,
            along,
            square,
        )
    upper = _ZERO
    lower = _ZERO
    for j in range(16):
        upper += chosen[j] * along[0, j]
        lower += chosen[j] * chosen[j] * square[0, j]
    fitted = _half(upper / max(lower, _TINY))
    return fitted if fitted != _ZERO else d
