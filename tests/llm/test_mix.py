"""The mixes against llama.cpp's own quantizer: the same type for every tensor."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.llm.mix_models import decoder, model_of, numbers, quantized_types, write_f32

from edgeopt.core.ggml import TYPE_NUMBERS
from edgeopt.errors import SourceError, UsageError
from edgeopt.files.gguf_write import array, boolean
from edgeopt.llm.mix import assign, file_type
from edgeopt.llm.mix_rules import PRESETS
from edgeopt.llm.model import LanguageModel

Shapes = dict[str, tuple[int, ...]]

#: Every preset that has rules of its own, and some that have none.
MIXED = ("F16", "Q8_0", "Q4_0", "Q2_K", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_M")


def types(preset: str, model: LanguageModel, **options: Any) -> dict[str, str]:
    return {a.tensor: a.type for a in assign(preset, model, **options)}


def same_as_llama(model: LanguageModel, folder: Path, presets: Any = PRESETS) -> None:
    """Every tensor's type under every preset, with an importance matrix and without."""
    pytest.importorskip("llama_cpp", reason="llama.cpp is the oracle")
    pytest.importorskip("gguf", reason="gguf-py writes the models")
    source, out = folder / "f32.gguf", folder / "quantized.gguf"
    write_f32(model, source)
    name = next(w.name for w in model.tensors if "attn" in w.name and len(w.shape) > 1)
    columns = next(w.shape[-1] for w in model.tensors if w.name == name)
    for preset in presets:
        for importance in (None, {name: np.ones(columns)}):
            theirs = quantized_types(source, out, file_type(preset), importance=importance)
            ours = types(preset, model, importance=importance)
            different = {n: (ours[n], t) for n, t in theirs.items() if ours[n] != t}
            assert not different, f"{preset}, importance {bool(importance)}: (ours, llama.cpp's)"
            assert list(ours) == [w.name for w in model.tensors]


# ---------------------------------------------------------------------------------------------
# architectures


def moe(layers: int, experts: int, *, separate: bool = False) -> Shapes:
    shapes = decoder(layers)
    for i in range(layers):
        for part in ("ffn_gate", "ffn_up", "ffn_down"):
            del shapes[f"blk.{i}.{part}.weight"]
            if separate:
                for expert in range(experts):
                    shapes[f"blk.{i}.{part}.{expert}.weight"] = (2, 256)
            else:
                shapes[f"blk.{i}.{part}_exps.weight"] = (experts, 2, 256)
        shapes[f"blk.{i}.ffn_gate_inp.weight"] = (experts, 256)
    return shapes


def fused(layers: int, columns: int = 256, *, tied: bool = False) -> Shapes:
    shapes: Shapes = {"token_embd.weight": (8, columns)}
    for i in range(layers):
        for part in ("attn_qkv", "attn_output", "ffn_up", "ffn_down"):
            shapes[f"blk.{i}.{part}.weight"] = (2, columns)
            shapes[f"blk.{i}.{part}.bias"] = (2,)
        shapes[f"blk.{i}.attn_norm.weight"] = (columns,)
    if not tied:
        shapes["output.weight"] = (8, columns)
    return shapes


def gpt2(layers: int, columns: int) -> Shapes:
    return {**fused(layers, columns, tied=True), "position_embd.weight": (16, columns)}


def bert(layers: int, columns: int) -> Shapes:
    shapes = decoder(layers, columns, tied=True)
    for i in range(layers):
        del shapes[f"blk.{i}.ffn_gate.weight"]
    return {
        **shapes,
        "token_types.weight": (2, columns),
        "position_embd.weight": (16, columns),
        "token_embd_norm.weight": (columns,),
    }


