"""The commands that measure: bench and compare."""

from __future__ import annotations

from typing import Any

import click

from edgeopt.cli import options as opt
from edgeopt.cli.options import SETTINGS, Command
from edgeopt.cli.show import check_reports, progress, show_results
from edgeopt.options.table import BenchOptions, CompareOptions

__all__ = ["COMMANDS"]


_where_to = opt.options(
    click.option(
        "--report",
        "reports",
        multiple=True,
        metavar="FILE",
        help="Write a report: .html, .md, .csv, .json or .txt; repeatable.",
    ),
    click.option("--charts", metavar="FOLDER", help="Write every chart into FOLDER."),
    click.option(
        "--chart-format",
        type=click.Choice(["svg", "png"]),
        default="svg",
        show_default=True,
        help="Format of --charts.",
    ),
)
_gate = click.option(
    "--fail-if",
    "fail_if",
    multiple=True,
    metavar="EXPR",
    help="Exit with 4 if this holds, as 'latency.p50 > +5%'; repeatable.",
)


@click.command(
    cls=Command,
    context_settings=SETTINGS,
    short_help="Measure latency, load time, memory and size.",
)
@click.argument("artifacts", metavar="ARTIFACT...", nargs=-1, required=True)
@opt.of(BenchOptions)
@_gate
@_where_to
@opt.json
def bench(
    artifacts: tuple[str, ...],
    fail_if: tuple[str, ...],
    reports: tuple[str, ...],
    charts: str | None,
    chart_format: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure ARTIFACTs side by side in fresh processes that take turns: size, cold and warm load,
    first inference, latency in steady state, throughput, memory by kind, energy.

    ONNX files run in ONNX Runtime, GGUF in llama.cpp (pp and tg, as llama-bench defines them),
    torch files in torch; safetensors are loaded only. The first ARTIFACT is what the others are
    compared with."""
    from edgeopt.verbs.bench import bench as run

    read = [*artifacts, *(options[name] for name in ("baseline", "data") if options[name])]
    check_reports(reports, charts, fail_if, read, options["out"])
    with progress() as report:
        results = run(artifacts, progress=report, **options)
    show_results(results, as_json, reports, charts, chart_format, fail_if)


@click.command(
    cls=Command, context_settings=SETTINGS, short_help="Compare artifacts, or saved results."
)
@click.argument("items", metavar="A B...", nargs=-1, required=True)
@opt.of(CompareOptions)
@_gate
@_where_to
@opt.json
def compare(
    items: tuple[str, ...],
    fail_if: tuple[str, ...],
    reports: tuple[str, ...],
    charts: str | None,
    chart_format: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare B and more with A: file size, load, latency, memory, how close the answers are, and
    with --metric what they are worth on a task.

    Each is an artifact, which is measured as bench does it, or saved results of bench or compare
    (R.json, or R.json[NAME] for one artifact in them)."""
    from edgeopt.verbs.compare import compare as run

    read = [*items, *(options[name] for name in ("data", "text") if options[name])]
    check_reports(reports, charts, fail_if, read, options["out"])
    with progress() as report:
        results = run(items, progress=report, **options)
    show_results(results, as_json, reports, charts, chart_format, fail_if)


COMMANDS = (bench, compare)
