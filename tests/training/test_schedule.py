"""The schedule against torch's own schedulers, chained."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from edgeopt.training.schedule import multiplier, phases  # noqa: E402


@pytest.mark.parametrize(
    ("total", "warmup", "hold", "floor"),
    [(40, 0.1, 0.5, 0.0), (40, 0.25, 0.25, 0.1), (17, 0.3, 0.0, 0.0), (30, 0.0, 0.5, 0.05)],
)
def test_as_torch_chains_linear_constant_and_cosine(
    total: int, warmup: float, hold: float, floor: float
) -> None:
    rising, holding, falling = phases(total, warmup, hold)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedulers = torch.optim.lr_scheduler
    parts, ends = [], []
    if rising:
        parts.append(schedulers.LinearLR(optimizer, 1 / rising, 1.0, max(1, rising - 1)))
        ends.append(rising)
    if holding:
        parts.append(schedulers.ConstantLR(optimizer, 1.0, 1))
        ends.append(rising + holding)
    parts.append(schedulers.CosineAnnealingLR(optimizer, falling, eta_min=0.5 * floor))
    chained = schedulers.SequentialLR(optimizer, parts, ends)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of how it calls the chained ones
        for _ in range(total):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            chained.step()
    ours = [0.5 * multiplier(step, total, warmup, hold, floor) for step in range(total)]
    assert ours == pytest.approx(rates, abs=1e-7)


@settings(max_examples=40)
@given(
    total=st.integers(1, 300),
    warmup=st.floats(0, 1),
    hold=st.floats(0, 1),
    floor=st.floats(0, 1),
)
def test_up_flat_down_and_never_nothing(
    total: int, warmup: float, hold: float, floor: float
) -> None:
    hold = min(hold, 1 - warmup)
    rates = [multiplier(step, total, warmup, hold, floor) for step in range(total)]
    rising, holding, falling = phases(total, warmup, hold)
    assert rising + holding + falling == total and min(rising, holding, falling) >= 0
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:rising] == sorted(rates[:rising])
    assert set(rates[rising : rising + holding]) <= {1.0}
    assert rates[rising:] == sorted(rates[rising:], reverse=True)
