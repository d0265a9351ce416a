"""Scale and minimum of blocks of 32 where the importance of each column is known.

The weighted squared error has a closed form once the codes are fixed (least squares), and the codes
follow from scale and minimum (the nearest). So: try some tens of scales around the obvious one,
keep the one whose least squares explain most, take turns between the two steps, round scale and
minimum to float16 and let the codes follow that. The weight of a value is ggml's: its column's
importance times ``sqrt(mean square of the row + value**2)``.

Many blocks are searched side by side, one in each lane.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.numerics.ggml.float16 import from_half, to_half
from edgeopt.numerics.ggml.jit import kernel

__all__ = ["q4_0", "q4_1", "q5_0", "q5_1"]

Array = NDArray[Any]

_BLOCK = 32
_LANES = 32
_TURNS = 2
#: Adding and taking off 1.5 * 2**23 rounds a small float32 to the nearest whole number.
_ROUND = np.float32(12582912)
_ZERO, _ONE, _INF = np.float32(0), np.float32(1), np.float32(np.inf)
#: A block no wider than this is one value to float16.
_TINY = np.float32(1e-30)
#: What float16 cannot hold: infinity's bits, and what they would stand for next after 65504.
_PAST_HALF, _PAST = np.uint16(0x7C00), np.float32(65520)


def q4_0(rows: Array, importance: Array, coded: Array) -> int:
    """Fill ``coded``; the number of the first block with a scale past float16, or -1."""
    return _symmetric(rows, importance, coded, _symmetric_steps(8), _BLOCK, _LANES, 8)


def q5_0(rows: Array, importance: Array, coded: Array) -> int:
    """As :func:`q4_0`."""
    return _symmetric(rows, importance, coded, _symmetric_steps(16), _BLOCK, _LANES, 16)


def q4_1(rows: Array, importance: Array, coded: Array) -> int:
    """As :func:`q4_0`."""
    return _affine(rows, importance, coded, _affine_steps(15), _BLOCK, _LANES, 15)


def q5_1(rows: Array, importance: Array, coded: Array) -> int:
    """As :func:`q4_0`."""
    return _affine(rows, importance, coded, _affine_steps(31), _BLOCK, _LANES, 31)


def _symmetric_steps(middle: int) -> NDArray[np.float32]:
    """Steps to the largest value: on the side of codes that has one more, then on the other."""
    fine, coarse = np.arange(-12, 31) * 0.1, np.arange(-6, 16) * 0.2
    return np.concatenate([-(middle + fine), middle - 1 + coarse]).astype(np.float32)


def _affine_steps(top: int) -> NDArray[np.float32]:
    """Two sets ``[2, n, 2]`` of steps from the smallest value to the largest, and code 0's place.

    The first set has code 0 at the smallest value, and also takes whole numbers of steps, which
    values that lie on a grid already need. The second has it half a step off.
    """
    whole = np.arange(top // 2 + 1, top - 1)
    fine = top + np.arange(-20, 21) * 0.05
    steps = np.stack([np.concatenate([whole, fine]), np.zeros(len(whole) + len(fine))])
    off = steps.shape[1] // 2
    steps[1, :off] = np.linspace(top - 2, top + 1, off)
    steps[1, off:] = np.linspace(top - 2, top + 1, steps.shape[1] - off)
    shifts = np.zeros_like(steps)
    shifts[1, :off], shifts[1, off:] = 0.5, -0.5
    return np.stack([steps, shifts / steps], axis=-1).astype(np.float32)


# ---------------------------------------------------------------------------------------------
# kernels (see legacy.py on why lengths are arguments)


@kernel
def _mean_squares(rows: Array) -> Array:
    means = np.empty(rows.shape[0], np.float32)
    for r in range(rows.shape[0]):
        total = 0.0
        for j in range(rows.shape[1]):
            total += np.float64(rows[r, j]) * rows[r, j]
        means[r] = total / rows.shape[1]
    return means


@kernel
def _load(rows: Array, importance: Array, means: Array, first: int, x: Array, w: Array) -> int:
    """Blocks from ``first`` on, turned to [value, lane], and their weights; how many."""
    block = x.shape[0]
    per_row = rows.shape[1] // block
    count: int = min(x.shape[1], rows.shape[0] * per_row - first)
    for lane in range(count):
        row, at = (first + lane) // per_row, (first + lane) % per_row * block
        total = _ZERO
        for j in range(block):
            value = rows[row, at + j]
            weight = importance[at + j] * np.sqrt(means[row] + value * value)
            x[j, lane], w[j, lane] = value, weight
            total = max(total, weight)
        for j in range(block):
            # No weight at all is the same weight for all. The largest is 1: sums stay in range.
            w[j, lane] = w[j, lane] / total if total > 0 else _ONE
    return count


@kernel
def _write(codes: Array, lane: int, out: Array, five: bool) -> None:
    """Nibbles of both halves side by side, after fifth bits if any; ``codes`` [value, lane]."""
    block = codes.shape[0]
    middle = block // 2
    at = 0
    if five:
        high = np.uint32(0)
        for j in range(block):
            high |= (np.uint32(codes[j, lane]) >> np.uint32(4)) << np.uint32(j)
        for k in range(4):
            out[k] = (high >> np.uint32(8 * k)) & np.uint32(0xFF)
        at = 4
    for j in range(middle):
        low, upper = np.uint32(codes[j, lane]), np.uint32(codes[j + middle, lane])
        out[at + j] = (low & np.uint32(15)) | ((upper & np.uint32(15)) << np.uint32(4))


@kernel
def _nearest(x: Array, inverse: Array, offset: Array, low: Any, high: Any) -> None:
    """Replace values by their codes, counted from 0."""
    for j in range(x.shape[0]):
        for k in range(x.shape[1]):
            t = (x[j, k] - offset[k]) * inverse[k]
            t = t if t > low else low
            t = t if t < high else high
            x[j, k] = ((t + _ROUND) - _ROUND) - low


@kernel
def _invert(scale: Array, inverse: Array) -> None:
    for k in range(scale.size):
        inverse[k] = _ONE / scale[k] if scale[k] != 0 else _ZERO


@kernel
def _symmetric_sums(
    x: Array, w: Array, inverse: Array, low: Any, high: Any, a: Array, b: Array, f: Array
) -> None:
    """Of the nearest codes q, which miss x by e: a = sum w e q, b = sum w q q, f = sum w e e.

    In steps of the scale. Sums of what is missed are as small as the error: that of a fit taken
    from sums of x itself would drown in their rounding where one value is large.
    """
    a[:] = _ZERO
    b[:] = _ZERO
    f[:] = _ZERO
    for j in range(x.shape[0]):
        xj, wj = x[j], w[j]
        for k in range(x.shape[1]):
            t = xj[k] * inverse[k]
            q = t if t > low else low
            q = q if q < high else high
            q = (q + _ROUND) - _ROUND
            e = t - q
            wq, we = wj[k] * q, wj[k] * e
            a[k] += we * q
            b[k] += wq * q
            f[k] += we * e


@kernel
def _largest(x: Array, largest: Array) -> None:
    """Divide each lane by its largest value, its sign included."""
    largest[:] = _ZERO
    for j in range(x.shape[0]):
        for k in range(x.shape[1]):
            largest[k] = x[j, k] if abs(x[j, k]) > abs(largest[k]) else largest[k]
    for k in range(x.shape[1]):
        largest[k] = largest[k] if abs(largest[k]) > _TINY else _ONE
    for j in range(x.shape[0]):
        for k in range(x.shape[1]):
            x[j, k] = x[j, k] / largest[k]


@kernel
def _symmetric(
    rows: Array, importance: Array, coded: Array, steps: Array, block: int, lanes: int, middle: int
) -> int:
    low, high = np.float32(-middle), np.float32(middle - 1)
    five, nbytes = middle == 16, (22 if middle == 16 else 18)
    means, scratch, flat = _mean_squares(rows), np.empty(1, np.float32), coded.reshape(-1)
    x, w = np.zeros((block, lanes), np.float32), np.zeros((block, lanes), np.float32)
    room, none = np.empty((8, lanes), np.float32), np.zeros(lanes, np.float32)
    a, b, f, inverse = room[0], room[1], room[2], room[3]
    error, scale, largest, kept = room[4], room[5], room[6], room[7]
    stored = np.zeros(lanes, np.uint16)
    bad = -1
    for first in range(0, rows.size // block, lanes):
        count = _load(rows, importance, means, first, x, w)
        # The largest value becomes 1: steps are the same in all lanes, and sums stay in range.
        _largest(x, largest)
        kept[:] = _INF
        stored[:] = _PAST_HALF
        for part in range(2):
            # First the scale that goes without a search: what is found has to be better.
            error[:] = _INF
            scale[:] = _ONE / low
            for s in range(part * (len(steps) + _TURNS)):
                if s < len(steps):
                    inverse[:] = steps[s]
                else:
                    _invert(scale, inverse)
                _symmetric_sums(x, w, inverse, low, high, a, b, f)
                for k in range(lanes):
                    more = a[k] / b[k] if b[k] > 0 else _ZERO
                    step = _ONE / inverse[k] if inverse[k] != 0 else _ZERO
                    missed = (f[k] - more * a[k]) * step * step
                    better = missed < error[k] and step != 0
                    scale[k] = (_ONE + more) * step if better else scale[k]
                    error[k] = missed if better else error[k]
            for k in range(lanes):
                scale[k] = from_half(scratch, to_half(scratch, scale[k] * largest[k])) / largest[k]
            _invert(scale, inverse)
            _symmetric_sums(x, w, inverse, low, high, a, b, f)
            for k in range(lanes):
                missed = f[k] * scale[k] * scale[k]
                if missed < kept[k] and abs(scale[k] * largest[k]) < _PAST:
                    kept[k] = missed
                    stored[k] = to_half(scratch, scale[k] * largest[k])
        for k in range(count):
            if stored[k] == _PAST_HALF:
                bad = first + k if bad < 0 else bad
                stored[k] = 0
            at = (first + k) * nbytes
            flat[at], flat[at + 1] = stored[k] & 0xFF, stored[k] >> 8
        for k in range(lanes):
            scale[k] = from_half(scratch, stored[k]) / largest[k]
        _invert(scale, inverse)
        _nearest(x, inverse, none, low, high)
        for k in range(count):
            at = (first + k) * nbytes
            _write(x, k, flat[at + 2 : at + nbytes], five)
    return bad


@kernel
def _affine_sums(x: Array, w: Array, inverse: Array, offset: Array, high: Any, sums: Array) -> None:
    """Of the nearest codes q, which miss x by e: sums of w e q, w q q, w q, w e and w e e."""
    sums[:] = _ZERO
    a, b, c, d, f = sums[0], sums[1], sums[2], sums[3], sums[4]
    for j in range(x.shape[0]):
        xj, wj = x[j], w[j]
        for k in range(x.shape[1]):
            t = (xj[k] - offset[k]) * inverse[k]
            q = t if t > _ZERO else _ZERO
            q = q if q < high else high
            q = (q + _ROUND) - _ROUND
            e = t - q
            wq, we = wj[k] * q, wj[k] * e
            a[k] += we * q
            b[k] += wq * q
            c[k] += wq
            d[k] += we
            f[k] += we * e


@kernel
def _normalize(x: Array, w: Array, least: Array, width: Array, total: Array) -> None:
    """Bring each lane to values from 0 to 1; ``least`` and ``width`` undo it. Adds the weights."""
    least[:] = x[0]
    width[:] = x[0]
    total[:] = _ZERO
    for j in range(x.shape[0]):
        for k in range(x.shape[1]):
            least[k] = x[j, k] if x[j, k] < least[k] else least[k]
            width[k] = x[j, k] if x[j, k] > width[k] else width[k]
            total[k] += w[j, k]
    for k in range(x.shape[1]):
        width[k] -= least[k]
        width[k] = width[k] if width[k] > _TINY else _ONE
    for j in range(x.shape[0]):
        for k in range(x.shape[1]):
            x[j, k] = (x[j, k] - least[k]) / width[k]


@kernel
def _affine(
    rows: Array, importance: Array, coded: Array, steps: Array, block: int, lanes: int, top: int
) -> int:
    high = np.float32(top)
    five, nbytes = top == 31, (24 if top == 31 else 20)
    means, scratch, flat = _mean_squares(rows), np.empty(1, np.float32), coded.reshape(-1)
    x, w = np.zeros((block, lanes), np.float32), np.zeros((block, lanes), np.float32)
    room, sums = np.empty((9, lanes), np.float32), np.empty((5, lanes), np.float32)
    inverse, offset, scale, minimum = room[0], room[1], room[2], room[3]
    error, kept, least, width, total = room[4], room[5], room[6], room[7], room[8]
    a, b, c, d, f = sums[0], sums[1], sums[2], sums[3], sums[4]
    stored = np.zeros((2, lanes), np.uint16)
    tries = steps.shape[1]
    bad = -1
    for first in range(0, rows.size // block, lanes):
        count = _load(rows, importance, means, first, x, w)
        _normalize(x, w, least, width, total)
        kept[:] = _INF
        stored[:] = _PAST_HALF
        for part in range(3):
            # First what goes without a search: what is found has to be better.
            error[:] = _INF
            scale[:] = _ONE / high
            minimum[:] = _ZERO
            for s in range((tries + _TURNS) if part else 0):
                if s < tries:
                    inverse[:] = steps[part - 1, s, 0]
                    offset[:] = steps[part - 1, s, 1]
                else:
                    _invert(scale, inverse)
                    offset[:] = minimum
                _affine_sums(x, w, inverse, offset, high, sums)
                for k in range(lanes):
                    # A line through what is missed, over the codes.
                    spread = b[k] - c[k] * c[k] / total[k]
                    tilt = a[k] - c[k] * d[k] / total[k]
                    more = tilt / spread if spread > 0 else _ZERO
                    lift = (d[k] - more * c[k]) / total[k]
                    step = _ONE / inverse[k] if inverse[k] != 0 else _ZERO
                    missed = (f[k] - more * tilt - d[k] * d[k] / total[k]) * step * step
                    better = missed < error[k] and step != 0
                    scale[k] = (_ONE + more) * step if better else scale[k]
                    minimum[k] = offset[k] + lift * step if better else minimum[k]
                    error[k] = missed if better else error[k]
            # As it will be stored: the scale rounded, the best minimum for that, rounded too.
            for k in range(lanes):
                scale[k] = from_half(scratch, to_half(scratch, scale[k] * width[k])) / width[k]
            _invert(scale, inverse)
            _affine_sums(x, w, inverse, minimum, high, sums)
            for k in range(lanes):
                lift = d[k] / total[k] * scale[k] if part else _ZERO
                value = (minimum[k] + lift) * width[k] + least[k]
                offset[k] = from_half(scratch, to_half(scratch, value))
                minimum[k] = (offset[k] - least[k]) / width[k]
            _affine_sums(x, w, inverse, minimum, high, sums)
            for k in range(lanes):
                missed = f[k] * scale[k] * scale[k]
                fits = scale[k] * width[k] < _PAST and abs(offset[k]) < _PAST
                if missed < kept[k] and fits:
                    kept[k] = missed
                    stored[0, k] = to_half(scratch, scale[k] * width[k])
                    stored[1, k] = to_half(scratch, offset[k])
        for k in range(count):
            if stored[0, k] == _PAST_HALF:
                bad = first + k if bad < 0 else bad
                stored[0, k], stored[1, k] = 0, 0
            at = (first + k) * nbytes
            flat[at], flat[at + 1] = stored[0, k] & 0xFF, stored[0, k] >> 8
            flat[at + 2], flat[at + 3] = stored[1, k] & 0xFF, stored[1, k] >> 8
        for k in range(lanes):
            scale[k] = from_half(scratch, stored[0, k]) / width[k]
            minimum[k] = (from_half(scratch, stored[1, k]) - least[k]) / width[k]
        _invert(scale, inverse)
        _nearest(x, inverse, minimum, _ZERO, high)
        for k in range(count):
            at = (first + k) * nbytes
            _write(x, k, flat[at + 4 : at + nbytes], five)
    return bad
