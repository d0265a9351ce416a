"""Plan a graph: candidates are whole plans, chosen by size, then fidelity, then the clock.

Every candidate is written and run before anything is decided, on trial inputs that the proof never
sees. What a timing decided is in the plan with its samples; replaying the plan times nothing.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.core import Choice, Plan, Progress
from edgeopt.errors import UsageError
from edgeopt.graphs.forms import FORMS
from edgeopt.graphs.outliers import find_outliers
from edgeopt.graphs.planning import Recipe, recipes
from edgeopt.graphs.sites import Site
from edgeopt.graphs.transform import CodeCache
from edgeopt.graphs.tune import TUNES
from edgeopt.measure.contest import fastest
from edgeopt.targets.asked import Asked
from edgeopt.targets.machine import machine
from edgeopt.targets.onnx.base_graph import Base, needs_unsigned
from edgeopt.targets.onnx.planner import EXCEPTIONS_DB, FLOAT, Planner, ratio
from edgeopt.targets.onnx.source import Prepared, batch_inputs
from edgeopt.targets.onnx.static_plans import static_plans

if TYPE_CHECKING:
    from edgeopt.measure.remote.jobs import RemoteJobs

__all__ = ["make_graph_plan"]

#: A candidate within this share of the smallest counts as among the smallest.
_ABOUT_AS_SMALL = 1.12

#: Shares of the float bytes that are tried as exceptions, the smallest tensors first: kept in float
#: at 8 bits (coverage stays over 95%), 8 bits at 4.
_SHARES: Mapping[int, tuple[float, ...]] = {
    8: (0.005, 0.01, 0.02),
    4: (0.02, 0.05, 0.1, 0.2, 0.4, 1.0),
}

#: Parts of a graph that are kept in float in turn, to see what each of them costs, where scoring
#: one takes less than these seconds; where it takes longer none are: nobody waits so long.
_PARTS = ((2.0, 12), (6.0, 6))

#: The share of the float bytes that may be kept so.
_MOST_KEPT = 0.6

#: Bytes of weights from which there are half as many parts: each takes a file to write and run.
_LARGE = 64 << 20

#: Decibels above the floor that what is kept so must bring: the trial inputs are few.
_KEPT_DB = 3.0

#: How exporters name the branches of an If.
_BRANCH = re.compile("(then|else)_branch")

#: Rungs of the outlier ladder.
_STEPS = 8

#: What counts as slower than the captured float graph.
_SLOWER = 1.03


def make_graph_plan(
    prepared: Prepared,
    base: Base,
    asked: Asked,
    workdir: Path,
    *,
    sha256: str,
    cache: CodeCache,
    on: RemoteJobs | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Try what makes sense for what was asked, and write down what was chosen and why.

    ``on`` is another machine to make the plan for: what depends on the machine is decided there.
    """
    if asked.block_size is not None and asked.bits == 4:
        _check_block(base, asked.block_size)
    planner = Planner(
        *(prepared, base, asked, workdir, sha256, cache, machine(on, asked.threads), on, progress),
        batch=batch_inputs(prepared.captured.inputs) if prepared.captured.batches else (),
    )
    here = asked.target == "here"
    tried = recipes(
        asked.bits,
        prefer=asked.prefer,
        target=asked.target,
        block=asked.block_size,
        unsigned=here and needs_unsigned(planner.machine),
        kinds=base.kinds,
        method=asked.method,
    )
    residual = "sum" if base.residuals and here else "add"
    first, reasons = _hold_fidelity(planner, tried[0], residual)
    exceptions = reasons.pop("tensors")
    plans = {tried[0].name: first}
    for recipe in (*tried[1:], *_in_float(planner, tried, exceptions)):
        # What one form cannot spare another may: each is asked without exceptions first.
        plans[recipe.name] = planner.plan(recipe, {"residual": residual})
        if not exceptions:
            continue
        if planner.score(plans[recipe.name]) >= planner.least_db:
            if len(plans) > 1 and _is_much(planner, exceptions):
                del plans[tried[0].name]  # the same answers, and less of it in float
            continue
        if planner.asked.bits == 8:
            plans[recipe.name], _ = _hold_fidelity(planner, recipe, residual)
        else:
            plans[recipe.name] = planner.plan(
                dataclasses.replace(recipe, exceptions=exceptions), {"residual": residual}
            )
    plans = static_plans(planner, tried[-1], residual) | plans
    why: dict[str, str] = dict(reasons)
    timings: dict[str, dict[str, list[float]]] = {}
    name = _choose(planner, plans, why, timings)
    chosen = plans[name]
    if base.residuals and here:
        plain = _with_choice(chosen, "residual", "add")
        timings["residual"], _ = planner.time({"add": plain, "sum": chosen})
        both = [v for v in ("add", "sum") if v in timings["residual"]]
        value = fastest({v: timings["residual"][v] for v in both}, both)
        chosen = _with_choice(chosen, "residual", value)
        why["residual"] = f"{TUNES[value]}; {planner.by_time(timings['residual'], value)}"
    why.setdefault("weights", _why_signed(planner, chosen.choice("weights")))
    why.setdefault("accuracy_level", "of MatMulNBits, where it is used")
    why.setdefault("residual", TUNES[chosen.choice("residual", "add")])
    return dataclasses.replace(
        chosen,
        choices=tuple(
            Choice(c.name, c.value, why.get(c.name, c.reason), timings.get(c.name, {}))
            for c in chosen.choices
        ),
    )


