"""Channels and heads cut out: shapes fall, the rest computes the same, and what cannot says why."""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")
torch_pruning = pytest.importorskip("torch_pruning", reason="the train extra is not installed")

from models import digits  # noqa: E402
from tests.pruning.prune_nets import NETS, Attention, Gated, Shuffled, image, tokens  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edgeopt.core import InputSpec  # noqa: E402
from edgeopt.errors import SourceError, UsageError  # noqa: E402
from edgeopt.modules.counting import count  # noqa: E402
from edgeopt.modules.model import TorchModel  # noqa: E402
from edgeopt.pruning.channels.dependencies import trace  # noqa: E402
from edgeopt.pruning.channels.prune import prune_channels, shrink_width  # noqa: E402
from edgeopt.pruning.channels.surgery import ModuleSnapshot, masked, run  # noqa: E402
from edgeopt.pruning.result import Pruning  # noqa: E402


def size(model: TorchModel) -> int:
    return sum(p.numel() for p in model.module.parameters())


def net(name: str) -> TorchModel:
    torch.manual_seed(0)
    build, shape = NETS[name]
    return image(build(), *shape)


def digits_model() -> TorchModel:
    example = np.random.default_rng(0).random((2, 1, 8, 8)).astype(np.float32)
    spec = InputSpec("image", "float32", ("batch", 1, 8, 8))
    return TorchModel(digits.build(), (spec,), {"image": example})


def after(pruning: Pruning, kind: str = "channels") -> dict[str, tuple[int, int]]:
    return {cut.layer: (cut.before, cut.after) for cut in pruning.cuts if cut.kind == kind}


def reason(pruning: Pruning, layer: str) -> str:
    return next(cut.reason for cut in pruning.cuts if cut.layer == layer)


@pytest.mark.parametrize("name", NETS)
def test_half_of_every_net_goes_and_it_runs_at_any_batch_size(name: str) -> None:
    model = net(name)
    before, shapes = size(model), [v.shape for v in run(model, [model.example])[0].values()]
    asked = copy.deepcopy(model.module.state_dict())
    pruning = prune_channels(model, ratio=0.5, heads=True)
    assert size(model) < 0.62 * before
    assert pruning.changed and pruning.method == "channels"
    assert [v.shape for v in run(model, [model.example])[0].values()] == shapes
    for rows in (1, 3, 5):
        x = np.resize(model.example["x"], (rows, *model.example["x"].shape[1:]))
        (answer,) = run(model, [{"x": x}])[0].values()
        assert len(answer) == rows and bool(answer.isfinite().all())
    for cut in pruning.cuts:
        assert (cut.before == cut.after) == bool(cut.reason), cut
    assert set(model.module.state_dict()) == set(asked)


