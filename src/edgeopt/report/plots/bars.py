"""Horizontal bars from zero, a name above each: they read the same on a desk and on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeopt.report.numbers import Number, Phrase, plain, scale_of, shorten
from edgeopt.report.plots.chart import INKS, Marks, altair, finished

__all__ = ["Bar", "Part", "axis_format", "bars"]

_PITCH, _HEADING, _BAR = 46, 34, 16

#: Pixels of a letter of 13 pixels, on the average and on the safe side.
_LETTER = 7.0


@dataclass(frozen=True)
class Part:
    """A stretch of a bar: its length, its ink, what it stands for."""

    number: Number
    ink: str
    tip: str


@dataclass(frozen=True)
class Bar:
    """One bar under its name. ``low``, ``high``: an interval's bounds; ``ticks``: further values;
    ``heading``: words above it, where a group of bars begins."""

    name: str
    parts: tuple[Part, ...]
    value: Phrase = ()
    change: Phrase = ()
    tone: str = "muted"
    low: Number | None = None
    high: Number | None = None
    ticks: tuple[Part, ...] = ()
    heading: str = ""


def bars(rows: Sequence[Bar], width: int, marks: Marks, unit: str, axis: bool = False) -> Any:
    """The specification of bars on a common scale that starts at zero."""
    placed, height = _placed(rows)
    room = max((_LETTER * len(_after(row)) + 14 for row in rows), default=0.0)
    room = min(room, 0.62 * width)
    longest = max((_extent(row) for row in rows), default=0.0) or 1.0
    domain = [0.0, longest * width / (width - room)]
    layers = [
        _stretches(placed, domain, marks, unit, axis, longest),
        _names(placed, width),
        _intervals(placed, domain),
        _ticks(placed, domain, marks),
        _texts(placed, domain, marks, width),
    ]
    chart = altair().layer(*(layer for layer in layers if layer is not None))
    return finished(chart, width, height)


def _placed(rows: Sequence[Bar]) -> tuple[list[tuple[Bar, int]], int]:
    """Every row with the pixel where it begins, and the height of all."""
    placed, at = [], 0
    for row in rows:
        at += _HEADING if row.heading else 0
        placed.append((row, at))
        at += _PITCH
    return placed, at


def _extent(row: Bar) -> float:
    ends = [sum(part.number.value for part in row.parts)]
    ends += [bound.value for bound in (row.low, row.high) if bound is not None]
    return max(ends + [tick.number.value for tick in row.ticks])


def _after(row: Bar) -> str:
    return "  ".join(text for text in (plain(row.value), plain(row.change)) if text)


def _layer(values: list[dict[str, Any]]) -> Any:
    alt = altair()
    return alt.Chart(alt.Data(values=values)) if values else None


def _x(field: str, domain: list[float], **more: Any) -> Any:
    alt = altair()
    scale = alt.Scale(domain=domain, nice=False, zero=True)
    return alt.X(f"{field}:Q", scale=scale, **{"axis": None, **more})


def _y(field: str = "y") -> Any:
    return altair().Y(f"{field}:Q", scale=None, axis=None)


def axis_format(largest: float, unit: str, title: str = "") -> dict[str, Any]:
    """An axis of few round numbers in a unit that fits: 0.004 s is labelled 4, its title ms."""
    factor, name = scale_of(largest, unit)
    return {
        "labelExpr": f"format(datum.value / {factor!r}, ',~r')",
        "title": f"{title}, {name}" if title and name else title or name or None,
        "tickCount": 5,
        "titleAnchor": "start",
    }


def _stretches(
    placed: Sequence[tuple[Bar, int]],
    domain: list[float],
    marks: Marks,
    unit: str,
    axis: bool,
    longest: float,
) -> Any:
    alt = altair()
    values = []
    for row, at in placed:
        start = 0.0
        for part in row.parts:
            end = start + part.number.value
            values.append(
                {
                    "start": start,
                    "end": end,
                    "y": at + 20,
                    "y2": at + 20 + _BAR,
                    "ink": INKS[part.ink][0],
                    "mark": marks.add(part.tip, part.number),
                }
            )
            start = end
    layer = _layer(values)
    if layer is None:
        return None
    shown: dict[str, Any] = {"axis": None}
    if axis:
        grid = axis_format(longest, unit)
        shown = {"axis": alt.Axis(**grid, values=_round_ticks(longest), grid=True)}
    return layer.mark_rect(cornerRadius=2).encode(
        x=_x("start", domain, **shown),
        x2="end:Q",
        y=_y(),
        y2="y2:Q",
        color=alt.Color("ink:N", scale=None),
        description="mark:N",
    )


def _round_ticks(longest: float) -> list[float]:
    """Zero and a few round numbers up to the longest bar: none where only labels stand."""
    power = 10.0
    while power > longest:
        power /= 10.0
    while power * 10.0 <= longest:
        power *= 10.0
    step = next(s * power for s in (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 2.5) if longest / (s * power) <= 5)
    return [i * step for i in range(int(longest / step + 1e-9) + 1)]


def _names(placed: Sequence[tuple[Bar, int]], width: int) -> Any:
    letters = int(width / _LETTER)
    names = [
        {"x": 0, "y": at + 10, "text": shorten(row.name, letters), "ink": INKS["ink"][0]}
        for row, at in placed
    ]
    headings = [
        {"x": 0, "y": at - 14, "text": shorten(row.heading, letters), "ink": INKS["muted"][0]}
        for row, at in placed
        if row.heading
    ]
    alt = altair()
    return (
        _layer([*names, *headings])
        .mark_text(align="left", baseline="middle", aria=False)
        .encode(
            x=alt.X("x:Q", scale=None, axis=None),
            y=_y(),
            text="text:N",
            color=alt.Color("ink:N", scale=None),
        )
    )


def _intervals(placed: Sequence[tuple[Bar, int]], domain: list[float]) -> Any:
    values = [
        {"low": row.low.value, "high": row.high.value, "y": at + 20 + _BAR / 2}
        for row, at in placed
        if row.low is not None and row.high is not None
    ]
    layer = _layer(values)
    if layer is None:
        return None
    return layer.mark_rule(color=INKS["ink"][0], strokeWidth=3, strokeCap="butt", aria=False).encode(
        x=_x("low", domain), x2="high:Q", y=_y()
    )


def _ticks(placed: Sequence[tuple[Bar, int]], domain: list[float], marks: Marks) -> Any:
    alt = altair()
    values = [
        {
            "x": tick.number.value,
            "y": at + 18,
            "y2": at + 22 + _BAR,
            "ink": INKS[tick.ink][0],
            "mark": marks.add(tick.tip, tick.number),
        }
        for row, at in placed
        for tick in row.ticks
    ]
    layer = _layer(values)
    if layer is None:
        return None
    return layer.mark_rule(strokeWidth=2).encode(
        x=_x("x", domain),
        y=_y(),
        y2="y2:Q",
        color=alt.Color("ink:N", scale=None),
        description="mark:N",
    )


def _texts(placed: Sequence[tuple[Bar, int]], domain: list[float], marks: Marks, width: int) -> Any:
    """The value at the end of each bar, and after it what changed."""
    alt = altair()
    values = []
    for row, at in placed:
        x = _extent(row) / domain[1] * (width - 2) + 8
        for phrase, ink, weight in ((row.value, "ink", 600), (row.change, row.tone, 400)):
            text = plain(phrase)
            shown = next((part for part in phrase if isinstance(part, Number)), None)
            if text:
                values.append(
                    {
                        "x": x,
                        "y": at + 20 + _BAR / 2,
                        "text": text,
                        "ink": INKS[ink][0],
                        "weight": weight,
                        "mark": marks.add(text, shown),
                    }
                )
            x += _LETTER * len(text) + 8
    layer = _layer(values)
    if layer is None:
        return None
    encoded = [
        layer.transform_filter(f"datum.weight == {weight}")
        .mark_text(align="left", baseline="middle", fontWeight=weight)
        .encode(
            x=alt.X("x:Q", scale=None, axis=None),
            y=_y(),
            text="text:N",
            color=alt.Color("ink:N", scale=None),
            description="mark:N",
        )
        for weight in (600, 400)
    ]
    return alt.layer(*encoded)


