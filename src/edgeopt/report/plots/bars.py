"""Horizontal bars from zero, a name above each: they read the same on a desk and on a phone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from edgeopt.report.numbers import Number, Phrase, plain, scale_of, shorten
from edgeopt.report.plots.chart import (
    BOLD,
    INKS,
    LETTER,
    MARK,
    RIGHT,
    TEXT,
    LegendEntry,
    Marks,
    axis_format,
    framed,
    inked,
    layer,
    placed,
)

__all__ = ["Bar", "BarSegment", "bars", "listing"]

_PITCH, _HEADING, _BAR, _TOP = 46, 34, 16, 20

#: From so many pixels on, words fit beside the bars.
_ROOMY = 500


@dataclass(frozen=True)
class BarSegment:
    """A stretch of a bar: its length, its ink, what it stands for."""

    number: Number
    ink: str
    tip: str


@dataclass(frozen=True)
class Bar:
    """One bar under its name. ``low``, ``high``: an interval's bounds; ``ticks``: further values;
    ``heading``: words above it, where a group of bars begins."""

    name: str
    parts: tuple[BarSegment, ...]
    value: Phrase = ()
    change: Phrase = ()
    tone: str = "muted"
    low: Number | None = None
    high: Number | None = None
    ticks: tuple[BarSegment, ...] = ()
    heading: str = ""


def bars(
    rows: Sequence[Bar],
    width: int,
    marks: Marks,
    unit: str,
    *,
    axis: bool = False,
    entries: Sequence[LegendEntry] = (),
) -> dict[str, Any]:
    """The specification of bars on a common scale that starts at zero."""
    stood, height = _stood(rows)
    across = width - RIGHT - 1
    # on a phone the bars take the whole width, and the words stand on the line of the name
    beside = width >= _ROOMY
    room = max((_after(row) for row in rows), default=0.0) if beside else 0.0
    room = min(room, 0.62 * across)
    longest = max((_extent(row) for row in rows), default=0.0) or 1.0
    shown = _axis(longest, unit) if axis else None
    scale = _Scale(longest * across / (across - room), shown)
    layers = [
        *_stretches(stood, scale, marks),
        _names(stood, across, beside),
        *_intervals(stood, scale),
        *_ticks(stood, scale, marks),
        *_texts(stood, scale, marks, across, beside),
    ]
    return framed(layers, width, height, entries=entries, bottom=24 if axis else 2)


@dataclass(frozen=True)
class _Scale:
    """The one scale of all the bars, and its axis."""

    end: float
    axis: Any

    def x(self, field: str) -> dict[str, Any]:
        scale = {"domain": [0.0, self.end], "nice": False, "zero": True}
        return {"field": field, "type": "quantitative", "scale": scale, "axis": self.axis}


def _axis(longest: float, unit: str) -> dict[str, Any]:
    name = scale_of(longest, unit)[1]
    shown = {**axis_format(longest, unit), "title": None, "values": _round_ticks(longest)}
    if name:
        shown["labelExpr"] += f" + (datum.value > 0 ? ' {name}' : '')"
    return {**shown, "grid": True}


def _stood(rows: Sequence[Bar]) -> tuple[list[tuple[Bar, int]], int]:
    """Every row with the pixel where it begins, and the height of all."""
    stood, at = [], 0
    for row in rows:
        at += _HEADING if row.heading else 0
        stood.append((row, at))
        at += _PITCH
    return stood, at


def _extent(row: Bar) -> float:
    ends = [sum(part.number.value for part in row.parts)]
    ends += [bound.value for bound in (row.low, row.high) if bound is not None]
    return max(ends + [tick.number.value for tick in row.ticks])


def _after(row: Bar) -> float:
    """Pixels that the words after a bar take."""
    value, change = len(plain(row.value)), len(plain(row.change))
    return 18 + BOLD * value + LETTER * change + (10 if value and change else 0)


_BarRows: TypeAlias = Sequence[tuple[Bar, int]]

#: Words that nobody needs to hear one by one: the picture has an alternative of its own.
_WORDS = {"type": "text", "align": "left", "baseline": "middle", "aria": False}


def _round_ticks(longest: float) -> list[float]:
    """Zero and a few round numbers, none of them beyond the longest bar."""
    power = 10.0 ** math.floor(math.log10(longest))
    steps = (0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 2.5)
    step = next(s * power for s in steps if longest / (s * power) <= 5)
    return [i * step for i in range(int(longest / step + 1e-9) + 1)]


def _stretches(
    rows: _BarRows, scale: _Scale, marks: Marks, thick: int = _BAR, top: int = _TOP
) -> list[Any]:
    values = []
    for row, at in rows:
        start = 0.0
        for part in row.parts:
            end = start + part.number.value
            values.append(
                {
                    "start": start,
                    "end": end,
                    "y": at + top,
                    "y2": at + top + thick,
                    "ink": INKS[part.ink][0],
                    "mark": marks.add(part.tip, part.number),
                }
            )
            start = end
    # a thread of paper between the parts of a bar
    bar = {"type": "rect", "cornerRadius": 2, "stroke": INKS["paper"][0], "strokeWidth": 1}
    ends = {"x": scale.x("start"), "x2": {"field": "end"}, "y": placed("y"), "y2": {"field": "y2"}}
    return [layer(values, bar, **ends, color=inked(), description=MARK)]


def _names(rows: _BarRows, width: float, beside: bool) -> Any:
    values = []
    for row, at in rows:
        room = width if beside else width - _after(row)
        lines = [(row.name, room, at + 8, "ink")]
        if row.heading:
            lines.append((row.heading, width, at - 15, "muted"))
        values += [
            {"x": 0, "y": y, "text": shorten(text, int(wide / LETTER)), "ink": INKS[ink][0]}
            for text, wide, y, ink in lines
        ]
    return layer(values, _WORDS, x=placed("x"), y=placed("y"), text=TEXT, color=inked())


def _intervals(rows: _BarRows, scale: _Scale) -> list[Any]:
    values = [
        {
            "low": row.low.value,
            "high": row.high.value,
            "y": at + _TOP + _BAR / 2 - 1.5,
            "y2": at + _TOP + _BAR / 2 + 1.5,
        }
        for row, at in rows
        if row.low is not None and row.high is not None
    ]
    inner = {"color": INKS["ink"][0], "stroke": INKS["paper"][0], "strokeWidth": 1}
    ends = {"x": scale.x("low"), "x2": {"field": "high"}, "y": placed("y"), "y2": {"field": "y2"}}
    return [layer(values, {"type": "rect", "aria": False, **inner}, **ends)] if values else []


def _ticks(
    rows: _BarRows, scale: _Scale, marks: Marks, thick: int = _BAR, top: int = _TOP
) -> list[Any]:
    values = [
        {
            "x": tick.number.value,
            "y": at + top - 2,
            "y2": at + top + 2 + thick,
            "ink": INKS[tick.ink][0],
            "mark": marks.add(tick.tip, tick.number),
        }
        for row, at in rows
        for tick in row.ticks
    ]
    place = {"x": scale.x("x"), "y": placed("y"), "y2": {"field": "y2"}}
    rule = {"type": "rule", "strokeWidth": 2}
    return [layer(values, rule, **place, color=inked(), description=MARK)] if values else []


def _texts(rows: _BarRows, scale: _Scale, marks: Marks, width: float, beside: bool) -> list[Any]:
    """The value and what changed: after the bar, or at the right edge of its name's line."""
    bold, light = [], []
    for row, at in rows:
        x = _extent(row) / scale.end * width + 8 if beside else width
        y = at + _TOP + _BAR / 2 if beside else at + 8
        step = BOLD * len(plain(row.value)) + 10
        if row.value:
            bold.append({"x": x, "y": y, **_said(row.value, "ink", marks)})
            x += step if beside else -step
        if row.change:
            light.append({"x": x, "y": y, **_said(row.change, row.tone, marks)})
    spoken = {"type": "text", "align": "left" if beside else "right", "baseline": "middle"}
    channels = {"x": placed("x"), "y": placed("y"), "text": TEXT, "color": inked()}
    return [
        layer(values, {**spoken, "fontWeight": weight}, **channels, description=MARK)
        for values, weight in ((bold, 600), (light, 400))
        if values
    ]


