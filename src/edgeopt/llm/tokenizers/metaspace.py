"""SentencePiece's tokenizers where only ``tokenizer.json`` tells of them: spaces are ▁ there.

BPE becomes llama.cpp's model ``llama``, which merges whatever two pieces make a third, best score
first. That is what the merges say where they were made from a SentencePiece model: then every way
to make a piece is a merge, and the ranks give the order. Merges that were trained leave ways out;
those go into llama.cpp's other BPE, on letters instead of bytes, which knows the merges themselves.

Where a space is put before a text, llama.cpp puts it behind every special token too, and before a
text that begins with a space; transformers does that for ``legacy`` tokenizers only.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgeopt.errors import FormatError, SourceError
from edgeopt.files.gguf_write import Field, array, boolean, string
from edgeopt.files.text import one_line
from edgeopt.llm.tokenizers.byte_bpe import merge_pairs, require_plain, words
from edgeopt.llm.tokenizers.folder import TokenizerFolder, listed, mapped
from edgeopt.llm.tokenizers.sentencepiece import (
    checked_charsmap,
    require_bytes,
    spell_spaces,
    unigram_fields,
)
from edgeopt.llm.tokenizers.special import special_fields
from edgeopt.llm.tokenizers.vocabulary import SPACE, TokenType, Vocabulary

__all__ = ["read_metaspace_bpe", "read_unigram"]

#: llama.cpp's name for BPE over letters with ▁ for spaces, no splitting but at line feeds.
_LETTERS_PRE = "sarvam-moe"


def read_metaspace_bpe(
    files: TokenizerFolder, config: Mapping[str, Any], n_vocab: int
) -> dict[str, Field]:
    """A BPE model with byte fallback whose spaces are ▁."""
    path = files.path("tokenizer.json")
    model = files.model
    require_plain(model, path)
    prefix = _prefix(files, path)
    vocabulary = words(files, mapped(model.get("vocab"), path, "vocab"), n_vocab, path)
    added = files.added_tokens()
    skipped = {token.id for token in added}
    ranks = _ranks(vocabulary, merge_pairs(model, path), skipped)
    for token in added:
        vocabulary.add(token)
    require_bytes(vocabulary, path)
    unknown = model.get("unk_token")
    number = vocabulary.id_of(unknown) if isinstance(unknown, str) else None
    if number is not None:
        vocabulary.types[number] = TokenType.UNKNOWN
    own = {} if number is None else {"unk": number}
    special = special_fields(files, config, vocabulary, model=own)
    spell_spaces(vocabulary, path)
    if ranks is not None:
        for token_id, rank in ranks.items():
            vocabulary.scores[token_id] = -float(rank)
        return {
            "tokenizer.ggml.model": string("llama"),
            "tokenizer.ggml.pre": string("default"),
            **vocabulary.fields(scores=True),
            **special,
            "tokenizer.ggml.add_space_prefix": boolean(prefix),
        }
    if prefix:
        raise SourceError(
            f"{path}: a BPE model with a space before the text and merges that were trained, not "
            "made from SentencePiece scores; llama.cpp has no tokenizer for that: put the "
            "SentencePiece file tokenizer.model into the folder if there is one"
        )
    return {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string(_LETTERS_PRE),
        **vocabulary.fields(scores=False),
        "tokenizer.ggml.merges": array("string", [f"{a} {b}" for a, b in merge_pairs(model, path)]),
        **special,
    }


def _ranks(
    vocabulary: Vocabulary, merges: Iterable[tuple[str, str]], skipped: set[int]
) -> dict[int, int] | None:
    """The rank of every token that merges make; None where pairs alone would not do.

    Every way to cut a token in two tokens has to be a merge, and all merges that make one token
    have to stand together.
    """
    ranks: dict[int, int] = {}
    ways: dict[int, int] = {}
    last = None
    for rank, (left, right) in enumerate(merges):
        number = vocabulary.id_of(left + right)
        if number is None:
            continue
        if ranks.setdefault(number, rank) != rank and last != number:
            return None
        ways[number] = ways.get(number, 0) + 1
        last = number
    known = vocabulary.id_of
    for number, text in vocabulary.normal():
        if number in skipped or len(text) < 2:
            continue
        cuts = sum(
            known(text[:at]) is not None and known(text[at:]) is not None
            for at in range(1, len(text))
        )
        if cuts != ways.get(number, 0):
            return None
    return ranks


def _prefix(files: TokenizerFolder, path: Path) -> bool:
    """Whether a space is put before a text. SourceError where more is done to it."""
    found = False
    for part in _parts(files, "normalizer", "normalizers", path):
        kind = part.get("type")
        pattern = mapped(part.get("pattern"), path, "normalizer").get("String")
        if kind == "Prepend" and part.get("prepend") == SPACE:
            found = True
        elif not (kind == "Replace" and (pattern, part.get("content")) == (" ", SPACE)):
            raise _odd("normalizer", part, path)
    for part in _parts(files, "pre_tokenizer", "pretokenizers", path):
        if part.get("type") == "Metaspace" and part.get("replacement") == SPACE:
            found = found or _metaspace_prefix(part)
        elif part.get("type") != "Split" or mapped(part.get("pattern"), path, "pre_tokenizer") != {
            "String": " "
        }:
            # no space is left by then, so splitting at spaces does nothing
            raise _odd("pre_tokenizer", part, path)
    return found


def _metaspace_prefix(part: Mapping[str, Any]) -> bool:
    scheme = part.get("prepend_scheme")
    if scheme is None:
        return part.get("add_prefix_space", True) is True
    return scheme in ("first", "always")


def _parts(files: TokenizerFolder, name: str, inner: str, path: Path) -> list[dict[str, Any]]:
    top = mapped(files.tokenizer.get(name), path, name)
    if not top:
        return []
    if top.get("type") != "Sequence":
        return [top]
    return [mapped(part, path, name) for part in listed(top.get(inner), path, name)]


def _odd(name: str, part: Mapping[str, Any], path: Path) -> SourceError:
    return SourceError(
        f"{path}: its {name} does {one_line(str(dict(part)), 160)}, which llama.cpp's tokenizer "
        "with ▁ for spaces does not do"
    )


def read_unigram(
    files: TokenizerFolder, config: Mapping[str, Any], n_vocab: int
) -> dict[str, Field]:
    """A unigram model: ``vocab`` is a list of pieces and their log probabilities."""
    path = files.path("tokenizer.json")
    model = files.model
    if model.get("byte_fallback") is True:
        raise SourceError(
            f"{path}: a unigram model with byte fallback; llama.cpp's unigram makes unknown "
            "letters one unknown token"
        )
    vocabulary = Vocabulary(n_vocab)
    for number, entry in enumerate(listed(model.get("vocab"), path, "vocab")):
        text, score = entry if isinstance(entry, list) and len(entry) == 2 else (None, None)
        if not isinstance(text, str) or not isinstance(score, (int, float)):
            raise FormatError(path, "is no pair of a text and a score", field=f"vocab[{number}]")
        if not math.isfinite(score) or abs(score) > 1e30:
            raise FormatError(path, f"the score {score} is no number", field=f"vocab[{number}]")
        vocabulary.put(number, text, TokenType.NORMAL, path, float(score))
    for token in files.added_tokens():
        vocabulary.add(token)
    own = {}
    unknown = model.get("unk_id")
    if isinstance(unknown, int) and 0 <= unknown < n_vocab:
        own["unk"] = unknown
        vocabulary.types[unknown] = TokenType.UNKNOWN
    special = special_fields(files, config, vocabulary, model=own)
    charsmap, merges_spaces = _unigram_normalizer(files, path)
    prefix = False
    for part in _parts(files, "pre_tokenizer", "pretokenizers", path):
        if part.get("type") == "WhitespaceSplit":
            merges_spaces = True
        elif part.get("type") == "Metaspace" and part.get("replacement") == SPACE:
            prefix = _metaspace_prefix(part)
        else:
            raise _odd("pre_tokenizer", part, path)
    spell_spaces(vocabulary, path)
    return unigram_fields(
        vocabulary,
        special,
        charsmap=charsmap,
        add_prefix=prefix,
        merge_spaces=merges_spaces,
        path=path,
    )


def _unigram_normalizer(files: TokenizerFolder, path: Path) -> tuple[bytes, bool]:
    charsmap, merges_spaces = b"", False
    for part in _parts(files, "normalizer", "normalizers", path):
        kind = part.get("type")
        pattern = mapped(part.get("pattern"), path, "normalizer").get("Regex")
        if kind == "Precompiled":
            charsmap = _decoded(part.get("precompiled_charsmap"), path)
        elif kind == "Replace" and (pattern, part.get("content")) in (
            (" {2,}", " "),
            (" {2,}", SPACE),
        ):
            merges_spaces = True
        elif kind != "Strip":
            raise _odd("normalizer", part, path)
    return checked_charsmap(charsmap, path), merges_spaces


def _decoded(value: Any, path: Path) -> bytes:
    if value is None:
        return b""
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise FormatError(path, "is no base64", field="precompiled_charsmap") from error