MODELS: dict[str, LanguageModel] = {
    "llama": model_of("llama", decoder(13), **numbers(13)),
    "one layer": model_of("llama", decoder(1), **numbers(1)),
    "grouped queries": model_of("llama", decoder(9), **numbers(9, attention__head_count_kv=2)),
    "two queries to a key": model_of("llama", decoder(9), **numbers(9, attention__head_count_kv=4)),
    "heads by layer": model_of(
        "llama",
        decoder(2),
        **numbers(2, attention__head_count=array("int32", [8, 8]))
        | {"attention__head_count_kv": array("int32", [2, 8])},
    ),
    "tied": model_of("llama", decoder(4, tied=True), **numbers(4)),
    "576 columns": model_of("llama", decoder(9, 576, tied=True), **numbers(9, 576)),
    "64 columns": model_of("llama", decoder(3, 64), **numbers(3, 64)),
    "80 columns": model_of("llama", decoder(3, 80), **numbers(3, 80)),
    "inner 96": model_of("llama", decoder(9, inner=96), **numbers(9)),
    "one row": model_of("llama", decoder(3, rows=1), **numbers(3)),
    "70B": model_of("llama", decoder(80), **numbers(80, attention__head_count_kv=1)),
    "65B": model_of("llama", decoder(80), **numbers(80)),
    "qwen2 72B": model_of("qwen2", decoder(80), **numbers(80)),
    "8 experts": model_of("llama", moe(9, 8), **numbers(9, expert_count=8, expert_used_count=2)),
    "8 experts apart": model_of(
        "llama", moe(4, 8, separate=True), **numbers(4, expert_count=8, expert_used_count=2)
    ),
    "4 experts": model_of("llama", moe(17, 4), **numbers(17, expert_count=4, expert_used_count=2)),
    "qwen2": model_of("qwen2", decoder(24, tied=True), **numbers(24)),
    "phi3": model_of("phi3", fused(16), **numbers(16, rope__dimension_count=8)),
    "gpt2": model_of("gpt2", gpt2(12, 96), **numbers(12, 96)),
    "gpt2, wide": model_of("gpt2", gpt2(12, 256), **numbers(12)),
    "gemma2": model_of(
        "gemma2",
        decoder(18, 256, inner=512, tied=True),
        **numbers(18, attention__head_count_kv=4, attention__sliding_window=64),
    ),
    "bert": model_of("bert", bert(6, 384), **numbers(6, 384, attention__causal=boolean(False))),
    "falcon": model_of("falcon", fused(33), **numbers(33, attention__head_count_kv=1)),
}


