"""What a benchmark found: raw samples of every metric, and where they were taken.

Nothing here is a statistic. Percentiles, intervals and comparisons are derived whenever they are
shown (:mod:`edgeopt.numerics.derive`), from the samples that the document keeps.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.core.proof import Fidelity, Measurement, json_ready
from edgeopt.core.typed import WrongPart, read
from edgeopt.errors import SourceError

__all__ = [
    "METRICS",
    "RESULTS_VERSION",
    "Layer",
    "Metric",
    "Quality",
    "Results",
    "Subject",
    "Unavailable",
]

RESULTS_VERSION = 1


@dataclass(frozen=True)
class Metric:
    """What a metric's name means: its unit, its title in a table, how it is taken."""

    unit: str
    title: str
    how: str


#: Every metric that a measurement can have. Less is better in all of them; what is shown the
#: other way round (throughput, tokens a second) is derived.
METRICS: Mapping[str, Metric] = {
    "file": Metric("B", "file size", "bytes of the file, its external data and its shards"),
    "import": Metric("s", "import", "loading the runtime's library in a fresh process"),
    "load.cold": Metric(
        "s", "cold load", "opening the file in a fresh process, its pages not in memory"
    ),
    "load.warm": Metric(
        "s", "warm load", "opening the file in a fresh process, its pages in memory"
    ),
    "first": Metric("s", "first inference", "the first inference after loading"),
    "warmup": Metric("s", "warm-up", "inferences after the first, until their time is steady"),
    "latency": Metric("s", "latency", "one inference in steady state, blocks of all artifacts "
                      "in alternating order"),
    "memory.baseline": Metric("B", "baseline", "resident before loading, the runtime's library in"),
    "memory.peak": Metric("B", "peak", "VmHWM of the fresh process that loads and runs"),
    "memory.anonymous": Metric("B", "anonymous", "anonymous memory added by loading and running"),
    "memory.mapped": Metric("B", "model mapped", "resident pages of the model's own files"),
    "memory.other": Metric("B", "other files", "resident pages of other files, added"),
    "memory.pss": Metric("B", "PSS", "proportional set size: shared pages divided by sharers"),
    "memory.gpu": Metric("B", "GPU memory", "device memory of the process"),
    "energy": Metric("J", "energy", "energy of one inference"),
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """One stored tensor: its bytes, and its error against the baseline where that is known."""

    name: str
    dtype: str
    nbytes: int
    sqnr_db: float | None = None


@dataclass(frozen=True)
class Subject:
    """One artifact that was measured.

    ``name`` is short and unique in the document. ``files`` are (relative name, bytes) of the
    model file, its external data and its shards. ``placement`` is what the runtime did: execution
    providers, nodes that fell back, mapping, repacking. ``failure`` is empty, or why measuring it
    stopped; what had been measured until then is kept.
    """

    name: str
    path: str
    kind: str
    runtime: str
    files: tuple[tuple[str, int], ...]
    sha256: str
    placement: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()
    failure: str = ""

    @property
    def nbytes(self) -> int:
        return sum(size for _, size in self.files)


@dataclass(frozen=True)
class Quality:
    """A task metric of one subject. ``scores`` are per sample where the metric is their mean."""

    subject: str
    metric: str
    value: float
    higher_is_better: bool
    samples: int
    how: str
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Unavailable:
    """A metric that could not be taken, and why. Never a zero. ``subject`` empty: of none."""

    subject: str
    metric: str
    reason: str


@dataclass(frozen=True)
class Results:
    """One document: subjects, raw samples, environment. ``baseline`` names the subject that the
    others are compared with. ``conditions`` of a latency: runtime, device, threads, batch, seq,
    workload ("inference", "pp512", "tg128", "open", "read"), and tokens (per sample) for GGUF.
    """

    verb: str
    made: str
    baseline: str
    subjects: tuple[Subject, ...]
    measurements: tuple[Measurement, ...]
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    fidelity: Mapping[str, tuple[Fidelity, ...]] = field(default_factory=dict)
    quality: tuple[Quality, ...] = ()
    unavailable: tuple[Unavailable, ...] = ()
    warnings: tuple[str, ...] = ()

    def subject(self, name: str) -> Subject:
        return next(s for s in self.subjects if s.name == name)

    def of(self, subject: str, metric: str) -> tuple[Measurement, ...]:
        """The measurements of one metric of one subject, one a set of conditions."""
        return tuple(m for m in self.measurements if m.subject == subject and m.metric == metric)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready document; infinities become the strings "inf" and "-inf", NaN "nan"."""
        document = {"edgeopt_results": RESULTS_VERSION, **dataclasses.asdict(self)}
        ready: dict[str, Any] = json_ready(document)
        return ready

    @classmethod
    def from_json(cls, document: Any, where: str = "results") -> Results:
        """The document read back; what it derives (``derived``) is not read but derived anew.

        Raises SourceError where it is none, of another version, or lacks a part.
        """
        if not isinstance(document, dict) or "edgeopt_results" not in document:
            raise SourceError(f"{where}: no results of edgeopt bench; give a file that it wrote")
        version = document["edgeopt_results"]
        if version != RESULTS_VERSION:
            raise SourceError(
                f"{where}: results of schema version {version}, this edgeopt reads "
                f"{RESULTS_VERSION}; measure again, or use the edgeopt that wrote them"
            )
        try:
            return _read(document)
        except WrongPart as wrong:
            raise SourceError(f"{where}: incomplete results ({wrong}); measure again") from None

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read a saved document. Raises SourceError where the file is none."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}; give a file of results") from None
        except (ValueError, RecursionError):
            raise SourceError(f"{path}: not JSON; give a file that edgeopt bench wrote") from None
        return cls.from_json(document, str(path))


def _read(document: Mapping[str, Any]) -> Results:
    parts = {name: value for name, value in document.items() if name not in _NOT_READ}
    results: Results = read(Results, parts)
    names = [subject.name for subject in results.subjects]
    if "" in names or len(set(names)) < len(names):
        raise WrongPart("subjects have no names of their own")
    for i, measurement in enumerate(results.measurements):
        where = f"measurements[{i}]"
        known = METRICS.get(measurement.metric)
        if known is None or measurement.unit != known.unit:
            metric = f"{measurement.metric} in {measurement.unit}"
            raise WrongPart(f"{where} is {metric[:_SHOWN]}, which nothing is measured as")
        for name, value in measurement.conditions.items():
            kind = str if isinstance(value, str) else float
            if value is not None and not isinstance(value, bool):
                read(kind, value, f"{where}.conditions.{name}")
    return results


#: What a document has beside the fields of :class:`Results`.
_NOT_READ = frozenset({"edgeopt_results", "derived"})

_SHOWN = 60
