"""numpy views of strided tensors inside a mapped file.

Nothing here copies: an array is a window on the file's pages. The one exception is data in the
other byte order, which has to be turned round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import DTYPE_BITS
from edgeopt.errors import FormatError
from edgeopt.files.reading import FileBytes, numpy_dtype
from edgeopt.files.text import one_line

__all__ = ["Stretch", "StridedReader"]


@dataclass(frozen=True, slots=True)
class Stretch:
    """``nbytes`` bytes of a mapped file from ``start``: a storage, known as ``key``."""

    file: FileBytes
    key: str
    start: int
    nbytes: int


class StridedReader:
    """Reads rows of a strided tensor that lies in a :class:`Stretch`; a ``Weight.reader``.

    ``offset`` and ``stride`` count elements. Raises FormatError, at construction, when the tensor
    would reach outside the stretch or claims far more elements than it has bytes for.
    """

    __slots__ = (
        "big_endian",
        "conjugate",
        "dtype",
        "negative",
        "offset",
        "shape",
        "stretch",
        "stride",
    )

    def __init__(
        self,
        stretch: Stretch,
        name: str,
        dtype: str,
        offset: int,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        *,
        big_endian: bool = False,
        conjugate: bool = False,
        negative: bool = False,
    ) -> None:
        self.stretch, self.dtype, self.offset = stretch, dtype, offset
        self.shape, self.stride, self.big_endian = shape, stride, big_endian
        self.conjugate, self.negative = conjugate, negative
        itemsize = DTYPE_BITS[dtype] // 8
        size = math.prod(shape)
        last = offset + sum((d - 1) * s for d, s in zip(shape, stride, strict=True)) + 1
        path, nbytes = stretch.file.path, stretch.nbytes
        if size and last * itemsize > nbytes:
            key = one_line(stretch.key)
            raise FormatError(
                path,
                f"needs {last * itemsize} bytes of storage {key}, it has {nbytes}",
                field=one_line(f"tensor {name}"),
            )
        # An expanded tensor (stride 0) may be larger than its storage, within reason.
        if size * itemsize > max(64 * nbytes, 1 << 28) or max(shape, default=0) >= 1 << 48:
            raise FormatError(
                path,
                f"claims {size * itemsize} bytes of a storage of {nbytes}",
                field=one_line(f"tensor {name}"),
            )

    @property
    def contiguous(self) -> bool:
        expected = 1
        for dim, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if dim != 1 and step != expected:
                return False
            expected *= dim
        return True

    def __call__(self, lo: int, hi: int) -> NDArray[Any]:
        shape = self.shape
        count = shape[0] if shape else 1
        if not 0 <= lo <= hi <= count:
            raise IndexError(f"rows {lo}:{hi} of a tensor with {count} rows")
        part = (hi - lo, *shape[1:]) if shape else ()
        dtype = numpy_dtype(self.dtype)
        if not math.prod(part):
            return np.zeros(part, dtype)
        first = self.offset + (lo * self.stride[0] if shape else 0)
        span = sum((d - 1) * s for d, s in zip(part, self.stride, strict=True)) + 1
        at, nbytes = self.stretch.start + first * dtype.itemsize, span * dtype.itemsize
        array: NDArray[Any]
        flat = self._native(self.stretch.file.view(at, nbytes), dtype)
        if self.contiguous:
            array = flat.reshape(part)
        else:
            steps = [s * dtype.itemsize for s in self.stride]
            array = np.lib.stride_tricks.as_strided(flat, part, steps, writeable=False)
        if self.conjugate:
            array = array.conj()
        if self.negative:
            array = -array
        return array

    def _native(self, raw: NDArray[np.uint8], dtype: np.dtype[Any]) -> NDArray[Any]:
        if not self.big_endian or dtype.itemsize == 1:
            return raw.view(dtype)
        width = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
        turned: NDArray[Any] = raw.view(f"u{width}").byteswap().view(dtype)
        return turned
