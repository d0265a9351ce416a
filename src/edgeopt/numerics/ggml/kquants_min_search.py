"""The search behind the K-quants with scales and mins: which scales, mins and codes lose least.

A super-block of 256 values is cut into sub-blocks; a value is stored as ``d * scale * code - dmin *
min``, with one ``d`` and ``dmin`` (float16) a super-block, one small whole ``scale`` and ``min`` a
sub-block, and one ``code`` a value. The search goes from coarse to fine:

1. every sub-block alone: codes from a fan of scales, and for each the scale and min that fit those
   codes best (least squares), judged by the sums that the fit needs anyway;
2. ``d``, then ``dmin``: the candidate that costs all sub-blocks together least when their scales
   and mins are rounded to it, by the curvature of the fit;
3. whole scales and mins around the rounded ones, the codes chosen anew and the error measured;
4. ``d`` and ``dmin`` fitted to the codes found, and step 3 once more.

64 sub-blocks lie side by side, one in each lane, so that every loop over lanes becomes vector code
without reordering a sum: results do not depend on the machine, nor on a block's neighbours.

All that is compiled is in this one file: the cache of compiled code looks at no other for changes.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgeopt.numerics.ggml import kquants_min_lanes as at
from edgeopt.numerics.ggml.jit import inlined, kernel, part
from edgeopt.numerics.ggml.kquants_min_lanes import SUPER, Search

__all__ = ["pack_codes", "search_blocks"]

_F = np.float32
_ZERO: np.float32 = _F(0)
_ONE: np.float32 = _F(1)
_TOO_LARGE: np.float32 = _F(-1)
_HALF_MAX = _F(65504)
_HALF_NORMAL = _F(2.0**-14)
_HALF_TINY = _F(2.0**-24)
# Adding and taking away 1.5 * 2^23 rounds to whole numbers; 0.75 to multiples of 2^-24, float16's
# subnormal numbers; 2^13 + 1 splits off the 11 bits that float16 keeps of a normal number.
_TO_WHOLE = _F(1.5 * 2**23)
_TO_SUBNORMAL = _F(0.75)
_TO_11_BITS = _F(2**13 + 1)
# Codes that all but agree determine no scale: what is left of the spread is rounding.
_FLAT = _F(1e-5)
#: Of the mean weight, given to every value with importance.
_LEAST_SHARE = _F(1e-3)

_UNROLL = 8
_TRIALS = 32

_T_D = 0 * _TRIALS
_T_INVERSE = 1 * _TRIALS
_T_ERROR = 2 * _TRIALS


@inlined
def _whole(value: np.float32) -> np.float32:
    rounded: np.float32 = (value + _TO_WHOLE) - _TO_WHOLE
    return rounded


@inlined
def _half(value: np.float32) -> np.float32:
    """The float16 nearest to 0 < value < 65520, but never 0: a coarse scale beats none."""
    long = value * _TO_11_BITS
    normal = min(long - (long - value), _HALF_MAX)
    small = max((value + _TO_SUBNORMAL) - _TO_SUBNORMAL, _HALF_TINY)
    nearest: np.float32 = small if value < _HALF_NORMAL else normal
    return nearest


@part
def _sums(
    x: NDArray[np.float32], w: NDArray[np.float32], lane: NDArray[np.float32], top: np.float32
) -> None:
    """Code the values by the lanes' shift and step; what a least-squares fit needs of the codes."""
    for t in range(at.LANES):
        lane[at.WQ + t] = _ZERO
        lane[at.WQQ + t] = _ZERO
        lane[at.WXQ + t] = _ZERO
    for first in range(0, len(x), _UNROLL):
        for t in range(at.LANES):
            wq, wqq, wxq = lane[at.WQ + t], lane[at.WQQ + t], lane[at.WXQ + t]
            shift, inverse = lane[at.SHIFT + t], lane[at.INVERSE + t]
            for k in range(_UNROLL):
                value = x[first + k, t]
                code = min(max(_whole((value + shift) * inverse), _ZERO), top)
                weighted = w[first + k, t] * code
                wq += weighted
                wqq += weighted * code
                wxq += weighted * value
            lane[at.WQ + t] = wq
            lane[at.WQQ + t] = wqq
            lane[at.WXQ + t] = wxq


