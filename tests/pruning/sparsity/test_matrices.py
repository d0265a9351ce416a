"""Matrices and their inputs: multiplied, they must give what torch's own layers give."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from edgeopt.pruning.sparsity.matrices import WeightMatrix, find_layers  # noqa: E402

_LAYERS = [
    (nn.Linear(5, 3), (4, 5)),
    (nn.Linear(5, 3), (2, 7, 5)),
    (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    (nn.Conv1d(4, 6, 4, stride=2, dilation=2, groups=2), (2, 4, 17)),
    (nn.Conv2d(3, 8, 3, padding="same"), (2, 3, 6, 5)),
    (nn.Conv2d(3, 8, (4, 2), padding="same", dilation=(1, 2)), (2, 3, 6, 5)),
    (nn.Conv2d(4, 8, 3, stride=(2, 1), padding=(0, 2), groups=4), (2, 4, 7, 6)),
    (nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="reflect"), (1, 4, 5, 5)),
    (nn.Conv2d(3, 2, 3, padding="valid"), (3, 6, 5)),
    (nn.Conv3d(2, 3, 2, padding=1, padding_mode="circular"), (1, 2, 3, 4, 3)),
]


def _only(module: nn.Module) -> WeightMatrix:
    layers, kept = find_layers(module)
    assert len(layers) == 1 and not kept
    return layers[0]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(("module", "shape"), _LAYERS)
def test_rows_times_matrix_is_the_layer(module: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    layer = _only(module)
    rows = torch.cat(list(layer.rows(module, x, None)), dim=1)
    parts = torch.from_numpy(layer.matrix()).reshape(layer.groups, -1, layer.shape[1])
    found = rows @ parts.transpose(1, 2)  # [groups, positions, out / groups]
    found = found.transpose(0, 1).reshape(rows.shape[1], -1)
    with torch.no_grad():
        wanted = module(x) - (0 if module.bias is None else _bias(module))
    if not isinstance(module, nn.Linear):  # channels last, as the rows are
        wanted = wanted.movedim(-len(module.kernel_size) - 1, -1)
    torch.testing.assert_close(found, wanted.reshape(found.shape), rtol=1e-4, atol=1e-5)


def _bias(module: nn.Module) -> torch.Tensor:
    bias = module.bias.detach()
    return (
        bias if isinstance(module, nn.Linear) else bias.reshape(-1, *[1] * len(module.kernel_size))
    )


def test_a_large_batch_comes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeopt.pruning.sparsity import matrices

    module = nn.Conv2d(2, 3, 3)
    layer, x = _only(module), torch.randn(5, 2, 6, 6)
    (whole,) = layer.rows(module, x, None)
    monkeypatch.setattr(matrices, "_PATCHES", 2 * 16 * 18)
    parts = list(layer.rows(module, x, None))
    assert [p.shape[1] for p in parts] == [32, 32, 16]
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_transformers_conv1d_is_a_linear_layer_turned() -> None:
    home = pytest.importorskip("transformers.pytorch_utils")
    module = home.Conv1D(6, 4)  # 4 inputs, 6 outputs
    layer = _only(module)
    assert layer.shape == (6, 4)
    x = torch.randn(2, 3, 4)
    (rows,) = layer.rows(module, x, None)
    found = rows[0] @ torch.from_numpy(layer.matrix()).T
    torch.testing.assert_close(found, (module(x) - module.bias).detach().reshape(6, 6))
    layer.store(layer.matrix() * 2)
    torch.testing.assert_close(found * 2, (module(x) - module.bias).detach().reshape(6, 6))


def test_masked_positions_are_left_out_of_inputs_that_have_them() -> None:
    module = nn.Linear(4, 2)
    layer, x = _only(module), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    (rows,) = layer.rows(module, x, mask)
    assert torch.equal(rows[0], torch.stack([x[0, 0], x[0, 1], x[1, 0]]))
    (flat,) = layer.rows(module, x.reshape(6, 4), mask)
    assert torch.equal(flat, rows)
    (pooled,) = layer.rows(module, x[:, 0], mask)  # one vector a sample
    assert torch.equal(pooled[0], x[:, 0])


class _Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 1, 4))
        self.embed = nn.Embedding(7, 4)
        self.tied = nn.Linear(4, 7, bias=False)
        self.tied.weight = self.embed.weight
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.attention = nn.MultiheadAttention(4, 2)
        self.lstm = nn.LSTM(4, 4)
        self.up = nn.ConvTranspose1d(4, 4, 2)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))


def test_every_tensor_is_a_layer_or_has_a_reason() -> None:
    module = _Odd()
    layers, kept = find_layers(module)
    found = {layer.name: layer for layer in layers}
    assert set(found) == {"first", "attention.in_proj_weight", "attention.out_proj"}
    assert found["first"].modules == (module.first, module.second)
    assert found["attention.in_proj_weight"].unseen and found["attention.out_proj"].unseen
    reasons = {cut.layer: cut.reason for cut in kept}
    assert reasons["tied"] == "tied to the embedding embed"
    assert "ConvTranspose1d" in reasons["up"]
    assert "LSTM" in reasons["lstm.weight_ih_l0"]
    assert "token" in reasons["token"]
    assert any("parametrization" in reason for reason in reasons.values())
    named = {id(p) for p in module.parameters() if p.ndim > 1}
    assert len(layers) + len(kept) == len(named)
    assert all(cut.before == cut.after for cut in kept)
