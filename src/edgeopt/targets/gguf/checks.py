"""What can be checked of a GGUF file without running it: its tensors, and its structure.

Each check gives a :class:`ProofPart` of the proof: lines of the verdict, what stayed unproven, and
what was found, JSON-ready.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.core import Check, Progress, Weight
from edgeopt.core.ggml import PLAIN_TYPES
from edgeopt.core.packages import is_installed
from edgeopt.errors import MissingExtraError
from edgeopt.files.gguf_write import ALIGNMENT, Field
from edgeopt.measure.language import read_with_gguf
from edgeopt.measure.tensor_errors import TensorError, tensor_errors
from edgeopt.numerics.ggml import decodes

__all__ = [
    "Expected",
    "ProofPart",
    "check_structure",
    "check_tensors",
    "type_name",
]

#: The signal to noise in dB under which a tensor of this type is broken, not quantized: some dB
#: below what ggml's encoder leaves of the worst of several heavy-tailed distributions.
FLOORS: Mapping[str, float] = {
    "F64": 120,
    "F32": 120,
    "F16": 50,
    "BF16": 45,
    "Q8_0": 30,
    "Q6_K": 24,
    "Q5_K": 20,
    "Q5_1": 20,
    "Q5_0": 16,
    "Q4_K": 14,
    "Q4_1": 13,
    "Q4_0": 12,
    "Q3_K": 9,
    "Q2_K": 4,
}

#: Noise of two quantizations instead of one.
_BOTH_QUANTIZED = 3.0

#: Metadata that a file may have beside the model's own.
_OWN_KEYS = ("general.file_type", "general.quantization_version", "quantize.", "edgeopt.")

_NUMBERS = {numpy: ggml for ggml, numpy in PLAIN_TYPES.items()}


@dataclass(frozen=True)
class ProofPart:
    """A part of a proof."""

    checks: tuple[Check, ...] = ()
    unproven: tuple[str, ...] = ()
    found: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Expected:
    """A tensor as the file must have it: ``shape`` rows first."""

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int


def type_name(weight: Weight) -> str:
    """ggml's name of the type that a tensor is stored as."""
    return _NUMBERS.get(weight.dtype, weight.dtype)


# ---------------------------------------------------------------------------------------------
# tensors


def check_tensors(
    before: Sequence[Weight],
    after: Sequence[Weight],
    *,
    made_from: bool = True,
    min_sqnr: float | None = None,
    threads: int,
    files: Sequence[Path],
    progress: Progress | None,
) -> tuple[ProofPart, tuple[TensorError, ...]]:
    """Every tensor as stored against the one it came from; names and shapes must be the same.

    ``made_from``: the stored are known to be made from the others; else both may be quantizations
    of a third. ``min_sqnr`` takes the place of every type's own floor.
    """
    strange = _difference(before, after)
    if strange:
        asked = "the source's names and shapes"
        return ProofPart((Check("tensors", False, strange, asked, "make the file anew"),)), ()
    stored = {weight.name: weight for weight in after}
    pairs = [(weight, stored[weight.name]) for weight in before]
    known = {*PLAIN_TYPES.values(), *decodes()}
    readable = [pair for pair in pairs if all(weight.dtype in known for weight in pair)]
    dark = sorted({weight.dtype for pair in pairs for weight in pair} - known)
    unproven = tuple(f"tensors of type {kind}: edgeopt does not decode it" for kind in dark)
    errors = tensor_errors(readable, threads=threads, files=files, progress=progress)
    if not errors:
        return ProofPart(unproven=unproven), ()
    floors = {
        b.name: _floor(type_name(b), type_name(a), made_from) if min_sqnr is None else min_sqnr
        for b, a in readable
    }

    def margin(error: TensorError) -> float:
        lowest = min(error.sqnr_db, error.worst_db)
        return lowest - floors[error.name] if error.finite else -math.inf

    worst = min(errors, key=margin)
    failed = sum(margin(error) < 0 for error in errors)
    check = Check(
        "tensors",
        not failed,
        f"{_described(worst)}{f'; {failed} tensors fail' if failed > 1 else ''}",
        f"{floors[worst.name]:g} dB or more in every stretch of rows"
        f"{f' of {worst.type}' if min_sqnr is None else ''}",
        "check that the source is sound, or use a type with more bits",
    )
    return ProofPart((check,), unproven), errors


