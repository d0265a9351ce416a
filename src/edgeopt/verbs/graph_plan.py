"""Plan a graph: which recipe, tuned how, decided by size, fidelity and the clock in that order."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeopt.core import Choice, Decision, Plan, Progress
from edgeopt.errors import SourceError, UsageError
from edgeopt.graphs.fold import constant_array, fold, load_model
from edgeopt.graphs.forms import Placing
from edgeopt.graphs.planning import Recipe, decide, recipes
from edgeopt.graphs.sites import Site, find_sites, float_initializers, quantized_ops
from edgeopt.graphs.transform import CodeCache, apply_decisions
from edgeopt.graphs.tune import TUNES, can_tune, tune
from edgeopt.measure.contest import fastest, time_candidates
from edgeopt.measure.environment import environment
from edgeopt.measure.gate import FLOORS
from edgeopt.measure.score import score_candidates
from edgeopt.verbs.graph_source import Prepared

__all__ = ["Asked", "Base", "build", "make_graph_plan", "open_base", "placing_of"]

#: A candidate within this share of the smallest counts as among the smallest.
_ABOUT_AS_SMALL = 1.05

#: Decibels above the floor that a plan must reach on its trial feeds: others will be judged.
_MARGIN_DB = 1.5

#: Seconds that each contest between candidates takes.
_CONTEST = 1.5


@dataclass(frozen=True)
class Asked:
    """What the user asked for, checked."""

    bits: int
    prefer: str = "balanced"
    target: str = "here"
    block_size: int | None = None
    min_sqnr: float | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise UsageError(f"--bits {self.bits}: 8 and 4 are there")
        size = self.block_size
        if size is not None and (size < 16 or size > 256 or size & (size - 1)):
            raise UsageError(
                f"--block-size {size} is not a power of two from 16 to 256; use 32, 64 or 128"
            )

    def options(self) -> dict[str, Any]:
        """What goes into the plan and the artifact: what the bytes depend on, nothing else."""
        return {
            "bits": self.bits,
            "prefer": self.prefer,
            "target": self.target,
            "block_size": self.block_size,
        }


@dataclass(frozen=True)
class Base:
    """The folded float graph on disk (weights beside it, to be mapped), ready to be rewritten."""

    path: Path
    sites: tuple[Site, ...]
    left: tuple[tuple[ir.Value, str], ...]
    float_bytes: int
    residuals: bool

    def load(self) -> ir.Model:
        """A fresh graph to rewrite; its weights stay mapped."""
        return ir.load(self.path)


def open_base(prepared: Prepared, workdir: Path, progress: Progress | None = None) -> Base:
    """Fold the captured graph, and refuse what cannot be quantized."""
    if progress is not None:
        progress("folding", None)
    source = prepared.source
    model = load_model(prepared.captured.model)
    already = quantized_ops(model)
    if already:
        found = ", ".join(f"{n} {op}" for op, n in sorted(already.items()))
        raise SourceError(f"{source.path}: already quantized ({found}); give the float model")
    fold(model)
    path = workdir / "base.onnx"
    ir.save(model, path, external_data="base.onnx.data")
    del model
    mapped = ir.load(path)
    sites, left = find_sites(mapped.graph)
    if not sites and not left:
        raise SourceError(f"{source.path}: no float weights; nothing to quantize")
    for value in float_initializers(mapped.graph):
        _require_finite(source.path, value)
    total = sum(site.nbytes for site in sites)
    total += sum(v.const_value.nbytes for v, _ in left if v.const_value is not None)
    return Base(path, tuple(sites), tuple(left), total, can_tune(mapped.graph))


def _require_finite(path: Path, value: ir.Value) -> None:
    array = constant_array(value)
    if array is None:
        return
    rows = array.reshape(-1)
    for lo in range(0, rows.size, 1 << 20):
        part = np.asarray(rows[lo : lo + (1 << 20)], np.float32)
        if not np.isfinite(part).all():
            if array.size < 64 and not np.isnan(np.asarray(array, np.float32)).any():
                return  # a mask's minus infinity is no weight
            bad = "NaN" if np.isnan(part).any() else "Inf"
            raise SourceError(
                f"{path}: {value.name} holds {bad}; a model with broken weights cannot be proven,"
                " repair it first"
            )


def _needs_unsigned() -> bool:
    """int8 weights saturate on x86-64 without VNNI (vpmaddubsw sums pairs in 16 bits)."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    features = environment().get("features", [])
    known = set(features) if isinstance(features, (list, tuple)) else set()
    return not known & {"avx512_vnni", "avx_vnni", "avx512vnni", "avxvnni"}


