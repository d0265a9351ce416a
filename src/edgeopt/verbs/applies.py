"""Which options have a meaning for which format, said once: what has none is refused by its name.

A verb asks before it reads anything. Nothing that the user said is dropped: an option is carried
out, or it is an error that says why it cannot be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeopt.errors import UsageError

__all__ = ["OPTIONS", "Option", "require_meaning"]

ONNX, SAFETENSORS, GGUF = "ONNX", "safetensors", "GGUF"


@dataclass(frozen=True)
class Option:
    """One option: what it is called on the command line, its default, the formats it is for, and
    what it needs in those: ``without`` says why the others have no use for it."""

    flag: str
    default: object
    formats: frozenset[str]
    without: str


def _of(flag: str, default: object, *formats: str, without: str) -> Option:
    return Option(flag, default, frozenset(formats), without)


_RUN = "nothing is run on inputs there"
_TIMED = "nothing is timed there"
_TEXT = "predictions are compared on a text for GGUF alone"

#: By Python's name of them.
OPTIONS: Mapping[str, Option] = {
    "data": _of("--data", None, ONNX, without=_RUN),
    "inputs": _of("--input", (), ONNX, without=_RUN),
    "model": _of("--model", None, ONNX, without="the weights are taken as they are"),
    "prefer": _of("--prefer", "balanced", ONNX, without=_TIMED),
    "target": _of("--target", "here", ONNX, without=_TIMED),
    "threads": _of("--threads", 1, ONNX, without=_TIMED),
    "on": _of("--on", None, ONNX, without=_TIMED),
    "remote_python": _of("--remote-python", "python3", ONNX, without=_TIMED),
    "external_data": _of("--external-data", "auto", ONNX, without="one file is all there is"),
    "half": _of("--half", False, ONNX, without="--type F16 is its name for GGUF"),
    "opset": _of("--opset", None, ONNX, without="there is no graph in it"),
    "block_size": _of(
        "--block-size", None, ONNX, SAFETENSORS, without="a type has blocks of its own size"
    ),
    "text": _of("--text", None, GGUF, without=_TEXT),
    "chunks": _of("--chunks", 8, GGUF, without=_TEXT),
    "context": _of("--context", 512, GGUF, without=_TEXT),
}


def require_meaning(form: str, **given: object) -> None:
    """UsageError for the first of ``given`` (options by Python's name) that says nothing to
    ``form`` and is not at its default."""
    for name, value in given.items():
        option = OPTIONS[name]
        asked = value != option.default and value not in (None, (), [])
        if asked and form not in option.formats:
            raise UsageError(
                f"{option.flag} has no meaning for {form}: {option.without}; leave it out"
            )
    if given.get("on") is None and given.get("remote_python") not in (None, "python3"):
        raise UsageError("--remote-python names a Python on another machine; give that with --on")
    if "text" in given and given["text"] is None:
        for name in ("chunks", "context"):
            if given.get(name) not in (None, OPTIONS[name].default):
                raise UsageError(f"{OPTIONS[name].flag} is of a --text; give one")
