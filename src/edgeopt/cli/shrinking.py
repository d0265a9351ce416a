"""The commands that make a model smaller by design: fewer weights, or another model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgeopt.cli import options as opt
from edgeopt.cli.options import SETTINGS, Command
from edgeopt.cli.show import progress, show_proof
from edgeopt.errors import UsageError
from edgeopt.options.table import Distill, Prune

if TYPE_CHECKING:
    from edgeopt.core import Proof

__all__ = ["COMMANDS"]


@click.command(
    cls=Command,
    context_settings=SETTINGS,
    short_help="Take weights out of a model, and prove what is left.",
)
@click.argument("source", metavar="SOURCE")
@opt.of(Prune)
@opt.plot
@opt.json
def prune(source: str, as_json: bool, **options: Any) -> None:
    """Take weights out of SOURCE, and prove the written file against it: parameters, FLOPs, bytes,
    latency and answers, before and after, layer by layer. Exit code 3 when the proof fails.

    OUT is an exported program with its state dict and a description beside it (edgeopt quantize
    takes it as it is), or a Hugging Face folder. Zeros alone make nothing faster; --to safetensors
    stores them in one bit each, which load_weights reads back."""
    from edgeopt.verbs.prune import prune as run

    plot = _plot(options)
    if plot is not None and options["recover"] is None:
        raise UsageError("--plot has no meaning without --recover DATA")
    with progress() as report:
        proof = run(source, progress=report, **options)
    if proof is not None:  # of several processes the first one speaks
        _show(proof, plot, as_json)


@click.command(
    cls=Command,
    context_settings=SETTINGS,
    short_help="Train a smaller model to answer as a larger one does.",
)
@click.argument("teacher", metavar="TEACHER")
@opt.of(Distill)
@opt.plot
@opt.json
def distill(teacher: str, as_json: bool, **options: Any) -> None:
    """Train a student on DATA to give TEACHER's answers, and prove it against TEACHER. Under
    torchrun the same command uses every process it starts."""
    from edgeopt.verbs.distill import distill as run

    plot = _plot(options)
    with progress() as report:
        proof = run(teacher, progress=report, **options)
    if proof is not None:
        _show(proof, plot, as_json)


def _plot(options: dict[str, Any]) -> str | None:
    """Where the training is to be drawn, taken out of the verb's options."""
    path: str | None = options.pop("plot")
    if path is not None:
        from edgeopt.report.training_chart import check_plot

        check_plot(path)
    return path


def _show(proof: Proof, plot: str | None, as_json: bool) -> None:
    if plot is not None:
        from edgeopt.report.training_chart import write_training_chart

        write_training_chart(proof.coverage["training"], plot)
    show_proof(proof, as_json)


COMMANDS = (prune, distill)
