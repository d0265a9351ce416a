"""Results as Markdown (GitHub's tables): for a pull request, an issue, a README."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from edgeopt.core import Results
from edgeopt.numerics.derive import Derived
from edgeopt.report.document import Document
from edgeopt.report.facts import environment_facts
from edgeopt.report.headline import headlines
from edgeopt.report.numbers import plain, printable
from edgeopt.report.tables import Table, tables

__all__ = ["results_markdown"]


def results_markdown(results: Results, derived: Derived) -> str:
    """The report as one Markdown text: headline, tables, warnings, environment."""
    return "\n".join(_lines(Document(results, derived))) + "\n"


def _lines(document: Document) -> Iterator[str]:
    results = document.results
    for headline in headlines(document):
        base = f" against {_escaped(headline.baseline)}" if headline.baseline else ""
        yield f"**{_escaped(headline.subject)}**{base}: **{_escaped(plain(headline.phrase))}**"
        yield ""
    for table in tables(document):
        yield from _table(table)
    failures = [f"{s.name}: {s.failure}" for s in results.subjects if s.failure]
    missing = [
        f"{metric}{' of ' + ', '.join(of) if of else ''}: {reason}"
        for metric, of, reason in document.missing()
    ]
    for title, said in (
        ("Failed", failures),
        ("Warnings", document.warnings()),
        ("Advice", document.advice()),
        ("Unavailable", missing),
    ):
        if said:
            yield from (f"### {title}", "", *(f"- {_escaped(words)}" for words in said), "")
    yield from ("### Environment", "")
    for fact in environment_facts(document):
        yield f"- {_escaped(fact.name)}: {_escaped(plain(fact.phrase))}"


def _table(table: Table) -> Iterator[str]:
    yield f"### {_escaped(table.heading)}"
    yield ""
    yield _row(column.title for column in table.columns)
    yield _row("---" if column.words else "---:" for column in table.columns)
    for row in table.rows:
        yield _row(_escaped(plain(cell)) for cell in row)
    yield ""


def _row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


#: Characters that Markdown, or the HTML that it lets through, gives a meaning to.
_MEANT = re.compile(r"([\\`*_{}\[\]<>#+!|~$&])")
_ENTITIES: Mapping[str, str] = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def _escaped(words: str) -> str:
    """Words that stay words: on one line, nothing in them a mark, a link or a tag."""
    return _MEANT.sub(lambda m: _ENTITIES.get(m[0], f"\\{m[0]}"), printable(words))
