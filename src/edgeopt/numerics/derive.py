"""From raw samples to what is shown: figures with intervals, comparisons with a verdict, warnings.

Everything here is computed again whenever a document is shown, on a machine that need not be the
one that measured; nothing of it is read back. The same document gives the same figures: the
bootstrap is seeded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeopt.core.proof import Measurement, json_ready
from edgeopt.core.results import METRICS, Results

__all__ = ["PAIRED_BY", "Contrast", "Derived", "Figure", "Row", "derive"]

#: Two measurements are of the same thing when these conditions agree. The runtime may differ: a
#: GGUF file against an ONNX one is a fair question.
PAIRED_BY = ("device", "threads", "batch", "seq", "workload")

#: Percentiles of a latency, each shown from so many samples on (MLPerf's LoadGen; p50 always).
PERCENTILES: Mapping[str, float] = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}


@dataclass(frozen=True)
class Figure:
    """One number with its 95% interval; no interval where it is exact or samples are too few.

    ``samples`` and ``processes`` are how many it comes from.
    """

    value: float
    low: float | None
    high: float | None
    samples: int
    processes: int
    unit: str


@dataclass(frozen=True)
class Row:
    """One metric of one subject under one set of conditions.

    ``figures``: of a latency ``p50``, ``p90``, ``p95``, ``p99`` and ``mean``, as far as the
    number of samples supports them, and ``tokens_per_s`` (as llama-bench defines it) or
    ``throughput`` (inferences a second, every sample of a batch counted); of a file ``exact``; of
    all others ``median``. Empty where there is no finite sample. ``noise`` is the spread that
    repeating would show, as a share of the value. ``steady`` says of a latency how its processes
    settled: ``processes``, ``settled`` (how many did), ``starts`` (after how many samples each
    did, None: never). ``advice`` is what to do about noise.
    """

    subject: str
    metric: str
    conditions: Mapping[str, Any]
    figures: Mapping[str, Figure]
    noise: float | None = None
    steady: Mapping[str, Any] | None = None
    advice: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contrast:
    """One statistic of a subject over the baseline's, in the same conditions.

    ``verdict``: ``better``, ``worse``, ``same`` (exactly equal), ``not significant``, or
    ``unknown`` (too few samples to say).
    """

    subject: str
    baseline: str
    metric: str
    statistic: str
    conditions: Mapping[str, Any]
    ratio: Figure
    verdict: str


@dataclass(frozen=True)
class Derived:
    """All that is shown of a document, in the order of its subjects and of METRICS."""

    rows: tuple[Row, ...]
    contrasts: tuple[Contrast, ...]
    warnings: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready document, infinities and NaN as words."""
        ready: dict[str, Any] = json_ready(dataclasses.asdict(self))
        return ready

    def row(self, subject: str, metric: str, conditions: Mapping[str, Any]) -> Row | None:
        """The row of a subject's metric in conditions that agree with these, or None."""
        wanted = _pairing(conditions)
        for row in self.rows:
            if (row.subject, row.metric, _pairing(row.conditions)) == (subject, metric, wanted):
                return row
        return None


def derive(results: Results, baseline: str | None = None) -> Derived:
    """Figures of every measurement, and every subject against ``baseline``.

    ``baseline`` defaults to the one that the document names; "" compares nothing.
    """
    base = results.baseline if baseline is None else baseline
    taken = [*results.measurements, *_sizes(results)]
    rank = {name: i for i, name in enumerate(METRICS)}
    names = {s.name: i for i, s in enumerate(results.subjects)}
    taken.sort(key=lambda m: (names.get(m.subject, len(names)), rank.get(m.metric, len(rank))))
    rows = tuple(_row(m) for m in taken)
    contrasts = []
    for m, row in zip(taken, rows, strict=True):
        if m.subject == base or m.metric == "warmup":
            continue
        for other, base_row in zip(taken, rows, strict=True):
            same = (other.subject, other.metric) == (base, m.metric)
            if same and _pairing(other.conditions) == _pairing(m.conditions):
                contrasts.extend(_contrasts(row, base_row))
    return Derived(rows, tuple(contrasts), ())


