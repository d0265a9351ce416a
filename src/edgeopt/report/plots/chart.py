"""What every chart is made of: its colours, its two widths, its marks, and how it is drawn.

A chart is described in Vega-Lite and drawn to static SVG by vl-convert, without a browser: it
needs no script, prints, and scales. The description is written as Vega-Lite's own mappings;
building them with Altair takes several times as long as drawing them. It is drawn twice for a page,
because a chart made for a desk has letters too small for a phone. Colours are written as the light
scheme's; a page replaces each by the CSS variable of its name (:data:`INKS`), and has a dark scheme
too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from edgeopt.errors import MissingExtraError
from edgeopt.report.numbers import Number, scale_of, shorten

__all__ = [
    "BOLD",
    "BOTTOM",
    "INKS",
    "LEFT",
    "LETTER",
    "MARK",
    "NARROW",
    "RIGHT",
    "TEXT",
    "TOP",
    "WIDE",
    "Chart",
    "LegendEntry",
    "Mark",
    "Marks",
    "axes",
    "axis_format",
    "framed",
    "inked",
    "layer",
    "placed",
    "subject_inks",
    "vl_convert",
]

WIDE, NARROW = 736, 328

#: Colours by name: (light, dark). Every light one is the value of one name only, so that it can
#: be recognised. Marks stand out by 3:1 from their background, letters by 4.5:1.
INKS: Mapping[str, tuple[str, str]] = {
    "ink": ("#1b1f24", "#e9ecf0"),
    "muted": ("#59616c", "#a7b0bb"),
    "rule": ("#d9dde2", "#3a414b"),
    "paper": ("#fefefe", "#16191e"),
    "good": ("#146c43", "#5fcf97"),
    "bad": ("#b3261e", "#ff8f85"),
    "base": ("#858f9b", "#8b95a1"),
    "s1": ("#2060c8", "#6ea4ff"),
    "s2": ("#c65d00", "#ffa24d"),
    "s3": ("#0b8061", "#3fc9a0"),
    "s4": ("#8a3fc0", "#c690f5"),
    "s5": ("#bf2f6b", "#ff86b3"),
    "s6": ("#71701b", "#c9c75a"),
    "k1": ("#7d8793", "#8792a0"),
    "k2": ("#2f8a8f", "#4fb3b8"),
    "k3": ("#3a78d6", "#5b95f0"),
    "k4": ("#c96a0a", "#f0913a"),
    "k5": ("#8b5cc7", "#b48cf0"),
}

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Mark:
    """What one mark stands for: words for whoever points at it, and the number it draws."""

    tip: str
    number: Number | None


@dataclass
class Marks:
    """The marks of a chart, which Vega carries through as descriptions: "#7" is the seventh."""

    known: list[Mark] = field(default_factory=list)

    def add(self, tip: str, number: Number | None = None) -> str:
        """The description for a mark."""
        self.known.append(Mark(tip, number))
        return f"#{len(self.known) - 1}"


@dataclass(frozen=True)
class Chart:
    """One chart. ``name`` is its file's and its place's; ``alternative`` says in words what it
    shows; ``draw`` makes its specification for a width in pixels, and enters its marks;
    ``conditions`` are those of all of it; ``section`` is the part of the report it belongs to."""

    name: str
    title: str
    alternative: str
    draw: Callable[[int, Marks], dict[str, Any]]
    caption: str = ""
    conditions: tuple[Any, ...] | None = None
    section: str = ""


def vl_convert() -> ModuleType:
    """The drawing half of the extra, or MissingExtraError."""
    try:
        import vl_convert
    except ImportError:
        raise MissingExtraError("vl-convert-python", "report", "drawing charts") from None
    return vl_convert


def subject_inks(names: Sequence[str], baseline: str) -> dict[str, str]:
    """The ink of every subject: the baseline is grey, so that what is compared stands out."""
    hues = [name for name in INKS if name.startswith("s")]
    others = [name for name in names if name != baseline] or list(names)
    inks = {name: hues[i % len(hues)] for i, name in enumerate(others)}
    return {name: inks.get(name, "base") for name in names}


@dataclass(frozen=True)
class LegendEntry:
    """One line of a legend. ``shape``: "square", "circle", "ring", "stroke" (upright) or "dash"."""

    words: str
    ink: str
    shape: str = "square"


#: Pixels of a letter of 13 pixels on the average, and of a bold one, in the widest of the letters
#: that a machine may have: what is drawn one after the other must not meet.
LETTER, BOLD = 7.6, 8.8

_LINE = 20


def layer(values: Sequence[Mapping[str, Any]], mark: Mapping[str, Any], **encoding: Any) -> Any:
    """One layer of marks: its data, its mark, its channels."""
    return {"data": {"values": list(values)}, "mark": dict(mark), "encoding": encoding}


def placed(field: str) -> dict[str, Any]:
    """A channel in pixels of the plot."""
    return {"field": field, "type": "quantitative", "scale": None, "axis": None}


def inked(field: str = "ink") -> dict[str, Any]:
    """A channel of colours that the data names."""
    return {"field": field, "type": "nominal", "scale": None, "legend": None}


#: The channel of words, and that of what a mark stands for.
TEXT = {"field": "text", "type": "nominal"}
MARK = {"field": "mark", "type": "nominal"}


def _legend(entries: Sequence[LegendEntry], width: float, left: float) -> tuple[list[Any], float]:
    """Layers that say what is what, in lines over the chart's top edge, and their height.

    Ours rather than Vega's, because that one does not break its lines.
    """
    x, line = left, 0
    symbols: list[dict[str, Any]] = []
    words: list[dict[str, Any]] = []
    for entry in entries:
        text = shorten(entry.words, int((width - 24) / LETTER))
        long = LETTER * len(text) + 36
        if x > left and x + long > left + width:
            x, line = left, line + 1
        ink = INKS[entry.ink][0]
        filled = ink if entry.shape != "ring" else INKS["paper"][0]
        symbols.append(
            {"x": x + 7, "line": line, "ink": ink, "fill": filled, "shape": _SHAPES[entry.shape]}
        )
        words.append({"x": x + 20, "line": line, "text": text})
        x += long
    if not entries:
        return [], 0.0
    above = _LINE * (line + 1) + 10.0
    for value in (*symbols, *words):
        value["y"] = value["line"] * _LINE + 10 - above
    place = {"x": placed("x"), "y": placed("y")}
    point = {"type": "point", "size": 100, "opacity": 1, "strokeWidth": 2, "aria": False}
    letters = {"type": "text", "align": "left", "baseline": "middle", "aria": False}
    shape = {"field": "shape", "type": "nominal", "scale": None, "legend": None}
    return [
        layer(symbols, point, **place, stroke=inked(), fill=inked("fill"), shape=shape),
        layer(words, letters, **place, text=TEXT),
    ], above


_SHAPES = {
    "square": "square",
    "circle": "circle",
    "ring": "circle",
    "stroke": "M0,-0.8L0,0.8",
    "dash": "M-0.7,-0.18L0.7,-0.18L0.7,0.18L-0.7,0.18Z",
}

#: Pixels for the labels of an axis, at the left and below; above, for y's title; and at the right
#: edge, for half of the last label.
LEFT, BOTTOM, TOP, RIGHT = 50, 46, 28, 14


def framed(
    layers: Sequence[Any],
    width: int,
    height: int,
    *,
    entries: Sequence[LegendEntry] = (),
    left: int = 1,
    bottom: int = 2,
    top: int = 2,
) -> dict[str, Any]:
    """The Vega-Lite specification of layers, exactly ``width`` wide: the plot's own pixels are
    known before it is drawn, so that labels can be placed."""
    said, above = _legend(entries, width - RIGHT - 1, 1.0 - left)
    for value in (value for part in said for value in part["data"]["values"]):
        value["y"] -= top
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": width - left - RIGHT,
        "height": height,
        "autosize": "none",
        "padding": {"left": left, "right": RIGHT, "top": top + above, "bottom": bottom},
        "background": INKS["paper"][0],
        "layer": [*layers, *said],
        "config": _CONFIG,
    }


def axes(x: Mapping[str, Any], y: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Axes whose titles are read without turning one's head: x's below, y's above."""
    upright = {"titleAngle": 0, "titleAlign": "left", "titleX": 1 - LEFT, "titleY": -14}
    return (
        {"titleAnchor": "start", "grid": False, **x},
        {**upright, "titleAnchor": "start", "grid": True, **y},
    )


def axis_format(largest: float, unit: str, title: str = "") -> dict[str, Any]:
    """An axis of few round numbers in a unit that fits: 0.004 s is labelled 4, its title ms."""
    factor, name = scale_of(largest, unit)
    return {
        "labelExpr": f"format(datum.value / {factor!r}, ',~r')",
        "title": f"{title}, {name}" if title and name else title or name or None,
        "tickCount": 5,
    }


_CONFIG: Mapping[str, Any] = {
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": INKS["muted"][0],
        "titleColor": INKS["muted"][0],
        "gridColor": INKS["rule"][0],
        "domain": False,
        "ticks": False,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelPadding": 6,
        "titlePadding": 8,
    },
    "text": {"color": INKS["ink"][0], "fontSize": 13},
}
