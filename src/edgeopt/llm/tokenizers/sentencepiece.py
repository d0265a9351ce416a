"""SentencePiece's ``tokenizer.model``, read without the package.

BPE becomes llama.cpp's model ``llama``: pieces are merged by score, letters that are no piece
become byte tokens, and no normalization is done beyond the spaces. Unigram becomes its model
``t5``, normalization included.

Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.errors import FormatError, SourceError
from edgeopt.files import protobuf
from edgeopt.files.gguf_write import Field, array, boolean, string
from edgeopt.files.reading import read_whole
from edgeopt.llm.tokenizers.folder import TokenizerFolder
from edgeopt.llm.tokenizers.special import special_fields
from edgeopt.llm.tokenizers.vocabulary import SPACE, TokenType, Vocabulary

__all__ = [
    "SentencePieceModel",
    "checked_charsmap",
    "parse_model",
    "read_sentencepiece",
    "require_bytes",
    "spell_spaces",
    "unigram_fields",
]

#: The largest in use has 256,000 pieces in 4 MB.
_LIMIT = 64 << 20
_UNIGRAM, _BPE = 1, 2
_KINDS = {_UNIGRAM: "unigram", _BPE: "BPE", 3: "word", 4: "char"}
#: A line of base64 and a rank.
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+={0,2} [0-9]+\n")
_BYTE = re.compile("<0x[0-9A-F]{2}>")


@dataclass
class SentencePieceModel:
    """What ``tokenizer.model`` says, with the format's defaults."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    kind: int = _UNIGRAM
    byte_fallback: bool = False
    spaces_behind: bool = False
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    #: bos, eos, pad -> id, below zero where there is none.
    ends: dict[str, int] = field(default_factory=lambda: {"bos": 1, "eos": 2, "pad": -1})

    @property
    def loses_spaces(self) -> bool:
        """Whether runs of spaces become one, which llama.cpp does for unigram models alone."""
        return self.kind == _BPE and self.remove_extra_whitespaces


def parse_model(path: Path) -> SentencePieceModel:
    """Read a ModelProto. FormatError where it is none."""
    data = read_whole(path, _LIMIT)
    if _TIKTOKEN.match(data):
        raise FormatError(
            path,
            "is a vocabulary of tiktoken, not of SentencePiece; write tokenizer.json beside it "
            "with transformers (tokenizer.save_pretrained)",
        )
    model = SentencePieceModel()
    for number, wire, lo, hi in protobuf.fields(data, 0, len(data), path):
        if wire != protobuf.LENGTH:
            continue
        if number == 1:
            model.pieces.append(_piece(data, lo, hi, path))
        elif number == 2:
            _trainer(model, data, lo, hi, path)
        elif number == 3:
            _normalizer(model, data, lo, hi, path)
    if not model.pieces:
        raise FormatError(path, "holds no pieces: it is no model of SentencePiece")
    return model


_ENDS = {41: "bos", 42: "eos", 43: "pad"}
_TYPES = {int(kind): kind for kind in TokenType}
_SCORE = struct.Struct("<f")
#: A short piece as every writer writes it: text, score, perhaps its type.
_TEXT_TAG, _SCORE_TAG, _TYPE_TAG = 0x0A, 0x15, 0x18


def _piece(data: bytes, lo: int, hi: int, path: Path) -> tuple[str, float, int]:
    raw, score, kind = b"", 0.0, int(TokenType.NORMAL)
    end = lo + 2 + data[lo + 1] if hi - lo > 6 and data[lo] == _TEXT_TAG else hi
    if end + 5 in (hi, hi - 2) and data[lo + 1] < 128 and data[end] == _SCORE_TAG:
        raw = data[lo + 2 : end]
        (score,) = _SCORE.unpack_from(data, end + 1)
        if end + 7 == hi:
            if data[end + 5] != _TYPE_TAG:
                return _long_piece(data, lo, hi, path)
            kind = data[end + 6]
    else:
        return _long_piece(data, lo, hi, path)
    return _checked_piece(raw, score, kind, lo, path)


def _long_piece(data: bytes, lo: int, hi: int, path: Path) -> tuple[str, float, int]:
    raw, score, kind = b"", 0.0, int(TokenType.NORMAL)
    for number, wire, first, end in protobuf.fields(data, lo, hi, path):
        if number == 1 and wire == protobuf.LENGTH:
            raw = data[first:end]
        elif number == 2 and wire == protobuf.FIXED32:
            (score,) = _SCORE.unpack_from(data, first)
        elif number == 3 and wire == protobuf.VARINT:
            kind = first
    return _checked_piece(raw, score, kind, lo, path)


def _checked_piece(
    raw: bytes, score: float, kind: int, offset: int, path: Path
) -> tuple[str, float, int]:
    if kind not in _TYPES:
        raise FormatError(path, f"type {kind}, 1 to 6 are known", field="piece", offset=offset)
    if not math.isfinite(score):
        raise FormatError(path, f"the score {score} is no number", field="piece", offset=offset)
    try:
        return raw.decode(), score, kind
    except UnicodeDecodeError as error:
        raise FormatError(path, "is not UTF-8", field="piece", offset=offset) from error


def _trainer(model: SentencePieceModel, data: bytes, lo: int, hi: int, path: Path) -> None:
    for number, wire, value, _ in protobuf.fields(data, lo, hi, path):
        if wire != protobuf.VARINT:
            continue
        if number == 3:
            model.kind = value
        elif number == 24:
            model.spaces_behind = bool(value)
        elif number == 35:
            model.byte_fallback = bool(value)
        elif number in _ENDS:
            model.ends[_ENDS[number]] = value if value < 1 << 31 else -1


