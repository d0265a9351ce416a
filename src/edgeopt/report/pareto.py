"""Which artifacts nothing beats: the Pareto front of size, latency and closeness.

One beats another when it is not worse in anything and better in something, where a difference in
latency counts only if the intervals lie apart.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from edgeopt.report.document import Document
from edgeopt.report.headline import quality_number
from edgeopt.report.numbers import Number, Phrase, Said

__all__ = ["Point", "closeness", "compared_in", "points"]


@dataclass(frozen=True)
class Point:
    """An artifact's place. ``closeness``: larger is closer to the baseline; None: unknown.
    ``words`` say how close; ``task`` how well the task is done, where that is known of all."""

    name: str
    size: Number
    latency: Number
    low: float
    high: float
    closeness: float | None
    words: Phrase
    task: Phrase = ()
    front: bool = False


def points(document: Document) -> tuple[Point, ...]:
    """Every artifact whose size and latency are known, the front among them marked.

    The latency is the p50 in the conditions of :func:`compared_in`. Closeness counts only where it
    is known of all.
    """
    pairing = compared_in(document)
    if pairing is None:
        return ()
    found = []
    top1 = _by_top1(document)
    for name in document.names:
        file, row = document.row(name, "file"), document.row(name, "latency", pairing)
        size = document.figure(file[0], "exact") if file else None
        latency = document.figure(row[0], "p50") if row else None
        if size is None or latency is None or row is None:
            continue
        figure = row[1].figures["p50"]
        low = latency.value if figure.low is None else figure.low
        high = latency.value if figure.high is None else figure.high
        close, words = closeness(document, name, top1)
        found.append(Point(name, size, latency, low, high, close, words))
    tasks = _tasks(document)
    if found and all(point.name in tasks for point in found):
        found = [dataclasses.replace(point, task=tasks[point.name]) for point in found]
    if any(point.closeness is None for point in found):
        found = [dataclasses.replace(p, closeness=None) for p in found]
    return tuple(
        dataclasses.replace(p, front=not any(_beats(other, p) for other in found)) for p in found
    )


def compared_in(document: Document) -> tuple[Any, ...] | None:
    """The conditions whose latency stands for an artifact: the first; of GGUF generating."""
    pairings = document.pairings("latency")
    generating = [p for p in pairings if str(p[-1]).startswith("tg")]
    return next(iter((*generating, *pairings)), None)


def _beats(a: Point, b: Point) -> bool:
    signs = [
        (a.size.value < b.size.value) - (a.size.value > b.size.value),
        (a.high < b.low) - (a.low > b.high),
    ]
    if a.closeness is not None and b.closeness is not None:
        signs.append((a.closeness > b.closeness) - (a.closeness < b.closeness))
    return min(signs) >= 0 and max(signs) > 0


def _tasks(document: Document) -> dict[str, Phrase]:
    """The first task metric, by artifact."""
    found: dict[str, Phrase] = {}
    metric = next((quality.metric for quality in document.results.quality), "")
    for index, quality in enumerate(document.results.quality):
        if quality.metric == metric:
            found[quality.subject] = (Said(metric), " ", quality_number(document, index))
    return found


def _by_top1(document: Document) -> bool:
    """Whether all that is compared has classes: shares of answers and decibels do not mix."""
    known = [document.fidelity(name) for name in document.others]
    return bool(known) and all(any(o.top1 is not None for o in outputs) for outputs in known)


def closeness(
    document: Document, name: str, top1: bool | None = None
) -> tuple[float | None, Phrase]:
    """The worst output's, and how it is said: by shares of the same answers (``top1``) or in
    decibels; None: whichever there is."""
    top1 = _by_top1(document) if top1 is None else top1
    if name == document.baseline:
        return math.inf, ("baseline",)
    outputs = document.fidelity(name)
    if top1:
        share, worst = min((o.top1, i) for i, o in enumerate(outputs) if o.top1 is not None)
        return share, (document.fidelity_number(name, worst, "top1", "percent"), " the same")
    known = [(o.sqnr_db, i) for i, o in enumerate(outputs) if not math.isnan(o.sqnr_db)]
    if not known:
        return None, ()
    sqnr, worst = min(known)
    if math.isinf(sqnr):
        return sqnr, ("identical" if sqnr > 0 else "no signal left",)
    return sqnr, (document.fidelity_number(name, worst, "sqnr_db", "value", "dB"),)
