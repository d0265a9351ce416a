"""The learning rate over a training: warm-up, hold, cosine decay, as a pure function."""

from __future__ import annotations

import math

__all__ = ["multiplier", "phases"]


def phases(total: int, warmup: float, hold: float) -> tuple[int, int, int]:
    """Updates of warm-up, hold and decay, out of ``total``, for shares of it."""
    rising = min(total, round(warmup * total))
    holding = min(total - rising, round(hold * total))
    return rising, holding, total - rising - holding


def multiplier(step: int, total: int, warmup: float, hold: float, floor: float = 0.0) -> float:
    """What the learning rate is multiplied by in update ``step``, counted from 0, of ``total``.

    It rises along a line to 1 over the warm-up, whose first update gets 1 / its length; stays
    there over the hold; and falls along half a cosine towards ``floor`` (Loshchilov and Hutter
    2017, arXiv:1608.03983, equation 5, without restarts; the hold between is that of Hu et al.
    2024, arXiv:2404.06395, section 4). The decay begins at 1 and would reach ``floor`` one update
    past the last: no update is spent on a rate of zero.
    """
    rising, holding, falling = phases(total, warmup, hold)
    if step < rising:
        return (step + 1) / rising
    if step < rising + holding or not falling:
        return 1.0
    along = min(1.0, (step - rising - holding) / falling)
    return floor + (1 - floor) * (1 + math.cos(math.pi * along)) / 2
