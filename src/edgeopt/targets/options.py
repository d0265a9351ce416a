"""Which options have a meaning for what, said once: what has none is refused by its name.

A verb asks before it reads anything. Nothing that the user said is dropped: an option is carried
out, or it is an error that says why it cannot be. That an option was given counts, and not whether
its value is the default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgeopt.core import Source
from edgeopt.core.calls import stated
from edgeopt.core.takes import flag_of
from edgeopt.errors import UsageError

__all__ = ["MEASURED", "WRITTEN", "OptionUse", "require_meaning", "require_same", "require_use"]


@dataclass(frozen=True)
class OptionUse:
    """What an option is for; ``without`` says why others have no use for it, ``not_of`` are kinds
    of sources that say by themselves what it would say, and ``told`` how."""

    of: frozenset[str]
    without: str
    not_of: frozenset[str] = frozenset()
    told: str = ""


def _of(*of: str, without: str, not_of: Iterable[str] = (), told: str = "") -> OptionUse:
    return OptionUse(frozenset(of), without, frozenset(not_of), told)


ONNX, SAFETENSORS, GGUF = "ONNX", "safetensors", "GGUF"
_RUN = "nothing is run on inputs there"
_TIMED = "nothing is timed there"
_TEXT = "predictions are compared on a text for GGUF alone"
_TYPES = "its types are GGUF's; it goes with --to gguf"

#: What quantize, export and verify can be told, by the format of the artifact. Options that are not
#: here have a meaning for all.
WRITTEN: Mapping[str, OptionUse] = {
    "data": _of(ONNX, without=_RUN),
    "inputs": _of(
        ONNX, without=_RUN, not_of=["torch-exported"], told="an exported program says what it takes"
    ),
    "model": _of(ONNX, without="the weights are taken as they are"),
    "min_same": _of(ONNX, without=_RUN),
    "prefer": _of(ONNX, without=_TIMED),
    "target": _of(ONNX, without=_TIMED),
    "threads": _of(ONNX, without=_TIMED),
    "on": _of(ONNX, without=_TIMED),
    "remote_python": _of(ONNX, without=_TIMED),
    "external_data": _of(ONNX, without="one file is all there is"),
    "half": _of(ONNX, without="--type F16 is its name for GGUF"),
    "opset": _of(ONNX, without="there is no graph in it"),
    "block_size": _of(ONNX, SAFETENSORS, without="a type has blocks of its own size"),
    "method": _of(ONNX, SAFETENSORS, without="a type has its own encoder"),
    "type": _of(GGUF, without=_TYPES),
    "tensor_types": _of(GGUF, without=_TYPES),
    "imatrix": _of(GGUF, without="importances go with --to gguf"),
    "allow_requantize": _of(GGUF, without="it is for GGUF files as sources"),
    "pre_tokenizer": _of(
        GGUF,
        without="no tokenizer goes into it",
        not_of=["gguf"],
        told="its tokenizer is taken as it is",
    ),
    "prove": _of(GGUF, without="its proof has one depth"),
    "text": _of(GGUF, without=_TEXT),
    "chunks": _of(GGUF, without=_TEXT),
    "context": _of(GGUF, without=_TEXT),
}

_ARRAYS = ("onnxruntime", "torch")
_RUNTIMES = (*_ARRAYS, "llama.cpp")
_LOADED = "weights are loaded, and not run"
_FED = "no artifact takes arrays"

#: What bench and compare can be told, by the runtimes of the artifacts.
MEASURED: Mapping[str, OptionUse] = {
    "device": _of(*_RUNTIMES, without=_LOADED),
    "threads": _of(*_RUNTIMES, without=_LOADED),
    "batch": _of(*_ARRAYS, without=_FED),
    "seq": _of(*_ARRAYS, without=_FED),
    "data": _of(*_ARRAYS, without=_FED),
    "inputs": _of(*_ARRAYS, without=_FED),
    "model": _of("torch", without="no artifact is weights that need code"),
    "prompt": _of("llama.cpp", without="no artifact reads prompts"),
    "generate": _of("llama.cpp", without="no artifact writes text"),
    "text": _of("llama.cpp", without="no artifact predicts text"),
    "chunks": _of("llama.cpp", without="no artifact predicts text"),
    "context": _of("llama.cpp", without="no artifact predicts text"),
}


def require_meaning(form: str, source: Source | None = None) -> None:
    """UsageError for an option of :data:`WRITTEN` that the user gave, and that says nothing to an
    artifact of this form, or to this source."""
    for name, use in _given(WRITTEN):
        if form not in use.of:
            raise UsageError(
                f"{flag_of(name)} has no meaning for {form}: {use.without}; leave it out"
            )
        if source is not None and source.kind in use.not_of and "model" not in (stated() or ()):
            raise UsageError(
                f"{flag_of(name)} has no meaning for {source.path}: {use.told}; leave it out"
            )


def require_use(runtimes: Iterable[str]) -> None:
    """UsageError for an option of :data:`MEASURED` that the user gave, and that none of these
    runtimes has a use for."""
    there = frozenset(runtimes)
    for name, use in _given(MEASURED):
        if not there & use.of:
            raise UsageError(
                f"{flag_of(name)} has no meaning for {', '.join(sorted(there))}: {use.without};"
                " leave it out"
            )


def require_same(options: Mapping[str, Any], planned: Mapping[str, Any]) -> None:
    """UsageError for an option that the user gave beside a plan that has another value for it."""
    for name, value in options.items():
        if name in (stated() or ()) and planned.get(name) != value:
            has = "the default" if planned.get(name) is None else planned[name]
            raise UsageError(
                f"{flag_of(name)} {value}: the plan is one for {has}; leave it out, or make the"
                " plan anew"
            )


def _given(uses: Mapping[str, OptionUse]) -> Iterable[tuple[str, OptionUse]]:
    names = stated() or frozenset()
    return ((name, use) for name, use in uses.items() if name in names)
