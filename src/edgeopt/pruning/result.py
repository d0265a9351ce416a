"""What pruning did to a model, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Cut", "Pruning"]


@dataclass(frozen=True)
class Cut:
    """One layer (or tensor), before and after.

    ``kind`` is what was counted: ``channels``, ``heads``, ``blocks``, ``rows`` (of an embedding)
    or ``weights`` (that are not zero). ``reason`` says why it was kept, where nothing went.
    """

    layer: str
    kind: str
    before: int
    after: int
    reason: str = ""


@dataclass(frozen=True)
class Pruning:
    """What a method did. ``method`` is its name as on the command line."""

    method: str
    cuts: tuple[Cut, ...]
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return any(cut.after != cut.before for cut in self.cuts)
