"""The commands that read, make and prove model files."""

from __future__ import annotations

from typing import Any

import click

from edgeopt.cli import options as opt
from edgeopt.cli.options import SETTINGS, Command
from edgeopt.cli.show import console, fail, print_document, progress, show_proof
from edgeopt.options.table import Export, Quantize, Verify

__all__ = ["COMMANDS"]

_SHOW_PLAN = "-"


@click.command(
    cls=Command,
    context_settings=SETTINGS,
    short_help="Say why a model file is so big, and what would make it smaller.",
)
@click.argument("source", metavar="FILE")
@click.option("--deep", is_flag=True, help="Read every tensor, however long it takes.")
@opt.json
def inspect(source: str, deep: bool, as_json: bool) -> None:
    """Say why FILE (or a model folder) is so big: bytes by cause and by layer group, findings with
    what each would save, predicted sizes. Runs no code from the file."""
    from edgeopt.verbs.inspect import inspect as run

    with progress() as report:
        document = run(source, deep=deep, progress=report).to_json()
    if as_json:
        print_document(document)
        return
    from edgeopt.report.inspect_text import render

    render(document, console())


@click.command(
    cls=Command,
    context_settings=SETTINGS,
    short_help="Make a model file smaller and faster, and prove it.",
)
@click.argument("source", metavar="SOURCE")
@opt.of(Quantize)
@opt.json
def quantize(source: str, plan: str | None, as_json: bool, **options: Any) -> None:
    """Quantize SOURCE to 8 or 4 bits, and prove the written file against it: size, fidelity on
    held-out samples, latency, memory. Exit code 3 when the proof fails.

    Language models become GGUF with --to gguf or --type, in one pass from a Hugging Face folder
    (or another GGUF), with llama.cpp's own mix of types."""
    from edgeopt.verbs import quantize as verb

    if plan == _SHOW_PLAN:
        with progress() as report:
            made = verb.make_plan(source, progress=report, **options)
        if made.options.get("to") == "gguf" and not as_json:
            from edgeopt.report.plan_text import render

            render(made, console())
        else:
            print_document(made.to_json())
        return
    with progress() as report:
        proof = verb.quantize(source, plan=plan, progress=report, **options)
    show_proof(proof, as_json)


@click.command(
    cls=Command,
    context_settings=SETTINGS,
    short_help="Write a model as ONNX or GGUF without quantizing, and prove it.",
)
@click.argument("source", metavar="SOURCE")
@opt.of(Export)
@opt.json
def export(source: str, as_json: bool, **options: Any) -> None:
    """Write SOURCE as an ONNX file that plain ONNX Runtime runs, or as GGUF in F16, BF16 or F32
    for llama.cpp; proven like a quantized one."""
    from edgeopt.verbs.export import export as run

    with progress() as report:
        proof = run(source, progress=report, **options)
    show_proof(proof, as_json)


@click.command(
    cls=Command,
    context_settings=SETTINGS,
    short_help="Prove any artifact against the model it came from.",
)
@click.argument("source", metavar="[SOURCE]")
@click.argument("artifact", metavar="ARTIFACT", required=False)
@opt.of(Verify)
@opt.json
def verify(source: str, artifact: str | None, as_json: bool, **options: Any) -> None:
    """Compare ARTIFACT with SOURCE: size, fidelity, latency, memory. Exit code 3 if it fails.

    ARTIFACT alone: is it still the file that was written, by the digests inside and beside it?

    A GGUF ARTIFACT is compared with its folder or another GGUF, tensor by tensor; with --text also
    by what both predict: perplexity, KL divergence, same top."""
    from edgeopt.verbs.verify import verify as run

    if artifact is not None:
        with progress() as report:
            proof = run(source, artifact, progress=report, **options)
        show_proof(proof, as_json)
        return
    found: Any = run(source, **options)  # one file: an Integrity
    if as_json:
        print_document(found.to_json())
    else:
        click.echo(found)
    for check in found.checks:
        if not check.passed:
            fail(f"changed, {check.name}: {check.found}, asked: {check.limit}; {check.advice}", 3)


@click.command(
    cls=Command,
    context_settings=SETTINGS,
    short_help="Make an importance matrix for quantizing a language model.",
)
@click.argument("folder", metavar="FOLDER")
@click.option("--text", metavar="FILE", required=True, help="UTF-8 text to read.")
@click.option("-o", "--out", metavar="OUT", help="File to write (default: beside FOLDER).")
@click.option(
    "--chunks", type=click.IntRange(min=1), metavar="N", help="Pieces to read (default: all)."
)
@click.option(
    "--context",
    type=click.IntRange(min=16),
    default=512,
    show_default=True,
    metavar="N",
    help="Tokens in a piece.",
)
@opt.json
def imatrix(folder: str, text: str, as_json: bool, **options: Any) -> None:
    """Run the language model in FOLDER over a text, and write how strongly each input column of
    its matrices is driven: quantize --imatrix OUT spends its bits where that is strongest."""
    from edgeopt.verbs.imatrix import imatrix as run

    with progress() as report:
        made = run(folder, text, progress=report, **options)
    if as_json:
        print_document(made.to_json())
    else:
        click.echo(made)


COMMANDS = (inspect, quantize, export, verify, imatrix)
