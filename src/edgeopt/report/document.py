"""Results and what is derived of them, as one document: looked up, worded, pointed at.

The renderers ask here for numbers and words, and only lay them out.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from edgeopt.core import Fidelity, Results
from edgeopt.numerics.derive import PAIRED_BY, Contrast, Derived, Row
from edgeopt.report.numbers import (
    Number,
    Phrase,
    Said,
    count,
    number,
    plain,
    pointer,
    quantity,
    span,
)

__all__ = ["TONES", "Document", "conditions_words", "pairing_of"]

#: What a subject is that has less of a metric, and more: "2.6x faster".
_WORDS: Mapping[str, tuple[str, str]] = {
    "file": ("smaller", "larger"),
    "memory": ("less", "more"),
    "energy": ("less", "more"),
    "": ("faster", "slower"),
}

#: The tone of those words.
TONES: Mapping[str, str] = {
    word: tone for pair in _WORDS.values() for word, tone in zip(pair, ("good", "bad"), strict=True)
}

_MORE_IS_BETTER = ("throughput", "tokens_per_s")


class Document:
    """``results`` and ``derived`` with the indices that JSON pointers need.

    ``json`` is the whole document, ``derived`` in it: what the pointers point into.
    """

    def __init__(self, results: Results, derived: Derived) -> None:
        self.results = results
        self.derived = derived

    @functools.cached_property
    def json(self) -> dict[str, Any]:
        return {**self.results.to_json(), "derived": self.derived.to_json()}

    @property
    def baseline(self) -> str:
        """The subject that the others are compared with; empty where nothing is compared."""
        return next((c.baseline for c in self.derived.contrasts), self.results.baseline)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.results.subjects)

    @property
    def others(self) -> tuple[str, ...]:
        """The subjects that are compared with the baseline."""
        return tuple(n for n in self.names if n != self.baseline)

    @property
    def took_turns(self) -> bool:
        """Whether latencies were compared side by side: saved results put together were not."""
        compared = any(c.metric == "latency" for c in self.derived.contrasts)
        return compared and "documents" not in self.results.settings

    # rows and what is in them

    def rows(self, subject: str, *metrics: str) -> list[tuple[int, Row]]:
        """(index, row) of the metrics of a subject, in the order of the document."""
        return [
            (i, row)
            for i, row in enumerate(self.derived.rows)
            if row.subject == subject and row.metric in metrics
        ]

    def row(
        self, subject: str, metric: str, pairing: tuple[Any, ...] | None = None
    ) -> tuple[int, Row] | None:
        """The row of a metric under conditions that pair; the first one where none are given."""
        found = self.rows(subject, metric)
        if pairing is not None:
            found = [(i, r) for i, r in found if pairing_of(r.conditions) == pairing]
        return found[0] if found else None

    def pairings(self, *metrics: str) -> list[tuple[Any, ...]]:
        """The sets of conditions that these metrics were taken under, in order."""
        found = (pairing_of(r.conditions) for r in self.derived.rows if r.metric in metrics)
        return list(dict.fromkeys(found))

    def conditions(self, pairing: tuple[Any, ...]) -> Phrase:
        """ "1 thread, batch 8, sequence 128, CPU" of the rows with these conditions."""
        for i, row in enumerate(self.derived.rows):
            if pairing_of(row.conditions) == pairing:
                return _conditions(pairing, pointer("derived", "rows", i, "conditions"))
        return ()

    def figure(self, index: int, name: str, part: str = "value") -> Number | None:
        """A figure of a row, or a bound of its interval; None where there is none."""
        figure = self.derived.rows[index].figures.get(name)
        value = None if figure is None else getattr(figure, part)
        if figure is None or value is None:
            return None
        key = pointer("derived", "rows", index, "figures", name, part)
        return number(value, key, figure.unit)

    def interval(self, index: int, name: str) -> Phrase:
        """ "1.35 to 1.38 ms"; nothing where the figure has no interval."""
        figure = self.derived.rows[index].figures.get(name)
        if figure is None or figure.low is None or figure.high is None:
            return ()
        low, high = (
            pointer("derived", "rows", index, "figures", name, part) for part in ("low", "high")
        )
        return span(figure.low, figure.high, low, high, figure.unit)

    # comparisons

    def contrast(
        self, subject: str, metric: str, statistic: str, pairing: tuple[Any, ...] | None = None
    ) -> tuple[int, Contrast] | None:
        """A comparison of a subject with the baseline; the first that fits."""
        for i, contrast in enumerate(self.derived.contrasts):
            same = (contrast.subject, contrast.metric, contrast.statistic) == (
                subject,
                metric,
                statistic,
            )
            if same and pairing in (None, pairing_of(contrast.conditions)):
                return i, contrast
        return None

    def change(self, index: int) -> Phrase:
        """A comparison in words: "2.6x faster", "not significant", "the same"."""
        contrast = self.derived.contrasts[index]
        if contrast.verdict == "same":
            return ("the same",)
        if contrast.verdict == "unknown":
            return ("too few samples to say",)
        if contrast.verdict == "not significant":
            return ("not significant",)
        return self.factor(index)

    def factor(self, index: int, part: str = "value") -> Phrase:
        """The ratio the way round that is more than one, and its word: "2.6x faster"."""
        contrast = self.derived.contrasts[index]
        value = getattr(contrast.ratio, part)
        key = pointer("derived", "contrasts", index, "ratio", part)
        # a ratio of times below one is a speed-up, one of rates above one
        times = value >= 1.0 or value <= 0.0
        shown = number(value, key, "ratio", "value" if times else "inverse")
        return (shown, " ", self._word(contrast, more=value >= 1.0))

    def bounds(self, index: int) -> Phrase:
        """The interval of a comparison, in the direction of its estimate: "2.5x to 2.8x"."""
        ratio = self.derived.contrasts[index].ratio
        if ratio.low is None or ratio.high is None or ratio.low <= 0:
            return ()
        shape = "value" if ratio.value >= 1.0 else "inverse"
        ends = []
        for part, value in (("low", ratio.low), ("high", ratio.high)):
            key = pointer("derived", "contrasts", index, "ratio", part)
            text = quantity(value if shape == "value" else 1.0 / value, "")
            ends.append(Number(f"{text}x", key, value, shape))
        first, last = ends if shape == "value" else ends[::-1]
        return (first, " to ", last)

    def _word(self, contrast: Contrast, more: bool) -> str:
        kind = contrast.metric.partition(".")[0]
        less_word, more_word = _WORDS.get(kind, _WORDS[""])
        if contrast.statistic in _MORE_IS_BETTER:
            more = not more
        return more_word if more else less_word

    # what is not a row

    def fidelity(self, subject: str) -> Sequence[Fidelity]:
        return self.results.fidelity.get(subject, ())

    def fidelity_number(
        self, subject: str, output: int, name: str, shape: str = "value", unit: str = ""
    ) -> Number:
        """One of the figures of an output's :class:`Fidelity`."""
        value = float(getattr(self.fidelity(subject)[output], name))
        return number(value, pointer("fidelity", subject, output, name), unit, shape)

    def missing(self) -> list[tuple[str, tuple[str, ...], str]]:
        """(metric, subjects, reason) of what could not be taken; no subjects: of none of them."""
        found: dict[tuple[str, str], list[str]] = {}
        for u in self.results.unavailable:
            found.setdefault((u.metric, u.reason), []).append(u.subject)
        return [
            (metric, () if "" in names or set(names) == set(self.names) else tuple(names), reason)
            for (metric, reason), names in found.items()
        ]

    def advice(self) -> tuple[str, ...]:
        """What the rows advise, each once."""
        return tuple(dict.fromkeys(a for row in self.derived.rows for a in row.advice))

    def warnings(self) -> tuple[str, ...]:
        """Those of the measurement and those of its evaluation, each once."""
        return tuple(dict.fromkeys((*self.results.warnings, *self.derived.warnings)))


