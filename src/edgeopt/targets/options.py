"""What was given and has no meaning for the artifact at hand is refused by its name.

A verb asks before it reads anything. Nothing that the user said is dropped: an option is carried
out, or it is an error that says why it cannot be. That an option was given counts, and not whether
its value is the default.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgeopt.core import Source
from edgeopt.core.calls import stated
from edgeopt.errors import UsageError
from edgeopt.options.option import Option
from edgeopt.options.table import MEASURED, WRITTEN, flag_of

__all__ = ["require_meaning", "require_same", "require_use"]


def require_meaning(form: str, source: Source | None = None) -> None:
    """UsageError for an option of what is written that the user gave, and that says nothing to an
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
    """UsageError for an option of what is measured that the user gave, and that none of these
    runtimes has a use for."""
    there = frozenset(runtimes)
    for name, use in _given(MEASURED):
        if not there.intersection(use.of):
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


def _given(uses: Mapping[str, Option]) -> Iterable[tuple[str, Option]]:
    names = stated() or frozenset()
    return ((name, use) for name, use in uses.items() if name in names and use.of)
