"""The candidates of one plan: written once, scored on the trial inputs, and timed in turns."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeopt.core import Choice, Plan, Progress
from edgeopt.graphs.chances import probability_outputs
from edgeopt.graphs.external import files_nbytes
from edgeopt.graphs.planning import Recipe, decide
from edgeopt.graphs.transform import CodeCache
from edgeopt.measure.contest import time_candidates
from edgeopt.measure.gate import FLOORS, NEAR
from edgeopt.measure.score import score_candidates
from edgeopt.targets.asked import Asked
from edgeopt.targets.onnx.base_graph import Base
from edgeopt.targets.onnx.build import build
from edgeopt.targets.onnx.source import Prepared

if TYPE_CHECKING:
    from edgeopt.measure.remote.jobs import RemoteJobs

__all__ = ["EXCEPTIONS_DB", "FLOAT", "Planner", "ratio"]

#: Decibels above the floor that a plan should reach on its trial inputs: others will be judged.
_MARGIN_DB: Mapping[int, float] = {8: 1.5, 4: 4.0}

#: The same where size is all that counts: what passes is good enough.
_SIZE_MARGIN_DB = 1.0

#: Decibels above the floor under which the smallest tensors are excepted.
EXCEPTIONS_DB: Mapping[int, float] = {8: 1.5, 4: 2.0}

#: What the captured float graph is called among the candidates.
FLOAT = "float"

#: Seconds that each contest between candidates takes.
_CONTEST = 1.5


@dataclass
class Planner:
    """What every step of planning needs, and the candidates written so far.

    ``machine`` is what the plan is made for, and ``on`` the way to it, where that is another one:
    candidates are scored and timed there.
    """

    prepared: Prepared
    base: Base
    asked: Asked
    workdir: Path
    sha256: str
    cache: CodeCache
    machine: Mapping[str, Any]
    on: RemoteJobs | None
    progress: Progress | None
    batch: tuple[str, ...] = ()
    #: What scoring one candidate took last.
    seconds: float = 0.0
    _written: dict[str, Path] = field(default_factory=dict)
    _scores: dict[str, float] = field(default_factory=dict)

    @property
    def wanted_db(self) -> float:
        floor = self.asked.min_sqnr
        margin = _MARGIN_DB[self.asked.bits]
        if self.asked.prefer == "size":
            margin = min(margin, _SIZE_MARGIN_DB)
        return (FLOORS[self.asked.bits] if floor is None else floor) + margin

    @property
    def least_db(self) -> float:
        """Under this, tensors are excepted."""
        return min(self.wanted_db, self.floor_db + EXCEPTIONS_DB[self.asked.bits])

    @property
    def floor_db(self) -> float:
        floor = self.asked.min_sqnr
        return FLOORS[self.asked.bits] if floor is None else floor

    def plan(
        self,
        recipe: Recipe,
        choices: Mapping[str, str],
        calibration: Mapping[str, Any] | None = None,
    ) -> Plan:
        placing = recipe.placing
        every = {
            "kernel": recipe.name,
            "weights": "uint8" if placing.unsigned else "int8",
            "accuracy_level": str(placing.accuracy_level),
            **choices,
        }
        return Plan(
            source_sha256=self.sha256,
            options=self.asked.options(),
            decisions=decide(recipe, self.base.sites, self.base.left),
            choices=tuple(Choice(name, value, "") for name, value in every.items()),
            calibration=dict(calibration or {}),
        )

    def file(self, plan: Plan) -> Path:
        """The candidate's file, written once."""
        key = plan.digest()
        if key not in self._written:
            path = self.workdir / f"candidate-{len(self._written)}.onnx"
            build(self.base, plan, path, cache=self.cache, progress=self.progress)
            self._written[key] = path
        return self._written[key]

    def nbytes(self, plan: Plan) -> int:
        return files_nbytes(self.file(plan))

    def score(self, plan: Plan) -> float:
        """SQNR (dB) of the worst output on the worst kind of the trial inputs."""
        return self.scores([plan])[0]

    def scores(self, plans: Sequence[Plan]) -> list[float]:
        """The same of several, in one process and with one run of the source."""
        keys = [plan.digest() for plan in plans]
        new = {k: p for k, p in zip(keys, plans, strict=True) if k not in self._scores}
        if new:
            began = time.monotonic()
            self._scores |= score_candidates(
                self.prepared.captured.model,
                {key: self.file(plan) for key, plan in new.items()},
                self.prepared.trial,
                kinds=self.prepared.trial_kinds,
                batch=self.batch,
                probabilities=probability_outputs(self.prepared.captured.model),
                near=NEAR[self.asked.bits] if self.asked.min_sqnr is None else None,
                threads=self.asked.threads,
                on=self.on,
                progress=self.progress,
            )
            self.seconds = (time.monotonic() - began) / len(new)
        return [self._scores[key] for key in keys]

    def time(self, plans: Mapping[str, Plan]) -> tuple[dict[str, list[float]], Mapping[str, str]]:
        """(seconds per block, by name; why those missing do not run), the float graph among them,
        all in one process and taking turns."""
        files = {FLOAT: self.prepared.captured.model}
        files |= {name: self.file(plan) for name, plan in plans.items()}
        timings = time_candidates(
            files,
            self.prepared.trial,
            threads=self.asked.threads,
            seconds=_CONTEST,
            on=self.on,
            progress=self.progress,
        )
        return dict(timings), timings.failures

    @property
    def where(self) -> str:
        return "here" if self.on is None else f"on {self.on.name}"

    def by_time(self, timings: Mapping[str, Sequence[float]], name: str) -> str:
        """What the timings say, and where they were taken."""
        parts = [
            f"{other} takes {ratio(timings, other, name):.2f}x its time"
            for other in timings
            if other != name
        ]
        return f"timed {self.where}: " + "; ".join(parts)


def ratio(timings: Mapping[str, Sequence[float]], name: str, base: str) -> float:
    """Times of ``name`` over those of ``base``, median by median."""
    return float(np.median(timings[name]) / np.median(timings[base]))
