"""Names in messages: a few of many, and those that come near one that is not there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["listed", "near"]


def listed(names: Iterable[str], limit: int = 6) -> str:
    """The first few names, and how many more there are."""
    given = tuple(names)
    more = f" and {len(given) - limit} more" if len(given) > limit else ""
    return ", ".join(given[:limit]) + more


def near(name: str, known: Iterable[str]) -> str:
    """What may have been meant by ``name``: the nearest of ``known``, else what there is."""
    names = tuple(known)
    found = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if found:
        return f"is {' or '.join(found)} meant?"
    return f"there are {listed(names)}" if names else "there are none"
