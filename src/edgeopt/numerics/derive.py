"""From raw samples to what is shown: figures with intervals, comparisons with a verdict, warnings.

Everything here is computed again whenever a document is shown, on a machine that need not be the
one that measured; nothing of it is read back. The same document gives the same figures: the
bootstrap is seeded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core.proof import Measurement, json_ready
from edgeopt.core.results import METRICS, Results
from edgeopt.numerics import noise
from edgeopt.numerics.bootstrap import FEWEST_PROCESSES, MEAN, Resampled, resample
from edgeopt.numerics.decide import compare, compare_turns, rule_of, turn_ratios, verdict
from edgeopt.numerics.statistics import Interval
from edgeopt.numerics.steady import steady_start

__all__ = ["PAIRED_BY", "Contrast", "Derived", "Figure", "Row", "derive"]

#: Two measurements are of the same thing when these conditions agree. The runtime may differ: a
#: GGUF file against an ONNX one is a fair question.
PAIRED_BY = ("device", "threads", "batch", "seq", "workload")

#: Percentiles of a latency: which, and from how many samples on (MLPerf's LoadGen).
PERCENTILES: Mapping[str, tuple[float, int]] = {
    "p50": (50.0, 1),
    "p90": (90.0, 64),
    "p95": (95.0, 128),
    "p99": (99.0, 662),
}

#: Of these more is better.
RATES = ("throughput", "tokens_per_s")


@dataclass(frozen=True)
class Figure:
    """One number with its 95% interval; none where it is exact or comes from too few processes.

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
    all others ``median``. Empty where there is no finite sample. ``noise`` is the scatter of
    turns (of a latency) or of processes, as a share of the value: :mod:`edgeopt.numerics.noise`.
    ``steady`` says of a latency how its processes settled: ``processes``, ``settled`` (how many
    did), ``starts`` (after how many samples each did, None: never). ``advice`` is what to do
    about noise; empty where there is little.
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

    The ratio of two p50 comes from turns that ran side by side, where there are any, and need not
    be the quotient of the two figures: those were taken over all samples.
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
    rank = {name: i for i, name in enumerate(METRICS)}
    names = {s.name: i for i, s in enumerate(results.subjects)}
    taken = sorted(
        (*results.measurements, *_sizes(results)),
        key=lambda m: (names.get(m.subject, len(names)), rank.get(m.metric, len(rank))),
    )
    warmups = {(m.subject, _pairing(m.conditions)): m for m in taken if m.metric == "warmup"}
    found = [
        _Measured(m, warmups.get((m.subject, _pairing(m.conditions))), results.environment)
        for m in taken
    ]
    bases = {(f.row.metric, _pairing(f.row.conditions)): f for f in found if f.m.subject == base}
    together = _together(results, base)
    contrasts: list[Contrast] = []
    for measured in found:
        other = bases.get((measured.row.metric, _pairing(measured.row.conditions)))
        if other is not None and measured.m.subject != base and measured.row.metric != "warmup":
            contrasts.extend(_contrasts(measured, other, measured.m.subject in together))
    warnings = dict.fromkeys((*_unsettled(found), *(w for f in found for w in f.warnings)))
    return Derived(tuple(f.row for f in found), tuple(contrasts), tuple(warnings))


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


def _together(results: Results, base: str) -> frozenset[str]:
    """The subjects whose process rounds are the baseline's own: those of its document, where
    saved ones were put together (``settings["documents"]``)."""
    documents = results.settings.get("documents") or [
        {"subjects": [s.name for s in results.subjects]}
    ]
    return frozenset(
        name for part in documents if base in part["subjects"] for name in part["subjects"]
    )


class _Measured:
    """A measurement with what was derived of it: its row, and each figure's draws."""

    def __init__(
        self, m: Measurement, warmup: Measurement | None, environment: Mapping[str, Any]
    ) -> None:
        self.m = m
        self.figures: dict[str, Resampled] = {}
        self.units: dict[str, str] = {}
        self.warnings: list[str] = []
        raw = [np.asarray(process, np.float64) for process in m.values]
        groups = [g[np.isfinite(g)] for g in raw]
        lost = sum(g.size for g in raw) - sum(g.size for g in groups)
        groups = [g for g in groups if g.size]
        if not groups:
            self._warn("no finite sample" if lost else "no samples")
        elif lost:
            self._warn(f"{lost} samples are no finite numbers and were left out")
        if groups:
            self._statistics(groups)
        figures = {name: self._figure(name, found) for name, found in self.figures.items()}
        scatter = noise.scatter(m.metric, raw, m.blocks)
        noisy = noise.is_noisy(m.metric, scatter)
        if m.metric == "latency" and 0 < len(groups) < FEWEST_PROCESSES:
            self._warn(f"{len(groups)} processes give no interval; use {FEWEST_PROCESSES} or more")
        self.row = Row(
            m.subject,
            m.metric,
            m.conditions,
            figures,
            scatter,
            _settled(m, warmup) if m.metric == "latency" and groups else None,
            noise.advice(environment, len(m.values)) if noisy else (),
        )

    @property
    def name(self) -> str:
        """Subject, metric and conditions."""
        where = ", ".join(
            f"{k} {v}" for k in PAIRED_BY if (v := self.m.conditions.get(k)) is not None
        )
        return f"{self.m.subject}, {self.m.metric}{f' ({where})' if where else ''}"

    def _warn(self, text: str) -> None:
        self.warnings.append(f"{self.name}: {text}")

    def _statistics(self, groups: list[NDArray[np.float64]]) -> None:
        if self.m.metric == "file":
            self.figures["exact"] = resample(groups[:1])[50.0]
        elif self.m.metric == "latency":
            self._latency(groups)
        else:
            self.figures["median"] = resample(groups)[50.0]

    def _latency(self, groups: list[NDArray[np.float64]]) -> None:
        count = sum(g.size for g in groups)
        shown = {name: q for name, (q, least) in PERCENTILES.items() if count >= least}
        found = resample(groups, tuple(shown.values()))
        self.figures.update({name: found[q] for name, q in shown.items()})
        self.figures["mean"] = mean = found[MEAN]
        tokens, workload = self.m.conditions.get("tokens"), str(self.m.conditions.get("workload"))
        if not tokens:
            self.units["throughput"] = "1/s"
            each = float(self.m.conditions.get("batch") or 1)
            self.figures["throughput"] = _inverse(mean, each)
            return
        # llama-bench averages the rates of its repetitions: a prompt is one, and of generation
        # a token is so small a part that all tokens over all seconds is the same.
        self.units["tokens_per_s"] = "tokens/s"
        prompt = workload.startswith("pp") and all((g > 0).all() for g in groups)
        self.figures["tokens_per_s"] = (
            resample([float(tokens) / g for g in groups], ())[MEAN]
            if prompt
            else _inverse(mean, float(tokens))
        )

    def _figure(self, name: str, found: Resampled) -> Figure:
        interval = None if name == "exact" else found.interval()
        return Figure(
            found.estimate,
            interval.low if interval else None,
            interval.high if interval else None,
            found.samples,
            found.processes,
            self.units.get(name, self.m.unit),
        )


