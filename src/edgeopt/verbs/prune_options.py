"""What ``edgeopt prune`` can be told about pruning, and how what is told is read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from edgeopt.errors import UsageError
from edgeopt.files.reading import open_regular, reading

__all__ = ["PRUNE_KEYWORDS", "PruneKeywords", "PruneOptions", "flag", "read_pattern", "read_ratios"]

_SCOPES = ("layer", "global")
_IMPORTANCES = ("magnitude", "bn", "taylor", "activation")

#: Numbers that are too small, whatever the model.
_LEAST = {"round_to": 1, "keep": 1, "min_count": 1, "rounds": 1, "rewind": 0}


class PruneKeywords(TypedDict, total=False):
    """The fields of PruneOptions and of TrainOptions, each of which may be left out."""

    ratio: float | None
    target: str | None
    pattern: str | None
    scope: str
    importance: str
    heads: bool
    layer_ratios: Sequence[str]
    include: Sequence[str]
    ignore: Sequence[str]
    round_to: int | None
    keep: int | None
    remove: Sequence[str]
    corpus: Sequence[str]
    min_count: int
    rounds: int
    rewind: int
    seed: int
    epochs: int | None
    steps: int | None
    batch_size: int | None
    learning_rate: float | None
    losses: Sequence[str]
    pairs: str | None
    checkpoint: str | None
    cache_teacher: str | None
    history: str | None
    patience: int | None
    precision: str
    accumulation: int


PRUNE_KEYWORDS = tuple(PruneKeywords.__annotations__)


@dataclass(frozen=True)
class PruneOptions:
    """What the methods can be told.

    ``ratio`` is the share that goes, ``target`` what is left in its place (``flops=0.5``).
    ``pattern`` N:M keeps N of every M weights. ``scope``: ``layer`` or ``global``. ``importance``
    of channels: ``magnitude``, ``bn``, ``taylor``, ``activation``; ``heads`` too; ``layer_ratios``
    as ``REGEX=R``; ``include`` and ``ignore`` layers by expression; ``round_to``
    multiples. ``keep`` and ``remove`` are of blocks; ``corpus`` files and ``min_count`` of tokens;
    ``rounds`` and ``rewind`` of the lottery ticket.
    """

    ratio: float | None = None
    target: str | None = None
    pattern: str | None = None
    scope: str = "layer"
    importance: str = "magnitude"
    heads: bool = False
    layer_ratios: Sequence[str] = ()
    include: Sequence[str] = ()
    ignore: Sequence[str] = ()
    round_to: int | None = None
    keep: int | None = None
    remove: Sequence[str] = ()
    corpus: Sequence[str] = ()
    min_count: int = 1
    rounds: int = 5
    rewind: int = 0
    seed: int = 0

    @property
    def given(self) -> frozenset[str]:
        """Fields that differ from their defaults."""
        return frozenset(
            f.name
            for f in dataclasses.fields(self)
            if f.name != "seed" and getattr(self, f.name) != f.default
        )

    def check(self) -> None:
        """Raises UsageError for what no model can be pruned by, before any is opened."""
        ratio = self.ratio
        if ratio is not None and not 0 < ratio < 1:
            raise UsageError(
                f"--ratio {ratio:g}: it is the share that goes; give one above 0 and below 1"
            )
        for name, known in (("scope", _SCOPES), ("importance", _IMPORTANCES)):
            if getattr(self, name) not in known:
                raise UsageError(f"{flag(name)} {getattr(self, name)}: use {', '.join(known)}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{flag(name)} {value}: give {least} or more")
        for name in ("include", "ignore"):
            for pattern in getattr(self, name):
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise UsageError(
                        f"{flag(name)} {pattern!r} is no regular expression: {error}"
                    ) from None
        read_pattern(self.pattern)
        read_ratios(self.layer_ratios)

    def check_corpus(self) -> None:
        """Raises SourceError for a corpus that cannot be read."""
        for path in map(Path, self.corpus):
            with reading(path):
                open_regular(path).close()


_FLAGS = {"layer_ratios": "layer-ratio"}


def flag(field_name: str) -> str:
    """How the command line spells a field of PruneOptions."""
    return f"--{_FLAGS.get(field_name, field_name).replace('_', '-')}"


def read_ratios(given: Sequence[str]) -> dict[str, float]:
    """Of ``REGEX=R``: R by REGEX. Raises UsageError naming what is no such thing."""
    found = {}
    for text in given:
        pattern, equals, number = text.rpartition("=")
        try:
            re.compile(pattern)
            ratio = float(number)
        except (ValueError, re.error):
            equals = ""
            ratio = 0.0
        if not equals or not pattern or not 0 <= ratio < 1:
            raise UsageError(
                f"--layer-ratio {text}: give REGEX=R, R from 0 to below 1, as 'stage2.*=0.3'"
            )
        found[pattern] = ratio
    return found


def read_pattern(text: str | None) -> tuple[int, int] | None:
    """(N, M) of ``N:M``. Raises UsageError."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    n, m = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 < n < m:
        raise UsageError(f"--pattern {text}: give N:M with 0 < N < M, as 2:4 (2 of every 4 stay)")
    return n, m
