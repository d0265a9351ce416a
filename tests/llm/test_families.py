"""Folders and configurations of every kind, good and bad; no model is run here."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from tests.llm.gguf_of import opened, sentence_transformer

from edgeopt.core import Source, Weight
from edgeopt.errors import FormatError, MissingExtraError, SourceError
from edgeopt.llm.families import FAMILIES, families, family_of
from edgeopt.llm.families.changes import permuted, shifted, transposed

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 12,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 20000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}


def llama_tensors() -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (12, 8),
        "model.norm.weight": (8,),
        "lm_head.weight": (12, 8),
    }
    for i in range(2):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (8,),
            f"{layer}.self_attn.q_proj.weight": (8, 8),
            f"{layer}.self_attn.k_proj.weight": (4, 8),
            f"{layer}.self_attn.v_proj.weight": (4, 8),
            f"{layer}.self_attn.o_proj.weight": (8, 8),
            f"{layer}.post_attention_layernorm.weight": (8,),
            f"{layer}.mlp.gate_proj.weight": (6, 8),
            f"{layer}.mlp.up_proj.weight": (6, 8),
            f"{layer}.mlp.down_proj.weight": (8, 6),
        }
    random = np.random.default_rng(0)
    return {n: random.standard_normal(s, np.float32).astype("f2") for n, s in shapes.items()}


def folder_of(path: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file(dict(tensors), path / "model.safetensors")
    return path


def converted(folder: Path) -> dict[str, Weight]:
    config, source, family = opened(folder)
    return {weight.name: weight for weight in family.tensors(config, source)}


def metadata(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    found = family_of(config, folder).metadata(config, folder)
    return {key: field.value for key, field in found.items()}


# ---------------------------------------------------------------------------------------------
# the registry


def test_every_family_names_itself_and_its_classes() -> None:
    assert [family.name for family in families()] == list(FAMILIES)
    classes = [name for family in families() for name in family.architectures]
    assert len(set(classes)) == len(classes) >= 12


def test_an_unknown_architecture_names_what_is_known_and_how_to_add_one(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="MambaForCausalLM") as caught:
        family_of({"architectures": ["MambaForCausalLM"]}, tmp_path)
    for word in ("LlamaForCausalLM", "BertModel", "FAMILIES", "config.json"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("named", [None, [], "LlamaForCausalLM", [3]])
def test_a_configuration_without_architecture(named: Any, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="architectures"):
        family_of({"architectures": named}, tmp_path)


def test_gguf_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"pip install '.*\[gguf\]"):
        converted(folder_of(tmp_path / "m", LLAMA, llama_tensors()))


# ---------------------------------------------------------------------------------------------
# tensors


def weight_of(array: np.ndarray, asked: list[tuple[int, int]] | None = None) -> Weight:
    def rows(lo: int, hi: int) -> np.ndarray:
        if asked is not None:
            asked.append((lo, hi))
        return array[lo:hi]

    return Weight("w", array.shape, str(array.dtype), array.nbytes, rows)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.booleans(), st.data())
def test_permuted_rows_are_the_same_wherever_they_are_cut(
    heads: int, pairs: int, bias: bool, data: st.DataObject
) -> None:
    n = heads * pairs * 2
    array = np.arange(n if bias else n * 3).reshape((n,) if bias else (n, 3)).astype(np.float32)
    # The definition: halves of a head become neighbours.
    split = array.reshape(heads, 2, pairs, -1)
    whole = split.swapaxes(1, 2).reshape(array.shape)
    lo = data.draw(st.integers(0, n))
    hi = data.draw(st.integers(lo, n))
    asked: list[tuple[int, int]] = []
    weight = permuted(heads)(weight_of(array, asked))
    np.testing.assert_array_equal(weight.rows(lo, hi), whole[lo:hi])
    (first, last), head = asked[0], 2 * pairs
    assert last - first < hi - lo + 2 * head, "reads only the heads that it touches"


def test_a_transpose_copies_nothing() -> None:
    array = np.random.default_rng(0).standard_normal((6, 10), np.float32)
    weight = transposed(weight_of(array))
    assert weight.shape == (10, 6)
    np.testing.assert_array_equal(weight.rows(3, 7), array.T[3:7])
    assert np.shares_memory(weight.rows(3, 7), array)


def test_a_shift_is_done_in_float32() -> None:
    array = np.array([1e-3, -0.5], ml_dtypes.bfloat16)
    weight = shifted(weight_of(array))
    assert (weight.dtype, weight.nbytes) == ("float32", 8)
    np.testing.assert_array_equal(weight.rows(0, 2), array.astype(np.float32) + 1)


def test_llama_in_the_order_of_the_file(tmp_path: Path) -> None:
    tensors = llama_tensors()
    found = converted(folder_of(tmp_path / "m", LLAMA, tensors))
    block = [
        "attn_norm",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_norm",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    ]
    assert list(found) == [
        "token_embd.weight",
        *(f"blk.{i}.{name}.weight" for i in range(2) for name in block),
        "output_norm.weight",
        "output.weight",
    ]
    assert {weight.dtype for weight in found.values()} == {"float16"}
    np.testing.assert_array_equal(
        found["blk.1.ffn_down.weight"].array(), tensors["model.layers.1.mlp.down_proj.weight"]
    )
    # Two heads of 4: rows 0 1 2 3 of the first become 0 2 1 3.
    q = tensors["model.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(found["blk.0.attn_q.weight"].array(), q[[0, 2, 1, 3, 4, 6, 5, 7]])


def test_names_without_the_prefix_and_buffers_of_old(tmp_path: Path) -> None:
    bare = {name.removeprefix("model."): array for name, array in llama_tensors().items()}
    bare["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
    found = converted(folder_of(tmp_path / "m", LLAMA, bare))
    assert len(found) == len(llama_tensors())


def test_shards_and_torch_files_give_the_same_rows(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = llama_tensors()
    wanted = converted(folder_of(tmp_path / "one", LLAMA, tensors))
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "config.json").write_text(json.dumps(LLAMA))
    names = sorted(tensors)
    where = {}
    for number, part in enumerate((names[:7], names[7:]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, shards / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": where}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    binary = tmp_path / "binary"
    binary.mkdir()
    (binary / "config.json").write_text(json.dumps(LLAMA))
    torch.save({n: torch.from_numpy(a) for n, a in tensors.items()}, binary / "pytorch_model.bin")
    for folder in (shards, binary):
        found = converted(folder)
        assert list(found) == list(wanted)
        for name, weight in found.items():
            np.testing.assert_array_equal(weight.array(), wanted[name].array())


TIED = {**LLAMA, "tie_word_embeddings": True}


class TestTiedOutput:
    def test_no_head(self, tmp_path: Path) -> None:
        tensors = llama_tensors()
        del tensors["lm_head.weight"]
        assert "output.weight" not in converted(folder_of(tmp_path / "m", TIED, tensors))

    def test_a_head_with_the_same_values_is_left_out(self, tmp_path: Path) -> None:
        tensors = llama_tensors()
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        assert "output.weight" not in converted(folder_of(tmp_path / "m", TIED, tensors))

    def test_a_head_with_other_values_is_no_head(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"tie_word_embeddings.*lm_head"):
            converted(folder_of(tmp_path / "m", TIED, llama_tensors()))

    def test_one_storage_under_two_names(self, tmp_path: Path) -> None:
        torch = pytest.importorskip("torch")
        tensors = {n: torch.from_numpy(a) for n, a in llama_tensors().items()}
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        torch.save(tensors, tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text(json.dumps(LLAMA))
        assert "output.weight" not in converted(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lm_head.weight"), r"no tensor 'lm_head.weight'.*vocab_size 12"),
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            r"no tensor 'model.layers.1.mlp.up_proj.weight'.*intermediate_size 6",
        ),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": np.ones(8, "f2")}),
            r"'model.layers.0.self_attn.q_proj.bias' \[8\] is none",
        ),
        (
            lambda t: t.update({"extra.weight": np.ones(8, "f2")}),
            r"'extra.weight' \[8\] is none",
        ),
        (
            lambda t: t.update({"model.layers.2.mlp.up_proj.weight": np.ones((6, 8), "f2")}),
            "'model.layers.2.mlp.up_proj.weight'",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.ones(9, "f2")}),
            r"'model.norm.weight' is \[9\], config.json says \[8\] \(hidden_size 8\)",
        ),
        (
            lambda t: t.update({"model.embed_tokens.weight": np.ones((13, 8), "f2")}),
            r"is \[13, 8\], config.json says \[12, 8\] \(vocab_size 12, hidden_size 8\)",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.ones(8, "i4")}),
            "'model.norm.weight' is int32, which is no plain float",
        ),
        (
            lambda t: t.update({"norm.weight": np.ones(8, "f2")}),
            "are the same one of the model",
        ),
    ],
)
def test_tensors_that_do_not_fit(change: Any, message: str, tmp_path: Path) -> None:
    tensors = llama_tensors()
    change(tensors)
    with pytest.raises(SourceError, match=message) as caught:
        converted(folder_of(tmp_path / "m", LLAMA, tensors))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------
# configurations


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": None}, "hidden_size: is missing"),
        ({"vocab_size": "many"}, "vocab_size: is 'many', a whole number"),
        ({"vocab_size": True}, "vocab_size: is True"),
        ({"vocab_size": 2**40}, "vocab_size: is .* it must be from 1"),
        ({"vocab_size": 10**5000}, "vocab_size: is a number of"),
        ({"intermediate_size": 0}, "intermediate_size: is 0"),
        ({"rms_norm_eps": -1}, "rms_norm_eps: is -1"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps: is 'small', a number"),
        ({"rope_theta": float("inf")}, "rope_theta: is inf"),
        ({"num_key_value_heads": 3}, "num_attention_heads: is 2, no multiple"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, "hidden_size: is 8, no multiple"),
        ({"head_dim": 3}, "head_dim: is 3"),
        ({"attention_bias": "yes"}, "attention_bias: is 'yes', true or false"),
        ({"hidden_act": 4}, "hidden_act: is 4, a text"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; llama.cpp computes silu"),
        ({"num_hidden_layers": 513}, "num_hidden_layers is 513; .*512"),
        ({"rope_scaling": 4}, "rope_scaling: is 4, an object"),
        ({"rope_scaling": {"type": "spiral"}}, "rope_scaling.type is 'spiral'"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_scaling.type is 'longrope'"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": 8}}, "beta_fast is 8"),
        ({"rope_scaling": {"type": "yarn", "factor": 2, "truncate": False}}, "truncate is False"),
        ({"partial_rotary_factor": 0.5}, "turns whole heads"),
        ({"partial_rotary_factor": 2}, "partial_rotary_factor: is 2, more than all"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor: is missing"),
        (
            {
                "rope_scaling": {"rope_type": "llama3", "factor": 8}
                | {"low_freq_factor": 4, "high_freq_factor": 1}
            },
            "high_freq_factor: is 1, not above",
        ),
    ],
)
def test_configurations_that_cannot_be(
    changes: Mapping[str, Any], message: str, tmp_path: Path
) -> None:
    config = {**LLAMA, **changes}
    folder = folder_of(tmp_path / "m", LLAMA, llama_tensors())
    _, source, family = opened(folder)
    with pytest.raises(SourceError, match=message) as caught:
        family.metadata(config, folder)
        family.tensors(config, source)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_both_forms_of_rotary_positions_say_the_same(tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 4.0}
    old = {**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}}
    new = {k: v for k, v in LLAMA.items() if not k.startswith("rope")}
    new["rope_parameters"] = {**scaling, "rope_theta": 20000.0}
    assert metadata(tmp_path, old) == metadata(tmp_path, new)
    assert metadata(tmp_path, old)["llama.rope.scaling.factor"] == 4.0


def test_dynamic_scaling_changes_nothing_within_the_context(tmp_path: Path) -> None:
    dynamic = {**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 4.0}}
    assert metadata(tmp_path, dynamic) == metadata(tmp_path, LLAMA)


def test_yarn_takes_its_factor_from_the_contexts(tmp_path: Path) -> None:
    scaling = {"type": "yarn", "original_max_position_embeddings": 32}
    found = metadata(tmp_path, {**LLAMA, "rope_scaling": scaling})
    assert found["llama.rope.scaling.factor"] == 4.0
    assert found["llama.rope.scaling.original_context_length"] == 32
    scaling |= {"mscale": 1.0, "mscale_all_dim": 0.5}
    found = metadata(tmp_path, {**LLAMA, "rope_scaling": scaling})
    # mscale / mscale_all_dim, over llama.cpp's own mscale
    assert found["llama.rope.scaling.attn_factor"] == pytest.approx(1 / (0.05 * np.log(4) + 1))


def test_a_window_that_llama_cpp_does_not_apply_is_told(tmp_path: Path) -> None:
    mistral = {**LLAMA, "architectures": ["MistralForCausalLM"], "sliding_window": 32}
    folder = folder_of(tmp_path / "m", mistral, llama_tensors())
    config, source, family = opened(folder)
    assert "past 32 tokens (of 128)" in family.notes(config, source)[0]
    assert family.notes({**config, "sliding_window": 128}, source) == ()
    assert family.notes({**config, "sliding_window": None}, source) == ()


QWEN2 = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "sliding_window": 32}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, False),
        ({"use_sliding_window": True}, False),
        ({"use_sliding_window": True, "max_window_layers": 1}, True),
        ({"layer_types": ["full_attention"] * 2}, False),
        ({"layer_types": ["full_attention", "sliding_attention"]}, True),
    ],
)
def test_windows_of_qwen2(changes: Mapping[str, Any], told: bool) -> None:
    config = {**QWEN2, **changes}
    nothing = Source(Path("m"), "hf-folder", (), 0, ())
    assert bool(family_of(config, Path("m")).notes(config, nothing)) == told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention"]}, "layer_types: has 1 values for 2 layers"),
        ({"layer_types": ["full_attention", "looped"]}, "layer_types: has 'looped'"),
        ({"layer_types": "full_attention"}, "layer_types: is 'full_attention', a list"),
    ],
)
def test_layer_types_that_cannot_be(changes: Mapping[str, Any], message: str) -> None:
    config = {**QWEN2, **changes}
    nothing = Source(Path("m"), "hf-folder", (), 0, ())
    with pytest.raises(FormatError, match=message):
        family_of(config, Path("m")).notes(config, nothing)


GEMMA2 = LLAMA | {
    "architectures": ["Gemma2ForCausalLM"],
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 4,
    "query_pre_attn_scalar": 4,
    "sliding_window": 32,
    "tie_word_embeddings": True,
}
GEMMA3 = {**GEMMA2, "architectures": ["Gemma3ForCausalLM"]}
PHI3 = {**LLAMA, "architectures": ["Phi3ForCausalLM"]}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 12,
    "n_positions": 16,
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
}
BERT = {
    "architectures": ["BertModel"],
    "vocab_size": 12,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**QWEN2, "head_dim": 8}, "head_dim is 8; .* 2 x 8 and 8"),
        (
            {**LLAMA, "architectures": ["Qwen3ForCausalLM"], "attention_bias": True},
            "attention_bias is True; .*qwen3 has no biases",
        ),
        ({**GEMMA2, "query_pre_attn_scalar": 5}, "query_pre_attn_scalar is 5; llama.cpp takes 4"),
        ({**GEMMA2, "attn_logit_softcapping": None}, "attn_logit_softcapping is null"),
        ({**GEMMA2, "attention_bias": True}, "attention_bias is True"),
        ({**GEMMA2, "hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        ({**GEMMA3, "attn_logit_softcapping": 5.0}, "attn_logit_softcapping is 5.0"),
        ({**GEMMA3, "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        (
            {**GEMMA3, "rope_parameters": {"sliding_attention": {"rope_type": "linear"}}},
            "rope_parameters.sliding_attention.rope_type is 'linear'",
        ),
        ({**PHI3, "rope_scaling": {"type": "llama3"}}, "rope_scaling.type is 'llama3'"),
        ({**GPT2, "n_head": 3}, "n_embd: is 8, no multiple of n_head 3"),
        ({**GPT2, "scale_attn_weights": False}, "scale_attn_weights is False; .*true only"),
        ({**GPT2, "n_positions": None}, "n_ctx: is missing"),
        ({**GPT2, "activation_function": "relu"}, "activation_function is 'relu'"),
        ({**BERT, "position_embedding_type": "relative_key"}, "position_embedding_type is"),
        ({**BERT, "is_decoder": True}, "is_decoder is True"),
        ({**BERT, "num_attention_heads": 3}, "hidden_size: is 8, no multiple"),
        ({**BERT, "layer_norm_eps": None, "hidden_size": None}, "hidden_size: is missing"),
    ],
)
def test_what_an_architecture_cannot_express(
    config: Mapping[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=message):
        metadata(tmp_path, config)


def test_gemma2_has_no_output_of_its_own(tmp_path: Path) -> None:
    config = {**GEMMA2, "tie_word_embeddings": False}
    folder = folder_of(tmp_path / "m", config, llama_tensors())
    with pytest.raises(SourceError, match="tie_word_embeddings is False"):
        converted(folder)


def test_gemma3_in_its_older_form(tmp_path: Path) -> None:
    old = {**GEMMA3, "rope_local_base_freq": 30.0, "sliding_window_pattern": 2}
    del old["rope_scaling"]
    found = metadata(tmp_path, old)
    assert found["gemma3.rope.freq_base"] == 20000.0
    assert found["gemma3.rope.freq_base_swa"] == 30.0
    assert found["gemma3.attention.sliding_window_pattern"] == [True, False]
    # The 27 B model scales attention by another number; llama.cpp knows it by its layers.
    large = {**old, "num_hidden_layers": 62, "head_dim": 6, "query_pre_attn_scalar": 4}
    assert metadata(tmp_path, large)["gemma3.attention.key_length"] == 6
    # Configurations on the hub leave out what is the class's default.
    short = {"hidden_size": 2560, "num_hidden_layers": 34, "intermediate_size": 10240}
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": short}
    found = metadata(tmp_path, outer)
    assert (found["gemma3.vocab_size"], found["gemma3.attention.key_length"]) == (262208, 256)
    assert found["gemma3.rope.freq_base"] == 1e6
    assert "gemma3.attention.sliding_window_pattern" not in found


def test_phi3_in_its_older_form(tmp_path: Path) -> None:
    factors = {"short_factor": [1.0, 1.0], "long_factor": [2.0, 3.0]}
    old = PHI3 | {
        "rope_scaling": {"type": "su", **factors},
        "original_max_position_embeddings": 32,
        "sliding_window": 64,
    }
    found = metadata(tmp_path, old)
    assert found["phi3.rope.scaling.attn_factor"] == pytest.approx((1 + 2 / 5) ** 0.5)
    assert found["phi3.attention.sliding_window"] == 64
    nothing = Source(tmp_path, "hf-folder", (), 0, ())
    notes = family_of(old, tmp_path).notes(old, nothing)
    assert len(notes) == 2 and "long factors" in notes[1]


def test_factors_of_the_wrong_number(tmp_path: Path) -> None:
    scaling = {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0, 3.0]}
    config = {**PHI3, "rope_scaling": scaling}
    tensors = llama_tensors()
    for i in range(2):
        layer = f"model.layers.{i}"
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            del tensors[f"{layer}.{name}.weight"]
        for name in ("gate_proj", "up_proj"):
            del tensors[f"{layer}.mlp.{name}.weight"]
        tensors[f"{layer}.self_attn.qkv_proj.weight"] = np.ones((16, 8), "f2")
        tensors[f"{layer}.mlp.gate_up_proj.weight"] = np.ones((12, 8), "f2")
    folder = folder_of(tmp_path / "m", config, tensors)
    with pytest.raises(FormatError, match="short_factor: has 1 values, 2 were expected"):
        converted(folder)
    config = copy.deepcopy(config)
    config["rope_scaling"]["short_factor"] = [1.0, 0]
    with pytest.raises(FormatError, match=r"short_factor\[1\]: is 0"):
        converted(folder_of(tmp_path / "m", config, tensors))


# ---------------------------------------------------------------------------------------------
# bert


@pytest.mark.parametrize(("pooling", "number"), [("mean", 1), ("cls", 2), ("lasttoken", 3)])
def test_how_sentences_are_pooled(pooling: str, number: int, tmp_path: Path) -> None:
    sentence_transformer(tmp_path, pooling)
    assert metadata(tmp_path, BERT)["bert.pooling_type"] == number


def test_pooling_that_llama_cpp_does_not_have(tmp_path: Path) -> None:
    sentence_transformer(tmp_path, "max")
    with pytest.raises(SourceError, match="pools by max"):
        metadata(tmp_path, BERT)


def test_the_transformer_may_lie_in_a_folder_of_its_own(tmp_path: Path) -> None:
    sentence_transformer(tmp_path, "cls", transformer="0_Transformer")
    assert metadata(tmp_path / "0_Transformer", BERT)["bert.pooling_type"] == 2
    # A neighbour is no part of it.
    assert "bert.pooling_type" not in metadata(tmp_path / "another", BERT)


def test_a_dense_layer_after_the_pooling(tmp_path: Path) -> None:
    sentence_transformer(tmp_path, "mean", dense=True)
    with pytest.raises(SourceError, match="2_Dense"):
        metadata(tmp_path, BERT)


def test_what_bert_leaves_behind_is_told(tmp_path: Path) -> None:
    names = ("bert.pooler.dense.weight", "cls.predictions.bias", "bert.embeddings.LayerNorm.gamma")
    weights = tuple(
        Weight(name, (8,), "float32", 32, lambda lo, hi: np.ones(hi - lo, np.float32))
        for name in names
    )
    source = Source(tmp_path, "hf-folder", (), 0, weights)
    first, second = family_of(BERT, tmp_path).notes(BERT, source)
    assert first.startswith("left behind") and first.endswith(": cls, pooler")
    assert "no modules.json" in second
    with pytest.raises(SourceError, match=r"no tensor 'embeddings.word_embeddings.weight'"):
        family_of(BERT, tmp_path).tensors(BERT, source)
