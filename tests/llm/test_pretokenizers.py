"""Pre-tokenizers recognised by what tokenizer.json says, and llama.cpp's splitting like it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tokenizer_files import TEXTS, read, same_ids, small, wikitext, write

from edgeopt.errors import SourceError, UsageError
from edgeopt.llm.tokenizers import read_tokenizer
from edgeopt.llm.tokenizers.pretokenizers import KNOWN

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("llama_cpp")

from tests.llama_vocab import loaded  # noqa: E402

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
DEEPSEEK_V3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]"
    "+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]"
    r"?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(regex: str, behavior: str = "isolated", invert: bool = False) -> Any:
    return tokenizers.pre_tokenizers.Split(tokenizers.Regex(regex), behavior, invert)


def byte_level(use_regex: bool) -> Any:
    return tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def digits(individual: bool) -> Any:
    return tokenizers.pre_tokenizers.Digits(individual_digits=individual)


#: name in llama.cpp -> parts of the pre-tokenizer, whether merges are ignored for whole tokens
PRE_TOKENIZERS: dict[str, tuple[list[Any], bool]] = {
    "gpt-2": ([byte_level(True)], False),
    "llama-bpe": ([split(LLAMA3), byte_level(False)], True),
    "qwen2": ([split(QWEN2), byte_level(False)], False),
    "smollm": ([digits(True), byte_level(True)], False),
    "falcon": (
        [
            tokenizers.pre_tokenizers.Punctuation("contiguous"),
            byte_level(True),
            digits(False),
            split("[0-9][0-9][0-9]"),
        ],
        False,
    ),
    "deepseek-v3": (
        [split(r"\p{N}{1,3}"), split("[一-龥぀-ゟ゠-ヿ]+"), split(DEEPSEEK_V3), byte_level(False)],
        False,
    ),
    "deepseek-coder": (
        [
            split("[\r\n]"),
            split(r"\s?\p{L}+"),
            split(r"\s?\p{P}+"),
            split("[一-龥ࠀ-一가-퟿]+"),
            digits(True),
            byte_level(False),
        ],
        False,
    ),
    "tekken": ([split(TEKKEN), byte_level(False)], True),
    "gpt-4o": ([split(GPT4O, "removed", True), byte_level(False)], False),
}


def trained(parts: list[Any], ignore_merges: bool, lines: list[str], size: int = 1200) -> Any:
    made = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(parts)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(lines, trainer)
    return made


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_byte_level_bpe_ids(name: str, tmp_path: Path) -> None:
    """The pre-tokenizer is recognised, and llama.cpp's splits as the one trained with does."""
    parts, ignore_merges = PRE_TOKENIZERS[name]
    lines = wikitext(700)
    theirs = trained(parts, ignore_merges, [*lines[:300], *TEXTS])
    theirs.save(str(tmp_path / "tokenizer.json"))
    fields = read(tmp_path, 1300)
    assert fields["tokenizer.ggml.pre"].value == name
    with loaded(fields) as vocab:
        assert len(vocab) == 1300
        assert vocab.text(1299) == "[PAD1299]"
        same_ids(vocab, theirs, (*TEXTS, *lines[500:700], "a<|begin|>b <|end|>"))
        for text in TEXTS:
            assert vocab.decode(vocab.encode(text)) == text.encode()


def pre_of(folder: Path, parts: list[Any], normalizer: Any = None, **model: Any) -> str:
    small(folder)
    spec = json.loads(folder.joinpath("tokenizer.json").read_text())
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    spec["normalizer"] = normalizer
    spec["model"].update(model)
    write(folder, "tokenizer.json", spec)
    return str(read(folder, 260)["tokenizer.ggml.pre"].value)


def isolated(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}


