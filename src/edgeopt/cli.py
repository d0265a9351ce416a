"""The command line: parse, call one verb, print. No logic.

Exit codes: 0 done and proven; 2 bad usage or input; 3 the proof failed; 130 interrupted. An error
is one line on stderr. With ``--json`` the document is all that stdout gets.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

import edgeopt
from edgeopt.errors import EdgeoptError

if TYPE_CHECKING:
    from rich.console import Console

    from edgeopt.core import Progress, Proof

__all__ = ["cli", "main"]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_SHOW_PLAN = "-"


class _Interrupted(Exception):
    """Ctrl-C, in place of the KeyboardInterrupt that click would answer with an empty line."""


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None


@click.group(cls=_Commands, context_settings=_SETTINGS)
@click.version_option(edgeopt.__version__, prog_name="edgeopt")
def cli() -> None:
    """Make a model file smaller and faster on the device it runs on, with the proof."""


def _options(*options: Callable[[Any], Any]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_json = click.option("--json", "as_json", is_flag=True, help="Print the document, nothing else.")
_out = click.option("-o", "--out", metavar="OUT", help="File to write (default: beside SOURCE).")
_force = click.option("--force", is_flag=True, help="Keep the file even if the proof fails.")
_loading = _options(
    click.option(
        "--model", metavar="MODULE:CALLABLE", help="Code that returns the nn.Module to fill."
    ),
    click.option("--trust-pickle", is_flag=True, help="Let the file run the code it carries."),
)
_external = click.option(
    "--external-data",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Weights in OUT.data, which the runtime maps (auto: over 256 MiB).",
)
_inputs = _options(
    click.option(
        "--data", metavar="DATA", help=".npz, .npy, folder of .npy, or MODULE:CALLABLE of inputs."
    ),
    click.option(
        "--input",
        "inputs",
        metavar="SPEC",
        multiple=True,
        help="An input, as name:float32[1,3,224,224]; repeatable.",
    ),
)
_proving = _options(
    click.option("--min-sqnr", type=float, metavar="DB", help="Fidelity floor in decibels."),
    click.option(
        "--prefer",
        type=click.Choice(["balanced", "speed", "size", "memory"]),
        default="balanced",
        show_default=True,
        help="What to win at; size and memory may cost speed.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="Threads that the runtime is timed with.",
    ),
)
_text = _options(
    click.option("--text", metavar="FILE", help="GGUF: the text that predictions are compared on."),
    click.option(
        "--chunks",
        type=click.IntRange(min=1),
        default=8,
        show_default=True,
        help="GGUF: pieces of the text.",
    ),
    click.option(
        "--context",
        type=click.IntRange(min=8),
        default=512,
        show_default=True,
        help="GGUF: tokens in a piece.",
    ),
)
_gguf = _options(
    click.option(
        "--type", metavar="TYPE", help="GGUF: preset or type, as Q4_K_M, Q8_0, F16 (any case)."
    ),
    click.option(
        "--pre-tokenizer", metavar="NAME", help="GGUF: the text-splitting rule, if not recognised."
    ),
    click.option(
        "--prove",
        type=click.Choice(["none", "quick", "full"]),
        default="quick",
        show_default=True,
        help="GGUF: full also compares next-token distributions on --text.",
    ),
)


@cli.command(short_help="Say why a model file is so big, and what would make it smaller.")
@click.argument("source", metavar="FILE")
@click.option("--deep", is_flag=True, help="Read every tensor, however long it takes.")
@_json
def inspect(source: str, deep: bool, as_json: bool) -> None:
    """Say why FILE (or a model folder) is so big: bytes by cause and by layer group, findings with
    what each would save, predicted sizes. Runs no code from the file."""
    from edgeopt.verbs.inspect import inspect as run

    with _progress() as progress:
        document = run(source, deep=deep, progress=progress).to_json()
    if as_json:
        _print(document)
        return
    from edgeopt.report.inspect_text import render

    render(document, _console())


@cli.command(short_help="Make a model file smaller and faster, and prove it.")
@click.argument("source", metavar="SOURCE")
@_out
@click.option(
    "--bits", type=click.Choice(["8", "4"]), help="Weight bits  [default: 8; GGUF: see --type]."
)
@click.option(
    "--to", type=click.Choice(["onnx", "safetensors", "gguf"]), help="Format (default: by source)."
)
@_inputs
@_loading
@click.option("--block-size", type=int, metavar="N", help="Weights that share a scale at 4 bits.")
@_proving
@click.option(
    "--target",
    type=click.Choice(["here", "portable"]),
    default="here",
    show_default=True,
    help="Tune for this machine by timing, or stay safe on x86-64 and ARM.",
)
@click.option(
    "--plan",
    metavar="[FILE]",
    is_flag=False,
    flag_value=_SHOW_PLAN,
    help="Replay the plan in FILE; last and without FILE: print the plan, write nothing.",
)
@_external
@_gguf
@_text
@click.option(
    "--tensor-type",
    "tensor_types",
    metavar="REGEX=TYPE",
    multiple=True,
    help="GGUF: the type of tensors whose name matches; first match wins; repeatable.",
)
@click.option("--imatrix", metavar="FILE", help="GGUF: weigh errors by an importance matrix.")
@click.option(
    "--allow-requantize", is_flag=True, help="GGUF: quantize again what is in few bits already."
)
@_force
@_json
def quantize(
    source: str, plan: str | None, as_json: bool, bits: str | None, **options: Any
) -> None:
    """Quantize SOURCE to 8 or 4 bits, and prove the written file against it: size, fidelity on
    held-out samples, latency, memory. Exit code 3 when the proof fails.

    Language models become GGUF with --to gguf or --type, in one pass from a Hugging Face folder
    (or another GGUF), with llama.cpp's own mix of types."""
    from edgeopt.verbs import quantize as verb

    asked = int(bits) if bits else None
    if plan == _SHOW_PLAN:
        with _progress() as progress:
            made = verb.make_plan(source, bits=asked, progress=progress, **options)
        if made.options.get("to") == "gguf" and not as_json:
            from edgeopt.report.plan_text import render

            render(made, _console())
        else:
            _print(made.to_json())
        return
    with _progress() as progress:
        proof = verb.quantize(source, bits=asked, plan=plan, progress=progress, **options)
    _show(proof, as_json)