def _pairing(conditions: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(conditions.get(name) for name in PAIRED_BY)


def _sizes(results: Results) -> list[Measurement]:
    """Sizes of files that no measurement of the document gives."""
    measured = {m.subject for m in results.measurements if m.metric == "file"}
    return [
        Measurement(s.name, "file", "B", {}, ((float(s.nbytes),),))
        for s in results.subjects
        if s.files and s.name not in measured
    ]


def _row(m: Measurement) -> Row:
    groups = [np.asarray(p, np.float64) for p in m.values]
    groups = [g[np.isfinite(g)] for g in groups]
    groups = [g for g in groups if g.size]
    figures: dict[str, Figure] = {}
    if groups:
        if m.metric == "file":
            figures["exact"] = Figure(float(groups[0][0]), None, None, 1, 1, m.unit)
        elif m.metric == "latency":
            figures = _latency(m, groups)
        else:
            figures["median"] = _figure(groups, lambda v: float(np.median(v)), m.unit)
    return Row(m.subject, m.metric, m.conditions, figures)


def _latency(m: Measurement, groups: Sequence[Any]) -> dict[str, Figure]:
    count = sum(g.size for g in groups)
    found = {}
    for name, q in PERCENTILES.items():
        if name == "p50" or count >= {"p90": 64, "p95": 128, "p99": 662}[name]:
            found[name] = _figure(groups, lambda v, q=q: float(np.percentile(v, q)), m.unit)
    found["mean"] = mean = _figure(groups, lambda v: float(np.mean(v)), m.unit)
    tokens = m.conditions.get("tokens")
    name, times, unit = (
        ("tokens_per_s", float(tokens), "tokens/s")
        if tokens
        else ("throughput", float(m.conditions.get("batch") or 1), "1/s")
    )
    found[name] = Figure(
        times / mean.value,
        times / mean.high if mean.high else None,
        times / mean.low if mean.low else None,
        mean.samples,
        mean.processes,
        unit,
    )
    return found


def _figure(groups: Sequence[Any], of: Any, unit: str) -> Figure:
    pooled = np.concatenate(groups)
    value = of(pooled)
    own = np.array([of(g) for g in groups]) if len(groups) > 1 else pooled
    if own.size < 3:
        return Figure(value, None, None, int(pooled.size), len(groups), unit)
    picks = np.random.default_rng(0).integers(0, own.size, (1000, own.size))
    low, high = np.quantile(own[picks].mean(axis=1), (0.025, 0.975))
    return Figure(value, float(low), float(high), int(pooled.size), len(groups), unit)


def _contrasts(row: Row, base: Row) -> list[Contrast]:
    found = []
    for name, figure in row.figures.items():
        if name == "mean" or name not in base.figures:
            continue
        other = base.figures[name]
        if other.value == 0:
            continue
        sign = -1 if name in ("throughput", "tokens_per_s") else 1
        ratio = figure.value / other.value
        low = high = None
        verdict = "unknown"
        if name == "exact":
            verdict = "same" if ratio == 1 else ("better" if ratio < 1 else "worse")
        elif (spread := math.hypot(_spread(figure), _spread(other))) < math.inf:
            low, high = ratio * (1 - spread / 2), ratio * (1 + spread / 2)
            verdict = "not significant"
            if high < 0.98 or low > 1.02:
                verdict = "better" if (ratio - 1) * sign < 0 else "worse"
        found.append(
            Contrast(
                row.subject,
                base.subject,
                row.metric,
                name,
                row.conditions,
                Figure(
                    ratio,
                    low,
                    high,
                    min(figure.samples, other.samples),
                    min(figure.processes, other.processes),
                    "ratio",
                ),
                verdict,
            )
        )
    return found


def _spread(figure: Figure) -> float:
    if figure.low is None or figure.high is None:
        return math.inf
    return (figure.high - figure.low) / figure.value
