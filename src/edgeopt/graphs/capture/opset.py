"""Change a file's opset, and prove that nothing else changed by it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from edgeopt.core import Array
from edgeopt.graphs.capture.check import FLOOR_DB, agreement_db, run_onnx
from edgeopt.graphs.capture.converting import converted_model, opset_in
from edgeopt.graphs.capture.limits import EXTERNAL_OVER
from edgeopt.modules.reasons import attempt, one_line

__all__ = ["convert_opset", "opset_of", "raise_opset"]


def opset_of(path: Path) -> int:
    """The opset of ONNX's own domain that a file asks for."""
    return opset_in(onnx.load(path, load_external_data=False))


def raise_opset(
    path: Path, opset: int, feeds: Sequence[Mapping[str, Array]], target: Path | None = None
) -> tuple[int, tuple[str, ...]]:
    """Convert ``path`` (in place, or to ``target``) to at least ``opset``, checked on the feeds.

    Returns the opset reached and notes. Where the converter fails, or its file does not run or
    answers otherwise, the file stays as it is and a note says so.
    """
    have = opset_of(path)
    if have >= opset:
        return have, ()
    reason = convert_opset(path, opset, feeds, target or path)
    if reason is None:
        return opset, ()
    return have, (f"the file keeps opset {have} (4-bit types need 21): {reason}",)


def convert_opset(
    path: Path, opset: int, feeds: Sequence[Mapping[str, Array]], target: Path
) -> str | None:
    """Convert ``path`` up or down to ``opset``, checked on the feeds; None, or why it cannot be.

    ``target`` (it may be ``path``) is written only where the file answers as before.
    """
    trial = target.with_name(f"{target.stem}.opset{opset}.onnx")
    whole = onnx.load(path)
    if sum(len(i.raw_data) for i in whole.graph.initializer) > EXTERNAL_OVER:
        return "it is too large for the converter"

    def convert() -> float:
        onnx.save(converted_model(whole, opset), trial)
        pairs = zip(run_onnx(path, feeds), run_onnx(trial, feeds), strict=True)
        return min((agreement_db(a, b) for a, b in pairs), default=math.inf)

    worst, error = attempt(convert)
    if worst is not None and worst >= FLOOR_DB:
        trial.replace(target)
        return None
    trial.unlink(missing_ok=True)
    if error is not None:
        return one_line(error)
    return f"converted to {opset} it answers otherwise ({worst:.0f} dB)"
