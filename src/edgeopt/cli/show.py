"""What a command prints: a document, a proof, progress, an error."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console

    from edgeopt.core import Progress, Proof, Results

__all__ = [
    "check_reports",
    "console",
    "fail",
    "print_document",
    "progress",
    "reader_left",
    "show_proof",
    "show_results",
]


def print_document(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=2))


def console() -> Console:
    from rich.console import Console

    class Quiet(Console):
        def on_broken_pipe(self) -> None:
            reader_left()

    return Quiet(highlight=False)


def reader_left() -> NoReturn:
    """The reader of a pipe has had enough: quietly, as of SIGPIPE (``| head -1``)."""
    _drop_unwritten(sys.stdout)
    sys.exit(128 + signal.SIGPIPE)


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


def check_reports(
    reports: Sequence[str],
    charts: str | None,
    fail_if: Sequence[str],
    sources: Sequence[str],
    out: str | None = None,
) -> None:
    """What of the output can be known to fail before minutes of measuring."""
    if fail_if:
        from edgeopt.results.conditions import parse_all

        parse_all(fail_if)
    if not reports and charts is None:
        return
    from edgeopt.core.packages import is_installed
    from edgeopt.errors import MissingExtraError, OutputError, UsageError
    from edgeopt.files.atomic import checked_output
    from edgeopt.report.results_files import report_suffix
    from edgeopt.results.saved import file_of

    drawn = charts is not None
    written = [out, *reports] if out is not None else [*reports]
    for i, path in enumerate(written):
        if Path(path).resolve() in [Path(other).resolve() for other in written[:i]]:
            raise UsageError(f"{path}: is to be written twice; give each report a name of its own")
    for report in reports:
        drawn |= report_suffix(Path(report)) == ".html"
        checked_output(report, list(map(file_of, sources)))
    if drawn and not is_installed("vl_convert"):
        raise MissingExtraError("vl-convert-python", "report", "drawing charts")
    if charts is not None and Path(charts).exists() and not Path(charts).is_dir():
        raise OutputError(f"{charts}: is a file; give a folder for the charts")


def show_results(
    results: Results,
    as_json: bool,
    reports: Sequence[str],
    charts: str | None,
    chart_format: str,
    fail_if: Sequence[str],
) -> None:
    """Write the reports that were asked for and print the results; then the exit code: 3 where
    measuring an artifact failed, 4 where a condition of --fail-if holds."""
    from edgeopt.numerics.derive import derive

    derived = derive(results)
    if reports:
        from edgeopt.report.results_files import write_report

        for path in reports:
            write_report(results, Path(path), derived)
    if charts is not None:
        from edgeopt.report.charts import write_charts

        write_charts(results, derived, Path(charts), chart_format)
    if as_json:
        print_document({**results.to_json(), "derived": derived.to_json()})
    else:
        from edgeopt.report.results_text import render_results

        render_results(results, derived, console())
    for subject in results.subjects:
        if subject.failure:
            fail(f"{subject.name}: {subject.failure}", 3)
    from edgeopt.results.gate import enforce

    for finding in enforce(fail_if, results, derived):
        click.echo(f"edgeopt: not certain: {finding}", err=True)


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
    with contextlib.suppress(OSError):  # nobody reads it, or its disk is full: the code says it
        click.echo(f"edgeopt: error: {' '.join(message.split())}", err=True)
    _drop_unwritten(sys.stderr)
    sys.exit(code)


def _drop_unwritten(stream: TextIO) -> None:
    """What could not be written must not raise again at exit."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
