"""What the search of the K-quants with mins works on, and the numbers that steer it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = [
    "LANES",
    "ROWS",
    "SUPER",
    "Search",
]

#: Values in a super-block.
SUPER = 256

#: Sub-blocks side by side.
LANES = 64

# Rows of the one array of lanes, as offsets. One array, and offsets that are constants: so the
# compiler sees that rows do not overlap.
LOW = 0 * LANES  #: the smallest value, or 0; values are kept relative to it
SPAN = 1 * LANES  #: largest less smallest
W = 2 * LANES  #: sum of weights
WX = 3 * LANES  #: sum of weight * value
WQ = 4 * LANES  #: sum of weight * code
WQQ = 5 * LANES  #: sum of weight * code^2
WXQ = 6 * LANES  #: sum of weight * value * code
INVERSE = 7 * LANES  #: 1 / step, or 0
STEP = 8 * LANES  #: between the values of codes
SHIFT = 9 * LANES  #: added to values before they are coded
ERROR = 10 * LANES  #: weighted squared error of a try
GAIN = 11 * LANES  #: by how much the best fit beats a constant
FIT_STEP = 12 * LANES  #: of the best fit
FIT_SHIFT = 13 * LANES
FIT_WQ = 14 * LANES
CURVE = 15 * LANES  #: half the second derivative of the error by the step
MIN = 16 * LANES  #: the min that suits the rounded scale
D = 17 * LANES
DMIN = 18 * LANES
SCALE0 = 19 * LANES  #: the whole scale around which others are tried
SCALE_TRY = 20 * LANES
MIN_TRY = 21 * LANES
SCALE_BEST = 22 * LANES  #: of the tries of one turn
MIN_BEST = 23 * LANES
LEAST = 24 * LANES  #: their error
UNIT = 25 * LANES  #: the power of two that values were divided by
KEPT_D = 26 * LANES  #: the best of all turns
KEPT_DMIN = 27 * LANES
KEPT_SCALE = 28 * LANES
KEPT_MIN = 29 * LANES
KEPT_LEAST = 30 * LANES
PER_W = 31 * LANES  #: 1 / sum of weights
PER_DMIN = 32 * LANES  #: 1 / dmin, or 0
ROWS = 33 * LANES


class Search(NamedTuple):
    """What a type is, and how long to look for it. Floats are numpy's float32."""

    size: int  #: values in a sub-block
    top: np.float32  #: largest code
    levels: np.float32  #: largest whole scale and min
    flat: np.float32  #: how much plain error counts beside that weighted by magnitude
    flat_calibrated: np.float32  #: the same with importance
    spread: np.float32  #: mean square under the root of the weights with importance
    even: np.float32  #: of the weights' mean (of 4th roots), given to every value with importance
    steps: int  #: scales that the first search tries
    first: np.float32  #: steps across the span, over ``top``: the fan's first
    last: np.float32  #: and last
    polish: int  #: fits from the best fit on
    scales: int  #: whole scales tried either side
    mins: int  #: whole mins tried either side
    turns: int  #: how often step 3 is done
