"""A smaller transformer of the teacher's own class, which begins with the teacher's weights."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from edgeopt.core.names import listed
from edgeopt.distilling.initial_weights import Inheritance, Shapes, inherit
from edgeopt.distilling.interface import differences
from edgeopt.distilling.smaller_configuration import Sizes, resized, sizes_of, smaller
from edgeopt.errors import SourceError
from edgeopt.modules.model import TorchModel
from edgeopt.modules.reasons import attempt, one_line
from edgeopt.modules.sentence_model import SentenceModel
from edgeopt.pruning.result import Cut, Pruning

__all__ = ["is_resizable", "shrink_pretrained"]

_HIDDEN_STAYS = "the outputs are hidden states, and stay as wide as the teacher's"


def is_resizable(module: nn.Module) -> bool:
    """Whether it is a transformers model (with a pooling head or not) whose configuration says how
    wide and deep it is, in one number each."""
    config = getattr(_inner(module), "config", None)
    return config is not None and sizes_of(config) is not None and bool(_lists(_inner(module)))


def shrink_pretrained(
    model: TorchModel, *, width: float | None, depth: float | None, seed: int = 0
) -> tuple[TorchModel, Pruning]:
    """A student of the teacher's class: ``width`` and ``depth`` are the shares that it keeps, of
    heads and widths, and of blocks.

    Heads keep their own width. Where outputs are hidden states (embedders), those stay as wide as
    the teacher's, and feed-forward blocks alone get narrower. Blocks are picked evenly, the first
    and the last among them. ``seed`` draws what nothing in the teacher matches.

    Raises SourceError where nothing gets smaller, or the class cannot be built at these sizes.
    """
    teacher = _inner(model.module)
    before = sizes_of(teacher.config)
    if before is None:
        raise SourceError(f"{type(teacher).__name__}: its configuration does not say its sizes")
    problem = ""
    for keep_hidden in (False,) if width is None else (False, True):
        after = smaller(before, width, depth, keep_hidden=keep_hidden)
        if after == before:
            continue
        plan = _StudentPlan(model, before, after, _picked(before.blocks, after.blocks), seed)
        student = plan.build()
        problem = differences(model, student)
        if not problem:
            left = inherit(_inner(student.module), teacher, plan.inheritance())
            return student, plan.report(left, keep_hidden)
    raise SourceError(
        f"{type(teacher).__name__} gets no smaller at width {_said(width)} and depth "
        f"{_said(depth)}: "
        + (
            problem
            or f"it has {before.blocks} blocks, {before.heads} heads and {before.inner or 'no'} "
            "feed-forward neurons; give smaller shares"
        )
    )


def _said(share: float | None) -> str:
    return "1" if share is None else f"{share:g}"


def _picked(blocks: int, kept: int) -> tuple[int, ...]:
    """Places of ``kept`` of the blocks, evenly spaced, the first and the last among them."""
    if kept == 1:
        return (0,)
    return tuple((2 * i * (blocks - 1) + kept - 1) // (2 * (kept - 1)) for i in range(kept))


def _inner(module: nn.Module) -> Any:
    return module.transformer if isinstance(module, SentenceModel) else module


def _lists(inner: Any) -> tuple[str, ...]:
    """Names of the lists of blocks: as many members as the configuration says."""
    count = inner.config.num_hidden_layers
    return tuple(
        name
        for name, part in inner.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) == count
    )


@dataclass(frozen=True)
class _StudentPlan:
    model: TorchModel
    before: Sizes
    after: Sizes
    kept: tuple[int, ...]
    seed: int

    @property
    def teacher(self) -> Any:
        return _inner(self.model.module)

    def build(self) -> TorchModel:
        """The student with fresh weights, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            made = self._made(self.after)
        if any(len(made.get_submodule(n)) != self.after.blocks for n in _lists(self.teacher)):
            raise SourceError(
                f"{type(self.teacher).__name__} does not take its number of blocks from its "
                "configuration; give the student's code with --student"
            )
        whole = self.model.module
        if isinstance(whole, SentenceModel):
            made = SentenceModel(made, whole.modes, list(copy.deepcopy(whole.head)))
        device = next((p.device for p in whole.parameters()), torch.device("cpu"))
        return replace(self.model, module=made.float().to(device).eval())

    def inheritance(self) -> Inheritance:
        """How the student's parameters lie in the teacher's: told by two probes without data."""
        after, before = self.after, self.before
        return Inheritance(
            before,
            after,
            self._shapes(replace(after, blocks=before.blocks, inner=before.inner)),
            self._shapes(replace(before, inner=after.inner)),
            _lists(self.teacher),
            self.kept,
        )

    def _shapes(self, sizes: Sizes) -> Shapes:
        with torch.device("meta"):
            probe, error = attempt(lambda: self._made(sizes))
        if probe is None or error is not None:  # code that looks at values as it is built
            probe = self._made(sizes)
        return {name: tuple(tensor.shape) for name, tensor in probe.state_dict().items()}

    def _made(self, sizes: Sizes) -> Any:
        """The teacher's class at these sizes, weights drawn afresh."""
        cls = type(self.teacher)
        options: dict[str, Any] = {}
        if "add_pooling_layer" in inspect.signature(cls.__init__).parameters:
            options["add_pooling_layer"] = getattr(self.teacher, "pooler", None) is not None
        kept = self.kept if sizes.blocks == self.after.blocks else ()
        made, error = attempt(lambda: cls(resized(self.teacher.config, sizes, kept), **options))
        if error is not None:
            raise SourceError(f"{cls.__name__} cannot be built smaller: {one_line(error)}")
        return made

    def report(self, left: tuple[str, ...], keep_hidden: bool) -> Pruning:
        """What got smaller, and where the weights come from."""
        before, after = self.before, self.after
        stays = _HIDDEN_STAYS if keep_hidden else ""
        root = "transformer." if isinstance(self.model.module, SentenceModel) else ""
        cuts = [
            Cut(f"{root}{name}.{i}", "blocks", 1, int(i in self.kept))
            for name in _lists(self.teacher)
            for i in range(before.blocks)
        ]
        cuts += [
            Cut("hidden states", "channels", before.hidden, after.hidden, stays),
            Cut("attention, each block", "heads", before.heads, after.heads, stays),
        ]
        if before.inner is not None and after.inner is not None:
            cuts.append(Cut("feed-forward, each block", "channels", before.inner, after.inner))
        notes: list[str] = []
        if after.blocks != before.blocks:
            of = listed([str(i) for i in self.kept], 24)
            notes.append(
                f"blocks {of} of {before.blocks} are kept, evenly spaced, with their weights"
            )
        if replace(after, blocks=before.blocks) != before:
            notes.append(
                "weights are the teacher's: of each width the part with the largest weights, as a "
                "student that begins so needs fewer steps than one drawn afresh"
            )
        if keep_hidden:
            notes.append(f"hidden states stay {before.hidden} wide: the outputs are hidden states")
        if left:
            notes.append(f"drawn afresh with seed {self.seed}: {listed(left, 3)}")
        return Pruning("shrink", tuple(cuts), tuple(notes))
