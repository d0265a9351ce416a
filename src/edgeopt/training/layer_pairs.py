"""Which layer of the teacher a layer of the student is to follow: proposed by depth, or given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from edgeopt.core.names import near
from edgeopt.errors import SourceError, UsageError

__all__ = ["Pair", "attention_pairs", "blocks_of", "parse_pairs", "projection_of", "propose_pairs"]

#: What projections to queries, keys and values are called, by the last part of their names.
_PROJECTIONS = {
    **dict.fromkeys(("query", "q_proj", "q_lin", "to_q", "wq", "q"), "query"),
    **dict.fromkeys(("key", "k_proj", "k_lin", "to_k", "wk", "k"), "key"),
    **dict.fromkeys(("value", "v_proj", "v_lin", "to_v", "wv", "v"), "value"),
    **dict.fromkeys(("c_attn", "qkv", "qkv_proj", "query_key_value", "Wqkv", "in_proj"), "fused"),
}

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Pair:
    """Names of two modules, the teacher's and the student's, whose outputs are compared."""

    teacher_layer: str
    student_layer: str


def blocks_of(module: nn.Module) -> tuple[str, ...]:
    """Names of the comparable blocks of a network, in order of depth.

    Blocks are the composite members of ``ModuleList`` and ``Sequential`` containers (transformer
    layers, residual blocks, stages). Of several classes of them the one that occurs more than once
    and holds most parameters is meant. A network without any has its convolutions, else its linear
    layers but the last (which gives the output).
    """
    groups: dict[type, list[str]] = {}
    sizes: dict[type, int] = {}
    for name, part in module.named_modules():
        if not isinstance(part, (nn.ModuleList, nn.Sequential)):
            continue
        for key, member in part.named_children():
            full = f"{name}.{key}" if name else key
            inside = groups.get(type(member), [])
            if not any(True for _ in member.children()):
                continue
            if any(full.startswith(f"{outer}.") for outer in inside):
                continue  # a stage within a stage
            groups.setdefault(type(member), []).append(full)
            sizes[type(member)] = sizes.get(type(member), 0) + _size(member)
    repeated = [kind for kind in groups if len(groups[kind]) > 1] or list(groups)
    if repeated:
        return tuple(groups[max(repeated, key=lambda kind: sizes[kind])])
    named = list(module.named_modules())
    convolutions = tuple(name for name, part in named if isinstance(part, _CONVOLUTIONS))
    linears = tuple(name for name, part in named if isinstance(part, nn.Linear))
    return convolutions or linears[:-1]


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def propose_pairs(teacher: nn.Module, student: nn.Module) -> tuple[Pair, ...]:
    """Pairs by depth: layer i of the student's m follows layer round((i + 1) n / m) - 1 of the
    teacher's n, so that the last follows the last (TinyBERT's uniform strategy, Jiao et al. 2020,
    arXiv:1909.10351, section 3.1).

    Raises SourceError where one of them has no blocks that could be compared.
    """
    theirs, ours = blocks_of(teacher), blocks_of(student)
    for side, blocks, module in (("teacher", theirs, teacher), ("student", ours, student)):
        if not blocks:
            raise SourceError(
                f"the {side} ({type(module).__name__}) has no blocks to compare; name layers as "
                "teacher.layer=student.layer"
            )
    n, m = len(theirs), len(ours)
    return tuple(
        Pair(theirs[max(0, (2 * (i + 1) * n + m) // (2 * m) - 1)], ours[i]) for i in range(m)
    )


def attention_pairs(
    teacher: nn.Module, student: nn.Module, pairs: Sequence[Pair] = ()
) -> tuple[Pair, ...]:
    """Pairs of blocks taken down to their projections to queries, keys and values, where both have
    them; other pairs as they are. Without ``pairs``: those of :func:`propose_pairs`."""
    found: list[Pair] = []
    for pair in pairs or propose_pairs(teacher, student):
        theirs = _projections(teacher, pair.teacher_layer)
        ours = _projections(student, pair.student_layer)
        inner = [
            Pair(a, b)
            for role in theirs
            for a, b in zip(theirs[role], ours.get(role, []), strict=False)
        ]
        found += inner or [pair]
    return tuple(dict.fromkeys(found))


def _projections(module: nn.Module, block: str) -> dict[str, list[str]]:
    """Names of a block's projections by what they project to."""
    found: dict[str, list[str]] = {}
    for name, _ in module.get_submodule(block).named_modules():
        role = projection_of(name)
        if role is not None:
            found.setdefault(role, []).append(f"{block}.{name}")
    return found


def projection_of(name: str) -> str | None:
    """What a module projects to, by its name: query, key, value, all three (``fused``), or None."""
    return _PROJECTIONS.get(name.rpartition(".")[2])


def parse_pairs(text: str, teacher: nn.Module, student: nn.Module) -> tuple[Pair, ...]:
    """``teacher.layer=student.layer,...`` as pairs of modules that are there.

    Raises UsageError for another form, a layer given twice, or one that is not there (naming near
    ones).
    """
    pairs: list[Pair] = []
    for part in text.split(","):
        theirs, equals, ours = (piece.strip() for piece in part.partition("="))
        if not (theirs and equals and ours):
            raise UsageError(
                f"layers {part.strip()!r} are not of the form teacher.layer=student.layer"
            )
        for side, module, name in (("teacher", teacher, theirs), ("student", student, ours)):
            known = [n for n, _ in module.named_modules() if n]
            if name not in known:
                raise UsageError(f"the {side} has no layer {name}; {near(name, known)}")
        if Pair(theirs, ours) in pairs:
            raise UsageError(f"layers {part.strip()} are given twice")
        pairs.append(Pair(theirs, ours))
    return tuple(pairs)
