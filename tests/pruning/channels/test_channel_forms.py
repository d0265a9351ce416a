"""Channels in forms that a dependency graph does not know: scales, slopes, shuffles, Conv1D."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")
pytest.importorskip("torch_pruning", reason="the train extra is not installed")

from tests.pruning.prune_nets import image, tokens  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edgeopt.core import InputSpec  # noqa: E402
from edgeopt.errors import SourceError  # noqa: E402
from edgeopt.modules.model import TorchModel  # noqa: E402
from edgeopt.pruning.channels.prune import prune_channels  # noqa: E402
from edgeopt.pruning.channels.surgery import run  # noqa: E402
from edgeopt.pruning.depth.prune import prune_depth  # noqa: E402
from edgeopt.pruning.result import Pruning  # noqa: E402


def after(pruning: Pruning, kind: str = "channels") -> dict[str, tuple[int, int]]:
    return {cut.layer: (cut.before, cut.after) for cut in pruning.cuts if cut.kind == kind}


class Scaled(nn.Module):
    """ConvNeXt's scale of a branch: ``[channels, 1, 1]``, or with an axis for the batch."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(shape) + 0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.scale * self.branch(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("shape", [(8, 1, 1), (1, 8, 1, 1), (1,)])
def test_a_scale_shrinks_along_the_axis_of_its_channels(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = image(Scaled(shape), 3, 6, 6)
    before = model.module.scale.detach().flatten().tolist()
    pruning = prune_channels(model, ratio=0.5)
    assert after(pruning) == {"stem": (8, 4), "branch": (8, 4), "head": (4, 4)}
    assert list(model.module.scale.shape) == [4 if size == 8 else size for size in shape]
    left = model.module.scale.detach().flatten().tolist()
    assert [value for value in before if value in left] == left


def test_a_slope_for_all_channels_hides_none_of_them() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 12, 3), nn.PReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5)),
    )
    pruning = prune_channels(image(net, 3, 8, 8), ratio=0.5)
    assert after(pruning) == {"0": (8, 4), "2": (12, 6), "6": (5, 5)}
    assert (net[1].weight.numel(), net[3].weight.numel(), net[6].in_features) == (4, 1, 24)
    assert net[3].weight.requires_grad


class Normed(nn.Module):
    """Norms of someone's own: over channels of images, and with one number for all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(0.5))
        self.weight, self.bias = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.alpha * (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True))
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def test_a_norm_of_images_that_are_as_wide_as_they_have_channels() -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), Normed(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = image(nn.Sequential(*layers, nn.Linear(8, 4)), 3, 8, 8)
    assert after(prune_channels(model, ratio=0.5))["0"] == (8, 4)


class Table(nn.Module):
    """Bags of words beside a gated recurrent unit: neither has channels that can be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.state = nn.EmbeddingBag(20, 8), nn.GRU(3, 6, batch_first=True)
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, words: Tensor, steps: Tensor) -> Tensor:
        both = self.a(self.bag(words)).relu() + self.b(self.state(steps)[0][:, -1]).relu()
        return self.head(both)


def test_bags_and_gated_units_stay_and_the_rest_shrinks() -> None:
    torch.manual_seed(0)
    specs = (InputSpec("words", "int64", ("batch", 4)), InputSpec("steps", "float32", (2, 5, 3)))
    words = np.arange(8).reshape(2, 4) + 12
    example = {"words": words, "steps": np.ones((2, 5, 3), np.float32)}
    model = TorchModel(Table().eval(), specs, example)
    pruning = prune_channels(model, ratio=0.5)
    assert after(pruning)["a"] == after(pruning)["b"] == (8, 4)
    assert run(model, [example])[0]["output"].isfinite().all()


