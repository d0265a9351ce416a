"""Hugging Face folders, as transformers and sentence-transformers write them."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgeopt.errors import EdgeoptError, FormatError, SourceError
from edgeopt.files import hf_folder
from edgeopt.files.open import open_source

needs_torch_files = pytest.mark.skipif(
    importlib.util.find_spec("edgeopt.files.torch_zip") is None,
    reason="the reader of torch files is not there yet",
)


def folder(path: Path, config: object = None, *, weights: bool = True) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(
        json.dumps({"architectures": ["BertModel"]} if config is None else config)
    )
    if weights:
        save_file({"w": np.ones((2, 2), np.float32)}, path / "model.safetensors")
    return path


def test_minilm(minilm):
    source = open_source(minilm)
    assert source.kind == "hf-folder"
    assert source.needs_trust is None
    details = source.details
    assert details["architecture"] == "BertModel"
    assert details["config"]["vocab_size"] == 30522
    assert details["sentence_transformers"] == {
        "modules": ["Transformer", "Pooling", "Normalize"],
        "transformer": "",
        "heads": [],
        "pooling": "mean",
        "normalize": True,
        "max_seq_length": 256,
        "dimension": 384,
    }
    assert details["tokenizer"]["tokenizer.json"] == (minilm / "tokenizer.json").stat().st_size
    everything = sum(f.stat().st_size for f in minilm.rglob("*") if f.is_file())
    assert source.nbytes + sum(details["other_files"].values()) == everything
    assert details["folder_bytes"] == everything
    assert {f.relative_to(minilm).as_posix() for f in source.files} >= {
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "tokenizer.json",
    }
    theirs = load_file(minilm / "model.safetensors")
    assert {w.name for w in source.weights} == set(theirs)
    for weight in source.weights:
        np.testing.assert_array_equal(weight.array(), theirs[weight.name])
    assert [w.name for w in source.weights if w.role == "buffer"] == ["embeddings.position_ids"]
    assert len(source.sha256()) == 64


@pytest.fixture(scope="module")
def bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
    )
    return transformers.BertModel(config)


def test_what_transformers_saves(tmp_path, bert):
    bert.save_pretrained(tmp_path)
    source = open_source(tmp_path)
    state = bert.state_dict()
    assert {w.name for w in source.weights} == set(state)
    for weight in source.weights:
        np.testing.assert_array_equal(weight.array(), state[weight.name].numpy())
    assert source.details["architecture"] == "BertModel"
    assert source.details["config"]["model_type"] == "bert"
    assert source.details["sentence_transformers"] is None


def test_what_transformers_saves_in_shards(tmp_path, bert):
    bert.save_pretrained(tmp_path, max_shard_size="4KB")
    source = open_source(tmp_path)
    assert len(source.details["weight_files"]) > 2
    state = bert.state_dict()
    assert {w.name for w in source.weights} == set(state)
    for weight in source.weights:
        np.testing.assert_array_equal(weight.array(), state[weight.name].numpy())


@needs_torch_files
def test_torch_weights_whole_and_in_shards(tmp_path, bert):
    torch = pytest.importorskip("torch")
    state = bert.state_dict()
    whole = folder(tmp_path / "whole", weights=False)
    torch.save(state, whole / "pytorch_model.bin")
    old = folder(tmp_path / "old", weights=False)
    torch.save(state, old / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    shards = folder(tmp_path / "shards", weights=False)
    names = sorted(state)
    placed = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(names)}
    for shard in set(placed.values()):
        part = {name: state[name] for name in names if placed[name] == shard}
        torch.save(part, shards / shard)
    index = shards / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": placed}))
    for path in (whole, old, shards):
        source = open_source(path)
        assert source.kind == "hf-folder"
        assert {w.name for w in source.weights} == set(state)
        for weight in source.weights:
            np.testing.assert_array_equal(weight.array(), state[weight.name].numpy())
    (shards / "pytorch_model-1.bin").unlink()
    with pytest.raises(SourceError, match=r"names the shard 'pytorch_model-1\.bin'"):
        open_source(shards)
    (shards / "pytorch_model-1.bin").write_bytes((shards / "pytorch_model-0.bin").read_bytes())
    with pytest.raises(FormatError, match="in two shards"):
        open_source(shards)


@pytest.mark.parametrize("name", ["a", "c"])
def test_torch_shards_that_are_not_where_the_index_says(tmp_path, name):
    torch = pytest.importorskip("torch")
    (tmp_path / "config.json").write_text("{}")
    torch.save({"a": torch.ones(2)}, tmp_path / "m-1.bin")
    torch.save({"b": torch.ones(2)}, tmp_path / "m-2.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {name: "m-2.bin", "b": "m-2.bin", "x": "m-1.bin"}}))
    with pytest.raises(FormatError, match=f"places tensor '{name}' in 'm-2.bin', which does not"):
        hf_folder.describe(tmp_path)


def test_torch_weights_that_are_none(tmp_path):
    pytest.importorskip("edgeopt.files.torch_legacy")
    path = folder(tmp_path / "x", weights=False)
    (path / "pytorch_model.bin").write_bytes(b"version https://git-lfs")
    with pytest.raises(FormatError, match="is no torch file"):
        open_source(path)


def test_safetensors_win_and_the_rest_is_listed(tmp_path):
    path = folder(tmp_path / "x")
    (path / "pytorch_model.bin").write_bytes(b"x" * 100)
    (path / "tf_model.h5").write_bytes(b"x" * 50)
    (path / "onnx").mkdir()
    (path / "onnx" / "model.onnx").write_bytes(b"x" * 25)
    (path / ".git").mkdir()
    (path / ".git" / "blob").write_bytes(b"x" * 1000)
    (path / "vocab.txt").write_bytes(b"a\nb")
    source = open_source(path)
    assert source.details["weights"] == "safetensors"
    assert source.details["other_files"] == {
        "onnx/model.onnx": 25,
        "pytorch_model.bin": 100,
        "tf_model.h5": 50,
    }
    assert source.details["tokenizer"] == {"vocab.txt": 3}
    assert source.details["folder_bytes"] == source.nbytes + 175
    assert source.nbytes == sum(f.stat().st_size for f in source.files)


def test_a_downloaded_folder_is_all_links(tmp_path):
    real = folder(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in real.iterdir():
        (snapshot / file.name).symlink_to(Path("..") / "blobs" / file.name)
    assert open_source(snapshot).kind == "hf-folder"


def test_code_from_the_folder_needs_trust(tmp_path):
    config = {"auto_map": {"AutoModel": "modeling_x.XModel"}}
    source = open_source(folder(tmp_path / "x", config))
    assert source.needs_trust is not None
    assert "auto_map" in source.needs_trust
    assert source.details["architecture"] is None


def test_a_config_beside_one_onnx_file_is_no_weights_folder(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import helper

    path = folder(tmp_path / "x", weights=False)
    graph = helper.make_graph([], "g", [], [])
    onnx.save(helper.make_model(graph), path / "model.onnx")
    assert open_source(path).kind == "onnx"


def test_sentence_transformers_of_the_old_layout_with_a_dense_layer(tmp_path):
    modules = [
        {"idx": 0, "path": "0_Transformer", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    folder(tmp_path / "0_Transformer")
    folder(tmp_path / "2_Dense", {"in_features": 2})
    folder(
        tmp_path / "1_Pooling",
        {
            "word_embedding_dimension": 2,
            "pooling_mode_cls_token": True,
            "pooling_mode_max_tokens": True,
            "pooling_mode_mean_tokens": False,
        },
        weights=False,
    )
    source = open_source(tmp_path)
    assert [w.name for w in source.weights] == ["w", "2_Dense.w"]
    bert = source.details["sentence_transformers"]
    assert bert["pooling"] == "cls+max"
    assert bert["normalize"] is False
    assert bert["transformer"] == "0_Transformer"
    assert bert["heads"] == ["2_Dense"]
    assert source.details["other_files"] == {}
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    assert open_source(tmp_path).details["sentence_transformers"]["pooling"] == "lasttoken"


@pytest.mark.parametrize(
    ("modules", "error", "message"),
    [
        ("[", FormatError, "no valid JSON|not valid JSON"),
        ("{}", FormatError, "a list was expected"),
        ("[1]", FormatError, "without a type or a path"),
        ('[{"type": "a.Transformer", "path": "../x"}]', FormatError, "plain folder name"),
        ('[{"type": "a.Transformer", "path": "/etc"}]', FormatError, "plain folder name"),
        ('[{"type": "a.Pooling", "path": ""}]', SourceError, "lists no Transformer"),
        ('[{"type": "a.Transformer", "path": "gone"}]', SourceError, "has no config.json"),
    ],
)
def test_broken_modules(tmp_path, modules, error, message):
    path = folder(tmp_path / "x")
    (path / "modules.json").write_text(modules)
    with pytest.raises(error, match=message):
        open_source(path)


@pytest.mark.parametrize("config", ["", "[]", "{", "[" * 100_000, '"x"'])
def test_broken_config(tmp_path, config):
    path = folder(tmp_path / "x")
    (path / "config.json").write_text(config)
    with pytest.raises(FormatError):
        open_source(path)


def test_a_giant_config_is_not_read(tmp_path):
    path = folder(tmp_path / "x")
    with (path / "config.json").open("r+b") as stream:
        stream.truncate(1 << 30)
    with pytest.raises(FormatError, match="too large"):
        open_source(path)


def test_modules_without_weights(tmp_path):
    path = folder(tmp_path / "x", weights=False)
    (path / "modules.json").write_text('[{"type": "a.Transformer", "path": ""}]')
    with pytest.raises(SourceError, match=r"has no weights; looked for model\.safetensors"):
        open_source(path)


def test_flipped_bytes_never_escape_the_error_tree(tmp_path, rewrite):
    modules = [
        {"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    path = folder(tmp_path / "x", {"architectures": ["BertModel"], "vocab_size": 5})
    folder(path / "1_Pooling", {"pooling_mode_mean_tokens": True}, weights=False)
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 5}')
    rng = random.Random(29)
    opened = 0
    for _ in range(1000):
        file = path / rng.choice(
            ("config.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json")
        )
        whole = file.read_bytes()
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(len(data))] = rng.choice(b'[]{}",:01a\0\xff')
        rewrite(file, data)
        try:
            opened += open_source(path) is not None
        except EdgeoptError as error:
            assert "\n" not in str(error)
        rewrite(file, whole)
    assert 0 < opened < 1000
