"""Static INT8 candidates: plans whose ranges were observed on the user's calibration samples."""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx
from onnx import numpy_helper

from edgeopt.core import Choice, Plan
from edgeopt.graphs import static
from edgeopt.graphs.planning import Recipe, decide
from edgeopt.graphs.sites import find_sites
from edgeopt.targets.onnx.base_graph import needs_unsigned
from edgeopt.targets.onnx.build import place_static
from edgeopt.targets.onnx.planner import Planner

__all__ = ["static_plans"]


def static_plans(planner: Planner, recipe: Recipe, residual: str) -> dict[str, Plan]:
    """Static plans by name: unsigned activations, and signed ones where timing may choose.

    Empty without calibration samples, and where no node has an integer kernel. At 4 bits the
    weights are stored in 4 and expanded at load for the same kernels.
    """
    calibration, asked = planner.prepared.calibration, planner.asked
    if calibration is None:
        return {}
    if asked.method is not None and asked.bits == 8:
        return {}  # their weights are rounded by the kernels' own rule, one scale a channel
    prepared = static.prepare(onnx.load(str(planner.base.path)))
    selection = static.select(prepared)
    if not selection.ranges:
        return {}
    ranges = static.calibrate(
        prepared,
        selection.ranges,
        calibration,
        static.DEFAULT_METHOD,
        asked.threads,
        planner.progress,
    )
    portable = asked.target == "portable"
    weight_range = "7 bits" if portable or needs_unsigned(planner.machine) else "8 bits"
    plans = {}
    alone = portable or asked.bits == 4
    for activations in ("uint8",) if alone else ("uint8", "int8"):
        name = f"static-{activations}"
        plan = Plan(
            source_sha256=planner.sha256,
            options=asked.options(),
            decisions=(),
            choices=tuple(
                Choice(key, value, reason)
                for key, value, reason in (
                    ("kernel", name, ""),
                    ("activations", activations, "of the static kernels"),
                    ("weight_range", weight_range, _why(weight_range)),
                    ("residual", residual, ""),
                    ("weights", "int8", "signed, symmetric: the form that the kernels fuse"),
                )
            ),
            calibration={
                "method": static.DEFAULT_METHOD,
                "ranges": {k: [float(lo), float(hi)] for k, (lo, hi) in sorted(ranges.items())},
            },
        )
        plans[name] = _with_the_rest(planner, prepared, plan, recipe)
    return plans


def _why(weight_range: str) -> str:
    if weight_range == "7 bits":
        return "x86-64 before VNNI saturates at 16 bits with 8"
    return "this CPU multiplies 8 bits without saturating"


def _with_the_rest(planner: Planner, prepared: Any, plan: Plan, recipe: Recipe) -> Plan:
    """Decisions: what got Q/DQ pairs, then every float tensor that these leave over."""
    model, changes = place_static(planner.base, plan)
    decisions = [change.decision for change in changes]
    if planner.asked.bits == 4:
        weights = {t.name: t for t in prepared.graph.initializer}
        decisions = [
            static.four_bit_decision(
                d, recipe.block, numpy_helper.to_array(weights[d.tensor]), recipe.method
            )
            for d in decisions
        ]
    sites, left = find_sites(model.graph)
    known = {site.name for site in planner.base.sites}
    known |= {value.name for value, _ in planner.base.left}
    rest = decide(
        recipe,
        [site for site in sites if site.name in known],
        [(value, reason) for value, reason in left if value.name in known],
    )
    return dataclasses.replace(plan, decisions=(*decisions, *rest))
