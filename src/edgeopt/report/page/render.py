"""The page put together: head, headline, sections, the document itself."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from edgeopt.core import Results
from edgeopt.numerics.derive import Derived
from edgeopt.report.document import Document
from edgeopt.report.headline import WRITTEN, Claim, Headline, headlines
from edgeopt.report.numbers import Said, plain, printable, shorten
from edgeopt.report.page.markup import Content, Html, el, join
from edgeopt.report.page.parts import Named, named
from edgeopt.report.page.sections import Section, sections
from edgeopt.report.plots.chart import INKS, subject_inks, vl_convert

__all__ = ["PAGE_LIMIT", "results_page"]

#: Bytes that the page stays under, whatever is in the document.
PAGE_LIMIT = 2_000_000


def results_page(results: Results, derived: Derived) -> str:
    """The page as one HTML document, under :data:`PAGE_LIMIT` bytes.

    Raises MissingExtraError without the extra ``report``.
    """
    vl_convert()
    document = Document(results, derived)
    name = named(subject_inks(document.names, document.baseline))
    parts = sections(document, name)
    head = _head(document)
    before = [_header(document, name), _contents(parts)]
    shown = _sections(parts)
    taken = len(join([head, before, shown]).encode())
    raw = _document(document, PAGE_LIMIT - taken - 12_000)
    main = el("main", shown, raw, id="main", tabindex="-1")
    body = el(
        "body",
        el("a", "Skip to the report", class_="skip", href="#main"),
        el("div", before, main, _footer(document), class_="page"),
        el("div", id="tip", hidden=True, aria_hidden="true"),
        el("script", Html(_asset("page.js"))),
    )
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def _asset(name: str) -> str:
    return resources.files("edgeopt.report.page").joinpath(name).read_text(encoding="utf-8")


def _head(document: Document) -> Html:
    script = base64.b64encode(hashlib.sha256(_asset("page.js").encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{script}'; base-uri 'none'; form-action 'none'"
    )
    first = headlines(document)[:1]
    title = "edgeopt results"
    if first:
        title = f"{shorten(first[0].subject, 60)}: {plain(first[0].phrase)}"
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", title),
        el("link", rel="icon", href="data:,"),
        el("style", Html(_colours() + _asset("page.css"))),
    )


def _colours() -> str:
    """Both schemes as variables; paper is print's, whatever the screen has."""
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in INKS.items()) for i in (0, 1))
    return (
        f":root{{color-scheme:light dark;{light}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
    )


# ---------------------------------------------------------------------------------------------
# above the fold


def _header(document: Document, name: Named) -> Html:
    results = document.results
    said = headlines(document)
    cpu = str(results.environment.get("cpu", ""))
    eyebrow = el(
        "p",
        el("b", "edgeopt ", results.verb),
        " · ",
        el("time", _day(results.made), datetime=printable(results.made)),
        [" · ", Said(shorten(cpu, 60))] if cpu else "",
        class_="eyebrow",
    )
    if len(said) == 1:
        return el("header", eyebrow, el("h1", _sentence(said[0].claims)), _who(said[0], name))
    many = f"{WRITTEN.get(len(said), 'Many').capitalize()} artifacts"
    title: Content = many if said else "Nothing was measured"
    if said and said[0].baseline:
        title = [f"{many} against ", Said(shorten(said[0].baseline, 60))]
    lines = [
        el(
            "li",
            el("p", el("strong", name(headline.subject)), _aside(headline), class_="who"),
            el("p", _sentence(headline.claims), class_="said"),
        )
        for headline in said
    ]
    return el("header", eyebrow, el("h1", title), el("ul", lines, class_="headlines"))


def _day(made: str) -> str:
    """The date and the minute of an ISO time, as it is written."""
    day, _, time = made.partition("T")
    zone = " UTC" if made.endswith(("+00:00", "Z")) else ""
    return f"{day} {time[:5]}{zone}".strip()


def _sentence(claims: Sequence[Claim]) -> Html:
    said: list[Content] = []
    for claim in claims:
        if claim.aside:
            continue
        said += [", "] if said else []
        coloured = claim.tone != "even"
        said.append(el("span", claim.phrase, class_=claim.tone) if coloured else claim.phrase)
    return join(said)


def _who(headline: Headline, name: Named) -> Html:
    against: Content = [" against ", name(headline.baseline)] if headline.baseline else ""
    subject = el("strong", name(headline.subject))
    return el("p", subject, against, _aside(headline), class_="who")


def _aside(headline: Headline) -> Content:
    return [[" · ", claim.phrase] for claim in headline.claims if claim.aside]


def _contents(parts: Sequence[Section]) -> Html:
    links = [el("li", el("a", p.title, href=f"#{p.anchor}")) for p in parts]
    links.append(el("li", el("a", "Raw data", href="#raw")))
    return el("nav", el("ul", links), aria_label="Sections")


def _sections(parts: Sequence[Section]) -> Html:
    return join(
        el(
            "section",
            el("h2", part.title, id=f"{part.anchor}-title"),
            part.body,
            id=part.anchor,
            aria_labelledby=f"{part.anchor}-title",
        )
        for part in parts
    )


# ---------------------------------------------------------------------------------------------
# the document itself


def _document(document: Document, room: int) -> Html:
    """A link that holds the document, packed; thinned where the page would grow too large."""
    content, step = document.json, 1
    packed = _packed(content)
    while len(packed) > room and step < 1 << 20:
        step *= 2
        packed = _packed(_thinned(document.json, step))
    note = (
        "Raw samples, environment and everything derived from them, as gzipped JSON."
        if step == 1
        else "The samples in this copy are thinned, so that the page stays small: the statistics "
        "above come from all of them. The file that the measurement wrote has every one."
    )
    return el(
        "section",
        el("h2", "Raw data", id="raw-title"),
        el("p", note, class_="lead"),
        el(
            "a",
            "Download results.json.gz",
            class_="button",
            id="document",
            download="results.json.gz",
            href=f"data:application/gzip;base64,{packed}",
            data_step=str(step),
        ),
        id="raw",
        aria_labelledby="raw-title",
    )


def _packed(content: Any) -> str:
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _thinned(content: dict[str, Any], step: int) -> dict[str, Any]:
    """One of ``step`` samples of each process; turns are no longer told apart."""
    kept = [
        {**m, "values": [values[::step] for values in m["values"]], "blocks": []}
        for m in content["measurements"]
    ]
    said = f"thinned: one of {step} samples of each process was kept in this copy"
    return {**content, "measurements": kept, "warnings": [*content["warnings"], said]}


def _footer(document: Document) -> Html:
    version = str(document.results.environment.get("edgeopt", ""))
    made: Content = [" ", Said(version)] if version and version != "unavailable" else ""
    return el(
        "footer",
        "Made by edgeopt",
        made,
        ". Differences that noise explains are called not significant, and what could not be "
        "measured is said to be unavailable, never zero.",
    )
