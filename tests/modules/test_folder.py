"""Hugging Face folders written: weights of now, everything else as it was, read by their owners."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the train extra is not installed")
tiny = pytest.importorskip("tests.modules.tiny_folders")

from safetensors.torch import load_file  # noqa: E402

from edgeopt.errors import OutputError, SourceError  # noqa: E402
from edgeopt.modules.folder import folder_complaint, write_folder  # noqa: E402
from edgeopt.pruning.depth.prune import prune_depth  # noqa: E402


def names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_only_the_weights_and_what_changed_in_the_configuration_are_new(tmp_path: Path) -> None:
    source = tiny.sentence_folder(tmp_path / "source", dense=True)
    config = json.loads((source / "config.json").read_text())
    config = {**config, "auto_map": {"AutoModel": "own.Model"}, "theirs": [1, 2]}
    (source / "config.json").write_text(json.dumps(config))
    kept = {
        "README.md": "card",
        "tokenizer.json": "{}",
        "assets/picture.svg": "<svg/>",
        "1_Pooling/config.json": (source / "1_Pooling" / "config.json").read_text(),
        "modules.json": (source / "modules.json").read_text(),
    }
    left = ["onnx/model.onnx", "openvino/openvino_model.xml", "tf_model.h5", "own.py"]
    for name, text in {**kept, **dict.fromkeys([*left, ".git/config"], "x")}.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    model = tiny.opened(source)
    prune_depth(model, remove=["transformer.encoder.layer.1"])
    with torch.no_grad():
        model.module.head[0][0].bias.add_(1)
    notes = write_folder(model, tmp_path / "out", files={"tokenizer.json": b"[]", "new": b"1"})
    out = tmp_path / "out"
    weights = {
        "config.json",
        "model.safetensors",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
    }
    assert names(out) == {*kept, *weights, "new"}
    assert (out / "tokenizer.json").read_bytes() == b"[]"
    for name in kept.keys() - {"tokenizer.json"}:
        assert (out / name).read_text() == kept[name]
    now = json.loads((out / "config.json").read_text())
    del config["auto_map"]
    assert now == {**config, "num_hidden_layers": 3}
    assert any("own.py" in note for note in notes)
    assert any("onnx/model.onnx" in note and "tf_model.h5" in note for note in notes)
    mode = (out / "config.json").stat().st_mode
    assert (out / "model.safetensors").stat().st_mode == mode
    bias = load_file(out / "2_Dense" / "model.safetensors")["linear.bias"]
    assert torch.equal(bias, model.module.head[0][0].bias)
    again = tiny.opened(out).outputs(model.tensors())["sentence_embedding"]
    torch.testing.assert_close(again, model.outputs(model.tensors())["sentence_embedding"])


def test_weights_keep_the_dtype_that_they_had(tmp_path: Path) -> None:
    source = tiny.folder_of("LlamaForCausalLM", tmp_path / "source")
    half = tiny.transformers.LlamaForCausalLM.from_pretrained(source).to(torch.bfloat16)
    half.save_pretrained(source)
    model = tiny.opened(source)
    with torch.no_grad():
        model.module.lm_head.weight.add_(0.001)  # no longer to be had in 8 bits of mantissa
    write_folder(model, tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert torch.equal(state["lm_head.weight"], model.module.lm_head.weight.bfloat16())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}


def test_shapes_that_no_configuration_has_are_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    model = tiny.opened(tiny.folder_of("BertModel", tmp_path / "source"))
    assert folder_complaint(model) is None
    dense = model.module.encoder.layer[1].intermediate.dense
    dense.weight = torch.nn.Parameter(dense.weight[:20].detach())
    complaint = folder_complaint(model)
    assert complaint is not None
    assert "encoder.layer.1.intermediate.dense.weight is [20, 16], and BertModel" in complaint
    with pytest.raises(SourceError, match=r"-o OUT\.pt"):
        write_folder(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_change_that_the_configuration_cannot_say_is_found_by_loading(tmp_path: Path) -> None:
    model = tiny.opened(tiny.folder_of("BertModel", tmp_path / "source"))
    model.module.encoder.layer[2].attention.self.scaling = 0.1
    with pytest.raises(SourceError, match=r"answers otherwise \(last_hidden_state\)"):
        write_folder(model, tmp_path / "out")
    assert names(tmp_path) == {f"source/{n}" for n in names(tmp_path / "source")}


def test_an_encoder_alone_is_no_folder(tmp_path: Path) -> None:
    settings = {**tiny.KINDS["T5EncoderModel"], "decoder_start_token_id": 0}
    tiny.KINDS["T5ForConditionalGeneration"] = settings
    source = tiny.folder_of("T5ForConditionalGeneration", tmp_path / "source")
    del tiny.KINDS["T5ForConditionalGeneration"]
    complaint = folder_complaint(tiny.opened(source))
    assert complaint is not None
    assert "holds a T5ForConditionalGeneration, of which T5Stack is a part" in complaint


def test_a_folder_is_neither_replaced_nor_written_into_its_source(tmp_path: Path) -> None:
    source = tiny.folder_of("LlamaForCausalLM", tmp_path / "source")
    before = names(source)
    model = tiny.opened(source)
    for out in (source, source / "inside"):
        with pytest.raises(OutputError, match="source folder"):
            write_folder(model, out)
    assert names(source) == before
