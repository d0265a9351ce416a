"""The files beside ``tokenizer.json`` that name tokens by number, or list them by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeopt.errors import FormatError
from edgeopt.files.reading import read_json, read_whole

__all__ = ["ids_in", "renumber_ids", "rewritten_files", "special_texts"]

_LIMIT = 128 << 20

#: Other forms of the vocabulary, which cannot be renumbered; tokenizer.json is there.
_DROPPED = (
    *("sentencepiece.bpe.model", "sentencepiece.model", "spiece.model", "spm.model", "source.spm"),
    *("target.spm", "tokenizer.model", "tekken.json", "unigram.json", "bpe.codes", "dict.txt"),
)

#: Keys of configurations that hold a token's number, or a list of them.
_ID_KEYS = ("_token_id", "_token_ids", "_token_index")
#: Lists of tokens that are not to be generated: those that are gone are gone from them.
_SUPPRESSED = ("suppress_tokens", "begin_suppress_tokens")
_NESTED = ("bad_words_ids", "force_words_ids")


def ids_in(config: Mapping[str, Any]) -> Iterator[int]:
    """Numbers of tokens that a configuration calls for."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from ids_in(value)
        elif key.endswith(_ID_KEYS):
            values = value if isinstance(value, list) else [value]
            yield from (v for v in values if isinstance(v, int) and not isinstance(v, bool))


def renumber_ids(config: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """A configuration with its tokens' new numbers; a number that never was a token stays."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            result[key] = renumber_ids(value, new)
        elif key.endswith(_ID_KEYS) and isinstance(value, list):
            result[key] = [new.get(v, v) for v in value]
        elif key.endswith(_ID_KEYS) and isinstance(value, int):
            result[key] = new.get(value, value)
        elif key in _SUPPRESSED and isinstance(value, list):
            result[key] = [new[v] for v in value if v in new]
        elif key in _NESTED and isinstance(value, list):
            whole = [words for words in value if all(v in new for v in words)]
            result[key] = [[new[v] for v in words] for words in whole] or None
        else:
            result[key] = value
    return result


def special_texts(folder: Path) -> Iterator[str]:
    """Texts of the tokens that the tokenizer's configuration gives a part to play."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        for key, value in _optional(folder / name).items():
            values: Any = [value] if key.endswith("_token") else ()
            if key.endswith("special_tokens"):
                values = value.values() if isinstance(value, dict) else value
            for each in values or ():
                text = each.get("content") if isinstance(each, dict) else each
                if isinstance(text, str):
                    yield text


def rewritten_files(folder: Path, new: Mapping[int, int]) -> dict[str, bytes | None]:
    """Files beside ``tokenizer.json`` with the tokens' new numbers, by name; None: left out."""
    files: dict[str, bytes | None] = {n: None for n in _DROPPED if (folder / n).is_file()}
    for name, rewrite in _REWRITES.items():
        if (folder / name).is_file():
            files[name] = rewrite(folder / name, new)
    return files


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path, limit=_LIMIT) if path.is_file() else {}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _tokenizer_config(path: Path, new: Mapping[int, int]) -> bytes:
    before = read_json(path)
    config = renumber_ids(before, new)
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        config["added_tokens_decoder"] = {
            str(new[int(key)]): entry
            for key, entry in decoder.items()
            if key.isdigit() and int(key) in new
        }
    return read_whole(path, _LIMIT) if config == before else _json(config)


def _by_text(path: Path, new: Mapping[int, int]) -> bytes:
    """``{text: id}``, in the order of the new numbers."""
    table = read_json(path, limit=_LIMIT)
    kept = sorted((new[number], text) for text, number in table.items() if number in new)
    return _json({text: number for number, text in kept})


def _lines(path: Path, new: Mapping[int, int]) -> bytes:
    """A token a line, its number the line's."""
    lines = _text_lines(path)
    kept = [number for number in sorted(new, key=new.__getitem__) if number < len(lines)]
    return "".join(lines[number] + "\n" for number in kept).encode()


def _merges(path: Path, new: Mapping[int, int]) -> bytes:
    """Merges of which both parts and the result are kept."""
    table = read_json(path.with_name("vocab.json"), limit=_LIMIT)
    kept = {text for text, number in table.items() if number in new}
    lines = _text_lines(path)
    head = [line for line in lines[:1] if line.startswith("#version")]
    pairs = [line for line in lines[len(head) :] if _is_kept(line.split(" "), kept)]
    return "".join(line + "\n" for line in (*head, *pairs)).encode()


def _is_kept(pair: list[str], kept: set[str]) -> bool:
    return len(pair) == 2 and {*pair, "".join(pair)} <= kept


def _text_lines(path: Path) -> list[str]:
    try:
        lines = read_whole(path, _LIMIT).decode().split("\n")
    except UnicodeDecodeError as error:
        raise FormatError(path, "is not UTF-8", offset=error.start) from error
    return lines[:-1] if lines and not lines[-1] else lines


def _config(path: Path, new: Mapping[int, int]) -> bytes:
    before = read_json(path)
    config = renumber_ids(before, new)
    return read_whole(path, _LIMIT) if config == before else _json(config)


_REWRITES: Mapping[str, Callable[[Path, Mapping[int, int]], bytes | None]] = {
    "tokenizer_config.json": _tokenizer_config,
    "generation_config.json": _config,
    "added_tokens.json": _by_text,
    "vocab.json": _by_text,
    "vocab.txt": _lines,
    "merges.txt": _merges,
}
