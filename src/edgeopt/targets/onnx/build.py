"""From a plan to the artifact's bytes: the same base and the same plan give the same file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from edgeopt.core import Change, Plan, Progress
from edgeopt.errors import UsageError
from edgeopt.files.seal import BLANK, SEAL, seal
from edgeopt.graphs import static
from edgeopt.graphs.external import OVER, data_path, save
from edgeopt.graphs.forms import Placing
from edgeopt.graphs.outliers import split_outliers
from edgeopt.graphs.transform import CodeCache, apply_decisions
from edgeopt.graphs.tune import tune
from edgeopt.numerics.affine import sqnr_db
from edgeopt.targets.onnx.base_graph import Base

__all__ = ["build", "options_of", "place_static", "placing_of", "rewrite", "sign", "write_model"]


def placing_of(plan: Plan) -> Placing:
    """The graph-wide choices of a plan, as the forms take them."""
    return Placing(
        unsigned=plan.choice("weights", "int8") == "uint8",
        accuracy_level=int(plan.choice("accuracy_level", "4")),
    )


def build(
    base: Base,
    plan: Plan,
    path: Path,
    *,
    cache: CodeCache | None = None,
    metadata: Mapping[str, str] | None = None,
    external_over: int | None = OVER,
    measure: bool = False,
    progress: Progress | None = None,
) -> tuple[Change, ...]:
    """Write the artifact that the plan describes; one Change a tensor that was changed."""
    model, changes = rewrite(base, plan, cache=cache, measure=measure, progress=progress)
    write_model(model, path, metadata, external_over)
    return changes


def rewrite(
    base: Base,
    plan: Plan,
    *,
    cache: CodeCache | None = None,
    measure: bool = False,
    progress: Progress | None = None,
) -> tuple[ir.Model, tuple[Change, ...]]:
    """The graph that the plan describes, and one Change a tensor that was changed."""
    changes: tuple[Change, ...] = ()
    if plan.calibration.get("ranges"):
        model, changes = place_static(base, plan)
    else:
        model = base.load()
    split_outliers(model.graph, plan.calibration.get("outliers", {}))
    tune(model.graph, plan.choice("residual", "add"))
    changes += apply_decisions(
        model,
        {d.tensor: d for d in plan.decisions if d.affine is not None and d.form != "qdq"},
        placing_of(plan),
        cache=cache,
        measure=measure,
        progress=progress,
    )
    return model, changes


def sign(model: ir.Model, metadata: Mapping[str, str] | None) -> None:
    """Add edgeopt's metadata to what the source said of itself, and its name where it had none."""
    if not model.producer_name:
        model.producer_name, model.producer_version = "edgeopt", ""
    model.metadata_props.update(metadata or {})


def write_model(
    model: ir.Model,
    path: Path,
    metadata: Mapping[str, str] | None = None,
    external_over: int | None = OVER,
) -> None:
    """Write a model, signed and sealed; its large weights beside it if they all are over that
    many bytes.

    OutputError where what stays inside is more than one ONNX file can hold.
    """
    sign(model, metadata)
    save(model, path, external_over)
    if metadata and metadata.get(SEAL) == BLANK:
        beside = data_path(path)
        seal(path, [beside] if beside.exists() else [])


def place_static(base: Base, plan: Plan) -> tuple[ir.Model, tuple[Change, ...]]:
    """The base with Q/DQ pairs at the plan's ranges, and what that changed."""
    wanted = {d.tensor: d for d in plan.decisions if d.form == "qdq"}
    prepared = static.prepare(onnx.load(str(base.path)))
    selection = static.select(prepared, static.SEEDS, plan.calibration.get("excluded", ()))
    ranges = {name: (float(lo), float(hi)) for name, (lo, hi) in plan.calibration["ranges"].items()}
    missing = [name for name in selection.ranges if name not in ranges]
    if missing:
        raise UsageError(f"the plan has no range for {missing[0]}; make it anew")
    packed = static.decode_weights(prepared, wanted)
    placed = static.place(
        prepared,
        selection,
        ranges,
        signed=plan.choice("activations", "uint8") == "int8",
        reduce_range=plan.choice("weight_range", "8 bits") == "7 bits",
    )
    floats = {t.name: t for t in prepared.graph.initializer}
    codes = {t.name: t for t in placed.model.graph.initializer}
    model = ir.from_proto(placed.model)
    four_bit_errors = static.store_packed(model, packed, placed.codes)
    changes = []
    for decision in placed.decisions:
        if decision.affine is None:
            continue
        before = 4 * math.prod(decision.shape)
        if decision.tensor in four_bit_errors:
            stored = wanted[decision.tensor]
            changes.append(Change(stored, before, stored.nbytes, four_bit_errors[decision.tensor]))
        else:
            error = _weight_error(decision.tensor, floats, codes, decision.affine.axis)
            changes.append(Change(decision, before, decision.nbytes, error))
    return model, tuple(changes)


def _weight_error(
    name: str, floats: Mapping[str, Any], codes: Mapping[str, Any], axis: int
) -> float | None:
    """SQNR of a weight against its own codes, where they stand under the usual names."""
    parts = [floats.get(name), codes.get(f"{name}/q"), codes.get(f"{name}/scale")]
    if any(part is None for part in parts):
        return None
    weight, q, scale = (numpy_helper.to_array(part) for part in parts)
    if scale.ndim != 1 or q.shape != weight.shape or weight.ndim < 2:
        return None
    shape = [1] * weight.ndim
    shape[1 - axis if axis in (0, 1) else 0] = -1
    if weight.shape[shape.index(-1)] != scale.size:
        return None
    return sqnr_db(weight, q.astype(np.float32) * scale.reshape(shape))


def options_of(half: bool, opset: int | None) -> Mapping[str, Any]:
    """What an exported file says of how it was made: all that its bytes depend on."""
    return {"to": "onnx", "half": half, "opset": opset}
