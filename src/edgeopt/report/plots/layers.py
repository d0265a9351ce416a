"""The tensors of an artifact: where its bytes are, and how far each is from the baseline's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from edgeopt.core import Layer, Subject
from edgeopt.report.document import Document
from edgeopt.report.numbers import Number, number, pointer, shorten
from edgeopt.report.plots.bars import Bar, BarSegment, listing
from edgeopt.report.plots.chart import (
    BOTTOM,
    INKS,
    LEFT,
    MARK,
    TOP,
    Chart,
    LegendEntry,
    Marks,
    axes,
    framed,
    inked,
    layer,
    subject_inks,
)

__all__ = ["errors", "layers"]

#: Tensors drawn of each artifact, the largest first; and artifacts.
_MOST_TENSORS = 10
_MOST_SUBJECTS = 4

#: Tensors with less than this share of the largest one's bytes would be bars that nobody sees.
_LEAST_SHARE = 0.002

#: Tensors of which an error is drawn, of all artifacts together.
_MOST_POINTS = 500


def layers(document: Document) -> Iterator[Chart]:
    """Bars of the largest tensors of each artifact, a line at the baseline's bytes."""
    inks = subject_inks(document.names, document.baseline)
    base = {
        tensor.name: (tensor, i, j)
        for i, s in enumerate(document.results.subjects)
        if s.name == document.baseline
        for j, tensor in enumerate(s.layers)
    }
    drawn = [
        (place, subject)
        for place, subject in enumerate(document.results.subjects)
        if subject.layers and (subject.name != document.baseline or not document.others)
    ]
    for place, subject in drawn[:_MOST_SUBJECTS]:
        yield _largest(subject, place, inks[subject.name], base)


def _largest(
    subject: Subject, place: int, ink: str, base: dict[str, tuple[Layer, int, int]]
) -> Chart:
    order = sorted(range(len(subject.layers)), key=lambda i: -subject.layers[i].nbytes)
    least = _LEAST_SHARE * subject.layers[order[0]].nbytes
    rows = []
    for i in (i for i in order[:_MOST_TENSORS] if subject.layers[i].nbytes >= least):
        tensor = subject.layers[i]
        shown = nbytes(tensor, place, i)
        tip = f"{tensor.name}: {tensor.dtype}, {shown.text}"
        ticks: tuple[BarSegment, ...] = ()
        before = base.get(tensor.name)
        if before is not None and before[1] != place:
            was = nbytes(*before)
            ticks = (BarSegment(was, "muted", f"{tensor.name}: {was.text} in the baseline"),)
        error = sqnr(tensor, place, i)
        change = () if error is None else (error,)
        rows.append(Bar(tensor.name, (BarSegment(shown, ink, tip),), (shown,), change, ticks=ticks))
    rest = len(subject.layers) - len(rows)
    said = "; ".join(f"{r.name}: {r.value[0].text}" for r in rows if isinstance(r.value[0], Number))
    entries = [LegendEntry("bytes", ink)]
    if any(row.ticks for row in rows):
        entries.append(LegendEntry("bytes in the baseline", "muted", "stroke"))
    title = f"Largest tensors of {shorten(subject.name, 56)}"

    def draw(width: int, marks: Marks) -> dict[str, Any]:
        return listing(rows, width, marks, entries)

    return Chart(
        f"layers-{place + 1}",
        title,
        f"{title}. {said}.",
        draw,
        "the rest is not drawn; see the table" if rest > 0 else "",
        section="tensors",
    )


def nbytes(layer: Layer, subject: int, place: int) -> Number:
    """A tensor's bytes as a number of the document."""
    return number(layer.nbytes, pointer("subjects", subject, "layers", place, "nbytes"), "B")


def sqnr(layer: Layer, subject: int, place: int) -> Number | None:
    """A tensor's error as a number of the document; None where it is unknown or infinite."""
    if layer.sqnr_db is None or not math.isfinite(layer.sqnr_db):
        return None
    key = pointer("subjects", subject, "layers", place, "sqnr_db")
    return number(layer.sqnr_db, key, "dB")


def errors(document: Document) -> Iterator[Chart]:
    """The error of every tensor, in the order of the file: lower is further from the baseline."""
    inks = subject_inks(document.names, document.baseline)
    values: list[dict[str, Any]] = []
    said: list[str] = []
    shown: dict[str, str] = {}
    for place, subject in enumerate(document.results.subjects):
        known = [
            (i, tensor, error)
            for i, tensor in enumerate(subject.layers)
            if (error := sqnr(tensor, place, i)) is not None
        ]
        if not known:
            continue
        shown[subject.name] = shorten(subject.name, 44)
        _, worst, least = min(known, key=lambda item: item[2].value)
        said.append(f"{subject.name}: worst {least.text} at {worst.name}, {len(known):,} tensors")
        for i, tensor, error in known:
            values.append(
                {
                    "place": i + 1,
                    "error": error.value,
                    "ink": INKS[inks[subject.name]][0],
                    "tip": f"{subject.name}, {tensor.name}: {error.text}",
                    "number": error,
                }
            )
    if len(values) < 2:
        return
    step = math.ceil(len(values) / _MOST_POINTS)
    kept = values[::step]
    lowest = min(v["error"] for v in values)
    highest = max(v["error"] for v in values)

    def draw(width: int, marks: Marks) -> dict[str, Any]:
        data = [
            {
                "place": v["place"],
                "error": v["error"],
                "ink": v["ink"],
                "mark": marks.add(v["tip"], v["number"]),
            }
            for v in kept
        ]
        x, y = axes(
            {"title": "tensor, in the order of the file", "tickMinStep": 1, "tickCount": 6},
            {"title": "SQNR, dB (higher is closer)", "tickCount": 5},
        )
        across = {"nice": False, "zero": False, "padding": 8}
        upward = {"domain": [min(0.0, lowest), highest * 1.05], "nice": True}
        dots = layer(
            data,
            {"type": "circle", "size": 46, "opacity": 0.85},
            x={"field": "place", "type": "quantitative", "axis": x, "scale": across},
            y={"field": "error", "type": "quantitative", "axis": y, "scale": upward},
            color=inked(),
            description=MARK,
        )
        entries = [LegendEntry(words, inks[name], "circle") for name, words in shown.items()]
        return framed([dots], width, 220, entries=entries, left=LEFT, bottom=BOTTOM, top=TOP)

    thinned = "not every tensor is drawn" if step > 1 else ""
    yield Chart(
        "errors",
        "Error of every tensor",
        f"Error of every tensor. {'; '.join(said)}.",
        draw,
        thinned,
        section="tensors",
    )
