"""Pruning of single weights, unstructured or n of every m: magnitude, Wanda, SparseGPT.

The module keeps its shapes; zeros take the place of what went. That makes a file smaller that is
written sparsely, and nothing faster by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from edgeopt.core import Array, Progress, format_bytes
from edgeopt.errors import InputsError, SourceError, UsageError
from edgeopt.modules.model import TorchModel
from edgeopt.numerics import masks, sparsegpt, wanda
from edgeopt.pruning.result import Cut, Pruning
from edgeopt.pruning.sparsity.activations import Calls, Seen, gather, gram_bytes, stages, watch
from edgeopt.pruning.sparsity.matrices import WeightMatrix, find_layers, kept_cut
from edgeopt.pruning.sparsity.output_layers import output_weights

__all__ = [
    "METHODS",
    "Amount",
    "check_ratio",
    "prune_weights",
    "selected",
]

#: Methods by name, and whether they look at activations.
METHODS: Mapping[str, bool] = {"magnitude": False, "wanda": True, "sparsegpt": True}

#: What SparseGPT takes at once for a layer, in Gram matrices: sum, damped copy, factor, workspace.
_COPIES = 4


@dataclass(frozen=True)
class Amount:
    """How much goes: a ``ratio`` of the weights, or all but n of every m (``pattern``)."""

    ratio: float | None = None
    pattern: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.pattern is None):
            raise UsageError("give --ratio or --pattern (2:4), one of them")
        if self.ratio is not None:
            check_ratio(self.ratio)
        if self.pattern is not None:
            n, m = self.pattern
            if not 0 < n < m:
                raise UsageError(
                    f"pattern {n}:{m} keeps {n} of every {m} weights; give n:m with 0 < n < m, "
                    "as in 2:4"
                )

    def misfit(self, shape: tuple[int, int]) -> str:
        return masks.misfit(shape, *self.pattern) if self.pattern else ""


def check_ratio(ratio: float) -> None:
    """Raise UsageError unless some weights go, and some stay."""
    if not 0 < ratio < 1:
        what = {0.0: " prunes nothing", 1.0: " prunes everything"}.get(ratio, " is out of range")
        raise UsageError(f"--ratio {ratio:g}{what}; give the share to prune, between 0 and 1")


def prune_weights(
    model: TorchModel,
    *,
    method: str,
    ratio: float | None = None,
    pattern: tuple[int, int] | None = None,
    scope: str = "layer",
    feeds: Iterable[Mapping[str, Array]] = (),
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
) -> Pruning:
    """Set weights of linear layers and convolutions to zero, in place.

    ``ratio`` of every matrix ``[out, in * kernel]`` goes, exactly ``round(ratio * size)`` weights;
    with ``scope="global"`` (magnitude only) of all matrices together. ``pattern`` (n, m): n of
    every m neighbours along the columns stay. ``include`` and ``exclude`` are regular expressions
    searched in layers' names. Embeddings and output layers are left alone unless ``include``
    names them. ``feeds`` are what Wanda and SparseGPT weigh activations on; they are gone through
    once for every block of layers.

    Raises:
        UsageError: an unknown method or scope, a ratio or pattern out of range, a bad expression.
        InputsError: no feeds where they are needed, or feeds that do not run or are not finite.
        SourceError: no layer is left to prune, or nothing was pruned.

    Data that turns out bad on the way leaves the module partly pruned: it is not to be used then.
    """
    if method not in METHODS:
        raise UsageError(f"no method {method}; give one of {', '.join(METHODS)}")
    if scope not in ("layer", "global"):
        raise UsageError(f"no scope {scope}; give layer or global")
    amount = Amount(ratio, pattern)
    if scope == "global" and (method != "magnitude" or amount.ratio is None):
        raise UsageError(
            "scope global compares weights of all layers: it takes method magnitude and a ratio"
        )
    layers, cuts = selected(
        model, include, exclude, lambda layer: _misfit(layer, amount, METHODS[method])
    )
    before = {layer.name: int(np.count_nonzero(layer.matrix())) for layer in layers}
    if METHODS[method]:
        reasons, notes = _by_activations(model, layers, method, amount, feeds, progress)
    else:
        reasons, notes = _by_magnitude(layers, amount, scope, progress), ()
    for layer in layers:
        after = int(np.count_nonzero(layer.matrix()))
        reason = reasons.get(layer.name, "")
        if after == before[layer.name] and not reason:
            reason = (
                "as sparse already" if after < layer.weight.numel() else "too small to lose one"
            )
        cuts.append(Cut(layer.name, "weights", before[layer.name], after, reason))
    pruning = Pruning(method, _ordered(model, cuts), (*notes, *_emptied(cuts)))
    if not pruning.changed:
        raise SourceError(f"nothing was pruned: {_reasons(cuts)}")
    return pruning


def selected(
    model: TorchModel,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    misfit: Callable[[WeightMatrix], str] = lambda layer: "",
) -> tuple[list[WeightMatrix], list[Cut]]:
    """The layers to prune, and Cuts with reasons for all others; ``misfit(layer)`` gives a reason
    of the method's own. Raises SourceError where no layer is left, UsageError for an expression
    that is none."""
    wanted, unwanted = _compiled(include, "--include"), _compiled(exclude, "--ignore")
    layers, cuts = find_layers(model.module)
    last = output_weights(model) if layers else set()
    chosen: list[WeightMatrix] = []
    for layer in layers:
        named = any(p.search(layer.name) for p in wanted)
        reason = ""
        if any(p.search(layer.name) for p in unwanted):
            reason = "excluded"
        elif wanted and not named:
            reason = "not included"
        elif layer.embedding and not named:
            reason = "an embedding: --method vocabulary takes rows; --include names it anyway"
        elif id(layer.weight) in last and not named:
            reason = "the output layer; --include names it anyway"
        reason = reason or misfit(layer)
        if reason:
            cuts.append(kept_cut(layer.name, layer.weight, reason))
        else:
            chosen.append(layer)
    if not chosen:
        raise SourceError(f"no layer to prune: {_reasons(cuts)}")
    return chosen, cuts


def _compiled(patterns: Sequence[str], option: str) -> list[re.Pattern[str]]:
    found = []
    for pattern in patterns:
        try:
            found.append(re.compile(pattern))
        except re.error as error:
            raise UsageError(f"{option} {pattern!r} is no regular expression: {error}") from None
    return found


def _misfit(layer: WeightMatrix, amount: Amount, activations: bool) -> str:
    return amount.misfit(layer.shape) or (layer.unseen if activations else "")


# ---------------------------------------------------------------------------------------------
# the methods


def _by_magnitude(
    layers: Sequence[WeightMatrix], amount: Amount, scope: str, progress: Progress | None
) -> dict[str, str]:
    if scope == "global":
        assert amount.ratio is not None
        scores = [np.abs(layer.matrix()) for layer in layers]
        for layer, kept in zip(layers, masks.globally(scores, amount.ratio), strict=True):
            layer.store(np.where(kept, layer.matrix(), 0))
        return {}
    for number, layer in enumerate(layers):
        if progress:
            progress(f"pruning {layer.name}", number / len(layers))
        w = layer.matrix()
        if amount.pattern:
            kept = masks.n_of_m(np.abs(w), *amount.pattern)
        else:
            assert amount.ratio is not None
            kept = masks.layerwise(np.abs(w), amount.ratio)
        layer.store(np.where(kept, w, 0))
    return {}


def _by_activations(
    model: TorchModel,
    layers: Sequence[WeightMatrix],
    method: str,
    amount: Amount,
    feeds: Iterable[Mapping[str, Array]],
    progress: Progress | None,
) -> tuple[dict[str, str], tuple[str, ...]]:
    again = list(feeds) if iter(feeds) is feeds else feeds
    first = next(iter(again), None)
    if first is None:
        raise InputsError(f"{method} weighs activations and got no samples; give some with --data")
    gram = method == "sparsegpt"
    reasons = {layer.name: reason for layer in layers if gram and (reason := _too_wide(layer))}
    weighed = [layer for layer in layers if layer.name not in reasons]
    calls: Calls = watch(model, weighed, first)
    seen_most = 0
    done = 0
    for stage in stages(weighed, calls, gram=gram):
        if progress:
            progress(f"pruning {stage[0].name}", done / len(weighed))
        found = gather(model, stage, again, calls, gram=gram)
        for layer in stage:
            seen = found.pop(layer.name)
            seen_most = max(seen_most, seen.positions)
            reason = _prune_seen(layer, seen, amount)
            if reason:
                reasons[layer.name] = reason
            done += 1
    return reasons, (f"weighed on up to {seen_most:,} positions of the data's samples",)


def _prune_seen(layer: WeightMatrix, seen: Seen, amount: Amount) -> str:
    """Prune by what was seen; a reason where nothing could be."""
    if seen.sums is None or seen.positions == 0:
        return "not reached by any sample"
    if not bool(seen.sums.any()):
        return "its inputs are all zero on the data"
    w = layer.matrix()
    each = w.size // layer.groups
    parts = np.split(w, layer.groups)  # views of w
    for number, (part, sums) in enumerate(zip(parts, seen.sums.cpu().numpy(), strict=True)):
        ratio = amount.ratio
        if ratio is not None:
            # rounded from the first group on, so that small groups add up to the whole
            before, upto = (masks.pruned_count(ratio, each * (number + i)) for i in (0, 1))
            ratio = (upto - before) / each
        part[...] = _pruned(part, sums, ratio, amount.pattern)
    layer.store(w)
    return ""


def _pruned(
    w: NDArray[Any], sums: NDArray[Any], ratio: float | None, pattern: tuple[int, int] | None
) -> NDArray[Any]:
    if sums.ndim == 1:
        return np.where(wanda.keep(w, np.sqrt(sums), ratio=ratio, pattern=pattern), w, 0)
    return sparsegpt.prune(w, sums, ratio=ratio, pattern=pattern)[0]


def _too_wide(layer: WeightMatrix) -> str:
    need, free = _COPIES * gram_bytes(layer), psutil.virtual_memory().available
    if need <= free:
        return ""
    return (
        f"SparseGPT needs {format_bytes(need)} for its {layer.shape[1]:,} columns, "
        f"{format_bytes(free)} are free; wanda needs none"
    )


# ---------------------------------------------------------------------------------------------
# what is said about it


def _ordered(model: TorchModel, cuts: Sequence[Cut]) -> tuple[Cut, ...]:
    """In the order of the module's parts."""
    names = [name for name, _ in model.module.named_modules()]
    names += [name for name, _ in model.module.named_parameters()]
    places = {name: place for place, name in enumerate(names)}
    return tuple(sorted(cuts, key=lambda cut: places.get(cut.layer, -1)))


def _emptied(cuts: Sequence[Cut]) -> tuple[str, ...]:
    names = [cut.layer for cut in cuts if cut.before and not cut.after]
    if not names:
        return ()
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (f"no weight is left in {', '.join(names[:3])}{more}",)


def _reasons(cuts: Sequence[Cut]) -> str:
    """Every reason once, with how many layers it holds for and one of them."""
    if not cuts:
        return "the model has no linear layers and no convolutions"
    by_reason: dict[str, list[str]] = {}
    for cut in cuts:
        by_reason.setdefault(cut.reason, []).append(cut.layer)
    parts = []
    for reason, names in by_reason.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        parts.append(f"{names[0]}{more}: {reason}")
    return "; ".join(parts)
