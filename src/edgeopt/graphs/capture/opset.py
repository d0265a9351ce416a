"""Change a file's opset, and prove that nothing else changed by it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx.inliner
import onnx.version_converter

from edgeopt.core import Array
from edgeopt.graphs.capture.check import FLOOR_DB, agreement_db, run_onnx
from edgeopt.graphs.capture.limits import EXTERNAL_OVER
from edgeopt.runtimes.reasons import attempt, one_line

__all__ = ["convert_opset", "converted_model", "opset_of", "raise_opset"]


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
    reason = convert_opset(path, opset, feeds, target or path)
    if reason is None:
        return opset, ()
    return have, (f"the file keeps opset {have} (4-bit types need 21): {reason}",)


def converted_model(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A model at another opset, by onnx's converter, with what that leaves wrong put right first.

    It knows no local functions, which are inlined; and it leaves ``Hardmax`` as it was, although
    opset 13 took it from "all axes from ``axis`` on, as one" to one axis (``Softmax`` and
    ``LogSoftmax``, which changed alike, it converts).
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    if _opset(model) < _ONE_AXIS <= opset:
        model = onnx.ModelProto.FromString(model.SerializeToString())
        _flatten_hardmax(model.graph)
    return onnx.version_converter.convert_version(model, opset)


#: The opset since which Hardmax works along one axis.
_ONE_AXIS = 13


def _flatten_hardmax(graph: onnx.GraphProto) -> None:
    """Hardmax over several axes as Flatten, Hardmax over the last of two, and Reshape."""
    nodes = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _flatten_hardmax(attribute.g)
        if node.op_type != "Hardmax" or node.domain not in ("", "ai.onnx"):
            nodes.append(node)
            continue
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        source, result = node.input[0], node.output[0]
        flat, hard, shape = (f"{result}/{end}" for end in ("flat", "hard", "shape"))
        make = onnx.helper.make_node
        nodes += [
            make("Flatten", [source], [flat], axis=axis),
            make("Hardmax", [flat], [hard], axis=1),
            make("Shape", [source], [shape]),
            make("Reshape", [hard, shape], [result]),
        ]
    del graph.node[:]
    graph.node.extend(nodes)


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
