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
from edgeopt.report.numbers import Number

__all__ = [
    "INKS",
    "NARROW",
    "WIDE",
    "Chart",
    "Marks",
    "altair",
    "finished",
    "subject_inks",
    "vl_convert",
]

WIDE, NARROW = 720, 328

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


def finished(chart: Any, width: int, height: int | None = None) -> dict[str, Any]:
    """The Vega-Lite specification of an Altair chart, exactly ``width`` wide, letters and all."""
    light = {name: pair[0] for name, pair in INKS.items()}
    sized = chart.properties(
        width=width,
        autosize={"type": "fit-x", "contains": "padding"},
        padding={"left": 1, "right": 1, "top": 4, "bottom": 2},
        background=light["paper"],
        **({} if height is None else {"height": height}),
    )
    styled = sized.configure(
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
        legend={
            "labelColor": light["ink"],
            "labelFontSize": 13,
            "symbolType": "square",
            "symbolSize": 120,
            "symbolStrokeWidth": 0,
            "orient": "top",
            "title": None,
            "labelLimit": width - 40,
            "offset": 10,
            "rowPadding": 4,
            "columnPadding": 18,
        },
        text={"color": light["ink"], "fontSize": 13},
    )
    specification: dict[str, Any] = styled.to_dict()
    return specification
