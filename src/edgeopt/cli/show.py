"""What a command prints: a document, a proof, progress, an error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from rich.console import Console

    from edgeopt.core import Progress, Proof, Results

__all__ = ["console", "fail", "print_document", "progress", "show_proof", "show_results"]


def print_document(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=2))


def console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def show_proof(proof: Proof, as_json: bool) -> None:
    if as_json:
        print_document(proof.to_json())
    else:
        from edgeopt.report.text import render

        render(proof, console())
    for check in proof.verdict.checks:
        if not check.passed:
            advice = f"; {check.advice}" if check.advice else ""
            fail(f"not proven, {check.name}: {check.found}, asked: {check.limit}{advice}", 3)


def show_results(
    results: Results,
    as_json: bool,
    reports: Sequence[str],
    charts: str | None,
    chart_format: str,
    breaches: Sequence[str],
) -> None:
    """Print the results and write the reports that were asked for; then the exit code: 3 where
    measuring an artifact failed, 4 where a condition of --fail-if holds."""
    from edgeopt.numerics.derive import derive

    derived = derive(results)
    if as_json:
        print_document({**results.to_json(), "derived": derived.to_json()})
    else:
        from edgeopt.report.results_text import render_results

        render_results(results, derived, console())
    if reports:
        from edgeopt.report.results_files import write_report

        for path in reports:
            write_report(results, Path(path))
    if charts is not None:
        from edgeopt.report.charts import write_charts

        write_charts(results, derived, Path(charts), chart_format)
    for subject in results.subjects:
        if subject.failure:
            fail(f"{subject.name}: {subject.failure}", 3)
    if breaches:
        fail("; ".join(breaches), 4)


@contextmanager
def progress() -> Iterator[Progress | None]:
    """A status line on stderr while a verb runs, if somebody watches; None otherwise."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status("opening") as status:

        def report(step: str, done: float | None) -> None:
            status.update(step if done is None else f"{step} {done:.0%}")

        yield report


def fail(message: str, code: int) -> NoReturn:
    """One line on stderr, and the exit code."""
    click.echo(f"edgeopt: error: {' '.join(message.split())}", err=True)
    sys.exit(code)
