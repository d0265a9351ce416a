"""Results written as the file that its name asks for."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from edgeopt.core import Results
from edgeopt.errors import UsageError
from edgeopt.files.atomic import writing
from edgeopt.numerics.derive import Derived, derive

__all__ = ["SUFFIXES", "report_suffix", "write_document", "write_report"]


def write_report(results: Results, path: Path, derived: Derived | None = None) -> Path:
    """Write ``results`` to ``path``, whole or not at all, as its suffix says; the path.

    ``.json`` is the document that every other form is made of. Statistics are derived here unless
    they are given. Raises UsageError for a suffix that there is no form for, OutputError where
    the file cannot be written, MissingExtraError for ``.html`` without the extra ``report``.
    """
    form = SUFFIXES[report_suffix(path)]
    content = form(results, derive(results) if derived is None else derived)
    with writing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8"))
    return path


def write_document(results: Results, path: Path) -> None:
    """Write the JSON document to ``path``, whatever its name, whole or not at all.

    Raises OutputError where it cannot be written.
    """
    content = _json(results, derive(results))
    with writing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def report_suffix(path: Path) -> str:
    """The suffix of a report that can be written. Raises UsageError for any other: ask before
    measuring for minutes."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(
            f"{path}: a report's name ends with {', '.join(SUFFIXES)}, not {suffix or 'nothing'}"
        )
    return suffix


def _html(results: Results, derived: Derived) -> str:
    from edgeopt.report.page.render import results_page

    return results_page(results, derived)


def _markdown(results: Results, derived: Derived) -> str:
    from edgeopt.report.results_markdown import results_markdown

    return results_markdown(results, derived)


def _csv(results: Results, derived: Derived) -> str:
    from edgeopt.report.results_csv import results_csv

    return results_csv(results, derived)


def _json(results: Results, derived: Derived) -> str:
    document = {**results.to_json(), "derived": derived.to_json()}
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _text(results: Results, derived: Derived) -> str:
    from rich.console import Console

    from edgeopt.report.results_text import render_results

    out = io.StringIO()
    render_results(results, derived, Console(file=out, width=100, force_terminal=False))
    return out.getvalue()


#: What a report can be written as.
SUFFIXES: Mapping[str, Callable[[Results, Derived], str]] = {
    ".html": _html,
    ".md": _markdown,
    ".csv": _csv,
    ".json": _json,
    ".txt": _text,
}
