"""Sizes as GGUF: the plan that would be carried out, laid out to the byte."""

from __future__ import annotations

from collections.abc import Iterator

from edgeopt.anatomy import commands
from edgeopt.core import Source
from edgeopt.errors import EdgeoptError
from edgeopt.llm.plan import GgufAsked, layout_of, make_gguf_plan
from edgeopt.llm.read import read_model

__all__ = ["gguf_sizes"]

#: Nothing lost, next to nothing, the smallest that runs fast everywhere, the usual choice.
_TYPES = ("F16", "Q8_0", "Q4_0", "Q4_K_M")


def gguf_sizes(source: Source) -> Iterator[tuple[str, int, str]]:
    """(type, bytes of the file, command that makes it); nothing where GGUF cannot be made.

    That is: a family that is not known, a folder without its tokenizer, low bits already, or the
    ``gguf`` extra not installed. ``edgeopt quantize --to gguf`` says which.
    """
    try:
        model = read_model(source)
        for kind in _TYPES:
            plan = make_gguf_plan(source, model, GgufAsked(kind))
            verb = commands.export if kind == "F16" else commands.quantize
            command = verb(source, "--to", "gguf", "--type", kind)
            yield kind, layout_of(model, plan).nbytes, command
    except EdgeoptError:
        return
