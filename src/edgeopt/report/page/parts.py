"""What the page's sections are made of: tables, figures, lists of facts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from edgeopt.report.charts import page_svg
from edgeopt.report.document import TONES, Document
from edgeopt.report.facts import Fact
from edgeopt.report.numbers import Phrase, Said, plain, printable, shorten
from edgeopt.report.page.markup import Html, el, join
from edgeopt.report.plots.chart import NARROW, WIDE, Chart
from edgeopt.report.tables import Column, Table

__all__ = ["Named", "conditioned", "facts", "figure", "items", "named", "table", "tone"]

#: An artifact's name with its colour before it.
Named: TypeAlias = Callable[[str], Html]


#: Letters of a name that is said again and again; it is whole where the artifact is described.
_LONGEST_NAME = 60


def named(inks: Mapping[str, str]) -> Named:
    """How artifacts are named, each with the colour that it has in the charts."""

    def name(artifact: str) -> Html:
        ink = inks.get(artifact)
        swatch = el("span", class_="swatch", style=f"background:var(--{ink})") if ink else ""
        short = shorten(artifact, _LONGEST_NAME)
        whole = printable(artifact) if "…" in short else None
        return el("span", swatch, Said(short), class_="name", title=whole)

    return name


def tone(phrase: Phrase) -> str | None:
    """The class of a change: good, bad, or none."""
    return TONES.get(str(phrase[-1]).strip()) if phrase else None


def conditioned(document: Document, title: str, conditions: tuple[object, ...] | None) -> Html:
    """A title, and the conditions after it in lighter letters."""
    said = document.conditions(conditions) if conditions else ()
    return join([title, " ", el("span", said, class_="cond") if said else ""])


def table(document: Document, content: Table, name: Named, said: bool = True) -> Html:
    """A table with its caption, in a frame that scrolls where it is too wide. ``said``: whether
    the caption is seen; it is always heard.

    On a phone its rows become blocks, each cell under its column's title. The roles say what it
    is all the same: a table that is no longer laid out as one is no longer announced as one.
    """
    columns = [(i, c) for i, c in enumerate(content.columns) if not c.under]
    under = {i - 1: i for i, c in enumerate(content.columns) if c.under}
    head = [
        el(
            "th",
            column.title,
            scope="col",
            role="columnheader",
            class_="w" if column.words else None,
        )
        for _, column in columns
    ]
    body = []
    for row in content.rows:
        cells = [el("th", name(plain(row[0])), scope="row", role="rowheader")]
        for i, column in columns[1:]:
            second = row[under[i]] if i in under else ()
            cells.append(_cell(row[i], second, column))
        body.append(el("tr", cells, role="row"))
    title = conditioned(document, content.title, content.conditions)
    caption = el("caption", title, class_=None if said else "away")
    return el(
        "div",
        el(
            "table",
            caption,
            el("thead", el("tr", head, role="row"), role="rowgroup"),
            el("tbody", body, role="rowgroup"),
            role="table",
        ),
        class_="table",
        data_name=printable(f"Table: {content.heading}"),
    )


def _cell(shown: Phrase, second: Phrase, column: Column) -> Html:
    small = el("small", second) if second else ""
    kinds = ["w" if column.words else "", (tone(shown) or "") if shown else "none"]
    return el(
        "td",
        el("span", shown) if shown else el("span", "none", class_="away"),
        small,
        role="cell",
        class_=" ".join(kind for kind in kinds if kind) or None,
        data_label=column.title,
    )


def figure(document: Document, chart: Chart) -> Html:
    """A chart drawn for a desk and for a phone, one of which is shown, and its words."""
    title = conditioned(document, chart.title, chart.conditions)
    caption = el("p", chart.caption[:1].upper() + chart.caption[1:] + ".") if chart.caption else ""
    return el(
        "figure",
        el("figcaption", el("h3", title), caption),
        el(
            "div",
            *(
                el("div", Html(page_svg(chart, width)), class_=kind)
                for width, kind in ((WIDE, "wide"), (NARROW, "narrow"))
            ),
            class_="drawing",
            role="img",
            aria_label=printable(chart.alternative),
        ),
        id=f"chart-{chart.name}",
    )


def facts(content: Sequence[Fact]) -> Html:
    """Names and what is known of them."""
    return el("dl", [_fact(fact) for fact in content], class_="facts")


def _fact(fact: Fact) -> Html:
    return el(
        "div",
        el("dt", Said(fact.name)),
        el("dd", fact.phrase, class_=None if fact.known else "none"),
    )


def items(content: Iterable[Html | str]) -> Html:
    """A list."""
    return el("ul", [el("li", item) for item in content])
