"""What every affine method shares: blocks, stored scales, codes, and how far off they are.

``w ~ (q - zero) * scale``. A method only has to say which scale and zero point each block gets (a
:data:`Fit`); :func:`encode` cuts the matrix into blocks, rounds the scales to the dtype they will
be stored in, and chooses the codes *for those stored scales*, so that the rounding of a scale
costs next to nothing.

Inside, a chunk of blocks is laid out ``[width, n]``, one block a column: sums over a block then
run over the first axis, which numpy does a whole vector of blocks at a time. No BLAS is called,
so the codes do not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Codes

__all__ = [
    "SCALE_DTYPES",
    "Fit",
    "Levels",
    "check_finite",
    "dequantize",
    "encode",
    "narrowest_scale",
    "noise_power",
    "ratio_db",
    "sqnr_db",
    "stored_scale",
]

Floats = NDArray[np.float32]

#: Dtypes that a scale can be stored in. bfloat16 has float32's range in two bytes.
SCALE_DTYPES = ("float32", "float16", "bfloat16")

#: The scale of a block of zeros: any would do; this one is exact in every dtype, safe to divide
#: by, and too small to matter where a maximum over scales is taken.
_ZERO_BLOCK = np.float32(2.0**-14)

_TINY = np.float32(np.finfo(np.float32).tiny)
_LARGEST = np.float32(np.finfo(np.float32).max) * np.float32(0.99)
_FLOAT16_STEP = np.float32(2.0**-24)
_FLOAT16_MAX = np.float32(65504.0)
#: Above this, rounding to float16's smallest step is under a hundredth of the scale.
_FLOAT16_FINE = 64 * _FLOAT16_STEP

#: Elements worked on at a time: a few float32 temporaries of this size stay in a core's cache.
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Levels:
    """The codes that a scheme may use: ``low .. high``, around 0 when symmetric.

    Symmetric 8-bit codes leave -128 out: the range is then its own mirror image, pairs of products
    stay inside int16 in the kernels that add them there, and the level lost is worth 0.03 dB. With
    4 bits it is worth 1 dB, so all of -8 .. 7 is used and the *sign of the scale* decides which end
    of a block gets the longer side, as in ggml's Q4_0.
    """

    bits: int
    symmetric: bool

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"{self.bits} bits a weight, codes hold 2 to 8")

    @property
    def low(self) -> int:
        if not self.symmetric:
            return 0
        return -127 if self.bits == 8 else -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.symmetric else (1 << self.bits) - 1

    @property
    def mirrored(self) -> bool:
        """Whether the codes are their own mirror image, so that a scale's sign changes nothing."""
        return self.low == -self.high

    @property
    def dtype(self) -> Any:
        return np.int8 if self.symmetric else np.uint8


class Fit(Protocol):
    """A method: the scale and the zero point of each block.

    ``x`` is float32 ``[width, n]``, one block a column, all finite; ``importance`` float32 of the
    same shape (weights of the squared errors) or None. Returns ``scale`` float32 ``[n]`` and
    ``zero``, whole numbers within the levels as float32 ``[n]``, or None when symmetric. Where a
    block is all zero, what it returns does not matter.
    """

    def __call__(
        self, x: Floats, levels: Levels, importance: Floats | None
    ) -> tuple[Floats, Floats | None]: ...


def check_finite(w: NDArray[Any]) -> None:
    """Raises ValueError when ``w`` holds a NaN or an infinity."""
    flat = w.reshape(-1)
    for lo in range(0, flat.size, _CHUNK):
        if not np.isfinite(flat[lo : lo + _CHUNK]).all():
            raise ValueError("weights hold NaN or Inf")


