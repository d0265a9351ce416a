"""Tensors as a bitmask and the values that are not zero, and back, bit for bit.

Element ``i`` of the flattened (row-major) tensor answers to bit ``i % 8``, counted from the lowest,
of mask byte ``i // 8``. The mask is flat: rows do not begin on bytes of their own, which would cost
a bias of one column a byte a value; the bits left over in the last byte are 0. Values are those
elements of which any bit is set, in order: -0.0 is a value, and NaN keeps its payload.

Nothing here needs a whole tensor: it is packed and counted in pieces of any size, and any run of
elements is unpacked alone, once it is known how many values come before it (:class:`Ranks`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Array

__all__ = ["Ranks", "count_nonzero", "pack", "popcount", "unpack"]

Bytes = NDArray[np.uint8]

#: Bits that are set in each byte value.
_ONES: Bytes = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(
    axis=1, dtype=np.uint8
)

#: Mask bytes between two counts that are kept: 8 bytes of memory for 32,768 elements.
_STRIDE = 4096

#: Mask bytes that are looked at (or unpacked) at a time.
_PIECE = 1 << 18


def _bits(values: Array) -> Array:
    """The elements as unsigned integers of their own size, flat."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if flat.dtype.itemsize not in (1, 2, 4, 8):
        raise ValueError(f"{flat.dtype} has elements of {flat.dtype.itemsize} bytes, not 1 to 8")
    return flat.view(f"u{flat.dtype.itemsize}")


def count_nonzero(values: Array) -> int:
    """Elements of which any bit is set."""
    return int(np.count_nonzero(_bits(values)))


def popcount(mask: Bytes) -> int:
    """Bits that are set in all bytes of ``mask`` together."""
    return sum(
        int(_ONES[mask[at : at + _PIECE]].sum(dtype=np.int64)) for at in range(0, mask.size, _PIECE)
    )


def pack(pieces: Iterable[Array]) -> Iterator[tuple[Bytes, Array]]:
    """(mask bytes, values) of a tensor that comes in consecutive pieces of any shape.

    Mask bytes come as soon as they are full; the last one with the end. Values keep their dtype.
    Raises ValueError for elements of other than 1, 2, 4 or 8 bytes.
    """
    rest = np.zeros(0, np.bool_)
    for piece in pieces:
        bits = _bits(piece)
        kept = bits != 0
        mask = np.concatenate([rest, kept]) if rest.size else kept
        whole = mask.size - mask.size % 8
        rest = mask[whole:].copy()
        yield np.packbits(mask[:whole], bitorder="little"), bits[kept].view(piece.dtype)
    if rest.size:
        yield np.packbits(rest, bitorder="little"), np.zeros(0, piece.dtype)


class Ranks:
    """How many values come before an element: counted once, kept every 32,768 elements.

    ``read(begin, end)`` gives those bytes of the mask. Raises ValueError where a bit after the
    last of ``size`` elements is set.
    """

    def __init__(self, read: Callable[[int, int], Bytes], size: int) -> None:
        self._read = read
        nbytes = (size + 7) // 8
        counts = [np.zeros(1, np.int64)]
        for begin in range(0, nbytes, _PIECE):
            ones = _ONES[read(begin, min(begin + _PIECE, nbytes))]
            counts.append(np.add.reduceat(ones, np.arange(0, ones.size, _STRIDE), dtype=np.int64))
        self._before = np.cumsum(np.concatenate(counts))
        if size % 8 and read(nbytes - 1, nbytes)[0] >> np.uint8(size % 8):
            raise ValueError(f"bits after the last of {size} elements are set")

    @property
    def total(self) -> int:
        """Values in the whole tensor."""
        return int(self._before[-1])

    def before(self, element: int) -> int:
        """Values among the elements ``0 .. element - 1``."""
        block, byte = element // 8 // _STRIDE, element // 8
        count = int(self._before[block]) + popcount(self._read(block * _STRIDE, byte))
        if element % 8:
            low = self._read(byte, byte + 1) & np.uint8((1 << element % 8) - 1)
            count += int(_ONES[low][0])
        return count


def unpack(mask: Bytes, skip: int, count: int, values: Array) -> Array:
    """``count`` elements, flat, after the first ``skip`` bits (0 to 7) of ``mask``.

    ``values`` are theirs alone. Raises ValueError where the mask has another number of them.
    """
    out = np.zeros(count, values.dtype)
    bits, stored = _bits(out), _bits(values)
    used = 0
    for begin in range(0, count, 8 * _PIECE):
        end = min(begin + 8 * _PIECE, count)
        raw = mask[begin // 8 : (skip + end + 7) // 8]
        kept = np.unpackbits(raw, count=skip + end - begin, bitorder="little")[skip:].view(np.bool_)
        ones = int(np.count_nonzero(kept))
        if used + ones <= stored.size:
            bits[begin:end][kept] = stored[used : used + ones]
        used += ones
    if used != stored.size:
        raise ValueError(f"the mask has {used} values, {stored.size} are given")
    return out
