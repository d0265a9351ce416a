"""Decide for every weight of a graph how it will be stored: recipes in, decisions out.

A :class:`Recipe` is one consistent way to treat a whole graph. The verb makes the few recipes that
make sense for what was asked, and where the choice depends on the machine it times them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeopt.core import Affine, Decision
from edgeopt.graphs.forms import FORMS, Placing
from edgeopt.graphs.sites import Site

__all__ = ["Recipe", "decide", "recipes", "scheme_bytes"]

#: Elements up to which a table is stored in 8 bits also where 4 were asked for.
_SMALL_TABLE = 1 << 18

#: Initializers and nodes that a form adds beside codes and scales, serialized: about this much.
_NODE_BYTES = 300


@dataclass(frozen=True)
class Recipe:
    """How to treat each kind of site.

    ``exceptions`` are tensors that fidelity cannot spare: 8 bits in a 4-bit recipe, float in an
    8-bit one.
    """

    name: str
    bits: int
    product: str
    table: str
    block: int
    table_block: int
    method: str = "mse"
    scale: str = "float16"
    symmetric: bool = False
    placing: Placing = field(default_factory=Placing)
    exceptions: frozenset[str] = frozenset()
    small_tables: bool = True


#: (form of products, form of tables) per bits, the best guess first: what a tie is broken by.
_PAIRS: Mapping[int, tuple[tuple[str, str], ...]] = {
    8: (("matmul-integer", "gather"), ("folded", "gather")),
    4: (
        ("expanded", "gather-nibbles"),
        ("matmul-nbits", "gather-nibbles"),
        ("folded", "gather-nibbles"),
    ),
}

#: The form that an 8-bit exception takes inside a 4-bit recipe.
_EIGHT = {
    "expanded": "matmul-integer",
    "matmul-nbits": "matmul-nbits",
    "folded": "folded",
    "gather-nibbles": "gather",
}


def recipes(
    bits: int,
    *,
    prefer: str,
    target: str,
    block: int | None,
    unsigned: bool,
    kinds: frozenset[str],
    method: str | None = None,
) -> tuple[Recipe, ...]:
    """The recipes worth comparing, the best guess first; one alone where nothing depends on speed.

    ``unsigned``: this CPU needs uint8 weights to be exact. ``kinds``: of site, in this graph.
    ``method`` rounds the weights; the default is least squares.
    """
    wished = block or (128 if prefer == "size" else 64)
    table_block = block or 256
    scale = "float32" if bits == 8 else "float16"
    base = Recipe(
        "",
        bits,
        "folded",
        "gather",
        wished,
        table_block,
        method=method or "mse",
        scale=scale,
        small_tables=prefer != "size",
    )

    def recipe(product: str, table: str, placing: Placing) -> Recipe:
        return dataclasses.replace(
            base,
            name=product
            if kinds & {"product", "tied"}
            else table
            if "table" in kinds
            else "folded",
            product=product,
            table=table,
            placing=placing,
        )

    pairs = _PAIRS[bits]
    if target == "portable":
        # uint8 weights are exact on every CPU; which product is fastest is not asked here.
        return (recipe(*pairs[0], Placing(unsigned=True, accuracy_level=0)),)
    placing = Placing(unsigned=unsigned)
    if prefer == "memory":
        # What stays packed in memory; convolutions and recurrent weights become float at load.
        product = "matmul-nbits" if bits == 4 else "matmul-integer"
        return (recipe(product, pairs[0][1], placing),)
    if not kinds & {"product", "tied"}:
        return (recipe(*pairs[-1], placing),)
    if prefer == "size":
        return (recipe(*pairs[0], placing),)
    return tuple(recipe(product, table, placing) for product, table in pairs)


def scheme_bytes(site: Site, scheme: Affine) -> int:
    """Bytes of codes, scales and zero points for a site under a scheme."""
    return dataclasses.replace(scheme, axis=-1).nbytes(site.matrix_shape)


def decide(
    recipe: Recipe, sites: Sequence[Site], left: Sequence[tuple[Any, str]]
) -> tuple[Decision, ...]:
    """One decision for every float tensor of the graph, those left alone included."""
    decisions = [_decide_one(recipe, site) for site in sites]
    for value, reason in left:
        tensor = value.const_value
        ops = "+".join(sorted({node.op_type for node, _ in value.uses()}))
        shape = tuple(int(d) for d in tensor.shape.numpy())
        decisions.append(
            Decision(value.name or "", ops, "none", "keep", None, reason, tensor.nbytes, shape)
        )
    return tuple(decisions)


def _is_small_table(site: Site) -> bool:
    return site.kind == "table" and math.prod(site.shape) <= _SMALL_TABLE


def _decide_one(recipe: Recipe, site: Site) -> Decision:
    bits = recipe.bits
    wanted = {"product": recipe.product, "tied": recipe.product, "table": recipe.table}.get(
        site.kind, "folded"
    )
    reasons = []
    if bits == 4 and recipe.small_tables and _is_small_table(site):
        bits, wanted = 8, "gather"
        reasons.append("a small table: 8 bits weigh little and are gathered in fewer steps")
    if site.name in recipe.exceptions:
        if recipe.bits == 8:
            return _keep(site, "a small tensor that 8 bits would cost too much fidelity in")
        bits, wanted = 8, _EIGHT.get(wanted, wanted)
        reasons.append("8 bits: 4 would cost too much fidelity here")
    for name in dict.fromkeys((wanted, "folded")):
        form = FORMS[name]
        why_not = form.refuses(site, bits)
        if why_not is not None:
            reasons.append(why_not)
            continue
        scale = recipe.scale if bits == 4 else "float32"
        block = recipe.table_block if site.kind == "table" else recipe.block
        scheme = form.scheme(site, bits, block, recipe.symmetric, scale)
        if scheme.scale == "float16":
            scheme = dataclasses.replace(scheme, scale=site.narrowest_scale(bits))
        nbytes = scheme_bytes(site, scheme)
        if nbytes + _NODE_BYTES >= site.nbytes:
            return _keep(site, f"{bits}-bit codes and the nodes to unpack them are no smaller")
        if form.name == "folded" and not reasons:
            reasons.append(
                "expanded to float at load"
                if site.kind in ("product", "tied", "table")
                else f"no integer kernel taken for {site.op}: small file, float speed and memory"
            )
        reason = "; ".join(reasons) or f"{site.kind} weights, {form.compute} arithmetic"
        method = recipe.method
        return Decision(site.name, site.op, method, form.name, scheme, reason, nbytes, site.shape)
    return _keep(site, "; ".join(reasons))


def _keep(site: Site, reason: str) -> Decision:
    return Decision(site.name, site.op, "none", "keep", None, reason, site.nbytes, site.shape)
