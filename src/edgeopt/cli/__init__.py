"""The command line: parse, call one verb, print. No logic.

Exit codes: 0 done and proven; 2 bad usage or input; 3 the proof failed, or a worker did; 4 what
``--fail-if`` asked about did happen; 130 interrupted; 141 the reader of a pipe left.
An error is one line on stderr. With ``--json`` the document is all that stdout gets.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

import edgeopt
from edgeopt.cli import making, measuring, shrinking
from edgeopt.cli.options import SETTINGS
from edgeopt.cli.show import fail, reader_left
from edgeopt.errors import EdgeoptError

__all__ = ["cli", "main"]


class _Interrupted(Exception):
    """Ctrl-C, in place of the KeyboardInterrupt that click would answer with an empty line."""


class _ReaderLeft(Exception):
    """A pipe's reader is gone; click would end with 1."""


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None
        except BrokenPipeError:
            raise _ReaderLeft from None

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        try:
            return super().make_context(*args, **kwargs)
        except BrokenPipeError:  # of --help
            raise _ReaderLeft from None


@click.group(cls=_Commands, context_settings=SETTINGS)
@click.version_option(edgeopt.__version__, prog_name="edgeopt")
def cli() -> None:
    """Make a model file smaller and faster on the device it runs on, with the proof."""


for _command in (*making.COMMANDS, *shrinking.COMMANDS, *measuring.COMMANDS):
    cli.add_command(_command)


def _terminated(signum: int, frame: object) -> NoReturn:
    sys.exit(128 + signum)  # unwinds, so that unfinished files are removed


def _homeless() -> bool:
    """Whether the folder that the command was started in is gone."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _ready_streams() -> None:
    """Somewhere to print to, whatever standard output and error are: closed ones become the null
    device (or the next file opened would get their place), and what an encoding lacks is replaced.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            null = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 - stays open
            setattr(sys, name, null)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def main() -> NoReturn:
    """The ``edgeopt`` command."""
    _ready_streams()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        cli.main(prog_name="edgeopt", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        fail(error.format_message(), 2)
    except EdgeoptError as error:
        fail(str(error), error.exit_code)
    except (BrokenPipeError, _ReaderLeft):
        reader_left()
    except OSError as error:
        # What the system refused where no verb expected it: still a line, and no traceback.
        if error.filename is None and _homeless():
            fail("the current folder was deleted; change to one that is there", 2)
        fail(f"{error.filename or 'reading or writing'}: {error.strerror or error}", 2)
    except MemoryError:
        fail("out of memory; close other programs, or use a machine with more", 2)
    except (click.Abort, KeyboardInterrupt, _Interrupted):
        if sys.stderr.isatty():
            click.echo(err=True)  # the terminal stands behind its own ^C
        fail("interrupted", 130)
    sys.exit(0)
