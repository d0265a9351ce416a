"""torch's attention taken apart: the same answers, masks and all, and put together where it can."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from torch import nn  # noqa: E402

from edgeopt.pruning.channels.split_attention import SplitAttention, split  # noqa: E402


def both(**settings: Any) -> tuple[nn.MultiheadAttention, SplitAttention]:
    torch.manual_seed(0)
    whole = nn.MultiheadAttention(12, 3, **settings).eval()
    if whole.in_proj_bias is not None:
        nn.init.normal_(whole.in_proj_bias)
    return whole, SplitAttention(whole)


@pytest.mark.parametrize("settings", [{}, {"batch_first": True}, {"bias": False}, {"kdim": 5}])
@pytest.mark.parametrize("averaged", [True, False])
def test_it_answers_as_torchs_own(settings: dict[str, Any], averaged: bool) -> None:
    whole, apart = both(**settings)
    shape = (4, 5) if settings.get("batch_first") else (5, 4)
    query, value = torch.randn(*shape, 12), torch.randn(*shape, 12)
    key = torch.randn(*shape, settings.get("kdim", 12))
    padding = torch.zeros(4, 5, dtype=torch.bool)
    padding[:, -1] = True
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    for masks in (
        {},
        {"key_padding_mask": padding},
        {"attn_mask": causal},
        {"attn_mask": torch.randn(5, 5)},
        {"attn_mask": causal, "key_padding_mask": padding},
    ):
        for weights in (True, False):
            given = {**masks, "need_weights": weights, "average_attn_weights": averaged}
            wanted, got = whole(query, key, value, **given), apart(query, key, value, **given)
            torch.testing.assert_close(got[0], wanted[0], rtol=1e-4, atol=1e-5)
            assert (got[1] is None) == (wanted[1] is None)
            if got[1] is not None:
                torch.testing.assert_close(got[1], wanted[1], rtol=1e-4, atol=1e-5)


def test_without_a_batch() -> None:
    whole, apart = both()
    x = torch.randn(5, 12)
    for wanted, got in zip(whole(x, x, x), apart(x, x, x), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_an_encoder_is_put_together_as_it_was() -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 8, batch_first=True)
    stack = nn.TransformerEncoder(layer, 1)
    own, nested = stack.layers[0].self_attn, stack.use_nested_tensor
    parts = split(stack)
    assert isinstance(stack.layers[0].self_attn, SplitAttention) and not stack.use_nested_tensor
    assert parts.join(stack) == 0
    assert stack.layers[0].self_attn is own and stack.use_nested_tensor == nested


@pytest.mark.parametrize("settings", [{"batch_first": True}, {"kdim": 7, "bias": False}])
def test_a_narrower_one_is_torchs_again_where_heads_make_up_the_width(settings: Any) -> None:
    model = nn.ModuleList([nn.MultiheadAttention(12, 3, **settings).eval()])
    parts = split(model)
    part = model[0]
    for layer in (part.q_proj, part.k_proj, part.v_proj):
        layer.out_features, layer.weight = 8, nn.Parameter(layer.weight[:8])
        layer.bias = None if layer.bias is None else nn.Parameter(layer.bias[:8])
    part.out_proj.in_features = 8
    part.out_proj.weight = nn.Parameter(part.out_proj.weight[:, :8])
    part.num_heads = 2
    assert parts.join(model) == 1 and model[0] is part  # 8 of heads, 12 of width
    for layer in (part.q_proj, part.v_proj, *([] if "kdim" in settings else [part.k_proj])):
        layer.in_features, layer.weight = 8, nn.Parameter(layer.weight[:, :8])
    part.out_proj.out_features = 8
    part.out_proj.weight = nn.Parameter(part.out_proj.weight[:8])
    if part.out_proj.bias is not None:
        part.out_proj.bias = nn.Parameter(part.out_proj.bias[:8])
    query, key = torch.randn(3, 4, 8), torch.randn(3, 4, settings.get("kdim", 8))
    wanted = part(query, key, query)[0]
    assert parts.join(model) == 0
    assert type(model[0]) is nn.MultiheadAttention and model[0].num_heads == 2
    torch.testing.assert_close(model[0](query, key, query)[0], wanted, rtol=1e-4, atol=1e-5)
