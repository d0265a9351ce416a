"""Pruning of weights in place, against torch.nn.utils.prune and against sums made by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn.utils import prune as torch_prune  # noqa: E402

from edgeopt.core import InputSpec  # noqa: E402
from edgeopt.errors import InputsError, SourceError, UsageError  # noqa: E402
from edgeopt.modules.model import TorchModel  # noqa: E402
from edgeopt.numerics import sparsegpt, wanda  # noqa: E402
from edgeopt.pruning.sparsity import activations  # noqa: E402
from edgeopt.pruning.sparsity.prune import prune_weights  # noqa: E402

Feed = dict[str, np.ndarray]


def _model(module: nn.Module, *shape: int, name: str = "x") -> TorchModel:
    example = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    specs = (InputSpec(name, "float32", ("batch", *shape)),)
    return TorchModel(module.eval(), specs, {name: example}, positional=True)


def _feeds(*shape: int, count: int = 12, seed: int = 1) -> list[Feed]:
    rng = np.random.default_rng(seed)
    width = shape[-1]
    mix = rng.normal(size=(width, width))
    return [{"x": (rng.normal(size=(4, *shape)) @ mix).astype(np.float32)} for _ in range(count)]


def _chain(widths: tuple[int, ...] = (16, 24, 20, 5), seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    parts: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def _convnet() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU(),
        nn.Conv2d(8, 12, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip


def _weights(module: nn.Module) -> dict[str, np.ndarray]:
    return {n: p.detach().numpy().copy() for n, p in module.named_parameters() if p.ndim > 1}


# ---------------------------------------------------------------------------------------------
# magnitude: issue D's cross-check


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_magnitude_leaves_what_torch_leaves(ratio: float, scope: str) -> None:
    ours, theirs = _convnet(), _convnet()
    pruning = prune_weights(_model(ours, 3, 8, 8), method="magnitude", ratio=ratio, scope=scope)
    targets = [(theirs[i], "weight") for i in (0, 3, 5)]  # all but the output layer
    if scope == "global":
        torch_prune.global_unstructured(targets, torch_prune.L1Unstructured, amount=ratio)
    else:
        for module, name in targets:
            torch_prune.l1_unstructured(module, name, ratio)
    for i in (0, 3, 5):
        assert torch.equal(ours[i].weight, theirs[i].weight)
    assert torch.equal(ours[9].weight, theirs[9].weight)
    cuts = {cut.layer: cut for cut in pruning.cuts}
    assert list(cuts) == ["0", "3", "5", "9"]
    assert cuts["9"].before == cuts["9"].after and "output layer" in cuts["9"].reason
    for i in (0, 3, 5):
        assert cuts[str(i)].after == torch.count_nonzero(theirs[i].weight)


def test_a_pattern_along_the_columns_and_layers_that_do_not_fit_it() -> None:
    net = _convnet()
    before = _weights(net)
    pruning = prune_weights(_model(net, 3, 8, 8), method="magnitude", pattern=(2, 4))
    reasons = {cut.layer: cut.reason for cut in pruning.cuts}
    assert "27 columns" in reasons["0"] and "9 columns" in reasons["3"] and not reasons["5"]
    after = _weights(net)
    assert np.array_equal(before["0.weight"], after["0.weight"])
    groups = after["5.weight"].reshape(-1, 4)
    assert ((groups != 0).sum(axis=1) == 2).all()
    kept = np.where(groups != 0, groups, 0)
    assert np.array_equal(kept[kept != 0], before["5.weight"].reshape(-1, 4)[groups != 0])


# ---------------------------------------------------------------------------------------------
# by activations: a chain by hand, each layer on the inputs that the pruned ones before it give


@pytest.mark.parametrize("how", [{"ratio": 0.5}, {"pattern": (2, 4)}])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_chain_is_pruned_as_by_hand_with_pruned_inputs(method: str, how: Any) -> None:
    net, feeds = _chain(), _feeds(16)
    x = torch.from_numpy(np.concatenate([f["x"] for f in feeds]))
    wanted = []
    for i in (0, 2):
        inputs = x.double().numpy()
        w = net[i].weight.detach().numpy()
        if method == "wanda":
            new = w * wanda.keep(w, np.linalg.norm(inputs, axis=0), **how)
        else:
            new, _ = sparsegpt.prune(w, inputs.T @ inputs, **how)
        wanted.append(new)
        linear = nn.functional.linear(x, torch.from_numpy(new), net[i].bias)
        x = torch.relu(linear).detach()
    last = net[4].weight.detach().clone()
    pruning = prune_weights(_model(net, 16), method=method, feeds=feeds, **how)
    for i, new in zip((0, 2), wanted, strict=True):
        found = net[i].weight.detach().numpy()
        assert np.array_equal(found != 0, new != 0)
        np.testing.assert_allclose(found, new, rtol=1e-3, atol=1e-4)
    assert torch.equal(net[4].weight, last)
    assert pruning.method == method and "48 positions" in pruning.notes[0]


def test_batches_make_no_difference_and_generators_are_kept() -> None:
    feeds = _feeds(16)
    rows = [{"x": f["x"][i : i + 1]} for f in feeds for i in range(4)]

    def once() -> Iterator[Feed]:
        yield from rows

    one, other = _chain(), _chain()
    prune_weights(_model(one, 16), method="sparsegpt", ratio=0.5, feeds=feeds)
    prune_weights(_model(other, 16), method="sparsegpt", ratio=0.5, feeds=once())
    for a, b in zip(_weights(one).values(), _weights(other).values(), strict=True):
        assert np.array_equal(a != 0, b != 0)
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_grouped_convolutions_see_their_own_inputs() -> None:
    net = _convnet()
    before = _weights(net)["3.weight"].reshape(8, 9)
    feeds = [{"x": f["x"]} for f in _feeds(3, 8, 8, count=3)]
    with torch.no_grad():
        first = wanda_first(net, feeds)
        hidden = [net[2](net[1](first(torch.from_numpy(f["x"])))) for f in feeds]
    patches = torch.cat([nn.functional.unfold(h, 3, padding=1) for h in hidden])  # [N, 8 * 9, L]
    norms = patches.double().square().sum((0, 2)).sqrt().reshape(8, 9).numpy()
    prune_weights(_model(net, 3, 8, 8), method="wanda", ratio=0.5, feeds=feeds, exclude=["^5$"])
    found = _weights(net)["3.weight"].reshape(8, 9)
    gone = (found == 0).sum(axis=1)
    assert gone.sum() == 36 and set(gone) == {4, 5}  # half of the layer, of nine in each group
    for w, norm, new, count in zip(before, norms, found, gone, strict=True):
        assert np.array_equal(new != 0, wanda.keep(w[None], norm, ratio=count / 9)[0])


def wanda_first(net: nn.Sequential, feeds: list[Feed]) -> nn.Module:
    """The first convolution as Wanda prunes it alone."""
    x = torch.cat([torch.from_numpy(f["x"]) for f in feeds])
    norms = nn.functional.unfold(x, 3, padding=1).double().square().sum((0, 2)).sqrt().numpy()
    first = nn.Conv2d(3, 8, 3, padding=1)
    first.load_state_dict(net[0].state_dict())
    w = first.weight.detach().numpy().reshape(8, 27)
    kept = wanda.keep(w, norms, ratio=0.5).reshape(first.weight.shape)
    first.weight.mul_(torch.from_numpy(kept))
    return first


class _Tokens(nn.Module):
    """Rows of a sequence, each on its own; the mean of those that count."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = _chain((8, 16, 8))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        counted = attention_mask[..., None].float()
        return (self.norm(self.body(x)) * counted).sum(1) / counted.sum(1)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_padding_does_not_count(method: str) -> None:
    specs = (
        InputSpec("x", "float32", ("b", "s", 8)),
        InputSpec("attention_mask", "int64", ("b", "s")),
    )
    rng = np.random.default_rng(5)
    short, padded = [], []
    for _ in range(8):
        x = rng.normal(size=(2, 5, 8)).astype(np.float32)
        short.append({"x": x, "attention_mask": np.ones((2, 5), np.int64)})
        junk = 50 * rng.normal(size=(2, 4, 8)).astype(np.float32)
        mask = np.repeat([[1] * 5 + [0] * 4], 2, axis=0)
        padded.append({"x": np.concatenate([x, junk], axis=1), "attention_mask": mask})
    found = []
    for feeds in (short, padded):
        module = _Tokens()
        model = TorchModel(module, specs, feeds[0])
        prune_weights(model, method=method, ratio=0.5, feeds=feeds)
        found.append(_weights(module))
    for name, w in found[0].items():
        assert np.array_equal(w != 0, found[1][name] != 0)
        np.testing.assert_allclose(w, found[1][name], rtol=1e-3, atol=1e-4)


