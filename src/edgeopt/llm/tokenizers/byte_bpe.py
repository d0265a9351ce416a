"""Byte-level BPE (GPT-2's kind): ``tokenizer.json``, or ``vocab.json`` with ``merges.txt``.

GGUF: model ``gpt2``, tokens in the alphabet that stands for bytes, merges as ``"a b"``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeopt.errors import FormatError, SourceError
from edgeopt.files.gguf_write import Field, array, string
from edgeopt.files.reading import read_json
from edgeopt.files.text import one_line
from edgeopt.llm.tokenizers.folder import (
    MAX_JSON,
    TokenizerFolder,
    listed,
    mapped,
    numbered,
    read_lines,
)
from edgeopt.llm.tokenizers.pretokenizers import recognise, steps_of
from edgeopt.llm.tokenizers.special import special_fields
from edgeopt.llm.tokenizers.vocabulary import TokenType, Vocabulary

__all__ = ["merge_pairs", "read_byte_bpe", "read_slow_byte_bpe", "require_plain", "words"]

#: What stands for a space inside a merge, where a space separates the two sides.
_SPACE = chr(ord(" ") + 256)

#: Without tokenizer.json the class says how a text is split.
_CLASSES: Mapping[str, str] = {
    "GPT2Tokenizer": "gpt-2",
    "CodeGenTokenizer": "gpt-2",
    "Qwen2Tokenizer": "qwen2",
}
_ARCHITECTURES: Mapping[str, str] = {"gpt2": "gpt-2", "qwen2": "qwen2", "qwen3": "qwen2"}


def read_byte_bpe(
    files: TokenizerFolder, config: Mapping[str, Any], n_vocab: int, pre: str | None
) -> dict[str, Field]:
    """From ``tokenizer.json``."""
    path = files.path("tokenizer.json")
    model = files.model
    require_plain(model, path)
    if pre is None:
        cleans = files.config.get("clean_up_tokenization_spaces")
        pre = recognise(
            steps_of(files.tokenizer, path),
            ignore_merges=model.get("ignore_merges") is True,
            cleans=cleans if isinstance(cleans, bool) else None,
            path=path,
        )
    vocabulary = words(files, mapped(model.get("vocab"), path, "vocab"), n_vocab, path)
    merges = [f"{a} {b}" for a, b in merge_pairs(model, path)]
    return _fields(files, config, vocabulary, merges, pre)


def read_slow_byte_bpe(
    files: TokenizerFolder,
    config: Mapping[str, Any],
    architecture: str,
    n_vocab: int,
    pre: str | None,
) -> dict[str, Field]:
    """From ``vocab.json`` and ``merges.txt``."""
    path, merges_path = files.path("vocab.json"), files.path("merges.txt")
    pre = pre or _CLASSES.get(files.tokenizer_class) or _ARCHITECTURES.get(architecture)
    if pre is None:
        raise SourceError(
            f"{path}: how its tokenizer splits a text is said neither by a tokenizer.json nor by "
            f"the class {one_line(files.tokenizer_class, 60)!r}; give --pre-tokenizer NAME, or "
            "write tokenizer.json with tokenizer.save_pretrained"
        )
    vocabulary = words(files, read_json(path, limit=MAX_JSON), n_vocab, path)
    lines = read_lines(merges_path)
    if lines and lines[0].startswith("#version"):
        lines = lines[1:]
    merges = [f"{a} {b}" for a, b in _pairs((line for line in lines if line), merges_path)]
    return _fields(files, config, vocabulary, merges, pre)


def _fields(
    files: TokenizerFolder,
    config: Mapping[str, Any],
    vocabulary: Vocabulary,
    merges: list[str],
    pre: str,
) -> dict[str, Field]:
    for token in files.added_tokens():
        vocabulary.add(token)
    return {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string(pre),
        **vocabulary.fields(scores=False),
        "tokenizer.ggml.merges": array("string", merges),
        **special_fields(files, config, vocabulary),
    }


def require_plain(model: Mapping[str, Any], path: Path) -> None:
    """llama.cpp has no prefix or suffix for the parts of a word."""
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise SourceError(
                f"{path}: its BPE model has {key} {one_line(repr(model[key]), 40)}, which "
                "llama.cpp does not know"
            )


def words(files: TokenizerFolder, vocab: Mapping[str, Any], n_vocab: int, path: Path) -> Vocabulary:
    """A vocabulary of ordinary tokens from ``{text: id}``."""
    if not vocab:
        raise FormatError(path, "holds no tokens", field="vocab")
    vocabulary = Vocabulary(n_vocab)
    for text, value in vocab.items():
        number = numbered(value, path, f"vocab {text!r}")
        if files.reaches(number):
            vocabulary.put(number, text, TokenType.NORMAL, path)
    return vocabulary


def merge_pairs(model: Mapping[str, Any], path: Path) -> Iterator[tuple[str, str]]:
    """The merges of a BPE model, best first, a space inside a side encoded."""
    return _pairs(listed(model.get("merges"), path, "merges"), path)


def _pairs(entries: Iterable[Any], path: Path) -> Iterator[tuple[str, str]]:
    """Merges as ``"a b"`` or as ``[a, b]``."""
    for rank, entry in enumerate(entries):
        if isinstance(entry, str):
            # a side may be the space itself, or begin with one
            at = entry.find(" ", 1)
            a, b = (entry[:at], entry[at + 1 :]) if at > 0 else ("", "")
        elif isinstance(entry, list) and len(entry) == 2:
            a, b = entry
        else:
            a, b = "", ""
        if not (isinstance(a, str) and isinstance(b, str) and a and b):
            raise FormatError(
                path,
                f"{one_line(repr(entry), 80)} is no pair of two tokens",
                field=f"merge {rank}",
            )
        if " " in a or " " in b:
            a, b = a.replace(" ", _SPACE), b.replace(" ", _SPACE)
        yield a, b
