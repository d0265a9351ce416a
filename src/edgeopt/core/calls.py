"""What a public function is called with: every name known, every value of a kind that it takes.

A call from Python and one from the command line pass the same gate, so that nothing but an
:class:`~edgeopt.errors.EdgeoptError` comes of a wrong one, and what an option takes is said once
(:mod:`edgeopt.options.table`).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

from edgeopt.core import given
from edgeopt.errors import CallError
from edgeopt.options.kinds import Takes
from edgeopt.options.option import Option, options_of
from edgeopt.options.table import flag_of, needs, takes_of

__all__ = ["Signature", "checked", "command_line", "given_of", "part", "require_needed", "stated"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_TYPED: ContextVar[frozenset[str] | None] = ContextVar("typed", default=None)
_STATED: ContextVar[frozenset[str] | None] = ContextVar("stated", default=None)


@contextmanager
def command_line(typed: Iterable[str]) -> Iterator[None]:
    """Within the block verbs are called with every option; the user typed these."""
    token = _TYPED.set(frozenset(typed))
    try:
        yield
    finally:
        _TYPED.reset(token)


def stated() -> frozenset[str] | None:
    """Names of the options that the user gave to the verb that is running, whatever their values;
    None outside of one."""
    return _STATED.get()


def given_of(options: Any) -> frozenset[str]:
    """Of a dataclass of options the fields that the user gave; outside of a verb, those that are
    not at their defaults."""
    fields = dataclasses.fields(options)
    said = stated()
    if said is None:
        return frozenset(f.name for f in fields if getattr(options, f.name) != f.default)
    return said & {f.name for f in fields}


def part(kind: type[T], options: Any) -> T:
    """The fields of ``kind`` out of a larger dataclass of options."""
    names = (f.name for f in dataclasses.fields(kind))  # type: ignore[arg-type]  # it is one
    return kind(**{name: getattr(options, name) for name in names})


class Signature:
    """What a public function takes: its own parameters, ``more`` keywords that go on to others, and
    the options of ``kind``, a dataclass of :mod:`edgeopt.options.table`, in place of its last."""

    def __init__(
        self, function: Callable[..., Any], more: Iterable[str] = (), kind: type | None = None
    ) -> None:
        self.name = function.__name__
        self.more = tuple(more)
        self.options: Mapping[str, Option] = {} if kind is None else options_of(kind)
        own = inspect.signature(function)
        self.shown = own if kind is None else _joined(own, inspect.signature(kind))
        parameters = self.shown.parameters
        self._rest = next((p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD), None)
        self.names = tuple(name for name in parameters if name != self._rest) + self.more
        self.takes: Mapping[str, Takes] = {
            name: self.options[name].takes if name in self.options else takes_of(self.name, name)
            for name in self.names
        }

    def bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name, each as its :class:`Takes` reads it. CallError for a wrong one."""
        for name in kwargs:
            if name not in self.names:
                raise CallError(f"{self.name}() has no option {name!r}{self._near(name)}")
        try:
            bound = self.shown.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise CallError(f"{self.name}(): {error}") from None
        values = {**bound.pop(self._rest or "", {}), **bound}
        return {name: self._read(name, value) for name, value in values.items()}

    def documented(self) -> str:
        """The options for a docstring, one after the other in the order of their table."""
        return textwrap.indent(
            "\n".join(
                textwrap.fill(f"{name}: {said.doc or said.help}", 92, subsequent_indent=" " * 4)
                for name, said in self.options.items()
            ),
            " " * 8,
        ).strip()

    def _near(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.names, 1, 0.5) or [
            known for known in self.names if known in name or name in known
        ]
        return f"; did you mean {near[0]!r}?" if near else f"; it takes {', '.join(self.names)}"

    def _read(self, name: str, value: Any) -> Any:
        parameter = self.shown.parameters.get(name)
        if value is None and (parameter is None or parameter.default is None):
            return None
        takes = self.takes[name]
        try:
            return self._within(name, _named(takes, takes.read(value)))
        except (TypeError, ValueError) as error:
            reason = f" ({error})" if str(error) else ""
            if takes.choices or _TYPED.get() is not None:
                known = ", ".join(map(str, takes.choices))
                wanted = f"use {known}" if known else f"takes {takes.what}{reason}"
                raise CallError(f"{flag_of(name)} {value}: {wanted}") from None
            raise CallError(
                f"{self.name}(): {name} takes {takes.what}, not {_shown(value)}{reason}"
            ) from None

    def _within(self, name: str, value: Any) -> Any:
        remedy = self.options[name].outside(value) if name in self.options else None
        if remedy is not None:
            raise CallError(f"{flag_of(name)} {value}: {remedy}")
        return value

    def run(self, function: Callable[..., R], values: Mapping[str, Any]) -> R:
        """Call ``function``, which :func:`stated` tells what the user gave."""
        typed = _TYPED.get()
        said = frozenset(
            name
            for name, value in values.items()
            if (typed is None or name in typed)
            and not (value is None or (isinstance(value, tuple) and not value))
        )
        require_needed(said)
        token = _STATED.set(said)
        try:
            return function(**values)
        finally:
            _STATED.reset(token)


def _joined(own: inspect.Signature, options: inspect.Signature) -> inspect.Signature:
    """The function's parameters, the last of them replaced by the options."""
    first = list(own.parameters.values())[:-1]
    return own.replace(parameters=[*first, *options.parameters.values()])


def _named(takes: Takes, value: Any) -> Any:
    """Objects in memory by the names that they go by during the call."""
    if takes.named == "each":
        return tuple(one if isinstance(one, str) else given.add(one) for one in value)
    return given.add(value) if takes.named and not isinstance(value, str) else value


def require_needed(names: Collection[str]) -> None:
    """CallError for an option among ``names`` that says nothing without one that is not."""
    for name in names:
        needed = needs(name)
        if needed is not None and needed not in names:
            raise CallError(
                f"{flag_of(name)} has no meaning without {flag_of(needed)}; give that too, or leave"
                " it out"
            )


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, called with nothing that it does not take."""
    signature = Signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return signature.run(function, signature.bound(args, kwargs))

    return call


def _shown(value: Any) -> str:
    """A value in few words: its type, and itself where that is short."""
    kind = type(value).__name__
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        text = repr(value)
        return f"{kind} {text[:40]}{'...' if len(text) > 40 else ''}" if value is not None else text
    return f"a {kind}"
