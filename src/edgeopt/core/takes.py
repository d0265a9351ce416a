"""What every option takes, one table: by name, and by verb where a name means something of its own.

Reading is lenient where people are (one text where several may stand, a numpy integer), and never
guesses: a truth value is no number, bytes are no path.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgeopt.core import given

__all__ = ["NEEDS", "TAKES", "Takes", "flag_of", "is_module", "takes_of"]


@dataclass(frozen=True)
class Takes:
    """A kind of value: what it is called, and how one is read.

    ``read`` gives the value as the function wants it, and raises TypeError or ValueError for what
    is of another kind. ``choices`` are all there are, where that can be said.
    """

    what: str
    read: Callable[[Any], Any]
    choices: tuple[Any, ...] = ()


def _path(value: Any) -> Any:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise TypeError
    if not text:
        raise ValueError("it is empty")
    if "\0" in text:
        raise ValueError("it holds a null byte")
    return value if isinstance(value, str) or hasattr(value, "with_suffix") else text


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return str(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        raise TypeError
    return int(operator.index(value))


def _number(value: Any) -> float:
    if isinstance(value, (bool, str, bytes)) or type(value).__name__ in ("bool", "bool_"):
        raise TypeError
    if getattr(value, "shape", ()) != ():
        raise TypeError
    number = float(value)
    return value if isinstance(value, (int, float)) else number


def _flag(value: Any) -> bool:
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):
        raise TypeError
    return bool(value)


def _sequence(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple, range)) and type(value).__name__ != "ndarray":
        raise TypeError
    return tuple(value)


def _texts(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(map(_text, _sequence(value)))


def _wholes(value: Any) -> tuple[int, ...]:
    try:
        return (_whole(value),)
    except TypeError:
        return tuple(map(_whole, _sequence(value)))


def _called(value: Any) -> Any:
    if not callable(value):
        raise TypeError
    return value


def _names(value: Any) -> Any:
    if not isinstance(value, Mapping) or not all(
        isinstance(text, str) for pair in value.items() for text in pair
    ):
        raise TypeError
    return value


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _data(value: Any) -> str:
    if _is_path(value):
        return str(os.fspath(_path(value)))
    if isinstance(value, type) or not (
        callable(value) or hasattr(value, "__iter__") or hasattr(value, "__getitem__")
    ):
        raise TypeError
    if isinstance(value, (bytes, bytearray, memoryview, set, frozenset)):
        raise TypeError
    return given.add(value)


def is_module(value: Any) -> bool:
    """Without importing torch: whoever has a module has imported it."""
    return not isinstance(value, type) and any(
        base.__module__ == "torch.nn.modules.module" and base.__name__ == "Module"
        for base in type(value).__mro__
    )


def _code(value: Any) -> str:
    if isinstance(value, str):
        return _text(value)
    if not callable(value):
        raise TypeError
    return given.add(value)


def _code_or_path(value: Any) -> str:
    return str(os.fspath(_path(value))) if _is_path(value) else _code(value)


def _codes(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or callable(value):
        return (_code(value),)
    return tuple(map(_code, _sequence(value)))


def _source(value: Any) -> Any:
    """A path; or something that :mod:`edgeopt.verbs.in_memory` knows what to do with."""
    if _is_path(value):
        return _path(value)
    if value is None or isinstance(value, (bool, int, float, complex, bytes, set, frozenset, type)):
        raise TypeError
    return value


def _paths(value: Any) -> tuple[Any, ...]:
    return (_path(value),) if _is_path(value) else tuple(map(_path, _sequence(value)))


def _sources(value: Any) -> tuple[Any, ...]:
    if _is_path(value) or is_module(value):
        return (_source(value),)
    return tuple(map(_source, _sequence(value)))


def _plan(value: Any) -> Any:
    if type(value).__module__ == "edgeopt.core.plan" and type(value).__name__ == "Plan":
        return value
    return _path(value)


def _choice(*known: Any) -> Takes:
    def read(value: Any) -> Any:
        found = value if isinstance(value, str) else _whole(value)
        if found not in known:
            raise ValueError
        return found

    return Takes(f"one of {', '.join(map(repr, known))}", read, known)


def _external(value: Any) -> Any:
    return value if isinstance(value, str) else _whole(value)


_PATH = Takes("a path", _path)
_PATHS = Takes("paths", _paths)
_TEXT = Takes("a text", _text)
_TEXTS = Takes("a text or several", _texts)
_WHOLE = Takes("a whole number", _whole)
_WHOLES = Takes("a whole number or several", _wholes)
_NUMBER = Takes("a number", _number)
_FLAG = Takes("True or False", _flag)
_CALL = Takes("a function", _called)
_DATA = Takes(
    "a path, 'module:callable', arrays by input name, an array, or an iterable of either", _data
)
_CODE = Takes("'package.module:callable', a class, a function or a torch module", _code)
_METRICS = Takes("names of metrics, 'module:callable' or functions", _codes)
_SOURCE = Takes("a path, a torch module or tensors by name", _source)
_SOURCES = Takes("paths", _sources)
_ANY = Takes("anything", lambda value: value)

#: By name, or by verb and name where the verb means another thing by it.
TAKES: Mapping[str | tuple[str, str], Takes] = {
    "source": _SOURCE,
    "teacher": _SOURCE,
    "artifact": _PATH,
    "artifacts": _SOURCES,
    "items": _SOURCES,
    "path": _PATH,
    ("inspect", "path"): _SOURCE,
    "folder": _PATH,
    "module": _ANY,
    "out": _PATH,
    "to": _choice("onnx", "safetensors", "gguf"),
    ("export", "to"): _choice("onnx", "gguf"),
    ("prune", "to"): _choice("pt", "folder", "safetensors"),
    "bits": _choice(8, 4),
    "data": _DATA,
    "recover": _DATA,
    "evaluation": _DATA,
    "inputs": _TEXTS,
    "model": _CODE,
    "student": Takes("a path, 'module:callable', a class or a torch module", _code_or_path),
    "shrink": _TEXT,
    "trust_pickle": _FLAG,
    "block_size": _WHOLE,
    ("quantize", "method"): _choice("auto", "mse", "rtn", "hqq"),
    ("make_plan", "method"): _choice("auto", "mse", "rtn", "hqq"),
    "prefer": _choice("balanced", "speed", "size", "memory"),
    "target": _choice("here", "portable"),
    ("prune", "target"): _TEXT,
    "plan": Takes("a path, or a Plan", _plan),
    "external_data": Takes("'auto', 'always', 'never' or a number of bytes", _external),
    "min_sqnr": _NUMBER,
    "min_same": _NUMBER,
    "max_drop": _NUMBER,
    "force": _FLAG,
    "threads": _WHOLE,
    ("bench", "threads"): _WHOLES,
    ("compare", "threads"): _WHOLES,
    "on": _TEXT,
    "remote_python": _TEXT,
    "progress": _CALL,
    "half": _FLAG,
    "opset": _WHOLE,
    "type": _TEXT,
    "tensor_types": _TEXTS,
    "imatrix": _PATH,
    "allow_requantize": _FLAG,
    "pre_tokenizer": _TEXT,
    "prove": _choice("none", "quick", "full"),
    "text": _PATH,
    "chunks": _WHOLE,
    "context": _WHOLE,
    "deep": _FLAG,
    "strict": _FLAG,
    "prefix": _TEXT,
    "names": Takes("names by name", _names),
    "device": _choice("cpu", "cuda", "auto"),
    "batch": _WHOLES,
    "seq": _WHOLE,
    "runtime": _choice("onnxruntime", "torch", "llama", "weights"),
    "seconds": _NUMBER,
    "processes": _WHOLE,
    "prompt": _WHOLE,
    "generate": _WHOLE,
    "cold": _FLAG,
    "timeout": _NUMBER,
    "baseline": _PATH,
    "other_machine": _FLAG,
    "metric": _METRICS,
    "metrics": _METRICS,
    "method": _choice(
        "channels", "depth", "vocabulary", "magnitude", "wanda", "sparsegpt", "lottery"
    ),
    "ratio": _NUMBER,
    "pattern": _TEXT,
    "scope": _choice("layer", "global"),
    "importance": _choice("magnitude", "bn", "taylor", "activation"),
    "heads": _FLAG,
    "layer_ratios": _TEXTS,
    "include": _TEXTS,
    "ignore": _TEXTS,
    "round_to": _WHOLE,
    "keep": _WHOLE,
    "remove": _TEXTS,
    "corpus": _PATHS,
    "min_count": _WHOLE,
    "rounds": _WHOLE,
    "rewind": _WHOLE,
    "seed": _WHOLE,
    "epochs": _WHOLE,
    "steps": _WHOLE,
    "batch_size": _WHOLE,
    "learning_rate": _NUMBER,
    "losses": _TEXTS,
    "pairs": _TEXT,
    "checkpoint": _PATH,
    "cache_teacher": _PATH,
    "history": _PATH,
    "patience": _WHOLE,
    "precision": _choice("fp32", "bf16", "fp16"),
    "accumulation": _WHOLE,
}


#: What the command line calls options, where it is not Python's name with two dashes.
_FLAGS: Mapping[str, str] = {
    "inputs": "--input",
    "evaluation": "--eval",
    "layer_ratios": "--layer-ratio",
    "losses": "--loss",
    "metrics": "--metric",
    "seconds": "--time",
    "tensor_types": "--tensor-type",
}


#: Options that say nothing without another one.
NEEDS: Mapping[str, str] = {
    "remote_python": "on",
    "chart_format": "charts",
    "chunks": "text",
    "context": "text",
}


def flag_of(name: str) -> str:
    """How messages and the command line spell an option."""
    return _FLAGS.get(name, f"--{name.replace('_', '-')}")


def takes_of(verb: str, name: str) -> Takes:
    """What ``verb`` takes as ``name``. KeyError where the table lacks it."""
    own = TAKES.get((verb, name))
    return TAKES[name] if own is None else own
