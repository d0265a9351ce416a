"""Weight-only quantization of a model's tensors, without its code: plan, carry out, prove.

For bare state dicts, and for ``--to safetensors``. Everything streams: some rows of one tensor at a
time are read, encoded and written, so a model larger than memory goes through.

The defaults come from the errors on MiniLM's weights and on random ones, tabled in
``docs/formats.md``:

- 8 bits, blocks of 128, symmetric, round to nearest: 42.7 dB at 8.13 bits a weight. One scale a
  row costs 3.6 dB to save a hundredth of the file; searching the scale gains 0.1 dB.
- 4 bits, blocks of 64, with zero points, least squared error: 20.8 dB at 4.31 bits a weight.
  Symmetric blocks of 32 (Q4_0's form) reach 21.4 dB at 4.5 bits, where 6 dB a bit would make 21.9
  of it. HQQ, made for robustness to outliers, stays 0.2 dB under least squares.
- Scales in bfloat16: since codes are chosen for the scale as stored, it is as good as float32 to
  0.02 dB, and unlike float16 it neither overflows nor underflows, whatever the weights' size.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgeopt
from edgeopt.core import Affine, Change, Codes, Decision, Plan, Source, Weight
from edgeopt.errors import SourceError, UsageError
from edgeopt.files import packed, safetensors
from edgeopt.files.open import open_source
from edgeopt.files.packed import Header, Layout, matrix_shape
from edgeopt.files.weights import logical_weights
from edgeopt.numerics.affine import SCALE_DTYPES, dequantize, noise_power, ratio_db
from edgeopt.numerics.methods import METHODS

__all__ = ["MIN_ELEMENTS", "carry_out", "plan_weights", "predicted_bytes", "prove_weights"]

#: Smaller tensors are kept: their names in the header would outweigh what they save.
MIN_ELEMENTS = 1024

#: Elements of a tensor that are worked on at a time.
_CHUNK = 1 << 20

_MAX_THREADS = 8


@dataclass(frozen=True)
class _Default:
    method: str
    block: int
    symmetric: bool


_DEFAULTS: Mapping[int, _Default] = {
    8: _Default("rtn", 128, True),
    4: _Default("mse", 64, False),
}
_SCALE = "bfloat16"


# ---------------------------------------------------------------------------------------------
# plan


def plan_weights(
    source: Source,
    *,
    bits: int,
    block_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    sha256: str | None = None,
) -> Plan:
    """One decision for every tensor of ``source``, without reading them.

    ``bits`` is 8 or 4, ``block_size`` a power of two from 16 to 256 (default 128 or 64).
    ``options`` may set ``method`` (``rtn``, ``mse``, ``hqq``), ``symmetric`` and ``scale``
    (``bfloat16``, ``float16``, ``float32``); all of them are recorded in the plan. ``sha256`` is
    the source's digest where it is known; computing it reads every byte.

    Raises UsageError for options outside those, SourceError where nothing can be quantized: no
    float weights, only small ones, or a file that is quantized already.
    """
    options = dict(options or {})
    method, scheme = _scheme(bits, block_size, options)
    _require_floats(source)
    ties = _ties(source)
    decisions = tuple(_decide(w, method, scheme, ties) for w in source.weights)
    if not any(d.scheme for d in decisions):
        reasons = sorted({d.reason for d in decisions if d.reason})
        raise SourceError(f"{source.path}: no tensor can be quantized ({'; '.join(reasons[:3])})")
    return Plan(
        source_sha256=source.sha256() if sha256 is None else sha256,
        options={**options, "to": "safetensors", "bits": bits, "block_size": scheme.block},
        decisions=decisions,
    )


def _scheme(bits: int, block_size: int | None, options: Mapping[str, Any]) -> tuple[str, Affine]:
    if bits not in _DEFAULTS:
        raise UsageError(f"{bits} bits, packed weights have 8 or 4; use --bits 8 or --bits 4")
    default = _DEFAULTS[bits]
    block = default.block if block_size is None else block_size
    if not (16 <= block <= 256 and block & (block - 1) == 0):
        raise UsageError(
            f"block size {block} is not a power of two from 16 to 256; "
            "use --block-size 32, 64 or 128"
        )
    method = options.get("method", default.method)
    if method not in METHODS:
        raise UsageError(f"method {method!r} is unknown; use one of {', '.join(METHODS)}")
    scale = options.get("scale", _SCALE)
    if scale not in SCALE_DTYPES:
        raise UsageError(f"scale dtype {scale!r} is unknown; use one of {', '.join(SCALE_DTYPES)}")
    symmetric = bool(options.get("symmetric", default.symmetric))
    return method, Affine(bits, block, symmetric=symmetric, scale=scale)


def _require_floats(source: Source) -> None:
    if source.kind == "safetensors" and packed.is_packed(source.details["metadata"]):
        raise SourceError(f"{source.path}: is already quantized by edgeopt; give the original")
    weights = [w for w in source.weights if w.role == "weight"]
    if not any(w.is_float for w in weights):
        dtypes = sorted({w.dtype for w in source.weights})
        holds = f"only {', '.join(dtypes[:6])}" if dtypes else "no tensors"
        raise SourceError(
            f"{source.path}: holds {holds}, and no float weights to quantize; "
            "if it is quantized already, give the original"
        )


def _decide(weight: Weight, method: str, scheme: Affine, ties: Mapping[str, str]) -> Decision:
    def keep(reason: str, form: str = "keep", nbytes: int = weight.nbytes) -> Decision:
        return Decision(weight.name, _kind(weight), form, form, None, reason, nbytes, weight.shape)

    if weight.name in ties:
        return keep(f"stored once, as {ties[weight.name]}", "tied", 0)
    reason = _reason_to_keep(weight)
    if reason:
        return keep(reason)
    stored = Layout.of(weight, scheme).nbytes
    if stored >= weight.nbytes:
        return keep(f"{stored} bytes quantized, {weight.nbytes} as it is")
    return Decision(weight.name, _kind(weight), method, "packed", scheme, "", stored, weight.shape)


def _reason_to_keep(weight: Weight) -> str | None:
    if weight.role != "weight":
        return f"a {weight.role}, not a weight"
    if not weight.is_float:
        return f"{weight.dtype} is not a float type"
    if weight.size == 0:
        return "no elements"
    if len(weight.shape) < 2:
        return f"{len(weight.shape)}-dimensional: a bias, a norm or a scale"
    if weight.size < MIN_ELEMENTS:
        return f"{weight.size} elements, fewer than {MIN_ELEMENTS}"
    return None


_KINDS = {0: "scalar", 1: "vector", 2: "matrix"}


def _kind(weight: Weight) -> str:
    if len(weight.shape) == 2 and "emb" in weight.name.lower():
        return "embedding"
    return _KINDS.get(len(weight.shape), "kernel")


def _ties(source: Source) -> dict[str, str]:
    """Tensors that are another one under a second name -> that one."""
    first: dict[tuple[Any, ...], Weight] = {}
    ties: dict[str, str] = {}
    for weight in source.weights:
        if weight.storage is None or weight.size == 0:
            continue
        key = (weight.storage.key, weight.storage.offset, weight.shape, weight.dtype)
        other = first.setdefault(key, weight)
        if other is not weight and _same_view(weight, other):
            ties[weight.name] = other.name
    return ties


def _same_view(a: Weight, b: Weight) -> bool:
    """Whether two tensors at the same place of a storage, of equal shape, are equal.

    With dimensions of equal size one may be the other transposed: then the values decide.
    """
    sizes = [size for size in a.shape if size > 1]
    if len(set(sizes)) == len(sizes):
        return True
    return all(
        np.array_equal(_bytes(a.rows(lo, hi)), _bytes(b.rows(lo, hi))) for lo, hi in _row_spans(a)
    )


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    flat: NDArray[np.uint8] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return flat


# ---------------------------------------------------------------------------------------------
# carry out


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
                for lo, hi in _row_spans(weight):
                    rows = weight.rows(lo, hi)
                    _require_finite(source, weight, rows)
                    put(weight.name, _bytes(rows))
            changes.append(Change(decision, weight.nbytes, decision.nbytes, error))
    return tuple(changes)


@dataclass(frozen=True)
class _Outline:
    """What the file will hold: known from the plan, before any data."""

    header: Header
    entries: tuple[safetensors.Entry, ...]


def _outline(source: Source, plan: Plan) -> _Outline:
    weights = {weight.name: weight for weight in source.weights}
    planned = {decision.tensor for decision in plan.decisions}
    for name in sorted(planned ^ set(weights))[:1]:
        holder = "plan" if name in planned else "source"
        raise UsageError(f"tensor {name!r} is only in the {holder}: the plan is for another file")
    ties = _ties(source)
    taken = set(weights)
    layouts: dict[str, Layout] = {}
    tied: dict[str, str] = {}
    entries: list[safetensors.Entry] = []
    for decision in plan.decisions:
        weight = weights[decision.tensor]
        if decision.scheme is not None:
            layout = Layout.of(weight, decision.scheme, taken)
            layouts[weight.name] = layout
            taken.update(entry.name for entry in layout.entries)
            entries.extend(layout.entries)
        elif decision.form == "tied":
            if weight.name not in ties:
                raise UsageError(f"the plan ties {weight.name!r}, which the source does not")
            tied[weight.name] = ties[weight.name]
        else:
            entries.append(safetensors.Entry(weight.name, weight.dtype, weight.shape))
    header = Header(
        layouts, tied, plan.source_sha256, plan.digest(), {"edgeopt": edgeopt.__version__}
    )
    return _Outline(header, tuple(entries))


_Encoded = tuple[tuple[NDArray[Any], ...], tuple[float, float]]


def _encoded(
    source: Source,
    weight: Weight,
    layout: Layout,
    method: str,
    pool: ThreadPoolExecutor,
    ahead: int,
) -> Iterator[_Encoded]:
    """The packed parts of a tensor and (signal, noise), some rows at a time and in order.

    At most ``ahead`` chunks are under way or waiting.
    """
    pending: deque[Future[_Encoded]] = deque()
    for lo, hi in _row_spans(weight):
        pending.append(pool.submit(_encode, source, weight, layout, method, lo, hi))
        if len(pending) >= ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _encode(
    source: Source, weight: Weight, layout: Layout, method: str, lo: int, hi: int
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


def _row_spans(weight: Weight) -> Iterator[tuple[int, int]]:
    """Rows of a tensor, about a chunk at a time; a 0-dim tensor has one row."""
    if weight.size == 0:
        return
    count = weight.shape[0] if weight.shape else 1
    step = max(1, _CHUNK * count // weight.size)
    for lo in range(0, count, step):
        yield lo, min(lo + step, count)


# ---------------------------------------------------------------------------------------------
# prove


def prove_weights(source: Source, out_path: Path) -> dict[str, float]:
    """SQNR in dB of every tensor of ``source`` as ``out_path`` gives it back, by name.

    Reads the written file through the same door as :func:`edgeopt.load_weights`. inf: the same
    values; -inf: missing, of another shape, or not finite where the source is.
    """
    written = {weight.name: weight for weight in logical_weights(open_source(out_path))}
    return {weight.name: _sqnr(weight, written.get(weight.name)) for weight in source.weights}


def _sqnr(weight: Weight, got: Weight | None) -> float:
    if got is None or got.shape != weight.shape:
        return -np.inf
    signal = noise = 0.0
    for lo, hi in _row_spans(weight):
        powers = noise_power(weight.rows(lo, hi), got.rows(lo, hi))
        signal, noise = signal + powers[0], noise + powers[1]
    return ratio_db(signal, noise)
