"""The charts that are bars: file size, latency, the way to the first answer, memory by kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeopt.core import METRICS
from edgeopt.report.document import Document, conditions_words
from edgeopt.report.numbers import Phrase, plain, rate
from edgeopt.report.plots.bars import Bar, BarSegment, bars
from edgeopt.report.plots.chart import Chart, LegendEntry, Marks, subject_inks

__all__ = ["latency", "loading", "memory", "sizes"]

#: Sets of conditions that are drawn; all of them are in the tables.
MOST_CONDITIONS = 4

#: Artifacts that are drawn.
MOST_SUBJECTS = 24


_LATENCY = (
    LegendEntry("95% interval", "ink", "dash"),
    LegendEntry("p90 and p99", "muted", "stroke"),
)


def sizes(document: Document) -> Iterator[Chart]:
    """A bar of each artifact's bytes."""
    inks = subject_inks(document.names, document.baseline)
    rows = []
    for name in document.names[:MOST_SUBJECTS]:
        found = document.row(name, "file")
        shown = document.figure(found[0], "exact") if found else None
        if shown is None:
            continue
        change, tone = _change(document, name, "file", "exact", None)
        part = BarSegment(shown, inks[name], f"{name}: {shown.text}")
        rows.append(Bar(name, (part,), (shown,), change, tone))
    if rows:
        yield _chart("size", "On disk (shorter is better)", rows, "B", axis=False)


def latency(document: Document) -> Iterator[Chart]:
    """Bars of the median with its interval, and where p90 and p99 lie; of a GGUF file's workloads
    the tokens a second, a chart each."""
    groups: dict[str, list[Bar]] = {}
    for pairing in document.pairings("latency")[:MOST_CONDITIONS]:
        rows, statistic = _speeds(document, pairing)
        kind = "" if statistic == "p50" else str(pairing[-1])[:2]
        groups.setdefault(kind, []).extend(rows)
    for kind, rows in groups.items():
        if kind and rows:
            what = {"pp": "Prompt processing", "tg": "Generation"}.get(kind, "Speed")
            title = f"{what}, tokens a second (longer is better)"
            yield _chart(f"tokens-{kind}", title, rows, "", entries=_LATENCY[:1])
        elif rows:
            title = "Latency, p50 (shorter is better)"
            near, said = _without_far_tails(rows)
            yield _chart("latency", title, near, "s", entries=_LATENCY, caption=said)


#: A tail further out than so many times the longest bar would leave no room for the bars.
_TAIL = 1.5


def _without_far_tails(rows: Sequence[Bar]) -> tuple[list[Bar], str]:
    """The bars without the tails that lie too far out, and a word about those."""
    ends = [part.number.value for row in rows for part in row.parts]
    longest = max(*ends, *(row.high.value for row in rows if row.high is not None), 0.0)
    near = [
        dataclasses.replace(
            row, ticks=tuple(t for t in row.ticks if t.number.value <= _TAIL * longest)
        )
        for row in rows
    ]
    left_out = sum(len(row.ticks) for row in rows) > sum(len(row.ticks) for row in near)
    return near, "tails far beyond the bars are only in the table" if left_out else ""


def _speeds(document: Document, pairing: tuple[Any, ...]) -> tuple[list[Bar], str]:
    """The bars of one set of conditions, its words over the first of them; and what they show."""
    inks = subject_inks(document.names, document.baseline)
    rows: list[Bar] = []
    statistic = "p50"
    for name in document.names[:MOST_SUBJECTS]:
        found = document.row(name, "latency", pairing)
        if found is None or not found[1].figures:
            continue
        index, row = found
        statistic = "tokens_per_s" if "tokens_per_s" in row.figures else "p50"
        shown = document.figure(index, statistic)
        if shown is None:
            continue
        change, tone = _change(document, name, "latency", statistic, pairing)
        interval = plain(document.interval(index, statistic))
        tip = f"{name}: {shown.text}" + (f", 95% interval {interval}" if interval else "")
        tails = [(p, document.figure(index, p)) for p in ("p90", "p99") if statistic == "p50"]
        rows.append(
            Bar(
                name,
                (BarSegment(shown, inks[name], tip),),
                (shown,) if statistic == "p50" else rate(shown),
                change,
                tone,
                document.figure(index, statistic, "low"),
                document.figure(index, statistic, "high"),
                tuple(
                    BarSegment(tail, "muted", f"{name}: {p} {tail.text}")
                    for p, tail in tails
                    if tail is not None
                ),
                "" if rows else conditions_words(pairing),
            )
        )
    return rows, statistic


_LOADING = {"import": "k1", "load.cold": "k3", "first": "k4"}


