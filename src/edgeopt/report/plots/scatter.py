"""File size against latency, what nothing beats filled in; beside each point how well its task is
done, else how close it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgeopt.report.document import Document
from edgeopt.report.numbers import Number, Phrase, plain, shorten
from edgeopt.report.pareto import Point, compared_in, points
from edgeopt.report.plots.chart import (
    BOLD,
    BOTTOM,
    INKS,
    LEFT,
    LETTER,
    MARK,
    RIGHT,
    TEXT,
    TOP,
    Chart,
    LegendEntry,
    Marks,
    axes,
    axis_format,
    framed,
    inked,
    layer,
    placed,
    subject_inks,
)

__all__ = ["scatter"]

_HEIGHT = 280
_LINE = 15.0

#: More points than this are labelled only where they are on the front.
_MOST_LABELS = 10


def scatter(document: Document) -> Iterator[Chart]:
    """One chart where there are two artifacts or more to put in it."""
    found = points(document)
    if len(found) < 2:
        return
    inks = subject_inks(document.names, document.baseline)
    pairing = compared_in(document)

    def draw(width: int, marks: Marks) -> dict[str, Any]:
        return _drawn(found, inks, width, marks)

    said = "; ".join(
        f"{p.name}: {_detail(p)}, {'on' if p.front else 'not on'} the Pareto front" for p in found
    )
    yield Chart(
        "scatter",
        "File size and latency",
        f"File size against latency, p50. {said}.",
        draw,
        "on the front: no other is as small, as fast and as close, and better in one of them; "
        "latencies whose intervals meet count as the same",
        pairing,
        "trade",
    )


def _detail(point: Point) -> str:
    shown = [point.size.text, point.latency.text, plain(point.task), plain(point.words)]
    return ", ".join(text for text in shown if text)


def _beside(point: Point) -> Phrase:
    return point.task or point.words


@dataclass(frozen=True)
class _Label:
    """Where a label stands: its anchor in pixels, and its box."""

    align: str
    x: float
    y: float
    box: tuple[float, float, float, float]


def _drawn(
    found: Sequence[Point], inks: dict[str, str], width: int, marks: Marks
) -> dict[str, Any]:
    across, down = width - LEFT - RIGHT, _HEIGHT
    x_end = 1.12 * max(p.size.value for p in found)
    y_end = 1.12 * max(p.high for p in found)
    values = []
    for p in found:
        tip = f"{p.name}: {_detail(p)}" + (" (on the Pareto front)" if p.front else "")
        ink = INKS[inks[p.name]][0]
        values.append(
            {
                "size": p.size.value,
                "latency": p.latency.value,
                "ink": ink,
                "fill": ink if p.front else INKS["paper"][0],
                "mark": marks.add(tip, p.latency),
            }
        )
    x, y = axes(
        {**axis_format(x_end, "B", "file size"), "grid": True, "tickCount": across // 90},
        axis_format(y_end, "s", "latency, p50"),
    )
    dots = layer(
        values,
        {"type": "point", "size": 150, "strokeWidth": 2.5, "opacity": 1},
        x=_on("size", x_end, x),
        y=_on("latency", y_end, y),
        stroke=inked(),
        fill=inked("fill"),
        description=MARK,
    )
    named = found if len(found) <= _MOST_LABELS else [p for p in found if p.front]
    labels = _labels(named, across, down, x_end, y_end)
    layers = [dots, *_texts(named, labels, across, marks)]
    return framed(layers, width, down, entries=_ENTRIES, left=LEFT, bottom=BOTTOM, top=TOP)


def _on(field: str, end: float, axis: dict[str, Any]) -> dict[str, Any]:
    scale = {"domain": [0, end], "nice": False}
    return {"field": field, "type": "quantitative", "axis": axis, "scale": scale}


_ENTRIES = (
    LegendEntry("on the Pareto front", "muted", "circle"),
    LegendEntry("beaten by another", "muted", "ring"),
)


def _labels(
    found: Sequence[Point],
    across: float,
    down: float,
    x_end: float,
    y_end: float,
) -> list[_Label]:
    """A place beside each point where its label hits neither a point, another label nor the edge;
    where there is none, the place that hits least."""
    centres = [(p.size.value / x_end * across, (1 - p.latency.value / y_end) * down) for p in found]
    taken = [(x - 9, y - 9, x + 9, y + 9) for x, y in centres]
    labels: list[_Label] = []
    for point, (x, y) in zip(found, centres, strict=True):
        name = shorten(point.name, _letters(across))
        wide, high = max(BOLD * len(name), LETTER * len(plain(_beside(point)))), 2 * _LINE
        places = [
            _Label("left", x + 13, y, (x + 13, y - high / 2, x + 13 + wide, y + high / 2)),
            _Label("right", x - 13, y, (x - 13 - wide, y - high / 2, x - 13, y + high / 2)),
            _Label("center", x, y - 27, (x - wide / 2, y - 27 - _LINE, x + wide / 2, y - 12)),
            _Label("center", x, y + 27, (x - wide / 2, y + 12, x + wide / 2, y + 27 + _LINE)),
            _Label("left", x - 9, y - 27, (x - 9, y - 27 - _LINE, x - 9 + wide, y - 12)),
            _Label("right", x + 9, y - 27, (x + 9 - wide, y - 27 - _LINE, x + 9, y - 12)),
            _Label("left", x - 9, y + 27, (x - 9, y + 12, x - 9 + wide, y + 27 + _LINE)),
            _Label("right", x + 9, y + 27, (x + 9 - wide, y + 12, x + 9, y + 27 + _LINE)),
        ]
        frame = (-LEFT / 2, -6.0, across + RIGHT, down)
        best = min(places, key=lambda place: _cost(place.box, taken, frame))
        labels.append(best)
        taken.append(best.box)
    return labels


def _letters(across: float) -> int:
    return int(0.55 * across / BOLD)


def _cost(
    box: tuple[float, float, float, float],
    taken: Sequence[tuple[float, float, float, float]],
    frame: tuple[float, float, float, float],
) -> float:
    """Square pixels that a box shares with others, and pixels that it sticks out."""
    overlap = sum(
        max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
        * max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
        for other in taken
    )
    outside = (
        max(0.0, frame[0] - box[0])
        + max(0.0, frame[1] - box[1])
        + max(0.0, box[2] - frame[2])
        + max(0.0, box[3] - frame[3])
    )
    return overlap + 100.0 * outside


def _texts(
    found: Sequence[Point], labels: Sequence[_Label], across: float, marks: Marks
) -> list[Any]:
    """A name and below it how well the artifact does its task, or how close it is."""
    layers = []
    # first as a broad stroke of the paper, which keeps the grid off the letters
    under = {"stroke": INKS["paper"][0], "strokeWidth": 4, "strokeJoin": "round", "aria": False}
    for align, second in itertools.product(("left", "right", "center"), (False, True)):
        values = []
        for p, label in zip(found, labels, strict=True):
            name = plain(_beside(p)) if second else shorten(p.name, _letters(across))
            if label.align == align and name:
                shown = next((part for part in _beside(p) if isinstance(part, Number)), None)
                mark = marks.add(name, shown if second else None)
                y = label.y + (8 if second else -8)
                values.append({"x": label.x, "y": y, "text": name, "mark": mark})
        text = {
            "type": "text",
            "align": align,
            "baseline": "middle",
            "color": INKS["muted" if second else "ink"][0],
            "fontWeight": 400 if second else 600,
        }
        place = {"x": placed("x"), "y": placed("y"), "text": TEXT}
        if values:
            layers.append(layer(values, {**text, **under}, **place))
            layers.append(layer(values, text, **place, description=MARK))
    return layers
