"""The commands that make a model smaller by design: fewer weights, or another model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgeopt.cli import options as opt
from edgeopt.cli.options import SETTINGS, Command
from edgeopt.cli.show import progress, show_proof
from edgeopt.errors import UsageError

if TYPE_CHECKING:
    from edgeopt.core import Proof

__all__ = ["COMMANDS"]


@click.command(
    cls=Command,
    context_settings=SETTINGS,
    short_help="Take weights out of a model, and prove what is left.",
)
@click.argument("source", metavar="SOURCE")
@click.option(
    "--method",
    required=True,
    type=click.Choice(
        ["channels", "depth", "vocabulary", "magnitude", "wanda", "sparsegpt", "lottery"]
    ),
    help="What goes: channels (and heads), whole blocks, unused tokens, or single weights.",
)
@click.option("--ratio", type=float, metavar="R", help="The share that goes, between 0 and 1.")
@click.option(
    "--target",
    metavar="WHAT=LEFT",
    help="In place of --ratio: params=0.5, flops=0.5, latency=0.6 or bytes=2MB are left.",
)
@click.option("--pattern", metavar="N:M", help="Single weights: N of every M stay, as 2:4.")
@click.option(
    "--scope",
    type=click.Choice(["layer", "global"]),
    default="layer",
    show_default=True,
    help="The same ratio in every layer, or the least important anywhere.",
)
@click.option(
    "--importance",
    type=click.Choice(["magnitude", "bn", "taylor", "activation"]),
    default="magnitude",
    show_default=True,
    help="Channels: what makes one worth keeping.",
)
@click.option("--heads", is_flag=True, help="Channels: attention heads too.")
@click.option(
    "--layer-ratio",
    "layer_ratios",
    metavar="REGEX=R",
    multiple=True,
    help="The ratio of layers whose name matches; repeatable.",
)
@click.option(
    "--include",
    metavar="REGEX",
    multiple=True,
    help="Single weights: these layers, also where they would be left alone.",
)
@click.option("--ignore", metavar="REGEX", multiple=True, help="Layers to leave alone; repeatable.")
@click.option(
    "--round-to", type=click.IntRange(min=1), metavar="N", help="Channels: multiples of N are left."
)
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="Depth: blocks that stay.")
@click.option("--remove", metavar="BLOCK", multiple=True, help="Depth: a block that goes.")
@click.option("--corpus", metavar="FILE", multiple=True, help="Vocabulary: UTF-8 text to keep.")
@click.option(
    "--min-count",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Vocabulary: tokens used less often go.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Lottery: times of training and pruning.",
)
@click.option(
    "--rewind",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Lottery: the step whose weights are gone back to.",
)
@click.option(
    "--recover",
    metavar="DATA",
    help="Win accuracy back: train on DATA, the unpruned model being the teacher.",
)
@opt.out
@click.option(
    "--to",
    type=click.Choice(["pt", "folder", "safetensors"]),
    help="Format (default: a folder for a folder where that can be, else pt).",
)
@opt.inputs
@opt.loading
@opt.judging
@opt.training
@opt.force
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
@opt.out
@click.option("--student", metavar="MODULE:CALLABLE|FILE", help="The student: code, or a file.")
@click.option(
    "--shrink", metavar="width=W,depth=D", help="Make the student from the teacher: shares left."
)
@click.option(
    "--eval", "evaluation", metavar="DATA", help="Judge on this (default: held out of --data)."
)
@opt.inputs
@opt.loading
@opt.judging
@opt.training
@opt.force
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
