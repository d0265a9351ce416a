"""Inputs of plain modules: given, from an example, from the first layer, or a line to add."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.graphs.capture import nets
from torch import nn

from edgeopt.data.inputspec import parse_inputs
from edgeopt.errors import InputsError
from edgeopt.graphs.capture.loaded import Loaded
from edgeopt.graphs.capture.loaders import _flat
from edgeopt.graphs.capture.plain import derive, vocabulary
from edgeopt.modules.loading import argument_names


def _derive(module, specs=(), example=None):
    module.eval()

    def works(inputs, fed):
        return Loaded(call=_flat(module, inputs), inputs=inputs).complaint(fed)

    return derive(module, parse_inputs(tuple(specs)), example, works)


class _First(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        out = self.layer(x)
        return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (nn.Linear(12, 3), "x: float32[batch, 12]"),
        (nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 3)), "x: float32[batch, 12]"),
        (nn.BatchNorm1d(12), "x: float32[batch, 12]"),
        (nn.Embedding(30, 8), "x: int64[batch, sequence]"),
        (nn.LSTM(5, 7, batch_first=True), "x: float32[batch, sequence, 5]"),
        (nn.GRU(5, 7), "x: float32[sequence, batch, 5]"),
        (
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
            "x: float32[batch, sequence, 16]",
        ),
    ],
)
def test_the_first_layer_tells(layer, told):
    inputs, notes = _derive(_First(layer))
    assert str(inputs.specs[0]) == told
    assert told in notes[0]


def test_token_ids_fit_every_table():
    module = nn.Sequential(nn.Embedding(30, 8))
    module.add_module("other", nn.Embedding(20, 8))
    assert vocabulary(module) == 20


def test_linear_layers_over_sequences_are_told_by_trying():
    class Sequence(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x):
            batch, length, _ = x.shape
            return self.layer(x).reshape(batch, length * 4)

    inputs, _ = _derive(Sequence())
    assert str(inputs.specs[0]) == "x: float32[batch, sequence, 6]"


def test_the_one_image_size_that_fits_is_taken():
    inputs, notes = _derive(nets.Digits())
    assert str(inputs.specs[0]) == "pixels: float32[batch, 1, 8, 8]"
    assert "one fits" in notes[0]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        (nets.Picture(), "--input image:float32[1,3,224,224]"),
        (_First(nn.Conv1d(4, 8, 3)), "--input x:float32[1,4,16000]"),
        (nets.Many(), "--input a:float32[1,...] --input b:float32[1,...]"),
        (_First(nn.ReLU()), "--input x:float32[1,...]"),
    ],
)
def test_otherwise_the_error_has_the_line_to_add(module, line):
    with pytest.raises(InputsError) as caught:
        _derive(module)
    assert str(caught.value).endswith(line)


def test_a_forward_without_names_says_so():
    class Star(nn.Module):
        def forward(self, *tensors):
            return sum(tensors)

    with pytest.raises(InputsError, match="names no arguments"):
        _derive(Star())


def test_numbers_alone_free_the_batch():
    inputs, _ = _derive(nets.Picture(), ["image:float32[1,3,20,20]"])
    assert inputs.specs[0].shape == ("batch", 3, 20, 20)
    assert inputs.axes["batch"].optional and inputs.axes["batch"].pinned == 1


def test_names_stay_free_and_sizes_are_found():
    inputs, _ = _derive(nets.Picture(), ["image:float32[N,3,H,W]"])
    assert set(inputs.axes) == {"N", "H", "W"}
    assert inputs.axes["H"].first == 64


def test_two_lengths_are_told_apart_and_a_scalar_has_no_batch():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, a, b, scale):
            return self.layer(a).sum(1) + b.sum(1) * scale

    names = ("a:float32[batch,s,8]", "b:float32[batch,t,8]", "scale:float32[]")
    inputs, _ = _derive(Pair(), names)
    assert inputs.axes["s"].second != inputs.axes["t"].second
    inputs, _ = _derive(Pair(), ("a:float32[1,4,8]", "b:float32[1,5,8]", "scale:float32[]"))
    assert [s.shape for s in inputs.specs] == [("batch", 4, 8), ("batch", 5, 8), ()]


def test_a_fixed_batch_is_kept_fixed():
    inputs, _ = _derive(nets.FixedBatch(), ["x:float32[1,8]"])
    assert inputs.specs[0].shape == (1, 8)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_an_example_gives_shapes_and_becomes_float32(dtype):
    inputs, _ = _derive(nets.Picture(), example={"image": np.zeros((4, 3, 9, 9), dtype)})
    assert str(inputs.specs[0]) == "image: float32[batch, 3, 9, 9]"
    assert inputs.axes["batch"].first == 4


def test_names_and_an_example_together():
    inputs, _ = _derive(
        nets.Picture(),
        ["image:float32[batch,3,side,side]"],
        {"image": np.zeros((1, 3, 10, 10), np.float32)},
    )
    assert (inputs.axes["batch"].first, inputs.axes["batch"].pinned) == (2, 1)
    assert (inputs.axes["side"].first, inputs.axes["side"].second) == (10, 15)


@pytest.mark.parametrize(
    ("specs", "example", "says"),
    [
        (["picture:float32[1,3,9,9]"], None, r"no input 'picture'; its forward\(\) takes image"),
        (["image:float32[1,4,9,9]"], None, "does not take image: float32"),
        (["image:float16[1,3,9,9]"], None, r"no float16; give image:float32\["),
        (
            ["image:float32[1,3,9]"],
            {"image": np.zeros((1, 3, 9, 9))},
            "has 4 dimensions",
        ),
        (
            ["image:float32[1,3,9,9]"],
            {"image": np.zeros((1, 3, 8, 8))},
            r"has shape \[1, 3, 8, 8\]",
        ),
    ],
)
def test_inputs_that_do_not_fit(specs, example, says):
    with pytest.raises(InputsError, match=says):
        _derive(nets.Picture(), specs, example)


def test_missing_and_optional_inputs():
    with pytest.raises(InputsError, match="also takes b; add --input b:float32"):
        _derive(nets.Many(), ["a:float32[1,8]"])
    inputs, _ = _derive(nets.Many(), ["scale:float32[1,1]", "b:float32[1,8]", "a:float32[1,8]"])
    assert [s.name for s in inputs.specs] == ["a", "b", "scale"]


def test_torchscript_tells_its_arguments_by_schema():
    scripted = torch.jit.script(nets.Head())
    assert argument_names(scripted) == (("features",), ())
