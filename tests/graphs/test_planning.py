"""Recipes in, one decision for every float tensor out."""

from __future__ import annotations

import dataclasses
from itertools import product as combinations
from typing import Any

import numpy as np
import pytest
from tests.graphs.nets import INT64, model, node, normal, to_ir, value

from edgeopt.core import Decision
from edgeopt.graphs.forms import FORMS, Placing
from edgeopt.graphs.planning import Recipe, decide, recipes, scheme_bytes
from edgeopt.graphs.sites import find_sites, float_initializers
from edgeopt.graphs.transform import apply_decisions

ANY = frozenset({"product", "table", "tied", "conv", "recurrent", "other"})


def net(dtype: Any = np.float32) -> Any:
    kinds = {np.float32: 1, np.float16: 10}
    return model(
        [
            node("Gather", ["table", "i"], ["e"]),
            node("Gather", ["big", "i"], ["e2"]),
            node("Add", ["e", "e2"], ["e3"]),
            node("MatMul", ["e3", "fc"], ["h"]),
            node("Add", ["h", "bias"], ["g"]),
            node("Unsqueeze", ["g", "last"], ["u"]),
            node("Conv", ["u", "kernel"], ["y"]),
        ],
        [value("i", ["n"], INT64)],
        {"y": ["n", 32, 1]},
        {
            "table": normal(64, 64).astype(dtype),
            "big": normal(5000, 64).astype(dtype),
            "fc": normal(64, 64).astype(dtype),
            "bias": normal(64).astype(dtype),
            "kernel": normal(32, 64, 1).astype(dtype),
            "last": np.array([2]),
        },
        dtype=kinds[dtype],
    )


def recipe(bits: int, prefer: str = "balanced", target: str = "here", **kw: Any) -> Recipe:
    wanted: dict[str, Any] = {"block": None, "unsigned": False, "kinds": ANY, **kw}
    return recipes(bits, prefer=prefer, target=target, **wanted)[0]


def decisions(made: Any, how: Recipe) -> dict[str, Decision]:
    sites, left = find_sites(to_ir(made).graph)
    return {d.tensor: d for d in decide(how, sites, left)}


@pytest.mark.parametrize(
    ("bits", "prefer", "target", "kinds"),
    list(
        combinations(
            (8, 4),
            ("balanced", "speed", "size", "memory"),
            ("here", "portable"),
            (ANY, frozenset({"conv"}), frozenset({"table", "conv"})),
        )
    ),
)
def test_recipes_name_forms_that_exist(
    bits: int, prefer: str, target: str, kinds: frozenset[str]
) -> None:
    made = recipes(bits, prefer=prefer, target=target, block=None, unsigned=False, kinds=kinds)
    assert made
    assert len({r.name for r in made}) == len(made)
    for one in made:
        assert one.bits == bits
        assert bits in FORMS[one.product].bits and "product" in FORMS[one.product].kinds
        assert "table" in FORMS[one.table].kinds
    if target == "portable" or prefer in ("size", "memory"):
        assert len(made) == 1, "nothing is left to be timed"


def test_portable_weights_are_unsigned_and_others_as_the_machine_needs() -> None:
    assert recipe(8, target="portable").placing.unsigned
    assert recipe(8, unsigned=True).placing.unsigned
    assert not recipe(8, unsigned=False).placing.unsigned


def test_memory_stays_packed() -> None:
    assert FORMS[recipe(4, "memory").product].resident == "packed"
    assert FORMS[recipe(8, "memory").product].resident == "int8"


def test_the_asked_block_is_taken() -> None:
    for size in (32, 64, 256):
        one = recipe(4, block=size)
        assert one.block == size and one.table_block == size


@pytest.mark.parametrize("bits", [8, 4])
def test_every_float_tensor_gets_one_decision(bits: int) -> None:
    made = net()
    names = {v.name for v in float_initializers(to_ir(made).graph)}
    for prefer in ("balanced", "size", "memory"):
        found = decisions(made, recipe(bits, prefer))
        assert set(found) == names
        assert all(d.reason for d in found.values()), "every decision says why"
        assert found["bias"].scheme is None and found["bias"].form == "keep"
        for d in found.values():
            if d.scheme is not None:
                assert d.scheme.bits in (bits, 8)
                assert d.nbytes < np.prod(d.shape) * 4


def test_sizes_in_a_decision_are_those_of_the_change() -> None:
    made = net()
    graph = to_ir(made)
    sites, left = find_sites(graph.graph)
    made_decisions = {d.tensor: d for d in decide(recipe(4), sites, left)}
    changes = apply_decisions(graph, made_decisions, Placing())
    assert {c.decision.tensor for c in changes} == {"table", "big", "fc", "kernel"}
    for change in changes:
        scheme = change.decision.scheme
        assert scheme is not None
        site = next(s for s in sites if s.name == change.decision.tensor)
        assert change.decision.nbytes == scheme_bytes(site, scheme)
        # The row scales of integer products and the shapes of Reshape nodes come on top.
        assert 0 <= change.after - change.decision.nbytes <= 4 * 64 + 120
        assert change.sqnr_db is not None and change.sqnr_db > 15


def test_small_tables_stay_at_8_bits_unless_size_is_all() -> None:
    found = decisions(net(), recipe(4))
    assert found["table"].scheme is not None and found["table"].scheme.bits == 8
    assert "small table" in found["table"].reason
    assert found["big"].scheme is not None and found["big"].scheme.bits == 4
    small = decisions(net(), recipe(4, "size"))["table"]
    assert small.scheme is not None and small.scheme.bits == 4


def test_exceptions() -> None:
    four = dataclasses.replace(recipe(4), exceptions=frozenset({"fc", "kernel", "big"}))
    found = decisions(net(), four)
    for name in ("fc", "kernel", "big"):
        scheme = found[name].scheme
        assert scheme is not None and scheme.bits == 8
        assert "fidelity" in found[name].reason
    eight = dataclasses.replace(recipe(8), exceptions=frozenset({"fc"}))
    assert decisions(net(), eight)["fc"].scheme is None


def test_graphs_in_half_precision_are_folded_and_say_why() -> None:
    for bits in (8, 4):
        found = decisions(net(np.float16), recipe(bits))
        assert found["fc"].form == "folded"
        assert "float16" in found["fc"].reason


def test_a_tensor_that_would_not_shrink_is_kept() -> None:
    made = model(
        [node("Conv", ["x", "k"], ["y"], group=180)],
        {"x": ["n", 180, "t"]},
        {"y": ["n", 180, "u"]},
        {"k": normal(180, 1, 3)},
    )
    found = decisions(made, recipe(8))["k"]
    assert found.scheme is not None and found.nbytes < 180 * 12
    tiny = model(
        [node("Conv", ["x", "k"], ["y"], group=260)],
        {"x": ["n", 260, "t"]},
        {"y": ["n", 260, "u"]},
        {"k": normal(260, 1, 2).astype(np.float16)},
        dtype=10,
    )
    kept = decisions(tiny, recipe(8))["k"]
    assert kept.scheme is None and "no smaller" in kept.reason
