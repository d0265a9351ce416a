"""Weight-only quantization of a model's tensors, without its code: carry out a plan, and prove it.

For bare state dicts, and for ``--to safetensors``. Everything streams: some rows of one tensor at a
time are read, encoded and written, so a model larger than memory goes through.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Change, Codes, Decision, Plan, Source, Weight
from edgeopt.errors import SourceError, UsageError
from edgeopt.files import packed, safetensors
from edgeopt.files.packed import PackedHeader, PackedLayout, matrix_shape
from edgeopt.files.seal import seal
from edgeopt.files.spans import raw_bytes, row_spans, ties_of
from edgeopt.numerics.affine import dequantize, noise_power, ratio_db
from edgeopt.numerics.methods import METHODS
from edgeopt.version import VERSION

__all__ = ["carry_out", "predicted_bytes"]

_MAX_THREADS = 8


def predicted_bytes(source: Source, plan: Plan) -> int:
    """Size of the file that :func:`carry_out` writes, to the byte, without reading any tensor."""
    outline = _outline(source, plan)
    return safetensors.size(outline.entries, outline.header.metadata())


def carry_out(
    source: Source, plan: Plan, out_path: Path, *, threads: int | None = None
) -> tuple[Change, ...]:
    """Write what ``plan`` says to ``out_path``; returns what became of each tensor.

    The bytes depend on the source and the plan alone, not on ``threads`` (default: one a core, up
    to 8). Memory: some chunks of 4 MB for each thread, whatever the tensors' size. Run it inside
    :func:`edgeopt.files.atomic.writing`.

    Raises SourceError naming the tensor where a weight is NaN or infinite, UsageError where the
    plan is about tensors that the source does not have.
    """
    outline = _outline(source, plan)
    weights = {weight.name: weight for weight in source.weights}
    threads = threads or min(os.cpu_count() or 1, _MAX_THREADS)
    changes = []
    with (
        ThreadPoolExecutor(threads) as pool,
        safetensors.filling(out_path, outline.entries, outline.header.metadata()) as put,
    ):
        for decision in plan.decisions:
            weight = weights[decision.tensor]
            layout = outline.header.layouts.get(weight.name)
            error = None
            if layout is not None:
                signal = noise = 0.0
                work = _encoded(source, weight, layout, decision.method, pool, 2 * threads)
                for parts, powers in work:
                    for entry, part in zip(layout.entries, parts, strict=True):
                        put(entry.name, part)
                    signal, noise = signal + powers[0], noise + powers[1]
                error = ratio_db(signal, noise)
            elif weight.name not in outline.header.tied:
                for lo, hi in row_spans(weight):
                    rows = weight.rows(lo, hi)
                    _require_finite(source, weight, rows)
                    put(weight.name, raw_bytes(rows))
            changes.append(Change(decision, weight.nbytes, decision.nbytes, error))
    seal(out_path)
    return tuple(changes)


@dataclass(frozen=True)
class _PackedOutline:
    """What the file will hold: known from the plan, before any data."""

    header: PackedHeader
    entries: tuple[safetensors.TensorEntry, ...]


def _outline(source: Source, plan: Plan) -> _PackedOutline:
    weights = {weight.name: weight for weight in source.weights}
    planned = {decision.tensor for decision in plan.decisions}
    for name in sorted(planned ^ set(weights))[:1]:
        holder = "plan" if name in planned else "source"
        raise UsageError(f"tensor {name!r} is only in the {holder}: the plan is for another file")
    ties = ties_of(source.weights)
    taken = set(weights)
    layouts: dict[str, PackedLayout] = {}
    tied: dict[str, str] = {}
    entries: list[safetensors.TensorEntry] = []
    for decision in plan.decisions:
        weight = weights[decision.tensor]
        if decision.affine is not None:
            _require_packable(decision, weight)
            layout = PackedLayout.of(weight, decision.affine, taken)
            layouts[weight.name] = layout
            taken.update(entry.name for entry in layout.entries)
            entries.extend(layout.entries)
        elif decision.form == "tied":
            if weight.name not in ties:
                raise UsageError(f"the plan ties {weight.name!r}, which the source does not")
            tied[weight.name] = ties[weight.name]
        else:
            entries.append(safetensors.TensorEntry(weight.name, weight.dtype, weight.shape))
    header = PackedHeader(layouts, tied, plan.source_sha256, plan.digest(), {"edgeopt": VERSION})
    return _PackedOutline(header, tuple(entries))


def _require_packable(decision: Decision, weight: Weight) -> None:
    """A plan may come from a file: it must ask for nothing that the format lacks."""
    problem = packed.unknown_scheme(decision.affine) if decision.affine else None
    if decision.method not in METHODS:
        problem = f"method {decision.method!r} is unknown"
    if not weight.is_float or len(weight.shape) < 2 or weight.size == 0:
        problem = f"{weight.dtype}{list(weight.shape)} cannot be packed"
    if problem:
        raise UsageError(f"the plan for tensor {weight.name!r}: {problem}; make it anew")


_Encoded = tuple[tuple[NDArray[Any], ...], tuple[float, float]]


def _encoded(
    source: Source,
    weight: Weight,
    layout: PackedLayout,
    method: str,
    pool: ThreadPoolExecutor,
    ahead: int,
) -> Iterator[_Encoded]:
    """The packed parts of a tensor and (signal, noise), some rows at a time and in order.

    At most ``ahead`` chunks are under way or waiting.
    """
    pending: deque[Future[_Encoded]] = deque()
    for lo, hi in row_spans(weight):
        pending.append(pool.submit(_encode, source, weight, layout, method, lo, hi))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _encode(
    source: Source, weight: Weight, layout: PackedLayout, method: str, lo: int, hi: int
) -> _Encoded:
    columns = matrix_shape(weight.shape)[1]
    scheme = layout.scheme
    given = weight.rows(lo, hi).reshape(hi - lo, columns)
    with np.errstate(over="ignore"):
        rows = given.astype(np.float32, copy=False)
    try:
        codes: Codes = METHODS[method](
            rows,
            bits=scheme.bits,
            block=scheme.block,
            symmetric=scheme.symmetric,
            scale_dtype=scheme.scale,
        )
    except ValueError as error:
        raise SourceError(
            f"{source.path}: tensor {weight.name!r}: {error}; repair the model"
        ) from error
    got = dequantize(codes, scheme.block, columns)
    return layout.pack(codes), noise_power(rows, got)


def _require_finite(source: Source, weight: Weight, rows: NDArray[Any]) -> None:
    # Buffers may hold infinities on purpose: masks do.
    if weight.role == "weight" and weight.is_float:
        whole = rows if rows.dtype.kind == "f" else rows.astype(np.float32)
        if not np.isfinite(whole).all():
            raise SourceError(
                f"{source.path}: tensor {weight.name!r}: weights hold NaN or Inf; repair the model"
            )
