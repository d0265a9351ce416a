"""Structured pruning: channels of convolutions and linear layers, and attention heads, go whole.

What must shrink together is torch-pruning's to say (``structure``), what matters least is
measured (``importance``), and what is left is run (``surgery``): a group that the model does not
run without, or answers wrongly without, gets its channels back, and its layers say why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from numpy.typing import NDArray
from torch import fx, nn

from edgeopt.core import Array, Progress
from edgeopt.errors import EdgeoptError, SourceError, UsageError
from edgeopt.modules.model import TorchModel
from edgeopt.pruning.channels.configuration import fit_configuration
from edgeopt.pruning.channels.conv1d import to_conv1d, to_linear
from edgeopt.pruning.channels.dependencies import trace
from edgeopt.pruning.channels.groups import LAYERS, ChannelGroup, Trace, width
from edgeopt.pruning.channels.heads import variants, with_heads
from edgeopt.pruning.channels.importance import Importance, Scores, measure
from edgeopt.pruning.channels.split_attention import split
from edgeopt.pruning.channels.surgery import ModuleSnapshot, Removal, attempt
from edgeopt.pruning.result import Cut, Pruning

__all__ = ["Scope", "prune_channels", "shrink_width"]

Scope: TypeAlias = Literal["layer", "global"]

#: Ranked over all layers, a layer could lose everything; a tenth of it stays.
_LEAST_SHARE = 0.1


@dataclass(frozen=True)
class _Wishes:
    """What the caller asked of the layers, by patterns of their names."""

    ratio: float
    ratios: Mapping[str, float]
    ignore: Sequence[str]

    def ratio_of(self, group: ChannelGroup) -> float:
        """The first pattern that names one of the group's layers decides."""
        for pattern, ratio in self.ratios.items():
            if _matches(pattern, group):
                return ratio
        return self.ratio

    def named(self, group: ChannelGroup) -> bool:
        return any(_matches(pattern, group) for pattern in self.ratios)


def _matches(pattern: str, group: ChannelGroup) -> bool:
    return any(re.search(pattern, name) for name in (group.name, *group.producers))