@part
def _errors(
    x: NDArray[np.float32], w: NDArray[np.float32], lane: NDArray[np.float32], top: np.float32
) -> None:
    """Code the values by the lanes' shift and step; the weighted squared error of each lane."""
    for t in range(at.LANES):
        lane[at.ERROR + t] = _ZERO
    for first in range(0, len(x), _UNROLL):
        for t in range(at.LANES):
            total = lane[at.ERROR + t]
            shift, inverse, step = lane[at.SHIFT + t], lane[at.INVERSE + t], lane[at.STEP + t]
            for k in range(_UNROLL):
                value = x[first + k, t] + shift
                code = min(max(_whole(value * inverse), _ZERO), top)
                off = value - code * step
                total += w[first + k, t] * off * off
            lane[at.ERROR + t] = total


@part
def _set_steps(lane: NDArray[np.float32]) -> None:
    """Shift, step and its inverse from whole scales and mins under trial."""
    for t in range(at.LANES):
        step = lane[at.D + t] * lane[at.SCALE_TRY + t]
        lane[at.STEP + t] = step
        lane[at.INVERSE + t] = _ONE / step if step > _ZERO else _ZERO
        lane[at.SHIFT + t] = lane[at.DMIN + t] * lane[at.MIN_TRY + t] + lane[at.LOW + t]


