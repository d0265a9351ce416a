"""Latency distributions: the latency at every percentile, for each process and for all.

A percentile plot with an axis of nines, as HdrHistogram draws it: it shows every sample and needs
no bins, the tail gets as much room as the middle, processes that differ are lines apart, and the
scale begins at zero. A line ends where the number of samples no longer supports its percentile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeopt.core import Measurement
from edgeopt.numerics.statistics import TAIL_FLOOR
from edgeopt.report.document import Document, conditions_words, pairing_of
from edgeopt.report.numbers import quantity, shorten
from edgeopt.report.plots.amounts import MOST_CONDITIONS
from edgeopt.report.plots.chart import (
    BOTTOM,
    INKS,
    LEFT,
    TOP,
    Chart,
    LegendEntry,
    Marks,
    axes,
    axis_format,
    framed,
    inked,
    layer,
    subject_inks,
)

__all__ = ["distributions"]

#: More lines than this hide one another.
_MOST_SUBJECTS = 6
_MOST_PROCESSES = 12

#: Percentiles that the axis names.
_NAMED = (0.0, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999)

#: Beyond so many times the least median the axis is logarithmic.
_FAR = 8.0

_POINTS = 60


def distributions(document: Document) -> Iterator[Chart]:
    """One chart for each of the first few sets of conditions."""
    for i, pairing in enumerate(document.pairings("latency")[:MOST_CONDITIONS]):
        measured = [
            m
            for name in document.names[:_MOST_SUBJECTS]
            for m in document.results.of(name, "latency")
            if pairing_of(m.conditions) == pairing and _pooled(m).size
        ]
        if measured:
            yield _chart(document, measured, pairing, i)


def _pooled(m: Measurement) -> NDArray[np.float64]:
    return _finite(list(chain.from_iterable(m.values)))


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    finite: NDArray[np.float64] = array[np.isfinite(array)]
    return finite


def _nines(share: float) -> float:
    """Where a share stands on the axis: 0 at none, 1 at 90%, 2 at 99%."""
    return -math.log10(1.0 - share)


def _last(count: int) -> float:
    """The largest share that so many samples say something about; never under the half."""
    return max(0.5, 1.0 - TAIL_FLOOR / count)


def _line(values: NDArray[np.float64]) -> list[dict[str, float]]:
    places = np.linspace(0.0, _nines(_last(values.size)), _POINTS)
    times = np.quantile(values, 1.0 - 10.0**-places)
    return [
        {"place": round(float(place), 4), "time": float(f"{time:.5g}")}
        for place, time in zip(places, times, strict=True)
    ]


def _on(field: str, end: float, axis: dict[str, Any]) -> dict[str, Any]:
    scale = {"domain": [0, end], "nice": False}
    return {"field": field, "type": "quantitative", "axis": axis, "scale": scale}


def _chart(
    document: Document, measured: Sequence[Measurement], pairing: tuple[Any, ...], place: int
) -> Chart:
    inks = subject_inks(document.names, document.baseline)
    lines: list[dict[str, Any]] = []
    for m in measured:
        processes = [v for v in map(_finite, m.values[:_MOST_PROCESSES]) if v.size]
        for i, values in enumerate((*processes, _pooled(m))):
            about = {"ink": INKS[inks[m.subject]][0], "line": f"{m.subject}/{i}"}
            whole = int(i == len(processes))
            lines += [{**point, **about, "whole": whole} for point in _line(values)]
    right = max(_nines(_last(_pooled(m).size)) for m in measured)
    top = max(point["time"] for point in lines)
    low = min(point["time"] for point in lines)
    middle = min(float(np.median(_pooled(m))) for m in measured)
    # a tail far above the middle would press everything else flat
    logarithmic = low > 0 and top > _FAR * middle
    named = [share for share in _NAMED if _nines(share) <= right + 1e-9]

    def draw(width: int, marks: Marks) -> dict[str, Any]:
        # on a phone the names of two percentiles would meet
        shares = [s for s in named if width > 500 or s not in (0.0, 0.75, 0.95)]
        x, y = axes(
            {
                "title": "share of inferences that took no longer",
                "values": [round(_nines(share), 6) for share in shares],
                "labelExpr": "format((1 - pow(10, -datum.value)) * 100, '.4~r') + '%'",
                "grid": True,
            },
            axis_format(top, "s", "latency (logarithmic)" if logarithmic else "latency"),
        )
        scale = {"type": "log", "domain": [low * 0.9, top * 1.1], "nice": False}
        upward = _on("time", top * 1.04, y)
        channels = {
            "x": _on("place", right, x),
            "y": {**upward, "scale": scale} if logarithmic else upward,
            "color": inked(),
            "detail": {"field": "line", "type": "nominal"},
        }
        apart = {"type": "line", "strokeWidth": 1, "opacity": 0.5, "aria": False}
        together = {"type": "line", "strokeWidth": 2.5, "aria": False}
        layers = [
            layer([p for p in lines if p["whole"] == whole], mark, **channels)
            for whole, mark in ((0, apart), (1, together))
        ]
        entries = [LegendEntry(shorten(m.subject, 44), inks[m.subject]) for m in measured]
        return framed(layers, width, 240, entries=entries, left=LEFT, bottom=BOTTOM, top=TOP)

    said = []
    for m in measured:
        pooled = _pooled(m)
        half, last = (quantity(float(np.quantile(pooled, q)), "s") for q in (0.5, 1.0))
        said.append(f"{m.subject}: p50 {half}, longest {last}, of {pooled.size:,} samples")
    return Chart(
        f"distribution-{place + 1}",
        "Latency at every percentile",
        f"Latency at every percentile, {conditions_words(pairing)}. {'; '.join(said)}.",
        draw,
        "thin: one process; thick: all of them",
        pairing,
        "latency",
    )
