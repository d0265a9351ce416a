"""Horizontal bars from zero, a name above each: they read the same on a desk and on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgeopt.report.numbers import Number, Phrase, plain, scale_of, shorten
from edgeopt.report.plots.chart import (
    INKS,
    LETTER,
    RIGHT,
    Entry,
    Marks,
    altair,
    axis_format,
    framed,
)

__all__ = ["Bar", "Part", "bars", "listing"]

_PITCH, _HEADING, _BAR = 46, 34, 16

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


def bars(
    rows: Sequence[Bar],
    width: int,
    marks: Marks,
    unit: str,
    *,
    axis: bool = False,
    entries: Sequence[Entry] = (),
) -> Any:
    """The specification of bars on a common scale that starts at zero."""
    placed, height = _placed(rows)
    across = width - RIGHT - 1
    room = max((LETTER * len(_after(row)) + 16 for row in rows), default=0.0)
    room = min(room, 0.62 * across)
    longest = max((_extent(row) for row in rows), default=0.0) or 1.0
    domain = [0.0, longest * across / (across - room)]
    shown = None
    if axis:
        grid = {**axis_format(longest, unit), "title": None, "values": _round_ticks(longest)}
        name = scale_of(longest, unit)[1]
        grid["labelExpr"] += f" + (datum.value > 0 ? ' {name}' : '')"
        shown = altair().Axis(**grid, grid=True)
    scale = _Scale(domain, shown)
    layers = [
        _stretches(placed, scale, marks),
        _names(placed, across),
        _intervals(placed, scale),
        _ticks(placed, scale, marks),
        _texts(placed, scale, marks, across),
    ]
    drawn = [layer for layer in layers if layer is not None]
    return framed(drawn, width, height, entries=entries, bottom=24 if axis else 2)


@dataclass(frozen=True)
class _Scale:
    """The one scale of all the bars, and its axis."""

    domain: list[float]
    axis: Any

    def x(self, field: str) -> Any:
        alt = altair()
        scale = alt.Scale(domain=self.domain, nice=False, zero=True)
        return alt.X(f"{field}:Q", scale=scale, axis=self.axis)


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


def _y(field: str = "y") -> Any:
    return altair().Y(f"{field}:Q", scale=None, axis=None)


def _stretches(
    placed: Sequence[tuple[Bar, int]], scale: _Scale, marks: Marks, thick: int = _BAR, top: int = 20
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
                    "y": at + top,
                    "y2": at + top + thick,
                    "ink": INKS[part.ink][0],
                    "mark": marks.add(part.tip, part.number),
                }
            )
            start = end
    layer = _layer(values)
    if layer is None:
        return None
    return layer.mark_rect(cornerRadius=2).encode(
        x=scale.x("start"),
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


def _names(placed: Sequence[tuple[Bar, int]], width: float) -> Any:
    letters = int(width / LETTER)
    names = [
        {"x": 0, "y": at + 8, "text": shorten(row.name, letters), "ink": INKS["ink"][0]}
        for row, at in placed
    ]
    headings = [
        {"x": 0, "y": at - 15, "text": shorten(row.heading, letters), "ink": INKS["muted"][0]}
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


def _intervals(placed: Sequence[tuple[Bar, int]], scale: _Scale) -> Any:
    values = [
        {
            "low": row.low.value,
            "high": row.high.value,
            "y": at + 20 + _BAR / 2 - 1.5,
            "y2": at + 20 + _BAR / 2 + 1.5,
        }
        for row, at in placed
        if row.low is not None and row.high is not None
    ]
    layer = _layer(values)
    if layer is None:
        return None
    return layer.mark_rect(
        color=INKS["ink"][0], stroke=INKS["paper"][0], strokeWidth=1, aria=False
    ).encode(x=scale.x("low"), x2="high:Q", y=_y(), y2="y2:Q")


def _ticks(
    placed: Sequence[tuple[Bar, int]], scale: _Scale, marks: Marks, thick: int = _BAR, top: int = 20
) -> Any:
    alt = altair()
    values = [
        {
            "x": tick.number.value,
            "y": at + top - 2,
            "y2": at + top + 2 + thick,
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
        x=scale.x("x"),
        y=_y(),
        y2="y2:Q",
        color=alt.Color("ink:N", scale=None),
        description="mark:N",
    )


def _texts(placed: Sequence[tuple[Bar, int]], scale: _Scale, marks: Marks, width: float) -> Any:
    """The value at the end of each bar, and after it what changed."""
    alt = altair()
    values = []
    for row, at in placed:
        x = _extent(row) / scale.domain[1] * width + 8
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
            x += LETTER * len(text) + 8
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




_LIST_PITCH, _LIST_BAR = 34, 7


def listing(rows: Sequence[Bar], width: int, marks: Marks, entries: Sequence[Entry] = ()) -> Any:
    """Thin bars under lines of text, the values at the right edge: for many rows."""
    alt = altair()
    across = width - RIGHT - 1
    longest = max((_extent(row) for row in rows), default=0.0) or 1.0
    scale = _Scale([0.0, longest], None)
    placed = [(row, i * _LIST_PITCH - 4) for i, row in enumerate(rows)]
    names, values = [], []
    for row, at in placed:
        said = _after(row)
        names.append(
            {"x": 0, "y": at + 13, "text": shorten(row.name, int(across / LETTER) - len(said) - 2)}
        )
        x = float(across)
        for phrase, ink in ((row.change, "muted"), (row.value, "ink")):
            if text := plain(phrase):
                number = next((part for part in phrase if isinstance(part, Number)), None)
                mark = marks.add(text, number)
                values.append(
                    {"x": x, "y": at + 13, "text": text, "ink": INKS[ink][0], "mark": mark}
                )
            # a column for each, so that values stand under one another
            x -= LETTER * max(len(plain(r.change)) for r in rows) + 14
    place = {"x": alt.X("x:Q", scale=None, axis=None), "y": _y(), "text": "text:N"}
    layers = [
        _stretches(placed, scale, marks, _LIST_BAR, 24),
        _layer(names).mark_text(align="left", baseline="middle", aria=False).encode(**place),
        _layer(values)
        .mark_text(align="right", baseline="middle")
        .encode(**place, color=alt.Color("ink:N", scale=None), description="mark:N"),
        _ticks(placed, scale, marks, _LIST_BAR, 24),
    ]
    drawn = [layer for layer in layers if layer is not None]
    return framed(drawn, width, _LIST_PITCH * len(rows), entries=entries)