def prune_channels(
    model: TorchModel,
    *,
    ratio: float,
    scope: Scope = "layer",
    importance: Importance = "magnitude",
    feeds: Iterable[Mapping[str, Array]] = (),
    labels: NDArray[Any] | None = None,
    ratios: Mapping[str, float] | None = None,
    ignore: Sequence[str] = (),
    heads: bool = False,
    round_to: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Pruning:
    """Remove a share of the channels (and heads), in place; shapes really shrink.

    ``ratio`` is the share of channels that go: of every layer, or with ``scope`` "global" of all
    together, the least important anywhere first, a tenth of each layer staying. "layer" is the
    default: no layer becomes a bottleneck at a ratio that the others bear well, layers of one kind
    keep one shape (as transformers' configurations want), and it needs no measure that compares
    unlike layers. ``ratios`` are shares for layers whose names match (``re.search``; the first that
    matches decides; 0 keeps), ``ignore`` names layers to be left alone. ``heads`` prunes attention
    heads too, at the same share, never the size of a head. What is left of a layer is a multiple
    of ``round_to`` (of heads: any number): convolution and integer kernels on CPUs work in blocks
    of 8 or 16 channels, and take as long for 9 as for 16. ``labels`` (for "taylor") are those of
    all rows of ``feeds``; ``seed`` draws what it needs without them.

    Raises UsageError for a share out of range, a pattern that names nothing, or a layer asked for
    by name that cannot shrink; SourceError where nothing can go; InputsError where the measure
    needs feeds. The module is as it was then.
    """
    wishes = _Wishes(ratio, dict(ratios or {}), tuple(ignore))
    _check(wishes, scope, round_to)
    snapshot = ModuleSnapshot(model.module)
    size = _size(model.module)
    try:
        taken_apart = split(model.module)
        turned = to_linear(model.module)
        before = _widths(model.module)
        traced = trace(model)
        groups = [_left_alone(g, wishes) for g in with_heads(model, traced, heads)]
        _check_patterns(wishes, groups)
        able = [g for g in groups if not g.reason]
        scores = measure(importance, model, able, feeds, labels, seed=seed, progress=progress)
        chosen, kept = _choose(able, scores, wishes, scope, round_to)
        done, failed = _carry_out(model, chosen, progress)
        reasons = {g: g.reason for g in groups if g.reason} | kept | failed
        for group, reason in reasons.items():
            if wishes.named(group) and wishes.ratio_of(group) > 0:
                raise UsageError(f"{_called(group)} cannot shrink: {reason}")
        if not done or _size(model.module) >= size:
            raise SourceError(f"nothing pruned: {_summary(reasons, model.module)}")
    except EdgeoptError:
        snapshot.restore()
        raise
    cuts = _cuts(model.module, before, traced, groups, done, reasons)
    to_conv1d(model.module, turned)
    apart = taken_apart.join(model.module)
    fits = fit_configuration(model.module, cuts)
    return Pruning("channels", cuts, _notes(failed, apart, fits))


def shrink_width(model: TorchModel, ratio: float, *, progress: Progress | None = None) -> Pruning:
    """A narrower model of the same depth: the share ``ratio`` of every layer and head goes.

    What a student starts from: the channels with the largest weights stay. Raises as
    :func:`prune_channels` does.
    """
    return prune_channels(model, ratio=ratio, heads=True, progress=progress)


def _check(wishes: _Wishes, scope: str, round_to: int) -> None:
    if not (0 < wishes.ratio < 1 or (wishes.ratio == 0 and wishes.ratios)):
        raise UsageError(f"ratio {wishes.ratio:g}; use a share above 0 and below 1")
    for pattern, ratio in wishes.ratios.items():
        if not 0 <= ratio < 1:
            raise UsageError(f"ratio {ratio:g} for {pattern!r}; use 0 (keep) or more, below 1")
    for pattern in (*wishes.ratios, *wishes.ignore):
        try:
            re.compile(pattern)
        except re.error as problem:
            raise UsageError(f"{pattern!r} is no regular expression: {problem}") from problem
    if scope not in ("layer", "global"):
        raise UsageError(f"scope {scope!r}; use layer or global")
    if round_to < 1:
        raise UsageError(f"round_to {round_to}; use 1 or more")


def _check_patterns(wishes: _Wishes, groups: Sequence[ChannelGroup]) -> None:
    for pattern in (*wishes.ratios, *wishes.ignore):
        if not any(_matches(pattern, group) for group in groups):
            names = [name for group in groups for name in group.producers]
            raise UsageError(
                f"{pattern!r} names no layer; there are {', '.join(names[:4])}"
                f"{' and so on' if len(names) > 4 else ''}"
            )


def _left_alone(group: ChannelGroup, wishes: _Wishes) -> ChannelGroup:
    pattern = next((p for p in wishes.ignore if _matches(p, group)), None)
    if pattern is not None:
        return group.blocked(f"ignored, by {pattern!r}")
    if wishes.ratio_of(group) == 0:
        return group.blocked("ratio 0")
    return group


def _choose(
    groups: Sequence[ChannelGroup], scores: Scores, wishes: _Wishes, scope: str, round_to: int
) -> tuple[list[Removal], dict[ChannelGroup, str]]:
    """The units that go, and why none do, by group."""
    numbers = _numbers(groups, scores, wishes, scope)
    chosen: list[Removal] = []
    kept: dict[ChannelGroup, str] = {}
    for group in groups:
        values = scores.of(group)
        if values is None:
            kept[group] = f"importance {scores.kind} measures nothing on it"
            continue
        units = group.count
        number = _rounded(units, numbers[group], len(group.units) // units, round_to, group.kind)
        if number < 1:
            step = f" in steps of {round_to}" if round_to > 1 and group.kind == "channels" else ""
            wanted = f"{numbers[group]:.3g} of its {units} {group.kind} were to go"
            kept[group] = f"{wanted}, and none can{step}"
            continue
        chosen.append((group, torch.argsort(values, stable=True)[:number]))
    return chosen, kept


def _numbers(
    groups: Sequence[ChannelGroup], scores: Scores, wishes: _Wishes, scope: str
) -> dict[ChannelGroup, float]:
    """How many units of each group are to go, before rounding."""
    numbers = {group: wishes.ratio_of(group) * group.count for group in groups}
    if scope == "layer":
        return numbers
    for kind in ("channels", "heads"):
        ranked = [g for g in groups if g.kind == kind and not wishes.named(g)]
        ranked = [g for g in ranked if scores.of(g) is not None]
        wanted = round(sum(numbers[group] for group in ranked))
        pairs: list[tuple[float, int]] = []
        for index, group in enumerate(ranked):
            compared = scores.compared(group)
            assert compared is not None
            may_go = group.count - math.ceil(_LEAST_SHARE * group.count)
            pairs += [(float(v), index) for v in compared.sort().values[:may_go]]
        for group in ranked:
            numbers[group] = 0
        for _, index in sorted(pairs)[:wanted]:
            numbers[ranked[index]] += 1
    return numbers


def _rounded(units: int, number: float, each: int, round_to: int, kind: str) -> int:
    """Units to remove, so that a multiple of ``round_to`` channels stays: the nearest, above zero.

    Of two that are as near, the larger stays. ``each`` is how many channels one unit is.
    """
    step = 1 if kind == "heads" else round_to // math.gcd(round_to, each)
    left = math.floor((units - number) / step + 0.5) * step
    return max(0, units - max(left, step))


def _carry_out(
    model: TorchModel, chosen: Sequence[Removal], progress: Progress | None
) -> tuple[list[Removal], dict[ChannelGroup, str]]:
    """All at once where that works; else each group on its own, and then those that can."""
    if not chosen or not attempt(model, chosen):
        return list(chosen), {}
    # Where heads take their size from the width of the model, neither can shrink without the other.
    wider = [([*variants(group, model.module)][-1], units) for group, units in chosen]
    if any(group not in (g for g, _ in chosen) for group, _ in wider) and not attempt(model, wider):
        return wider, {}
    snapshot = ModuleSnapshot(model.module)
    good: list[Removal] = []
    failed: dict[ChannelGroup, str] = {}
    for index, (group, units) in enumerate(chosen):
        if progress is not None:
            progress(f"trying {_called(group)} alone", index / len(chosen))
        problems = []
        for variant in variants(group, model.module):
            problem = attempt(model, [(variant, units)])
            if not problem:
                snapshot.restore()
                good.append((variant, units))
                break
            problems.append(problem)
        else:
            failed[group] = problems[0]
    problem = attempt(model, good) if good else ""
    if problem:
        raise SourceError(
            f"each of {len(good)} groups of layers can shrink, but not all of them: {problem};"
            " name some of them with ignore"
        )
    return good, failed


def _called(group: ChannelGroup) -> str:
    if group.kind == "heads":
        return f"the heads of {group.name}"
    others = len(group.producers) - 1
    return group.name + (f" (with {others} more layers)" if others > 0 else "")


def _summary(reasons: Mapping[ChannelGroup, str], module: nn.Module) -> str:
    """The first few reasons, with the layers that they are about."""
    if not reasons and isinstance(module, fx.GraphModule):
        return "an exported program's layers are gone; prune the code it came from"
    if not reasons:
        return "it has no convolution, linear layer, embedding or LSTM to shrink"
    lines = [f"{group.name}: {reason}" for group, reason in reasons.items()]
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")


def _widths(module: nn.Module) -> dict[str, int]:
    return {name: width(m) for name, m in module.named_modules() if isinstance(m, LAYERS)}


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _cuts(
    module: nn.Module,
    before: Mapping[str, int],
    traced: Trace,
    groups: Sequence[ChannelGroup],
    done: Sequence[Removal],
    reasons: Mapping[ChannelGroup, str],
) -> tuple[Cut, ...]:
    """Every layer in the module's order, then every block of heads."""
    why: dict[str, str] = {}
    for group, reason in reasons.items():
        for name in group.producers:
            why.setdefault(name, reason)
    now = _widths(module)
    cuts = []
    for name, was in before.items():
        reason = "" if now[name] != was else why.get(name, "")
        if now[name] == was and not reason:
            reason = "" if name in traced.used else "the example does not run it"
        cuts.append(Cut(name, "channels", was, now[name], reason or _unexplained(was, now[name])))
    gone = {group.name: len(units) for group, units in done if group.kind == "heads"}
    for group in groups:
        if group.kind == "heads" and max(group.units.tolist(), default=0):
            removed = gone.get(group.name, 0)
            reason = "" if removed else why.get(group.producers[0], "")
            cuts.append(Cut(group.name, "heads", group.count, group.count - removed, reason))
    return tuple(cuts)


def _unexplained(before: int, after: int) -> str:
    return "" if before != after else "coupled to layers that keep theirs"


def _notes(failed: Mapping[ChannelGroup, str], apart: int, fits: bool | None) -> tuple[str, ...]:
    notes = [f"{_called(group)} kept: {reason}" for group, reason in failed.items()]
    if apart:
        notes.append(
            f"{apart} nn.MultiheadAttention now have q_proj, k_proj, v_proj and out_proj: torch's"
            " own cannot be narrower than the model"
        )
    if fits is False:
        notes.append(
            "no transformers configuration has these shapes: a program can hold the result"
        )
    return tuple(notes)
