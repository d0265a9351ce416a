"""Smaller transformers, against teachers whose surplus is known: what is zero has to go."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from torch import nn

from edgeopt.core import InputSpec
from edgeopt.distilling.pretrained_students import is_resizable, shrink_pretrained
from edgeopt.distilling.smaller_configuration import Sizes, smaller
from edgeopt.errors import SourceError
from edgeopt.modules.model import TorchModel
from edgeopt.modules.sentence_model import SentenceModel

transformers = pytest.importorskip("transformers")

HIDDEN, HEADS, INNER, BLOCKS, HEAD = 32, 4, 48, 4, 8
IDS = np.random.default_rng(0).integers(3, 20, (2, 6))


def _model(module: nn.Module, **fixed: object) -> TorchModel:
    example = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
    specs = tuple(InputSpec(name, "int64", ("batch", "tokens")) for name in example)
    return TorchModel(module.eval(), specs, example, fixed=fixed)


def _built(name: str, **options: object) -> nn.Module:
    """A small model of a class; sizes by the names that most configurations use."""
    config = getattr(transformers, name.split("For")[0].replace("LMHeadModel", "") + "Config", None)
    if config is None:
        config = getattr(transformers, name.removesuffix("Model") + "Config")
    sizes = {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": HEADS,
        "num_hidden_layers": BLOCKS,
        "vocab_size": 20,
        "max_position_embeddings": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if name.startswith("GPT2"):
        del sizes["intermediate_size"]  # its own is called n_inner, and left out
    module = getattr(transformers, name)(config(**{**sizes, **options})).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) + 3.0)
            parameter.mul_(0.05)
    return module


class Dead:
    """Places that hold nothing: hidden dimensions, and in each block heads, groups and neurons.

    A kind is a function from a parameter's block to its dead places along an axis.
    """

    def __init__(self, groups: int = HEADS, inner: int = INNER, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def half(count: int) -> np.ndarray:
            return np.sort(rng.permutation(count)[: count // 2])

        self.inner_size = inner
        self.hidden_places = half(HIDDEN)
        self.neurons = [half(inner) for _ in range(BLOCKS)]
        self.group_places = [half(groups if groups == HEADS else 0) for _ in range(BLOCKS)]
        share = HEADS // groups  # of several heads to a group, half of each; else half the groups
        self.head_places = [
            np.concatenate([g * share + half(share) for g in range(groups)]) if share > 1 else dead
            for dead in self.group_places
        ]
        self.groups = groups

    def hidden(self, _: int) -> np.ndarray:
        return self.hidden_places

    def inner(self, block: int) -> np.ndarray:
        return self.neurons[block]

    def gated(self, block: int) -> np.ndarray:
        return np.concatenate([self.neurons[block], self.inner_size + self.neurons[block]])

    def heads(self, block: int, size: int = HEAD) -> np.ndarray:
        return (self.head_places[block][:, None] * size + np.arange(size)).ravel()

    def keys(self, block: int) -> np.ndarray:
        return (self.group_places[block][:, None] * HEAD + np.arange(HEAD)).ravel()

    def fused(self, block: int) -> np.ndarray:
        queries, width = HEADS * HEAD, self.groups * HEAD
        keys = queries + self.keys(block)
        return np.concatenate([self.heads(block), keys, width + keys])

    def by_head(self, block: int) -> np.ndarray:
        return self.heads(block, 3 * HEAD)


#: Class, its options, groups, neurons, and what the axes of its parameters are.
FAMILIES = {
    "LlamaForCausalLM": (
        {"num_key_value_heads": 2},
        (2, INNER),
        {
            r"q_proj.weight": ("heads", "hidden"),
            r"(k|v)_proj.weight": ("keys", "hidden"),
            r"o_proj.weight": ("hidden", "heads"),
            r"(gate|up)_proj.weight": ("inner", "hidden"),
            r"down_proj.weight": ("hidden", "inner"),
            r"norm.*weight": ("hidden",),
            r"embed_tokens.weight|lm_head.weight": (None, "hidden"),
        },
    ),
    "Phi3ForCausalLM": (
        {"num_key_value_heads": 2},
        (2, INNER),
        {
            r"qkv_proj.weight": ("fused", "hidden"),
            r"o_proj.weight": ("hidden", "heads"),
            r"gate_up_proj.weight": ("gated", "hidden"),
            r"down_proj.weight": ("hidden", "inner"),
            r"norm.*weight": ("hidden",),
            r"embed_tokens.weight|lm_head.weight": (None, "hidden"),
        },
    ),
    "GPT2LMHeadModel": (
        {},
        (HEADS, 4 * HIDDEN),
        {
            r"c_attn.weight": ("hidden", "fused"),
            r"c_attn.bias": ("fused",),
            r"attn.c_proj.weight": ("heads", "hidden"),
            r"c_fc.weight": ("hidden", "inner"),
            r"c_fc.bias": ("inner",),
            r"mlp.c_proj.weight": ("inner", "hidden"),
            r"c_proj.bias|ln_\w.(weight|bias)": ("hidden",),
            r"wte.weight|wpe.weight|lm_head.weight": (None, "hidden"),
        },
    ),
    "GPTNeoXForCausalLM": (
        {},
        (HEADS, INNER),
        {
            r"query_key_value.weight": ("by_head", "hidden"),
            r"query_key_value.bias": ("by_head",),
            r"attention.dense.weight": ("hidden", "heads"),
            r"dense_h_to_4h.weight": ("inner", "hidden"),
            r"dense_h_to_4h.bias": ("inner",),
            r"dense_4h_to_h.weight": ("hidden", "inner"),
            r"dense.bias|4h_to_h.bias|norm.(weight|bias)": ("hidden",),
            r"embed_in.weight|lm_head.weight": (None, "hidden"),
        },
    ),
    "BertForSequenceClassification": (
        {},
        (HEADS, INNER),
        {
            r"self.(query|key|value).weight": ("heads", "hidden"),
            r"self.(query|key|value).bias": ("heads",),
            r"attention.output.dense.weight": ("hidden", "heads"),
            r"intermediate.dense.weight": ("inner", "hidden"),
            r"intermediate.dense.bias": ("inner",),
            r"\d.output.dense.weight": ("hidden", "inner"),
            r"pooler.dense.weight": ("hidden", "hidden"),
            r"(output|pooler).dense.bias|LayerNorm.(weight|bias)": ("hidden",),
            r"embeddings.weight|classifier.weight": (None, "hidden"),
            r"classifier.bias": (None,),
        },
    ),
}


def _dead_along(name: str, axes: dict[str, tuple[str | None, ...]], dead: Dead):
    """For each axis of a parameter its dead places."""
    kinds = next(kinds for pattern, kinds in axes.items() if re.search(f"({pattern})$", name))
    block = next((int(part) for part in name.split(".") if part.isdecimal()), 0)
    return [np.array([], int) if kind is None else getattr(dead, kind)(block) for kind in kinds]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_holds_nothing_goes_and_all_else_stays_in_order(name):
    options, sizes, axes = FAMILIES[name]
    dead = Dead(*sizes)
    module = _built(name, **options)
    alive: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            kept = tensor
            for axis, places in enumerate(_dead_along(key, axes, dead)):
                tensor.index_fill_(axis, torch.as_tensor(places), 0.0)
                left = np.setdiff1d(np.arange(tensor.shape[axis]), places)
                kept = kept.index_select(axis, torch.as_tensor(left))
            alive[key] = kept
    student, pruning = shrink_pretrained(_model(module), width=0.5, depth=0.5)
    found = student.module.state_dict()
    assert not [note for note in pruning.notes if "afresh with" in note]
    for key, tensor in found.items():
        source = re.sub(r"(?<=\.)1(?=\.)", "3", key)  # the last block of four
        assert torch.equal(tensor, alive[source]), key
    assert student.module.config.num_hidden_layers == 2


def test_the_student_computes_what_its_teacher_does_where_nothing_is_lost():
    # RMS is over twice as many dimensions in the teacher, half of them zero: the scale makes up.
    options, sizes, axes = FAMILIES["LlamaForCausalLM"]
    dead = Dead(*sizes)
    module = _built("LlamaForCausalLM", **options, rms_norm_eps=0.0)
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            tensor.mul_(
                torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(key)))
            )
            for axis, places in enumerate(_dead_along(key, axes, dead)):
                tensor.index_fill_(axis, torch.as_tensor(places), 0.0)
    teacher = _model(module, use_cache=False)
    student, _ = shrink_pretrained(teacher, width=0.5, depth=None)
    with torch.no_grad():
        for key, tensor in student.module.state_dict().items():
            if "norm" in key:
                tensor.mul_(2**0.5)
        wanted, got = (m.outputs(m.tensors())["logits"] for m in (teacher, student))
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_an_embedder_keeps_its_width_and_loses_neurons():
    module = _built("BertModel")
    dead = Dead()
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if "encoder" in key:
                block = int(key.split(".")[2])
                if "intermediate" in key:
                    tensor.index_fill_(0, torch.as_tensor(dead.inner(block)), 0.0)
                elif re.search(r"\d.output.dense.weight", key):
                    tensor.index_fill_(1, torch.as_tensor(dead.inner(block)), 0.0)
    whole = SentenceModel(module, ["mean"], [nn.Linear(HIDDEN, 8)])
    teacher = _model(whole)
    student, pruning = shrink_pretrained(teacher, width=0.5, depth=None)
    assert isinstance(student.module, SentenceModel)
    wanted, got = (m.outputs(m.tensors()) for m in (teacher, student))
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name])
    hidden = next(cut for cut in pruning.cuts if cut.layer == "hidden states")
    assert (hidden.before, hidden.after) == (HIDDEN, HIDDEN) and "as wide as" in hidden.reason
    assert any("stay 32 wide" in note for note in pruning.notes)
    inner = next(cut for cut in pruning.cuts if cut.layer.startswith("feed-forward"))
    assert (inner.before, inner.after) == (INNER, INNER // 2)
    assert student.module.head[0] is not whole.head[0]


def test_blocks_alone_make_a_shallower_model_with_the_first_and_the_last():
    module = _built("DistilBertModel", num_hidden_layers=6, hidden_dim=INNER)
    teacher = _model(module)
    before = copy.deepcopy(module.state_dict())
    torch.manual_seed(3)
    state = torch.get_rng_state()
    student, pruning = shrink_pretrained(teacher, width=None, depth=0.5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    layers = student.module.transformer.layer
    for ours, theirs in zip(layers, (0, 3, 5), strict=True):
        for a, b in zip(
            ours.parameters(), module.transformer.layer[theirs].parameters(), strict=True
        ):
            assert torch.equal(a, b)
    blocks = {cut.layer: cut.after for cut in pruning.cuts if cut.kind == "blocks"}
    assert blocks == {f"transformer.layer.{i}": int(i in (0, 3, 5)) for i in range(6)}
    assert any("0, 3, 5 of 6" in note for note in pruning.notes)
    assert pruning.changed and not student.module.training


def test_one_value_a_block_in_the_configuration_follows_the_blocks():
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    windows = {"sliding_window": 4, "use_sliding_window": True}
    module = _built(
        "Qwen3ForCausalLM", layer_types=kinds, head_dim=16, num_key_value_heads=1, **windows
    )
    student, _ = shrink_pretrained(_model(module, use_cache=False), width=0.5, depth=0.5)
    config = student.module.config
    assert config.layer_types == ["sliding_attention", "full_attention"]
    assert (config.num_key_value_heads, config.num_attention_heads, config.head_dim) == (1, 2, 16)
    assert config.hidden_size == 16


def test_what_nothing_matches_is_drawn_from_the_seed_and_said():
    # BLOOM's configuration does not say how wide its feed-forward blocks are.
    config = transformers.BloomConfig(hidden_size=HIDDEN, n_head=4, n_layer=1, vocab_size=20)
    teacher = _model(transformers.BloomForCausalLM(config), use_cache=False)
    students = [shrink_pretrained(teacher, width=0.5, depth=None, seed=seed) for seed in (0, 0, 1)]
    name = "transformer.h.0.mlp.dense_h_to_4h.weight"
    first, again, other = (student.module.state_dict()[name] for student, _ in students)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert any("afresh with seed 1" in note and "mlp" in note for note in students[2][1].notes)


def test_what_cannot_get_smaller_is_refused():
    one = _built("BertForSequenceClassification", num_hidden_layers=1)
    with pytest.raises(SourceError, match=r"no smaller at width 1 and depth 0\.5: it has 1 b"):
        shrink_pretrained(_model(one), width=None, depth=0.5)
    with pytest.raises(SourceError, match="does not say its sizes"):
        module = nn.Module()
        module.config = transformers.SwinConfig()
        shrink_pretrained(_model(module), width=0.5, depth=None)


def test_a_class_that_builds_what_it_likes_is_refused():
    class Stubborn(transformers.BertForSequenceClassification):
        def __init__(self, config):
            config.num_hidden_layers = BLOCKS
            super().__init__(config)

    class Broken(transformers.BertForSequenceClassification):
        def __init__(self, config):
            if config.num_hidden_layers != BLOCKS:
                raise RuntimeError("four or nothing")
            super().__init__(config)

    config = _built("BertForSequenceClassification").config
    with pytest.raises(SourceError, match="does not take its number of blocks"):
        shrink_pretrained(_model(Stubborn(copy.deepcopy(config))), width=None, depth=0.5)
    with pytest.raises(SourceError, match="cannot be built smaller: RuntimeError: four"):
        shrink_pretrained(_model(Broken(copy.deepcopy(config))), width=None, depth=0.5)


def test_which_models_have_sizes():
    assert is_resizable(_built("BertModel"))
    assert is_resizable(SentenceModel(_built("BertModel"), ["mean"], []))
    assert not is_resizable(nn.Linear(1, 1))
    config = transformers.SwinConfig(image_size=8, patch_size=1, embed_dim=8, depths=[1, 1])
    with torch.device("meta"):
        assert not is_resizable(transformers.SwinModel(config))


@pytest.mark.parametrize(
    ("heads", "groups", "width", "wanted"),
    [
        (12, 12, 0.5, (6, 6)),
        (8, 2, 0.5, (4, 2)),  # more groups, fewer heads in each
        (8, 1, 0.5, (4, 1)),
        (8, 2, 0.125, (1, 1)),
        (4, 4, 0.01, (1, 1)),
    ],
)
def test_heads_and_groups(heads, groups, width, wanted):
    sizes = Sizes(2, heads * 8, heads, groups, 8, 100)
    after = smaller(sizes, width, None, keep_hidden=False)
    assert (after.heads, after.groups) == wanted
    assert after.heads % after.groups == 0 and after.hidden == after.heads * 8
    free = smaller(Sizes(2, 100, heads, groups, 8, None), 0.5, 0.5, keep_hidden=False)
    assert (free.hidden, free.blocks, free.inner) == (48, 1, None)
