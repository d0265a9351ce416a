"""The one clock: how long an inference takes, whoever asks, a benchmark or a proof."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["quiet", "timed"]


def timed(run: Callable[[], None], seconds: float = 0.0, least: int = 1) -> list[float]:
    """Seconds of each call of ``run``, one after the other, until ``seconds`` are up and there
    are ``least`` of them. What they add up to is the time that passed."""
    clock = time.perf_counter
    samples: list[float] = []
    before = clock()
    end = before + seconds
    while True:
        run()
        after = clock()
        samples.append(after - before)
        before = after
        if after >= end and len(samples) >= least:
            return samples


@contextmanager
def quiet() -> Iterator[None]:
    """Without Python's garbage collector, whose pauses are no part of an inference."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
