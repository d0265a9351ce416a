"""The sections of the page, each from the document; one that has nothing to say is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgeopt.core import METRICS
from edgeopt.report.charts import charts
from edgeopt.report.document import Document, pairing_of
from edgeopt.report.facts import Fact, environment_facts, placement_facts, settings_facts
from edgeopt.report.numbers import Number, Phrase, Said, exactly, pointer
from edgeopt.report.page.markup import Content, Html, el, join
from edgeopt.report.page.parts import Named, facts, figure, items, table, tone
from edgeopt.report.pareto import closeness, compared_in
from edgeopt.report.plots.chart import Chart
from edgeopt.report.tables import Table, tables
from edgeopt.report.tensors import tensor_tables

__all__ = ["Section", "sections"]


@dataclass(frozen=True)
class Section:
    """One part of the page: its anchor, its heading, what is in it."""

    anchor: str
    title: str
    body: Html


def sections(document: Document, name: Named) -> tuple[Section, ...]:
    """All sections that the document has something for, in the order of the page."""
    drawn = charts(document)
    made = tables(document)
    found = [Section("glance", "At a glance", _glance(document, name))]
    for anchor, title, lead in _MEASURED:
        body = _measured(document, name, anchor, drawn, made)
        if anchor == "latency" and document.took_turns:
            lead = f"{lead} {_TURNS}"
        if body:
            found.append(Section(anchor, title, join([el("p", lead, class_="lead"), body])))
    tensors = _tensors(document, name, drawn)
    if tensors:
        lead = "What is stored, and how far each tensor is from the baseline's."
        found.append(Section("tensors", "Tensors", join([el("p", lead, class_="lead"), tensors])))
    found.append(Section("how", "How each number was made", _how(document)))
    found.append(Section("machine", "Machine and artifacts", _machine(document, name)))
    return tuple(found)


_MEASURED = (
    ("size", "File size", "The file, its external data and its shards, to the byte."),
    (
        "latency",
        "Latency",
        "One inference after another, after the warm-up, every one timed.",
    ),
    ("trade", "Size against latency", "Towards the lower left is smaller and faster."),
    ("fidelity", "Answers", "How close the answers are to the baseline's, on the same inputs."),
    ("quality", "Task quality", "What the task's own metric says."),
    ("loading", "Loading", "From a fresh process to the first answer: medians, one after another."),
    ("memory", "Memory", "Of a fresh process that loads and runs the artifact and nothing else."),
    ("energy", "Energy", "Of one inference, where the machine counts it."),
)


_TURNS = (
    "All artifacts took turns in short blocks, so that what the machine did meanwhile fell on all "
    "alike."
)


def _measured(
    document: Document, name: Named, anchor: str, drawn: Sequence[Chart], made: Sequence[Table]
) -> Html:
    own = [content for content in made if content.section == anchor]
    return join(
        [
            [figure(document, chart) for chart in drawn if chart.section == anchor],
            [
                table(document, content, name, said=len(own) > 1 or anchor == "latency")
                for content in own
            ],
        ]
    )


# ---------------------------------------------------------------------------------------------
# at a glance


def _glance(document: Document, name: Named) -> Html:
    cards = [_card(document, i, name) for i in range(len(document.names))]
    return join([el("ul", cards, class_="cards"), _mind(document)])


def _card(document: Document, place: int, name: Named) -> Html:
    subject = document.results.subjects[place]
    base = subject.name == document.baseline and bool(document.others)
    pairing = compared_in(document)
    found = document.row(subject.name, "latency", pairing) if pairing else None
    rate = found is not None and "tokens_per_s" in found[1].figures
    speed = ("Tokens a second", "tokens_per_s") if rate else ("Latency, p50", "p50")
    shown = (
        ("File size", "file", "exact", None),
        (speed[0], "latency", speed[1], pairing),
        ("Peak memory", "memory.peak", "median", None),
        ("Cold load", "load.cold", "median", None),
    )
    # what was taken of none of them is no gap of this one
    taken = [box for box in shown if document.pairings(box[1])]
    boxes = [_box(document, subject.name, *box) for box in taken[:_BOXES]]
    boxes.append(_answers(document, subject.name))
    return el(
        "li",
        el("h3", name(subject.name), el("small", "baseline") if base else ""),
        el("dl", boxes),
        el("p", "Not measured: ", Said(subject.failure), class_="bad") if subject.failure else "",
        class_="card",
    )


#: Boxes of a card beside that of the answers.
_BOXES = 3


def _box(
    document: Document, name: str, title: str, metric: str, statistic: str, pairing: Any
) -> Html:
    found = document.row(name, metric, pairing)
    shown = document.figure(found[0], statistic) if found else None
    if shown is None:
        return _empty(title)
    same = pairing_of(found[1].conditions) if found and metric != "file" else None
    # How much faster is one verdict, that of the median, wherever it is said.
    judged = "p50" if metric == "latency" else statistic
    compared = document.contrast(name, metric, judged, same)
    change: Phrase = document.change(compared[0]) if compared else ()
    bare: Content = Number(shown.text.removesuffix(" tokens/s"), shown.key, shown.value)
    small = el("small", change, class_=tone(change)) if change else ""
    return el("div", el("dt", title), el("dd", bare, small))


def _empty(title: str) -> Html:
    return el("div", el("dt", title), el("dd", "not measured", class_="none"))


def _answers(document: Document, name: str) -> Html:
    if name == document.baseline or not document.results.fidelity:
        return join("")
    _, said = closeness(document, name)
    if not said:
        return _empty("Answers")
    words = {1: "", 2: said[-1]}.get(len(said), "")
    unit = el("small", words) if words else ""
    return el("div", el("dt", "Answers"), el("dd", said[:1], unit))


def _mind(document: Document) -> Html:
    """What a reader should know before believing a number."""
    failures = [
        join([Said(s.name), ": ", Said(s.failure)]) for s in document.results.subjects if s.failure
    ]
    minded: list[Html] = [join(Said(w)) for w in document.warnings()]
    advice = [join(Said(a)) for a in document.advice()]
    missing = [
        join([_metric(metric), [" of ", Said(", ".join(of))] if of else "", ": ", Said(reason)])
        for metric, of, reason in document.missing()
    ]
    blocks = []
    for anchor, title, said, kind in (
        ("failures", "Failed", failures, "mind failed"),
        ("warnings", "Warnings", minded, "mind"),
        ("advice", "Advice", advice, "mind"),
        ("unavailable", "Not available", missing, "mind quiet"),
    ):
        if said:
            blocks.append(el("div", el("h3", title), items(said), class_=kind, id=anchor))
    return join(blocks)


def _metric(metric: str) -> Html:
    known = METRICS.get(metric)
    return join(known.title[:1].upper() + known.title[1:] if known else Said(metric))


# ---------------------------------------------------------------------------------------------
# tensors


def _tensors(document: Document, name: Named, drawn: Sequence[Chart]) -> Html:
    folded = [
        el("details", el("summary", "Tensors of ", name(subject)), table(document, content, _plain))
        for subject, content in tensor_tables(document)
    ]
    return join([[figure(document, c) for c in drawn if c.section == "tensors"], folded])


def _plain(name: str) -> Html:
    return join(Said(name))


# ---------------------------------------------------------------------------------------------
# how, and on what


def _how(document: Document) -> Html:
    met = {row.metric for row in document.derived.rows}
    made = [
        Fact(metric.title, (*(metric.how,), *_ways(document, key)))
        for key, metric in METRICS.items()
        if key in met
    ]
    return join(
        [
            facts(made),
            el("p", _STATISTICS, class_="note"),
            el("h3", "Settings", class_="sub"),
            facts(settings_facts(document)),
        ]
    )


_STATISTICS = (
    "Intervals are of 95% confidence, by hierarchical bootstrap over processes. A change in p50 is "
    "the ratio of turns that ran side by side, so it need not be the quotient of the two figures. "
    "A change is called significant only where its interval leaves out no change at all (at 95% "
    "confidence for p50, 99% for everything else) and it is large enough to matter. p90 is shown "
    "from 64 samples on, p95 from 128, p99 from 662."
)


def _ways(document: Document, metric: str) -> Iterator[str]:
    """The counters or ways that measurements of a metric name, each once."""
    ways = dict.fromkeys(
        m.how for m in document.results.measurements if m.metric == metric and m.how
    )
    for way in ways:
        yield "; "
        yield Said(way)


def _machine(document: Document, name: Named) -> Html:
    artifacts = [
        join([el("h3", name(s.name), class_="sub"), facts(tuple(_artifact(document, i)))])
        for i, s in enumerate(document.results.subjects)
    ]
    return join([facts(environment_facts(document)), artifacts])


_MOST_FILES = 20


def _artifact(document: Document, place: int) -> Iterator[Fact]:
    subject = document.results.subjects[place]
    yield Fact("name", (Said(subject.name),))
    yield Fact("file", (Said(subject.path),))
    yield Fact("kind", (Said(f"{subject.kind}, run by {subject.runtime}"),))
    if subject.sha256:
        yield Fact("sha256", (Said(subject.sha256),))
    if len(subject.files) > 1:
        for i, (file, size) in enumerate(subject.files[:_MOST_FILES]):
            key = pointer("subjects", place, "files", i, 1)
            yield Fact(file, (Number(exactly(size, "B"), key, size),))
    yield from placement_facts(document, place)