def _normalizer(model: SentencePieceModel, data: bytes, lo: int, hi: int, path: Path) -> None:
    for number, wire, value, end in protobuf.fields(data, lo, hi, path):
        if number == 2 and wire == protobuf.LENGTH:
            model.charsmap = data[value:end]
        elif wire == protobuf.VARINT and number == 3:
            model.add_dummy_prefix = bool(value)
        elif wire == protobuf.VARINT and number == 4:
            model.remove_extra_whitespaces = bool(value)
        elif wire == protobuf.VARINT and number == 5:
            model.escape_whitespaces = bool(value)


def read_sentencepiece(
    files: TokenizerFolder, config: Mapping[str, Any], n_vocab: int, name: str
) -> dict[str, Field]:
    """From the file ``name``, with the tokens that the other files add."""
    path = files.path(name)
    model = parse_model(path)
    if model.kind not in (_BPE, _UNIGRAM) or model.spaces_behind or not model.escape_whitespaces:
        what = _KINDS.get(model.kind, str(model.kind))
        raise SourceError(
            f"{path}: a SentencePiece model of kind {what}"
            f"{', with spaces behind words' if model.spaces_behind else ''}"
            f"{', with spaces left as they are' if not model.escape_whitespaces else ''}; "
            "llama.cpp knows BPE and unigram with ▁ before words"
        )
    vocabulary = Vocabulary(n_vocab)
    own: dict[str, int] = {}
    for number, (text, score, kind) in enumerate(model.pieces):
        vocabulary.put(number, text, _TYPES[kind], path, score)
        if kind == TokenType.UNKNOWN:
            own["unk"] = number
    for role, number in model.ends.items():
        if 0 <= number < n_vocab and vocabulary.types[number] is TokenType.CONTROL:
            own[role] = number
    for token in files.added_tokens():
        vocabulary.add(token)
    special = special_fields(files, config, vocabulary, add_bos=True, model=own)
    if model.kind == _UNIGRAM:
        if model.byte_fallback:
            raise SourceError(
                f"{path}: a unigram model with byte fallback; llama.cpp's unigram makes unknown "
                "letters one unknown token"
            )
        spell_spaces(vocabulary, path)
        return unigram_fields(
            vocabulary,
            special,
            charsmap=checked_charsmap(model.charsmap, path),
            add_prefix=model.add_dummy_prefix,
            merge_spaces=model.remove_extra_whitespaces,
            path=path,
        )
    require_bytes(vocabulary, path)
    spell_spaces(vocabulary, path)
    return {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.pre": string("default"),
        **vocabulary.fields(scores=True),
        **special,
        "tokenizer.ggml.add_space_prefix": boolean(model.add_dummy_prefix),
    }


def require_bytes(vocabulary: Vocabulary, path: Path) -> None:
    """llama.cpp ends the process at a letter that is no token, where there are no byte tokens."""
    for value in range(256):
        if vocabulary.id_of(f"<0x{value:02X}>") is None:
            raise SourceError(
                f"{path}: has no token <0x{value:02X}>; llama.cpp needs the 256 byte tokens for "
                "letters outside the vocabulary (train with byte_fallback)"
            )
    for number, text in enumerate(vocabulary.texts):
        if text is not None and _BYTE.fullmatch(text):
            vocabulary.types[number] = TokenType.BYTE


def spell_spaces(vocabulary: Vocabulary, path: Path) -> None:
    """Tokens that are looked for in the raw text have real spaces, not ▁."""
    vocabulary.respell(
        {
            number: text.replace(SPACE, " ")
            for number, text in enumerate(vocabulary.texts)
            if text is not None
            and SPACE in text
            and vocabulary.types[number] is TokenType.USER_DEFINED
        },
        path,
    )


def unigram_fields(
    vocabulary: Vocabulary,
    special: Mapping[str, Field],
    *,
    charsmap: bytes,
    add_prefix: bool,
    merge_spaces: bool,
    path: Path,
) -> dict[str, Field]:
    """The keys of a unigram model; a charsmap is SentencePiece's compiled normalization."""
    if "tokenizer.ggml.unknown_token_id" not in special:
        raise SourceError(
            f"{path}: a unigram model without an unknown token, which llama.cpp needs"
        )
    fields = {
        "tokenizer.ggml.model": string("t5"),
        "tokenizer.ggml.pre": string("default"),
        **vocabulary.fields(scores=True),
        **special,
        "tokenizer.ggml.add_space_prefix": boolean(add_prefix),
        "tokenizer.ggml.remove_extra_whitespaces": boolean(merge_spaces),
    }
    if charsmap:
        fields["tokenizer.ggml.precompiled_charsmap"] = array("uint8", charsmap)
    return fields


def checked_charsmap(charsmap: bytes, path: Path) -> bytes:
    """llama.cpp reads the length of the trie, then the trie, then at least one letter."""
    if not charsmap:
        return charsmap
    size = int.from_bytes(charsmap[:4], "little")
    if len(charsmap) < 5 or size + 4 >= len(charsmap) or charsmap[-1]:
        raise FormatError(
            path,
            f"{len(charsmap)} bytes that hold no trie of {size} bytes and its texts",
            field="precompiled_charsmap",
        )
    return charsmap
