"""WordPiece (BERT's): ``tokenizer.json`` or ``vocab.txt``.

GGUF marks what begins a word (``▁play``) where BERT marks what goes on (``##ing``). llama.cpp's
lower-casing takes accents off as BERT's does, but for two scripts: it leaves Hangul syllables
whole, and takes vowel signs off Devanagari.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt.errors import SourceError
from edgeopt.files.gguf_write import Field, boolean, string, u32
from edgeopt.files.text import one_line
from edgeopt.llm.tokenizers.byte_bpe import words
from edgeopt.llm.tokenizers.folder import TokenizerFolder, mapped, read_lines
from edgeopt.llm.tokenizers.special import special_fields
from edgeopt.llm.tokenizers.vocabulary import SPACE, TokenType, Vocabulary

__all__ = ["read_wordpiece"]

_PREFIX = "##"
_BOS, _EOS, _SEP, _UNK = (
    f"tokenizer.ggml.{role}_token_id" for role in ("bos", "eos", "seperator", "unknown")
)


def read_wordpiece(
    files: TokenizerFolder, config: Mapping[str, Any], n_vocab: int
) -> dict[str, Field]:
    """From ``tokenizer.json`` where it is there, else from ``vocab.txt``."""
    if files.has("tokenizer.json"):
        path = files.path("tokenizer.json")
        vocabulary, lowercase, strip = _fast(files, n_vocab, path)
    else:
        path = files.path("vocab.txt")
        vocabulary, lowercase, strip = _slow(files, n_vocab, path)
    for token in files.added_tokens():
        vocabulary.add(token)
    for role in ("unk", "sep", "pad", "cls", "mask"):
        number = vocabulary.id_of(_text_of(role, files))
        if number is not None:
            vocabulary.types[number] = TokenType.CONTROL
    special = special_fields(files, config, vocabulary, add_bos=True, add_eos=True)
    if _EOS in special:
        special.setdefault(_SEP, special[_EOS])
    for key in (_BOS, _SEP, _UNK):
        if key not in special:
            raise SourceError(
                f"{path}: llama.cpp's WordPiece needs {key}, and no token of the vocabulary is "
                "named as such: name cls_token, sep_token and unk_token in tokenizer_config.json"
            )
    vocabulary.respell({number: _phantom(text) for number, text in vocabulary.normal()}, path)
    return {
        "tokenizer.ggml.model": string("bert"),
        # llama.cpp has one pre-tokenizer for WordPiece, whatever is said here
        "tokenizer.ggml.pre": string("default"),
        "tokenizer.ggml.token_type_count": u32(_token_types(config)),
        **vocabulary.fields(scores=False),
        **special,
        "tokenizer.ggml.normalizer.lowercase": boolean(lowercase),
        "tokenizer.ggml.normalizer.strip_accents": boolean(strip),
    }


def _token_types(config: Mapping[str, Any]) -> int:
    value = config.get("type_vocab_size")
    return value if isinstance(value, int) and 0 <= value < 1 << 32 else 1


def _phantom(text: str) -> str:
    return text[len(_PREFIX) :] if text.startswith(_PREFIX) else SPACE + text


def _text_of(role: str, files: TokenizerFolder) -> str:
    name = files.config.get(f"{role}_token")
    return name if isinstance(name, str) else f"[{role.upper()}]"


def _fast(files: TokenizerFolder, n_vocab: int, path: Path) -> tuple[Vocabulary, bool, bool]:
    model = files.model
    prefix = model.get("continuing_subword_prefix", _PREFIX)
    if prefix != _PREFIX:
        raise SourceError(
            f"{path}: parts of a word begin with {one_line(repr(prefix), 40)}; llama.cpp knows "
            f"{_PREFIX!r} only"
        )
    vocabulary = words(files, mapped(model.get("vocab"), path, "vocab"), n_vocab, path)
    normalizer = mapped(files.tokenizer.get("normalizer"), path, "normalizer")
    if normalizer.get("type") != "BertNormalizer":
        kind = normalizer.get("type", "none at all")
        raise SourceError(
            f"{path}: its normalizer is {one_line(str(kind), 60)}; llama.cpp's WordPiece does what "
            "BertNormalizer does"
        )
    lowercase = normalizer.get("lowercase", True) is True
    return vocabulary, lowercase, _strips(normalizer.get("strip_accents"), lowercase)


def _slow(files: TokenizerFolder, n_vocab: int, path: Path) -> tuple[Vocabulary, bool, bool]:
    lines = read_lines(path)
    while lines and not lines[-1]:
        lines.pop()
    vocabulary = Vocabulary(n_vocab)
    for number, text in enumerate(lines):
        vocabulary.put(number, text, TokenType.NORMAL, path)
    lowercase = files.config.get("do_lower_case", True) is True
    return vocabulary, lowercase, _strips(files.config.get("strip_accents"), lowercase)


def _strips(value: Any, lowercase: bool) -> bool:
    """Where nothing is said, accents go with the capitals."""
    return value if isinstance(value, bool) else lowercase
