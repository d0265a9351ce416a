"""Every chart of a document, drawn: as pieces of a page, or as PNG and SVG files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

from edgeopt.core import Results
from edgeopt.errors import UsageError
from edgeopt.files.atomic import writing
from edgeopt.numerics.derive import Derived
from edgeopt.report.document import Document
from edgeopt.report.plots.amounts import latency, loading, memory, sizes
from edgeopt.report.plots.chart import INKS, WIDE, Chart, Marks, altair, vl_convert
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
    altair()
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for chart in charts(Document(results, derived)):
        path = folder / f"{chart.name}.{fmt}"
        marks = Marks()
        drawn = FORMATS[fmt](chart.draw(WIDE, marks), chart, marks)
        with writing(path) as temporary:
            temporary.write_bytes(drawn)
        written.append(path)
    return written


def _png(specification: object, chart: Chart, marks: Marks) -> bytes:
    drawn: bytes = vl_convert().vegalite_to_png(specification, scale=_SCALE)
    return drawn


def _svg(specification: object, chart: Chart, marks: Marks) -> bytes:
    """A file of its own: its title and its words in it, for whoever cannot see it."""
    root = _tree(specification)
    for element, mark in _described(root, marks):
        element.set("aria-label", mark.tip)
    root.set("role", "img")
    root.set("aria-label", chart.alternative)
    title = ElementTree.Element(f"{{{_SVG}}}title")
    title.text = chart.title
    root.insert(0, title)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


FORMATS: Mapping[str, Callable[[object, Chart, Marks], bytes]] = {"svg": _svg, "png": _png}


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
            element.set("data-tip", mark.tip)
    for element in root.iter():
        _themed(element)
    root.set("aria-hidden", "true")
    root.set("focusable", "false")
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode")


def _tree(specification: object) -> ElementTree.Element:
    text = vl_convert().vegalite_to_svg(specification)
    # what vl-convert draws is its own, not a stranger's: names are escaped in it
    return ElementTree.fromstring(text)


def _described(root: ElementTree.Element, marks: Marks) -> Iterator[tuple[ElementTree.Element, "object"]]:
    for element in root.iter():
        label = element.get("aria-label", "")
        if re.fullmatch(r"#\d+", label):
            yield element, marks.known[int(label[1:])]


_VARIABLES = {pair[0]: f"var(--{name})" for name, pair in INKS.items()}

#: What assistive technology need not hear of the parts of a picture that is described in words.
_SPOKEN = ("role", "aria-roledescription", "aria-label", "aria-hidden")


def _themed(element: ElementTree.Element) -> None:
    for name in _SPOKEN:
        element.attrib.pop(name, None)
    for name in ("fill", "stroke"):
        colour = element.get(name, "")
        if colour in _VARIABLES:
            element.set(name, _VARIABLES[colour])
    if element.tag.endswith("text"):
        element.attrib.pop("font-family", None)
