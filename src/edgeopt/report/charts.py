"""Every chart of a document, drawn: as pieces of a page, or as PNG and SVG files."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from edgeopt.core import Results
from edgeopt.errors import OutputError, UsageError
from edgeopt.files.atomic import writing
from edgeopt.numerics.derive import Derived
from edgeopt.report.document import Document, conditions_words
from edgeopt.report.numbers import printable
from edgeopt.report.plots.amounts import latency, loading, memory, sizes
from edgeopt.report.plots.chart import INKS, WIDE, Chart, Mark, Marks, vl_convert
from edgeopt.report.plots.distribution import distributions
from edgeopt.report.plots.layers import errors, layers
from edgeopt.report.plots.scatter import scatter

__all__ = ["FORMATS", "charts", "page_svg", "write_charts"]

#: What is drawn, in the order of the report.
_KINDS: tuple[Callable[[Document], Iterator[Chart]], ...] = (
    sizes,
    latency,
    distributions,
    scatter,
    loading,
    memory,
    layers,
    errors,
)

_SVG = "http://www.w3.org/2000/svg"

#: Pixels of a PNG for each of the chart's.
_SCALE = 2.0
_MARGIN = 16


def charts(document: Document) -> tuple[Chart, ...]:
    """The charts that the document has something for; nothing is drawn yet."""
    return tuple(chart for kind in _KINDS for chart in kind(document))


def write_charts(results: Results, derived: Derived, folder: Path, fmt: str = "svg") -> list[Path]:
    """Draw every chart into ``folder`` (made where it is missing) as "svg" or "png"; the files.

    Raises UsageError for another format, OutputError where a file cannot be written, and
    MissingExtraError without the extra ``report``.
    """
    if fmt not in FORMATS:
        raise UsageError(f"charts as {fmt}; use {' or '.join(FORMATS)}")
    vl_convert()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}; give another folder") from error
    written = []
    for chart in charts(Document(results, derived)):
        path = folder / f"{chart.name}.{fmt}"
        marks = Marks()
        specification = chart.draw(WIDE, marks)
        drawn = FORMATS[fmt](_titled(specification, chart), chart, marks)
        with writing(path) as temporary:
            temporary.write_bytes(drawn)
        written.append(path)
    return written


def _titled(specification: dict[str, Any], chart: Chart) -> dict[str, Any]:
    """With its title and caption over it, and a margin: a file of its own has no page around it."""
    conditions = conditions_words(chart.conditions) if chart.conditions else ""
    padding = {side: pixels + _MARGIN for side, pixels in specification["padding"].items()}
    above = padding["top"]
    title = {
        "text": f"{chart.title}: {conditions}" if conditions else chart.title,
        "subtitle": textwrap.wrap(chart.caption, 96),
        "anchor": "start",
        "frame": "group",
        "dx": _MARGIN - padding["left"] + 1,
        "offset": 10,
        "fontSize": 17,
        "subtitleFontSize": 13,
        "subtitleColor": INKS["muted"][0],
        "subtitlePadding": 6,
        "color": INKS["ink"][0],
    }
    padding["top"] = above + 36 + 18 * len(title["subtitle"])
    return {**specification, "title": title, "padding": padding}


def _png(specification: dict[str, Any], chart: Chart, marks: Marks) -> bytes:
    drawn: bytes = vl_convert().vegalite_to_png(_drawable(specification), scale=_SCALE)
    return drawn


def _svg(specification: dict[str, Any], chart: Chart, marks: Marks) -> bytes:
    """A file of its own: its title and its words in it, for whoever cannot see it."""
    root = _tree(specification)
    for element, mark in _described(root, marks):
        element.set("aria-label", printable(mark.tip))
    root.set("role", "img")
    root.set("aria-label", printable(chart.alternative))
    title = ElementTree.Element(f"{{{_SVG}}}title")
    title.text = printable(chart.title)
    root.insert(0, title)
    drawn: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return drawn


FORMATS: Mapping[str, Callable[[dict[str, Any], Chart, Marks], bytes]] = {"svg": _svg, "png": _png}


def page_svg(chart: Chart, width: int) -> str:
    """The chart as an element of an HTML page: colours by variable, and each mark with what it
    stands for (``data-tip``) and the number that it draws (``data-key``, ``data-value``)."""
    marks = Marks()
    root = _tree(chart.draw(width, marks))
    for element, mark in _described(root, marks):
        del element.attrib["aria-label"]
        if mark.number is not None:
            element.set("data-key", mark.number.key)
            element.set("data-value", repr(float(mark.number.value)))
            element.set("data-shape", mark.number.shape)
        if not element.tag.endswith("text"):
            element.set("data-tip", printable(mark.tip))
    for element in root.iter():
        _themed(element)
    root.set("aria-hidden", "true")
    root.set("focusable", "false")
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode")


def _tree(specification: dict[str, Any]) -> ElementTree.Element:
    text = vl_convert().vegalite_to_svg(_drawable(specification))
    # what vl-convert draws is its own, not a stranger's: names are escaped in it
    return ElementTree.fromstring(text)


def _drawable(value: Any) -> Any:
    """Without the characters that XML has no room for: vl-convert aborts the process on them."""
    if isinstance(value, dict):
        return {key: _drawable(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_drawable(member) for member in value]
    return printable(value) if isinstance(value, str) and not value.isprintable() else value


def _described(
    root: ElementTree.Element, marks: Marks
) -> Iterator[tuple[ElementTree.Element, Mark]]:
    for element in root.iter():
        label = element.get("aria-label", "")
        if re.fullmatch(r"#\d+", label):
            yield element, marks.known[int(label[1:])]


_VARIABLES = {pair[0]: f"var(--{name})" for name, pair in INKS.items()}

#: What assistive technology need not hear of the parts of a picture that is described in words.
_SPOKEN = ("role", "aria-roledescription", "aria-label", "aria-hidden")


#: What Vega writes with a dozen digits, of which a page needs one.
_LONG = re.compile(r"-?\d+\.\d{2,}(?:e-?\d+)?")
_GEOMETRY = ("d", "transform", "x", "y", "x2", "y2", "width", "height")


def _themed(element: ElementTree.Element) -> None:
    for name in _GEOMETRY:
        if name in element.attrib:
            element.set(name, _LONG.sub(lambda m: f"{float(m[0]):.1f}", element.attrib[name]))
    for name in _SPOKEN:
        element.attrib.pop(name, None)
    for name in ("fill", "stroke"):
        colour = element.get(name, "")
        if colour in _VARIABLES:
            element.set(name, _VARIABLES[colour])
    if element.tag.endswith("text"):
        element.attrib.pop("font-family", None)
