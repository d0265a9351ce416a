"""An option that takes one value is given once, on every command; nothing is dropped in silence."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from edgeopt.cli import main
from edgeopt.cli.making import COMMANDS as MAKING
from edgeopt.cli.measuring import COMMANDS as MEASURING
from edgeopt.cli.shrinking import COMMANDS as SHRINKING

COMMANDS = (*MAKING, *MEASURING, *SHRINKING)


def _single(command: click.Command) -> list[click.Option]:
    return [p for p in command.params if isinstance(p, click.Option) and not p.multiple]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: str(c.name))
def test_every_option_that_takes_one(command: click.Command) -> None:
    tried = 0
    for option in _single(command):
        if option.is_eager:
            continue
        word = option.opts[-1]
        if option.is_flag:
            twice = [word, word]
        elif isinstance(option.type, click.Choice):
            twice = [word, str(option.type.choices[0]), word, str(option.type.choices[-1])]
        else:
            twice = [word, "17", word, "18"]
        with pytest.raises(click.UsageError, match=rf"{word} is given twice; give it once"):
            command.make_context(str(command.name), ["a", "b", *twice])
        tried += 1
    assert tried >= 2


def test_it_is_a_usage_error() -> None:
    command = [sys.executable, "-m", "edgeopt", "quantize", "m.onnx", "--bits", "8", "--bits", "4"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "--bits is given twice" in ran.stderr
    assert callable(main)