class ByState(nn.Module):
    """A classifier that reads an LSTM's last state, and not its outputs."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.a, self.state = nn.Linear(8, 16), nn.LSTM(16, 12, batch_first=first)
        self.b, self.head = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) if self.state.batch_first else self.a(x).transpose(0, 1)
        _, (hidden, cell) = self.state(x)
        return self.head(self.b(hidden[-1] + cell[-1]).relu())


@pytest.mark.parametrize("first", [True, False])
def test_an_lstm_shrinks_where_only_its_state_is_read(first: bool) -> None:
    torch.manual_seed(0)
    model = image(ByState(first), 5, 8)
    found = after(prune_channels(model, ratio=0.5))
    assert found == {"a": (16, 8), "state": (12, 6), "b": (8, 4), "head": (3, 3)}
    assert model.module.state.hidden_size == 6 and not model.module.state._forward_hooks


class Unit(nn.Module):
    """ShuffleNet's unit: one half passes, the other is computed, then they are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.head = nn.Conv2d(16, 12, 1), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.stem(x) if x.shape[1] == 3 else x
            one, other = x.chunk(2, 1)
            x = torch.cat([one, self.b(self.a(other).relu())], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(self.last(x).relu().mean((2, 3)))


def test_what_is_inside_of_a_shuffled_unit_shrinks() -> None:
    torch.manual_seed(0)
    pruning = prune_channels(image(Unit(), 3, 8, 8), ratio=0.5)
    found = after(pruning)
    assert (found["a"], found["b"], found["last"]) == ((8, 4), (8, 8), (12, 6))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_weight_that_is_computed_the_old_way_is_called_so() -> None:
    old: Any = nn.utils.weight_norm
    net = nn.Sequential(old(nn.Linear(6, 8)), nn.ReLU(), old(nn.Linear(8, 8)), nn.Linear(8, 2))
    with pytest.raises(SourceError, match="nothing pruned: 0: the weight of 0 is computed"):
        prune_channels(image(net, 6), ratio=0.5)


class Fused(nn.Module):
    """Attention with one layer for queries, keys and values, as ViTs of timm have it."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.qkv, self.proj = 4, nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, 4).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        return x + self.proj(mixed.transpose(1, 2).flatten(2))


def test_heads_of_a_fused_projection_go_whole() -> None:
    torch.manual_seed(0)
    block = Fused()
    rows = block.qkv.weight.detach().reshape(3, 4, 4, 16)  # three, heads, size of a head, width
    out = block.proj.weight.detach().reshape(16, 4, 4)
    model = image(nn.Sequential(block, nn.Linear(16, 3)), 5, 16)
    pruning = prune_channels(model, ratio=0.5, heads=True, ignore=["proj"])
    assert after(pruning, "heads") == {"0": (4, 2)} and block.num_heads == 2
    left = block.qkv.weight.detach().reshape(3, 2, 4, 16)
    kept = [h for h in range(4) if any(torch.equal(left[0, i], rows[0, h]) for i in (0, 1))]
    assert torch.equal(left, rows[:, kept])
    assert torch.equal(block.proj.weight.detach().reshape(16, 2, 4), out[:, kept])


class Causal(nn.Module):
    """minGPT's attention: the size of a head is the model's width over the number of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.n_head, self.n_embd = 4, 16
        self.c_attn, self.c_proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        shape = (n, t, self.n_head, c // self.n_head)
        q, k, v = (
            part.view(shape).transpose(1, 2) for part in self.c_attn(x).split(self.n_embd, dim=2)
        )
        mixed = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        return x + self.c_proj(mixed.transpose(1, 2).reshape(n, t, c))


def test_heads_and_the_width_that_they_divide_shrink_together() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), Causal(), Causal(), nn.LayerNorm(16), nn.Linear(16, 3))
    pruning = prune_channels(image(net, 5, 6), ratio=0.5, heads=True)
    assert after(pruning, "heads") == {"1": (4, 2), "2": (4, 2)}
    assert after(pruning)["0"] == after(pruning)["2.c_proj"] == (16, 8)
    assert (net[1].n_head, net[1].n_embd, net[1].c_attn.out_features) == (2, 8, 24)


def test_gpt2s_layers_shrink_and_stay_what_they_are() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=16, use_cache=False
    )
    model = tokens(transformers.GPT2LMHeadModel(config))
    names = list(model.module.state_dict())
    pruning = prune_channels(model, ratio=0.5)
    found, block = after(pruning), model.module.transformer.h[1]
    assert found["transformer.h.1.mlp.c_fc"] == (128, 64)
    assert found["transformer.h.1.attn.c_attn"] == (96, 96)
    pruning = prune_channels(model, ratio=0.5, heads=True, ignore=["wte", "mlp"])
    assert after(pruning, "heads")["transformer.h.1.attn"] == (4, 2)
    assert type(block.attn.c_attn).__name__ == "Conv1D"
    assert (block.attn.c_attn.nx, block.attn.c_attn.nf) == (16, 48)
    assert (block.attn.c_proj.weight.shape, block.mlp.c_fc.weight.shape) == ((16, 16), (16, 64))
    assert list(model.module.state_dict()) == names
    assert model.module.lm_head.weight is model.module.transformer.wte.weight


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


@pytest.mark.parametrize("prune", [prune_channels, prune_depth])
def test_a_program_is_told_to_come_from_its_code(prune: Any) -> None:
    model = image(torch.fx.symbolic_trace(Bare()), 4)  # no layers left, as an exported one
    with pytest.raises(SourceError, match="prune the code it came from"):
        prune(model, ratio=0.5)
