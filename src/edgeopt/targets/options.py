"""Which options have a meaning for which format, said once: what has none is refused by its name.

A verb asks before it reads anything. Nothing that the user said is dropped: an option is carried
out, or it is an error that says why it cannot be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeopt.core.takes import flag_of
from edgeopt.errors import UsageError

__all__ = ["OPTIONS", "Option", "require_meaning"]

ONNX, SAFETENSORS, GGUF = "ONNX", "safetensors", "GGUF"


@dataclass(frozen=True)
class Option:
    """One option: its default, the formats it is for, and why (``without``) the others have no
    use for it."""

    default: object
    formats: frozenset[str]
    without: str


def _of(default: object, *formats: str, without: str) -> Option:
    return Option(default, frozenset(formats), without)


_RUN = "nothing is run on inputs there"
_TIMED = "nothing is timed there"
_TEXT = "predictions are compared on a text for GGUF alone"

#: By Python's name of them.
OPTIONS: Mapping[str, Option] = {
    "data": _of(None, ONNX, without=_RUN),
    "inputs": _of((), ONNX, without=_RUN),
    "model": _of(None, ONNX, without="the weights are taken as they are"),
    "prefer": _of("balanced", ONNX, without=_TIMED),
    "target": _of("here", ONNX, without=_TIMED),
    "threads": _of(1, ONNX, without=_TIMED),
    "on": _of(None, ONNX, without=_TIMED),
    "remote_python": _of("python3", ONNX, without=_TIMED),
    "external_data": _of("auto", ONNX, without="one file is all there is"),
    "half": _of(False, ONNX, without="--type F16 is its name for GGUF"),
    "opset": _of(None, ONNX, without="there is no graph in it"),
    "block_size": _of(None, ONNX, SAFETENSORS, without="a type has blocks of its own size"),
    "min_same": _of(None, ONNX, without=_RUN),
    "text": _of(None, GGUF, without=_TEXT),
    "chunks": _of(8, GGUF, without=_TEXT),
    "context": _of(512, GGUF, without=_TEXT),
}


def require_meaning(form: str, **given: object) -> None:
    """UsageError for the first of ``given`` (options by Python's name) that says nothing to
    ``form`` and is not at its default."""
    for name, value in given.items():
        option = OPTIONS[name]
        asked = value != option.default and value not in (None, (), [])
        if asked and form not in option.formats:
            raise UsageError(
                f"{flag_of(name)} has no meaning for {form}: {option.without}; leave it out"
            )
    if given.get("on") is None and given.get("remote_python") not in (None, "python3"):
        raise UsageError("--remote-python names a Python on another machine; give that with --on")
    if "text" in given and given["text"] is None:
        for name in ("chunks", "context"):
            if given.get(name) not in (None, OPTIONS[name].default):
                raise UsageError(f"{flag_of(name)} is of a --text; give one")
