"""Where a training stands: everything beside weights that it needs to go on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from edgeopt.training.divergence import DivergenceGuard
from edgeopt.training.log import LogRecord

__all__ = ["RunningMean", "TrainingState"]


@dataclass
class RunningMean:
    """A running mean of several numbers; of nothing yet, an empty list."""

    sums: list[float] = field(default_factory=list)
    count: int = 0

    def add(self, values: Sequence[float]) -> None:
        self.sums = [a + b for a, b in zip(self.sums or [0.0] * len(values), values, strict=True)]
        self.count += 1

    def mean(self) -> list[float]:
        return [total / self.count for total in self.sums]

    def take(self) -> list[float]:
        """The means, and begin anew."""
        means = self.mean()
        self.sums, self.count = [], 0
        return means


@dataclass
class TrainingState:
    """``step`` updates are done; the next batch is ``place`` of pass ``epoch``.

    ``best`` are the weights of ``best_step``, judged by ``best_metric`` (the training loss where
    nothing is evaluated). ``waited`` counts evaluations since then. ``stopped`` is empty while the
    training is to go on.
    """

    guard: DivergenceGuard
    step: int = 0
    epoch: int = 0
    place: int = 0
    best_step: int = 0
    best_metric: float | None = None
    best: Mapping[str, Tensor] = field(default_factory=dict)
    waited: int = 0
    stopped: str = ""
    why: str = ""
    seconds: float = 0.0
    history: list[LogRecord] = field(default_factory=list)
    since_record: RunningMean = field(default_factory=RunningMean)
    since_evaluation: RunningMean = field(default_factory=RunningMean)

    def gains(self, metric: float, higher_is_better: bool) -> bool:
        """Whether this is better than the best so far; NaN never is."""
        if math.isnan(metric) or self.best_metric is None:
            return not math.isnan(metric)
        return metric > self.best_metric if higher_is_better else metric < self.best_metric

    def to_json(self) -> dict[str, Any]:
        plain = {
            name: getattr(self, name)
            for name in self.__dataclass_fields__
            if name not in ("guard", "best", "history", "since_record", "since_evaluation")
        }
        return {
            **plain,
            "watch": asdict(self.guard),
            "since_record": asdict(self.since_record),
            "since_evaluation": asdict(self.since_evaluation),
            "history": [record.to_json() for record in self.history],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any], best: Mapping[str, Tensor]) -> TrainingState:
        """Raises KeyError, TypeError or ValueError for what :meth:`to_json` does not give."""
        given = dict(document)
        return cls(
            guard=DivergenceGuard(**given.pop("watch")),
            since_record=RunningMean(**given.pop("since_record")),
            since_evaluation=RunningMean(**given.pop("since_evaluation")),
            history=[LogRecord.from_json(record) for record in given.pop("history")],
            best=best,
            **given,
        )