def stored_scale(scale: Floats, dtype: str) -> Floats:
    """``scale`` as it will be read back from ``dtype``, still float32. Never 0.

    A float16 scale below 2**-14 has fewer digits; its magnitude is rounded up there (at least to
    2**-24), which wastes a little resolution where rounding down would clip. Weights so small
    (below about 4e-4 at 4 bits) lose precision relative to themselves: store float32 or bfloat16
    scales where that matters. Raises ValueError where a scale is over float16's 65504.
    """
    if dtype not in SCALE_DTYPES:
        raise ValueError(f"scale dtype {dtype!r}, known are {', '.join(SCALE_DTYPES)}")
    sign = np.where(scale < 0, np.float32(-1), np.float32(1))
    size = np.maximum(np.abs(scale), _TINY)
    if dtype == "float16":
        if size.max(initial=0) > _FLOAT16_MAX:
            raise ValueError(
                f"scale {size.max():.3g} is over float16's largest 65504; store scales as float32"
            )
        rough = np.ceil(size / _FLOAT16_STEP) * _FLOAT16_STEP
        size = np.where(size < 2.0**-14, rough, size.astype(np.float16).astype(np.float32))
    elif dtype == "bfloat16":
        bits = size.view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        size = np.minimum(rounded & np.uint32(0xFFFF0000), np.uint32(0x7F7F0000)).view(np.float32)
    return np.asarray(sign * size, dtype=np.float32)


def narrowest_scale(rows: NDArray[Any], bits: int) -> str:
    """float16 where it holds the scale of every row of ``rows`` to a part in a hundred, else
    float32: weights of 1e-9 have scales that float16 makes zero, and those of 1e9 infinity.

    ``rows`` [rows, columns] as :func:`encode` takes them, symmetric or not. A row of zeros needs no
    scale. What is not finite is for :func:`encode` to say.
    """
    peaks = np.abs(rows).max(axis=1, initial=0).astype(np.float64)
    steps = peaks[np.isfinite(peaks) & (peaks > 0)] / ((1 << bits) - 1)
    held = not steps.size or (steps.min() >= _FLOAT16_FINE and 2 * steps.max() <= _FLOAT16_MAX)
    return "float16" if held else "float32"


