"""What only the values tell: exact lower precision, empty rows, copies. Read within a budget.

A small model is read whole. Of a large one only the beginning of every tensor is read, which is
enough to rule most things out (a single weight that FP16 does not have is proof), and whatever is
left is marked as seen in part. ``deep`` reads everything, in pieces.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import DTYPE_BITS, Progress, Weight

__all__ = ["Scan", "ValueFacts", "scan"]

WHOLE_BUDGET = 256_000_000  # a model up to this size is read whole
HEAD_BUDGET = 16_000_000  # of a larger one, this much: heads of tensors, then suspected copies
HEAD = 65_536
PIECE = 4 << 20
MIN_COPY = 1024  # equal tensors smaller than this (all-zero biases) are no finding
_SAMPLE = 1 << 19
_NO_LIMIT = 1 << 62


@dataclass(frozen=True)
class ValueFacts:
    """What the values of one tensor say. ``elements`` is how many of them were read.

    ``lowest`` is the narrowest dtype that has every value read, exactly; the tensor's own dtype
    where none does. Rows run along all axes but the first; a row is ``empty`` when all its values
    are equal, and ``trailing`` counts the empty rows that end the tensor.
    """

    elements: int
    whole: bool
    lowest: str
    zeros: int = 0
    not_finite: int = 0
    nan: int = 0
    empty: int = 0
    trailing: int = 0


@dataclass(frozen=True)
class Scan:
    """``facts`` by position in the tensors scanned; ``copies``: position -> position of the
    tensor it equals; ``likely_copies``: the same, seen in part. ``packed``: size of a sample of
    the values after DEFLATE, as a share of its size before (None when nothing was read)."""

    facts: Mapping[int, ValueFacts] = field(default_factory=dict)
    copies: Mapping[int, int] = field(default_factory=dict)
    likely_copies: Mapping[int, int] = field(default_factory=dict)
    read: int = 0
    total: int = 0
    packed: float | None = None

    @property
    def whole(self) -> bool:
        return self.read >= self.total


def scan(
    tensors: Sequence[Weight],
    own: Sequence[int],
    *,
    deep: bool = False,
    progress: Progress | None = None,
) -> Scan:
    """Read the model's float tensors (those that answer for bytes of their own), and whatever
    may be a copy of another, as far as the budget goes."""
    chosen = [
        i
        for i, tensor in enumerate(tensors)
        if own[i] and tensor.is_float and tensor.size and tensor.role in ("weight", "buffer")
    ]
    total = sum(tensors[i].nbytes for i in chosen)
    whole = deep or total <= WHOLE_BUDGET
    left = total if whole else HEAD_BUDGET
    facts: dict[int, ValueFacts] = {}
    read = 0
    for count, index in enumerate(sorted(chosen, key=lambda i: (-tensors[i].nbytes, i))):
        limit = None if whole else HEAD
        cost = tensors[index].nbytes if limit is None else min(limit, tensors[index].nbytes)
        if read + cost > left:
            break
        if progress and whole:
            progress("reading weights", count / len(chosen))
        facts[index] = _facts(tensors[index], limit)
        read += cost
    budget = _NO_LIMIT if deep else WHOLE_BUDGET if whole else max(0, left - read)
    copies, likely = _copies(tensors, own, budget)
    packed = _packed([tensors[i] for i in facts])
    return Scan(facts, copies, likely, min(read, total), total, packed)


# ---------------------------------------------------------------------------------------------
# one tensor


def _pieces(weight: Weight, limit: int | None) -> Iterator[NDArray[Any]]:
    """Rows as matrices ``[rows, columns]``, a few megabytes at a time; at most ``limit`` bytes."""
    rows = weight.shape[0] if weight.shape else 1
    columns = weight.size // rows
    itemsize = max(1, DTYPE_BITS[weight.dtype] // 8)
    step = max(1, min(PIECE, limit or PIECE) // (columns * itemsize))
    left = weight.size if limit is None else max(1, limit // itemsize)
    for lo in range(0, rows, step):
        hi = min(rows, lo + step)
        piece = weight.rows(lo, hi).reshape(hi - lo, columns)
        if piece.size > left:
            piece = piece[:1, :left]
        yield piece
        left -= piece.size
        if left <= 0:
            return


_Fits = Callable[[NDArray[Any]], bool]


def _same(values: NDArray[Any], dtype: str) -> bool:
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.array_equal(values.astype(dtype).astype(values.dtype), values))


def _fits_bfloat16(values: NDArray[Any]) -> bool:
    if values.dtype == np.float64:
        if not _same(values, "float32"):
            return False
        values = values.astype(np.float32)
    # bfloat16 is the upper half of float32.
    return not np.any(np.ascontiguousarray(values).view(np.uint32) & 0xFFFF)


def _fits_int8(values: NDArray[Any]) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(np.all((values == np.rint(values)) & (np.abs(values) <= 127)))


#: For each dtype, the narrower ones that might hold the same values, the narrowest first.
_NARROWER: Mapping[str, tuple[tuple[str, _Fits], ...]] = {
    "float64": (
        ("int8", _fits_int8),
        ("float16", lambda v: _same(v, "float16")),
        ("bfloat16", _fits_bfloat16),
        ("float32", lambda v: _same(v, "float32")),
    ),
    "float32": (
        ("int8", _fits_int8),
        ("float16", lambda v: _same(v, "float16")),
        ("bfloat16", _fits_bfloat16),
    ),
    "float16": (("int8", _fits_int8),),
    "bfloat16": (),
}


def _facts(weight: Weight, limit: int | None) -> ValueFacts:
    narrower = list(_NARROWER[weight.dtype])
    elements = zeros = not_finite = nan = empty = trailing = 0
    for piece in _pieces(weight, limit):
        values = piece.astype(np.float32) if weight.dtype == "bfloat16" else piece
        narrower = [(name, fits) for name, fits in narrower if fits(values)]
        elements += values.size
        zeros += values.size - int(np.count_nonzero(values))
        not_finite += values.size - int(np.count_nonzero(np.isfinite(values)))
        nan += int(np.count_nonzero(np.isnan(values)))
        if len(weight.shape) > 1 and values.shape[1] > 1:
            same = np.all(values == values[:, :1], axis=1)
            empty += int(np.count_nonzero(same))
            trailing = _run_at_end(same) + (trailing if same.all() else 0)
    return ValueFacts(
        elements=elements,
        whole=elements == weight.size,
        # All zeros fit anything, and say nothing.
        lowest=narrower[0][0] if narrower and zeros < elements else weight.dtype,
        zeros=zeros,
        not_finite=not_finite,
        nan=nan,
        empty=empty,
        trailing=trailing if elements == weight.size else 0,
    )


def _run_at_end(flags: NDArray[np.bool_]) -> int:
    others = np.flatnonzero(~flags)
    return len(flags) - 1 - int(others[-1]) if len(others) else len(flags)


# ---------------------------------------------------------------------------------------------
# several tensors


def _copies(
    tensors: Sequence[Weight], own: Sequence[int], budget: int
) -> tuple[dict[int, int], dict[int, int]]:
    """Tensors of one shape and dtype with equal bytes. Only suspects are read: first their heads,
    then, as far as ``budget`` (bytes) goes, all of them."""
    alike: dict[Any, list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        if own[index] >= MIN_COPY and tensor.role != "optimizer":
            alike[tensor.shape, tensor.dtype].append(index)
    suspects: dict[Any, list[int]] = defaultdict(list)
    for key, members in alike.items():
        if len(members) < 2:
            continue
        cost = len(members) * min(HEAD, tensors[members[0]].nbytes)
        if cost > budget:
            continue
        budget -= cost
        for index in members:
            suspects[key, _digest(tensors[index], HEAD)].append(index)
    copies: dict[int, int] = {}
    likely: dict[int, int] = {}
    for members in suspects.values():
        cost = sum(tensors[i].nbytes for i in members)
        if len(members) < 2:
            continue
        if cost > budget:
            likely.update(dict.fromkeys(members[1:], members[0]))
            continue
        budget -= cost
        first: dict[bytes, int] = {}
        for index in members:
            original = first.setdefault(_digest(tensors[index], None), index)
            if original != index:
                copies[index] = original
    return copies, likely


def _digest(weight: Weight, limit: int | None) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    if weight.dtype in DTYPE_BITS:
        for piece in _pieces(weight, limit):
            digest.update(np.ascontiguousarray(piece).view(np.uint8).data)
        return digest.digest()
    rows = weight.shape[0]
    per_row = max(1, weight.nbytes // rows)
    step = max(1, min(PIECE, limit or PIECE) // per_row)
    for lo in range(0, rows if limit is None else min(rows, step), step):
        piece = weight.rows(lo, min(rows, lo + step))
        digest.update(np.ascontiguousarray(piece).view(np.uint8).data)
    return digest.digest()


def _packed(tensors: Sequence[Weight]) -> float | None:
    """DEFLATE at its quickest over heads of the largest tensors: far under 1 only where values
    repeat, as trained FP32 weights hardly do."""
    before = after = 0
    for weight in tensors:
        piece = next(_pieces(weight, HEAD), None)
        if piece is None:
            continue
        raw = np.ascontiguousarray(piece).tobytes()
        before += len(raw)
        after += len(zlib.compress(raw, 1))
        if before >= _SAMPLE:
            break
    return after / before if before else None