def _difference(before: Sequence[Weight], after: Sequence[Weight]) -> str:
    shapes = {weight.name: weight.shape for weight in before}
    stored = {weight.name: weight.shape for weight in after}
    for name, shape in shapes.items():
        if name not in stored:
            return f"{name} is not in the file"
        if stored[name] != shape:
            return f"{name} has shape {list(stored[name])}, the source's has {list(shape)}"
    extra = next((name for name in stored if name not in shapes), None)
    return f"{extra} is in the file and not in the source" if extra else ""


def _floor(before: str, after: str, made_from: bool) -> float:
    """The least dB of a working tensor; a type without an entry is taken for the coarsest."""
    floor = FLOORS.get(after, FLOORS["Q2_K"])
    if made_from or before in PLAIN_TYPES:
        return floor
    return min(floor, FLOORS.get(before, FLOORS["Q2_K"])) - _BOTH_QUANTIZED


def _described(error: TensorError) -> str:
    if not error.finite:
        return f"NaN or Inf in {error.name} ({error.type})"
    text = f"{_decibels(error.sqnr_db)} in {error.name} ({error.type})"
    if error.worst_db < error.sqnr_db - 1:
        lo, hi = error.worst_rows
        text += f", {_decibels(error.worst_db)} in its rows {lo} to {hi - 1}"
    return text


def _decibels(value: float) -> str:
    return "no difference" if value == math.inf else f"{value:.1f} dB"


# ---------------------------------------------------------------------------------------------
# structure


def check_structure(
    path: Path,
    tensors: Sequence[Expected],
    metadata: Mapping[str, Field],
    progress: Progress | None = None,
) -> ProofPart:
    """The file as gguf-py, an independent reader, sees it, against what was to be written."""
    if not is_installed("gguf"):
        return ProofPart(
            unproven=(str(MissingExtraError("gguf", "gguf", "reading the file anew")),)
        )
    if progress is not None:
        progress("reading with gguf-py", None)
    outcome = read_with_gguf(path, progress)
    if outcome.result is None:
        assert outcome.error is not None
        problems = [str(outcome.error)]
    else:
        aligned = metadata.get("general.alignment")
        alignment = ALIGNMENT if aligned is None else int(aligned.value)
        problems = [
            *_wrong_tensors(outcome.result["tensors"], tensors, alignment, path.stat().st_size),
            *_wrong_metadata(outcome.result["metadata"], metadata),
        ]
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    check = Check(
        "structure",
        not problems,
        f"{problems[0]}{more}"
        if problems
        else f"{len(tensors)} tensors and {len(metadata)} keys in their places",
        "all as planned, read by gguf-py",
        "make the file anew",
    )
    return ProofPart((check,))


def _wrong_tensors(
    found: Sequence[Sequence[Any]], tensors: Sequence[Expected], alignment: int, size: int
) -> list[str]:
    """Names, order, shapes, types and bytes, one after the other up to the end of the file."""
    if len(found) != len(tensors):
        return [f"{len(found)} tensors, {len(tensors)} planned"]
    wrong, end = [], None
    for (name, shape, kind, offset, nbytes), expected in zip(found, tensors, strict=True):
        planned = Expected(name, tuple(shape), kind, nbytes)
        if planned != expected:
            wrong.append(f"{_tensor(planned)} where {_tensor(expected)} was planned")
        if offset % alignment or (end is not None and offset != end + -end % alignment):
            wrong.append(f"{name} at byte {offset}, the tensor before it ends at {end}")
        end = offset + nbytes
    if end is not None and end + -end % alignment != size:
        wrong.append(f"the last tensor ends at byte {end}, the file at {size}")
    return wrong


def _tensor(tensor: Expected) -> str:
    return f"{tensor.name} {list(tensor.shape)} {tensor.type} of {tensor.nbytes} bytes"


def _wrong_metadata(
    found: Mapping[str, Mapping[str, Any]], metadata: Mapping[str, Field]
) -> list[str]:
    wrong = [f"metadata {key} is missing" for key in metadata if key not in found]
    for key, stored in found.items():
        if key not in metadata:
            if not key.startswith(_OWN_KEYS):
                wrong.append(f"metadata {key} was not planned")
        elif stored != _entry(metadata[key]):
            wrong.append(f"metadata {key} is another than planned")
    return wrong


def _entry(value: Field) -> dict[str, Any]:
    """What gguf-py should see of a value: as :func:`edgeopt.measure.llm_jobs.structure` has it."""
    # Type and count go before the payload: 4 bytes, in arrays 16.
    payload = value.encoded()[16 if value.type == "array" else 4 :]
    of = value.of if value.type == "array" and len(value.value) else ""
    return {
        "type": value.type,
        "of": of,
        "count": len(value.value) if value.type == "array" else 1,
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
