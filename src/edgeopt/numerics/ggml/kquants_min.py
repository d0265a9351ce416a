"""Q2_K, Q4_K and Q5_K: float16 scale and min for 256 values, whole ones by them for 16 or 32.

Layouts from ggml's ``block_q2_K``, ``block_q4_K`` and ``block_q5_K``
(https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h). The search is our own; it
minimizes squared error weighted between plain and ggml's way (by magnitude), so that neither is
bought with the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeopt.core.ggml import TYPES_BY_NAME
from edgeopt.numerics.ggml.kquants_min_lanes import SUPER, Search
from edgeopt.numerics.ggml.kquants_min_search import search_blocks

__all__ = ["encode_q2_k", "encode_q4_k", "encode_q5_k"]

_F, _U8 = np.float32, np.uint8
_Bytes = NDArray[np.uint8]

_Q4_K = Search(
    size=32,
    top=_F(15),
    levels=_F(63),
    flat=_F(2),
    flat_calibrated=_F(1),
    spread=_F(2),
    even=_F(0.2),
    steps=14,
    first=_F(-2),
    last=_F(1),
    polish=2,
    scales=1,
    mins=1,
    turns=2,
)
_Q5_K = _Q4_K._replace(top=_F(31), steps=10, polish=1)
_Q2_K = _Q4_K._replace(
    size=16,
    top=_F(3),
    levels=_F(15),
    flat=_F(0.5),
    spread=_F(1),
    steps=8,
    polish=1,
    first=_F(-1),
    last=_F(1),
)


class _Layout(NamedTuple):
    """Where the parts of a block lie."""

    planes: NDArray[np.int64]  #: the codes, as pack_codes takes them
    supers: int  #: offset of d and dmin
    scales: int  #: offset of what ``pack`` makes of whole scales and mins
    pack: Callable[[_Bytes, _Bytes], _Bytes]

    def put(self, raw: _Bytes, scales: _Bytes, mins: _Bytes, supers: NDArray[np.float32]) -> None:
        """Everything but the codes, ``[subs, n]`` and ``[n, 2]``, into blocks ``[n, bytes]``."""
        raw[:, self.supers : self.supers + 4] = supers.astype("<f2").view(np.uint8)
        packed = self.pack(scales, mins)
        raw[:, self.scales : self.scales + len(packed)] = packed.T


def _six_bits(scales: _Bytes, mins: _Bytes) -> _Bytes:
    """Eight scales and eight mins ``[8, n]`` in bytes ``[12, n]``.

    The first four of each whole, below the two high bits of the last four; then those' low bits.
    """
    parts = [
        scales[:4] | scales[4:] >> _U8(4) << _U8(6),
        mins[:4] | mins[4:] >> _U8(4) << _U8(6),
        scales[4:] & _U8(15) | mins[4:] << _U8(4),
    ]
    packed: _Bytes = np.concatenate(parts)
    return packed


def _four_bits(scales: _Bytes, mins: _Bytes) -> _Bytes:
    """Sixteen scales and mins ``[16, n]`` in bytes ``[16, n]``, the scales in the low bits."""
    packed: _Bytes = scales | mins << _U8(4)
    return packed


_LAYOUTS = {
    "Q2_K": _Layout(np.array([(16, 0, 4)]), 80, 0, _four_bits),
    "Q4_K": _Layout(np.array([(16, 0, 2)]), 0, 4, _six_bits),
    "Q5_K": _Layout(np.array([(16, 1, 8), (48, 0, 2)]), 0, 4, _six_bits),
}


def encode_q4_k(rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> _Bytes:
    """4-bit codes, 6-bit scales and mins for 32 values: 144 bytes for 256.

    Args:
        rows: finite float32 ``[n, columns]``, contiguous.
        importance: float32 ``[columns]``, not negative, or None.

    Returns:
        uint8 ``[n, columns / 256 * 144]``.

    Raises:
        ValueError: a block's scale or min is past float16.
    """
    return _encode("Q4_K", _Q4_K, rows, importance)


def encode_q5_k(rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> _Bytes:
    """5-bit codes, else as :func:`encode_q4_k`: 176 bytes for 256."""
    return _encode("Q5_K", _Q5_K, rows, importance)


def encode_q2_k(rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None) -> _Bytes:
    """2-bit codes, 4-bit scales and mins for 16 values, else as :func:`encode_q4_k`: 84 bytes."""
    return _encode("Q2_K", _Q2_K, rows, importance)


def _read_only(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Super-blocks, never writable: the kernel would be compiled again for the other kind."""
    blocks: NDArray[np.float32] = values.reshape(-1, SUPER).view()
    blocks.flags.writeable = False
    return blocks


def _encode(
    name: str,
    search: Search,
    rows: NDArray[np.float32],
    importance: NDArray[np.float32] | None,
) -> _Bytes:
    blocks = _read_only(rows)
    count, subs = len(blocks), SUPER // search.size
    weights = np.ones(SUPER, np.float32)
    calibrated = importance is not None and bool(importance.any())
    if importance is not None and calibrated:
        # Only their ratios count; this way no sum of them overflows.
        weights = importance / importance.max()
    layout = _LAYOUTS[name]
    raw = np.empty((count, TYPES_BY_NAME[name].nbytes), np.uint8)
    scales, mins = np.empty((2, subs, count), np.uint8)
    supers = np.empty((count, 2), np.float32)
    failed = search_blocks(
        blocks, _read_only(weights), calibrated, search, layout.planes, raw, scales, mins, supers
    )
    if failed >= 0:
        largest = float(np.abs(blocks[failed : failed + subs]).max())
        raise ValueError(
            f"a weight of {largest:.6g} needs a block scale past float16's 65504 in {name}; "
            "use BF16 or F32"
        )
    layout.put(raw, scales, mins, supers)
    return raw.reshape(len(rows), -1)
