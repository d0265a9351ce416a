"""What makes a function a verb: its call is checked, and models in memory become files for it."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Concatenate, ParamSpec, TypeVar

from edgeopt.core import given
from edgeopt.core.calls import Signature
from edgeopt.errors import CallError, EdgeoptError
from edgeopt.targets.keep import scratch
from edgeopt.verbs.in_memory import Written, write

__all__ = ["asking", "verb"]

P = ParamSpec("P")
Said = ParamSpec("Said")
A = TypeVar("A")
Of = TypeVar("Of")
R = TypeVar("R")

#: Parameters that may be a model in memory.
_MODELS = ("source", "teacher", "path")

#: Those that are several artifacts, each measured in processes of its own.
_FILES = ("artifacts", "items")


def verb(more: Iterable[str] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: the function is called with what it takes, as :mod:`edgeopt.options.table` says;
    ``more`` names the keywords that it passes on.

    A model in memory is written to a folder that is there for the call; in its place the function
    gets the file's path and, where it takes ``model``, the code.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        call: Callable[P, R] = _checked(Signature(function, more), function, function)
        return call

    return decorate


def asking(
    kind: Callable[Said, A],
) -> Callable[[Callable[[Of, A], R]], Callable[Concatenate[Of, Said], R]]:
    """As :func:`verb`, of a function of a model and of its options, a dataclass of
    :mod:`edgeopt.options.table`: it is called with their fields as keywords, which its
    documentation lists in place of ``{options}``."""

    def decorate(
        function: Callable[[Of, A], R],
    ) -> Callable[Concatenate[Of, Said], R]:
        signature = Signature(function, kind=kind)  # type: ignore[arg-type]  # it is a class

        def ask(**values: Any) -> R:
            return function(values.pop(signature.names[0]), kind(**values))  # type: ignore[call-arg]

        call: Any = _checked(signature, function, ask)
        call.__signature__ = signature.shown
        if function.__doc__:
            call.__doc__ = function.__doc__.replace("{options}", signature.documented())
        result: Callable[Concatenate[Of, Said], R] = call
        return result

    return decorate


def _checked(signature: Signature, wrapped: Callable[..., Any], run: Callable[..., R]) -> Any:
    @functools.wraps(wrapped)
    def call(*args: Any, **kwargs: Any) -> R:
        with given.scope():
            values = signature.bound(args, kwargs)
            name = next((n for n in _MODELS if _in_memory(values.get(n))), None)
            for several in _FILES:
                if several in values:
                    _require_files(signature.name, values[several])
                    _require_importable(signature.name, values)
            if name is None:
                return signature.run(run, values)
            with ExitStack() as stack:
                written = write(values[name], stack.enter_context(scratch()))
                values[name] = written.path
                if written.model is not None and "model" in signature.names:
                    if values.get("model") is not None:
                        raise CallError(
                            f"{signature.name}(): a {written.name} in memory has its code; "
                            "leave model out"
                        )
                    values["model"] = written.model
                return _called_by_name(lambda: signature.run(run, values), written)

    return call


def _in_memory(value: Any) -> bool:
    return value is not None and not isinstance(value, (str, os.PathLike))


def _require_files(verb: str, values: Iterable[Any]) -> None:
    for value in values:
        if _in_memory(value):
            raise CallError(
                f"{verb}() measures files, each in processes of its own, and not a "
                f"{type(value).__name__} in memory; write it with edgeopt.export(module, OUT, "
                "data=...) first"
            )


def _require_importable(verb: str, values: dict[str, Any]) -> None:
    """Code that other processes are to run, by the name that they can import it by."""
    model = values.get("model")
    if model is None or not given.is_given(model):
        return
    code = given.lookup(model)
    module, name = getattr(code, "__module__", None), getattr(code, "__qualname__", "")
    found: Any = sys.modules.get(module or "")
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not code or module == "__main__":
        raise CallError(
            f"{verb}() measures in processes of its own, which cannot have this "
            f"{type(code).__name__}; put the code in a file, and give model='module:callable'"
        )
    values["model"] = f"{module}:{name}"


def _called_by_name(call: Callable[[], R], written: Written) -> R:
    """What is said of the file is said of the model that was in memory: the file is gone."""
    try:
        result = call()
    except EdgeoptError as error:
        error.args = tuple(
            arg.replace(str(written.path), written.name) if isinstance(arg, str) else arg
            for arg in error.args
        )
        raise
    renamed: R = _renamed(result, written)
    return renamed


def _renamed(result: Any, written: Written) -> Any:
    shown = f"{written.name} (in memory)"
    if not dataclasses.is_dataclass(result) or isinstance(result, type):
        return result
    source = getattr(result, "source", None)
    if isinstance(source, Mapping) and "path" in source:
        return dataclasses.replace(result, source={**source, "path": shown})
    if getattr(result, "path", None) == str(written.path):
        return dataclasses.replace(result, path=shown)
    return result
