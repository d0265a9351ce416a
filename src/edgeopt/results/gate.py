"""``--fail-if``: whether what was asked about did happen, by the figures of a document.

The rule: a condition is breached where noise does not explain it. That is, where the whole 95%
interval lies beyond the limit: of the ratio to the baseline for ``latency.p50 > +5%`` (so that
a slowdown of 6% that could as well be 3% fails nothing), of the figure itself for
``latency.p99 > 10ms``, of the paired difference for ``quality.accuracy < -0.01`` where there are
scores of every sample. What is exact, as a file's size, and what has no interval, as fidelity, is
compared as it stands. Where only the estimate is beyond the limit, the finding is not certain.

A condition on something that was not measured raises: it never passes in silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from edgeopt.core import Fidelity, Quality, Results, format_bytes
from edgeopt.errors import GateFailed, UsageError
from edgeopt.numerics.derive import PAIRED_BY, Derived, Figure, Row
from edgeopt.numerics.paired import paired_difference
from edgeopt.results.conditions import RATES, Condition, Expression, parse

__all__ = ["Breach", "check", "enforce", "judge"]

State: TypeAlias = Literal["no", "open", "yes"]
Answer: TypeAlias = tuple[State, str]
_ORDER: Sequence[State] = ("no", "open", "yes")

#: A count or a size is what it is; of everything else a ratio without an interval says nothing.
_EXACT = frozenset({"file"})


@dataclass(frozen=True)
class Breach:
    """A condition that holds for a subject. ``certain``: noise does not explain it; of a task's
    quality, that it cannot be excluded.
    """

    expression: str
    subject: str
    found: str
    certain: bool = True

    def __str__(self) -> str:
        return f"{self.subject}: {self.found} (--fail-if {self.expression!r})"


@dataclass(frozen=True)
class _Estimate:
    """An estimate with its interval, and where it was found."""

    value: float
    low: float
    high: float
    where: str = ""
    text: str = ""


def check(
    expressions: Sequence[str | Expression], results: Results, derived: Derived
) -> list[Breach]:
    """The conditions that hold beyond noise, an entry for each subject.

    An absolute limit is asked of every subject; in a comparison (``results.verb``) of all but the
    baseline, unless it is named. A change is asked of all but the baseline.

    Raises UsageError for an expression that does not parse, and for one that asks about a subject
    or a metric that was not measured.
    """
    return [breach for breach in judge(expressions, results, derived) if breach.certain]


def judge(
    expressions: Sequence[str | Expression], results: Results, derived: Derived
) -> list[Breach]:
    """As :func:`check`, with the findings that are not certain: estimates beyond the limit whose
    interval reaches back over it. A report warns of those."""
    found: dict[tuple[str, str], Breach] = {}
    for each in expressions:
        expression = parse(each) if isinstance(each, str) else each
        question = _Question(expression, results, derived)
        for subject in question.everyone:
            answers = [_all(question.ask(c, subject) for c in a) for a in expression.alternatives]
            state, text = max(answers, key=_rank)
            if state != "no":
                breach = Breach(expression.text, subject, text, state == "yes")
                found.setdefault((expression.text, text), breach)
    return list(found.values())


def enforce(
    expressions: Sequence[str | Expression], results: Results, derived: Derived
) -> list[Breach]:
    """What a command does last, once its report is written: raise where it has failed.

    Raises UsageError (exit code 2) for a task metric that was asked for and could not be taken,
    and as :func:`check` does; GateFailed (4) naming the first breach and how many more there are.
    Returns the findings that are not certain.
    """
    lost = [u for u in results.unavailable if u.metric.startswith("quality.")]
    if lost:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        of = f" of {lost[0].subject}" if lost[0].subject else ""
        raise UsageError(f"--metric {lost[0].metric.partition('.')[2]}{of}: {lost[0].reason}{more}")
    found = judge(expressions, results, derived)
    breaches = [breach for breach in found if breach.certain]
    if breaches:
        more = f"; and {len(breaches) - 1} more" if len(breaches) > 1 else ""
        raise GateFailed(f"{breaches[0]}{more}")
    return found


def _rank(answer: Answer) -> int:
    return _ORDER.index(answer[0])


def _all(answers: Iterable[Answer]) -> Answer:
    """The answer to conditions that must hold together."""
    taken = list(answers)
    return min(taken, key=_rank)[0], " and ".join(text for _, text in taken)


@dataclass(frozen=True)
class _Question:
    """One expression asked of one document."""

    expression: Expression
    results: Results
    derived: Derived

    @property
    def everyone(self) -> list[str]:
        """The subjects that one of the conditions asks about, each once."""
        return list(
            dict.fromkeys(name for c in self.expression.conditions for name in self.subjects(c))
        )

    def subjects(self, c: Condition) -> list[str]:
        names = [s.name for s in self.results.subjects]
        others = [name for name in names if name != self.results.baseline]
        against = c.kind != "value" or c.metric.startswith("fidelity.")
        if c.subject and c.subject not in names:
            raise self.error(f"there is no {c.subject!r}; measured: {_listed(names)}")
        if against and len(others) in (0, len(names)):
            raise self.error(f"{c.what} is taken against a baseline, and there is none; give one")
        if against and c.subject == self.results.baseline:
            raise self.error(
                f"{c.subject} is the baseline that {c.what} is taken against; ask of another"
            )
        if c.subject:
            return [c.subject]
        # Fresh results beside a saved baseline are a comparison, too.
        compared = self.results.verb == "compare" or "documents" in self.results.settings
        spared = against or (compared and others)
        return others if spared else names

    def ask(self, c: Condition, subject: str) -> Answer:
        """The worst answer over the conditions (threads, batch, ...) of the measurements."""
        subjects = self.subjects(c)
        if c.subject:
            subject = c.subject
        elif subject not in subjects:
            return "no", ""
        room = c.metric.partition(".")[0]
        look_up = {"fidelity": self.fidelity, "quality": self.quality}.get(room, self.measured)
        return max((_answer(c, value) for value in look_up(c, subject)), key=_rank)

    def error(self, why: str) -> UsageError:
        return UsageError(f"--fail-if {self.expression.text!r}: {why}")

    # -- what was measured: each gives one value or more, or raises --------------------------

    def measured(self, c: Condition, subject: str) -> list[_Estimate]:
        metric = "latency" if c.metric in RATES else c.metric
        rows = [r for r in self.derived.rows if (r.subject, r.metric) == (subject, metric)]
        if not any(r.figures for r in rows):
            raise self.error(self.why_not(metric, subject))
        chosen = [r for r in rows if _agrees(r.conditions, c.where)]
        if not chosen:
            there = _listed(sorted({_spelt(r.conditions) for r in rows}))
            raise self.error(f"{metric} of {subject} was not measured so; it was with {there}")
        return [self.figure(c, row) for row in chosen]

    def figure(self, c: Condition, row: Row) -> _Estimate:
        asked = c.metric if c.metric in RATES else c.statistic
        name = asked or next(iter(row.figures), "")
        where = f" ({_spelt(row.conditions)})" if row.conditions else ""
        figure = row.figures.get(name)
        if figure is None or not math.isfinite(figure.value):
            raise self.error(
                f"{c.what} of {row.subject} has too few samples{where}; measure longer, or ask "
                f"about {_listed(list(row.figures))}"
            )
        if c.kind == "value":
            return _Estimate(figure.value, *_bounds(figure), where)
        ratio = self.ratio(row, name, where)
        value, low, high = (bound - 1 for bound in (ratio.value, *_bounds(ratio)))
        if c.kind == "ratio":
            return _Estimate(value, low, high, where)
        # From the ratio, whose blocks were taken side by side, not from two figures' intervals.
        unit = figure.value / ratio.value
        return _Estimate(value * unit, low * unit, high * unit, where)

    def ratio(self, row: Row, statistic: str, where: str) -> Figure:
        baseline = self.results.baseline
        wanted = (row.subject, baseline, row.metric, statistic, row.conditions)
        for contrast in self.derived.contrasts:
            key = (contrast.subject, contrast.baseline, contrast.metric, contrast.statistic)
            if (*key, contrast.conditions) == wanted:
                break
        else:
            raise self.error(f"{row.metric} of {baseline}, the baseline, was not measured{where}")
        ratio = contrast.ratio
        exact = row.metric in _EXACT
        if not (math.isfinite(ratio.value) and ratio.value) or (ratio.low is None and not exact):
            raise self.error(
                f"{row.metric} of {row.subject} has too few samples to be compared{where}; "
                "measure longer, or in more processes"
            )
        return ratio

    def fidelity(self, c: Condition, subject: str) -> list[_Estimate]:
        name = c.metric.partition(".")[2]
        there = self.results.fidelity.get(subject, ())
        if not there:
            raise self.error(self.why_not("fidelity", subject))
        asked = [f for f in there if _agrees({"output": f.output}, c.where)]
        broken = next((f for f in asked if not f.finite), None)
        if broken is not None:
            text = "NaN or Inf where the baseline's is finite"
            return [_Estimate(math.nan, math.nan, math.nan, f" of {broken.output}", text)]
        known = [(f.output, value) for f in asked if (value := _number(f, name)) is not None]
        if not known:
            raise self.error(
                f"{subject} has no {name}: outputs are {_listed([f.output for f in there])}"
            )
        return [_Estimate(value, value, value, f" of {output}") for output, value in known]

    def quality(self, c: Condition, subject: str) -> list[_Estimate]:
        own = self.task_metric(c, subject)
        if c.kind == "value":
            return [_Estimate(own.value, own.value, own.value)]
        base = self.task_metric(c, self.results.baseline)
        change = own.value - base.value
        found = paired_difference(base.scores, own.scores)
        low, high = (found.low, found.high) if found else (change, change)
        if c.kind == "difference":
            return [_Estimate(change, low, high)]
        if base.value <= 0:
            raise self.error(
                f"{c.what} of the baseline is {base.value:g}, of which there are no percents; "
                "ask for a difference, as -0.01"
            )
        return [_Estimate(change / base.value, low / base.value, high / base.value)]

    def task_metric(self, c: Condition, subject: str) -> Quality:
        name = c.metric.partition(".")[2]
        for quality in self.results.quality:
            if (quality.subject, quality.metric) == (subject, name):
                if math.isfinite(quality.value):
                    return quality
                raise self.error(f"{c.what} of {subject} is {quality.value}")
        raise self.error(self.why_not(c.metric, subject))

    def why_not(self, metric: str, subject: str) -> str:
        """What is known of a metric that is not there, and what is there instead."""
        results = self.results
        reason = next((s.failure for s in results.subjects if s.name == subject), "")
        for u in results.unavailable:
            if u.subject in ("", subject) and metric.startswith(u.metric):
                reason = u.reason
                break
        measured = [r.metric for r in self.derived.rows if r.subject == subject and r.figures]
        if results.fidelity.get(subject):
            measured.append("fidelity")
        measured += [f"quality.{q.metric}" for q in results.quality if q.subject == subject]
        there = _listed([name for name in dict.fromkeys(measured) if name != "warmup"])
        because = f" ({reason})" if reason else ""
        return f"{metric} of {subject} was not measured{because}; measured: {there}"


def _answer(c: Condition, found: _Estimate) -> Answer:
    above = c.operator[0] == ">"
    nearest, furthest = (found.low, found.high) if above else (found.high, found.low)
    broken = math.isnan(found.value)
    shown = found.text or _shown(c, found)
    limit = str(c).rpartition(c.operator)[2].strip()
    text = f"{c.what}{found.where} is {shown}, asked to fail at {c.operator} {limit}"
    state: State = "no"
    if c.holds(found.value) or broken:
        state = "yes" if c.holds(nearest) or broken else "open"
    if c.metric.startswith("quality.") and state != "yes" and c.holds(furthest):
        # A gate lets through what it can exclude: noise in a clock passes, a task's loss does not.
        return "yes", f"{text}, which the samples do not exclude; give more of them"
    return state, text


def _number(fidelity: Fidelity, name: str) -> float | None:
    value = getattr(fidelity, name)
    return None if value is None or math.isnan(value) else float(value)


# ---------------------------------------------------------------------------------------------
# words


def _bounds(figure: Figure) -> tuple[float, float]:
    if figure.low is None or figure.high is None:
        return figure.value, figure.value
    return figure.low, figure.high


def _agrees(conditions: Mapping[str, Any], where: Sequence[tuple[str, str]]) -> bool:
    return all(str(conditions.get(key)) == value for key, value in where)


def _spelt(conditions: Mapping[str, Any]) -> str:
    known = [(key, conditions.get(key)) for key in PAIRED_BY]
    return ",".join(f"{key}={value}" for key, value in known if value not in ("", None))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "nothing"


def _shown(c: Condition, found: _Estimate) -> str:
    """An estimate with its interval in the words of the limit."""
    values = [found.value]
    if found.low != found.value or found.high != found.value:
        values += [found.low, found.high]
    estimate, *interval = (_written(c, value) for value in values)
    against = "" if c.kind == "value" else " against the baseline"
    within = f" (95% interval {' to '.join(interval)})" if interval else ""
    return f"{estimate}{within}{against}"


def _written(c: Condition, value: float) -> str:
    if c.kind == "ratio":
        return f"{value:+.2%}"
    sign = "+" if c.kind == "difference" else ""
    unit = c.unit
    if not unit or unit == "dB":
        return f"{value:{sign}.4g}{' dB' if unit or c.metric.endswith('_db') else ''}"
    if unit == "%":
        return f"{value:{sign}.2%}"
    if unit in ("B", "kB", "KB", "MB", "GB", "TB"):
        return f"{sign if value >= 0 else ''}{format_bytes(value)}"
    return f"{value / (c.limit / c.number) if c.number else value:{sign}.4g} {unit}"
