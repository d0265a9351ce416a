"""From the mapped source to the file, some rows at a time: no tensor is ever whole in memory."""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Array, Decision, Ggml, Plan, Progress, Source, Weight, format_bytes
from edgeopt.errors import SourceError
from edgeopt.files.gguf_write import GgufLayout, GgufWriter, writing_gguf
from edgeopt.files.imatrix import Imatrix
from edgeopt.files.pages import drop_pages
from edgeopt.files.seal import seal
from edgeopt.llm.model import LanguageModel
from edgeopt.llm.plan import PLAN_SHA256, SOURCE_SHA256
from edgeopt.numerics.ggml import encode

__all__ = ["row_spans", "write_model"]

_MAX_THREADS = 8
#: Weights that one thread works on at a time: 4 MB of float32, which stays in the cache.
_CHUNK = 1 << 20
#: Source bytes after which their pages are given back.
_PAGES = 128 << 20


def write_model(
    source: Source,
    model: LanguageModel,
    plan: Plan,
    layout: GgufLayout,
    path: Path,
    *,
    importance: Imatrix | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Encode every tensor as ``plan`` says and write it to its place in ``path``.

    ``path`` exists (see :func:`edgeopt.files.atomic.writing`). The bytes depend on source, plan
    and importance alone, not on ``threads`` (default: one a core, up to 8). Anonymous memory: a
    few chunks of 4 MB for each thread, whatever the tensors' size; input pages are given back.

    Raises SourceError naming the tensor where a weight is NaN, infinite or too large for its type.
    """
    threads = threads or min(os.cpu_count() or 1, _MAX_THREADS)
    weights = {weight.name: weight for weight in model.tensors}
    # Tensors that keep their type are copied as bytes: a GGUF source's own reader gives those.
    stored = {weight.name: weight for weight in source.weights} if source.kind == "gguf" else {}
    if progress is not None:
        progress("quantizing (encoders are compiled at the first use, and kept)", None)
    meter = _ProgressMeter(sum(weights[d.tensor].nbytes for d in plan.decisions), progress)
    pool, aside = ThreadPoolExecutor(threads), ThreadPoolExecutor(1)
    pending: deque[Future[int]] = deque()
    ended = _Ended()
    try:
        with writing_gguf(path, layout) as writer:
            # Ahead of the encoders: it reads for them too.
            digest = aside.submit(source.sha256, ended.check)
            held = 0
            fitted = {} if importance is None else importance.fitted(model.tensors).values
            for job in _jobs(plan, weights, stored, fitted):
                pending.append(pool.submit(job.run, source, writer))
                if len(pending) > 2 * threads:
                    held += meter.add(pending.popleft().result())
                if held > _PAGES:
                    drop_pages(source.files)
                    held = 0
            while pending:
                meter.add(pending.popleft().result())
            writer.text(PLAN_SHA256, plan.digest())
            writer.text(SOURCE_SHA256, digest.result())
        seal(path)
    finally:
        ended.set()
        pool.shutdown(cancel_futures=True)
        aside.shutdown()
        drop_pages(source.files)


class _Ended(threading.Event):
    """Set when the writing is over, well or not: what still reads then has to stop."""

    def check(self) -> None:
        if self.is_set():
            raise InterruptedError


def row_spans(weight: Weight, chunk: int = _CHUNK) -> Iterator[tuple[int, int]]:
    """Spans along the first axis of about ``chunk`` values; a vector is one span."""
    if len(weight.shape) < 2:
        yield 0, weight.shape[0] if weight.shape else 1
        return
    rows, per_row = weight.shape[0], math.prod(weight.shape[1:])
    step = max(1, chunk // max(per_row, 1))
    for lo in range(0, rows, step):
        yield lo, min(lo + step, rows)


@dataclass(frozen=True)
class _RowsJob:
    """Some rows of a tensor."""

    decision: Decision
    weight: Weight
    lo: int
    hi: int
    importance: NDArray[np.float32] | None
    copied: bool

    def run(self, source: Source, writer: GgufWriter) -> int:
        """Read, encode, write; returns the source bytes that were gone through."""
        shape = self.weight.shape
        columns = shape[-1] if shape else 1
        rows = self.weight.rows(self.lo, self.hi)
        before = math.prod(shape[1:-1]) if len(shape) > 1 else 1
        if self.copied:
            # A folder's weights are held to the same rule as encoded ones; a GGUF's blocks have
            # their scales inside, which the proof looks at.
            if not _finite_bits(rows):
                raise SourceError(
                    f"{source.path}: tensor {self.weight.name!r}: weights hold NaN or Inf"
                )
            raw = np.atleast_1d(np.ascontiguousarray(rows)).view(np.uint8)
        else:
            scheme = self.decision.scheme
            assert isinstance(scheme, Ggml)
            try:
                raw = _encoded(scheme.type, rows, columns, self._of_rows())
            except ValueError as error:
                raise SourceError(f"{source.path}: tensor {self.weight.name!r}: {error}") from error
        writer.put(self.weight.name, self.lo * before if len(shape) > 1 else 0, raw)
        total = shape[0] if shape else 1
        return self.weight.nbytes * (self.hi - self.lo) // max(total, 1)

    def _of_rows(self) -> NDArray[np.float32] | None:
        """The importance of these rows' columns: stacked experts have each their own."""
        if self.importance is None or self.importance.ndim == 1:
            return self.importance
        return self.importance[self.lo : self.hi]


def _encoded(
    kind: str, rows: Array, columns: int, importance: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    if importance is None or importance.ndim == 1:
        return encode(kind, rows.reshape(-1, columns), importance)
    stacked = zip(rows, importance, strict=True)
    return np.concatenate([_encoded(kind, part, columns, own) for part, own in stacked])


def _jobs(
    plan: Plan,
    weights: Mapping[str, Weight],
    stored: Mapping[str, Weight],
    importance: Mapping[str, NDArray[np.float32]],
) -> Iterator[_RowsJob]:
    for decision in plan.decisions:
        copied = decision.method == "copy"
        weight = (stored if copied and stored else weights)[decision.tensor]
        if weight.size == 0:
            continue
        for lo, hi in row_spans(weight):
            yield _RowsJob(decision, weight, lo, hi, importance.get(weight.name), copied)


#: Where a 16-bit float has its exponent: all ones mean NaN or infinity.
_EXPONENT = {"float16": np.uint16(0x7C00), "bfloat16": np.uint16(0x7F80)}


def _finite_bits(rows: Array) -> bool:
    """Whether all floats are finite; without a detour over float32 for 16-bit ones."""
    exponent = _EXPONENT.get(rows.dtype.name)
    if exponent is not None:
        return not ((rows.view(np.uint16) & exponent) == exponent).any()
    return rows.dtype.kind != "f" or bool(np.isfinite(rows).all())


class _ProgressMeter:
    """Bytes done, rate and time left, said a few times a second."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.done, self.progress = total, 0, progress
        self.start = self.said = time.monotonic()

    def add(self, nbytes: int) -> int:
        self.done += nbytes
        now = time.monotonic()
        if self.progress is not None and now - self.said > 0.2:
            self.said = now
            rate = self.done / (now - self.start)
            left = (self.total - self.done) / rate if rate else 0.0
            self.progress(
                f"quantizing: {format_bytes(self.done)} of {format_bytes(self.total)}, "
                f"{format_bytes(rate)}/s, {left:.0f} s left,",
                self.done / self.total if self.total else None,
            )
        return nbytes