def test_torchs_fused_encoder_layer_is_seen_through_and_its_attention_is_not() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    fused = torch.backends.mha.get_fastpath_enabled()
    feeds = _feeds(6, 16, count=4)
    pruning = prune_weights(_model(layer, 6, 16), method="wanda", ratio=0.5, feeds=feeds)
    cuts = {cut.layer: cut for cut in pruning.cuts}
    assert cuts["linear1"].after == cuts["linear2"].after == 256
    assert "MultiheadAttention" in cuts["self_attn.in_proj_weight"].reason
    assert torch.backends.mha.get_fastpath_enabled() == fused
    prune_weights(_model(layer, 6, 16), method="magnitude", ratio=0.5)
    assert torch.count_nonzero(layer.self_attn.in_proj_weight) == 384


class _Shared(nn.Module):
    """Two layers with one weight, an expert that no sample reaches, a layer that gets zeros."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(8, 8, bias=False)
        self.b = nn.Linear(8, 8, bias=False)
        self.b.weight = self.a.weight
        self.expert = nn.Linear(8, 8)
        self.silent = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(3 * self.a(x))
        if x.shape[0] > 100:
            h = self.expert(h)
        return self.norm(h + self.silent(torch.zeros_like(h)))


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_tied_weights_count_once_and_layers_without_inputs_say_so(method: str) -> None:
    net, feeds = _Shared(), _feeds(8)
    w = net.a.weight.detach().numpy().copy()
    x = np.concatenate([f["x"] for f in feeds]).astype(float)
    both = np.concatenate([x, 3 * x @ w.T.astype(float)])  # all that the one weight meets
    pruning = prune_weights(_model(net, 8), method=method, ratio=0.5, feeds=feeds)
    cuts = {cut.layer: cut for cut in pruning.cuts}
    assert list(cuts) == ["a", "expert", "silent"]
    assert cuts["a"].after == 32
    assert cuts["expert"].reason == "not reached by any sample"
    assert cuts["silent"].reason == "its inputs are all zero on the data"
    if method == "wanda":
        kept = wanda.keep(w, np.linalg.norm(both, axis=0), ratio=0.5)
    else:
        _, kept = sparsegpt.prune(w, both.T @ both, ratio=0.5)
    assert np.array_equal(net.b.weight.detach().numpy() != 0, kept)


# ---------------------------------------------------------------------------------------------
# blocks


def test_blocks_come_in_the_order_of_their_calls_and_a_wide_one_is_divided(monkeypatch) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.blocks = nn.ModuleList(
                nn.ModuleDict({"b": nn.Linear(4, 4), "a": nn.Linear(4, 4)}) for _ in range(2)
            )

        def forward(self, x: Tensor) -> Tensor:
            for block in reversed(self.blocks):
                x = block["b"](block["a"](x))
            return self.head(x)

    from edgeopt.pruning.sparsity.matrices import find_layers

    model = _model(Net(), 4)
    layers, _ = find_layers(model.module)
    calls = activations.watch(model, layers, model.example)
    found = activations.stages(layers, calls, gram=True)
    names = [[layer.name for layer in stage] for stage in found]
    assert names == [["blocks.1.a", "blocks.1.b"], ["blocks.0.a", "blocks.0.b"], ["head"]]
    monkeypatch.setattr(activations, "GRAM_BYTES", 200)  # one of 4 x 4 float64 takes 128
    assert [len(s) for s in activations.stages(layers, calls, gram=True)] == [1] * 5
    assert [len(s) for s in activations.stages(layers, calls, gram=False)] == [2, 2, 1]


def test_the_model_runs_no_further_than_the_block_it_is_asked_for() -> None:
    net, ran = _chain((8, 8, 8, 8, 3)), []
    net[4].register_forward_hook(lambda *_: ran.append(1))
    # seen once by the watch, and by the sample that the third layer's pruning needs (its hook
    # stops the run before it is computed), and by none for the two before it
    prune_weights(_model(net, 8), method="wanda", ratio=0.5, feeds=_feeds(8, count=3))
    assert len(ran) == 2  # the example's run that finds the output layer, and the watch


def test_too_little_memory_for_the_gram_matrices_is_a_reason(monkeypatch) -> None:
    from types import SimpleNamespace

    from edgeopt.pruning.sparsity import prune as sparse

    free = SimpleNamespace(available=4 * 8 * 20**2)
    monkeypatch.setattr(sparse.psutil, "virtual_memory", lambda: free)
    net = _chain()  # 16, 24 columns, and the output
    pruning = prune_weights(_model(net, 16), method="sparsegpt", ratio=0.5, feeds=_feeds(16))
    cuts = {cut.layer: cut for cut in pruning.cuts}
    assert cuts["0"].after < cuts["0"].before and cuts["2"].after == cuts["2"].before
    assert "24 columns" in cuts["2"].reason and "wanda" in cuts["2"].reason


# ---------------------------------------------------------------------------------------------
# choice, state, errors


def test_include_and_exclude_choose_by_name_and_open_the_output_layer() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    pruning = prune_weights(
        _model(net, 4), method="magnitude", ratio=0.5, include=["[24]"], exclude=["^2$"]
    )
    reasons = {cut.layer: cut.reason for cut in pruning.cuts}
    assert reasons == {"0": "not included", "2": "excluded", "4": ""}


def test_embeddings_are_left_unless_they_are_named() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(10, 8)
            self.mid = nn.Linear(8, 8)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.mid(self.embed(x))))

    specs, example = (InputSpec("x", "int64", ("b", 3)),), {"x": np.ones((2, 3), np.int64)}

    def cuts(method: str, **more: Any) -> dict[str, Any]:
        model = TorchModel(Net(), specs, example)
        feeds = [example]
        found = prune_weights(model, method=method, ratio=0.5, feeds=feeds, **more)
        return {cut.layer: cut for cut in found.cuts}

    assert "embedding" in cuts("magnitude")["embed"].reason
    assert cuts("magnitude", include=["embed"])["embed"].after == 40
    assert "looked up" in cuts("wanda", include=["embed", "mid"])["embed"].reason


def test_nothing_but_the_weights_changes() -> None:
    net = _convnet()
    net.train()
    net[1].eval()
    model = TorchModel(net, (InputSpec("x", "float32", ("b", 3, 8, 8)),), {}, positional=True)
    feeds = _feeds(3, 8, 8, count=2)
    model = TorchModel(net, model.inputs, feeds[0], positional=True)
    others = {n: t.clone() for n, t in net.state_dict().items() if t.ndim < 2}
    net[0].weight.requires_grad_(False)
    prune_weights(model, method="sparsegpt", ratio=0.5, feeds=feeds)
    state = net.state_dict()
    assert all(torch.equal(state[n], t) for n, t in others.items())
    assert net.training and not net[1].training
    assert not any(m._forward_pre_hooks for m in net.modules())
    assert not net[0].weight.requires_grad and net[3].weight.requires_grad
    assert all(p.grad is None for p in net.parameters())


def test_a_layer_that_loses_all_is_noted() -> None:
    net = _chain()
    with torch.no_grad():
        net[0].weight.mul_(1e-6)
    model = _model(net, 16)
    pruning = prune_weights(model, method="magnitude", ratio=0.5, scope="global")
    assert pruning.notes == ("no weight is left in 0",)
    again = prune_weights(model, method="magnitude", ratio=0.75)
    assert {c.layer: c.reason for c in again.cuts}["0"] == "as sparse already"


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"method": "magic", "ratio": 0.5}, UsageError, "no method magic"),
        ({"ratio": 0.0}, UsageError, "prunes nothing"),
        ({"ratio": 1.0}, UsageError, "prunes everything"),
        ({"ratio": -0.2}, UsageError, "out of range"),
        ({"ratio": 1.5}, UsageError, "out of range"),
        ({"ratio": float("nan")}, UsageError, "out of range"),
        ({}, UsageError, "one of them"),
        ({"ratio": 0.5, "pattern": (2, 4)}, UsageError, "one of them"),
        ({"pattern": (4, 4)}, UsageError, "4:4"),
        ({"ratio": 0.5, "scope": "row"}, UsageError, "no scope row"),
        ({"method": "wanda", "ratio": 0.5, "scope": "global"}, UsageError, "scope global"),
        ({"pattern": (2, 4), "scope": "global"}, UsageError, "scope global"),
        ({"ratio": 0.5, "include": ["("]}, UsageError, "regular expression"),
        ({"ratio": 0.5, "exclude": ["."]}, SourceError, "0 and 2 more: excluded"),
        ({"ratio": 0.5, "include": ["nowhere"]}, SourceError, "not included"),
        ({"pattern": (3, 7)}, SourceError, "16 columns"),
        ({"ratio": 1e-6}, SourceError, "too small to lose one"),
        ({"method": "wanda", "ratio": 0.5}, InputsError, "no samples"),
        ({"method": "sparsegpt", "ratio": 0.5, "feeds": iter(())}, InputsError, "no samples"),
        ({"method": "wanda", "ratio": 0.5, "feeds": [{"y": 0}]}, InputsError, "lacks input x"),
    ],
)  # fmt: skip
def test_what_is_refused(options: dict[str, Any], error: type[Exception], said: str) -> None:
    net = _chain((16, 24, 16, 5))
    before = _weights(net)
    with pytest.raises(error, match=said) as raised:
        prune_weights(_model(net, 16), **{"method": "magnitude", **options})
    assert "\n" not in str(raised.value)
    assert all(np.array_equal(w, before[n]) for n, w in _weights(net).items())


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_data_that_cannot_be_weighed_is_refused(method: str) -> None:
    feeds = _feeds(16, count=3)
    feeds[1]["x"][2, 3] = np.nan
    with pytest.raises(InputsError, match="sample 2, input x: holds NaN"):
        prune_weights(_model(_chain(), 16), method=method, ratio=0.5, feeds=feeds)
    wide = [{"x": np.ones((2, 17), np.float32)}]
    with pytest.raises(InputsError, match="does not run on the samples"):
        prune_weights(_model(_chain(), 16), method=method, ratio=0.5, feeds=wide)
    net = _chain()
    with torch.no_grad():
        net[0].bias[3] = float("inf")
    with pytest.raises(InputsError, match="2 is given values that are not finite"):
        prune_weights(_model(net, 16), method=method, ratio=0.5, feeds=_feeds(16, count=3))


def test_a_model_without_layers_says_so() -> None:
    model = _model(nn.ReLU(), 4)
    with pytest.raises(SourceError, match="no linear layers and no convolutions"):
        prune_weights(model, method="magnitude", ratio=0.5)


def test_progress_is_told() -> None:
    told: list[tuple[str, float | None]] = []
    feeds = _feeds(16, count=2)
    for method in ("magnitude", "wanda"):
        model = _model(_chain(), 16)
        prune_weights(
            model, method=method, ratio=0.5, feeds=feeds, progress=lambda *t: told.append(t)
        )
    assert [t[0] for t in told] == ["pruning 0", "pruning 2"] * 2