@pytest.mark.parametrize("name", MODELS)
def test_types_are_llama_cpps(name: str, tmp_path: Path) -> None:
    large = MODELS[name].number("block_count") == 80
    same_as_llama(MODELS[name], tmp_path, ("Q2_K", "Q3_K_M", "Q4_K_S") if large else MIXED)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_types_are_llama_cpps_under_every_preset(name: str, tmp_path: Path) -> None:
    same_as_llama(MODELS[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("layers", range(1, 41))
def test_types_are_llama_cpps_at_every_depth(layers: int, tmp_path: Path) -> None:
    for inner, tied, shared in ((256, False, 8), (576, True, 2)):
        shapes = decoder(layers, inner=inner, tied=tied)
        facts = numbers(layers, attention__head_count_kv=shared)
        same_as_llama(model_of("llama", shapes, **facts), tmp_path, MIXED)
    facts = numbers(layers, rope__dimension_count=8)
    same_as_llama(model_of("phi3", fused(layers), **facts), tmp_path, MIXED)
    same_as_llama(model_of("falcon", fused(layers), **numbers(layers)), tmp_path, MIXED)
    facts = numbers(layers, expert_count=8, expert_used_count=2)
    same_as_llama(model_of("llama", moe(layers, 8), **facts), tmp_path, MIXED)


def test_the_order_of_the_file_does_not_matter(tmp_path: Path) -> None:
    # Layers 2 and 10 are where an order by text would go wrong.
    shapes = list(decoder(12).items())
    random.Random(1).shuffle(shapes)
    same_as_llama(model_of("llama", dict(shapes), **numbers(12)), tmp_path, ["Q4_K_M", "Q4_K_S"])


def test_the_number_of_a_preset_is_in_the_file(tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="has the numbers")
    for name, preset in PRESETS.items():
        prefix = "ALL" if preset.name == "F32" else "MOSTLY"
        assert file_type(name) == getattr(llama_cpp, f"LLAMA_FTYPE_{prefix}_{preset.name}")


@pytest.mark.parametrize("alias", ["Q3_K", "Q4_K", "Q5_K", "q4_k_m"])
def test_short_names_mean_the_middle_size(alias: str) -> None:
    full = alias.upper() if alias.endswith("m") else f"{alias}_M"
    assert types(alias, MODELS["llama"]) == types(full, MODELS["llama"])


# ---------------------------------------------------------------------------------------------
# overrides


def test_overrides_are_llama_cpps(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama.cpp is the oracle")
    model = MODELS["llama"]
    wanted = [
        (r"blk\.(0|5)\.attn_v", "Q8_0"),
        ("attn_v.*", "Q3_K"),
        ("ffn_down", "Q2_K"),
        ("^token_embd", "F16"),
    ]
    write_f32(model, tmp_path / "f32.gguf")
    for chosen in (wanted, wanted[:1], wanted[2:], [(r"\.1\.ffn_down", "Q5_0")]):
        theirs = quantized_types(
            tmp_path / "f32.gguf",
            tmp_path / "out.gguf",
            file_type("Q4_K_M"),
            overrides=[(pattern, TYPE_NUMBERS[kind]) for pattern, kind in chosen],
        )
        assert types("Q4_K_M", model, overrides=chosen) == theirs


def test_overrides_hold_in_a_preset_of_floats_too() -> None:
    got = types("F16", MODELS["llama"], overrides=[("attn_v", "q8_0")])
    assert got["blk.3.attn_v.weight"] == "Q8_0"
    assert got["blk.3.attn_k.weight"] == "F16"
    assert got["blk.3.attn_norm.weight"] == "F32"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (("attn_v(", "Q8_0"), "no regular expression"),
        (("attn_v", "Q9_K"), "no type that edgeopt writes"),
        (("attn_v", "IQ2_XS"), "no type that edgeopt writes"),
        (("attn_w", "Q8_0"), "matches no tensor"),
        (("_norm", "Q8_0"), "never quantized"),
    ],
)
def test_an_override_without_effect_is_an_error(override: tuple[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        assign("Q4_K_M", MODELS["llama"], overrides=[override])


def test_an_override_that_comes_too_late_is_an_error() -> None:
    with pytest.raises(UsageError, match="put it first"):
        assign("Q4_K_M", MODELS["llama"], overrides=[("attn", "Q8_0"), ("attn_v", "Q6_K")])


@pytest.mark.parametrize(
    ("name", "kind", "remedy"),
    [
        ("576 columns", "Q6_K", "ask for Q8_0"),
        ("80 columns", "Q4_K", "ask for F16"),
        ("80 columns", "Q8_0", "ask for F16"),
    ],
)
def test_a_type_that_rows_do_not_fill_is_an_error(name: str, kind: str, remedy: str) -> None:
    with pytest.raises(UsageError, match=f"do not fill blocks.*{remedy}"):
        assign("Q4_K_M", MODELS[name], overrides=[("attn_v", kind)])


# ---------------------------------------------------------------------------------------------
# reasons, and what is never quantized


def reasons(preset: str, name: str) -> dict[str, str]:
    return {a.tensor: a.reason for a in assign(preset, MODELS[name])}


def test_reasons_are_words() -> None:
    said = reasons("Q4_K_M", "llama")
    assert said["output.weight"] == (
        "output table: kept finer because every token passes through it"
    )
    assert said["blk.0.attn_v.weight"] == (
        "attention values: kept finer in the first and last eighth of the layers "
        "and every third between"
    )
    assert said["blk.0.attn_q.weight"] == "Q4_K is the base of Q4_K_M"
    assert said["blk.0.attn_norm.weight"] == "kept in full: a vector of a few values"
    assert reasons("F16", "llama")["output.weight"] == "F16 was asked for"


def test_a_fallback_names_the_columns() -> None:
    assert reasons("Q4_K_S", "576 columns")["blk.8.attn_q.weight"] == (
        "576 columns do not fill blocks of 256, as Q4_K needs them"
    )
    assert reasons("Q4_K_S", "80 columns")["blk.2.attn_q.weight"] == (
        "80 columns do not fill blocks of 256 nor of 32, as Q4_K needs them"
    )
    assert reasons("Q4_0", "80 columns")["blk.2.attn_q.weight"] == (
        "80 columns do not fill blocks of 32, as Q4_0 needs them"
    )


@pytest.mark.parametrize("preset", ["F16", "BF16", "F32", "Q8_0"])
def test_small_tables_and_vectors_stay_float32(preset: str) -> None:
    got = types(preset, MODELS["bert"])
    for name in ("position_embd.weight", "token_types.weight", "token_embd_norm.weight"):
        assert got[name] == "F32"
    assert got["blk.0.attn_q.weight"] == preset


def test_what_a_file_stores_is_kept() -> None:
    got = types("Q8_0", MODELS["gpt2"], stored={"position_embd.weight": "F16"})
    assert got["position_embd.weight"] == "F16"


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'Q4_K_XL' is no type.*Q4_K_M"):
        assign("Q4_K_XL", MODELS["llama"])
    with pytest.raises(UsageError):
        file_type("IQ1_S")


@pytest.mark.parametrize("name", ["ffn_down_exps.weight", "blk.7.ffn_down_exps.weight"])
def test_an_expert_without_a_layer_is_refused(name: str) -> None:
    model = model_of("llama", {name: (8, 2, 256)}, **numbers(4, expert_count=8))
    with pytest.raises(SourceError, match="none of the model's 4 layers"):
        assign("Q4_K_M", model)
