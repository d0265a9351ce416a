"""Pairs of layers, and what inner layers give, on networks whose blocks are known."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgeopt.errors import SourceError, UsageError
from edgeopt.training.hidden_states import captured
from edgeopt.training.layer_pairs import (
    Pair,
    attention_pairs,
    blocks_of,
    parse_pairs,
    propose_pairs,
)


def _encoder(layers: int, width: int = 8) -> nn.Module:
    layer = nn.TransformerEncoderLayer(width, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()


def _llama(layers: int, **more):
    transformers = pytest.importorskip("transformers")
    options = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, **more}
    config = transformers.LlamaConfig(
        num_hidden_layers=layers, vocab_size=20, max_position_embeddings=16, **options
    )
    return transformers.LlamaForCausalLM(config).eval()


def _gpt2(layers: int):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=8, n_head=2, n_layer=layers, n_positions=8, vocab_size=9
    )
    return transformers.GPT2LMHeadModel(config).eval()


def test_blocks_of_known_networks():
    from models.digits import build

    assert blocks_of(build()) == ("features.0", "features.1", "features.2")
    assert blocks_of(_encoder(3)) == ("layers.0", "layers.1", "layers.2")
    assert blocks_of(_encoder(1)) == ("layers.0",)
    assert blocks_of(_llama(2)) == ("model.layers.0", "model.layers.1")
    assert blocks_of(nn.Sequential(_encoder(2), nn.Sequential(nn.Linear(8, 2)))) == (
        "0.layers.0",
        "0.layers.1",
    )
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3), nn.Linear(3, 2))
    assert blocks_of(plain) == ("0", "2")
    assert blocks_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))) == ("0",)


def test_stages_hold_stages():
    def stage(depth):
        inner = [stage(depth - 1) for _ in range(2)] if depth else [nn.Conv2d(1, 1, 1)]
        return nn.Sequential(*inner)

    assert blocks_of(stage(2)) == ("0", "1")


def test_pairs_go_by_depth():
    found = propose_pairs(_encoder(6), _encoder(3))
    assert found == tuple(Pair(f"layers.{t}", f"layers.{s}") for s, t in enumerate((1, 3, 5)))
    # Against the rule with Python's own fractions, a half up.
    found = propose_pairs(_encoder(5), _encoder(2))
    assert [p.teacher_layer for p in found] == ["layers.2", "layers.4"]


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 12))
def test_depth_never_falls_and_the_last_follows_the_last(n, m):
    def net(depth):
        return nn.Sequential(*(nn.Conv1d(1, 1, 1) for _ in range(depth)))

    found = propose_pairs(net(n), net(m))
    assert [p.student_layer for p in found] == [str(i) for i in range(m)]
    followed = [int(p.teacher_layer) for p in found]
    assert followed == sorted(followed) and followed[-1] == n - 1
    for i, layer in enumerate(followed):
        assert layer == 0 or abs(layer + 1 - (i + 1) * n / m) <= 0.5
    assert n < m or len(set(followed)) == m


def test_a_network_without_blocks_has_no_pairs():
    with pytest.raises(SourceError, match=r"the student \(Linear\) has no blocks to compare"):
        propose_pairs(_encoder(1), nn.Linear(2, 2))


def test_blocks_are_taken_down_to_projections_where_both_have_them():
    found = attention_pairs(_llama(2), _llama(1))
    assert found == tuple(
        Pair(f"model.layers.1.self_attn.{p}_proj", f"model.layers.0.self_attn.{p}_proj")
        for p in "qkv"
    )
    assert attention_pairs(_gpt2(2), _gpt2(1)) == (
        Pair("transformer.h.1.attn.c_attn", "transformer.h.0.attn.c_attn"),
    )
    blocks = propose_pairs(_encoder(2), _llama(1))
    assert attention_pairs(_encoder(2), _llama(1)) == blocks
    exact = (Pair("model.layers.0.self_attn.v_proj", "model.layers.0.self_attn.v_proj"),)
    assert attention_pairs(_llama(1), _llama(1), exact) == exact


def test_pairs_that_are_given():
    teacher, student = _encoder(4), _encoder(2)
    assert parse_pairs("layers.3=layers.1, layers.0.norm1 = layers.1.norm1", teacher, student) == (
        Pair("layers.3", "layers.1"),
        Pair("layers.0.norm1", "layers.1.norm1"),
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("layers.3", "'layers.3' are not of the form teacher.layer=student.layer"),
        ("layers.3=", "are not of the form"),
        ("", "are not of the form"),
        ("layers.3=layers.3", "the student has no layer layers.3; is layers"),
        ("layer.0=layers.0", "the teacher has no layer layer.0; is layers.0"),
        ("layers.3=layers.0,layers.3=layers.0", "given twice"),
    ],
)
def test_pairs_that_cannot_be(text, told):
    with pytest.raises(UsageError) as caught:
        parse_pairs(text, _encoder(4), _encoder(2))
    assert told in str(caught.value)


# --- what inner layers give -----------------------------------------------------------------------


def test_outputs_are_those_of_the_latest_forward_with_gradients():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    first, second = torch.randn(2, 2), torch.randn(5, 2)
    with captured(net, ["0", "1", "0"]) as hidden:
        net(first)
        net(second)
        assert set(hidden) == {"0", "1"}
        torch.testing.assert_close(hidden["1"], net[0](second).relu())
        hidden["0"].sum().backward()
    assert net[0].weight.grad is not None
    before = dict(hidden)
    net(first)  # nothing is watched any more
    assert dict(hidden).keys() == before.keys()
    assert not net._forward_hooks and not net._forward_pre_hooks and not net[0]._forward_hooks


def test_the_first_tensor_of_tuples_and_the_last_run_of_a_layer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.shared = nn.Linear(4, 4)
            self.idle = nn.Linear(4, 4)

        def forward(self, x):
            x, _ = self.attention(x, x, x)
            return self.shared(self.shared(x))

    net = Net()
    with captured(net, ["attention", "shared", "idle"]) as hidden:
        out = net(torch.randn(2, 3, 4))
    assert hidden["attention"].shape == (2, 3, 4)
    assert torch.equal(hidden["shared"], out)
    assert "idle" not in hidden


def test_the_network_itself_and_names_that_are_not_there():
    net = nn.Sequential(nn.Linear(2, 2))
    with captured(net, [""]) as hidden:
        assert net(torch.ones(1, 2)) is hidden[""]
    with captured(net, []) as hidden:
        net(torch.ones(1, 2))
        assert not hidden
    with pytest.raises(UsageError, match="no layer 1; there are 0"), captured(net, ["1"]):
        pass
    assert not net._forward_pre_hooks


def test_a_layer_that_returns_no_tensor_is_named():
    class Empty(nn.Module):
        def forward(self, x):
            return None

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.empty = Empty()

        def forward(self, x):
            self.empty(x)
            return x

    net = Net()
    with captured(net, ["empty"]), pytest.raises(SourceError, match=r"layer empty \(Empty\)"):
        net(torch.ones(1))