def build(
    base: Base,
    decisions: Sequence[Decision],
    placing: Placing,
    residual: str,
    path: Path,
    *,
    cache: CodeCache | None = None,
    metadata: Mapping[str, str] | None = None,
    measure: bool = False,
    progress: Progress | None = None,
) -> tuple[Any, ...]:
    """Write the artifact that these decisions give; the changes made, one a tensor."""
    model = base.load()
    tune(model.graph, residual)
    changes = apply_decisions(
        model,
        {d.tensor: d for d in decisions if d.scheme is not None},
        placing,
        cache=cache,
        measure=measure,
        progress=progress,
    )
    model.producer_name, model.producer_version = "edgeopt", ""
    model.metadata_props.clear()
    model.metadata_props.update(metadata or {})
    save(model, path)
    return changes


def save(model: ir.Model, path: Path) -> None:
    """One file with its weights inside; what was still mapped from the base is read now."""
    ir.save(ir.external_data.load_to_model(model), path)


def placing_of(plan: Plan) -> Placing:
    """The graph-wide choices of a plan, as the forms take them."""
    return Placing(
        unsigned=plan.choice("weights", "int8") == "uint8",
        accuracy_level=int(plan.choice("accuracy_level", "4")),
    )


@dataclass(frozen=True)
class _Candidate:
    recipe: Recipe
    decisions: tuple[Decision, ...]
    path: Path

    @property
    def nbytes(self) -> int:
        return self.path.stat().st_size


def make_graph_plan(
    prepared: Prepared,
    base: Base,
    asked: Asked,
    workdir: Path,
    *,
    sha256: str,
    cache: CodeCache,
    progress: Progress | None = None,
) -> Plan:
    """Try the recipes that make sense, and write down what was chosen and why."""
    kinds = frozenset(site.kind for site in base.sites)
    tried = recipes(
        asked.bits,
        prefer=asked.prefer,
        target=asked.target,
        block=asked.block_size,
        unsigned=asked.target == "here" and _needs_unsigned(),
        kinds=kinds,
    )
    if asked.block_size is not None:
        _check_block(base, asked.block_size)
    here = asked.target == "here"
    residual = "sum" if base.residuals and here else "add"
    promoted, choices = _promote(
        prepared, base, asked, tried[0], residual, workdir, cache, progress
    )
    candidates: dict[str, _Candidate] = {}
    for recipe in tried:
        final = dataclasses.replace(recipe, promoted=promoted)
        candidates[recipe.name] = _try(base, final, residual, workdir, cache, progress)
    chosen = next(iter(candidates.values()))
    if len(candidates) > 1:
        chosen, choice = _contest(prepared, candidates, asked, progress)
        choices.append(choice)
    else:
        why = "the form that is safe everywhere" if not here else "the only form that fits"
        if asked.prefer in ("size", "memory"):
            why = f"--prefer {asked.prefer}"
        choices.append(Choice("kernel", chosen.recipe.name, why))
    if base.residuals and here:
        residual, choice = _tune_contest(prepared, base, chosen, asked, workdir, cache, progress)
        choices.append(choice)
    placing = chosen.recipe.placing
    choices.append(
        Choice("weights", "uint8" if placing.unsigned else "int8", _why_signed(asked, placing))
    )
    choices.append(
        Choice("accuracy_level", str(placing.accuracy_level), "of MatMulNBits, where it is used")
    )
    return Plan(
        source_sha256=sha256,
        options=asked.options(),
        decisions=chosen.decisions,
        choices=tuple(choices),
    )


def _why_signed(asked: Asked, placing: Placing) -> str:
    if asked.target == "portable":
        return "exact on every CPU, with and without VNNI"
    if placing.unsigned:
        return "this CPU has no VNNI: int8 weights would saturate"
    return "this CPU multiplies them without saturating"


def _check_block(base: Base, size: int) -> None:
    columns = sorted({site.matrix_shape[1] for site in base.sites})
    if columns and all(c < size or c % size for c in columns):
        shown = ", ".join(map(str, columns[-4:]))
        raise UsageError(
            f"--block-size {size} divides no weight's input size ({shown}); use a divisor of one"
            " of them, or leave it out"
        )


def _try(
    base: Base,
    recipe: Recipe,
    residual: str,
    workdir: Path,
    cache: CodeCache,
    progress: Progress | None,
) -> _Candidate:
    decisions = decide(recipe, base.sites, base.left)
    path = workdir / f"try-{recipe.name}-{residual}-{len(recipe.promoted)}.onnx"
    build(base, decisions, recipe.placing, residual, path, cache=cache, progress=progress)
    return _Candidate(recipe, decisions, path)


