"""BatchNorm's statistics against those of the data, taken by hand."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from edgeopt.core import InputSpec  # noqa: E402
from edgeopt.errors import InputsError  # noqa: E402
from edgeopt.modules.model import TorchModel  # noqa: E402
from edgeopt.pruning.batchnorm import refit_batchnorm  # noqa: E402


def _model(batch: int | str = "b") -> TorchModel:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.ReLU(), nn.Flatten(),
        nn.Linear(12, 4), nn.BatchNorm1d(4, momentum=0.3), nn.BatchNorm1d(4, affine=False),
        nn.BatchNorm1d(4, track_running_stats=False),
    ).eval()  # fmt: skip
    example = {"x": np.zeros((2, 2, 4, 4), np.float32)}
    return TorchModel(net, (InputSpec("x", "float32", (batch, 2, 4, 4)),), example, positional=True)


def _rows(count: int = 40) -> np.ndarray:
    return np.random.default_rng(1).normal(2, 3, size=(count, 2, 4, 4)).astype(np.float32)


def test_the_statistics_are_those_of_the_data_with_each_layer_refitted_before_the_next() -> None:
    model, x = _model(), torch.from_numpy(_rows())
    net = model.module
    weights = {n: p.detach().clone() for n, p in net.named_parameters()}
    # single rows, joined to one batch
    assert refit_batchnorm(model, [{"x": x[i : i + 1].numpy()} for i in range(40)], rows=32) == 3
    h = net[0](x).detach()
    torch.testing.assert_close(net[1].running_mean, h.mean((0, 2, 3)))
    torch.testing.assert_close(net[1].running_var, h.var((0, 2, 3)))
    h = (h - h.mean((0, 2, 3), keepdim=True)) / (
        h.var((0, 2, 3), keepdim=True, correction=0) + net[1].eps
    ).sqrt()
    h = net[5](torch.relu(h).flatten(1)).detach()  # dropout is off
    torch.testing.assert_close(net[6].running_mean, h.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net[6].running_var, h.var(0), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(p, weights[n]) for n, p in net.named_parameters())
    assert net[6].momentum == 0.3 and not any(m.training for m in net.modules())


def test_several_batches_are_averaged_and_none_is_a_lone_row() -> None:
    model, x = _model(), torch.from_numpy(_rows(33))
    refit_batchnorm(model, ({"x": x[i : i + 1].numpy()} for i in range(33)), rows=8)
    assert int(model.module[1].num_batches_tracked) == 4  # 8, 8, 8 and the 9 that are left
    h = model.module[0](x).detach()
    means = [part.mean((0, 2, 3)) for part in (h[:8], h[8:16], h[16:24], h[24:])]
    torch.testing.assert_close(model.module[1].running_mean, torch.stack(means).mean(0))


def test_a_fixed_batch_is_taken_as_it_comes() -> None:
    model, x = _model(4), _rows(8)
    refit_batchnorm(model, [{"x": x[:4]}, {"x": x[4:]}])
    assert int(model.module[1].num_batches_tracked) == 2
    lone = _model(1)
    before = lone.module[1].running_var.clone()
    assert refit_batchnorm(lone, [{"x": x[:1]}, {"x": x[1:2]}]) == 0
    assert torch.equal(lone.module[1].running_var, before)


def test_bad_data_changes_nothing() -> None:
    for bad, said in (
        (np.full((9, 2, 4, 4), np.nan), "not finite"),
        (np.ones((9, 1, 4, 4)), "Error"),
    ):
        model = _model()
        state = {n: t.clone() for n, t in model.module.state_dict().items()}
        with pytest.raises(InputsError, match=said):
            refit_batchnorm(model, [{"x": _rows(9)}, {"x": bad.astype(np.float32)}], rows=4)
        assert all(torch.equal(t, state[n]) for n, t in model.module.state_dict().items())


def test_a_model_without_any_is_left() -> None:
    net = nn.Linear(3, 2)
    model = TorchModel(net, (InputSpec("x", "float32", ("b", 3)),), {}, positional=True)
    assert refit_batchnorm(model, [{"x": np.ones((4, 3), np.float32)}]) == 0
