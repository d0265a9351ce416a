"""The language of ``--fail-if``: ``latency.p50 > +5%``, ``file > 4MB and fidelity.top1 < 99%``.

::

    expression   = alternative { "or" alternative }
    alternative  = condition { "and" condition }
    condition    = what [ "[" subject "]" ] [ "@" key "=" value { "," key "=" value } ] op limit
    what         = metric [ "." statistic ]
    op           = "<" | "<=" | ">" | ">="
    limit        = [ "+" | "-" ] number [ unit ]

A limit with a sign is a change against the baseline: with ``%`` a relative one, with the metric's
own unit a difference. Without a sign it is the value itself. Fidelity is measured against the
baseline already, so that its sign is the number's own.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from edgeopt.core import METRICS
from edgeopt.errors import UsageError

__all__ = ["Condition", "Expression", "parse", "parse_all"]

#: Unit -> (what it measures, how many of the unit that documents are in).
UNITS: Mapping[str, tuple[str, float]] = {
    "B": ("B", 1.0),
    "kB": ("B", 1e3),
    "KB": ("B", 1e3),
    "MB": ("B", 1e6),
    "GB": ("B", 1e9),
    "TB": ("B", 1e12),
    "KiB": ("B", 2.0**10),
    "MiB": ("B", 2.0**20),
    "GiB": ("B", 2.0**30),
    "TiB": ("B", 2.0**40),
    "ns": ("s", 1e-9),
    "us": ("s", 1e-6),
    "\N{MICRO SIGN}s": ("s", 1e-6),
    "ms": ("s", 1e-3),
    "s": ("s", 1.0),
    "min": ("s", 60.0),
    "uJ": ("J", 1e-6),
    "mJ": ("J", 1e-3),
    "J": ("J", 1.0),
    "/s": ("1/s", 1.0),
    "tokens/s": ("1/s", 1.0),
    "dB": ("dB", 1.0),
    "%": ("%", 0.01),
}

#: Statistics of a latency that are metrics of their own to whoever asks, and what they measure.
RATES: Mapping[str, str] = {"throughput": "1/s", "tokens_per_s": "1/s"}

#: What fidelity can be asked about, and its unit: see :class:`edgeopt.core.Fidelity`.
FIDELITY: Mapping[str, str] = {"sqnr_db": "dB", "cosine": "", "max_abs": "", "top1": "", "kl": ""}

#: What is a share of one: limits above it are percents whose sign was forgotten.
SHARES = ("fidelity.top1", "fidelity.cosine", "quality.accuracy", "quality.spearman")

#: Statistics of latencies; of everything else there is one, and it has no name here.
STATISTICS = ("p50", "p90", "p95", "p99", "mean")

#: Longer than anybody writes: what is longer is no expression but an accident.
LONGEST = 2000

EXAMPLE = "write it as 'latency.p50 > +5%', 'file > 4MB' or 'fidelity.top1 < 99%'"

#: A metric's unit -> how a limit of it is written.
_WRITTEN = {"s": "10ms", "B": "4MB", "J": "5mJ", "1/s": "100/s"}

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_-]+)*")
_SUBJECT = re.compile(r"\[([^\[\]]+)\]")
_WHERE = re.compile(r"@([a-z_]+)=([A-Za-z0-9_.-]+)")
_MORE_WHERE = re.compile(r",([a-z_]+)=([A-Za-z0-9_.-]+)")
_OPERATOR = re.compile(r"[<>]=?")
_NUMBER = re.compile(r"([+-]?)((?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)")
_UNIT = re.compile(r"%|[^\s0-9.,%\[\]<>=@+-]+")
_WORD = re.compile(r"[A-Za-z]+")
_SPACE = re.compile(r"\s*")

Kind = Literal["value", "ratio", "difference"]


@dataclass(frozen=True)
class Condition:
    """One comparison, as ``latency.p99[int8]@threads=2 > 10ms``.

    ``metric`` is one of METRICS, ``throughput``, ``tokens_per_s``, ``fidelity.X`` or
    ``quality.X``; ``statistic`` is empty but for latencies. ``number`` is in ``unit`` as written,
    :attr:`limit` in the document's (B, s, J, 1; a ratio's 0.05 for ``+5%``). ``where`` are
    conditions that must agree, ``subject`` empty for every one.
    """

    metric: str
    statistic: str
    operator: str
    number: float
    unit: str = ""
    kind: Kind = "value"
    subject: str = ""
    where: tuple[tuple[str, str], ...] = ()

    @property
    def limit(self) -> float:
        return self.number * (UNITS[self.unit][1] if self.unit else 1.0)

    @property
    def what(self) -> str:
        """The metric and the statistic, as they are written."""
        return f"{self.metric}.{self.statistic}" if self.statistic else self.metric

    def holds(self, value: float) -> bool:
        """Whether ``value``, in the unit of :attr:`limit`, is beyond it."""
        return {
            "<": value < self.limit,
            "<=": value <= self.limit,
            ">": value > self.limit,
            ">=": value >= self.limit,
        }[self.operator]

    def __str__(self) -> str:
        subject = f"[{self.subject}]" if self.subject else ""
        where = ",".join(f"{key}={value}" for key, value in self.where)
        sign = "+" if self.kind != "value" and math.copysign(1.0, self.number) > 0 else ""
        number = repr(self.number).removesuffix(".0")
        return (
            f"{self.what}{subject}{f'@{where}' if where else ''} "
            f"{self.operator} {sign}{number}{self.unit}"
        )


@dataclass(frozen=True)
class Expression:
    """Alternatives, each of conditions that must hold together. ``text`` is as it was given."""

    text: str
    alternatives: tuple[tuple[Condition, ...], ...]

    @property
    def conditions(self) -> tuple[Condition, ...]:
        return tuple(c for alternative in self.alternatives for c in alternative)

    def __str__(self) -> str:
        return " or ".join(" and ".join(map(str, each)) for each in self.alternatives)


def parse_all(texts: Sequence[str]) -> tuple[Expression, ...]:
    """Every ``--fail-if`` that was given. Raises UsageError as :func:`parse` does."""
    return tuple(map(parse, texts))


def parse(text: str) -> Expression:
    """One ``--fail-if``. Raises UsageError naming the place that does not parse."""
    return _Parser(text).expression()


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def expression(self) -> Expression:
        if len(self.text) > LONGEST:
            raise UsageError(
                f"--fail-if has {len(self.text)} characters, {LONGEST} are allowed; {EXAMPLE}"
            )
        alternatives: list[list[Condition]] = [[self.condition()]]
        while self._skip_space() < len(self.text):
            word = self._take(_WORD)
            if word is None or word[0] not in ("and", "or"):
                self.at = word.start() if word else self.at
                self._wrong("is neither 'and' nor 'or', and the condition ended before it")
            if word[0] == "or":
                alternatives.append([])
            alternatives[-1].append(self.condition())
        return Expression(self.text, tuple(map(tuple, alternatives)))

    def condition(self) -> Condition:
        start = self._skip_space()
        name = self._take(_NAME)
        if name is None:
            self._wrong("is no name of a metric")
        found = _resolve(name[0])
        if found is None:
            self.at = start
            self._wrong("is nothing that is measured", len(name[0]), _suggestion(name[0]))
        metric, statistic, unit = found
        subject = self._take(_SUBJECT)
        where: list[tuple[str, str]] = []
        pattern = _WHERE
        while (pair := self._take(pattern)) is not None:
            where.append((pair[1], pair[2]))
            pattern = _MORE_WHERE
        self._skip_space()
        operator = self._take(_OPERATOR)
        if operator is None:
            self._wrong("stands where >, >=, < or <= is needed")
        self._skip_space()
        begin = self.at
        number = self._take(_NUMBER)
        if number is None:
            self._wrong("stands where a number is needed")
        value = float(number[2])
        if not math.isfinite(value):
            self.at = begin
            self._wrong("is too large a number", len(number[0]))
        given, kind = self._unit(metric, unit, number[1], begin)
        return Condition(
            metric,
            statistic,
            operator[0],
            -value if number[1] == "-" else value,
            given,
            kind,
            subject[1] if subject else "",
            tuple(where),
        )

    def _unit(self, metric: str, unit: str, sign: str, begin: int) -> tuple[str, Kind]:
        """The unit that was written, if it fits the metric, and what the limit means."""
        before = self.at
        self._skip_space()
        word = self._take(_UNIT)
        if word is not None and word[0] in ("and", "or"):
            word = None
            self.at = before
        given = word[0] if word else ""
        if given and given not in UNITS:
            assert word is not None
            self.at = word.start()
            self._wrong("is no unit", len(given), f"there are {', '.join(UNITS)}")
        measures = UNITS[given][0] if given else ""
        written, end = self.text[begin : self.at], self.at
        self.at = begin
        change = bool(sign)
        if metric.startswith("fidelity."):
            if sign == "+" or (sign and measures == "%"):
                self._wrong(
                    f"is a change, and {metric} is measured against the baseline already",
                    len(written),
                    "leave the sign out",
                )
            change = False
        ratio = change and measures == "%"
        if measures == "%" and unit and not ratio:
            self._wrong(
                f"is a share, and {metric} is none",
                len(written),
                f"write '+{written}' for a change against the baseline, or a limit as "
                f"{_WRITTEN.get(unit, '30')!r}",
            )
        if measures not in ("%", unit) and not (unit == "dB" and not measures):
            wrong = f"has the wrong unit for {metric}" if measures else "has no unit"
            example = _WRITTEN.get(unit, "0.5")
            self._wrong(wrong, len(written), f"write a limit as {example!r}")
        if metric in SHARES and not change and not measures and float(written) > 1:
            self._wrong("is more than all", len(written), f"write '{written}%'")
        self.at = end
        return given, "ratio" if ratio else "difference" if change else "value"

    # -- the text ---------------------------------------------------------------------------

    def _skip_space(self) -> int:
        found = _SPACE.match(self.text, self.at)
        assert found is not None
        self.at = found.end()
        return self.at

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.text, self.at)
        if found is not None:
            self.at = found.end()
        return found

    def _wrong(self, why: str, length: int = 12, remedy: str = EXAMPLE) -> NoReturn:
        """One line with what stands at the place, its column, and how it is written."""
        rest = self.text[self.at : self.at + length]
        shown = f"{rest!r} at column {self.at + 1}" if rest.strip() else "the end"
        whole = self.text if len(self.text) <= 120 else f"{self.text[:117]}..."
        raise UsageError(f"--fail-if {whole!r}: {shown} {why}; {remedy}")


# ---------------------------------------------------------------------------------------------
# names


def _resolve(name: str) -> tuple[str, str, str] | None:
    """(metric, statistic, unit) of a name as written; None where there is no such thing."""
    if name.startswith("quality.") and len(name) > len("quality."):
        return name, "", ""
    room, _, part = name.partition(".")
    if room == "fidelity" and part in FIDELITY:
        return name, "", FIDELITY[part]
    if name in RATES:
        return name, "", RATES[name]
    if name == "latency":
        return name, "p50", "s"
    if room == "latency" and part in STATISTICS:
        return room, part, "s"
    if name in METRICS and name != "warmup":
        return name, "", METRICS[name].unit
    return None


def _suggestion(name: str) -> str:
    known = [
        *(m for m in METRICS if m not in ("latency", "warmup")),
        *(f"latency.{statistic}" for statistic in STATISTICS),
        *RATES,
        *(f"fidelity.{part}" for part in FIDELITY),
        "quality.accuracy",
    ]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"is {near[0]} meant?" if near else f"there are {', '.join(known)}"
