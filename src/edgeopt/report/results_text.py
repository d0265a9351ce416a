"""Results as text for a terminal: the headline, a table for each thing measured, what to mind.

Plain characters and no lines, so that it reads the same at 80 columns, without colour and through
a pipe.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from edgeopt.core import Results
from edgeopt.numerics.derive import Derived
from edgeopt.report.document import Document
from edgeopt.report.headline import Headline, headlines
from edgeopt.report.numbers import Phrase, plain, printable, shorten
from edgeopt.report.parts import paragraph, plain_table
from edgeopt.report.tables import Table, tables

__all__ = ["render_results"]

_TONES = {"good": "green", "bad": "red", "even": ""}

_INDENT = 2
_NAME_WIDTH = 22
_HEAD_WIDTH = 40
#: Names inside a table, where they are no artifact's.
_WORDS_WIDTH = 32


def render_results(results: Results, derived: Derived, console: Console) -> None:
    """Print ``results`` on ``console``: headline first, then tables, warnings and advice last."""
    document = Document(results, derived)
    for headline in headlines(document):
        _headline(headline, console)
    last = ""
    for table in tables(document):
        console.print()
        paragraph(console, Text(_clean(table.heading), style="bold"))
        _table(table, console)
        last = table.section
    _conditions(document, console)
    _notes(document, console, gap=bool(last))


def _headline(headline: Headline, console: Console) -> None:
    text = Text(_clean(shorten(headline.subject, _HEAD_WIDTH)), style="bold")
    if headline.baseline:
        base = _clean(shorten(headline.baseline, _HEAD_WIDTH))
        text.append(f" against {base}", style="dim not bold")
    text.append(": ")
    for i, claim in enumerate(headline.claims):
        text.append(", " if i else "", style="not bold")
        text.append(_clean(plain(claim.phrase)), style=f"not bold {_TONES[claim.tone]}")
    paragraph(console, text)


def _table(table: Table, console: Console) -> None:
    """The table without the columns that there is no room for."""
    keep = list(range(len(table.columns)))
    spare = sorted((c.spare, i) for i, c in enumerate(table.columns) if c.spare)
    while spare and _INDENT + sum(_width(table, i) + 2 for i in keep) > console.width:
        keep.remove(spare.pop()[1])
    shown = plain_table()
    for i in keep:
        column = table.columns[i]
        shown.add_column(
            Text(_heading(column.title), style="dim"),
            justify="left" if column.words else "right",
            # all but the last column of words are short
            no_wrap=not column.words or i == 0 or column.title.endswith("change"),
        )
    for row in table.rows:
        shown.add_row(*(Text(_cell(table, row, i)) for i in keep))
    console.print(Padding(shown, (0, 0, 0, _INDENT)))


def _width(table: Table, column: int) -> int:
    cells = (_cell(table, row, column) for row in table.rows)
    return max(len(_heading(table.columns[column].title)), *(len(cell) for cell in cells))


def _heading(title: str) -> str:
    return "" if title in ("artifact", "change") else title


def _cell(table: Table, row: tuple[Phrase, ...], i: int) -> str:
    words = _clean(plain(row[i])) or "-"
    if i == 0:
        return _clean(shorten(words, _NAME_WIDTH))
    return _clean(shorten(words, _WORDS_WIDTH)) if table.columns[i].words else words


def _conditions(document: Document, console: Console) -> None:
    # Warm-up is not shown, and some processes need none.
    rows = [row for row in document.derived.rows if row.metric not in ("file", "warmup")]
    counts = [f.processes for row in rows for f in row.figures.values()]
    if counts:
        least, most = min(counts), max(counts)
        shown = f"{most}" if least == most else f"{least} to {most}"
        said = [
            f"Every figure from {shown} fresh process{'' if most == 1 else 'es'}; intervals of "
            "95% confidence, by bootstrap over processes."
        ]
        if document.took_turns:
            said.append("A change in p50 is the ratio of turns that ran side by side.")
        console.print()
        paragraph(console, " ".join(said), "dim")


def _notes(document: Document, console: Console, gap: bool) -> None:
    results = document.results
    missing = [
        f"{metric}{' of ' + ', '.join(of) if of else ''}: unavailable, {reason}"
        for metric, of, reason in document.missing()
    ]
    failures = [f"{s.name}: {s.failure}" for s in results.subjects if s.failure]
    for label, style, said in (
        ("FAILED", "bold red", failures),
        ("Warning", "yellow", document.warnings()),
        ("Advice", "", document.advice()),
        ("Note", "dim", missing),
    ):
        _list(label, style, said, console, gap)
        gap = gap and not said


def _list(label: str, style: str, said: Sequence[str], console: Console, gap: bool) -> None:
    for i, words in enumerate(said):
        if gap and i == 0:
            console.print()
        text = Text(f"{label}: ", style=style)
        text.append(_clean(words), style="not bold default")
        paragraph(console, text)


def _clean(words: str) -> str:
    """One line, without the few characters that not every terminal has."""
    return printable(words).replace("µ", "u").replace("…", "...").replace("∞", "inf")
