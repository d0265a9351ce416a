"""Real tokenizers of every kind, trained on a few lines of text in a moment."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

tokenizers = pytest.importorskip("tokenizers")

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402

SIZE = 700
SPECIAL = ["<unk>", "<s>", "</s>"]


def _trained(tokenizer: Any, trainer: Any, lines: list[str]) -> dict[str, Any]:
    tokenizer.train_from_iterator(lines, trainer)
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    return document


def byte_level(lines: list[str], ignore_merges: bool = False) -> dict[str, Any]:
    """GPT-2's kind; with ``ignore_merges`` Llama 3's: a word that is a token is taken whole."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    document = _trained(tokenizer, trainer, lines)
    if ignore_merges:
        # A word that no merge makes, as there are in Llama 3's vocabulary.
        document["model"]["vocab"]["Zwölf"] = SIZE
    return document


def metaspace(lines: list[str]) -> dict[str, Any]:
    """Llama 2's and Gemma's kind: letters, with bytes for those that are no token."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    words = [word for line in lines for word in line.replace(" ", " ▁").split(" ")]
    split = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    split.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=[*SPECIAL, *bytes_], show_progress=False
    )
    document = _trained(split, trainer, words)
    frame: dict[str, Any] = json.loads(tokenizer.to_str())
    added = [token for token in document["added_tokens"] if token["content"] in SPECIAL]
    return {**frame, "added_tokens": added, "model": document["model"]}


def suffixed(lines: list[str]) -> dict[str, Any]:
    """CLIP's kind: the end of a word is part of its last letter."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    return _trained(tokenizer, trainer, lines)


def prefixed(lines: list[str]) -> dict[str, Any]:
    """BPE whose parts of a word are marked, as WordPiece marks them."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=SPECIAL,
        continuing_subword_prefix="##",
        show_progress=False,
    )
    return _trained(tokenizer, trainer, lines)


def wordpiece(lines: list[str]) -> dict[str, Any]:
    """BERT's kind. The letters j and Q are no tokens: words with them are unknown."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=SIZE, special_tokens=SPECIAL, show_progress=False
    )
    document = _trained(tokenizer, trainer, [line.replace("j", "i") for line in lines])
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "</s>", "type_id": 0}},
        ],
        "pair": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {
            text: {"id": text, "ids": [SPECIAL.index(text)], "tokens": [text]}
            for text in ("<s>", "</s>")
        },
    }
    return document


def unigram(lines: list[str]) -> dict[str, Any]:
    """T5's and XLM-R's kind."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=SIZE, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    return _trained(tokenizer, trainer, lines)


def words(lines: list[str]) -> dict[str, Any]:
    """A token a word."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=SIZE, special_tokens=SPECIAL, show_progress=False
    )
    return _trained(tokenizer, trainer, lines)


KINDS: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "byte-level": byte_level,
    "ignore-merges": lambda lines: byte_level(lines, ignore_merges=True),
    "metaspace": metaspace,
    "suffixed": suffixed,
    "prefixed": prefixed,
    "wordpiece": wordpiece,
    "unigram": unigram,
    "words": words,
}

#: Those that give any text back as it was.
LOSSLESS = ("byte-level", "ignore-merges", "metaspace")
