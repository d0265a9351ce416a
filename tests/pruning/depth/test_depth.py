"""Whole blocks taken out: which, how they are ranked, and what is left when they are gone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")

from models import digits  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from edgeopt.core import InputSpec  # noqa: E402
from edgeopt.errors import InputsError, SourceError, UsageError  # noqa: E402
from edgeopt.modules.folder import write_folder  # noqa: E402
from edgeopt.modules.model import TorchModel  # noqa: E402
from edgeopt.pruning.depth.blocks import find_blocks, read_blocks  # noqa: E402
from edgeopt.pruning.depth.prune import block_influence, prune_depth  # noqa: E402
from edgeopt.pruning.depth.removal import remove_blocks  # noqa: E402


def wrapped(module: nn.Module, *shape: int, seed: int = 0) -> TorchModel:
    """A model with one float input ``x``."""
    x = np.random.default_rng(seed).standard_normal((2, *shape)).astype(np.float32)
    spec = InputSpec("x", "float32", ("batch", *shape))
    return TorchModel(module.eval(), (spec,), {"x": x}, positional=True)


class Residual(nn.Module):
    """``x + scale * tanh(Wx)``."""

    def __init__(self, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.tanh(self.inner(x))


class Listed(nn.Module):
    """Blocks in a ModuleList, the first of them changing the width."""

    def __init__(self, scales: tuple[float, ...], counted: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inlet = nn.Linear(6, 8)
        self.blocks = nn.ModuleList([Residual(8, scale) for scale in scales])
        self.n_layers = len(scales) if counted else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        for at in range(self.n_layers or len(self.blocks)):
            x = self.blocks[at](x)
        return x


# ---------------------------------------------------------------------------------------------
# finding


def test_the_digits_blocks_are_found_one_a_stage() -> None:
    model = wrapped(digits.build(), 1, 8, 8)
    assert [block.name for block in find_blocks(model)] == [f"features.{i}.3" for i in range(3)]
    assert {block.kind for block in find_blocks(model)} == {"residual"}


def test_of_a_stage_the_block_that_changes_the_shape_stays_with_its_reason() -> None:
    class Down(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, 3, stride=outputs // inputs, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.conv(x))

    stages = [nn.Sequential(Down(2, 2), Down(2, 2)), nn.Sequential(Down(2, 4), Down(4, 4))]
    found = {b.name: b.reason for b in read_blocks(wrapped(nn.Sequential(*stages), 2, 8, 8))}
    assert list(found) == ["0.0", "0.1", "1.0", "1.1"]
    assert found["1.0"] == "changes the shape of its input ([2, 2, 8, 8] to [2, 4, 4, 4])"
    assert not any(reason for name, reason in found.items() if name != "1.0")


def test_stages_that_hold_blocks_are_no_blocks_themselves() -> None:
    """The last stage keeps its input's shape: its blocks are found all the same, not the stage."""

    class Stage(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.project = nn.Linear(inputs, outputs)
            self.blocks = nn.ModuleList([Residual(outputs), Residual(outputs)])

        def forward(self, x: Tensor) -> Tensor:
            x = self.project(x)
            for block in self.blocks:
                x = block(x)
            return x

    model = wrapped(nn.Sequential(Stage(4, 8), Stage(8, 8)), 4)
    assert [b.name for b in find_blocks(model)] == [
        f"{i}.blocks.{j}" for i in (0, 1) for j in (0, 1)
    ]


def test_blocks_that_hold_lists_are_blocks_though_the_first_changes_the_shape() -> None:
    """ResNet's: each stage is a list of blocks, each block's branch a list of convolutions."""

    class Conv(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x)

    class Branch(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            stride = outputs // inputs
            self.layer = nn.Sequential(Conv(inputs, outputs, stride), Conv(outputs, outputs, 1))
            self.short = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.short(x) + self.layer(x)

    class Stage(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.layers = nn.Sequential(Branch(inputs, outputs), Branch(outputs, outputs))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    model = wrapped(nn.Sequential(Stage(4, 4), Stage(4, 8), Stage(8, 16)), 4, 8, 8)
    found = {block.name: bool(block.reason) for block in read_blocks(model)}
    assert found == {
        f"{stage}.layers.{at}": stage > 0 and at == 0 for stage in range(3) for at in range(2)
    }


def test_a_part_that_is_called_twice_is_no_block() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Residual(4), Residual(4)])

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks[1](self.blocks[1](self.blocks[0](x)))

    found = {b.name: b.reason for b in read_blocks(wrapped(Shared(), 4))}
    assert found == {"blocks.0": "", "blocks.1": "is called 2 times in a run"}


def test_heads_inside_a_block_are_part_of_it() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList([Residual(4), Residual(4)])

        def forward(self, x: Tensor) -> Tensor:
            return x + self.heads[0](x) * self.heads[1](x)

    model = wrapped(nn.Sequential(Heads(), Heads()), 4)
    assert [b.name for b in find_blocks(model)] == ["0", "1"]


# ---------------------------------------------------------------------------------------------
# ranking


def test_influence_is_one_minus_the_mean_cosine_without_padding() -> None:
    class Tokens(Listed):
        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return super().forward(x)

    net = Tokens((1.0, 0.1, 4.0)).eval()
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 5, 6)).astype(np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    specs = (
        InputSpec("x", "float32", ("b", "s", 6)),
        InputSpec("attention_mask", "int64", ("b", "s")),
    )
    model = TorchModel(net, specs, {"x": x, "attention_mask": mask})
    feeds = [{"x": x, "attention_mask": mask}, {"x": x[:1] * 2, "attention_mask": mask[:1]}]
    got = block_influence(model, find_blocks(model), feeds)

    def weight(part: nn.Linear) -> tuple[np.ndarray, np.ndarray]:
        return part.weight.detach().numpy().astype(float), part.bias.detach().numpy().astype(float)

    rows = np.concatenate([f["x"][f["attention_mask"] > 0] for f in feeds]).astype(float)
    matrix, bias = weight(net.inlet)
    rows = rows @ matrix.T + bias
    for name, block in (("blocks.0", 0), ("blocks.1", 1), ("blocks.2", 2)):
        matrix, bias = weight(net.blocks[block].inner)
        out = rows + net.blocks[block].scale * np.tanh(rows @ matrix.T + bias)
        norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(out, axis=1)
        expected = 1 - ((rows * out).sum(1) / norms).mean()
        assert got[name] == pytest.approx(expected, abs=1e-6)
        rows = out


def test_images_are_compared_place_by_place_along_the_channels() -> None:
    class Half(nn.Module):
        """Zero where it was given positive numbers: unchanged at places that were zero before."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, 0.0, x)

    model = wrapped(nn.Sequential(Half(), Half()), 2, 2, 2)
    x = np.zeros((1, 2, 2, 2), np.float32)
    x[0, :, 0, 0] = 1  # becomes zero: at right angles
    x[0, :, 0, 1] = (1, -1)  # half of it does: 45 degrees
    got = block_influence(model, find_blocks(model), [{"x": x}])
    assert got["0"] == pytest.approx(1 - (0 + np.sqrt(0.5) + 1 + 1) / 4)
    assert got["1"] == pytest.approx(0)


def test_the_least_influential_go_and_the_rest_keep_their_reason() -> None:
    model = wrapped(Listed((1.0, 0.01, 0.5, 0.02)), 6)
    pruning = prune_depth(model, ratio=0.5, feeds=[model.example])
    assert [(c.layer, c.after) for c in pruning.cuts] == [
        ("blocks.0", 1),
        ("blocks.1", 0),
        ("blocks.2", 1),
        ("blocks.3", 0),
    ]
    assert pruning.cuts[0].reason.startswith("influence 0.")
    assert [block.scale for block in model.module.blocks] == [1.0, 0.5]
    assert pruning.changed


# ---------------------------------------------------------------------------------------------
# removing


@pytest.mark.parametrize(("ratio", "gone"), [(0.25, 1), (1 / 3, 1), (0.5, 2), (0.625, 2), (0.8, 3)])
def test_a_ratio_is_rounded_to_whole_blocks_a_half_to_fewer(ratio: float, gone: int) -> None:
    model = wrapped(Listed((1.0, 0.1, 0.2, 0.3)), 6)
    prune_depth(model, ratio=ratio, feeds=[model.example])
    assert len(model.module.blocks) == 4 - gone


def test_what_is_left_is_the_network_built_without_them() -> None:
    model = wrapped(Listed((1.0, 0.1, 0.5), counted=True), 6)
    rest = [model.module.blocks[0], model.module.blocks[2]]
    x = torch.from_numpy(model.example["x"])
    expected = rest[1](rest[0](model.module.inlet(x)))
    prune_depth(model, remove=["blocks.1"])
    assert torch.equal(model.outputs(model.tensors())["output"], expected)


def test_elsewhere_an_identity_takes_the_place_and_other_names_stay() -> None:
    model = wrapped(digits.build(), 1, 8, 8)
    before = set(model.module.state_dict())
    pruning = prune_depth(model, keep=2, feeds=[model.example])
    (gone,) = [cut.layer for cut in pruning.cuts if not cut.after]
    assert isinstance(model.module.get_submodule(gone), nn.Identity)
    left = set(model.module.state_dict())
    assert left == {name for name in before if not name.startswith(f"{gone}.")}
    fresh = digits.build()
    remove_blocks(fresh, [gone])
    fresh.load_state_dict(model.module.state_dict())
    x = torch.from_numpy(model.example["x"])
    assert torch.equal(fresh(x), model.outputs(model.tensors())["output"])


def test_a_model_that_fails_without_its_block_is_put_back() -> None:
    class Indexed(Listed):
        def forward(self, x: Tensor) -> Tensor:
            x = self.inlet(x)
            for at in range(3):
                x = self.blocks[at](x)
            return x

    model = wrapped(Indexed((1.0, 0.1, 0.5), counted=True), 6)
    before = {name: id(part) for name, part in model.module.named_modules()}
    with pytest.raises(SourceError, match=r"without blocks\.1 the model does not run"):
        prune_depth(model, remove=["blocks.1"])
    assert {name: id(part) for name, part in model.module.named_modules()} == before
    assert model.module.n_layers == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": 0.1}, "ratio 0.1 removes none of 3 blocks; give 0.33 to 0.67"),
        ({"ratio": 0.9}, "ratio 0.9 removes all of 3 blocks"),
        ({"ratio": 1.0}, "between 0 and 1"),
        ({"ratio": float("nan")}, "between 0 and 1"),
        ({"keep": 3}, "keeping 3 removes none"),
        ({"keep": 0}, "keeping 0 removes all of 3 blocks; keep 1 to 2"),
        ({"remove": ["blocks.9"]}, r"blocks\.9 is no block of this model; blocks are "),
        ({"remove": ["blocks.0", "blocks.1", "blocks.2"]}, "at least one has to stay"),
        ({}, "one of a ratio"),
        ({"keep": 1, "ratio": 0.5}, "one of a ratio"),
    ],
)
def test_what_removes_nothing_or_everything_is_refused(options: dict, words: str) -> None:
    model = wrapped(Listed((1.0, 0.1, 0.5)), 6)
    with pytest.raises(UsageError, match=words):
        prune_depth(model, feeds=[model.example], **options)
    assert len(model.module.blocks) == 3


def test_a_block_that_has_to_stay_is_not_removed_by_name() -> None:
    stages = nn.Sequential(Residual(4), nn.Sequential(Residual(4)))
    stages.append(Residual(4))
    stages[2].inner = nn.Linear(4, 4)
    stages[2].forward = lambda x: x[:, :2]  # type: ignore[method-assign]
    with pytest.raises(UsageError, match=r"2 cannot be taken out: it changes the shape"):
        prune_depth(wrapped(stages, 4), remove=["2"])


def test_no_blocks_no_samples_and_broken_values_are_said() -> None:
    with pytest.raises(SourceError, match="has no blocks"):
        prune_depth(wrapped(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), 4), ratio=0.5)
    model = wrapped(Listed((1.0, 0.1, 0.5)), 6)
    with pytest.raises(InputsError, match="no samples"):
        prune_depth(model, ratio=0.5, feeds=[])
    bad = model.example["x"].copy()
    bad[0, 0] = np.nan
    with pytest.raises(InputsError, match="sample 1: 1 of 12 values of x are not finite"):
        prune_depth(model, ratio=0.5, feeds=[model.example, {"x": bad}])
    model.module.inlet.weight.data[0, 0] = np.inf
    with pytest.raises(SourceError, match="hidden states are not finite"):
        prune_depth(model, ratio=0.5, feeds=[model.example])
    with pytest.raises(SourceError, match="no Hugging Face folder"):
        write_folder(model, Path("nowhere"))


# ---------------------------------------------------------------------------------------------
# transformers

tiny = pytest.importorskip("tests.modules.tiny_folders")


#: Those whose lists or numbers are kept in another way than the rest's.
QUICK = ("LlamaForCausalLM", "GPT2LMHeadModel", "BertModel", "T5EncoderModel")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in tiny.KINDS]
)
def test_a_transformers_model_is_one_of_fewer_layers(name: str, tmp_path: Path) -> None:
    """The first and the third of four go: as if they returned what they are given, and so it is
    when transformers has loaded the folder."""
    model = tiny.opened(tiny.folder_of(name, tmp_path / "source"))
    blocks = find_blocks(model)
    assert len(blocks) == 4
    gone = [blocks[0].name, blocks[2].name]
    expected = _skipping(model, gone)
    prune_depth(model, remove=gone)
    write_folder(model, tmp_path / "out")
    loaded = getattr(tiny.transformers, name).from_pretrained(tmp_path / "out")
    assert loaded.config.num_hidden_layers == 2
    again = tiny.opened(tmp_path / "out").outputs(model.tensors())
    for output, tensor in model.outputs(model.tensors()).items():
        torch.testing.assert_close(tensor, expected[output], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(again[output], tensor, rtol=1e-5, atol=1e-6)


def _skipping(model: TorchModel, names: list[str]) -> dict[str, Tensor]:
    """Outputs where these blocks hand on what they are given."""

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    parts = [model.module.get_submodule(name) for name in names]
    handles = [part.register_forward_hook(hook, with_kwargs=True) for part in parts]
    outputs = model.outputs(model.tensors())
    for handle in handles:
        handle.remove()
    return outputs


def test_layer_types_and_places_follow_the_layers(tmp_path: Path) -> None:
    model = tiny.opened(tiny.folder_of("Gemma2ForCausalLM", tmp_path / "source"))
    types = list(model.module.config.layer_types)
    assert types == ["sliding_attention", "full_attention"] * 2
    prune_depth(model, remove=["model.layers.0", "model.layers.2"])
    assert model.module.config.layer_types == ["full_attention"] * 2
    assert [layer.self_attn.layer_idx for layer in model.module.model.layers] == [0, 1]


def test_a_cache_of_keys_and_values_works_with_the_layers_left(tmp_path: Path) -> None:
    """layer_idx is the place in the cache: with the old ones, generating would fail or go wrong."""
    model = tiny.opened(tiny.folder_of("LlamaForCausalLM", tmp_path / "source"))
    prune_depth(model, remove=["model.layers.0"])
    ids = torch.tensor([[1, 5, 9, 7]])
    with torch.no_grad():
        whole = model.module(input_ids=ids, use_cache=False).logits[:, -1]
        first = model.module(input_ids=ids[:, :3], use_cache=True)
        step = model.module(input_ids=ids[:, 3:], past_key_values=first.past_key_values)
    torch.testing.assert_close(step.logits[:, -1], whole, rtol=1e-4, atol=1e-5)
