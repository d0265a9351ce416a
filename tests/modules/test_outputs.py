from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import torch
from torch import nn

from edgeopt.modules.outputs import Flat, flatten

A, B = torch.zeros(1), torch.ones(1)


def _names(value):
    return [name for name, _ in flatten(value)]


def test_names_of_outputs():
    pair = namedtuple("pair", "left right")

    @dataclass
    class Record:
        logits: torch.Tensor
        loss: None = None

    assert _names(A) == ["output"]
    assert _names((A,)) == ["output"]
    assert _names((A, None, B)) == ["output_0", "output_2"]
    assert _names(OrderedDict(last=A, none=None, states=(A, B))) == ["last", "states_0", "states_1"]
    assert _names(pair(A, B)) == ["left", "right"]
    assert _names(Record(A)) == ["logits"]
    assert _names({"a": 3, "b": A}) == ["b"]
    assert _names("text") == []


def test_an_output_never_takes_an_inputs_name_and_shared_tensors_keep_both():
    class Through(nn.Module):
        def forward(self, x):
            y = x + 1
            return {"x": x, "y": y, "again": y}

    flat = Flat(Through(), ["x"])
    assert flat.names_out(A) == ("x_out", "y", "again")
    out = flat(A)
    assert len({id(t) for t in (*out, A)}) == 4
    assert out[1].item() == out[2].item() == 1


def test_positional_and_fixed_arguments():
    class Star(nn.Module):
        def forward(self, *tensors, sign=1):
            return sign * sum(tensors)

    flat = Flat(Star(), ["a", "b"], {"sign": -1}, positional=True)
    assert flat(A, B)[0].item() == -1