class Watched(nn.Module):
    """Two layers by hand: what the pruned net must answer can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)))


def test_what_is_left_is_the_layers_own_rows_and_columns() -> None:
    torch.manual_seed(0)
    model = image(Watched(), 6)
    a, b = model.module.a.weight.detach().clone(), model.module.b.weight.detach().clone()
    bias = model.module.a.bias.detach().clone()
    with torch.no_grad():
        model.module.norm.weight[[1, 4]] = 0  # the least, surely
        a[[1, 4]] *= 0.01
        model.module.a.weight.copy_(a)
        b[:, [1, 4]] *= 0.01
        model.module.b.weight.copy_(b)
    prune_channels(model, ratio=0.25)
    keep = [0, 2, 3, 5, 6, 7]
    x = torch.from_numpy(model.example["x"])
    hidden = nn.functional.layer_norm(x @ a[keep].T + bias[keep], (6,))
    (answer,) = run(model, [model.example])[0].values()
    torch.testing.assert_close(answer, hidden @ b[:, keep].T + model.module.b.bias)


def test_channels_that_are_zero_go_and_no_output_changes() -> None:
    model = digits_model()
    block = model.module.features[0][3]
    dead = [1, 4, 5, 20]
    with torch.no_grad():
        block.conv1.weight[dead] = 0
        block.bn1.weight[dead] = 0
        block.bn1.bias[dead] = 0
        block.conv2.weight[:, dead] = 0
    before = run(model, [model.example])[0]["output"]
    name = "features.0.3.conv1"
    pruning = prune_channels(model, ratio=0, ratios={re.escape(name) + "$": 4 / 32})
    assert after(pruning)[name] == (32, 28)
    torch.testing.assert_close(run(model, [model.example])[0]["output"], before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("importance", ["magnitude", "bn"])
def test_the_least_of_a_residual_stage_go_together(importance: Any) -> None:
    model = digits_model()
    stage = model.module.features[1]
    dead = [0, 7, 63]
    with torch.no_grad():
        for layer in (stage[0].weight, stage[3].conv2.weight):
            layer[dead] *= 1e-3
        for layer in (stage[1], stage[3].bn2):
            layer.weight[dead] = 1e-4
        for layer in (stage[3].conv1.weight, model.module.features[2][0].weight):
            layer[:, dead] *= 1e-3
    kept = [c for c in range(64) if c not in dead]
    wanted = stage[0].weight.detach()[kept].clone()
    prune_channels(model, ratio=0, ratios={r"^features\.1\.0$": 3 / 64}, importance=importance)
    assert torch.equal(stage[0].weight, wanted)
    assert stage[3].conv2.out_channels == stage[3].conv1.in_channels == 61


def test_counts_agree_with_torch_prunings() -> None:
    for name in ("digits", "dense", "depthwise"):
        model = digits_model() if name == "digits" else net(name)
        prune_channels(model, ratio=0.3)
        feed = tuple(value[:1] for value in model.tensors().values())
        operations, parameters = torch_pruning.utils.count_ops_and_params(model.module, feed)
        ours = count(model)
        assert parameters == ours.parameters == size(model)
        # It counts a multiply and an add as one, and the elementwise too, which are few.
        assert 1.0 <= operations / (ours.flops / 2) < 1.2


def test_a_shuffle_is_caught_and_rolled_back() -> None:
    torch.manual_seed(0)
    model = image(Shuffled(), 3, 8, 8)
    weight = model.module.a.weight
    pruning = prune_channels(model, ratio=0.5)
    assert after(pruning) == {"a": (16, 16), "b": (6, 3), "head": (4, 4)}
    assert "without those channels" in reason(pruning, "a")
    assert model.module.a.weight is weight
    assert any("a kept" in note for note in pruning.notes)
    with pytest.raises(UsageError, match=r"^a cannot shrink: .*without those channels"):
        prune_channels(image(Shuffled(), 3, 8, 8), ratio=0.5, ratios={"^a$": 0.5})


def test_a_gate_loses_the_same_channel_of_both_halves() -> None:
    torch.manual_seed(0)
    model = image(Gated(), 3, 8, 8)
    group = next(g for g in trace(model).groups if g.name == "a")
    assert group.units.tolist() == [*range(8), *range(8)]


def test_heads_go_whole_and_attributes_follow() -> None:
    torch.manual_seed(0)
    model = image(Attention(own=True), 5, 16)
    before = model.module.q.weight.detach().clone()
    pruning = prune_channels(model, ratio=0.5, heads=True, ignore=["^o$"])
    assert after(pruning, "heads") == {"": (4, 2)}
    assert model.module.num_heads == 2 and model.module.dim == 8
    rows = {tuple(row.tolist()) for row in before}
    blocks = [before[i : i + 4] for i in range(0, 16, 4)]
    assert {tuple(row.tolist()) for row in model.module.q.weight} < rows
    for i in (0, 4):  # each head that is left is one of the four, whole and in order
        assert any(torch.equal(model.module.q.weight[i : i + 4], b) for b in blocks)
    assert model.module.o.in_features == 8 and model.module.o.out_features == 16


def test_heads_that_cannot_go_are_named_and_those_not_asked_for_too() -> None:
    fixed = image(Attention(own=False), 5, 16)
    pruning = prune_channels(fixed, ratio=0.5, heads=True)
    assert after(pruning, "heads") == {"": (4, 4)} and after(pruning)["q"] == (16, 16)
    assert "does not run without them" in reason(pruning, "q")
    pruning = prune_channels(image(Attention(own=True), 5, 16), ratio=0.5)
    assert reason(pruning, "k") == "attention: heads are pruned with --heads"


def test_global_takes_where_least_is_lost_and_leaves_a_tenth() -> None:
    torch.manual_seed(0)
    model = digits_model()
    with torch.no_grad():
        weak = model.module.features[2][3]
        weak.conv1.weight[:90] *= 1e-3
        weak.bn1.weight[:90] *= 1e-3
        weak.conv2.weight[:, :90] *= 1e-3
    pruning = prune_channels(model, ratio=0.3, scope="global")
    cut = after(pruning)
    assert cut["features.2.3.conv1"] == (112, 22)
    assert all(now >= was / 10 for was, now in cut.values())
    groups = {"features.0.0", "features.0.3.conv1", "features.1.0", "features.1.3.conv1"}
    groups |= {"features.2.0", "features.2.3.conv1"}
    gone = sum(was - now for name, (was, now) in cut.items() if name in groups)
    assert gone == round(0.3 * 2 * (32 + 64 + 112))


@pytest.mark.parametrize(
    ("step", "ratio", "left"), [(8, 0.3, (24, 48, 80)), (16, 0.5, (16, 32, 64)), (1, 0.5, None)]
)
def test_what_stays_is_a_multiple(step: int, ratio: float, left: Any) -> None:
    cut = after(prune_channels(digits_model(), ratio=ratio, round_to=step))
    seen = tuple(cut[f"features.{i}.0"][1] for i in range(3))
    assert seen == (left or (16, 32, 56))


def test_ratios_by_name_ignore_and_the_reasons_of_what_stays() -> None:
    model = digits_model()
    pruning = prune_channels(
        model, ratio=0.25, ratios={r"features\.1": 0.5, r"2\.3\.conv1": 0}, ignore=["features.0.0"]
    )
    cut = after(pruning)
    assert cut["features.0.0"] == (32, 32) and cut["features.0.3.conv1"] == (32, 24)
    assert cut["features.1.0"] == cut["features.1.3.conv2"] == (64, 32)
    assert cut["features.2.0"] == (112, 84) and cut["features.2.3.conv1"] == (112, 112)
    assert reason(pruning, "features.0.3.conv2") == "ignored, by 'features.0.0'"
    assert reason(pruning, "features.2.3.conv1") == "ratio 0"
    assert reason(pruning, "classifier") == "its channels are the model's output"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 0}, "ratio 0; use a share above 0 and below 1"),
        ({"ratio": 1}, "ratio 1; use a share"),
        ({"ratio": -0.5}, "ratio -0.5; use a share"),
        ({"ratio": float("nan")}, "ratio nan; use a share"),
        ({"ratio": 0.5, "ratios": {"conv1": 1.0}}, "ratio 1 for 'conv1'"),
        ({"ratio": 0.5, "ratios": {"conv9": 0.1}}, "'conv9' names no layer; there are features.0"),
        ({"ratio": 0.5, "ignore": ["conv("]}, "'conv(' is no regular expression"),
        ({"ratio": 0.5, "ratios": {"classifier": 0.1}}, "classifier cannot shrink: its channels"),
        ({"ratio": 0.5, "scope": "all"}, "scope 'all'; use layer or global"),
        ({"ratio": 0.5, "round_to": 0}, "round_to 0; use 1 or more"),
        ({"ratio": 0.5, "importance": "luck"}, "importance 'luck'; use one of magnitude, bn"),
    ],
)
def test_bad_wishes_are_refused_and_change_nothing(settings: Any, message: str) -> None:
    model = digits_model()
    before = dict(model.module.state_dict())
    with pytest.raises(UsageError, match=re.escape(message)):
        prune_channels(model, **settings)
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3)), "nothing pruned: 0: its channels are the model's"),
        (nn.Sequential(nn.ReLU()), "none of its outputs depends on a parameter"),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 1, 1)), "0.4 of its 2 channels were to go"),
    ],
)
def test_nothing_pruned_is_an_error(module: nn.Module, message: str) -> None:
    with pytest.raises(SourceError, match=re.escape(message)):
        prune_channels(image(module, 3, 8, 8), ratio=0.2)


class Computed(nn.Module):
    """A weight that is computed, an LSTM of two layers, and a view of a fixed size."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.b = nn.Linear(8, 6)
        self.state = nn.LSTM(6, 4, 2, batch_first=True)
        self.c = nn.Linear(4, 12)
        self.d = nn.Linear(12, 6)
        self.spare = nn.Linear(3, 3)
        self.e = nn.Linear(6, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.state(self.b(self.a(x).relu()))[0]
        y = self.c(y).reshape(-1, 12)
        return self.head(self.e(self.d(y).view(len(x), 5, 6).sum(1)))


def test_reasons_name_what_stands_in_the_way() -> None:
    pruning = prune_channels(image(Computed(), 5, 8), ratio=0.5)
    assert "computed" in reason(pruning, "a")
    assert reason(pruning, "b") == "state is an LSTM of 2 layers"
    assert "does not run without them" in reason(pruning, "c") + reason(pruning, "d")
    assert reason(pruning, "spare") == "the example does not run it"


def test_frozen_parameters_stay_frozen_and_modes_as_they_were() -> None:
    model = digits_model()
    model.module.features[0].requires_grad_(False)
    model.module.features[1].train()
    shrink_width(model, 0.5)
    assert not any(p.requires_grad for p in model.module.features[0].parameters())
    assert all(p.requires_grad for p in model.module.classifier.parameters())
    assert model.module.features[1].training and not model.module.features[2].training
    assert all(p.grad is None for p in model.module.parameters())


def test_the_same_wishes_give_the_same_bytes() -> None:
    one, other = digits_model(), digits_model()
    assert prune_channels(one, ratio=0.3, scope="global") == prune_channels(
        other, ratio=0.3, scope="global"
    )
    for name, value in one.module.state_dict().items():
        assert torch.equal(value, other.module.state_dict()[name])


def test_a_masked_run_leaves_the_module_as_it_was() -> None:
    model = net("tied")
    before = run(model, [model.example])
    group = next(g for g in trace(model).groups if not g.reason)
    with masked(model, [(group, torch.tensor([0, 1]))]):
        assert not torch.equal(run(model, [model.example])[0]["output"], before[0]["output"])
    assert torch.equal(run(model, [model.example])[0]["output"], before[0]["output"])
    assert model.module.out.weight is model.module.table.weight


def test_tied_tables_stay_tied() -> None:
    model = net("tied")
    prune_channels(model, ratio=0.5)
    assert model.module.out.weight is model.module.table.weight
    assert model.module.table.embedding_dim == 8


def test_a_snapshot_brings_back_lists_too() -> None:
    module = nn.LSTM(3, 4)
    snapshot = ModuleSnapshot(module)
    weight = module.weight_ih_l0
    module.weight_ih_l0 = nn.Parameter(torch.zeros(1, 1))
    module.hidden_size = 1
    snapshot.restore()
    assert module.hidden_size == 4
    assert module.weight_ih_l0 is weight and module._flat_weights[0] is weight


FAMILIES = ("bert", "vit", "llama", "t5", "gpt2")


def family(name: str) -> TorchModel:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if name == "bert":
        config = transformers.BertConfig(
            **common, intermediate_size=64, vocab_size=50, max_position_embeddings=16, num_labels=3
        )
        return tokens(transformers.BertForSequenceClassification(config))
    if name == "llama":
        config = transformers.LlamaConfig(
            **common,
            num_key_value_heads=2,
            intermediate_size=64,
            vocab_size=50,
            tie_word_embeddings=True,
        )
        return tokens(transformers.LlamaForCausalLM(config), use_cache=False)
    if name == "gpt2":
        config = transformers.GPT2Config(
            n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=16, use_cache=False
        )
        return tokens(transformers.GPT2LMHeadModel(config))
    if name == "t5":
        config = transformers.T5Config(
            d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=50
        )
        return tokens(transformers.T5EncoderModel(config))
    config = transformers.ViTConfig(
        **common, intermediate_size=64, image_size=16, patch_size=8, num_labels=5
    )
    return image(transformers.ViTForImageClassification(config), 3, 16, 16)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_transformers(name: str) -> None:
    model = family(name)
    before = size(model)
    pruning = prune_channels(model, ratio=0.5, heads=True)
    heads = after(pruning, "heads")
    assert len(heads) == 2
    if name == "t5":  # position biases for every head, shared by all layers
        assert "heads are tied to those of others" in reason(pruning, next(iter(heads)))
        assert after(pruning)["encoder.block.0.layer.1.DenseReluDense.wi"] == (64, 32)
        return
    assert size(model) < 0.45 * before
    assert set(heads.values()) == {(2, 1)} if name == "llama" else {(4, 2)}
    if name == "bert":
        block = model.module.bert.encoder.layer[1].attention.self
        assert (block.num_attention_heads, block.all_head_size) == (2, 16)
        assert block.attention_head_size == 8
    if name == "llama":
        assert model.module.lm_head.weight is model.module.model.embed_tokens.weight
        assert model.module.model.layers[0].self_attn.q_proj.out_features == 16
        assert model.module.model.layers[0].self_attn.k_proj.out_features == 8


@pytest.mark.parametrize(
    ("name", "fits"), [("bert", True), ("llama", True), ("gpt2", True), ("vit", False)]
)
def test_a_configuration_of_the_new_shapes(name: str, fits: bool) -> None:
    model = family(name)
    ignore = [] if fits else ["vit.layers.1.mlp.fc1"]  # one block unlike the other
    pruning = prune_channels(model, ratio=0.5, heads=True, ignore=ignore)
    config = model.module.config
    assert any("no transformers configuration" in note for note in pruning.notes) == (not fits)
    if not fits:
        assert config.hidden_size == 32 and config.num_attention_heads == 4
        return
    assert (config.hidden_size, config.num_attention_heads) == (16, 2)
    again = type(model.module)(config)
    again.load_state_dict(model.module.state_dict())
    whole = run(model, [model.example])[0]
    other = TorchModel(again.eval(), model.inputs, model.example, fixed=model.fixed)
    torch.testing.assert_close(run(other, [model.example])[0]["logits"], whole["logits"])
