"""Counts of parameters, bytes and FLOPs: by hand, by torch's counter and by torch-pruning's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from edgeopt.core import InputSpec
from edgeopt.errors import SourceError
from edgeopt.modules.counting import LayerCount, count, one_sample
from edgeopt.modules.model import TorchModel
from edgeopt.modules.program import load_trainable, write_program


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.groups = nn.Conv2d(6, 4, 3, groups=2)
        self.out = nn.Linear(4, 3)

    def forward(self, image: Tensor) -> Tensor:
        return self.out(self.groups(self.norm(self.first(image))).relu().mean((2, 3)))


def convolutions() -> TorchModel:
    torch.manual_seed(0)
    spec = InputSpec("image", "float32", ("batch", 2, 5, 7))
    return TorchModel(Convolutions(), (spec,), {"image": np.ones((3, 2, 5, 7), np.float32)})


def test_by_hand() -> None:
    model = convolutions()
    with torch.no_grad():
        model.module.first.weight[0] = 0
    model.module.train()
    counts = count(model)
    assert counts.layers == (
        # 6 x 2 x 3 x 3 weights at 5 x 7 places; one filter is zeros.
        LayerCount("first", "Conv2d", 108, 90, 432, 2 * 108 * 35),
        # Means, variances and an int64 counter beside weight and bias, which is zeros.
        LayerCount("norm", "BatchNorm2d", 12, 6, 24 * 4 + 8, 0),
        # 4 x 3 x 3 x 3 weights at 3 x 5 places, and 4 biases.
        LayerCount("groups", "Conv2d", 112, 112, 448, 2 * 108 * 15),
        LayerCount("out", "Linear", 15, 15, 60, 2 * 12),
    )
    assert counts.batch == 1
    assert (counts.parameters, counts.nonzero) == (247, 223)
    assert counts.flops == sum(layer.flops for layer in counts.layers)
    # Counting neither trains nor changes the mode.
    assert model.module.training and int(model.module.norm.num_batches_tracked) == 0
    assert not model.module.first._forward_hooks and not model.module._forward_pre_hooks


def test_against_torch_and_torch_pruning() -> None:
    import torch_pruning

    model = convolutions()
    model.module.eval()
    counts = count(model)
    one = torch.ones(1, 2, 5, 7)
    with FlopCounterMode(display=False) as meter:
        model.module(one)
    assert counts.flops == meter.get_total_flops()
    _, parameters = torch_pruning.utils.count_ops_and_params(model.module, one)
    assert counts.parameters == parameters
    # Its multiply-adds, layer by layer; it counts a bias as one more of them, we do not.
    for name, biases in (("first", 0), ("groups", 4 * 15)):
        part: Any = model.module.get_submodule(name)
        macs, _ = torch_pruning.utils.count_ops_and_params(
            part, one if name == "first" else torch.ones(1, 6, 5, 7)
        )
        (layer,) = (layer for layer in counts.layers if layer.name == name)
        assert layer.flops == 2 * (macs - biases)


def test_a_program_counts_as_its_code_does(tmp_path: Path) -> None:
    model = convolutions()
    write_program(model, tmp_path / "m.pt")
    counts, again = count(model), count(load_trainable(tmp_path / "m.pt"))
    assert again.nbytes == counts.nbytes
    assert {x.name: (x.parameters, x.flops) for x in again.layers} == {
        x.name: (x.parameters, x.flops) for x in counts.layers
    }


class Attention(nn.Module):
    """A table that is also the output layer; attention whose products have no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.again = self.encoder.linear1
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.table.weight
        self.register_buffer("left", torch.ones(100), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.encoder(self.table(ids)))


def test_shared_weights_count_once_and_attention_for_its_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec = InputSpec("ids", "int64", ("N", "length"))
    model = TorchModel(Attention().eval(), (spec,), {"ids": np.ones((2, 6), np.int64)})
    counts = count(model)
    found = {layer.name: layer for layer in counts.layers}
    assert counts.parameters == sum(p.numel() for p in model.module.parameters())
    assert counts.nbytes == 4 * counts.parameters  # what is not in the state dict does not count
    assert found["table"].parameters == 88 and found["table"].flops == 0
    assert found["out"].parameters == 0 and found["out"].flops == 2 * 88 * 6
    # In and out projections, scores and values: 6 tokens, width 8.
    assert found["encoder.self_attn"].flops == 2 * 6 * (4 * 8 * 8 + 2 * 6 * 8)
    assert found["encoder.linear1"].flops == 2 * 6 * 8 * 16
    assert "again" not in found
    write_program(model, tmp_path / "m.pt")
    again = count(load_trainable(tmp_path / "m.pt"))
    assert (again.parameters, again.flops) == (counts.parameters, counts.flops)
    assert any(layer.kind == "operator" and layer.flops for layer in again.layers)


def test_the_batch_is_one_where_it_can_be() -> None:
    model = convolutions()
    feed, batch = one_sample(model)
    assert feed["image"].shape == (1, 2, 5, 7) and batch == 1
    fixed = TorchModel(model.module, (InputSpec("image", "float32", (3, 2, 5, 7)),), model.example)
    assert count(fixed).batch == 3 and count(fixed).flops == 3 * count(model).flops
    late = InputSpec("x", "float32", ("sequence", "batch", 4))
    feed, _ = one_sample(TorchModel(nn.Identity(), (late,), {"x": np.ones((5, 2, 4))}))
    assert feed["x"].shape == (5, 1, 4)


def test_a_model_that_does_not_run() -> None:
    spec = InputSpec("x", "float32", ("batch", 3))
    model = TorchModel(nn.Linear(4, 2), (spec,), {"x": np.ones((2, 3), np.float32)}, True)
    with pytest.raises(SourceError, match="Linear does not run on its example"):
        count(model)
