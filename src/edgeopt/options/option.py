"""An option as data: what it takes, what it says to whom, and how the command line spells it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgeopt.options.kinds import Takes

__all__ = ["Option", "option", "options_of"]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of one or several verbs.

    Attributes:
        takes: the kind of its values.
        help: what ``--help`` says; None: the command line has no such option.
        doc: what Python's documentation says, where that is more.
        flags: how the command line spells it, where that is not the name with two dashes.
        metavar: what stands for the value in ``--help``.
        least, most: the range of a number, both ends included.
        of: the formats of artifacts (or runtimes) that it says something to; none: to all.
        without: why others have no use for it.
        not_of: kinds of sources that say by themselves what it would say, and ``told`` how.
        needs: the option that it says nothing without.
        typed: what else :func:`click.option` is told.
    """

    takes: Takes
    help: str | None
    doc: str = ""
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    least: float | None = None
    most: float | None = None
    of: Collection[str] = ()
    without: str = ""
    not_of: Collection[str] = ()
    told: str = ""
    needs: str | None = None
    typed: Mapping[str, Any] = field(default_factory=dict)

    def outside(self, value: Any) -> str | None:
        """What to give in place of a number out of range; None for one within."""
        low, high = self.least, self.most
        if low is not None and high is not None and not low <= value <= high:
            return f"give {low:,} to {high:,}"
        return f"give {low:,} or more" if low is not None and not low <= value else None


_ORDER = itertools.count()


def option(
    default: Any, takes: Takes, help: str | None, *, kw_only: bool = True, **said: Any
) -> Any:
    """A field of a dataclass of options; ``said`` are the other attributes of :class:`Option`."""
    made = Option(takes=takes, help=help, **said)
    said = {"option": made, "order": next(_ORDER)}
    return field(default=default, kw_only=kw_only, metadata=said)


def options_of(kind: type) -> dict[str, Option]:
    """The options of a dataclass of them by name, as they were declared."""
    fields = sorted(dataclasses.fields(kind), key=lambda f: f.metadata["order"])
    return {f.name: f.metadata["option"] for f in fields}