def _said(phrase: Phrase, ink: str, marks: Marks) -> dict[str, str]:
    """A phrase as a mark of text, with its number where it has one."""
    text = plain(phrase)
    shown = next((part for part in phrase if isinstance(part, Number)), None)
    return {"text": text, "ink": INKS[ink][0], "mark": marks.add(text, shown)}


_LIST_PITCH, _LIST_BAR = 34, 7


def listing(
    rows: Sequence[Bar], width: int, marks: Marks, entries: Sequence[LegendEntry] = ()
) -> dict[str, Any]:
    """Thin bars under lines of text, the values at the right edge: for many rows."""
    across = width - RIGHT - 1
    longest = max((_extent(row) for row in rows), default=0.0) or 1.0
    scale = _Scale(longest, None)
    stood = [(row, i * _LIST_PITCH - 4) for i, row in enumerate(rows)]
    # a column for each, so that values stand under one another
    column = LETTER * max(len(plain(row.change)) for row in rows) + 14
    taken = column + LETTER * max(len(plain(row.value)) for row in rows) + 14
    names, values = [], []
    for row, at in stood:
        letters = int((across - taken) / LETTER)
        names.append({"x": 0, "y": at + 13, "text": shorten(row.name, letters)})
        for phrase, ink, x in (
            (row.change, "muted", across),
            (row.value, "ink", across - column),
        ):
            if phrase:
                values.append({"x": x, "y": at + 13, **_said(phrase, ink, marks)})
    place = {"x": placed("x"), "y": placed("y"), "text": TEXT}
    right = {"type": "text", "align": "right", "baseline": "middle"}
    layers = [
        *_stretches(stood, scale, marks, _LIST_BAR, 24),
        layer(names, _WORDS, **place),
        layer(values, right, **place, color=inked(), description=MARK),
        *_ticks(stood, scale, marks, _LIST_BAR, 24),
    ]
    return framed(layers, width, _LIST_PITCH * len(rows), entries=entries)
