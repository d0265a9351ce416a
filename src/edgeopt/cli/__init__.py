"""The command line: parse, call one verb, print. No logic.

Exit codes: 0 done and proven; 2 bad usage or input; 3 the proof failed, or a worker did; 4 what
``--fail-if`` asked about did happen; 130 interrupted. An error is one line on stderr. With
``--json`` the document is all that stdout gets.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, NoReturn

import click

import edgeopt
from edgeopt.cli import making, measuring, shrinking
from edgeopt.cli.options import SETTINGS
from edgeopt.cli.show import fail
from edgeopt.errors import EdgeoptError

__all__ = ["cli", "main"]


class _Interrupted(Exception):
    """Ctrl-C, in place of the KeyboardInterrupt that click would answer with an empty line."""


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None


@click.group(cls=_Commands, context_settings=SETTINGS)
@click.version_option(edgeopt.__version__, prog_name="edgeopt")
def cli() -> None:
    """Make a model file smaller and faster on the device it runs on, with the proof."""


for _command in (*making.COMMANDS, *shrinking.COMMANDS, *measuring.COMMANDS):
    cli.add_command(_command)


def _terminated(signum: int, frame: object) -> NoReturn:
    sys.exit(128 + signum)  # unwinds, so that unfinished files are removed


def main() -> NoReturn:
    """The ``edgeopt`` command."""
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
    except BrokenPipeError:
        # The reader has left. What is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        # What the system refused where no verb expected it: still a line, and no traceback.
        fail(f"{error.filename or 'reading or writing'}: {error.strerror or error}", 2)
    except MemoryError:
        fail("out of memory; close other programs, or use a machine with more", 2)
    except (click.Abort, KeyboardInterrupt, _Interrupted):
        if sys.stderr.isatty():
            click.echo(err=True)  # the terminal stands behind its own ^C
        fail("interrupted", 130)
    sys.exit(0)
