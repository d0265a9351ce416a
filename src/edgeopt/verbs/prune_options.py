"""What ``edgeopt prune`` can be told about pruning, and how what is told is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeopt.core.calls import given_of
from edgeopt.errors import UsageError
from edgeopt.files.reading import open_regular, reading
from edgeopt.options.table import PruningOptions, flag_of

__all__ = ["PruneOptions", "flag", "read_pattern", "read_ratios"]


@dataclass(frozen=True)
class PruneOptions(PruningOptions):
    """What the methods can be told, see :mod:`edgeopt.options.table`."""

    seed: int = 0

    @property
    def given(self) -> frozenset[str]:
        """Options that the user gave."""
        return given_of(self) - {"seed"}

    def check(self) -> None:
        """Raises UsageError for what no model can be pruned by, before any is opened."""
        ratio = self.ratio
        if ratio is not None and not 0 < ratio < 1:
            raise UsageError(
                f"--ratio {ratio:g}: it is the share that goes; give one above 0 and below 1"
            )
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


def flag(field_name: str) -> str:
    """How the command line spells a field of PruneOptions."""
    return flag_of(field_name)


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
