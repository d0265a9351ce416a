"""The output layer, told by the gradient's graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from edgeopt.core import InputSpec  # noqa: E402
from edgeopt.modules.model import TorchModel  # noqa: E402
from edgeopt.pruning.sparsity.output_layers import output_weights  # noqa: E402


class _Net(nn.Module):
    def __init__(self, end: Callable[[_Net, Tensor], object]) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)
        self.other = nn.Linear(6, 2, bias=False)
        self.end = end

    def forward(self, x: Tensor) -> object:
        return self.end(self, torch.relu(self.body(x)))


_ENDS = {
    "plain": (lambda m, h: m.head(h), {"head"}),
    "softmax and slice": (lambda m, h: (m.head(h).softmax(-1) * 2)[:, :2], {"head"}),
    "two heads": (lambda m, h: {"a": m.head(h), "b": m.other(h).squeeze(-1)}, {"head", "other"}),
    "normalised": (lambda m, h: m.norm(h), set()),
    "pooled": (lambda m, h: nn.functional.normalize(m.norm(h)), set()),
    "an activation": (lambda m, h: h, set()),
    "no gradient": (lambda m, h: m.head(h).detach(), set()),
}


@pytest.mark.parametrize("name", _ENDS)
def test_the_output_layer(name: str) -> None:
    end, wanted = _ENDS[name]
    net = _Net(end).requires_grad_(False)
    net.body.weight.requires_grad_(True)
    spec = InputSpec("x", "float32", ("batch", 4))
    model = TorchModel(net, (spec,), {"x": np.ones((2, 4), np.float32)})
    found = output_weights(model)
    names = {n.removesuffix(".weight") for n, p in net.named_parameters() if id(p) in found}
    assert names == wanted
    # nothing is left behind
    assert [n for n, p in net.named_parameters() if p.requires_grad] == ["body.weight"]


def test_a_convolution_that_is_upsampled_and_a_tied_embedding() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.embed(x) @ self.embed.weight.T

    spec = InputSpec("x", "int64", ("batch", 3))
    tied = Tied()
    found = output_weights(TorchModel(tied, (spec,), {"x": np.ones((2, 3), np.int64)}))
    assert found == {id(tied.embed.weight)}
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 1), nn.Flatten())
    image = InputSpec("input", "float32", ("batch", 1, 5, 5))
    feed = {"input": np.ones((2, 1, 5, 5), np.float32)}
    assert output_weights(TorchModel(net, (image,), feed)) == {id(net[2].weight)}
