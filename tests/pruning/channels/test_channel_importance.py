"""What channels matter: four measures against what they are defined to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")
pytest.importorskip("torch_pruning", reason="the train extra is not installed")

from tests.pruning.prune_nets import NETS, image  # noqa: E402
from torch import nn  # noqa: E402

from edgeopt.errors import InputsError, UsageError  # noqa: E402
from edgeopt.modules.model import TorchModel  # noqa: E402
from edgeopt.pruning.channels.dependencies import trace  # noqa: E402
from edgeopt.pruning.channels.groups import ChannelGroup  # noqa: E402
from edgeopt.pruning.channels.importance import measure  # noqa: E402
from edgeopt.pruning.channels.prune import prune_channels  # noqa: E402
from edgeopt.pruning.channels.surgery import ModuleSnapshot, cut  # noqa: E402


def mlp() -> TorchModel:
    torch.manual_seed(0)
    return image(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), 6)


def feeds(model: TorchModel, count: int, rows: int = 4, seed: int = 1) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    shape = model.example["x"].shape[1:]
    return [{"x": rng.standard_normal((rows, *shape)).astype(np.float32)} for _ in range(count)]


def group(model: TorchModel, name: str) -> ChannelGroup:
    return next(g for g in trace(model).groups if g.name == name)


@pytest.mark.parametrize("name", ["dense", "depthwise", "grouped", "transposed", "recurrent"])
def test_magnitude_is_the_norm_of_what_goes(name: str) -> None:
    """The squares of a group's units add up to those that are gone when the unit is cut."""
    torch.manual_seed(0)
    build, shape = NETS[name]
    model = image(build(), *shape)
    groups = [g for g in trace(model).groups if not g.reason]
    scores = measure("magnitude", model, groups)
    for one in groups:
        found = scores.of(one)
        assert found is not None and len(found) == one.count
        layers = {p.name for p in one.parts if scores.table.get((p.name, p.side)) is not None}
        before = _squares(model.module, layers)
        snapshot = ModuleSnapshot(model.module)
        cut(model, [(one, torch.tensor([0]))])
        gone = before - _squares(model.module, layers)
        snapshot.restore()
        assert float(found[0]) == pytest.approx((gone / len(layers)) ** 0.5, rel=1e-5), one.name


def _squares(module: nn.Module, layers: set[str]) -> float:
    return sum(
        float(value.detach().double().square().sum())
        for name in layers
        for kind, value in module.get_submodule(name).named_parameters()
        if kind.startswith("weight")
    )


def test_bn_ranks_by_gamma_and_needs_one() -> None:
    build, shape = NETS["depthwise"]
    model = image(build(), *shape)
    gammas = torch.linspace(1, 2, 24).flip(0)
    with torch.no_grad():
        model.module.n1.weight.copy_(gammas)
        model.module.n2.weight.copy_(-gammas)
    one = group(model, "up")
    scores = measure("bn", model, [one]).of(one)
    assert scores is not None
    torch.testing.assert_close(scores, gammas.double())
    pruning = prune_channels(model, ratio=0.5, importance="bn")
    assert torch.equal(model.module.n1.weight, gammas[:12])
    stem = next(cut for cut in pruning.cuts if cut.layer == "stem")
    assert stem.reason == "importance bn measures nothing on it"
    with pytest.raises(UsageError, match="there is none here; use magnitude, or taylor"):
        measure("bn", mlp(), trace(mlp()).groups)


def test_taylor_is_the_first_order_change_of_the_loss() -> None:
    """Against the loss itself, with the channel's gate opened a little more, and a little less."""
    model = mlp()
    net = model.module
    one = group(model, "0")
    given = feeds(model, 1, rows=8)
    labels = np.random.default_rng(2).integers(0, 3, 8)
    scores = measure("taylor", model, [one], given, labels).of(one)
    x, y = torch.from_numpy(given[0]["x"]), torch.from_numpy(labels)

    def loss(channel: int, gate: float) -> float:
        hidden = net[1](net[0](x)).double()
        hidden[:, channel] *= gate
        out = hidden @ net[2].weight.double().T + net[2].bias.double()
        return float(nn.functional.cross_entropy(out, y))

    assert scores is not None
    with torch.no_grad():
        for channel in range(5):
            slope = (loss(channel, 1 + 1e-4) - loss(channel, 1 - 1e-4)) / 2e-4
            assert float(scores[channel]) == pytest.approx(slope**2, rel=1e-3, abs=1e-12)


def test_taylor_without_labels_estimates_the_change_of_the_outputs() -> None:
    model = mlp()
    one = group(model, "0")
    given = feeds(model, 1, rows=1) * 200
    scores = measure("taylor", model, [one], given, seed=3).of(one)
    with torch.no_grad():
        x = torch.from_numpy(given[0]["x"])
        hidden = torch.relu(model.module[0](x))[0]
        out = model.module(x)
        exact = (hidden[:, None] * model.module[2].weight.T).square().sum(1) / out.square().mean()
    assert scores is not None
    torch.testing.assert_close(scores, exact.double(), rtol=0.3, atol=1e-9)
    again = measure("taylor", model, [one], given, seed=3).of(one)
    assert again is not None and torch.equal(scores, again)


def test_taylor_against_numbers_and_labels_that_do_not_fit() -> None:
    model = mlp()
    groups = trace(model).groups
    given = feeds(model, 2)
    wanted = np.zeros((8, 3), np.float64)
    assert measure("taylor", model, groups, given, wanted).of(groups[0]) is not None
    for labels, message in (
        (np.zeros(5, np.int64), "5 labels for 8 rows or more"),
        (np.full(8, 3), "label 3 is out of range: output output has 3 classes"),
        (np.full(8, -1), "label -1 is out of range"),
        (np.zeros((8, 2)), r"labels of shape \[4, 2\] for output output \[4, 3\]"),
        (np.zeros((8, 2), np.int64), "whole numbers"),
    ):
        with pytest.raises(InputsError, match=message):
            measure("taylor", model, groups, given, labels)
    assert all(p.grad is None for p in model.module.parameters())


def test_activation_is_the_mean_of_what_the_next_layer_reads() -> None:
    model = mlp()
    one = group(model, "0")
    given = feeds(model, 3)
    scores = measure("activation", model, [one], given).of(one)
    x = torch.from_numpy(np.concatenate([feed["x"] for feed in given]))
    with torch.no_grad():
        wanted = torch.relu(model.module[0](x)).double().mean(0)
    assert scores is not None
    torch.testing.assert_close(scores, wanted)


@pytest.mark.parametrize("kind", ["taylor", "activation"])
def test_what_is_measured_on_data_needs_data(kind: Any) -> None:
    with pytest.raises(InputsError, match=f"importance {kind} is measured on data"):
        prune_channels(mlp(), ratio=0.4, importance=kind)


@pytest.mark.parametrize("kind", ["taylor", "activation"])
@pytest.mark.parametrize("name", ["depthwise", "gated", "recurrent", "encoder"])
def test_a_silent_channel_goes_first(kind: Any, name: str) -> None:
    torch.manual_seed(0)
    build, shape = NETS[name]
    model = image(build(), *shape)
    pruning = prune_channels(
        model, ratio=0.5, importance=kind, feeds=feeds(model, 2), scope="global", heads=True
    )
    assert pruning.changed
