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
3. The neighbours of every ``s`` are judged by their true error with codes chosen anew, ``d`` is
   fitted to what was chosen, and the neighbours are judged once more.

Values lie transposed, ``x[i * 16 + j]`` being value ``i`` of sub-block ``j``: the 16 sub-blocks
stand side by side in vector lanes, and every sum runs in a fixed order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeopt.numerics.ggml.jit import inlined, kernel

__all__ = ["Floats", "Range", "half_bits", "search_block"]

Floats = NDArray[np.float32]
_Kept = tuple[Floats, Floats, Floats]
_Lanes = tuple[Floats, Floats, Floats, Floats, Floats, Floats]
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


@kernel
def _sums(
    x: Floats,
    w: Floats,
    inverse: Floats,
    low: np.float32,
    high: np.float32,
    along: Floats,
    square: Floats,
) -> None:
    """``along = sum(w x q)`` and ``square = sum(w q q)`` of the codes at ``inverse`` scales."""
    for j in range(16):
        reciprocal = inverse[j]
        a = _ZERO
        b = _ZERO
        for i in range(16):
            value = x[i * 16 + j]
            code = (max(low, min(high, value * reciprocal)) + _ROUND) - _ROUND
            weighted = w[i * 16 + j] * code
            a += weighted * value
            b += weighted * code
        along[j] = a
        square[j] = b


@kernel
def _peaks(x: Floats, reciprocal: Floats) -> None:
    """One over every sub-block's value of the largest magnitude; 0 for none."""
    for j in range(16):
        peak = _ZERO
        for i in range(16):
            value = x[i * 16 + j]
            peak = value if abs(value) > abs(peak) else peak
        reciprocal[j] = _ONE / peak if abs(peak) > _TINY else _ZERO


@kernel
def _grid(
    kept: _Kept, d: np.float32, low: np.float32, high: np.float32, gains: Floats, subs: Floats
) -> np.float32:
    """Best ``s`` of every sub-block for one ``d`` by the kept sums; their gain together."""
    along, square, free = kept
    inverse = _ONE / d
    for j in range(16):
        gains[j] = _ZERO
        subs[j] = _ZERO
    for c in range(len(along)):
        for j in range(16):
            s = (max(low, min(high, free[c, j] * inverse)) + _ROUND) - _ROUND
            scale = s * d
            gain = scale * (along[c, j] + along[c, j] - scale * square[c, j])
            before = gains[j]
            chosen = subs[j]
            gains[j] = max(gain, before)
            subs[j] = s if gain > before else chosen
    total: np.float32 = _ZERO
    for j in range(16):
        total += gains[j]
    return total


@kernel
def _neighbours(
    x: Floats,
    w: Floats,
    codes: Range,
    subs: Range,
    d: np.float32,
    chosen: Floats,
    lanes: _Lanes,
) -> np.float32:
    """Move every ``s`` to its neighbour with the least error; the ``d`` that fits the codes best.

    An ``s`` with no gain becomes 0.
    """
    start, tried, inverse, along, square, gains = lanes
    lowest, highest = subs
    for j in range(16):
        start[j] = chosen[j]
        chosen[j] = _ZERO
        gains[j] = _ZERO
    upper = _ZERO
    lower = _ZERO
    for step in range(3):
        move = _F32(step - 1)
        for j in range(16):
            s = max(lowest, min(highest, start[j] + move))
            scale = s * d
            tried[j] = s
            inverse[j] = _ONE / scale if scale != _ZERO else _ZERO
        _sums(x, w, inverse, codes[0], codes[1], along, square)
        for j in range(16):
            scale = tried[j] * d
            gain = scale * (along[j] + along[j] - scale * square[j])
            before = gains[j]
            kept = chosen[j]
            gains[j] = max(gain, before)
            chosen[j] = tried[j] if gain > before else kept
    for j in range(16):
        scale = chosen[j] * d
        inverse[j] = _ONE / scale if scale != _ZERO else _ZERO
    _sums(x, w, inverse, codes[0], codes[1], along, square)
    for j in range(16):
        upper += chosen[j] * along[j]
        lower += chosen[j] * chosen[j] * square[j]
    fitted: np.float32 = _half(upper / max(lower, _TINY))
    return fitted


@kernel
def search_block(
    x: Floats,
    w: Floats,
    codes: Range,
    subs: Range,
    windows: Floats,
    grids: Floats,
    kept: _Kept,
    lanes: _Lanes,
    chosen: Floats,
    q: Floats,
) -> np.float32:
    """Choose a super-block's scale, sub-scales and codes.

    Args:
        x: the values, transposed (see above), none past what ``d`` can reach.
        w: their weights, not negative.
        codes: lowest and highest code.
        subs: lowest and highest ``s``.
        windows: the codes that a sub-block's largest magnitude is tried at, before they are cut to
            the range of codes.
        grids: the ``s`` that the largest scale is tried at.
        kept: three working arrays ``[len(windows), 16]``.
        lanes: six working arrays ``[16]``.
        chosen: takes the 16 ``s``.
        q: takes the codes, transposed.

    Returns:
        ``d``, a float16's value; 0 where all codes are 0.
    """
    low, high = codes
    along, square, free = kept
    peaks, tried, inverse, scales, _, gains = lanes
    _peaks(x, peaks)
    for j in range(16):
        chosen[j] = _ZERO
        gains[j] = _ZERO
        scales[j] = _ZERO
    for c in range(len(windows)):
        for j in range(16):
            inverse[j] = windows[c] * peaks[j]
        _sums(x, w, inverse, low, high, along[c], square[c])
        for j in range(16):
            scale = along[c, j] / max(square[c, j], _TINY)
            gain = scale * along[c, j]
            free[c, j] = scale
            before = gains[j]
            best = scales[j]
            gains[j] = max(gain, before)
            scales[j] = scale if gain > before else best
    largest = _ZERO
    for j in range(16):
        largest = scales[j] if abs(scales[j]) > abs(largest) else largest
    d: np.float32 = _ZERO
    most = _ZERO
    for k in range(len(grids)):
        step = _half(largest / grids[k])
        if step != _ZERO:
            gain = _grid(kept, step, subs[0], subs[1], gains, tried)
            if gain > most:
                most = gain
                d = step
                chosen[:] = tried
    if d != _ZERO:
        fitted = _neighbours(x, w, codes, subs, d, chosen, lanes)
        if fitted != _ZERO:
            d = fitted
            _neighbours(x, w, codes, subs, d, chosen, lanes)
    for j in range(16):
        scale = d * chosen[j]
        inverse[j] = _ONE / scale if scale != _ZERO else _ZERO
    for i in range(16):
        for j in range(16):
            code = max(low, min(high, x[i * 16 + j] * inverse[j]))
            q[i * 16 + j] = (code + _ROUND) - _ROUND
    return d