def loading(document: Document) -> Iterator[Chart]:
    """Import, cold load and first inference, one after the other."""
    metrics = _LOADING
    if not document.pairings("load.cold"):
        metrics = {"load.warm" if m == "load.cold" else m: ink for m, ink in _LOADING.items()}
    rows, pairing = _stacks(document, metrics, next(m for m in metrics if m.startswith("load")), ())
    if rows:
        title = "Until the first answer (shorter is better)"
        entries = [
            LegendEntry(METRICS[m].title, k) for m, k in metrics.items() if document.pairings(m)
        ]
        yield _chart("loading", title, rows, "s", entries=entries, conditions=pairing)


MEMORY_KINDS: Mapping[str, str] = {
    "memory.baseline": "k1",
    "memory.other": "k2",
    "memory.mapped": "k3",
    "memory.anonymous": "k4",
    "memory.gpu": "k5",
}


_KIND_WORDS = {"memory.baseline": "runtime, before loading"}


def memory(document: Document) -> Iterator[Chart]:
    """The kinds of memory stacked, and the peak as a line across."""
    rows, pairing = _stacks(document, MEMORY_KINDS, "memory.peak", ("memory.peak",))
    if rows:
        found = {kind for kind in MEMORY_KINDS if document.pairings(kind)}
        entries = [
            LegendEntry(_KIND_WORDS.get(m, METRICS[m].title), ink)
            for m, ink in MEMORY_KINDS.items()
            if m in found
        ]
        entries.append(LegendEntry("peak", "ink", "stroke"))
        title = "Memory by kind (shorter is better)"
        yield _chart("memory", title, rows, "B", entries=entries, conditions=pairing)


def _stacks(
    document: Document, kinds: Mapping[str, str], compared: str, across: Sequence[str]
) -> tuple[list[Bar], tuple[Any, ...] | None]:
    """A stacked bar of each artifact under the first conditions that these were taken in, and the
    conditions where they are those of all."""
    pairings = document.pairings(*kinds)
    rows, met = [], set()
    for name in document.names[:MOST_SUBJECTS]:
        pairing = next((p for p in pairings if any(document.row(name, k, p) for k in kinds)), None)
        if pairing is None:
            continue
        parts = _parts(document, name, kinds, pairing)
        ticks = _parts(document, name, dict.fromkeys(across, "ink"), pairing)
        if parts:
            change, tone = _change(document, name, compared, "median", pairing)
            value: Phrase = (ticks[0].number,) if ticks else ()
            if change:
                change = (f"{METRICS[compared].title} ", *change)
            elif ticks:
                change = ("peak",)
            rows.append(Bar(name, parts, value, change, tone, ticks=ticks))
            met.add(pairing)
    return rows, met.pop() if len(met) == 1 else None


def _parts(
    document: Document, name: str, inks: Mapping[str, str], pairing: tuple[Any, ...]
) -> tuple[BarSegment, ...]:
    found = []
    for metric, ink in inks.items():
        row = document.row(name, metric, pairing)
        shown = document.figure(row[0], "median") if row else None
        if shown is not None:
            found.append(BarSegment(shown, ink, f"{name}: {METRICS[metric].title} {shown.text}"))
    return tuple(found)


def _change(
    document: Document, name: str, metric: str, statistic: str, pairing: tuple[Any, ...] | None
) -> tuple[Phrase, str]:
    """What changed, and the ink to say it in."""
    # How much faster is one verdict, that of the median, wherever it is said.
    judged = "p50" if metric == "latency" else statistic
    found = document.contrast(name, metric, judged, pairing)
    if name == document.baseline or found is None:
        return (), "muted"
    index, contrast = found
    tone = {"better": "good", "worse": "bad"}.get(contrast.verdict, "muted")
    return document.change(index), tone


_SECTIONS = {name: name for name in ("size", "loading", "memory")}


def _chart(
    name: str,
    title: str,
    rows: Sequence[Bar],
    unit: str,
    *,
    axis: bool = True,
    entries: Sequence[LegendEntry] = (),
    caption: str = "",
    conditions: tuple[Any, ...] | None = None,
) -> Chart:
    said = []
    for row in rows:
        stacked = "; ".join(part.tip.removeprefix(f"{row.name}: ") for part in row.parts)
        value = plain(row.value) if len(row.parts) == 1 else stacked
        said.append(f"{row.name}: {value}{f', {plain(row.change)}' if row.change else ''}")

    def draw(width: int, marks: Marks) -> dict[str, Any]:
        return bars(rows, width, marks, unit, axis=axis, entries=entries)

    words = f"{title}. {'. '.join(said)}."
    return Chart(name, title, words, draw, caption, conditions, _SECTIONS.get(name, "latency"))
