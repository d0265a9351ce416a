"""What a model was shrunk to, and what the user requires of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.errors import UsageError
from edgeopt.tasks.metrics import TaskMetric

if TYPE_CHECKING:
    from edgeopt.modules.counting import Counts
    from edgeopt.pruning.result import Pruning
    from edgeopt.pruning.vocabulary.prune import VocabularyPlan

__all__ = ["Requirements", "Shrunk"]


@dataclass(frozen=True)
class Requirements:
    """What the user asks of the result. ``max_drop`` is in the metric's own units."""

    metrics: tuple[TaskMetric, ...] = ()
    data: str | None = None
    min_sqnr: float | None = None
    max_drop: float | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if self.min_sqnr is not None and not math.isfinite(self.min_sqnr):
            raise UsageError(f"--min-sqnr {self.min_sqnr}: not a number of decibels, such as 20")
        if self.max_drop is not None and not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise UsageError(f"--max-drop {self.max_drop}: not a number of 0 or more, such as 0.01")
        if self.max_drop is not None and not self.metrics:
            raise UsageError("--max-drop needs a --metric, and --data with labels")
        if self.metrics and self.data is None:
            raise UsageError(f"--metric {self.metrics[0].name}: needs --data with labels")


@dataclass(frozen=True)
class Shrunk:
    """What was made: counts before and after, how it came about, and where it was written."""

    before: Counts
    after: Counts
    prunings: tuple[Pruning, ...]
    written: Path
    final: Path
    files: tuple[Path, ...]
    #: Those whose bytes are the artifact's size: a state dict beside a program is a second copy.
    weighed: tuple[Path, ...]
    format: str
    training: Mapping[str, Any] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    usage: str = ""
    #: The file to load in place of ``written``, where that holds no graph (sparse weights).
    runnable: Path | None = None
    #: Whether the file must have fewer bytes than the source's.
    smaller: bool = True
    #: How tokens are numbered now, where that has changed.
    vocabulary: VocabularyPlan | None = None

    @property
    def before_rows(self) -> int:
        """Rows of the embedding before pruning."""
        return max(
            cut.before for pruning in self.prunings for cut in pruning.cuts if cut.kind == "rows"
        )