def pairing_of(conditions: Mapping[str, Any]) -> tuple[Any, ...]:
    """The conditions under which two measurements are of the same thing."""
    return tuple(conditions.get(name) for name in PAIRED_BY)


def conditions_words(pairing: tuple[Any, ...]) -> str:
    """The words of :meth:`Document.conditions`."""
    return plain(_conditions(pairing, ""))


#: The numbers of a pairing, how one is named and how several are.
_COUNTED = {
    "threads": ("{} thread", "{} threads"),
    "batch": ("batch {}", "batch {}"),
    "seq": ("sequence {}", "sequence {}"),
}
_DEVICES = {"cpu": "CPU", "cuda": "CUDA"}


def _conditions(pairing: tuple[Any, ...], path: str) -> Phrase:
    known = {k: v for k, v in zip(PAIRED_BY, pairing, strict=True) if v not in (None, "")}
    said: list[Phrase] = []
    workload = str(known.get("workload", "inference"))
    if workload != "inference":
        said.append((Said(workload),))
    for name, (one, many) in _COUNTED.items():
        value = known.get(name)
        before, _, after = (one if value == 1 else many).partition("{}")
        if isinstance(value, int):
            said.append((before, count(value, path + pointer(name)), after))
        elif value is not None:
            said.append((before, Said(str(value)), after))
    if "device" in known:
        device = str(known["device"])
        said.append((_DEVICES.get(device) or Said(device),))
    parts: list[str | Number] = []
    for phrase in said:
        parts += [", "] if parts else []
        parts += [part for part in phrase if part]
    return tuple(parts)