# ---------------------------------------------------------------------------------------------
# what the clock decides


def _contest(
    prepared: Prepared,
    candidates: Mapping[str, _Candidate],
    asked: Asked,
    progress: Progress | None,
) -> tuple[_Candidate, Choice]:
    """The fastest; for ``balanced``, the fastest among those about as small as the smallest."""
    smallest = min(c.nbytes for c in candidates.values())
    running = {
        name: c
        for name, c in candidates.items()
        if asked.prefer == "speed" or c.nbytes <= _ABOUT_AS_SMALL * smallest
    }
    timings = time_candidates(
        {name: c.path for name, c in running.items()},
        prepared.trial,
        threads=asked.threads,
        seconds=_CONTEST,
        progress=progress,
    )
    name = fastest(timings, list(running))
    return candidates[name], Choice("kernel", name, _by_time(timings, name), dict(timings))


def _tune_contest(
    prepared: Prepared,
    base: Base,
    chosen: _Candidate,
    asked: Asked,
    workdir: Path,
    cache: CodeCache,
    progress: Progress | None,
) -> tuple[str, Choice]:
    plain = _try(base, chosen.recipe, "add", workdir, cache, progress)
    timings = time_candidates(
        {"add": plain.path, "sum": chosen.path},
        prepared.trial,
        threads=asked.threads,
        seconds=_CONTEST,
        progress=progress,
    )
    name = fastest(timings, ["add", "sum"])
    reason = f"{TUNES[name]}; {_by_time(timings, name)}"
    return name, Choice("residual", name, reason, dict(timings))


def _by_time(timings: Mapping[str, Sequence[float]], chosen: str) -> str:
    medians = {name: float(np.median(values)) for name, values in timings.items()}
    parts = [
        f"{medians[name] / medians[chosen]:.2f}x the time with {name}"
        for name in medians
        if name != chosen
    ]
    return "timed here: " + (", ".join(parts) if parts else "nothing else to compare with")


# ---------------------------------------------------------------------------------------------
# what fidelity decides


def _promote(
    prepared: Prepared,
    base: Base,
    asked: Asked,
    recipe: Recipe,
    residual: str,
    workdir: Path,
    cache: CodeCache,
    progress: Progress | None,
) -> tuple[frozenset[str], list[Choice]]:
    """Tensors that must keep 8 bits for a 4-bit artifact to pass its floor, on the trial feeds.

    Goes down a short ladder: none, depthwise and first layers, every convolution, everything but
    tables; the first rung that holds is taken.
    """
    if asked.bits != 4:
        return frozenset(), []
    floor = (asked.min_sqnr if asked.min_sqnr is not None else FLOORS[4]) + _MARGIN_DB
    ladder = _ladder(base.sites)
    scores: dict[str, float] = {}
    for name, tensors in ladder.items():
        trial = _try(
            base,
            dataclasses.replace(recipe, promoted=tensors),
            residual,
            workdir,
            cache,
            progress,
        )
        found = score_candidates(
            prepared.captured.model,
            {name: trial.path},
            prepared.trial,
            threads=asked.threads,
            progress=progress,
        )
        scores[name] = found[name]
        if found[name] >= floor:
            break
    else:
        name = max(scores, key=lambda rung: scores[rung])
    shown = ", ".join(f"{rung}: {db:.1f} dB" for rung, db in scores.items())
    return ladder[name], [
        Choice("eight_bit_exceptions", name, f"{shown}; {floor:.1f} dB wanted on the trial inputs")
    ]


def _ladder(sites: Sequence[Site]) -> dict[str, frozenset[str]]:
    def names(keep: Callable[[Site], bool]) -> frozenset[str]:
        return frozenset(site.name for site in sites if keep(site))

    convs = [site for site in sites if site.kind == "conv"]
    rungs = {
        "none": frozenset[str](),
        "first and depthwise convolutions": names(
            lambda s: s.kind == "conv" and (s.matrix_shape[1] <= 49 or s is convs[0])
        ),
        "convolutions": names(lambda s: s.kind == "conv"),
        "all but tables": names(lambda s: s.kind != "table"),
        "all": names(lambda s: True),
    }
    distinct: dict[str, frozenset[str]] = {}
    for rung, tensors in rungs.items():
        if tensors not in distinct.values():
            distinct[rung] = tensors
    return distinct