def encode(
    w: NDArray[Any],
    fit: Fit,
    *,
    bits: int,
    block: int | None,
    symmetric: bool,
    scale_dtype: str = "float32",
    importance: NDArray[Any] | None = None,
) -> Codes:
    """Codes of the matrix ``w`` ``[rows, columns]`` with the scales and zero points ``fit`` finds.

    Blocks of ``block`` elements run along the columns; the last may be short; None means one a
    row. ``importance`` ``[columns]`` weighs the squared errors of the columns. Blocks of zeros
    decode to exact zeros; a constant block to its constant, within the rounding of its stored
    scale. Rounding is half to even, as ONNX's QuantizeLinear does.

    Raises ValueError on NaN or Inf, on another number of dimensions, on bits outside 2 to 8, and
    where float16 cannot hold a scale.
    """
    if w.ndim != 2:
        raise ValueError(f"{w.ndim} dimensions, a matrix has 2")
    if block is not None and block < 1:
        raise ValueError(f"block of {block}, at least 1 is needed")
    levels = Levels(bits, symmetric)
    rows, columns = w.shape
    width = columns if block is None else block
    blocks = -(-columns // width) if columns else 0
    q = np.empty((rows, columns), levels.dtype)
    scale = np.empty((rows, blocks), np.float32)
    zero = None if symmetric else np.empty((rows, blocks), np.uint8)
    weigh = None if importance is None else np.asarray(importance, np.float32).reshape(1, columns)
    for part in _parts(rows, columns, width):
        x = _columns(w[part.rows, part.columns], part.width)
        if not np.isfinite(x).all():
            raise ValueError("weights hold NaN or Inf")
        iw = None
        if weigh is not None:
            iw = np.tile(_columns(weigh[:, part.columns], part.width), part.height)
        s, z = fit(x, levels, iw)
        empty = ~x.any(axis=0)
        # Near float32's largest, a scale rounded up would take its largest code past it.
        largest = _LARGEST / np.float32(max(levels.high, -levels.low))
        s = np.clip(np.where(empty, _ZERO_BLOCK, s), -largest, largest)
        s = stored_scale(s, scale_dtype)
        codes = np.rint(x / s)
        if z is not None:
            codes += z
        np.clip(codes, levels.low, levels.high, out=codes)
        shape = (part.height, -1)
        q[part.rows, part.columns] = codes.astype(levels.dtype).T.reshape(shape)
        scale[part.rows, part.blocks] = s.reshape(shape)
        if zero is not None and z is not None:
            zero[part.rows, part.blocks] = z.astype(np.uint8).reshape(shape)
    return Codes(q, scale, zero)


def dequantize(codes: Codes, block: int | None, columns: int) -> Floats:
    """``(q - zero) * scale`` as float32 ``[rows, columns]``; codes past ``columns`` are padding."""
    rows = codes.q.shape[0]
    width = columns if block is None else block
    out = np.empty((rows, columns), np.float32)
    for part in _parts(rows, columns, width):
        shape = (part.height, -1, part.width)
        x = codes.q[part.rows, part.columns].reshape(shape).astype(np.float32)
        if codes.zero is not None:
            x -= codes.zero[part.rows, part.blocks, None]
        x *= codes.scale[part.rows, part.blocks, None]
        out[part.rows, part.columns] = x.reshape(part.height, -1)
    return out


def sqnr_db(reference: NDArray[Any], got: NDArray[Any]) -> float:
    """Signal to quantization noise: ``10 log10(sum(ref**2) / sum((ref - got)**2))``, in dB.

    inf when the two are identical (also when both are all zero), -inf where only the reference is
    zero, and where ``got`` holds a NaN or Inf that the reference does not. Summed in float64.
    """
    return ratio_db(*noise_power(reference, got))


def noise_power(reference: NDArray[Any], got: NDArray[Any]) -> tuple[float, float]:
    """``(sum(ref**2), sum((ref - got)**2))`` in float64: what an SQNR is made of, to be added up.

    Where the reference is NaN or infinite nothing is counted; the noise is inf where only ``got``
    is. Raises ValueError on different shapes.
    """
    if reference.shape != got.shape:
        raise ValueError(f"shapes {reference.shape} and {got.shape} differ")
    a, b = reference.reshape(-1), got.reshape(-1)
    signal = noise = 0.0
    for lo in range(0, a.size, _CHUNK):
        x = a[lo : lo + _CHUNK].astype(np.float64)
        y = b[lo : lo + _CHUNK].astype(np.float64)
        known = np.isfinite(x)
        if not known.all():
            x, y = x[known], y[known]
        if not np.isfinite(y).all():
            noise = math.inf
            continue
        signal += float(np.sum(np.square(x)))
        noise += float(np.sum(np.square(x - y)))
    return signal, noise


def ratio_db(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)``, defined where either is 0 or the noise infinite."""
    if noise == 0:
        return math.inf
    return -math.inf if signal == 0 or noise == math.inf else 10 * math.log10(signal / noise)


@dataclass(frozen=True)
class _Part:
    """Some rows of blocks that are all ``width`` wide."""

    rows: slice
    columns: slice
    blocks: slice
    width: int

    @property
    def height(self) -> int:
        return int(self.rows.stop - self.rows.start)


def _parts(rows: int, columns: int, width: int) -> Iterator[_Part]:
    """Cut a matrix into parts of about a chunk; the short last blocks are parts of their own."""
    if not columns or not rows:
        return
    whole = columns // width
    spans = [(0, whole, width)] if whole else []
    if columns % width:
        spans.append((whole, whole + 1, columns % width))
    for first, last, size in spans:
        across = max(1, min(last - first, _CHUNK // size))
        down = max(1, _CHUNK // (across * size))
        for block in range(first, last, across):
            stop = min(block + across, last)
            start = block * width
            for row in range(0, rows, down):
                yield _Part(
                    slice(row, min(row + down, rows)),
                    slice(start, start + (stop - block) * size),
                    slice(block, stop),
                    size,
                )


def _columns(w: NDArray[Any], width: int) -> Floats:
    """A part ``[rows, blocks * width]`` as ``[width, rows * blocks]``."""
    return np.ascontiguousarray(w.reshape(-1, width).T, dtype=np.float32)
