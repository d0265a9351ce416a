"""The tables of a report, made once: text, Markdown and page only lay them out.

File size comes first: it is what people ask for. A table holds one row an artifact, so that any
number of artifacts fits a terminal and a phone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgeopt.core import METRICS
from edgeopt.report.document import Document, conditions_words
from edgeopt.report.headline import quality_number
from edgeopt.report.numbers import Number, Phrase, Said, count, exactly, number, pointer, rate

__all__ = ["Column", "Table", "tables"]


@dataclass(frozen=True)
class Column:
    """``spare``: the higher, the sooner it is left out where there is no room; 0 stays.
    ``words``: text, not numbers. ``under``: belongs below the column before it, where a cell can
    have two lines."""

    title: str
    spare: int = 0
    words: bool = False
    under: bool = False


@dataclass(frozen=True)
class Table:
    """``section`` says what it is about; ``rows`` are phrases, the first of a row its name."""

    section: str
    title: str
    conditions: tuple[Any, ...] | None
    columns: tuple[Column, ...]
    rows: tuple[tuple[Phrase, ...], ...]
    note: str = ""

    @property
    def heading(self) -> str:
        """The title with the conditions in words."""
        words = conditions_words(self.conditions) if self.conditions else ""
        return f"{self.title}: {words}" if words else self.title


#: Where a metric's own title would be taken for something else in a table of artifacts.
_TITLES = {"memory.baseline": "runtime", "first": "first run"}
_SPARE = {"memory.pss": 4, "memory.other": 3, "memory.baseline": 2, "import": 1}

_CHANGE = Column("change", words=True)
_NONE: Phrase = ()
_BASE: Phrase = ("baseline",)


def tables(document: Document) -> tuple[Table, ...]:
    """All tables that the document has something for, file size first."""
    makers = (_sizes, _latency, _loading, _memory, _energy, _fidelity, _quality)
    return tuple(table for maker in makers for table in maker(document) if table.rows)


def _shown(part: Number | None) -> Phrase:
    return _NONE if part is None else (part,)


def _pruned(table: Table) -> Table:
    """Without the columns that no row has anything in."""
    says = [any(r[i] not in (_NONE, _BASE) for r in table.rows) for i in range(len(table.columns))]
    keep = [i for i in range(len(table.columns)) if i == 0 or says[i]]
    return Table(
        table.section,
        table.title,
        table.conditions,
        tuple(table.columns[i] for i in keep),
        tuple(tuple(row[i] for i in keep) for row in table.rows),
        table.note,
    )


def _change(document: Document, subject: str, metric: str, statistic: str, pairing: Any) -> Phrase:
    if subject == document.baseline:
        return _BASE
    found = document.contrast(subject, metric, statistic, pairing)
    return _NONE if found is None else document.change(found[0])


def _sizes(document: Document) -> Iterator[Table]:
    rows = []
    sharded = any(len(s.files) > 1 for s in document.results.subjects)
    for name in document.names:
        found = document.row(name, "file")
        shown = document.figure(found[0], "exact") if found else None
        if shown is None:
            continue
        exact = Number(exactly(shown.value, "B"), shown.key, shown.value)
        change = _change(document, name, "file", "exact", None)
        files = len(document.results.subject(name).files)
        place = document.names.index(name)
        parts = count(files, pointer("subjects", place, "files"), "length")
        rows.append(((Said(name),), (shown,), (exact,), (parts,) if sharded else _NONE, change))
    columns = (
        Column("artifact", words=True),
        Column("file size"),
        Column("bytes"),
        Column("files", spare=1),
        _CHANGE,
    )
    yield _pruned(Table("size", "File size", None, columns, tuple(rows), METRICS["file"].how))


#: What is shown of a rate: its column's title, and how soon it is left out.
_RATES = {"tokens_per_s": ("tokens/s", 0), "throughput": ("per second", 4)}


def _latency(document: Document) -> Iterator[Table]:
    for pairing in document.pairings("latency"):
        rows = []
        statistic = "throughput"
        for name in document.names:
            found = document.row(name, "latency", pairing)
            if found is None or not found[1].figures:
                continue
            index, row = found
            statistic = next((r for r in _RATES if r in row.figures), statistic)
            speed = document.figure(index, statistic)
            compared = document.contrast(name, "latency", "p50", pairing)
            rows.append(
                (
                    (Said(name),),
                    _shown(document.figure(index, "p50")),
                    document.interval(index, "p50"),
                    *(_shown(document.figure(index, p)) for p in ("p90", "p95", "p99")),
                    _NONE if speed is None else rate(speed),
                    _noise(document, index),
                    _change(document, name, "latency", "p50", pairing),
                    document.bounds(compared[0]) if compared else _NONE,
                )
            )
        columns = (
            Column("artifact", words=True),
            Column("p50"),
            Column("95% interval", under=True),
            Column("p90", spare=2),
            Column("p95", spare=3),
            Column("p99", spare=1),
            Column(*_RATES[statistic]),
            Column("noise", spare=6),
            _CHANGE,
            Column("change's 95% interval", spare=5, under=True),
        )
        per = "token" if str(pairing[-1]).startswith("tg") else "inference"
        if str(pairing[-1]).startswith("pp"):
            per = "prompt"
        title = f"Latency of one {per}"
        how = METRICS["latency"].how
        yield _pruned(Table("latency", title, pairing, columns, tuple(rows), how))


def _noise(document: Document, index: int) -> Phrase:
    """The spread that repeating would show, as a percentage."""
    noise = document.derived.rows[index].noise
    if noise is None:
        return _NONE
    return (number(noise, pointer("derived", "rows", index, "noise"), "", "percent"),)


def _medians(
    document: Document,
    section: str,
    title: str,
    metrics: Sequence[str],
    note: str,
    comparable: Sequence[str],
) -> Iterator[Table]:
    """Medians of several metrics side by side, one table for each set of conditions; the first of
    the ``comparable`` that was taken in them is compared."""
    for pairing in document.pairings(*metrics):
        taken = [m for m in comparable if any(document.row(n, m, pairing) for n in document.names)]
        compared = next(iter(taken), comparable[0])
        rows = []
        for name in document.names:
            cells = []
            for metric in metrics:
                found = document.row(name, metric, pairing)
                cells.append(_shown(document.figure(found[0], "median")) if found else _NONE)
            if any(cells):
                change = _change(document, name, compared, "median", pairing)
                rows.append(((Said(name),), *cells, change))
        columns = (
            Column("artifact", words=True),
            *(Column(_TITLES.get(m, METRICS[m].title), _SPARE.get(m, 0)) for m in metrics),
            Column(f"{METRICS[compared].title}, change", words=True),
        )
        yield _pruned(Table(section, title, pairing, columns, tuple(rows), note))


def _loading(document: Document) -> Iterator[Table]:
    metrics = ("import", "load.cold", "load.warm", "first")
    note = "; ".join(f"{METRICS[m].title}: {METRICS[m].how}" for m in metrics)
    comparable = ("load.cold", "load.warm", "first")
    yield from _medians(document, "loading", "Until the first answer", metrics, note, comparable)


def _memory(document: Document) -> Iterator[Table]:
    metrics = tuple(m for m in METRICS if m.startswith("memory."))
    order = ("memory.peak", *(m for m in metrics if m != "memory.peak"))
    note = "; ".join(f"{METRICS[m].title}: {METRICS[m].how}" for m in order)
    yield from _medians(document, "memory", "Memory", order, note, ("memory.peak",))


def _energy(document: Document) -> Iterator[Table]:
    note = METRICS["energy"].how
    yield from _medians(document, "energy", "Energy", ("energy",), note, ("energy",))


#: Signal to noise where there is no noise, and where there is no signal.
_SQNR: dict[float, Phrase] = {math.inf: ("identical",), -math.inf: ("no signal",)}


def _fidelity(document: Document) -> Iterator[Table]:
    rows = []
    for name in document.others or document.names:
        for i, output in enumerate(document.fidelity(name)):
            key = ("fidelity", name, i)
            lacking: Phrase = _NONE if output.finite else ("not finite",)
            shown = _SQNR.get(output.sqnr_db) or (
                lacking
                if math.isnan(output.sqnr_db)
                else (document.fidelity_number(name, i, "sqnr_db", "value", "dB"),)
            )
            cosine = Number(f"{output.cosine:.5f}", pointer(*key, "cosine"), output.cosine)
            rows.append(
                (
                    (Said(name),),
                    (Said(output.output),),
                    shown,
                    _NONE if math.isnan(output.cosine) else (cosine,),
                    _NONE
                    if output.top1 is None
                    else (document.fidelity_number(name, i, "top1", "percent"),),
                    _NONE if output.kl is None else (document.fidelity_number(name, i, "kl"),),
                    # of weights and of next tokens there is none
                    lacking
                    if math.isnan(output.max_abs)
                    else (document.fidelity_number(name, i, "max_abs"),),
                    (count(output.samples, pointer(*key, "samples")),),
                )
            )
    columns = (
        Column("artifact", words=True),
        Column("output", words=True),
        Column("SQNR"),
        Column("cosine"),
        Column("top-1 same"),
        Column("KL", spare=2),
        Column("largest error"),
        Column("samples", spare=3),
    )
    note = (
        "SQNR: signal to quantization noise; 20 dB is an error of a tenth of the signal, 40 dB of "
        "a hundredth. Top-1 same: how often the likeliest class is the same."
    )
    where = document.results.settings.get("fidelity_on")
    if where == "made-up inputs":
        note = f"On made-up inputs: give --data to know of yours. {note}"
    title = "How close the answers are to the baseline's"
    yield _pruned(Table("fidelity", title, None, columns, tuple(rows), note))


def _quality(document: Document) -> Iterator[Table]:
    rows = []
    for i, quality in enumerate(document.results.quality):
        samples = count(quality.samples, pointer("quality", i, "samples"))
        better = "higher is better" if quality.higher_is_better else "lower is better"
        shown = quality_number(document, i)
        name = f"{quality.metric} ({better})"
        rows.append(
            ((Said(quality.subject),), (Said(name),), (shown,), (samples,), (Said(quality.how),))
        )
    columns = (
        Column("artifact", words=True),
        Column("metric", words=True),
        Column("value"),
        Column("samples"),
        Column("how", spare=1, words=True),
    )
    yield _pruned(Table("quality", "How well the task is done", None, columns, tuple(rows)))
