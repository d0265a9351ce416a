"""Iterative magnitude pruning: what is pruned when, and what the survivors are set back to."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from edgeopt.core import InputSpec  # noqa: E402
from edgeopt.errors import SourceError, UsageError  # noqa: E402
from edgeopt.modules.model import TorchModel  # noqa: E402
from edgeopt.pruning.sparsity.lottery import lottery, sparsities  # noqa: E402

_STEPS = 12


def _model() -> TorchModel:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(6, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(),
        nn.Linear(10, 2),
    )  # fmt: skip
    example = {"x": np.ones((2, 6), np.float32)}
    return TorchModel(net, (InputSpec("x", "float32", ("b", 6)),), example, positional=True)


class _Trainer:
    """SGD on a small task; remembers what each training began and ended with, and step 5."""

    def __init__(self) -> None:
        self.starts: list[tuple[int, dict[str, torch.Tensor]]] = []
        self.ends: list[dict[str, torch.Tensor]] = []
        self.fifth: dict[str, torch.Tensor] = {}

    def __call__(self, net: nn.Module, after_step: Callable[[], None], start: int) -> None:
        self.starts.append((start, _state(net)))
        net.train()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for step in range(start, _STEPS):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(16, 6, generator=generator)
            optimizer.zero_grad()
            (net(x) - x[:, :2]).square().mean().backward()
            optimizer.step()
            after_step()
            if step == 4 and not self.fifth:
                self.fifth = _state(net)
        self.ends.append(_state(net))


def _state(net: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in net.state_dict().items()}


_PRUNED = ("0.weight", "3.weight")


def _zeros(state: dict[str, torch.Tensor]) -> int:
    return sum(int((state[n] == 0).sum()) for n in _PRUNED)


@pytest.mark.parametrize("rewind", [0, 5])
def test_rounds_prune_what_training_left_smallest_and_rewind_the_rest(rewind: int) -> None:
    model, trainer = _model(), _Trainer()
    given = _state(model.module)
    pruning = lottery(model, trainer, ratio=0.8, rounds=3, rewind_step=rewind)
    early = trainer.fifth if rewind else given
    size = sum(early[n].numel() for n in _PRUNED)
    assert [start for start, _ in trainer.starts] == [0, rewind, rewind, rewind]
    assert all(torch.equal(t, given[n]) for n, t in trainer.starts[0][1].items())
    gone: dict[str, torch.Tensor] = {
        n: torch.zeros_like(early[n], dtype=torch.bool) for n in _PRUNED
    }
    for i, ((_, start), trained) in enumerate(
        zip(trainer.starts[1:], trainer.ends[:-1], strict=True), 1
    ):
        # a geometric share, of the smallest that training left, and none comes back
        assert _zeros(start) == round((1 - 0.2 ** (i / 3)) * size)
        now = {n: start[n] == 0 for n in _PRUNED}
        assert all(bool((now[n] | ~gone[n]).all()) for n in _PRUNED)
        largest_gone = max(float(trained[n][now[n] & ~gone[n]].abs().max()) for n in _PRUNED)
        smallest_kept = min(float(trained[n][~now[n]].abs().min()) for n in _PRUNED)
        assert largest_gone <= smallest_kept
        # survivors, and all that is not pruned (buffers too), are as they were at that step
        for name, value in start.items():
            mask = ~now[name] if name in now else torch.ones_like(value, dtype=torch.bool)
            assert torch.equal(value[mask], early[name][mask])
        gone = now
    # the last training kept them at zero, exactly as many as were asked for
    last = _state(model.module)
    assert _zeros(last) == round(0.8 * size)
    assert all(torch.equal(last[n] == 0, gone[n]) for n in _PRUNED)
    cuts = {cut.layer: cut for cut in pruning.cuts}
    assert cuts["0"].after + cuts["3"].after == size - round(0.8 * size)
    assert "output layer" in cuts["5"].reason
    assert "3 rounds" in pruning.notes[0] and f"step {rewind}" in pruning.notes[0]
    assert all(not p._backward_hooks for p in model.module.parameters())


def test_sparsities_are_geometric_and_end_exactly() -> None:
    found = sparsities(0.9, 5)
    left = [1.0, *(1 - s for s in found)]
    shares = [b / a for a, b in itertools.pairwise(left)]
    assert shares == pytest.approx([0.1 ** (1 / 5)] * 5)
    assert found[-1] == 0.9 and sparsities(0.5, 1) == (0.5,)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"ratio": 1.0, "rounds": 2}, UsageError, "prunes everything"),
        ({"ratio": 0.5, "rounds": 0}, UsageError, "0 rounds"),
        ({"ratio": 0.5, "rounds": 1, "rewind_step": -1}, UsageError, "before the first"),
        ({"ratio": 0.5, "rounds": 1, "rewind_step": 13}, UsageError, "beyond the training's 12"),
        ({"ratio": 0.5, "rounds": 1, "exclude": ["."]}, SourceError, "no layer to prune"),
        ({"ratio": 1e-4, "rounds": 1}, SourceError, "less than one weight"),
    ],
)
def test_what_is_refused(options, error, said) -> None:
    with pytest.raises(error, match=said):
        lottery(_model(), _Trainer(), **options)


def test_training_that_diverges_is_said() -> None:
    def train(net: nn.Module, after_step: Callable[[], None], start: int) -> None:
        with torch.no_grad():
            net[0].weight[0, 0] = float("nan")

    told: list[str] = []
    with pytest.raises(SourceError, match="0 with weights that are not finite"):
        lottery(_model(), train, ratio=0.5, rounds=1, progress=lambda *t: told.append(t[0]))
    assert told == ["training whole, 1 of 2"]
