"""Which kind of samples an output is worst on, and what of it counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgeopt.core import Fidelity, OfKind

__all__ = ["WorstKind", "is_near", "worst_kind"]

#: A share of decisions (elements on the same side of one half) from which all count as the same.
_SAME_SIDE = 0.99


@dataclass(frozen=True)
class WorstKind:
    """``db`` on ``kind``, the worst that counts ("" where samples are of no kind); ``near``: the
    kinds on which a probability's decibels do not count, since all its errors are small, and
    ``largest`` of those errors."""

    db: float
    kind: str = ""
    near: tuple[str, ...] = ()
    largest: float = 0.0


def worst_kind(output: Fidelity, near: float | None, floor: float = math.inf) -> WorstKind:
    """The kind of samples that an output is furthest off on.

    Decibels say little of a probability that is close to nought: 0.001 in place of 0.003 is 3 dB
    and no other answer. A kind under ``floor`` (dB) on which no error of a probability is larger
    than ``near``, and no decision another, is judged by that, not by its decibels. Where all kinds
    are of that sort nothing has moved the output, and decibels over all of them count.
    """
    if not output.kinds:
        return WorstKind(output.sqnr_db)
    small = [k for k in output.kinds if k.sqnr_db < floor and is_near(output, k, near)]
    counting = [k for k in output.kinds if k not in small]
    if not counting:
        return WorstKind(output.sqnr_db)
    worst = min(counting, key=lambda k: k.sqnr_db)
    largest = max((k.max_abs for k in small), default=0.0)
    return WorstKind(worst.sqnr_db, worst.kind, tuple(k.kind for k in small), largest)


def is_near(output: Fidelity, kind: OfKind, near: float | None) -> bool:
    """Whether all errors of a probability on a kind of samples are small, and decide nothing."""
    if near is None or not output.probability:
        return False
    return kind.max_abs <= near and kind.same_side >= _SAME_SIDE
