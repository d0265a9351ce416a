"""The commands that measure: bench and compare."""

from __future__ import annotations

from typing import Any

import click

from edgeopt.cli import options as opt
from edgeopt.cli.options import SETTINGS, Command
from edgeopt.cli.show import check_reports, progress, show_results

__all__ = ["COMMANDS"]


def _numbers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """``1,4,8``: whole numbers, separated by commas."""
    try:
        return tuple(int(part) for part in value.split(",")) if value else ()
    except ValueError:
        raise click.BadParameter(f"{value!r} is not numbers separated by commas, as 1,4") from None


_how = opt.options(
    click.option(
        "--device",
        type=click.Choice(["cpu", "cuda", "auto"]),
        default="auto",
        show_default=True,
        help="Where to run.",
    ),
    click.option(
        "--threads",
        callback=_numbers,
        default="1",
        metavar="N,M",
        show_default=True,
        help="Threads of the runtime; several are measured in turn.",
    ),
    click.option(
        "--batch",
        callback=_numbers,
        default="",
        metavar="N,M",
        help="Batch sizes (default: the model's own).",
    ),
    click.option("--seq", type=int, metavar="N", help="Size of free sequence axes."),
    click.option(
        "--runtime",
        type=click.Choice(["onnxruntime", "torch", "llama", "weights"]),
        help="Runtime (default: by file); weights: load only.",
    ),
    click.option(
        "--time",
        "seconds",
        type=float,
        default=10.0,
        show_default=True,
        metavar="S",
        help="Seconds of steady-state timing an artifact and condition.",
    ),
    click.option(
        "--processes",
        type=int,
        default=8,
        show_default=True,
        metavar="N",
        help="Fresh worker processes each; 5 or more.",
    ),
    click.option(
        "--prompt",
        type=int,
        default=512,
        show_default=True,
        metavar="N",
        help="GGUF: tokens of prompt processing (pp).",
    ),
    click.option(
        "--generate",
        type=int,
        default=128,
        show_default=True,
        metavar="N",
        help="GGUF: tokens of generation (tg).",
    ),
    click.option(
        "--cold/--no-cold",
        default=True,
        show_default=True,
        help="Also load with the file's pages out of memory.",
    ),
    click.option(
        "--timeout",
        type=float,
        default=600.0,
        show_default=True,
        metavar="S",
        help="Give a silent worker up after this.",
    ),
)
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
    click.option("-o", "--out", metavar="OUT", help="Save the results (JSON) as they come."),
)
_other_machine = click.option(
    "--other-machine", is_flag=True, help="Compare results of different machines or runtimes too."
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
@_how
@opt.on
@opt.inputs
@opt.loading
@click.option(
    "--baseline",
    metavar="FILE",
    help="Saved results (-o) to compare with, as R.json or R.json[NAME].",
)
@_other_machine
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
@click.option(
    "--metric",
    multiple=True,
    metavar="NAME",
    help="accuracy, spearman, perplexity or MODULE:CALLABLE, on labelled --data; repeatable.",
)
@opt.text
@_how
@opt.on
@opt.inputs
@opt.loading
@_other_machine
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