def _in_float(
    planner: Planner, tried: Sequence[Recipe], exceptions: frozenset[str]
) -> tuple[Recipe, ...]:
    """The recipe that computes in float from 8-bit weights, where integer products alone were to
    be tried and cost so much that tensors had to be excepted."""
    if planner.asked.bits != 8 or not exceptions or planner.asked.prefer == "memory":
        return ()
    if any(recipe.product == "folded" for recipe in tried):
        return ()
    return (dataclasses.replace(tried[0], name="folded", product="folded"),)


def _is_much(planner: Planner, exceptions: frozenset[str]) -> bool:
    """Whether more is kept in float than the shares of the smallest tensors."""
    kept = sum(site.nbytes for site in planner.base.sites if site.name in exceptions)
    return planner.asked.bits == 8 and kept > max(_SHARES[8]) * planner.base.float_bytes


def _choose(
    planner: Planner,
    plans: Mapping[str, Plan],
    why: dict[str, str],
    timings: dict[str, dict[str, list[float]]],
) -> str:
    """Drop what is too big or misses the floor, then time what is left."""
    asked = planner.asked
    names = list(plans)
    if len(names) == 1:
        why["kernel"] = (
            f"--prefer {asked.prefer}"
            if asked.prefer in ("size", "memory")
            else f"--target {asked.target}, the only form that fits"
        )
        return names[0]
    holding = [name for name in names if planner.score(plans[name]) >= planner.floor_db + 0.5]
    dropped = [f"{n} misses the floor" for n in names if n not in holding] if holding else []
    names = holding or [max(names, key=lambda n: planner.score(plans[n]))]
    if len(names) == 1:
        why["kernel"] = "; ".join(dropped) or "the only one that comes near the floor"
        return names[0]
    if asked.prefer == "size":
        # Whatever the clock says: what was asked for is bytes.
        name = min(names, key=lambda n: planner.nbytes(plans[n]))
        others = ", ".join(f"{n} takes {planner.nbytes(plans[n]):,} B" for n in names if n != name)
        found = f"the smallest, {planner.nbytes(plans[name]):,} B ({others})"
        why["kernel"] = "; ".join([found, *dropped])
        return name
    timings["kernel"], failures = planner.time({name: plans[name] for name in names})
    running = [name for name in names if name in timings["kernel"]]
    if not running or FLOAT not in timings["kernel"]:
        why["kernel"] = "; ".join(["nothing could be timed", *dropped, *failures.values()])
        return names[0]  # the proof says what is wrong with it
    names = running
    dropped += [f"{name} does not run" for name in failures]
    smallest = min(planner.nbytes(plans[name]) for name in names)
    small = [n for n in names if planner.nbytes(plans[n]) <= _ABOUT_AS_SMALL * smallest]
    eligible = names if asked.prefer == "speed" else small
    name = fastest({n: timings["kernel"][n] for n in eligible}, eligible)
    if ratio(timings["kernel"], name, FLOAT) > _SLOWER and len(eligible) < len(names):
        # Smaller, but slower than what the user has: speed decides among them all.
        eligible = names
        name = fastest({n: timings["kernel"][n] for n in eligible}, eligible)
    dropped += [f"{n} is larger" for n in names if n not in eligible]
    why["kernel"] = "; ".join([planner.by_time(timings["kernel"], name), *dropped])
    return name