@cli.command(short_help="Write a model as ONNX or GGUF without quantizing, and prove it.")
@click.argument("source", metavar="SOURCE")
@_out
@click.option(
    "--to", type=click.Choice(["onnx", "gguf"]), help="Format  [default: onnx, of a GGUF gguf]."
)
@click.option("--half", is_flag=True, help="Store weights in FP16, FP32 where it would overflow.")
@click.option("--opset", type=click.IntRange(min=17), metavar="N", help="ONNX opset version.")
@_inputs
@_loading
@_proving
@_external
@_gguf
@_text
@_force
@_json
def export(source: str, as_json: bool, **options: Any) -> None:
    """Write SOURCE as an ONNX file that plain ONNX Runtime runs, or as GGUF in F16, BF16 or F32
    for llama.cpp; proven like a quantized one."""
    from edgeopt.verbs.export import export as run

    with _progress() as progress:
        proof = run(source, progress=progress, **options)
    _show(proof, as_json)


@cli.command(short_help="Prove any artifact against the model it came from.")
@click.argument("source", metavar="SOURCE")
@click.argument("artifact", metavar="ARTIFACT")
@_inputs
@_loading
@_proving
@_text
@_json
def verify(source: str, artifact: str, as_json: bool, **options: Any) -> None:
    """Compare ARTIFACT with SOURCE: size, fidelity, latency, memory. Exit code 3 if it fails.

    A GGUF ARTIFACT is compared with its folder or another GGUF, tensor by tensor; with --text also
    by what both predict: perplexity, KL divergence, same top."""
    from edgeopt.verbs.verify import verify as run

    with _progress() as progress:
        proof = run(source, artifact, progress=progress, **options)
    _show(proof, as_json)


@cli.command(short_help="Make an importance matrix for quantizing a language model.")
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
@_json
def imatrix(folder: str, text: str, as_json: bool, **options: Any) -> None:
    """Run the language model in FOLDER over a text, and write how strongly each input column of
    its matrices is driven: quantize --imatrix OUT spends its bits where that is strongest."""
    from edgeopt.verbs.imatrix import imatrix as run

    with _progress() as progress:
        made = run(folder, text, progress=progress, **options)
    if as_json:
        _print(made.to_json())
    else:
        click.echo(made)


# ---------------------------------------------------------------------------------------------
# printing


def _print(document: dict[str, Any]) -> None:
    click.echo(json.dumps(document, indent=2))


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _show(proof: Proof, as_json: bool) -> None:
    if as_json:
        _print(proof.to_json())
    else:
        from edgeopt.report.text import render

        render(proof, _console())
    for check in proof.verdict.checks:
        if not check.passed:
            advice = f"; {check.advice}" if check.advice else ""
            _fail(f"not proven, {check.name}: {check.found}, asked: {check.limit}{advice}", 3)


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """A status line on stderr while a verb runs, if somebody watches; None otherwise."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status("opening") as status:

        def report(step: str, done: float | None) -> None:
            status.update(step if done is None else f"{step} {done:.0%}")

        yield report


# ---------------------------------------------------------------------------------------------
# leaving


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"edgeopt: error: {' '.join(message.split())}", err=True)
    sys.exit(code)


def _terminated(signum: int, frame: object) -> NoReturn:
    sys.exit(128 + signum)  # unwinds, so that unfinished files are removed


def main() -> NoReturn:
    """The ``edgeopt`` command."""
    signal.signal(signal.SIGTERM, _terminated)
    # Code that --model and --data name is looked for in the current folder, as `python -m` does.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        cli.main(prog_name="edgeopt", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except EdgeoptError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        # The reader has left. What is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        # What the system refused where no verb expected it: still a line, and no traceback.
        _fail(f"{error.filename or 'reading or writing'}: {error.strerror or error}", 2)
    except MemoryError:
        _fail("out of memory; close other programs, or use a machine with more", 2)
    except (click.Abort, KeyboardInterrupt, _Interrupted):
        if sys.stderr.isatty():
            click.echo(err=True)  # the terminal stands behind its own ^C
        _fail("interrupted", 130)
    sys.exit(0)
