"""Depth pruning: whole blocks taken out of a network, those that change their input least.

A block's influence is one minus the mean cosine between what it is given and what it returns: Men
et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect"
(arXiv:2403.03853), equation 1. All blocks are ranked once, with nothing taken out, the first and
the last like the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeopt.core import Array, Progress
from edgeopt.errors import InputsError, SourceError, UsageError
from edgeopt.modules.model import TorchModel
from edgeopt.pruning.depth.blocks import Block, first_tensor, read_blocks
from edgeopt.pruning.depth.removal import remove_blocks
from edgeopt.pruning.result import Cut, Pruning

__all__ = ["block_influence", "prune_depth"]

_CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def prune_depth(
    model: TorchModel,
    *,
    ratio: float | None = None,
    keep: int | None = None,
    remove: Sequence[str] = (),
    feeds: Iterable[Mapping[str, Array]] = (),
    progress: Progress | None = None,
) -> Pruning:
    """Take whole blocks out of ``model.module``, in place.

    How many is said by one of ``ratio`` (share of the blocks that go, rounded to whole ones, a half
    to fewer), ``keep`` (how many stay) and ``remove`` (their names, as :func:`find_blocks` gives
    them: nothing is ranked then). ``feeds`` are what influence is measured on; padding (zeros of an
    ``attention_mask``) does not count. Members of a ModuleList are taken out of it and the others
    numbered anew, with the configuration of a transformers model changed to match; elsewhere an
    Identity takes a block's place, so that all other names stay.

    The shortened model is run on its example. Where it fails, everything is put back.

    Raises:
        UsageError: a count that removes nothing or everything, an unknown name.
        InputsError: no feeds, or values that are not finite.
        SourceError: no blocks, or a model that does not run without those chosen.
    """
    if sum((ratio is not None, keep is not None, bool(remove))) != 1:
        raise UsageError("depth takes one of a ratio, a number of blocks to keep, and block names")
    found = read_blocks(model)
    free = [block for block in found if not block.reason]
    if not free:
        raise SourceError(_no_blocks(model, found))
    notes: list[str] = []
    ranked: dict[str, float] = {}
    if remove:
        chosen = _named(remove, free, found)
    else:
        count = _count(ratio, keep, len(free))
        ranked = block_influence(model, free, feeds, progress)
        chosen = sorted(ranked, key=lambda name: ranked[name])[:count]
        least = ", ".join(f"{name} ({ranked[name]:.4f})" for name in chosen)
        notes.append(f"least influence (1 - mean cosine of input and output): {least}")
    _remove(model, chosen)
    cuts = tuple(_cut(block, chosen, ranked) for block in found)
    return Pruning("depth", cuts, tuple(notes))


def block_influence(
    model: TorchModel,
    blocks: Sequence[Block],
    feeds: Iterable[Mapping[str, Array]],
    progress: Progress | None = None,
) -> dict[str, float]:
    """How much each block changes its input, by name: 0 (not at all) to 2.

    One minus the mean over positions of the cosine between the vectors before and behind the
    block: hidden states of tokens, channels at a place of an image. Errors as :func:`prune_depth`.
    """
    meters = {block.name: _CosineMeter(_dimension(model.module, block)) for block in blocks}
    mask: Tensor | None = None

    def watch(meter: _CosineMeter) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            before, behind = first_tensor((*args, kwargs)), first_tensor(output)
            if before is not None and behind is not None:
                meter.add(before, behind, mask)

        return hook

    with ExitStack() as stack:
        for name, meter in meters.items():
            part = model.module.get_submodule(name)
            handle = part.register_forward_hook(watch(meter), with_kwargs=True)
            stack.callback(handle.remove)
        stack.enter_context(model.mode(False))
        stack.enter_context(torch.inference_mode())
        for at, feed in enumerate(feeds):
            given = model.tensors(feed)
            _require_finite(given, at)
            mask = given.get("attention_mask")
            model.outputs(given)
            if progress is not None:
                progress(f"ranking {len(blocks)} blocks: sample {at + 1}", None)
    for name, meter in meters.items():
        if not meter.count:
            raise InputsError("no samples to rank the blocks on; give at least one with --data")
        if not math.isfinite(meter.total):
            raise SourceError(
                f"{name}: its hidden states are not finite; the weights or the data are broken"
            )
    return {name: 1 - meter.total / meter.count for name, meter in meters.items()}


class _CosineMeter:
    """The sum of cosines over vectors along ``dimension``."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.total = 0.0
        self.count = 0

    def add(self, before: Tensor, behind: Tensor, mask: Tensor | None) -> None:
        if before.shape != behind.shape:
            return
        x, y = before.double(), behind.double()
        norm = x.norm(dim=self.dimension) * y.norm(dim=self.dimension)
        same = (x == y).all(dim=self.dimension)
        dot = (x * y).sum(dim=self.dimension)
        # Behind a ReLU a vector may be all zeros: unchanged where both are, else at right angles.
        cosine = torch.where(norm == 0, same.double(), dot / norm.where(norm != 0, 1.0))
        if mask is not None and mask.shape == cosine.shape:
            cosine = cosine[mask > 0]
        self.total += float(cosine.sum())
        self.count += cosine.numel()


