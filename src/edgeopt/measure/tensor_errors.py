"""How far every stored tensor is from the one it came from, read row chunk by row chunk."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeopt.core import Progress, Weight
from edgeopt.core.ggml import PLAIN_TYPES
from edgeopt.files.pages import drop_pages

__all__ = ["TensorError", "tensor_errors"]

_MAX_THREADS = 8

#: Values that one thread compares at a time: 4 MB of float32 a side.
_CHUNK = 1 << 20

_GGML_NAMES = {numpy: ggml for ggml, numpy in PLAIN_TYPES.items()}

#: Values gone through after which the pages of both files are given back.
_PAGES = 64 << 20


@dataclass(frozen=True)
class TensorError:
    """The signal to noise of one tensor as stored, in a type of ggml's.

    ``sqnr_db``: 10 log10(sum(x**2) / sum((x-stored)**2)), inf where equal. ``worst_db``: the same
    of the worst stretch of rows, ``worst_rows``, against no less than the tensor's mean power (rows
    of almost nothing are not asked to be stored well). ``finite``: no NaN or Inf is stored.
    """

    name: str
    type: str
    sqnr_db: float
    worst_db: float
    worst_rows: tuple[int, int]
    finite: bool


@dataclass(frozen=True)
class _ErrorSums:
    rows: tuple[int, int]
    count: int
    signal: float
    noise: float


def tensor_errors(
    pairs: Sequence[tuple[Weight, Weight]],
    *,
    threads: int | None = None,
    files: Iterable[Path] = (),
    progress: Progress | None = None,
) -> tuple[TensorError, ...]:
    """Each pair is a tensor and what a file stores in its place, of one shape, as rows of floats.

    Anonymous memory is a few chunks of 4 MB a thread, whatever the tensors' size; pages of the
    mapped ``files`` are given back on the way. ``threads``: default one a core, up to 8.
    """
    threads = threads or min(os.cpu_count() or 1, _MAX_THREADS)
    paths = tuple(files)
    sums: list[list[_ErrorSums]] = [[] for _ in pairs]
    total = max(1, sum(before.size for before, _ in pairs))
    pending: deque[tuple[int, Future[_ErrorSums]]] = deque()
    done = held = 0
    pool = ThreadPoolExecutor(threads)

    def take() -> None:
        nonlocal done, held
        index, future = pending.popleft()
        found = future.result()
        sums[index].append(found)
        done, held = done + found.count, held + found.count
        if held > _PAGES:
            drop_pages(paths)
            held = 0
        if progress is not None:
            progress("comparing tensors", done / total)

    try:
        for index, (before, after) in enumerate(pairs):
            for lo, hi in _spans(before):
                pending.append((index, pool.submit(_compare, before, after, lo, hi)))
                if len(pending) > 2 * threads:
                    take()
        while pending:
            take()
    finally:
        pool.shutdown(cancel_futures=True)
        drop_pages(paths)
    return tuple(_error(after, found) for (_, after), found in zip(pairs, sums, strict=True))


def _spans(weight: Weight) -> Iterator[tuple[int, int]]:
    """Spans of the first axis; a vector is one span, as its blocks cannot be cut."""
    if len(weight.shape) < 2:
        yield 0, weight.shape[0] if weight.shape else 1
        return
    step = max(1, _CHUNK // max(1, math.prod(weight.shape[1:])))
    for lo in range(0, weight.shape[0], step):
        yield lo, min(lo + step, weight.shape[0])


def _compare(before: Weight, after: Weight, lo: int, hi: int) -> _ErrorSums:
    reference = np.asarray(before.rows(lo, hi)).astype(np.float32, copy=False)
    stored = np.asarray(after.rows(lo, hi)).astype(np.float32, copy=False)
    with np.errstate(all="ignore"):  # NaN and Inf show in the sums
        noise = np.square(reference - stored, dtype=np.float64).sum()
        signal = np.square(reference, dtype=np.float64).sum()
    return _ErrorSums((lo, hi), reference.size, float(signal), float(noise))


def _error(weight: Weight, sums: Sequence[_ErrorSums]) -> TensorError:
    signal, noise = sum(s.signal for s in sums), sum(s.noise for s in sums)
    mean = signal / max(1, sum(s.count for s in sums))
    worst, rows = math.inf, (0, weight.shape[0] if weight.shape else 1)
    for part in sums:
        ratio = _decibels(max(part.signal, mean * part.count), part.noise)
        if ratio < worst or math.isnan(ratio):
            worst, rows = ratio, part.rows
        if math.isnan(ratio):  # the worst of all
            break
    return TensorError(
        weight.name,
        _GGML_NAMES.get(weight.dtype, weight.dtype),
        _decibels(signal, noise),
        worst,
        rows,
        finite=math.isfinite(noise),
    )


def _decibels(signal: float, noise: float) -> float:
    if math.isnan(noise) or math.isinf(noise):
        return math.nan
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
