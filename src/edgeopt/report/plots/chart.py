"""What every chart is made of: its colours, its two widths, its marks, and how it is drawn.

A chart is described in Vega-Lite (by Altair) and drawn to static SVG without a browser: it needs
no script, prints, and scales. It is drawn twice for a page, because a chart made for a desk has
letters too small for a phone. Colours are written as the light scheme's; a page replaces each by
the CSS variable of its name (:data:`INKS`), and has a dark scheme too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from edgeopt.errors import MissingExtraError
from edgeopt.report.numbers import Number, scale_of

__all__ = [
    "BOTTOM",
    "INKS",
    "LEFT",
    "LETTER",
    "NARROW",
    "RIGHT",
    "TOP",
    "WIDE",
    "Chart",
    "Entry",
    "Mark",
    "Marks",
    "altair",
    "axes",
    "axis_format",
    "framed",
    "legend",
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
    "k1": ("#8d97a4", "#7c8794"),
    "k2": ("#b9c2cc", "#525c68"),
    "k3": ("#3a78d6", "#5b95f0"),
    "k4": ("#d4740f", "#f0913a"),
    "k5": ("#3c9a7e", "#4fc7a2"),
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
    shows; ``draw`` makes its Altair chart for a width in pixels, and enters its marks."""

    name: str
    title: str
    alternative: str
    draw: Callable[[int, Marks], Any]
    caption: str = ""


def altair() -> ModuleType:
    """Altair, or MissingExtraError: it comes with an extra."""
    try:
        import altair
    except ImportError:
        raise MissingExtraError("altair", "report", "drawing charts") from None
    return altair


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
    others = [name for name in names if name != baseline]
    inks = {name: hues[i % len(hues)] for i, name in enumerate(others)}
    return {name: inks.get(name, "base") for name in names}


@dataclass(frozen=True)
class Entry:
    """One line of a legend. ``shape``: "square", "circle", "ring", "stroke" (upright) or "dash"."""

    words: str
    ink: str
    shape: str = "square"


#: Pixels of a letter of 13 pixels on the average, on the safe side.
LETTER = 6.9

_LINE = 20


def legend(entries: Sequence[Entry], width: float, left: float = 0.0) -> tuple[list[Any], float]:
    """Layers that say what is what, in lines over the chart's top edge, and their height.

    Ours rather than Vega's, because that one does not break its lines.
    """
    alt = altair()
    x, line = left, 0
    symbols, words = [], []
    for entry in entries:
        long = LETTER * len(entry.words) + 34
        if x > left and x + long > left + width:
            x, line = left, line + 1
        ink = INKS[entry.ink][0]
        filled = ink if entry.shape != "ring" else INKS["paper"][0]
        symbols.append(
            {"x": x + 7, "line": line, "ink": ink, "fill": filled, "shape": _SHAPES[entry.shape]}
        )
        words.append({"x": x + 20, "line": line, "text": entry.words})
        x += long
    height = _LINE * (line + 1) if entries else 0
    for value in (*symbols, *words):
        value["y"] = value["line"] * _LINE - height - 6
    place = {"x": alt.X("x:Q", scale=None), "y": alt.Y("y:Q", scale=None)}
    if not entries:
        return [], 0.0
    return [
        alt.Chart(alt.Data(values=symbols))
        .mark_point(size=100, opacity=1, strokeWidth=2, aria=False)
        .encode(
            **place,
            stroke=alt.Stroke("ink:N", scale=None),
            fill=alt.Fill("fill:N", scale=None),
            shape=alt.Shape("shape:N", scale=None),
        ),
        alt.Chart(alt.Data(values=words))
        .mark_text(align="left", baseline="middle", aria=False)
        .encode(**place, text="text:N"),
    ], height + 6.0


_SHAPES = {
    "square": "square",
    "circle": "circle",
    "ring": "circle",
    "stroke": "M0,-0.8L0,0.8",
    "dash": "M-0.7,-0.18L0.7,-0.18L0.7,0.18L-0.7,0.18Z",
}


def framed(
    layers: Sequence[Any],
    width: int,
    height: int,
    *,
    entries: Sequence[Entry] = (),
    left: int = 1,
    bottom: int = 2,
    top: int = 4,
) -> dict[str, Any]:
    """The Vega-Lite specification of layers, exactly ``width`` wide: the plot's own pixels are
    known before it is drawn, so that labels can be placed."""
    across = width - left - RIGHT
    said, above = legend(entries, width - RIGHT - 1, 1.0 - left)
    if said and top > 4:
        # the axis title stands between the legend and the plot
        said = [layer.transform_calculate(y=f"datum.y - {top - 8}") for layer in said]
    chart = altair().layer(*layers, *said)
    specification = _styled(chart, across, height)
    specification["autosize"] = "none"
    specification["padding"] = {"left": left, "right": RIGHT, "top": top + above, "bottom": bottom}
    return specification


#: Pixels at the right edge, for half of the last label of an axis.
RIGHT = 14


def axes(x: Mapping[str, Any], y: Mapping[str, Any]) -> tuple[Any, Any]:
    """Axes whose titles are read without turning one's head: x's below, y's above."""
    alt = altair()
    return (
        alt.Axis(**{"titleAnchor": "start", "grid": False, **x}),
        alt.Axis(
            **{
                "titleAngle": 0,
                "titleAlign": "left",
                "titleX": 1 - LEFT,
                "titleY": -14,
                "titleAnchor": "start",
                **y,
            }
        ),
    )


#: Pixels for the labels of an axis, at the left and below; and above, for y's title.
LEFT, BOTTOM, TOP = 50, 46, 24


def axis_format(largest: float, unit: str, title: str = "") -> dict[str, Any]:
    """An axis of few round numbers in a unit that fits: 0.004 s is labelled 4, its title ms."""
    factor, name = scale_of(largest, unit)
    return {
        "labelExpr": f"format(datum.value / {factor!r}, ',~r')",
        "title": f"{title}, {name}" if title and name else title or name or None,
        "tickCount": 5,
    }


def _styled(chart: Any, width: float, height: float) -> dict[str, Any]:
    light = {name: pair[0] for name, pair in INKS.items()}
    styled = chart.properties(width=width, height=height, background=light["paper"]).configure(
        font=FONT,
        view={"stroke": None},
        axis={
            "labelColor": light["muted"],
            "titleColor": light["muted"],
            "gridColor": light["rule"],
            "domain": False,
            "ticks": False,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "labelPadding": 6,
            "titlePadding": 8,
        },
        text={"color": light["ink"], "fontSize": 13},
    )
    specification: dict[str, Any] = styled.to_dict()
    return specification
