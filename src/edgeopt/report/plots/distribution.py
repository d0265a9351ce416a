"""Latency distributions: the share of inferences that took no longer, for each process.

An empirical distribution function shows every sample and needs no bins: p50 and p99 are read off
it, processes that differ are seen as lines apart, and a long tail as a line that bends late.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgeopt.core import Measurement
from edgeopt.report.document import Document, conditions_words, pairing_of
from edgeopt.report.plots.amounts import MOST_CONDITIONS
from edgeopt.report.plots.bars import axis_format
from edgeopt.report.plots.chart import INKS, Chart, Marks, altair, finished, subject_inks
from edgeopt.report.numbers import quantity, shorten

__all__ = ["distributions"]

#: Where the functions are drawn: finer towards the tail that people ask about.
_SHARES = np.unique(np.concatenate([np.linspace(0, 0.95, 58), np.linspace(0.95, 1, 26)]))

#: The right edge is where this share of the slowest artifact's samples has ended.
_SHOWN = 0.995

#: More lines than this hide one another.
_MOST_SUBJECTS = 6
_MOST_PROCESSES = 12


def distributions(document: Document) -> Iterator[Chart]:
    """One chart for each of the first few sets of conditions."""
    for i, pairing in enumerate(document.pairings("latency")[:MOST_CONDITIONS]):
        measured = [
            m
            for name in document.names[:_MOST_SUBJECTS]
            for m in document.results.of(name, "latency")
            if pairing_of(m.conditions) == pairing and any(m.values)
        ]
        if measured:
            yield _chart(document, measured, pairing, i)


def _chart(
    document: Document, measured: list[Measurement], pairing: tuple[Any, ...], place: int
) -> Chart:
    inks = subject_inks(document.names, document.results.baseline)
    pooled = {m.subject: _finite(sum(m.values, ())) for m in measured}
    pooled = {name: values for name, values in pooled.items() if values.size}
    edge = max(float(np.quantile(values, _SHOWN)) for values in pooled.values())
    least = min(float(values.min()) for values in pooled.values())
    domain = _domain(least, edge)
    beyond = [
        f"{n:,} of {values.size:,} samples of {name} lie beyond the right edge, "
        f"the longest {quantity(float(values.max()), 's')}"
        for name, values in pooled.items()
        if (n := int((values > domain[1]).sum()))
    ]
    lines = [line for m in measured if m.subject in pooled for line in _lines(m, domain)]
    shown = {name: shorten(name, 44) for name in pooled}

    def draw(width: int, marks: Marks) -> Any:
        alt = altair()
        values = [{**point, "name": shown[point["subject"]]} for line in lines for point in line]
        base = alt.Chart(alt.Data(values=values)).encode(
            x=alt.X(
                "time:Q",
                scale=alt.Scale(domain=domain, nice=False, zero=False),
                axis=alt.Axis(**axis_format(domain[1], "s", "latency"), grid=False),
            ),
            y=alt.Y(
                "share:Q",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(
                    values=[0, 0.25, 0.5, 0.75, 0.9, 1],
                    format="%",
                    title="inferences done",
                    titleAnchor="end",
                ),
            ),
            color=alt.Color(
                "name:N",
                scale=alt.Scale(
                    domain=list(shown.values()), range=[INKS[inks[n]][0] for n in shown]
                ),
                legend=alt.Legend(columns=1 if width < 500 else 3),
            ),
            detail="line:N",
        )
        processes = base.transform_filter("datum.process >= 0").mark_line(
            strokeWidth=1, opacity=0.45, interpolate="linear", aria=False
        )
        pooled_lines = base.transform_filter("datum.process < 0").mark_line(
            strokeWidth=2.5, interpolate="linear", aria=False
        )
        return finished(alt.layer(processes, pooled_lines), width, 260)

    words = conditions_words(pairing)
    middle = "; ".join(
        f"{name}: from {quantity(float(v.min()), 's')} over p50 {quantity(float(np.median(v)), 's')}"
        f" to {quantity(float(v.max()), 's')} at most, {v.size:,} samples"
        for name, v in pooled.items()
    )
    return Chart(
        f"distribution-{place + 1}",
        f"Latency distribution: {words}",
        f"Share of inferences that took no longer than a time. {middle}.",
        draw,
        ". ".join(beyond),
    )


def _finite(values: Any) -> Any:
    array = np.asarray(values, np.float64)
    return array[np.isfinite(array)]


def _domain(least: float, edge: float) -> list[float]:
    """From zero where that costs no more than half of the width."""
    if least < 0.5 * edge:
        return [0.0, edge * 1.02]
    margin = max((edge - least) * 0.04, edge * 1e-6)
    return [least - margin, edge + margin]


def _lines(m: Measurement, domain: list[float]) -> Iterator[list[dict[str, Any]]]:
    """The processes' functions and, under the number -1, that of all of them."""
    for i, values in [*enumerate(m.values[:_MOST_PROCESSES]), (-1, sum(m.values, ()))]:
        finite = _finite(values)
        if not finite.size:
            continue
        times = np.quantile(finite, _SHARES)
        yield [
            {
                "time": float(f"{time:.6g}"),
                "share": float(f"{share:.4g}"),
                "process": i,
                "line": f"{m.subject}/{i}",
                "subject": m.subject,
            }
            for time, share in zip(times, _SHARES, strict=True)
            if time <= domain[1]
        ]