@part
def _load(rows: NDArray[np.float32], begin: int, size: int, tile: NDArray[np.float32]) -> None:
    """Super-blocks from ``begin`` on (after the last, the first), a sub-block in each lane."""
    subs = SUPER // size
    for p in range(at.LANES // subs):
        block = rows[(begin + p) % len(rows)]
        for j in range(subs):
            for k in range(size):
                tile[k, p * subs + j] = block[j * size + k]


@part
def _prepare(
    x: NDArray[np.float32],
    w: NDArray[np.float32],
    lane: NDArray[np.float32],
    search: Search,
    calibrated: bool,
) -> None:
    """Scale every super-block to about 1, weigh its values, and count from its sub-block's low.

    A power of two is no rounding; squares of the largest and smallest floats stay in range.
    """
    subs = SUPER // search.size
    for t in range(at.LANES):
        lane[at.LOW + t] = _ZERO
        lane[at.SPAN + t] = x[0, t]
        lane[at.WXQ + t] = _ZERO
        lane[at.W + t] = _ZERO
        lane[at.WX + t] = _ZERO
    for k in range(len(x)):
        for t in range(at.LANES):
            lane[at.LOW + t] = min(lane[at.LOW + t], x[k, t])
            lane[at.SPAN + t] = max(lane[at.SPAN + t], x[k, t])
    for a in range(0, at.LANES, subs):
        largest = _ZERO
        for t in range(a, a + subs):
            largest = max(largest, max(-lane[at.LOW + t], lane[at.SPAN + t]))
        exponent = min(max(math.frexp(largest)[1], -60), 120) if largest > _ZERO else 0
        for t in range(a, a + subs):
            lane[at.UNIT + t] = _F(2.0**exponent)
            lane[at.INVERSE + t] = _F(2.0**-exponent)
    for k in range(len(x)):
        for t in range(at.LANES):
            value = x[k, t] * lane[at.INVERSE + t]
            x[k, t] = value
            lane[at.WXQ + t] += value * value
    for a in range(0, at.LANES, subs):
        total = _ZERO
        for t in range(a, a + subs):
            total += lane[at.WXQ + t]
        lane[at.WXQ + a : at.WXQ + a + subs] = total / _F(SUPER)
    spread = search.spread if calibrated else _ZERO
    flat = search.flat_calibrated if calibrated else search.flat
    for t in range(at.LANES):
        square = lane[at.WXQ + t]
        lane[at.WXQ + t] = spread * square
        lane[at.WQQ + t] = flat * math.sqrt(square)
        lane[at.LOW + t] *= lane[at.INVERSE + t]
        lane[at.SPAN + t] = lane[at.SPAN + t] * lane[at.INVERSE + t] - lane[at.LOW + t]
    for k in range(len(x)):
        for t in range(at.LANES):
            value = x[k, t]
            magnitude = math.sqrt(lane[at.WXQ + t] + value * value)
            weight = lane[at.WQQ + t] + magnitude
            w[k, t] = w[k, t] * weight if calibrated else weight
            lane[at.W + t] += w[k, t]
            lane[at.WX + t] += math.sqrt(math.sqrt(w[k, t])) if calibrated else _ZERO
    for t in range(at.LANES):
        # The mean of roots is one that a huge importance does not carry away; but a value that has
        # nearly all the weight leaves the fit of the others to rounding.
        mean, root = lane[at.W + t] / _F(search.size), lane[at.WX + t] / _F(search.size)
        fourth = root * root * root * root
        lane[at.WQ + t] = search.even * fourth + _LEAST_SHARE * mean if calibrated else _ZERO
        if not mean > _ZERO:  # a zero block, or nothing in it is important: every value alike
            lane[at.WQ + t] = _ONE
        lane[at.W + t] = _ZERO
        lane[at.WX + t] = _ZERO
    for k in range(len(x)):
        for t in range(at.LANES):
            value = x[k, t] - lane[at.LOW + t]
            x[k, t] = value
            w[k, t] += lane[at.WQ + t]
            lane[at.W + t] += w[k, t]
            lane[at.WX + t] += w[k, t] * value


@part
def _keep_better_fit(lane: NDArray[np.float32]) -> None:
    """The scale and min that suit the codes just summed, kept where they beat the best so far."""
    for t in range(at.LANES):
        low, total, wx = lane[at.LOW + t], lane[at.W + t], lane[at.WX + t]
        wq, wqq, wxq = lane[at.WQ + t], lane[at.WQQ + t], lane[at.WXQ + t]
        curve = wqq - wq * wq / total
        cross = wxq - wx * wq / total
        step = cross / curve if curve > _FLAT * wqq else _ZERO
        shift = (step * wq - wx) / total
        gain = step * cross
        # The min cannot be above zero: there, the best line through zero.
        cross0 = wxq + low * wq
        wx0 = wx + low * total
        step0 = cross0 / wqq if wqq > _ZERO else _ZERO
        above = shift < low
        step = step0 if above else step
        gain = step0 * cross0 - wx0 * wx0 / total if above else gain
        better = gain > lane[at.GAIN + t]
        lane[at.GAIN + t] = gain if better else lane[at.GAIN + t]
        lane[at.FIT_STEP + t] = step if better else lane[at.FIT_STEP + t]
        lane[at.FIT_SHIFT + t] = max(shift, low) if better else lane[at.FIT_SHIFT + t]
        lane[at.FIT_WQ + t] = wq if better else lane[at.FIT_WQ + t]
        lane[at.CURVE + t] = (wqq if above else curve) if better else lane[at.CURVE + t]


@part
def _fit(
    x: NDArray[np.float32], w: NDArray[np.float32], lane: NDArray[np.float32], search: Search
) -> None:
    """Step 1: a step and shift for every sub-block alone."""
    for t in range(at.LANES):
        lane[at.GAIN + t] = _F(-np.inf)
        lane[at.FIT_STEP + t] = _ZERO
        lane[at.FIT_SHIFT + t] = _ZERO
        lane[at.FIT_WQ + t] = _ZERO
        lane[at.CURVE + t] = _ZERO
    for k in range(search.steps + search.polish):
        fan = (search.last - search.first) * (_F(k) / _F(search.steps - 1))
        steps = search.top + search.first + fan
        # By turns the lowest value gets code 0, or the largest the top one.
        ahead = (search.top - steps) * _F(k % 2)
        from_best = k >= search.steps
        for t in range(at.LANES):
            step = lane[at.FIT_STEP + t] if from_best else lane[at.SPAN + t] / steps
            lane[at.INVERSE + t] = _ONE / step if step > _ZERO else _ZERO
            lane[at.SHIFT + t] = lane[at.FIT_SHIFT + t] if from_best else step * ahead
        _sums(x, w, lane, search.top)
        _keep_better_fit(lane)


@part
def _common(
    values: NDArray[np.float32],
    curves: NDArray[np.float32],
    levels: np.float32,
    unit: np.float32,
    trial: NDArray[np.float32],
) -> np.float32:
    """The float16 whose multiples up to ``levels`` lie closest to the values of a super-block.

    -1 where no float16 is large enough.
    """
    largest = _ZERO
    for value in values:
        largest = max(largest, value)
    if not largest > _ZERO:
        return _ZERO
    if not largest * (unit / levels) <= _HALF_MAX:
        return _TOO_LARGE
    # Not the constant: the compiler would write out the loops, and then find no vectors in them.
    count = len(trial) // 3
    for k in range(count):
        # The largest value becomes a little more than ``levels``, that, and down to 3/4 of it.
        share = levels - _F(k - 1) * (levels / _F(4 * _TRIALS))
        d = _half(largest / share * unit) / unit
        trial[_T_D + k] = d
        trial[_T_INVERSE + k] = _ONE / d
        trial[_T_ERROR + k] = _ZERO
    for j in range(len(values)):
        value, curve = values[j], curves[j]
        for k in range(count):
            near = min(_whole(value * trial[_T_INVERSE + k]), levels)
            off = value - near * trial[_T_D + k]
            trial[_T_ERROR + k] += curve * off * off
    best = 0
    for k in range(1, count):
        if trial[_T_ERROR + k] < trial[_T_ERROR + best]:
            best = k
    found: np.float32 = trial[_T_D + best]
    return found


@part
def _share(
    lane: NDArray[np.float32], begin: int, end: int, levels: np.float32, trial: NDArray[np.float32]
) -> bool:
    """Step 2: d and dmin of a super-block, and whole scales by them. False where float16 ends."""
    unit = lane[at.UNIT + begin]
    steps, curves = (
        lane[at.FIT_STEP + begin : at.FIT_STEP + end],
        lane[at.CURVE + begin : at.CURVE + end],
    )
    d = _common(steps, curves, levels, unit, trial)
    for t in range(begin, end):
        lane[at.SCALE0 + t] = min(_whole(lane[at.FIT_STEP + t] / d), levels) if d > _ZERO else _ZERO
        shift = (d * lane[at.SCALE0 + t] * lane[at.FIT_WQ + t] - lane[at.WX + t]) / lane[at.W + t]
        lane[at.MIN + t] = max(shift - lane[at.LOW + t], _ZERO)
    mins, weights = lane[at.MIN + begin : at.MIN + end], lane[at.W + begin : at.W + end]
    dmin = _common(mins, weights, levels, unit, trial)
    lane[at.D + begin : at.D + end] = d
    lane[at.DMIN + begin : at.DMIN + end] = dmin
    return bool(d >= _ZERO and dmin >= _ZERO)


@part
def _settle(
    x: NDArray[np.float32],
    w: NDArray[np.float32],
    lane: NDArray[np.float32],
    search: Search,
) -> None:
    """Step 3: the whole scale and min of each sub-block that leave the least error."""
    levels = search.levels
    for t in range(at.LANES):
        lane[at.LEAST + t] = _F(np.inf)
        lane[at.PER_W + t] = _ONE / lane[at.W + t]
        lane[at.PER_DMIN + t] = _ONE / lane[at.DMIN + t] if lane[at.DMIN + t] > _ZERO else _ZERO
    tries = 2 * search.scales + 1
    for k in range(tries + 2 * search.mins):
        # 0, 1, -1, 2, -2 ...: the scale, with the min that suits it; then the min from the best on.
        other_min = k >= tries
        number = k - tries + 1 if other_min else k
        away = _F((number + 1) // 2 * (1 - number % 2 * 2))
        for t in range(at.LANES):
            moved = min(max(lane[at.SCALE0 + t] + away, _ZERO), levels)
            scale = lane[at.SCALE_BEST + t] if other_min else moved
            shift = (lane[at.D + t] * scale * lane[at.FIT_WQ + t] - lane[at.WX + t]) * lane[
                at.PER_W + t
            ]
            middle = (shift - lane[at.LOW + t]) * lane[at.PER_DMIN + t]
            middle = _whole(min(max(middle, _ZERO), levels))
            lane[at.SCALE_TRY + t] = scale
            moved = min(max(middle + away, _ZERO), levels)
            lane[at.MIN_TRY + t] = moved if other_min else middle
        _set_steps(lane)
        _errors(x, w, lane, search.top)
        for t in range(at.LANES):
            better = lane[at.ERROR + t] < lane[at.LEAST + t]
            lane[at.LEAST + t] = lane[at.ERROR + t] if better else lane[at.LEAST + t]
            lane[at.SCALE_BEST + t] = lane[at.SCALE_TRY + t] if better else lane[at.SCALE_BEST + t]
            lane[at.MIN_BEST + t] = lane[at.MIN_TRY + t] if better else lane[at.MIN_BEST + t]


@part
def _keep_better_blocks(lane: NDArray[np.float32], subs: int) -> None:
    """What step 3 found, where the super-block's error is less than what was kept."""
    for a in range(0, at.LANES, subs):
        kept = found = 0.0
        for t in range(a, a + subs):
            kept += lane[at.KEPT_LEAST + t]
            found += lane[at.LEAST + t]
        if found < kept:
            for t in range(a, a + subs):
                lane[at.KEPT_LEAST + t] = lane[at.LEAST + t]
                lane[at.KEPT_D + t] = lane[at.D + t]
                lane[at.KEPT_DMIN + t] = lane[at.DMIN + t]
                lane[at.KEPT_SCALE + t] = lane[at.SCALE_BEST + t]
                lane[at.KEPT_MIN + t] = lane[at.MIN_BEST + t]


@part
def _try_kept(lane: NDArray[np.float32]) -> None:
    for t in range(at.LANES):
        lane[at.D + t] = lane[at.KEPT_D + t]
        lane[at.DMIN + t] = lane[at.KEPT_DMIN + t]
        lane[at.SCALE_TRY + t] = lane[at.KEPT_SCALE + t]
        lane[at.MIN_TRY + t] = lane[at.KEPT_MIN + t]
    _set_steps(lane)


@part
def _refit(
    x: NDArray[np.float32], w: NDArray[np.float32], lane: NDArray[np.float32], search: Search
) -> None:
    """Step 4: d and dmin by least squares over the codes kept."""
    _try_kept(lane)
    _sums(x, w, lane, search.top)
    for t in range(at.LANES):
        lane[at.SCALE0 + t] = lane[at.KEPT_SCALE + t]
        lane[at.FIT_WQ + t] = lane[at.WQ + t]
    subs = SUPER // search.size
    for a in range(0, at.LANES, subs):
        dd = dm = mm = dx = mx = 0.0
        for t in range(a, a + subs):
            scale, least, low = lane[at.KEPT_SCALE + t], lane[at.KEPT_MIN + t], lane[at.LOW + t]
            dd += scale * scale * lane[at.WQQ + t]
            dm += scale * least * lane[at.WQ + t]
            mm += least * least * lane[at.W + t]
            dx += scale * (lane[at.WXQ + t] + low * lane[at.WQ + t])
            mx += least * (lane[at.WX + t] + low * lane[at.W + t])
        determinant = dd * mm - dm * dm
        if determinant > _FLAT * dd * mm:
            d = (dx * mm - mx * dm) / determinant
            dmin = (dx * dm - mx * dd) / determinant
            unit = lane[at.UNIT + a]
            if d > 0.0 and dmin > 0.0:
                lane[at.D + a : at.D + a + subs] = _half(_F(d * unit)) / unit
                lane[at.DMIN + a : at.DMIN + a + subs] = _half(_F(dmin * unit)) / unit


@kernel
def pack_codes(
    codes: NDArray[np.uint8], planes: NDArray[np.int64], block: NDArray[np.uint8]
) -> None:
    """Put the 256 codes of a super-block in its bytes.

    A row of ``planes`` is (offset, high, parts): of the codes' low four bits, or those above where
    ``high`` is 1, every ``parts`` runs of 32 become one run of bytes from ``offset`` on, the first
    run in the lowest bits.
    """
    for plane in range(len(planes)):
        offset, high, parts = planes[plane]
        block[offset : offset + SUPER // parts] = 0
        for run in range(SUPER // 32):
            # A product, unlike a shift by a variable, is vector code on bytes.
            factor = 1 << (8 // parts * (run % parts))
            begin, to = run * 32, offset + run // parts * 32
            source, target = codes[begin : begin + 32], block[to : to + 32]
            for k in range(32):
                nibble = source[k] >> 4 if high else source[k] & 15
                target[k] |= np.uint8(nibble * factor)


@part
def _store(
    x: NDArray[np.float32],
    lane: NDArray[np.float32],
    search: Search,
    begin: int,
    tile: NDArray[np.uint8],
    planes: NDArray[np.int64],
    raw: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    mins: NDArray[np.uint8],
    supers: NDArray[np.float32],
) -> None:
    """The best scales and mins, and the codes they give, to where the blocks' results go."""
    _try_kept(lane)
    for k in range(len(x)):
        for t in range(at.LANES):
            code = _whole((x[k, t] + lane[at.SHIFT + t]) * lane[at.INVERSE + t])
            tile[k, t] = np.uint8(min(max(code, _ZERO), search.top))
    codes = np.empty(SUPER, np.uint8)
    subs = SUPER // search.size
    for p in range(min(at.LANES // subs, len(raw) - begin)):
        for j in range(subs):
            t = p * subs + j
            scales[j, begin + p] = np.uint8(lane[at.KEPT_SCALE + t])
            mins[j, begin + p] = np.uint8(lane[at.KEPT_MIN + t])
            for k in range(len(tile)):
                codes[j * len(tile) + k] = tile[k, t]
        pack_codes(codes, planes, raw[begin + p])
        supers[begin + p, 0] = lane[at.D + p * subs] * lane[at.UNIT + p * subs]
        supers[begin + p, 1] = lane[at.DMIN + p * subs] * lane[at.UNIT + p * subs]


@kernel
def search_blocks(
    blocks: NDArray[np.float32],
    importance: NDArray[np.float32],
    calibrated: bool,
    search: Search,
    planes: NDArray[np.int64],
    raw: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    mins: NDArray[np.uint8],
    supers: NDArray[np.float32],
) -> int:
    """Find codes, scales, mins, d and dmin of super-blocks.

    Args:
        blocks: ``[n, 256]`` values; block 0 begins a row.
        importance: ``[columns / 256, 256]``, a weight for each column.
        calibrated: whether the importance says anything.
        search: the type, and how long to look.
        planes: where the codes go, as :func:`pack_codes` takes it.
        raw: ``[n, bytes]``: the codes are put in, the rest is left.
        scales: out, ``[256 / size, n]``.
        mins: out, the same.
        supers: out, ``[n, 2]``: d and dmin, each a float16.

    Returns:
        -1, or the first block of a tile with values too large for a float16 scale.
    """
    x = np.empty((search.size, at.LANES), np.float32)
    w = np.empty((search.size, at.LANES), np.float32)
    tile = np.empty((search.size, at.LANES), np.uint8)
    lane = np.empty(at.ROWS, np.float32)
    trial = np.empty(3 * _TRIALS, np.float32)
    subs = SUPER // search.size
    for begin in range(0, len(blocks), at.LANES // subs):
        _load(blocks, begin, search.size, x)
        if calibrated:
            _load(importance, begin, search.size, w)
        _prepare(x, w, lane, search, calibrated)
        _fit(x, w, lane, search)
        for a in range(0, at.LANES, subs):
            if not _share(lane, a, a + subs, search.levels, trial):
                return begin
        lane[at.KEPT_LEAST : at.KEPT_LEAST + at.LANES] = _F(np.inf)
        for turn in range(search.turns):
            if turn:
                _refit(x, w, lane, search)
            _settle(x, w, lane, search)
            _keep_better_blocks(lane, subs)
        _store(x, lane, search, begin, tile, planes, raw, scales, mins, supers)
    return -1