def _with_choice(plan: Plan, name: str, value: str) -> Plan:
    return dataclasses.replace(
        plan,
        choices=tuple(
            dataclasses.replace(c, value=value) if c.name == name else c for c in plan.choices
        ),
    )


def _why_signed(planner: Planner, value: str) -> str:
    if planner.asked.target == "portable":
        return "exact on every CPU, with and without VNNI"
    if value == "uint8":
        return f"the CPU {planner.where} has no VNNI: int8 weights would saturate"
    return f"the CPU {planner.where} multiplies them without saturating"


def _check_block(base: Base, size: int) -> None:
    columns = sorted({site.matrix_shape[1] for site in base.sites})
    if columns and all(c < size or c % size for c in columns):
        shown = ", ".join(map(str, columns[-4:]))
        raise UsageError(
            f"--block-size {size} divides no weight's input size ({shown}); use a divisor of one"
            " of them, or leave it out"
        )


# ---------------------------------------------------------------------------------------------
# what fidelity decides


def _hold_fidelity(planner: Planner, recipe: Recipe, residual: str) -> tuple[Plan, dict[str, Any]]:
    """The first recipe, with as many outlier channels taken out, and as many small tensors kept
    out of it, as the floor needs; both go down a ladder and stop at the first rung that holds."""
    reasons: dict[str, Any] = {"tensors": frozenset()}
    choices = {"residual": residual}
    plan = planner.plan(recipe, choices)
    integer = FORMS[recipe.product].compute == "int8" and not FORMS[recipe.product].packs
    if planner.base.has_products and integer and planner.score(plan) < planner.wanted_db:
        plan, reasons["outliers"] = _take_outliers(planner, recipe, choices)
    if planner.score(plan) < planner.least_db:
        plan, reasons["tensors"], reasons["exceptions"] = _except(planner, recipe, plan)
    return plan, reasons


def _take_outliers(
    planner: Planner, recipe: Recipe, choices: Mapping[str, str]
) -> tuple[Plan, str]:
    none = planner.plan(recipe, {**choices, "outliers": "none"})
    found = find_outliers(
        planner.base.path, planner.prepared.trial, planner.workdir, threads=planner.asked.threads
    )
    plans = {"none": none}
    for step in range(1, _STEPS + 1):
        count = math.ceil(len(found) * step / _STEPS)
        name = f"{count} of {len(found)} activations"
        taken = {o.activation: list(o.channels) for o in found[:count]}
        if taken:
            plans[name] = planner.plan(recipe, {**choices, "outliers": name}, {"outliers": taken})
    return _first_that_holds(planner, plans, planner.wanted_db)


def _first_that_holds(
    planner: Planner, plans: Mapping[str, Plan], wanted: float
) -> tuple[Plan, str]:
    """Down the ladder to the first plan that reaches ``wanted`` dB, else the best of them."""
    tried: dict[str, float] = {}
    for name, plan in plans.items():
        tried[name] = planner.score(plan)
        if tried[name] >= wanted:
            break
    best = next((n for n, db in tried.items() if db >= wanted), None)
    if best is None:
        best = max(tried, key=lambda n: tried[n])
    shown = ", ".join(f"{name}: {db:.1f} dB" for name, db in tried.items())
    return plans[best], f"{shown}; {wanted:g} dB wanted on the trial inputs"


