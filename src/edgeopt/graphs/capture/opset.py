"""Raise a file's opset, and prove that nothing changed by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx.version_converter

from edgeopt.core import Array
from edgeopt.graphs.capture.check import FLOOR_DB, agreement_db, run_onnx
from edgeopt.graphs.capture.reasons import one_line

__all__ = ["opset_of", "raise_opset"]


def opset_of(path: Path) -> int:
    """The opset of ONNX's own domain that a file asks for."""
    return _opset(onnx.load(path, load_external_data=False))


def _opset(model: onnx.ModelProto) -> int:
    versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    return max(versions, default=1)


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
    kept = f"the file keeps opset {have} (4-bit types need 21): "
    destination = target or path
    attempt = destination.with_name(f"{destination.stem}.opset{opset}.onnx")
    try:
        whole = onnx.load(path)
        if whole.ByteSize() > 2_000_000_000:
            return have, (kept + "it is too large for the converter",)
        onnx.save(onnx.version_converter.convert_version(whole, opset), attempt)
        pairs = zip(run_onnx(path, feeds), run_onnx(attempt, feeds), strict=True)
        worst = min((agreement_db(a, b) for a, b in pairs), default=float("inf"))
    # The converter and the runtime raise many classes for a model they cannot take.
    except (Exception,) as error:
        attempt.unlink(missing_ok=True)
        return have, (kept + one_line(error),)
    if worst < FLOOR_DB:
        attempt.unlink()
        return have, (kept + f"converted to {opset} it answers otherwise ({worst:.0f} dB)",)
    attempt.replace(destination)
    return opset, ()
