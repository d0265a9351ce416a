"""Scatter against noise of a known size, and advice that fits the machine."""

from __future__ import annotations

import numpy as np
import pytest

from edgeopt.numerics import noise


@pytest.mark.parametrize("size", [0.01, 0.2])
@pytest.mark.parametrize("in_blocks", [True, False])
def test_turns_that_scatter_by_so_much(size: float, in_blocks: bool) -> None:
    rng = np.random.default_rng(0)
    groups = [np.repeat(np.exp(size * rng.normal(size=20)), 30) for _ in range(9)]
    blocks = [[30] * 20] * 9 if in_blocks else ()
    found = noise.scatter("latency", groups, blocks)
    assert found == pytest.approx(size, rel=0.25)
    assert noise.is_noisy("latency", found) is (size == 0.2)


def test_processes_that_scatter_while_each_is_quiet() -> None:
    groups = [np.full(100, level) for level in (1.0, 1.0, 1.3, 1.0, 1.3)]
    found = noise.scatter("latency", groups)
    assert found == pytest.approx(np.log([1.0, 1.0, 1.3, 1.0, 1.3]).std(ddof=1))


def test_what_has_no_scatter() -> None:
    assert noise.scatter("file", [np.array([5.0])]) is None
    assert noise.scatter("load.warm", [np.array([5.0])] * 2) is None
    assert noise.scatter("latency", []) is None
    assert noise.scatter("load.warm", [np.array([5.0])] * 3) == 0.0
    assert not noise.is_noisy("file", 1.0)


def test_advice_fits_the_machine() -> None:
    busy = noise.advice(
        {"load_1min": 3.0, "cores_usable": 2, "governor": "powersave", "steal": 0.2}, 5
    )
    assert [line.partition(":")[0] for line in busy[:2]] == [
        "close other programs",
        "pin the CPU's frequency",
    ]
    assert len(busy) == 4
    assert len(noise.advice({"governor": "unavailable"}, 5)) == 2