def _except(planner: Planner, recipe: Recipe, plan: Plan) -> tuple[Plan, frozenset[str], str]:
    """Keep the smallest tensors out of the recipe: early and depthwise layers are small, every
    later layer amplifies their noise, and they weigh next to nothing."""
    bits = planner.asked.bits
    ladder = _ladder(planner.base, _SHARES[bits])
    choices = {c.name: c.value for c in plan.choices if c.name in ("residual", "outliers")}
    plans = {
        name: planner.plan(
            dataclasses.replace(recipe, exceptions=tensors),
            {**choices, "exceptions": name},
            plan.calibration,
        )
        for name, tensors in ladder.items()
    }
    wanted = planner.least_db
    chosen, reason = _first_that_holds(planner, plans, wanted)
    taken = ladder[chosen.choice("exceptions")]
    if bits == 8 and planner.score(chosen) < planner.floor_db + EXCEPTIONS_DB[bits]:
        return _keep_what_matters(planner, recipe, plan, reason)
    return chosen, taken, reason


def _keep_what_matters(
    planner: Planner, recipe: Recipe, plan: Plan, before: str
) -> tuple[Plan, frozenset[str], str]:
    """Where the smallest tensors are not what costs fidelity: keep each part of the graph out in
    turn, and then as many of them together as the floor needs, most gained first."""
    choices = {c.name: c.value for c in plan.choices if c.name in ("residual", "outliers")}

    def without(parts: Sequence[Sequence[Site]]) -> Plan:
        kept = [site.name for part in parts for site in part]
        name = f"{len(kept)} of {len(planner.base.sites)} that cost most"
        return planner.plan(
            dataclasses.replace(recipe, exceptions=frozenset(kept)),
            {**choices, "exceptions": name if kept else "none"},
            plan.calibration,
        )

    count = next((most for seconds, most in _PARTS if planner.seconds < seconds), 0)
    if planner.base.float_bytes >= _LARGE:
        count //= 2
    if not count:
        return plan, frozenset(), f"{before}; trying parts in float would take minutes: give --data"
    parts = _parts(planner.base.sites, count)
    gain = planner.scores([without([part]) for part in parts])
    order = sorted(range(len(parts)), key=lambda i: -gain[i])
    wanted, room = planner.floor_db + _KEPT_DB, _MOST_KEPT * planner.base.float_bytes
    taken: list[list[Site]] = []
    shown = []
    for index in order:
        if _weight([*taken, parts[index]]) > room:
            continue
        taken.append(parts[index])
        shown.append(f"{_weight(taken):,} B: {planner.score(without(taken)):.1f} dB")
        if planner.score(without(taken)) >= wanted:
            break
    # What was taken before the one that mattered may not have been needed.
    for part in sorted(taken, key=lambda part: -_weight([part])):
        fewer = [other for other in taken if other is not part]
        if planner.score(without(fewer)) >= min(wanted, planner.score(without(taken))):
            taken = fewer
    best = without(taken)
    names = frozenset(site.name for part in taken for site in part)
    reason = f"{before}; kept in float, most gained first, {', '.join(shown) or 'nothing'}"
    return best, names, f"{reason}; {planner.score(best):.1f} dB with those that it needs"


def _weight(parts: Sequence[Sequence[Site]]) -> int:
    return sum(site.nbytes for part in parts for site in part)


def _parts(sites: Sequence[Site], count: int) -> list[list[Site]]:
    """Sites in the graph's order, cut into ``count`` parts at most; twins (one layer in both
    branches of an If, of which the trial inputs take one) go together."""
    twins: dict[str, list[Site]] = {}
    for site in sites:
        twins.setdefault(_BRANCH.sub("branch", site.name), []).append(site)
    groups = list(twins.values())
    size = -(-len(groups) // count)
    return [
        [site for group in groups[at : at + size] for site in group]
        for at in range(0, len(groups), size)
    ]


def _ladder(base: Base, shares: Sequence[float]) -> dict[str, frozenset[str]]:
    """Rung name -> tensors: the smallest ones that together weigh no more than each share."""
    order = sorted(base.sites, key=lambda site: site.nbytes)  # stable: the graph's order on ties
    rungs: dict[str, frozenset[str]] = {"none": frozenset()}
    for share in shares:
        taken: list[str] = []
        room = share * base.float_bytes
        for site in order:
            room -= site.nbytes
            if room < 0:
                break
            taken.append(site.name)
        if frozenset(taken) not in rungs.values():
            rungs[f"smallest {len(taken)} of {len(order)}"] = frozenset(taken)
    return rungs