def _unsettled(found: Sequence[_Measured]) -> Iterator[str]:
    """That latencies never settled, or are noisy: once for all of them. Each has its own numbers
    in its row."""
    latencies = [f for f in found if f.row.metric == "latency" and f.row.figures]
    never = [(f, s) for f in latencies if (s := f.row.steady) and s["settled"] < s["processes"]]
    if never:
        lost = sum(s["processes"] - s["settled"] for _, s in never)
        total = sum(s["processes"] for _, s in never)
        yield (
            f"{_whose([f for f, _ in never], latencies)}: never steady in {lost} of {total} "
            "processes; give it more --time, or a quieter machine"
        )
    noisy = [(f, f.row.noise) for f in latencies if f.row.noise and f.row.advice]
    if noisy:
        least, most = (f"{bound(noise for _, noise in noisy):.0%}" for bound in (min, max))
        yield (
            f"{_whose([f for f, _ in noisy], latencies)}: noisy: turns scatter by "
            f"{least if least == most else f'{least} to {most}'} about their process's median"
        )


def _whose(some: Sequence[_Measured], of: Sequence[_Measured]) -> str:
    """ "a, b, latency in 3 of 4 measurements"; of one alone its conditions."""
    if len(some) == 1:
        return some[0].name
    names = ", ".join(dict.fromkeys(f.row.subject for f in some))
    if len(some) == len(of):
        return f"{names}, latency in all {len(of)} measurements"
    return f"{names}, latency in {len(some)} of {len(of)} measurements"


def _inverse(mean: Resampled, times: float) -> Resampled:
    """``times`` a second, from seconds."""
    with np.errstate(divide="ignore"):
        estimate = np.divide(times, np.float64(mean.estimate))
        return dataclasses.replace(mean, estimate=float(estimate), draws=times / mean.draws)


def _settled(m: Measurement, warmup: Measurement | None) -> Mapping[str, Any]:
    """How each process came to its steady state, from its warm-up and what followed."""
    before = warmup.values if warmup is not None else ()
    starts = [
        steady_start((*(before[i] if i < len(before) else ()), *values))
        for i, values in enumerate(m.values)
        if values
    ]
    settled = sum(start is not None for start in starts)
    return {"processes": len(starts), "settled": settled, "starts": tuple(starts)}


def _contrasts(subject: _Measured, base: _Measured, together: bool) -> Iterator[Contrast]:
    for name, own in subject.figures.items():
        other = base.figures.get(name)
        if name == "mean" or other is None or other.estimate == 0:
            continue
        rule = rule_of(subject.m.metric, name)
        ratio = Figure(
            own.estimate / other.estimate,
            None,
            None,
            min(own.samples, other.samples),
            min(own.processes, other.processes),
            "ratio",
        )
        if name == "exact":
            said = verdict(Interval(ratio.value, ratio.value, ratio.value, 1), 0.0)
        else:
            turns = _turns(subject, base) if name == "p50" and together else None
            if turns is not None:
                shown, judged = turns.interval(), turns.interval(rule.confidence)
                ratio = dataclasses.replace(ratio, value=turns.estimate, processes=turns.processes)
            else:
                shown = compare(other, own, rounds=together)
                judged = compare(other, own, rounds=together, confidence=rule.confidence)
            if shown is not None:
                ratio = dataclasses.replace(ratio, low=shown.low, high=shown.high)
            said = verdict(judged, rule.effect, more_is_better=name in RATES)
        yield Contrast(
            subject.m.subject,
            base.m.subject,
            subject.m.metric,
            name,
            subject.m.conditions,
            ratio,
            said,
        )


def _turns(subject: _Measured, base: _Measured) -> Resampled | None:
    a, b = base.m, subject.m
    ratios = turn_ratios(a.values, a.blocks, b.values, b.blocks)
    return compare_turns(ratios) if ratios else None
