"""Weights that stay zero through training, and survivors that train as if nobody watched."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from edgeopt.core import InputSpec  # noqa: E402
from edgeopt.errors import SourceError  # noqa: E402
from edgeopt.modules.model import TorchModel  # noqa: E402
from edgeopt.pruning.sparsity.masks import SparsityMask, masks_of  # noqa: E402
from edgeopt.pruning.sparsity.prune import prune_weights  # noqa: E402


def _pruned() -> tuple[nn.Sequential, TorchModel]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2))
    example = {"x": np.ones((2, 6), np.float32)}
    model = TorchModel(net, (InputSpec("x", "float32", ("b", 6)),), example, positional=True)
    prune_weights(model, method="magnitude", ratio=0.5)
    return net, model


def _train(net: nn.Module, after: object, steps: int = 8) -> None:
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.05, weight_decay=0.1)
    for _ in range(steps):
        x = torch.randn(16, 6)
        loss = (net(x) - x[:, :2]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        if callable(after):
            after()


def test_pruned_weights_stay_zero_and_the_others_learn() -> None:
    net, _ = _pruned()
    masks = masks_of(net)
    assert list(masks) == ["0.weight", "2.weight"]
    assert [int((~m).sum()) for m in masks.values()] == [30, 40]
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    with SparsityMask(net, masks) as after_step:
        _train(net, after_step)
    for name, parameter in net.named_parameters():
        moved = parameter.detach() != before[name]
        mask = masks.get(name, torch.ones_like(parameter, dtype=torch.bool))
        assert not parameter[~mask].any() and moved[mask].float().mean() > 0.5
    _train(net, None, 1)  # let go: they grow again, where a gradient comes by
    grown = [int((~mask & (net.get_parameter(n) != 0)).sum()) for n, mask in masks.items()]
    assert min(grown) > 0


def test_gradients_alone_hold_and_a_step_that_moves_them_is_taken_back() -> None:
    net, _ = _pruned()
    masks = masks_of(net)
    holding = SparsityMask(net, masks)
    _train(net, None)  # nobody calls it
    assert all(not net.get_parameter(n)[~m].any() for n, m in masks.items())
    with torch.no_grad():
        net[0].weight.add_(1.0)
        net[2].weight[~masks["2.weight"]] = float("nan")
    holding()
    assert all(not net.get_parameter(n)[~m].any() for n, m in masks.items())
    holding.remove()


def test_what_a_method_pruned_is_held_and_no_other_zero() -> None:
    net, model = _pruned()
    with torch.no_grad():
        net[4].weight[0, 0] = 0
    pruning = prune_weights(model, method="magnitude", ratio=0.6, include=["^0$"])
    assert set(masks_of(net)) == {"0.weight", "2.weight", "4.weight"}
    assert set(masks_of(net, pruning)) == {"0.weight"}


def test_masks_of_another_model_are_refused() -> None:
    net, _ = _pruned()
    with pytest.raises(SourceError, match=r"4\.bias is not there in that shape"):
        SparsityMask(net, {"4.bias": torch.ones(3, dtype=torch.bool)})