def _dimension(root: nn.Module, block: Block) -> int:
    """Where the features are: behind the batch in convolutions, last in all else."""
    parts = list(root.get_submodule(block.name).modules())
    convolves = any(isinstance(part, _CONVOLUTION) for part in parts)
    mixes = any("attention" in type(part).__name__.lower() for part in parts)
    return 1 if convolves and not mixes else -1


def _require_finite(given: Mapping[str, Tensor], at: int) -> None:
    for name, tensor in given.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            bad = int((~tensor.isfinite()).sum())
            raise InputsError(
                f"sample {at}: {bad} of {tensor.numel()} values of {name} are not finite; "
                "remove or repair them"
            )


def _count(ratio: float | None, keep: int | None, blocks: int) -> int:
    """How many blocks go."""
    if ratio is not None:
        if not 0 < ratio < 1:
            raise UsageError(f"ratio {ratio:g}: give a share of the blocks between 0 and 1")
        # To the nearest, a half to fewer; what 0.1 + 0.2 has too much is no half.
        count = math.ceil(ratio * blocks - 0.5 - 1e-9)
        asked = f"ratio {ratio:g}"
        remedy = f"give {1 / blocks:.2g} to {(blocks - 1) / blocks:.2g}"
    else:
        assert keep is not None
        count = blocks - keep
        asked, remedy = f"keeping {keep}", f"keep 1 to {blocks - 1}"
    if 0 < count < blocks:
        return count
    if blocks == 1:
        remedy = "it is the only one and has to stay"
    raise UsageError(
        f"{asked} removes {'all' if count > 0 else 'none'} of {blocks} blocks; {remedy}"
    )


def _named(names: Sequence[str], free: Sequence[Block], found: Sequence[Block]) -> list[str]:
    able = [block.name for block in free]
    reasons = {block.name: block.reason for block in found if block.reason}
    for name in names:
        if name in reasons:
            raise UsageError(f"{name} cannot be taken out: it {reasons[name]}")
        if name not in able:
            near = get_close_matches(name, able, 3) or able[:3]
            raise UsageError(f"{name} is no block of this model; blocks are {', '.join(near)}")
    if len(set(names)) >= len(able):
        raise UsageError(f"all {len(able)} blocks are named; at least one has to stay")
    return list(dict.fromkeys(names))


def _remove(model: TorchModel, names: Sequence[str]) -> None:
    before = _shapes(model)
    with ExitStack() as undo:
        remove_blocks(model.module, names, undo)
        try:
            after = _shapes(model)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
            why = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
            raise SourceError(
                f"without {', '.join(names)} the model does not run ({why}); name others"
            ) from error
        if {n: s for n, (s, _) in after.items()} != {n: s for n, (s, _) in before.items()}:
            raise SourceError(
                f"without {', '.join(names)} the outputs have other shapes; name others"
            )
        lost = [n for n, (_, fine) in after.items() if not fine and before[n][1]]
        if lost:
            raise SourceError(
                f"without {', '.join(names)} the output {lost[0]} is not finite; name others"
            )
        undo.pop_all()


def _shapes(model: TorchModel) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Shape of each output, and whether it is finite."""
    with model.mode(False), torch.inference_mode():
        outputs = model.outputs(model.tensors())
    return {n: (tuple(t.shape), bool(t.isfinite().all())) for n, t in outputs.items()}


def _cut(block: Block, chosen: Sequence[str], ranked: Mapping[str, float]) -> Cut:
    if block.name in chosen:
        return Cut(block.name, "blocks", 1, 0)
    reason = block.reason
    if not reason:
        reason = f"influence {ranked[block.name]:.4f}" if ranked else "not named"
    return Cut(block.name, "blocks", 1, 1, reason)


def _no_blocks(model: TorchModel, found: Sequence[Block]) -> str:
    kind = type(model.module).__name__
    if found:
        first = found[0]
        return f"{kind}: none of {len(found)} blocks can be taken out; {first.name} {first.reason}"
    if isinstance(model.module, fx.GraphModule):
        return (
            "an exported program's layers are gone: it has no blocks; prune the code it came from"
        )
    return f"{kind} has no blocks: no part that repeats returns what has its input's shape"