def test_spellings_of_one_expression(tmp_path: Path) -> None:
    tiktoken = (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    literal = LLAMA3.replace(r"\r", "\r").replace(r"\n", "\n")
    for regex in (LLAMA3, tiktoken, literal):
        assert pre_of(tmp_path, [isolated(regex), BYTES]) == "smaug-bpe"
        assert pre_of(tmp_path, [isolated(regex), BYTES], ignore_merges=True) == "llama-bpe"
    assert pre_of(tmp_path, [isolated(QWEN2), BYTES], {"type": "NFC"}) == "qwen2"


def test_an_unknown_expression_is_shown_with_the_nearest(tmp_path: Path) -> None:
    regex = QWEN2.replace(r"\p{N}", r"\p{N}{1,2}", 1) + "|x\n"
    with pytest.raises(SourceError) as caught:
        pre_of(tmp_path, [isolated(regex), BYTES])
    message = str(caught.value)
    assert "--pre-tokenizer" in message
    assert "qwen2" in message or "llama-bpe" in message
    assert regex.replace("\n", r"\n") in message
    assert "\n" not in message
    assert (
        read_tokenizer(tmp_path, {}, "llama", 260, "qwen2")["tokenizer.ggml.pre"].value == "qwen2"
    )


@pytest.mark.parametrize(
    ("parts", "normalizer", "message"),
    [
        ([], None, "no splitting at all"),
        ([{"type": "ByteLevel", "add_prefix_space": True}], None, "a space before the text"),
        ([isolated(QWEN2), BYTES], {"type": "Lowercase"}, "normalizer Lowercase"),
        (
            [{"type": "Split", "pattern": {"String": "x"}, "behavior": "Removed"}, BYTES],
            None,
            "Split Removed",
        ),
        ([{"type": "Whitespace"}, BYTES], None, "Whitespace"),
    ],
)
def test_what_has_no_name(parts: Any, normalizer: Any, message: str, tmp_path: Path) -> None:
    decoder = {"decoder": {"type": "ByteLevel"}}
    small(tmp_path)
    spec = json.loads(tmp_path.joinpath("tokenizer.json").read_text())
    spec.update(decoder)
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    spec["normalizer"] = normalizer
    write(tmp_path, "tokenizer.json", spec)
    with pytest.raises(SourceError, match=message):
        read(tmp_path, 260)


def test_every_name_in_the_table_is_llama_cpps(tmp_path: Path) -> None:
    small(tmp_path)
    for known in KNOWN:
        with loaded(read_tokenizer(tmp_path, {}, "llama", 260, known.name)) as vocab:
            assert vocab.encode("a") == [ord("a") - 33]


def test_a_name_that_cannot_be_one(tmp_path: Path) -> None:
    small(tmp_path)
    for name in ("", "a b", "é", "../x"):
        with pytest.raises(UsageError, match="--pre-tokenizer"):
            read_tokenizer(tmp_path, {}, "llama", 260, name)


def test_the_name_follows_the_cleaning_where_it_is_said(tmp_path: Path) -> None:
    for config, name in (({}, "gpt-2"), ({CLEAN: True}, "gpt-2"), ({CLEAN: False}, "trillion")):
        small(tmp_path, **config)
        assert read(tmp_path, 260)["tokenizer.ggml.pre"].value == name


CLEAN = "clean_up_tokenization_spaces"


@pytest.mark.parametrize("merges", [[["Ġ", "a"], ["Ġa", "b"]], ["Ġ a", "Ġa b"]])
def test_old_and_new_merges(merges: list[Any], tmp_path: Path) -> None:
    small(tmp_path)
    spec = json.loads(tmp_path.joinpath("tokenizer.json").read_text())
    spec["model"]["vocab"].update({"Ġa": 259, "Ġab": 260})
    spec["model"]["merges"] = merges
    write(tmp_path, "tokenizer.json", spec)
    fields = read(tmp_path, 261)
    assert fields["tokenizer.ggml.merges"].value == ["Ġ a", "Ġa b"]
    with loaded(fields) as vocab:
        assert vocab.encode("x ab") == [ord("x") - 33, 260]


def test_spaces_inside_merges_are_encoded(tmp_path: Path) -> None:
    small(tmp_path)
    spec = json.loads(tmp_path.joinpath("tokenizer.json").read_text())
    spec["model"]["merges"] = [["a b", " "], [" ", "c"]]
    write(tmp_path, "tokenizer.json", spec)
    assert read(tmp_path, 261)["tokenizer.ggml.merges"].value == ["aĠb Ġ", "Ġ c"]


@pytest.mark.parametrize(
    ("config", "architecture", "pre"),
    [
        ({"tokenizer_class": "GPT2Tokenizer"}, "gpt2", "gpt-2"),
        ({"tokenizer_class": "Qwen2TokenizerFast"}, "llama", "qwen2"),
        ({}, "qwen3", "qwen2"),
    ],
)
def test_vocab_json_and_merges_txt(
    config: dict[str, Any], architecture: str, pre: str, tmp_path: Path
) -> None:
    lines = wikitext(200)
    theirs = trained(PRE_TOKENIZERS[pre][0], False, lines, 500)
    theirs.model.save(str(tmp_path))
    config = {**config, "eos_token": "<|end|>", "additional_special_tokens": ["<|begin|>"]}
    write(tmp_path, "tokenizer_config.json", config)
    write(tmp_path, "added_tokens.json", {"<|begin|>": 0, "<|end|>": 1})
    fields = read(tmp_path, 500, architecture)
    assert fields["tokenizer.ggml.pre"].value == pre
    assert fields["tokenizer.ggml.token_type"].value[:3] == [3, 3, 1]
    with loaded(fields) as vocab:
        same_ids(vocab, theirs, (*TEXTS[:8], "a<|begin|>b"))


def test_vocab_json_of_an_unknown_class(tmp_path: Path) -> None:
    write(tmp_path, "vocab.json", {"a": 0})
    write(tmp_path, "merges.txt", "#version: 0.2\n")
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "OtherTokenizer"})
    with pytest.raises(SourceError, match=r"OtherTokenizer.*--pre-tokenizer"):
        read(tmp_path, 1)
    assert read_tokenizer(tmp_path, {}, "llama", 1, "gpt-2")["tokenizer.ggml.merges"].value == []
