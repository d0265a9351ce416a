"""Replaying a plan: a document that somebody may have edited, checked before it is carried out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from edgeopt.core import Affine, Plan, Source
from edgeopt.errors import UsageError
from edgeopt.graphs.forms import FORMS
from edgeopt.graphs.tune import TUNES
from edgeopt.numerics.affine import SCALE_DTYPES
from edgeopt.numerics.methods import METHODS
from edgeopt.targets.onnx.base_graph import Base

__all__ = ["fitting_plan", "require_sound"]

#: Values that graph-wide choices may have, where they are carried out by name.
_CHOICES: Mapping[str, frozenset[str]] = {
    "accuracy_level": frozenset("01234"),
    "activations": frozenset({"int8", "uint8"}),
    "residual": frozenset(TUNES),
    "weight_range": frozenset({"7 bits", "8 bits"}),
    "weights": frozenset({"int8", "uint8"}),
}


def require_sound(plan: Plan, sha256: str, source: Source) -> None:
    """UsageError for what needs no graph to be seen: another source, values nobody knows."""
    if plan.source_sha256 != sha256:
        raise UsageError(
            f"the plan was made for another source (SHA-256 {plan.source_sha256[:12]}...,"
            f" {source.path} has {sha256[:12]}...); make it anew"
        )
    for wrong in (*_wrong_decisions(plan), *_wrong_choices(plan), *_wrong_ranges(plan)):
        raise UsageError(f"the plan {wrong}; make it anew")


def fitting_plan(plan: Plan, base: Base) -> Plan:
    """The plan, if its tensors and activations are in the graph; UsageError otherwise."""
    for wrong in _wrong_outliers(plan, base):
        raise UsageError(f"the plan {wrong}; make it anew")
    names = {site.name for site in base.sites}
    missing = [d.tensor for d in plan.decisions if d.affine is not None and d.tensor not in names]
    if missing:
        raise UsageError(
            f"the plan names {missing[0]}, which this export does not have; the exporter's"
            " version may differ from the plan's, make it anew"
        )
    return plan


def _wrong_decisions(plan: Plan) -> Iterator[str]:
    """What no form could carry out; whether a form fits its tensor is asked when it is applied."""
    for decision in plan.decisions:
        if decision.affine is None:
            continue
        what = f"has {decision.tensor} in"
        if wrong := _wrong_scheme(decision.affine):
            yield f"{what} {wrong}"
        elif decision.form != "qdq" and decision.form not in FORMS:
            yield f"{what} the form {decision.form!r}, known are qdq, {', '.join(FORMS)}"
        elif decision.form != "qdq" and decision.method not in METHODS:
            yield f"{what} the method {decision.method!r}, known are {', '.join(METHODS)}"


def _wrong_scheme(scheme: Affine) -> str | None:
    if not _is_integer(scheme.bits) or scheme.bits not in (4, 8):
        return f"{scheme.bits!r} bits, not 8 or 4"
    if scheme.block is not None and (not _is_integer(scheme.block) or scheme.block < -1):
        return f"blocks of {scheme.block!r}"
    if scheme.scale not in SCALE_DTYPES:
        return f"scales of {scheme.scale!r}, known are {', '.join(SCALE_DTYPES)}"
    return None if isinstance(scheme.symmetric, bool) else f"symmetry {scheme.symmetric!r}"


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong_choices(plan: Plan) -> Iterator[str]:
    for choice in plan.choices:
        known = _CHOICES.get(choice.name)
        if known is not None and choice.value not in known:
            yield f"chooses {choice.name} {choice.value!r}, not one of {', '.join(sorted(known))}"


def _wrong_ranges(plan: Plan) -> Iterator[str]:
    ranges = plan.calibration.get("ranges", {})
    if not isinstance(ranges, Mapping):
        yield "has ranges that are no table"
        return
    for name, span in ranges.items():
        if not _is_range(span):
            yield f"has {span!r} as the range of {name}"


def _wrong_outliers(plan: Plan, base: Base) -> Iterator[str]:
    outliers = plan.calibration.get("outliers", {})
    if not isinstance(outliers, Mapping):
        yield "has outlier channels that are no table"
        return
    widths = _widths(base)
    for name, channels in outliers.items():
        width = widths.get(name, 0)
        if not isinstance(channels, list) or not all(_is_integer(c) for c in channels):
            yield f"has {channels!r} as the outlier channels of {name}"
        elif not all(0 <= c < width for c in channels):
            yield f"takes channels {channels} out of {name}, which has {width}"


def _is_range(span: Any) -> bool:
    return (
        isinstance(span, (list, tuple))
        and len(span) == 2
        and all(isinstance(v, (int, float)) and math.isfinite(v) for v in span)
        and span[0] <= span[1]
    )


def _widths(base: Base) -> dict[str, int]:
    """Channels of every activation that products take."""
    return {
        use.node.inputs[0].name or "": site.matrix_shape[1]
        for site in base.sites
        if site.kind == "product"
        for use in site.uses
        if use.node.inputs[0] is not None
    }
