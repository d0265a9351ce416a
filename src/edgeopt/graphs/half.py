"""Weights in float16 on disk, in a graph that computes in float32.

ONNX Runtime's CPU provider has next to no float16 kernels: given a float16 graph it puts a Cast on
either side of what it lacks, and computes in float32 all the same (a MiniLM sentence embedder took
1.05 times FP32's time), while every activation is rounded to float16. So the graph stays float32,
and only what is stored changes: ``float16 initializer -> Cast``, which the runtime folds when a
session opens (half the file, FP32's speed and memory). A table that is only gathered from stays
float16 in memory too, and the few rows gathered are cast (113 MB in place of 148, there). For
devices that compute in float16, this file holds the weights to make such a graph from.

A tensor stays float32 where float16 would hurt: where a weight overflows, or where so much of it
lies among the subnormals that its signal to noise ratio falls under :data:`FLOOR_DB`.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.core import Change, Decision
from edgeopt.graphs.fold import constant_array
from edgeopt.graphs.forms.build import Builder
from edgeopt.graphs.sites import Site, find_sites
from edgeopt.numerics.affine import sqnr_db

__all__ = ["FLOOR_DB", "LARGEST", "halve"]

#: Largest finite float16, and the smallest one that has all its 11 significant bits.
LARGEST = float(np.finfo(np.float16).max)
NORMAL = float(np.finfo(np.float16).smallest_normal)

#: float16 within its normal range leaves 73 dB (11 significant bits); with this much less of a
#: tensor's power in its subnormals it is no longer the precision that was asked for.
FLOOR_DB = 60.0

#: What a Cast and a second name take in the file: about this much.
_NODE_BYTES = 200

_WIDE = {"float32": ir.DataType.FLOAT, "float64": ir.DataType.DOUBLE}


def halve(model: ir.Model) -> tuple[Change, ...]:
    """Store a folded graph's weights in float16, in place; one Change a float tensor, kept ones
    with their reason."""
    builder = Builder(model)
    sites, left = find_sites(model.graph)
    changes = [_one(builder, site) for site in sites]
    for value, reason in left:
        tensor = value.const_value
        assert tensor is not None
        ops = "+".join(sorted({node.op_type for node, _ in value.uses()}))
        shape = tuple(int(d) for d in tensor.shape.numpy())
        nbytes = int(tensor.nbytes)
        kept = Decision(value.name or "", ops, "none", "keep", None, reason, nbytes, shape)
        changes.append(Change(kept, nbytes, nbytes))
    return tuple(changes)


def _one(b: Builder, site: Site) -> Change:
    before = site.nbytes
    if site.dtype not in _WIDE:
        return _kept(site, f"is {site.dtype} already")
    if before // 2 <= _NODE_BYTES:
        return _kept(site, "a Cast takes as many bytes as it would save")
    array = constant_array(site.value)
    assert array is not None
    peak = float(np.abs(array).max())
    if peak > LARGEST:
        return _kept(site, f"largest weight {peak:.3g} overflows float16 (65504)")
    half = array.astype(np.float16)
    error = sqnr_db(np.asarray(array, np.float32), half.astype(np.float32))
    if error < FLOOR_DB:
        return _kept(
            site, f"weights under float16's normal range ({NORMAL:.1e}) would keep {error:.0f} dB"
        )
    decision = Decision(
        site.name,
        site.op,
        "cast",
        "half",
        None,
        "float16 in memory too; gathered rows are cast"
        if site.kind == "table"
        else "float16 in the file, cast to float when the session loads",
        half.nbytes,
        site.shape,
    )
    _place(b, site, half)
    return Change(decision, before, half.nbytes, error)


def _place(b: Builder, site: Site, half: NDArray[np.float16]) -> None:
    stored = b.constant(f"{site.name}.half", half)
    to = {"to": _WIDE[site.dtype]}
    if site.kind != "table":
        site.value.replace_all_uses_with(b.at_load("Cast", [stored], to, name=f"{site.name}.cast"))
        b.drop(site.value)
        return
    for use in site.uses:
        node = use.node
        name = node.outputs[0].name or "rows"
        gather = {k: v.value for k, v in node.attributes.items()}
        (rows,) = b.before(node, "Gather", [stored, node.inputs[1]], gather, name=f"{name}.half")
        (y,) = b.before(node, "Cast", [rows], to, name=f"{name}.cast")
        b.replace(node, y)
    b.drop(site.value)


def _kept(site: Site, reason: str) -> Change:
    decision = Decision(site.name, site.op, "none", "keep", None, reason, site.nbytes, site.shape)
    return Change(decision, site.nbytes, site.nbytes)
