"""Interleaving, on a clock of our own: order, block lengths, when it stops."""

from __future__ import annotations

import gc
import random

import pytest

from edgeopt.core import InputSpec
from edgeopt.errors import SourceError, UsageError
from edgeopt.measure import jobs


class Machine:
    """A clock that only moves when a subject runs, each run taking its subject's time."""

    def __init__(self, *seconds: float, wobble: float = 0.0) -> None:
        self.now = 0.0
        self.order: list[int] = []
        self.turns: list[int] = []
        self._wobble = wobble
        self._chance = random.Random(0)
        self.timers = [self._timer(i, s) for i, s in enumerate(seconds)]

    def _timer(self, index: int, seconds: float) -> jobs.Timer:
        def run(runs: int, turn: int) -> float:
            self.order.append(index)
            self.turns.append(turn)
            took = seconds * (1 + self._wobble * self._chance.random())
            self.now += runs * took
            return took

        return run

    def interleave(self, seconds: float, orders=((0, 1, 1, 0), (1, 0, 0, 1))) -> jobs.Blocks:
        return jobs.interleave(
            self.timers, orders, seconds, lambda part: None, clock=lambda: self.now
        )


def test_rounds_take_their_orders_by_turns() -> None:
    machine = Machine(0.03, 0.03, wobble=0.5)
    blocks = machine.interleave(1.0)
    warm = next(i for i, turn in enumerate(machine.turns) if turn == 1) - 4
    assert machine.order[warm : warm + 8] == [0, 1, 1, 0, 1, 0, 0, 1]
    assert len(blocks.values[0]) == len(blocks.values[1])


def test_blocks_take_about_as_long_whatever_is_run() -> None:
    blocks = Machine(1e-5, 1e-3, 0.5).interleave(0.1, orders=((0, 1, 2), (1, 2, 0), (2, 0, 1)))
    assert blocks.runs[0] * 1e-5 == pytest.approx(jobs.BLOCK, rel=0.01)
    assert blocks.runs[1] * 1e-3 == pytest.approx(jobs.BLOCK, rel=0.1)
    assert blocks.runs[2] == 1


def test_slow_models_still_get_their_rounds_and_very_slow_ones_fewer() -> None:
    assert len(Machine(0.3, 0.3, wobble=0.1).interleave(1.0).values[0]) == 2 * jobs.ROUNDS
    slowest = Machine(10.0, 10.0, wobble=0.1).interleave(1.0)
    assert len(slowest.values[0]) == 2 * jobs.ROUNDS_IN_ANY_CASE


def test_a_known_ratio_ends_it_early_and_an_unknown_does_not() -> None:
    steady = Machine(0.01, 0.01).interleave(100.0)
    assert len(steady.values[0]) == 2 * jobs.LOOK_EVERY
    unsteady = Machine(0.01, 0.01, wobble=2.0).interleave(10.0)
    assert len(unsteady.values[0]) > 4 * jobs.LOOK_EVERY


def test_the_garbage_collector_is_left_as_it_was() -> None:
    seen = []
    machine = Machine(0.01)
    timer = machine.timers[0]

    def watch(runs: int, turn: int) -> float:
        seen.append(gc.isenabled())
        return timer(runs, turn)

    machine.timers[0] = watch
    machine.interleave(0.1, orders=((0,),))
    assert not seen[-1]
    assert gc.isenabled()


def spec(name: str) -> InputSpec:
    return InputSpec(name, "float32", (1,))


def test_outputs_are_matched_by_name_then_by_position() -> None:
    assert jobs.match_outputs([spec("a")], [spec("b"), spec("a")], None) == {"a": "a"}
    assert jobs.match_outputs([spec("a")], [spec("b")], None) == {"a": "b"}
    assert jobs.match_outputs([spec("a")], [spec("b")], {"a": "b"}) == {"a": "b"}
    with pytest.raises(SourceError, match="no output a; it has b, c"):
        jobs.match_outputs([spec("a")], [spec("b"), spec("c")], None)
    with pytest.raises(UsageError, match="source has no output z"):
        jobs.match_outputs([spec("a")], [spec("a")], {"z": "a"})
